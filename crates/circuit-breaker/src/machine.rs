//! The breaker itself, without a clock: `now` is nanoseconds since it was made.
//!
//! Every change of the state begins a generation. A call carries the number of the generation that let it pass, and its
//! outcome counts in that one only.

use std::{sync::Arc, time::Duration};

use bartizan_core::RetryAfter;

use crate::{
    period::period,
    settings::Settings,
    state::{State, Word},
    window::{Counts, Tally, nanos},
};

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    Failure(RetryAfter),
    /// It says nothing about the service.
    Ignored,
    /// It was dropped unanswered.
    Cancelled,
}

/// A change of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// From this state.
    pub from: State,
    /// To this state.
    pub to: State,
    /// The number of the generation that begins with it. It only grows.
    pub generation: u64,
}

#[derive(Debug)]
pub(crate) struct Machine {
    settings: Arc<Settings>,
    state: State,
    generation: u64,
    /// The first generation of this breaker: what is older belongs to nobody.
    first: u64,
    /// The last change, and how it is told.
    pub(crate) changed: Transition,
    /// Open: when that is over. Half-open: when it is open again if there are still probes out.
    until: u64,
    /// How often it has opened again without having been closed.
    reopened: i32,
    /// Upstreams said not to come back before.
    not_before: u64,
    probes: u32,
    successes: u32,
    /// Failures in a row, if that is what trips, since it was last closed.
    run: u32,
    /// The same through all states, failed probes included: that is only told.
    in_a_row: u32,
    windows: Box<[Tally]>,
    /// No window is of time or of what calls take.
    timeless: bool,
    /// The largest time seen.
    latest: u64,
    /// When the state last changed, or something last counted against the service.
    marked: u64,
    seed: u64,
    tallied: Tallied,
}

/// What is only counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tallied {
    pub(crate) opens: u64,
    pub(crate) late: u64,
    pub(crate) last_failure: Option<u64>,
}

