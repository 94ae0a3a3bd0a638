//! The one place where a clock is read.

use std::{sync::OnceLock, time::Duration};

use tokio::time::Instant;

#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    readings::count();
    Instant::now()
}

/// An instant in one word: nanoseconds after some instant, the same for all, or before.
pub(crate) fn stamp(instant: Instant) -> i64 {
    // Tests have clocks of their own, which may stand before the first one's.
    static SOME: OnceLock<Instant> = OnceLock::new();
    let some = *SOME.get_or_init(now);
    let nanos = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
    match instant.checked_duration_since(some) {
        Some(after) => nanos(after),
        None => -nanos(some - instant),
    }
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
