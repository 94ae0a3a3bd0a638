//! What passes and what does not, through the handle and the layer.

use std::{
    error::Error,
    sync::atomic::{AtomicU64, Ordering::SeqCst},
    thread,
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_rate_limit::{Exceeded, Limit, Quota, RateLimitLayer, RateLimiter, Window};
use tokio::time::{Instant, advance};
use tower::{Layer, ServiceExt, service_fn};

const MINUTE: Duration = Duration::from_secs(60);

async fn ok<T>(_: T) -> Result<(), BoxError> {
    Ok(())
}

fn limits_of(refusal: &Rejected) -> &str {
    let source = refusal.source().and_then(|source| source.downcast_ref::<Exceeded>());
    source.expect("a refusal names its limit").limit()
}

/// How many of 1,000 calls pass that eight threads make at once.
fn at_once(call: impl Fn(u64) -> bool + Sync) -> u64 {
    let passed = AtomicU64::new(0);
    thread::scope(|scope| {
        for n in 0..8 {
            let (call, passed) = (&call, &passed);
            scope.spawn(move || {
                for m in 0..125 {
                    passed.fetch_add(u64::from(call(8 * m + n)), SeqCst);
                }
            });
        }
    });
    passed.into_inner()
}

#[test]
fn a_thousand_calls_at_once_against_a_hundred_admit_a_hundred() {
    // So slow that no permit is earned meanwhile; 7 does not divide a day's nanoseconds.
    for quota in [Quota::per_day(100), Quota::per_day(7).burst(100)] {
        let one = RateLimiter::new(quota);
        assert_eq!(at_once(|_| one.try_acquire(&(), 1).is_ok()), 100);
        assert_eq!((one.stats().admitted, one.stats().refused), (100, 900));
        let keyed: RateLimiter<u64> = RateLimiter::keyed(quota);
        assert_eq!(at_once(|n| keyed.try_acquire(&(n % 5), 1).is_ok()), 500);
        assert_eq!((keyed.stats().admitted, keyed.stats().refused, keyed.stats().keys), (500, 500, 5));
    }
    let window = RateLimiter::new(Window::fixed(100, MINUTE * 60));
    assert_eq!(at_once(|_| window.try_acquire(&(), 1).is_ok()), 100);
}

/// Two layers name the same limits in different order, and others ask one of them by hand.
#[test]
fn several_limits_at_once_neither_dead_lock_nor_admit_too_much() {
    let all = RateLimiter::new(Quota::per_day(100));
    let each: RateLimiter<u64> = RateLimiter::keyed(Quota::per_day(30));
    let key = |n: &u64| Some(n % 5);
    let one = RateLimitLayer::all((all.rule(), each.rule().by(key))).layer(service_fn(ok));
    let other = RateLimitLayer::all((each.rule().by(key), all.rule())).layer(service_fn(ok));
    let passed = at_once(|n| match n % 3 {
        0 => tokio_test::block_on(one.clone().oneshot(n)).is_ok(),
        1 => tokio_test::block_on(other.clone().oneshot(n)).is_ok(),
        _ => each.try_acquire(&(n % 5), 1).is_ok() && all.try_acquire(&(), 1).is_ok(),
    });
    // By hand a permit of one limit can be spent for nothing, and no other is.
    assert!(passed <= 100, "{passed}");
    assert!(all.stats_of(&()).available == 0 || (0..5).all(|key| each.stats_of(&key).available == 0));
}

#[tokio::test(start_paused = true)]
async fn a_denial_by_one_limit_spends_nothing_of_the_others() {
    let all = RateLimiter::new(Limit::new("all", Quota::per_minute(10)));
    let each: RateLimiter<String> = RateLimiter::keyed(Limit::new("each", Quota::per_minute(2)));
    let key = |key: &&str| Some((*key).to_owned());
    let layer = RateLimitLayer::all((each.rule().by(key), all.rule()));
    let service = layer.layer(service_fn(ok));
    for n in 0..50 {
        assert_eq!(service.clone().oneshot("anna").await.is_ok(), n < 2);
    }
    assert_eq!(all.stats_of(&()).remaining, 8);
    for n in 0..8 {
        service.clone().oneshot(["ben", "cleo", "dora", "emil"][n / 2]).await.unwrap();
    }
    let error = service.clone().oneshot("finn").await.unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((limits_of(refusal), refusal.retry_after()), ("all", RetryAfter::After(MINUTE / 10)));
    // Both refuse: the longer wait counts.
    let error = service.clone().oneshot("anna").await.unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((limits_of(refusal), refusal.retry_after()), ("each", RetryAfter::After(MINUTE / 2)));
}

#[test]
fn one_limit_twice_in_a_layer_is_charged_twice_or_not_at_all() {
    let limiter = RateLimiter::new(Quota::per_day(3));
    let service = RateLimitLayer::all((limiter.rule(), limiter.rule())).layer(service_fn(ok));
    assert!(tokio_test::block_on(service.clone().oneshot(())).is_ok());
    assert!(tokio_test::block_on(service.oneshot(())).is_err());
    assert_eq!(limiter.stats_of(&()).remaining, 1);
}

#[test]
fn a_hundred_thousand_keys_stay_exact() {
    let limiter: RateLimiter<String> = RateLimiter::keyed(Quota::per_day(1));
    let passed = |limiter: &RateLimiter<String>| {
        (0..100_000).filter(|n| limiter.try_acquire(n.to_string().as_str(), 1).is_ok()).count()
    };
    assert_eq!(passed(&limiter), 100_000);
    assert_eq!(passed(&limiter), 0);
}

#[tokio::test(start_paused = true)]
async fn beyond_max_keys_a_further_key_waits_until_one_is_full_again() {
    let limiter: RateLimiter<u32> = RateLimiter::keyed(Limit::from(Quota::per_minute(1)).max_keys(100));
    for key in 0..100 {
        assert!(limiter.try_acquire(&key, 1).is_ok());
        advance(Duration::from_millis(10)).await;
    }
    let refusal = limiter.try_acquire(&100, 1).unwrap_err();
    assert_eq!(refusal.retry_after(), RetryAfter::After(MINUTE - Duration::from_secs(1)));
    assert_eq!(limiter.stats().keys, 100);
    assert!((0..100).all(|key| limiter.try_acquire(&key, 1).is_err()), "no live key is forgotten");
    advance(MINUTE - Duration::from_secs(1)).await;
    assert!(limiter.try_acquire(&100, 1).is_ok());
    assert!(limiter.try_acquire(&101, 1).is_err());
    assert_eq!(limiter.stats().keys, 100);
    advance(MINUTE).await;
    assert_eq!(limiter.stats().keys, 0, "after an idle time nothing is remembered");
}

#[tokio::test(start_paused = true)]
async fn a_limit_can_be_changed_while_it_runs() {
    let limiter: RateLimiter<&str> = RateLimiter::keyed(Quota::per_minute(2));
    assert!(limiter.try_acquire(&"anna", 2).is_ok());
    limiter.set_quota("anna", Quota::per_minute(600));
    assert_eq!(limiter.stats_of(&"anna").remaining, 598);
    assert_eq!(limiter.stats_of(&"ben").remaining, 2);
    assert!(limiter.try_acquire(&"anna", 500).is_ok());
    limiter.reset_quota("anna");
    // Of a smaller limit all is used, and no more.
    assert_eq!(limiter.stats_of(&"anna").available, 0);
    limiter.settle(&"anna", 1, 4);
    limiter.set_quota("anna", Window::fixed(5, MINUTE));
    assert_eq!(limiter.stats_of(&"anna").available, 0);
    advance(MINUTE).await;
    assert_eq!(limiter.stats_of(&"anna").available, 5);

    let one = RateLimiter::new(Quota::per_minute(1));
    assert!(one.try_acquire(&(), 1).is_ok());
    one.set_quota((), Quota::per_second(3));
    assert_eq!(one.stats_of(&()).remaining, 2);
    advance(MINUTE).await;
    assert_eq!(one.stats_of(&()).capacity, 3);
    assert!(one.try_acquire(&(), 3).is_ok());
    one.reset_quota(());
    assert_eq!((one.stats_of(&()).capacity, one.stats().keys), (1, 1));
    advance(2 * MINUTE).await;
    assert_eq!(one.stats().keys, 0);
}

#[tokio::test(start_paused = true)]
async fn a_call_without_a_key_is_not_limited() {
    let limiter: RateLimiter<u32> = RateLimiter::keyed(Quota::per_minute(1));
    let service = RateLimitLayer::new(limiter.rule().by(|n: &u32| (*n > 0).then_some(*n)));
    let service = service.layer(service_fn(ok));
    for _ in 0..5 {
        service.clone().oneshot(0).await.unwrap();
    }
    service.clone().oneshot(1).await.unwrap();
    service.clone().oneshot(1).await.unwrap_err();
    assert_eq!(limiter.stats().keys, 1);
}

#[tokio::test(start_paused = true)]
async fn a_cost_above_the_burst_is_refused_for_ever() {
    let limiter = RateLimiter::new(Quota::per_second(1_000_000).burst(10));
    for cost in [11, 427_009, u64::MAX] {
        let refusal = limiter.try_acquire(&(), cost).unwrap_err();
        assert_eq!(
            (refusal.kind(), refusal.retry_after()),
            (RejectionKind::ExceedsCapacity, RetryAfter::Never)
        );
    }
    assert_eq!(limiter.stats_of(&()).remaining, 10);
}

/// The word of the definition: `max(TAT, now) + T - L - now`, whatever time `now` is.
#[tokio::test(start_paused = true)]
async fn a_time_that_has_passed_is_taken_as_it_is() {
    let limiter = RateLimiter::new(Quota::per_second(1));
    let before = Instant::now();
    advance(MINUTE).await;
    assert!(limiter.try_acquire(&(), 1).is_ok());
    let refusal = limiter.try_acquire_at(&(), 1, before).unwrap_err();
    assert_eq!(refusal.retry_after(), RetryAfter::After(MINUTE + Duration::from_secs(1)));
    let then = limiter.stats_of_at(&(), before);
    assert_eq!((then.remaining, then.reset_after), (0, MINUTE + Duration::from_secs(1)));
}

#[tokio::test(start_paused = true)]
async fn a_time_that_is_to_come_reads_as_now() {
    let limiter: RateLimiter<u32> = RateLimiter::keyed(Limit::from(Quota::per_hour(1)).max_keys(3));
    let later = Instant::now() + 2 * 60 * MINUTE;
    for key in 0..3 {
        assert!(limiter.try_acquire(&key, 1).is_ok());
    }
    limiter.hold(&0, MINUTE);
    for key in 0..4 {
        assert!(
            limiter.try_acquire_at(&key, 1, later).is_err(),
            "{key}: no live key is forgotten, no hold, no wait"
        );
    }
}
