use std::{
    sync::{Mutex, MutexGuard, PoisonError},
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

/// What is counted, twice a batch: when it goes, and when it is answered.
#[derive(Debug, Default)]
pub(crate) struct Totals(Mutex<Stats>);

impl Totals {
    pub(crate) fn departed(&self, items: usize, waited: Duration) {
        let mut stats = self.lock();
        stats.in_flight += 1;
        stats.batches += 1;
        stats.items += items as u64;
        stats.waited = stats.waited.saturating_add(waited);
        stats.longest_wait = stats.longest_wait.max(waited);
    }

    pub(crate) fn landed(&self, failed: bool) {
        let mut stats = self.lock();
        stats.in_flight -= 1;
        stats.failed += u64::from(failed);
    }

    pub(crate) fn stats(&self, waiting: usize) -> Stats {
        Stats { waiting, ..*self.lock() }
    }

    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
