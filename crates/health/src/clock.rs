//! The one place where a clock is read, and what instants become: nanoseconds since a handle was made.

use std::time::Duration;

use tokio::time::Instant;

#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(all(test, not(loom)))]
    readings::count();
    Instant::now()
}

#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Where a handle's time begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(Instant);

impl Epoch {
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    /// An instant before the beginning is the beginning.
    #[inline]
    pub(crate) fn at(self, instant: Instant) -> u64 {
        nanos(instant.saturating_duration_since(self.0))
    }

    pub(crate) fn now(self) -> u64 {
        self.at(now())
    }

    pub(crate) fn instant(self, nanos: u64) -> Instant {
        // What is out of reach is a thousand years away.
        let far = Duration::from_secs(1_000 * 365 * 24 * 3600);
        let (after, now) = (Duration::from_nanos(nanos), self.0);
        now.checked_add(after).or_else(|| now.checked_add(far)).unwrap_or(now)
    }
}

/// How often this thread has read the clock.
#[cfg(all(test, not(loom)))]
pub(crate) mod readings {
    use std::cell::Cell;

    thread_local!(static READINGS: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        READINGS.set(READINGS.get() + 1);
    }

    pub(crate) fn during<T>(run: impl FnOnce() -> T) -> (T, u64) {
        let before = READINGS.get();
        (run(), READINGS.get() - before)
    }
}
