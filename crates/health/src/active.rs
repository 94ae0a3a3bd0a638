//! Probes and the verdict over them.

use crate::{State, clock::nanos, settings::Active};

/// What probes say of a component. Every look says when it is.
#[derive(Debug)]
pub(crate) struct Probes {
    unhealthy_after: u32,
    healthy_after: u32,
    timeout: u64,
    /// `None` before the first one has an answer or enough have failed.
    verdict: Option<State>,
    /// Failed and good ones in a row.
    failures: u32,
    successes: u32,
    running: Option<Running>,
    started: u64,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    number: u64,
    deadline: u64,
}

/// What there is to see, and what will be if nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Glance {
    pub(crate) verdict: Option<State>,
    pub(crate) until: Option<(u64, Option<State>)>,
}

impl Probes {
    pub(crate) fn new(active: &Active) -> Self {
        Self {
            unhealthy_after: active.unhealthy_after,
            healthy_after: active.healthy_after,
            timeout: nanos(active.timeout),
            verdict: None,
            failures: 0,
            successes: 0,
            running: None,
            started: 0,
        }
    }

    /// A probe's number, unless one is under way.
    pub(crate) fn start(&mut self, now: u64) -> Option<u64> {
        self.pass(now);
        if self.running.is_some() {
            return None;
        }
        self.started += 1;
        self.running = Some(Running { number: self.started, deadline: now.saturating_add(self.timeout) });
        Some(self.started)
    }

    /// Whether the answer of a probe counts: one that comes too late does not.
    pub(crate) fn end(&mut self, number: u64, good: bool, now: u64) -> bool {
        self.pass(now);
        if self.running.is_none_or(|running| running.number != number) {
            return false;
        }
        self.running = None;
        self.count(good);
        true
    }

    /// A probe ends without an answer, and decides nothing.
    pub(crate) fn cancel(&mut self, number: u64, now: u64) {
        self.pass(now);
        if self.running.is_some_and(|running| running.number == number) {
            self.running = None;
        }
    }

    /// Time passes: a probe without an answer may have failed meanwhile.
    pub(crate) fn pass(&mut self, now: u64) {
        if self.running.is_some_and(|running| running.deadline <= now) {
            self.running = None;
            self.count(false);
        }
    }

    fn count(&mut self, good: bool) {
        if good {
            (self.failures, self.successes) = (0, self.successes.saturating_add(1));
            // The first answer of all is enough.
            if self.verdict.is_none() || self.successes >= self.healthy_after {
                self.verdict = Some(State::Healthy);
            }
        } else {
            (self.failures, self.successes) = (self.failures.saturating_add(1), 0);
            if self.failures >= self.unhealthy_after {
                self.verdict = Some(State::Unhealthy);
            }
        }
    }

    pub(crate) fn glance(&self) -> Glance {
        let then = match self.failures.saturating_add(1) >= self.unhealthy_after {
            true => Some(State::Unhealthy),
            false => self.verdict,
        };
        Glance { verdict: self.verdict, until: self.running.map(|running| (running.deadline, then)) }
    }

    /// Failed probes in a row.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// As new. What is under way counts no more.
    pub(crate) fn reset(&mut self) {
        (self.verdict, self.failures, self.successes, self.running) = (None, 0, 0, None);
    }
}

impl Glance {
    pub(crate) const UNKNOWN: Self = Self { verdict: None, until: None };

    pub(crate) fn at(self, now: u64) -> Option<State> {
        match self.until {
            Some((deadline, then)) if deadline <= now => then,
            _ => self.verdict,
        }
    }

    /// In one word, so that nobody needs the lock to look.
    pub(crate) fn to_bits(self) -> u64 {
        let bits = |verdict: Option<State>| verdict.map_or(3, |state| state as u64);
        let (deadline, then) = self.until.unwrap_or((NEVER, None));
        bits(self.verdict) | bits(then) << 2 | deadline.min(NEVER) << 4
    }

    pub(crate) fn of_bits(word: u64) -> Self {
        let verdict = |bits: u64| (bits & 3 != 3).then(|| State::of_bits(bits));
        let deadline = word >> 4;
        Self { verdict: verdict(word), until: (deadline != NEVER).then(|| (deadline, verdict(word >> 2))) }
    }
}

/// 36 years.
const NEVER: u64 = (1 << 60) - 1;

#[cfg(all(test, not(loom)))]
#[path = "active/tests.rs"]
mod tests;
