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

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{
        convert::Infallible,
        future::{Ready, ready},
        pin::pin,
        task::{Context, Poll, Waker},
        time::Duration,
    };

    use bartizan_core::BoxError;
    use tower::{Layer, Service, service_fn, util::ServiceFn};

    use super::*;
    use crate::{Quota, RateLimitLayer, RateLimiter};

    type Inner = ServiceFn<fn(u64) -> Ready<Result<u64, Infallible>>>;

    fn reads<L>(layer: &L) -> u64
    where
        L: Layer<Inner>,
        L::Service: Service<u64, Response = u64, Error = BoxError>,
    {
        let mut service = layer.layer(service_fn((|n| ready(Ok(n))) as fn(u64) -> _));
        let mut cx = Context::from_waker(Waker::noop());
        let call = || {
            assert!(service.poll_ready(&mut cx).is_ready());
            let Poll::Ready(_) = pin!(service.call(7)).poll(&mut cx) else { panic!("nobody waits here") };
        };
        readings::during(call).1
    }

    /// It is most of what a limiter costs.
    #[test]
    fn a_call_reads_the_clock_once() {
        let quota = Quota::per_hour(1);
        let (one, keyed): (_, RateLimiter<u64>) = (RateLimiter::new(quota), RateLimiter::keyed(quota));
        let rule = || keyed.rule().by(|n: &u64| Some(*n));
        let other = RateLimiter::new(quota);
        let queued = RateLimiter::new(quota).layer().queue(0, Duration::ZERO);
        for what in ["admitted", "refused"] {
            assert_eq!(reads(&one.layer()), 1, "{what}");
            assert_eq!(reads(&RateLimitLayer::new(rule())), 1, "{what}");
            assert_eq!(reads(&RateLimitLayer::all((rule(), other.rule()))), 1, "{what}");
            assert_eq!(reads(&queued), 1, "{what}");
        }
        assert_eq!(reads(&RateLimiter::new(quota).layer().backpressure()), 1);
    }
}
