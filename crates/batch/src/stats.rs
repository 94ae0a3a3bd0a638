use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

/// What a [`Batch`](crate::Batch) and all its layers have done so far, and what is under way now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Items that wait for their batch to go.
    pub waiting: usize,
    /// Batches that are under way.
    pub in_flight: usize,
    /// Batches that have gone.
    pub batches: u64,
    /// Items that have gone with them.
    pub items: u64,
    /// Batches that failed as a whole, or were answered with a wrong number of results, not in time, or not at all.
    pub failed: u64,
    /// How long the first items of all batches that have gone had waited, together.
    pub waited: Duration,
    /// How long the first item of a batch has waited at most.
    pub longest_wait: Duration,
}

impl Stats {
    /// Items a batch, 0 before the first one.
    pub fn mean_size(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a mean need not be exact above 2^53")]
        if self.batches == 0 { 0.0 } else { self.items as f64 / self.batches as f64 }
    }

    /// How long the first item of a batch waits in the mean, which is as long as any of its items does. 0 before the first.
    pub fn mean_wait(&self) -> Duration {
        let nanos = self.waited.as_nanos() / u128::from(self.batches.max(1));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// What is counted, once a batch.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    in_flight: AtomicUsize,
    batches: AtomicU64,
    items: AtomicU64,
    failed: AtomicU64,
    waited: AtomicU64,
    longest: AtomicU64,
}

impl Totals {
    pub(crate) fn departed(&self, items: usize, waited: Duration) {
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.in_flight.fetch_add(1, Relaxed);
        self.batches.fetch_add(1, Relaxed);
        self.items.fetch_add(items as u64, Relaxed);
        self.waited.fetch_add(nanos, Relaxed);
        self.longest.fetch_max(nanos, Relaxed);
    }

    pub(crate) fn landed(&self, failed: bool) {
        self.in_flight.fetch_sub(1, Relaxed);
        if failed {
            self.failed.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn stats(&self, waiting: usize) -> Stats {
        Stats {
            waiting,
            in_flight: self.in_flight.load(Relaxed),
            batches: self.batches.load(Relaxed),
            items: self.items.load(Relaxed),
            failed: self.failed.load(Relaxed),
            waited: Duration::from_nanos(self.waited.load(Relaxed)),
            longest_wait: Duration::from_nanos(self.longest.load(Relaxed)),
        }
    }
}
