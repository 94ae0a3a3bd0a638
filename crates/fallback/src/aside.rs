//! Until when a target is left alone, in one word.

use std::time::Duration;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering::Relaxed};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::time::Instant;

/// Nanoseconds from some instant on, or 0: it is not left alone.
#[derive(Debug)]
pub(crate) struct Aside(AtomicU64);

impl Aside {
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Leaves it alone until then, or for longer if that was said before.
    pub(crate) fn put(&self, epoch: Instant, until: Instant) {
        self.0.fetch_max(nanos(until.saturating_duration_since(epoch)).max(1), Relaxed);
    }

    /// By hand: it is asked again from now on.
    pub(crate) fn release(&self) {
        self.0.store(0, Relaxed);
    }

    /// Whether there is nothing to look at a clock for.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// Until when it is left alone. What is over is forgotten, so that nobody reads a clock for it again.
    #[inline]
    pub(crate) fn until(&self, epoch: Instant, now: impl FnOnce() -> Instant) -> Option<Instant> {
        match self.0.load(Relaxed) {
            0 => None,
            told => self.look(told, epoch, now()),
        }
    }

    #[cold]
    fn look(&self, told: u64, epoch: Instant, now: Instant) -> Option<Instant> {
        let until = epoch + Duration::from_nanos(told);
        if until > now {
            return Some(until);
        }
        // Unless it was put aside anew meanwhile.
        let _ = self.0.compare_exchange(told, 0, Relaxed, Relaxed);
        None
    }
}

fn nanos(time: Duration) -> u64 {
    // A century, so that it can be added to any instant.
    const FAR: u64 = 100 * 365 * 24 * 3600 * 1_000_000_000;
    u64::try_from(time.as_nanos()).unwrap_or(FAR).min(FAR)
}

#[cfg(all(test, loom))]
mod models {
    use loom::{sync::Arc, thread};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Whoever forgets what is over does not forget what was just said.
    #[test]
    fn what_was_said_last_stays() {
        loom::model(|| {
            let epoch = Instant::now();
            let aside = Arc::new(Aside::new());
            aside.put(epoch, epoch + SECOND);
            let looks = {
                let aside = aside.clone();
                thread::spawn(move || {
                    let _ = aside.until(epoch, || epoch + SECOND);
                })
            };
            let puts = {
                let aside = aside.clone();
                thread::spawn(move || aside.put(epoch, epoch + 5 * SECOND))
            };
            aside.put(epoch, epoch + 3 * SECOND);
            looks.join().unwrap();
            puts.join().unwrap();
            assert_eq!(aside.until(epoch, || epoch + 2 * SECOND), Some(epoch + 5 * SECOND));
        });
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_longest_that_was_said_counts_and_then_no_clock_is_read() {
        let epoch = Instant::now();
        let aside = Aside::new();
        assert_eq!(aside.until(epoch, || panic!("nothing depends on the time")), None);
        assert!(aside.is_free());
        aside.put(epoch, epoch + 3 * SECOND);
        assert!(!aside.is_free());
        aside.put(epoch, epoch + SECOND);
        assert_eq!(aside.until(epoch, || epoch), Some(epoch + 3 * SECOND));
        assert_eq!(aside.until(epoch, || epoch + 3 * SECOND), None, "until then, and no longer");
        assert_eq!(aside.until(epoch, || panic!("it was forgotten")), None);
        assert!(aside.is_free());

        aside.put(epoch, epoch + 9 * SECOND);
        aside.release();
        assert_eq!(aside.until(epoch, || panic!("it was released")), None);
    }

    #[test]
    fn any_time_will_do() {
        let epoch = Instant::now();
        let aside = Aside::new();
        aside.put(epoch, epoch - SECOND);
        assert_eq!(aside.until(epoch, || epoch + SECOND), None);
        assert_eq!(nanos(Duration::MAX), nanos(Duration::from_secs(u64::MAX)));
        aside.put(epoch, epoch + Duration::from_nanos(nanos(Duration::MAX)));
        assert!(aside.until(epoch, || epoch + SECOND).is_some());
    }
}
