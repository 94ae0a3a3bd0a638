//! The one place where a clock is read.

use tokio::time::Instant;

#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    readings::count();
    Instant::now()
}

/// How often this thread has read the clock.
#[cfg(test)]
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
