//! The last outcomes: a number of them, or those of some time. Each is counted at a constant cost.

use std::time::Duration;

use crate::settings::{Span, Window};

/// How many outcomes there are, and of what kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u64,
    pub(crate) failures: u64,
    pub(crate) slow: u64,
}

impl Counts {
    fn one(failed: bool, slow: bool) -> Self {
        Self { calls: 1, failures: failed.into(), slow: slow.into() }
    }

    /// Whether nothing counts against the service.
    pub(crate) fn is_good(self) -> bool {
        self.failures == 0 && self.slow == 0
    }

    fn add(&mut self, other: Self) {
        self.calls += other.calls;
        self.failures += other.failures;
        self.slow += other.slow;
    }

    fn sub(&mut self, other: Self) {
        self.calls -= other.calls;
        self.failures -= other.failures;
        self.slow -= other.slow;
    }
}

/// A window and what it holds.
#[derive(Debug)]
pub(crate) struct Tally {
    window: Window,
    outcomes: Outcomes,
    counts: Counts,
}

#[derive(Debug)]
enum Outcomes {
    /// A ring of the last calls: bit 0 for a failure, bit 1 for a slow one.
    Calls { ring: Box<[u8]>, next: usize },
    /// A ring of buckets: what happened in each, and the number of the last one.
    Time { ring: Box<[Counts; BUCKETS]>, width: u64, last: u64 },
}

/// An outcome leaves a time window between fifteen sixteenths of its length and the whole of it.
const BUCKETS: usize = 16;

impl Tally {
    pub(crate) fn new(window: &Window) -> Self {
        let outcomes = match window.span {
            Span::Calls(size) => Outcomes::Calls { ring: vec![0; size as usize].into(), next: 0 },
            Span::Time(length) => {
                let width = nanos(length) / BUCKETS as u64;
                Outcomes::Time { ring: Box::default(), width, last: 0 }
            }
        };
        Self { window: window.clone(), outcomes, counts: Counts::default() }
    }

    /// Whether an outcome is the same whenever it comes and whatever it took.
    pub(crate) fn is_timeless(&self) -> bool {
        matches!(self.outcomes, Outcomes::Calls { .. }) && self.window.slow.is_none()
    }

    /// Whether one more success, of a call that is not slow, could be too much: it completes what a share needs at least.
    pub(crate) fn success_may_trip(&self) -> bool {
        // A share that is too small becomes no larger by it.
        self.window.failures.is_some_and(|percent| at_least(self.counts.failures, percent, self.counts.calls))
    }

    /// Whether one more success, of a call that is not slow, changes anything. It does not if the window holds as many
    /// calls as it can, and all of them are such: one goes and one comes.
    pub(crate) fn notes_successes(&self) -> bool {
        let Outcomes::Calls { ring, .. } = &self.outcomes else { return true };
        !self.is_timeless() || self.counts.calls < ring.len() as u64 || !self.counts.is_good()
    }

    /// Counts one more outcome, and says whether it counts against the service.
    pub(crate) fn push(&mut self, failed: bool, took: Duration, now: u64) -> bool {
        let slow = self.window.slow.is_some_and(|slow| took > slow.over);
        self.age(now);
        match &mut self.outcomes {
            Outcomes::Calls { ring, next } => {
                if self.counts.calls == ring.len() as u64 {
                    self.counts.sub(Counts::one(ring[*next] & 1 > 0, ring[*next] & 2 > 0));
                }
                ring[*next] = u8::from(failed) | u8::from(slow) << 1;
                *next = if *next + 1 == ring.len() { 0 } else { *next + 1 };
            }
            Outcomes::Time { ring, last, .. } => ring[slot(*last)].add(Counts::one(failed, slow)),
        }
        self.counts.add(Counts::one(failed, slow));
        failed || slow
    }

    /// What the window holds now.
    pub(crate) fn counts(&mut self, now: u64) -> Counts {
        self.age(now);
        self.counts
    }

    /// Whether that is too much.
    pub(crate) fn trips(&self) -> bool {
        let Counts { calls, failures, slow } = self.counts;
        calls >= u64::from(self.window.least())
            && (self.window.failures.is_some_and(|percent| at_least(failures, percent, calls))
                || self.window.slow.is_some_and(|limit| at_least(slow, limit.percent, calls)))
    }

    pub(crate) fn clear(&mut self) {
        self.counts = Counts::default();
        match &mut self.outcomes {
            Outcomes::Calls { next, .. } => *next = 0,
            Outcomes::Time { ring, .. } => ring.fill(Counts::default()),
        }
    }

    /// Drops what is too old.
    fn age(&mut self, now: u64) {
        let Outcomes::Time { ring, width, last } = &mut self.outcomes else { return };
        let current = now / *width;
        let gone = current.saturating_sub(*last).min(BUCKETS as u64);
        for n in 1..=gone {
            self.counts.sub(std::mem::take(&mut ring[slot(*last + n)]));
        }
        *last = current.max(*last);
    }
}

fn at_least(part: u64, percent: u8, of: u64) -> bool {
    part * 100 >= u64::from(percent) * of
}

#[expect(clippy::cast_possible_truncation, reason = "it is below the number of buckets")]
fn slot(bucket: u64) -> usize {
    (bucket % BUCKETS as u64) as usize
}

pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(all(test, not(loom)))]
#[path = "window/tests.rs"]
mod tests;
