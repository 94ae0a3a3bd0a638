//! A component: all that is counted of it, and what follows.

use std::{
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::Class;
use tokio::{task::AbortHandle, time::Instant};

use crate::{
    State,
    active::{Glance, Probes},
    changes::Changes,
    clock::{self, Epoch, nanos},
    fault::{Classes, Fault, Last, LastError, Text},
    histogram::Recent,
    place::Place,
    prober::Ask,
    settings::{Active, Passive},
    stats::{Latency, Stats, Totals},
    sync::lock,
    window::{BUCKETS, Turn, Window},
};

/// What all views of a component share.
pub(crate) struct Watched {
    pub(crate) name: Box<str>,
    epoch: Epoch,
    /// Whoever waits for changes is told here.
    changes: Changes,
    window: Window,
    pub(crate) latency: Recent,
    pub(crate) first_frame: Recent,
    /// The state as it was last seen, in the two lowest bits, and since when.
    standing: AtomicU64,
    failures: AtomicU64,
    /// Failures that took no time, since the call was not even made.
    unready: AtomicU64,
    ignored: AtomicU64,
    cancelled: AtomicU64,
    refused: AtomicU64,
    /// Failures in a row.
    run: AtomicU32,
    pool: Option<Place>,
    probes: Mutex<Probes>,
    pub(crate) timeout: Duration,
    /// A [`Glance`] at the probes.
    glance: AtomicU64,
    draining: AtomicBool,
    required: AtomicBool,
    classes: Classes,
    last: Last,
    /// What a probe asks, and the task that does it.
    pub(crate) ask: Mutex<(Option<Ask>, Option<AbortHandle>)>,
}

/// What a call was, that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Took {
    Time(Duration),
    /// There was no call.
    None,
}

