//! The outcomes of the last while and the verdict over them, without a lock.
//!
//! Time is cut into buckets. The counts of the bucket under way and the verdict stand in one word, so that an outcome is
//! counted and judged in one exchange: what races is judged in some order, each exactly once. Buckets that are over stand
//! in a ring; whoever begins a new bucket puts the last one there first.

use std::time::Duration;

use crate::{
    State,
    clock::nanos,
    settings::{Passive, Threshold},
    sync::{AcqRel, Acquire, AtomicU64, Relaxed, Release},
};

/// An outcome leaves between fifteen sixteenths of the window and the whole of it.
#[cfg(not(all(loom, test)))]
pub(crate) const BUCKETS: u64 = 16;
#[cfg(all(loom, test))]
pub(crate) const BUCKETS: u64 = 2;

/// How many outcomes there are, and how many of them are failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) total: u64,
    pub(crate) failures: u64,
}

impl Counts {
    const NONE: Self = Self { total: 0, failures: 0 };

    fn plus(self, other: Self) -> Self {
        Self { total: self.total + other.total, failures: self.failures + other.failures }
    }

    fn one_more(self, failed: bool) -> Self {
        // A bucket with more than a million outcomes keeps its share, not its number.
        let Self { total, failures } = match self.total < COUNT {
            true => self,
            false => Self { total: self.total / 2, failures: self.failures.div_ceil(2) },
        };
        Self { total: total + 1, failures: failures + u64::from(failed) }
    }
}

/// Two thresholds, each on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    min_requests: u64,
    degraded: Option<Threshold>,
    unhealthy: Option<Threshold>,
}

/// Which thresholds are on: bit 0 for degraded, bit 1 for unhealthy.
type Triggers = u64;

const DEGRADED: Triggers = 1;
const UNHEALTHY: Triggers = 2;

fn verdict(triggers: Triggers) -> State {
    match triggers {
        0 => State::Healthy,
        DEGRADED => State::Degraded,
        _ => State::Unhealthy,
    }
}

impl Rule {
    /// What becomes of the thresholds with these outcomes.
    fn judge(&self, triggers: Triggers, counts: Counts) -> Triggers {
        if counts.total < self.min_requests {
            return triggers;
        }
        let on = |threshold: Option<Threshold>, bit: Triggers| {
            let Some(Threshold { at, below }) = threshold else { return 0 };
            let percent = if triggers & bit == 0 { at } else { below };
            if counts.failures * 100 >= u64::from(percent) * counts.total { bit } else { 0 }
        };
        on(self.degraded, DEGRADED) | on(self.unhealthy, UNHEALTHY)
    }
}

/// The window.
#[derive(Debug)]
pub(crate) struct Window {
    rule: Rule,
    width: u64,
    /// A [`Word`]: the bucket under way.
    current: AtomicU64,
    /// The latest bucket that was begun, in full.
    last: AtomicU64,
    /// The latest bucket with a failure, counted from 1.
    failed: AtomicU64,
    /// Buckets that time is ahead: each reset makes all that was too old.
    ahead: AtomicU64,
    /// [`Slot`]s.
    ring: [AtomicU64; BUCKETS as usize],
}

/// A change of the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// When the verdict before had lapsed, if it had, because the window was empty.
    pub(crate) lapsed: Option<u64>,
    /// The verdict from now on.
    pub(crate) to: State,
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Look {
    pub(crate) counts: Counts,
    pub(crate) verdict: State,
    /// When a verdict that is not healthy lapses if nothing comes any more, or has lapsed.
    pub(crate) lapses: Option<u64>,
}

