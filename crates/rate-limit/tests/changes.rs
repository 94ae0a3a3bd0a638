//! What is changed, given back or found out while calls are under way.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering::SeqCst},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_rate_limit::{Exceeded, Limit, Quota, RateLimitLayer, RateLimiter, Window};
use tokio::time::{advance, sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

async fn ok<T>(_: T) -> Result<(), BoxError> {
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_window_that_is_over_gets_nothing_back() {
    let inner = |slow: bool| async move {
        if !slow {
            return Ok(());
        }
        sleep(10 * SECOND).await;
        Err(BoxError::from("failed"))
    };
    for (window, left) in [(Window::fixed(10, HOUR), 10), (Window::sliding(10, HOUR), 10)] {
        let limiter = RateLimiter::new(window);
        let service = RateLimitLayer::new(limiter.rule().settle(|(): &()| || None)).layer(service_fn(inner));
        advance(HOUR - SECOND).await;
        let failing: Vec<_> = (0..10).map(|_| service.clone().oneshot(true)).map(tokio::spawn).collect();
        sleep(2 * SECOND).await;
        let mut passed = 0;
        for _ in 0..20 {
            passed += u64::from(service.clone().oneshot(false).await.is_ok());
        }
        for task in failing {
            task.await.unwrap().unwrap_err();
        }
        for _ in 0..20 {
            passed += u64::from(service.clone().oneshot(false).await.is_ok());
        }
        assert_eq!(passed, left, "{window:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_quota_is_for_those_who_wait_already() {
    let limiter: RateLimiter<&str> = RateLimiter::keyed(Quota::per_second(100));
    let rule = limiter.rule().by(|key: &&'static str| Some(*key));
    let mut service = RateLimitLayer::new(rule).queue(9, Duration::MAX).layer(service_fn(ok));
    limiter.set_quota("anna", Quota::per_hour(1));
    service.call("anna").await.unwrap();
    let waits = tokio::spawn(service.call("anna"));
    sleep(SECOND).await;
    limiter.reset_quota("anna");
    timeout(SECOND, waits).await.expect("it learns of it").unwrap().unwrap();

    // One that can never pass under it is told so, and what the limit is now.
    limiter.set_quota("ben", Quota::per_hour(5));
    let rule = limiter.rule().by(|key: &&'static str| Some(*key)).cost(|_: &&str| 5);
    let mut service = RateLimitLayer::new(rule).queue(9, Duration::MAX).layer(service_fn(ok));
    service.call("ben").await.unwrap();
    let waits = tokio::spawn(service.call("ben"));
    sleep(SECOND).await;
    limiter.set_quota("ben", Quota::per_hour(4));
    let error = waits.await.unwrap().unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((refusal.kind(), refusal.retry_after()), (RejectionKind::ExceedsCapacity, RetryAfter::Never));
    let detail = std::error::Error::source(refusal).unwrap().downcast_ref::<Exceeded>().unwrap();
    assert_eq!((detail.limit(), detail.capacity()), ("default", 4));
}

#[tokio::test(start_paused = true)]
async fn the_same_limit_again_changes_nothing() {
    for limit in [Limit::from(Quota::per_second(1)), Window::sliding(20, 20 * SECOND).into()] {
        let limiter: RateLimiter<u8> = RateLimiter::keyed(limit.clone());
        let one = RateLimiter::new(limit.clone());
        let mut passed = [0, 0];
        for _ in 0..200 {
            limiter.set_quota(1, limit.clone());
            one.set_quota((), limit.clone());
            advance(SECOND / 2).await;
            passed[0] += u64::from(limiter.try_acquire(&1, 1).is_ok());
            passed[1] += u64::from(one.try_acquire(&(), 1).is_ok());
        }
        assert!(passed.iter().all(|passed| (95..=120).contains(passed)), "{passed:?} of 100");
    }
    // Nearly the same quota, again and again: time is not lost either.
    let limiter = RateLimiter::new(Quota::per_second(1));
    let mut passed = 0;
    for n in 0..200 {
        limiter.set_quota((), Quota::per_minute(60 + n % 2).burst(1));
        advance(SECOND / 2).await;
        passed += u64::from(limiter.try_acquire(&(), 1).is_ok());
    }
    assert!((95..=105).contains(&passed), "{passed} of 100");
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_was_as_good_as_none_leaves_no_debt() {
    let limiter = RateLimiter::new(Quota::per_second(u64::MAX));
    limiter.set_quota((), Quota::per_minute(60));
    assert_eq!(limiter.stats_of(&()).remaining, 60);
}

#[tokio::test]
async fn a_window_of_its_own_keeps_to_the_clock() {
    let limiter: RateLimiter<&str> = RateLimiter::keyed(Window::fixed(1, 2 * SECOND).on_the_clock());
    tokio::time::sleep(Duration::from_millis(300)).await;
    limiter.set_quota("own", Window::fixed(2, 2 * SECOND).on_the_clock());
    limiter.try_acquire(&"own", 1).unwrap();
    limiter.try_acquire(&"other", 1).unwrap();
    let [own, other] = ["own", "other"].map(|key| limiter.stats_of(&key).reset_after);
    assert!(own.abs_diff(other) < Duration::from_millis(100), "{own:?} and {other:?}");
}

#[tokio::test(start_paused = true)]
async fn room_for_a_key_that_was_given_back_is_room() {
    let limiter: RateLimiter<u8> = RateLimiter::keyed(Limit::from(Quota::per_hour(1)).max_keys(1));
    limiter.try_acquire(&1, 1).unwrap();
    let refusal = limiter.try_acquire(&2, 1).unwrap_err();
    assert_eq!(refusal.retry_after(), RetryAfter::After(HOUR));
    let stats = limiter.stats_of(&2);
    assert_eq!((stats.remaining, stats.reset_after), (0, HOUR), "nothing passes for which there is no room");
    limiter.settle(&1, 1, 0);
    limiter.try_acquire(&2, 1).unwrap();
}

/// A usage that an upstream made up.
#[tokio::test(start_paused = true)]
async fn a_debt_beyond_all_time_panics_nobody() {
    let limiter = RateLimiter::new(Quota::per_second(17));
    let mut waiting = limiter.layer().backpressure().layer(service_fn(ok::<()>));
    let mut queued = limiter.layer().queue(9, Duration::MAX).layer(service_fn(ok::<()>));
    limiter.settle(&(), 0, u64::MAX);
    let mut ready = tokio_test::task::spawn(waiting.ready());
    assert!(ready.poll().is_pending());
    let mut call = tokio_test::task::spawn(Box::pin(queued.call(())));
    assert!(call.poll().is_pending());
    limiter.settle(&(), u64::MAX, 0);
    assert!(ready.is_woken() || call.is_woken(), "whoever is first learns of it");
}

#[tokio::test(start_paused = true)]
async fn a_hold_can_be_ended() {
    let limiter: RateLimiter<u8> = RateLimiter::keyed(Quota::per_second(1));
    let mut service = RateLimitLayer::new(limiter.rule().by(|n: &u8| Some(*n)))
        .queue(9, Duration::MAX)
        .layer(service_fn(ok));
    limiter.hold(&1, Duration::MAX);
    limiter.hold(&2, Duration::ZERO);
    let waits = tokio::spawn(service.call(1));
    sleep(SECOND).await;
    limiter.release(&1);
    timeout(SECOND, waits).await.expect("it is told").unwrap().unwrap();
    assert!(limiter.try_acquire(&2, 1).is_ok());
}

#[derive(PartialEq, Eq, Hash, Debug)]
struct Brittle(u8);

impl Clone for Brittle {
    fn clone(&self) -> Self {
        assert!(self.0 > 0, "the key's Clone panics");
        Self(self.0)
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_of_a_users_panics_nothing_is_lost() {
    let limiter: RateLimiter<Brittle> = RateLimiter::keyed(Limit::from(Quota::per_hour(1)).max_keys(1));
    assert!(catch_unwind(AssertUnwindSafe(|| limiter.try_acquire(&Brittle(0), 1))).is_err());
    limiter.try_acquire(&Brittle(1), 1).unwrap();

    // The key function, whenever it is asked.
    for nth in 1..8 {
        let (each, all) =
            (RateLimiter::<String>::keyed(Quota::per_hour(5)), RateLimiter::new(Quota::per_hour(5)));
        let asked = AtomicU32::new(0);
        let rule = each.rule().by_ref(move |key: &String| {
            assert!(asked.fetch_add(1, SeqCst) + 1 != nth, "the key function panics");
            Some(key)
        });
        let rule = rule.settle(|(): &()| || None);
        let service = RateLimitLayer::all((rule, all.rule())).layer(service_fn(ok));
        let panicked = tokio::spawn(service.oneshot("anna".to_owned())).await.is_err();
        let left = u64::from(!panicked);
        assert_eq!(
            (each.stats_of("anna").remaining, all.stats_of(&()).remaining),
            (5 - left, 5 - left),
            "{nth}"
        );
    }
}