impl Watched {
    pub(crate) fn new(
        name: &str,
        epoch: Epoch,
        changes: Changes,
        passive: &Passive,
        active: &Active,
        pool: Option<Place>,
    ) -> Self {
        Self {
            name: name.into(),
            epoch,
            changes,
            window: Window::new(passive),
            latency: Recent::new(),
            first_frame: Recent::new(),
            standing: AtomicU64::new(stand(State::Healthy, epoch.now())),
            failures: AtomicU64::new(0),
            unready: AtomicU64::new(0),
            ignored: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            run: AtomicU32::new(0),
            pool,
            probes: Mutex::new(Probes::new(active)),
            timeout: active.timeout,
            glance: AtomicU64::new(Glance::UNKNOWN.to_bits()),
            draining: AtomicBool::new(false),
            required: AtomicBool::new(false),
            classes: Classes::new(),
            last: Last::new(),
            ask: Mutex::default(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.epoch.now()
    }

    pub(crate) fn at(&self, instant: Instant) -> u64 {
        self.epoch.at(instant)
    }

    /// A call is over. What went wrong is told if it was no success.
    #[inline]
    pub(crate) fn record(&self, class: Class, took: Took, fault: Option<Fault<'_>>, now: Instant) {
        let failed = match class {
            Class::Success => false,
            Class::Failure(_) => true,
            Class::Ignore => {
                self.ignored.fetch_add(1, Relaxed);
                return self.blame(fault, now);
            }
        };
        if failed {
            self.blame(Some(fault.unwrap_or(Fault::new("failure"))), now);
        }
        let now = self.at(now);
        let (turn, bucket) = self.window.record(failed, now);
        match took {
            Took::Time(took) => {
                self.latency.enter(bucket / BUCKETS);
                self.latency.all.record(took);
            }
            Took::None => _ = self.unready.fetch_add(1, Relaxed),
        }
        if failed {
            self.failures.fetch_add(1, Relaxed);
            self.run.fetch_add(1, Relaxed);
            if self.pool.as_ref().is_some_and(|place| place.fail(now)) {
                self.changes.tell();
            }
        } else if self.run.load(Relaxed) > 0 {
            self.run.store(0, Relaxed);
            self.pool.iter().for_each(Place::succeed);
        }
        if let Some(turn) = turn {
            self.turn(turn, now);
        }
    }

    #[cfg(feature = "http")]
    pub(crate) fn record_first_frame(&self, took: Duration, now: Instant) {
        self.first_frame.enter(self.window.period(self.at(now)));
        self.first_frame.all.record(took);
    }

    pub(crate) fn record_cancelled(&self) {
        self.cancelled.fetch_add(1, Relaxed);
    }

    pub(crate) fn record_refused(&self) {
        self.refused.fetch_add(1, Relaxed);
    }

    /// Remembers what went wrong.
    #[cold]
    fn blame(&self, fault: Option<Fault<'_>>, now: Instant) {
        if let Some(fault) = fault {
            // A stranger's words come first: they may panic.
            let text = Text::of(&fault);
            self.classes.count(fault.class());
            self.last.write(&text, self.at(now));
        }
    }

    #[cold]
    fn turn(&self, turn: Turn, now: u64) {
        if let Some(lapsed) = turn.lapsed {
            self.stand(self.glance().at(lapsed).unwrap_or_default(), lapsed);
        }
        self.look(now);
    }

    /// Its state now. What time has changed since the last look is noted, with the time at which that was.
    pub(crate) fn look(&self, now: u64) -> State {
        let glance = self.glance();
        let state = self.window.verdict(now).max(glance.at(now).unwrap_or_default());
        if state != State::of_bits(self.standing.load(Relaxed)) {
            let elapsed = [self.window.look(now).lapses, glance.until.map(|(deadline, _)| deadline)];
            let at = elapsed.into_iter().flatten().filter(|at| *at <= now).max();
            let since = self.standing.load(Relaxed) >> 2;
            self.stand(state, at.filter(|at| *at > since).unwrap_or(now));
        }
        state
    }

    /// Its state now, for whoever only wants to know.
    #[inline]
    pub(crate) fn state(&self, now: u64) -> State {
        self.window.verdict(now).max(self.glance().at(now).unwrap_or_default())
    }

    fn stand(&self, state: State, at: u64) {
        let change =
            |standing: u64| (State::of_bits(standing) != state).then(|| stand(state, at.max(standing >> 2)));
        if self.standing.fetch_update(Relaxed, Relaxed, change).is_ok() {
            self.changes.tell();
        }
    }

    fn glance(&self) -> Glance {
        Glance::of_bits(self.glance.load(Relaxed))
    }

    /// Asks the probes, with everything that time does to them done.
    pub(crate) fn probes<T>(&self, ask: impl FnOnce(&mut Probes, u64) -> T) -> T {
        let now = self.now();
        // What time has done so far is noted as such.
        self.look(now);
        let answer = {
            let mut probes = lock(&self.probes);
            probes.pass(now);
            let answer = ask(&mut probes, now);
            self.glance.store(probes.glance().to_bits(), Relaxed);
            answer
        };
        self.look(now);
        answer
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn hold_probes(&self) -> std::sync::MutexGuard<'_, Probes> {
        lock(&self.probes)
    }

    /// A probe has failed, with these words.
    pub(crate) fn blame_probe(&self, says: &dyn fmt::Display) {
        self.blame(Some(Fault::new("probe").says(says)), clock::now());
    }

    pub(crate) fn drain(&self, draining: bool) {
        if self.draining.swap(draining, Relaxed) != draining {
            self.changes.tell();
        }
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    pub(crate) fn require(&self) {
        self.required.store(true, Relaxed);
        self.changes.tell();
    }

    pub(crate) fn is_required(&self) -> bool {
        self.required.load(Relaxed)
    }

    /// Until when it is ejected, if it is.
    pub(crate) fn ejected(&self, now: u64) -> Option<u64> {
        self.pool.as_ref()?.until(now)
    }

    /// Whether it can be asked, as far as it alone matters.
    #[inline]
    pub(crate) fn is_up(&self, now: u64) -> bool {
        !self.is_draining() && self.ejected(now).is_none() && self.state(now) != State::Unhealthy
    }

    /// When it can be asked again if nothing comes any more. `None` if time alone does not bring that about.
    pub(crate) fn up_again(&self, now: u64) -> Option<u64> {
        if self.is_draining() || self.glance().at(now) == Some(State::Unhealthy) {
            return None;
        }
        let look = self.window.look(now);
        let lapses = look.lapses.filter(|_| look.verdict == State::Unhealthy);
        lapses.max(self.ejected(now)).filter(|at| *at > now)
    }

    /// When time changes its state, or lets it in again, if nothing comes any more.
    pub(crate) fn next_change(&self, now: u64) -> Option<u64> {
        let deadline = self.glance().until.map(|(deadline, _)| deadline);
        [self.window.look(now).lapses, deadline, self.ejected(now)]
            .into_iter()
            .flatten()
            .filter(|at| *at > now)
            .min()
    }

    /// As new, but for what is counted for ever.
    pub(crate) fn reset(&self) {
        self.window.reset();
        self.latency.reset();
        self.first_frame.reset();
        self.run.store(0, Relaxed);
        self.pool.iter().for_each(Place::forgive);
        self.probes(|probes, _| probes.reset());
        self.changes.tell();
    }

    pub(crate) fn stats(&self, now: u64) -> Stats {
        let state = self.look(now);
        let look = self.window.look(now);
        let period = self.window.period(now);
        let (failed_probes, probing, verdict) = {
            let mut probes = lock(&self.probes);
            probes.pass(now);
            (probes.failures(), probes.is_running(), probes.glance().verdict)
        };
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let (failures, unready) = (count(&self.failures), count(&self.unready));
        let ago = |at: u64| Duration::from_nanos(now.saturating_sub(at));
        Stats {
            name: self.name.as_ref().to_owned(),
            state,
            in_state: ago(count(&self.standing) >> 2),
            passive: look.verdict,
            active: verdict,
            draining: self.is_draining(),
            required: self.is_required(),
            ejected_for: self.ejected(now).map(|until| Duration::from_nanos(until - now)),
            ejections: self.pool.as_ref().map_or(0, Place::ejections),
            window: self.window.length(),
            requests: look.counts.total,
            failures: look.counts.failures,
            consecutive_failures: self.run.load(Relaxed),
            failed_probes,
            probing,
            totals: Totals {
                successes: (self.latency.all.count() + unready).saturating_sub(failures),
                failures,
                ignored: count(&self.ignored),
                cancelled: count(&self.cancelled),
                refused: count(&self.refused),
            },
            latency: Latency::of(&self.latency.recent(period)),
            first_frame: Latency::of(&self.first_frame.recent(period)),
            errors: self.classes.all(),
            last_error: self.last.read().map(|(message, at)| LastError { message, ago: ago(at) }),
        }
    }
}

/// 62 bits of nanoseconds are a hundred years.
fn stand(state: State, since: u64) -> u64 {
    state as u64 | since << 2
}

impl fmt::Debug for Watched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watched").field("name", &self.name).finish_non_exhaustive()
    }
}

/// As long a time as between two instants, whichever clock they are of.
pub(crate) fn took(started: Instant, now: Instant) -> Took {
    Took::Time(Duration::from_nanos(nanos(now.saturating_duration_since(started))))
}