impl Window {
    pub(crate) fn new(passive: &Passive) -> Self {
        let Passive { window, min_requests, degraded, unhealthy } = *passive;
        Self {
            rule: Rule { min_requests: min_requests.into(), degraded, unhealthy },
            width: (nanos(window) / BUCKETS).max(1),
            current: AtomicU64::new(0),
            last: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            ahead: AtomicU64::new(0),
            ring: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn length(&self) -> Duration {
        Duration::from_nanos(self.width.saturating_mul(BUCKETS))
    }

    /// Counts an outcome, and tells what it has changed, and its bucket.
    #[inline]
    pub(crate) fn record(&self, failed: bool, now: u64) -> (Option<Turn>, u64) {
        let bucket = self.bucket(now);
        let mut word = Word(self.current.load(Acquire));
        loop {
            let begun = self.begun(word, bucket);
            // Whoever comes with an older time counts where the others do.
            let (into, begins) = (bucket.max(begun), bucket > begun);
            let expired = into - begun >= BUCKETS || word.counts().total == 0;
            if begins {
                self.begin(begun, word.counts(), into);
            }
            let before = if expired { 0 } else { word.triggers() };
            let counts = if begins { Counts::NONE } else { word.counts() }.one_more(failed);
            // Asked first, since a failure is to be known whatever the verdict is.
            let calm = !self.has_failed(failed, into) && before == 0;
            let triggers =
                if calm { 0 } else { self.rule.judge(before, counts.plus(self.others(into, into))) };
            let next = Word::new(into, counts, triggers);
            match self.current.compare_exchange_weak(word.0, next.0, AcqRel, Acquire) {
                Ok(_) => {
                    let lapsed = (expired && word.triggers() != 0)
                        .then(|| self.time_of(begun.saturating_add(BUCKETS)));
                    let turned = lapsed.is_some() || triggers != before;
                    let turn = turned.then(|| Turn { lapsed, to: verdict(triggers) });
                    return (turn, into);
                }
                Err(now) => word = Word(now),
            }
        }
    }

    /// What is true now.
    pub(crate) fn look(&self, now: u64) -> Look {
        let (bucket, word) = (self.bucket(now), Word(self.current.load(Acquire)));
        let begun = self.begun(word, bucket);
        let lapses = (word.triggers() != 0).then(|| self.time_of(begun.saturating_add(BUCKETS)));
        if bucket.saturating_sub(begun) >= BUCKETS || word.counts().total == 0 {
            return Look { counts: Counts::NONE, verdict: State::Healthy, lapses };
        }
        let counts = word.counts().plus(self.others(bucket.max(begun), begun));
        Look { counts, verdict: verdict(word.triggers()), lapses }
    }

    /// The verdict alone, for whoever asks often.
    #[inline]
    pub(crate) fn verdict(&self, now: u64) -> State {
        let word = Word(self.current.load(Acquire));
        if word.triggers() == 0 {
            return State::Healthy;
        }
        let bucket = self.bucket(now);
        match bucket.saturating_sub(self.begun(word, bucket)) >= BUCKETS {
            true => State::Healthy,
            false => verdict(word.triggers()),
        }
    }

    /// Forgets all outcomes and the verdict.
    pub(crate) fn reset(&self) {
        self.ahead.fetch_add(BUCKETS, Relaxed);
    }

    /// The number of the window at this time, if windows stood side by side.
    pub(crate) fn period(&self, now: u64) -> u64 {
        self.bucket(now) / BUCKETS
    }

    #[inline]
    fn bucket(&self, now: u64) -> u64 {
        (now / self.width).saturating_add(self.ahead.load(Relaxed))
    }

    /// When a bucket begins.
    fn time_of(&self, bucket: u64) -> u64 {
        bucket.saturating_sub(self.ahead.load(Relaxed)).saturating_mul(self.width)
    }

    /// Whether there is a failure in the window that ends with this bucket, the outcome at hand included.
    #[inline]
    fn has_failed(&self, failed: bool, bucket: u64) -> bool {
        let mark = self.failed.load(Relaxed);
        if !failed {
            return mark > 0 && mark + BUCKETS > bucket + 1;
        }
        if mark <= bucket {
            self.failed.fetch_max(bucket + 1, Relaxed);
        }
        true
    }

    /// The number of the word's bucket, in full, as seen from this one.
    #[inline]
    fn begun(&self, word: Word, bucket: u64) -> u64 {
        let last = self.last.load(Relaxed);
        if bucket.saturating_sub(last) >= HALF {
            return last;
        }
        let behind = bucket.wrapping_sub(word.bucket()) & (2 * HALF - 1);
        // The upper half stands for what is ahead.
        if behind < HALF { bucket.saturating_sub(behind) } else { bucket + 2 * HALF - behind }
    }

    /// Puts a bucket that is over into the ring, as another one begins.
    #[cold]
    fn begin(&self, over: u64, counts: Counts, begins: u64) {
        self.last.fetch_max(begins, Relaxed);
        if begins - over >= BUCKETS {
            return;
        }
        let (slot, mine) = (&self.ring[index(over)], Slot::new(over, counts));
        let keep = |seen: Slot| match seen.lap().wrapping_sub(mine.lap()) & (LAPS - 1) {
            // Others who begin a bucket may have seen more of this one, or be a window further.
            0 => seen.counts().total >= counts.total,
            ahead => ahead < LAPS_AHEAD,
        };
        let mut seen = slot.load(Relaxed);
        while !keep(Slot(seen)) {
            match slot.compare_exchange_weak(seen, mine.0, Release, Relaxed) {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// What the ring holds of the window that ends with `bucket`, but for one bucket.
    fn others(&self, bucket: u64, without: u64) -> Counts {
        let first = bucket.saturating_sub(BUCKETS - 1);
        (first..=bucket).filter(|it| *it != without).fold(Counts::NONE, |sum, it| {
            let slot = Slot(self.ring[index(it)].load(Acquire));
            if slot.lap() == Slot::new(it, Counts::NONE).lap() { sum.plus(slot.counts()) } else { sum }
        })
    }
}

fn index(bucket: u64) -> usize {
    (bucket % BUCKETS) as usize
}

const COUNT_BITS: u32 = 20;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const TRIGGER_BITS: u32 = 2;
const BUCKET_AT: u32 = TRIGGER_BITS + 2 * COUNT_BITS;
/// Half of the buckets that a word tells apart.
const HALF: u64 = 1 << (63 - BUCKET_AT);
/// The laps of the ring that a slot tells apart.
const LAPS: u64 = 1 << (64 - 2 * COUNT_BITS);
/// So far may another one be who was faster.
const LAPS_AHEAD: u64 = 1 << 10;

/// From the lowest bit: the thresholds that are on, failures, outcomes, and the bucket's number as far as there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

impl Word {
    fn new(bucket: u64, counts: Counts, triggers: Triggers) -> Self {
        let counts = counts.failures | counts.total << COUNT_BITS;
        Self(triggers | counts << TRIGGER_BITS | bucket << BUCKET_AT)
    }

    fn triggers(self) -> Triggers {
        self.0 & (DEGRADED | UNHEALTHY)
    }

    fn counts(self) -> Counts {
        Counts {
            failures: self.0 >> TRIGGER_BITS & COUNT,
            total: self.0 >> (TRIGGER_BITS + COUNT_BITS) & COUNT,
        }
    }

    fn bucket(self) -> u64 {
        self.0 >> BUCKET_AT
    }
}

/// From the lowest bit: failures, outcomes, and the lap of the ring as far as there is room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot(u64);

impl Slot {
    fn new(bucket: u64, counts: Counts) -> Self {
        Self(counts.failures | counts.total << COUNT_BITS | (bucket / BUCKETS) << (2 * COUNT_BITS))
    }

    fn counts(self) -> Counts {
        Counts { failures: self.0 & COUNT, total: self.0 >> COUNT_BITS & COUNT }
    }

    fn lap(self) -> u64 {
        self.0 >> (2 * COUNT_BITS)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "window/tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "window/models.rs"]
mod models;
