//! The one place where a clock is read.

use std::time::Duration;

use tokio::time::Instant;

#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    readings::count();
    Instant::now()
}

/// So much later, or as late as can be.
pub(crate) fn after(now: Instant, time: Duration) -> Instant {
    /// Thirty years: timers reach no further.
    const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
    now + time.min(FAR)
}

/// How often this thread has read the clock.
#[cfg(test)]
pub(crate) mod readings {
    use std::cell::Cell;

    thread_local!(static READINGS: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        READINGS.set(READINGS.get() + 1);
    }

    #[cfg(not(loom))]
    pub(crate) fn during<T>(run: impl FnOnce() -> T) -> (T, u64) {
        let before = READINGS.get();
        (run(), READINGS.get() - before)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        convert::Infallible,
        future::ready,
        pin::pin,
        task::{Context, Waker},
    };

    use tower::{Service, service_fn};

    use super::*;
    use crate::{Batch, Settings};

    /// A batch has its first item's time, that of the item that fills it, and two looks of the worker's.
    #[test]
    fn the_clock_is_read_for_batches_and_not_for_items() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let _entered = runtime.enter();
        let cx = &mut Context::from_waker(Waker::noop());
        let below = service_fn(|items: Vec<u32>| {
            ready(Ok::<_, Infallible>(items.into_iter().map(Ok::<_, Infallible>).collect::<Vec<_>>()))
        });
        let hour = Duration::from_secs(3600);
        for (linger, joins, looks) in [(hour, 2, 2), (Duration::ZERO, 2, 1)] {
            let settings = Settings::max_size(100).linger(linger);
            let (mut service, worker) = Batch::new(settings).layer().pair(below);
            let mut worker = pin!(worker);
            assert!(worker.as_mut().poll(cx).is_pending());
            let mut join = || {
                assert!(service.poll_ready(cx).is_ready());
                readings::during(|| service.call(1))
            };
            let (first, read) = join();
            assert_eq!(read, 1);
            let mut look = || {
                let cx = &mut Context::from_waker(Waker::noop());
                readings::during(|| assert!(worker.as_mut().poll(cx).is_pending())).1
            };
            let armed = if linger.is_zero() { 0 } else { look() };
            let (calls, read): (Vec<_>, Vec<_>) = (1..100).map(|_| join()).unzip();
            assert_eq!(read.iter().sum::<u64>() + 1, joins);
            assert_eq!(armed + look(), looks);
            let cx = &mut Context::from_waker(Waker::noop());
            for call in calls.into_iter().chain([first]) {
                assert!(pin!(call).poll(cx).is_ready());
            }
        }
    }
}
