//! Durations counted in buckets that grow with them: constant memory, one addition each, and a known error.

use std::time::Duration;

use crate::sync::{AtomicU64, Relaxed};

/// Eight buckets for each doubling: a bucket is an eighth of its lower end wide, so its middle is off by a sixteenth.
const FINE_BITS: u32 = 3;
const FINE: u64 = 1 << FINE_BITS;
/// Microseconds with so many bits are told apart: more than an hour. Longer ones count as that.
const BITS: u32 = 32;
const BUCKETS: usize = (BITS - FINE_BITS) as usize * FINE as usize + FINE as usize;

/// Counts durations, for percentiles and for histograms of others.
///
/// Counts are exact. A duration that is read back, such as a percentile, is off by at most 1/16 of itself or half a
/// microsecond, from a microsecond to 71 minutes; what is shorter or longer counts as those.
///
/// ```
/// use std::time::Duration;
/// use bartizan_health::Histogram;
///
/// let histogram = Histogram::new();
/// (1..=100).for_each(|ms| histogram.record(Duration::from_millis(ms)));
/// let seen = histogram.counts();
/// assert_eq!(seen.count(), 100);
/// let p90 = seen.quantile(0.9).unwrap().as_secs_f64();
/// assert!((p90 / 0.090 - 1.0).abs() <= 1.0 / 16.0, "{p90}");
/// assert_eq!(seen.sum(), Duration::from_millis(5050));
/// // Below a power of two of microseconds, exactly.
/// assert_eq!(seen.below(Duration::from_micros(1 << 16)), 65);
/// ```
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Histogram {
    /// Nothing is counted yet.
    pub fn new() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), sum: AtomicU64::new(0) }
    }

    /// Counts a duration.
    #[inline]
    pub fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[index(micros)].fetch_add(1, Relaxed);
        self.sum.fetch_add(micros.min(LONGEST), Relaxed);
    }

    /// All that was counted since the beginning.
    pub fn counts(&self) -> Counts {
        Counts { counts: std::array::from_fn(|n| self.counts[n].load(Relaxed)), sum: self.sum.load(Relaxed) }
    }

    /// How many were counted since the beginning.
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }
}

/// What a [`Histogram`] has counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    counts: [u64; BUCKETS],
    sum: u64,
}

impl Default for Counts {
    fn default() -> Self {
        Self { counts: [0; BUCKETS], sum: 0 }
    }
}

impl Counts {
    /// How many.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, in whole microseconds each.
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum)
    }

    /// The duration that the share `quantile` of all do not exceed, from 0 to 1. `None` if there is none.
    pub fn quantile(&self, quantile: f64) -> Option<Duration> {
        let all = self.count();
        let rank = ((quantile.clamp(0.0, 1.0) * all as f64).ceil() as u64).clamp(1, all.max(1));
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= rank
        })?;
        Some(Duration::from_nanos(middle_nanos(at)))
    }

    /// How many are shorter than this, which is exact for whole powers of two of microseconds up to 2^31, and else may
    /// leave out some that are up to an eighth shorter.
    pub fn below(&self, duration: Duration) -> u64 {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.counts[..index(micros)].iter().sum()
    }

    /// What was counted after `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        Self {
            counts: std::array::from_fn(|n| self.counts[n].saturating_sub(earlier.counts[n])),
            sum: self.sum.saturating_sub(earlier.sum),
        }
    }
}

const LONGEST: u64 = (1 << BITS) - 1;

#[inline]
fn index(micros: u64) -> usize {
    let micros = micros.min(LONGEST);
    if micros < FINE {
        return micros as usize;
    }
    let shift = micros.ilog2() - FINE_BITS;
    (u64::from(shift) * FINE + (micros >> shift)) as usize
}

/// The shortest duration of a bucket, in microseconds, and its width.
fn bounds(index: usize) -> (u64, u64) {
    let index = index as u64;
    if index < FINE {
        return (index, 1);
    }
    let shift = index / FINE - 1;
    ((FINE + index % FINE) << shift, 1 << shift)
}

fn middle_nanos(index: usize) -> u64 {
    let (from, width) = bounds(index);
    from * 1_000 + width * 500
}

/// A [`Histogram`], and what it was at the beginning of the last two periods: for percentiles of now, not of ever.
///
/// Whoever counts the first duration of a period marks it. Marks are no more exact than that: durations counted at the
/// same moment may stand on either side.
#[derive(Debug)]
pub(crate) struct Recent {
    pub(crate) all: Histogram,
    /// The last period in which anything was counted, from 1.
    period: AtomicU64,
    /// By the parity of the period.
    marks: [Histogram; 2],
}

impl Recent {
    pub(crate) fn new() -> Self {
        Self { all: Histogram::new(), period: AtomicU64::new(0), marks: [Histogram::new(), Histogram::new()] }
    }

    /// Something is about to be counted in this period. Cheap if it is not the first.
    #[inline]
    pub(crate) fn enter(&self, period: u64) {
        if self.period.load(Relaxed) < period + 1 {
            self.begin(period + 1);
        }
    }

    #[cold]
    fn begin(&self, period: u64) {
        let before = self.period.fetch_max(period, Relaxed);
        if before >= period {
            return;
        }
        self.mark(period);
        if before + 1 < period {
            // Nothing was counted in the one before.
            self.mark(period - 1);
        }
    }

    fn mark(&self, period: u64) {
        let mark = &self.marks[(period % 2) as usize];
        for (to, from) in mark.counts.iter().zip(&self.all.counts) {
            to.store(from.load(Relaxed), Relaxed);
        }
        mark.sum.store(self.all.sum.load(Relaxed), Relaxed);
    }

    /// What was counted in this period and the one before.
    pub(crate) fn recent(&self, period: u64) -> Counts {
        let last = self.period.load(Relaxed);
        // The first of the two periods; its mark is that of the last one if nothing came since.
        let first = match (period + 1).saturating_sub(last) {
            0 => last.wrapping_sub(1),
            1 => last,
            _ => return Counts::default(),
        };
        self.all.counts().since(&self.marks[(first % 2) as usize].counts())
    }

    /// What was counted so far is no more recent.
    pub(crate) fn reset(&self) {
        self.mark(0);
        self.mark(1);
    }
}

#[cfg(all(test, not(loom)))]
#[path = "histogram/tests.rs"]
mod tests;