impl Machine {
    /// A closed breaker whose first generation has this number.
    pub(crate) fn new(settings: Arc<Settings>, first: u64, seed: u64) -> Self {
        let windows: Box<[_]> = settings.windows.iter().map(Tally::new).collect();
        let timeless = windows.iter().all(Tally::is_timeless);
        Self {
            settings,
            state: State::Closed,
            generation: first,
            first,
            changed: Transition { generation: first, ..Transition::default() },
            until: u64::MAX,
            reopened: 0,
            not_before: 0,
            probes: 0,
            successes: 0,
            run: 0,
            in_a_row: 0,
            windows,
            timeless,
            latest: 0,
            marked: 0,
            seed,
            tallied: Tallied::default(),
        }
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Open: when that is over.
    pub(crate) fn until(&self) -> u64 {
        self.until
    }

    /// What is published.
    pub(crate) fn word(&self) -> Word {
        let counts_successes = match self.state {
            State::Closed => self.run > 0 || self.windows.iter().any(Tally::notes_successes),
            State::HalfOpen => true,
            State::Open | State::ForcedOpen | State::Disabled => false,
        };
        let word = Word::new(self.state, self.generation, counts_successes, self.probes, self.successes);
        if self.state == State::Closed && self.timeless { word.timeless() } else { word }
    }

    /// Lets a call pass, or says when to come back.
    pub(crate) fn admit(&mut self, now: u64) -> Result<Word, RetryAfter> {
        let now = self.advance(now);
        if self.state == State::Open && now >= self.until {
            self.enter(State::HalfOpen, now);
        }
        match self.state {
            State::Closed | State::Disabled => return Ok(self.word()),
            State::HalfOpen if self.has_room() => {
                if self.probes == 0 {
                    // However long nobody came, a probe has its time.
                    self.until = now.saturating_add(self.settings.probe_timeout.map_or(u64::MAX, nanos));
                }
                self.probes += 1;
                return Ok(self.word());
            }
            State::HalfOpen | State::Open | State::ForcedOpen => {}
        }
        Err(self.retry_after(now))
    }

    /// Counts what became of a call that passed with `word` and took so long.
    pub(crate) fn settle(&mut self, word: Word, outcome: Outcome, took: Duration, now: u64) {
        let age = word.age(self.generation);
        if age > self.generation - self.first {
            // A breaker's that is gone: not even its time is ours.
            return;
        }
        let now = self.advance(now);
        let outcome = match outcome {
            Outcome::Cancelled if self.settings.cancelled_after.is_some_and(|after| took >= after) => {
                Outcome::Failure(RetryAfter::Unknown)
            }
            outcome => outcome,
        };
        // Time alone may just have begun a generation.
        if word.age(self.generation) > 0 {
            let tells = matches!(outcome, Outcome::Success | Outcome::Failure(_));
            self.tallied.late += u64::from(tells);
            return;
        }
        match self.state {
            State::Closed => self.record(outcome, took, now),
            State::HalfOpen => self.judge(outcome, took, now),
            State::Open | State::ForcedOpen | State::Disabled => {}
        }
    }

    /// Counts a success of a call that passed with `word`, if it changes no state and nothing else depends on the time.
    pub(crate) fn succeed(&mut self, word: Word) -> bool {
        let changes_no_state = self.state == State::Closed
            && self.timeless
            && word.age(self.generation) == 0
            && !self.windows.iter().any(Tally::success_may_trip);
        if changes_no_state {
            self.record(Outcome::Success, Duration::ZERO, self.latest);
        }
        changes_no_state
    }

    fn record(&mut self, outcome: Outcome, took: Duration, now: u64) {
        let failed = match outcome {
            Outcome::Success => {
                (self.run, self.in_a_row) = (0, 0);
                false
            }
            Outcome::Failure(retry_after) => {
                self.run = self.run.saturating_add(u32::from(self.settings.consecutive.is_some()));
                self.fail(retry_after, now);
                true
            }
            Outcome::Ignored | Outcome::Cancelled => return,
        };
        for window in &mut self.windows {
            if window.push(failed, took, now) {
                self.marked = now;
            }
        }
        if self.settings.consecutive.is_some_and(|most| self.run >= most)
            || self.windows.iter().any(Tally::trips)
        {
            self.enter(State::Open, now);
        }
    }

    fn judge(&mut self, outcome: Outcome, took: Duration, now: u64) {
        self.probes -= 1;
        if outcome == Outcome::Success {
            self.in_a_row = 0;
        }
        match outcome {
            Outcome::Success if self.settings.slow().is_some_and(|slow| took > slow) => self.reopen(now),
            Outcome::Success => {
                self.successes += 1;
                if self.successes >= self.settings.successes {
                    self.enter(State::Closed, now);
                }
            }
            Outcome::Failure(retry_after) => {
                self.fail(retry_after, now);
                self.reopen(now);
            }
            Outcome::Ignored | Outcome::Cancelled => {}
        }
    }

    fn fail(&mut self, retry_after: RetryAfter, now: u64) {
        self.marked = now;
        self.count_failure(now);
        if let RetryAfter::After(wait) = retry_after {
            let wait = nanos(wait.min(self.settings.longest_retry_after));
            self.not_before = self.not_before.max(now.saturating_add(wait));
        }
    }

    fn count_failure(&mut self, at: u64) {
        self.tallied.last_failure = Some(at);
        self.in_a_row = self.in_a_row.saturating_add(u32::from(self.settings.consecutive.is_some()));
    }

    fn reopen(&mut self, at: u64) {
        self.reopened = self.reopened.saturating_add(1);
        self.enter(State::Open, at);
    }

    pub(crate) fn force_open(&mut self) {
        if self.state != State::ForcedOpen {
            self.enter(State::ForcedOpen, self.latest);
        }
    }

    pub(crate) fn disable(&mut self) {
        if self.state != State::Disabled {
            self.enter(State::Disabled, self.latest);
        }
    }

    /// Closes, and forgets everything.
    pub(crate) fn reset(&mut self) {
        self.enter(State::Closed, self.latest);
        self.tallied = Tallied::default();
    }

    /// Ends this breaker: nothing that is still under way belongs to anybody. The number of the next one's first
    /// generation.
    pub(crate) fn retire(&mut self) -> u64 {
        self.enter(State::ForcedOpen, self.latest);
        self.first = self.generation;
        self.windows = Box::default();
        self.generation + 1
    }

    /// Begins a generation.
    fn enter(&mut self, state: State, at: u64) {
        self.generation += 1;
        self.marked = at;
        (self.probes, self.successes) = (0, 0);
        if matches!(state, State::Closed | State::HalfOpen) {
            self.run = 0;
            self.windows.iter_mut().for_each(Tally::clear);
        }
        self.until = match state {
            State::Open => {
                self.tallied.opens += 1;
                let period = period(&self.settings, self.reopened, self.seed ^ self.generation);
                at.saturating_add(period).max(self.not_before)
            }
            State::Closed => {
                (self.in_a_row, self.reopened, self.not_before) = (0, 0, 0);
                u64::MAX
            }
            State::HalfOpen | State::ForcedOpen | State::Disabled => u64::MAX,
        };
        if state != self.state {
            self.changed = Transition { from: self.state, to: state, generation: self.generation };
            self.state = state;
        }
    }

    /// Takes note of the time, and of what it brought about: with probes out for too long it is open again.
    fn advance(&mut self, now: u64) -> u64 {
        self.latest = self.latest.max(now);
        if self.state == State::HalfOpen && self.probes > 0 && self.latest >= self.until {
            self.count_failure(self.until);
            self.reopen(self.until);
        }
        self.latest
    }

    fn has_room(&self) -> bool {
        let Settings { probes, successes, .. } = *self.settings;
        self.probes < probes && self.probes + self.successes < successes
    }

    fn retry_after(&self, now: u64) -> RetryAfter {
        match self.state {
            State::Open => RetryAfter::After(Duration::from_nanos(self.until.saturating_sub(now))),
            State::ForcedOpen => RetryAfter::Never,
            State::Closed | State::HalfOpen | State::Disabled => RetryAfter::Unknown,
        }
    }

    /// What a call would find now, and what it would be told if it were refused.
    pub(crate) fn look(&mut self, now: u64) -> Look {
        let now = self.advance(now);
        let probes = State::Open == self.state && now >= self.until;
        let state = if probes { State::HalfOpen } else { self.state };
        let passes = match state {
            State::Closed | State::Disabled => true,
            State::HalfOpen => probes || self.has_room(),
            State::Open | State::ForcedOpen => false,
        };
        let changes = matches!(self.state, State::Open | State::HalfOpen) && !passes && self.until < u64::MAX;
        let retry_after = if passes { RetryAfter::Unknown } else { self.retry_after(now) };
        Look { state, passes, retry_after, changes_at: changes.then_some(self.until) }
    }

    /// What is counted now.
    pub(crate) fn counted(&mut self, now: u64) -> Counted {
        let now = self.advance(now);
        let run = u64::from(self.run);
        let counts = match (self.state, self.windows.first_mut()) {
            (State::HalfOpen, _) => Counts { calls: self.successes.into(), ..Counts::default() },
            (_, Some(window)) => window.counts(now),
            (_, None) => Counts { calls: run, failures: run, slow: 0 },
        };
        Counted { counts, in_a_row: self.in_a_row, probes: self.probes, tallied: self.tallied }
    }

    /// Whether nothing is lost with it but statistics: it holds nothing against its service, or nothing that is not long
    /// past.
    pub(crate) fn is_forgettable(&mut self, now: u64) -> bool {
        let now = self.advance(now);
        let nothing = self.run == 0 && self.windows.iter_mut().all(|window| window.counts(now).is_good());
        let since = match self.state {
            State::Closed if nothing => return self.not_before <= now,
            State::Open => self.until,
            State::HalfOpen if self.probes > 0 => return false,
            State::Closed | State::HalfOpen => self.marked,
            State::ForcedOpen | State::Disabled => return false,
        };
        since.saturating_add(nanos(LONG)).max(self.not_before) <= now
    }
}

/// What lies so far back is past.
const LONG: Duration = Duration::from_secs(3600);

/// What a call would find.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    pub(crate) state: State,
    pub(crate) passes: bool,
    pub(crate) retry_after: RetryAfter,
    /// When time alone changes that.
    pub(crate) changes_at: Option<u64>,
}

/// What is counted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub(crate) counts: Counts,
    pub(crate) in_a_row: u32,
    pub(crate) probes: u32,
    pub(crate) tallied: Tallied,
}

#[cfg(all(test, not(loom)))]
#[path = "machine/tests.rs"]
mod tests;
