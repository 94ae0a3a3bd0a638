//! What the rate limit layer allocates: exact counts.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hash::Hash,
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
use bartizan_tests::alloc::{Counted, Counting, allocations, counted};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Call {
    tenant: String,
    user: u64,
}

fn a_call() -> Call {
    Call { tenant: "a tenant whose name is longer than any small string".to_owned(), user: 7 }
}

fn inner(call: Call) -> Ready<Result<Call, Infallible>> {
    ready(Ok(call))
}

/// Calls once so that the key is known, and then again.
fn second_call<L>(layer: &L) -> (Result<Call, BoxError>, Counted)
where
    L: Layer<tower::util::ServiceFn<fn(Call) -> Ready<Result<Call, Infallible>>>>,
    L::Service: Service<Call, Response = Call, Error = BoxError>,
{
    let mut service = layer.layer(service_fn(inner as fn(_) -> _));
    let mut cx = Context::from_waker(Waker::noop());
    let mut call = |call| {
        assert!(service.poll_ready(&mut cx).is_ready());
        match pin!(service.call(call)).poll(&mut cx) {
            Poll::Ready(result) => result,
            Poll::Pending => panic!("nobody waits here"),
        }
    };
    let Ok(again) = call(a_call()) else { panic!("the first call passes") };
    allocations(|| call(again))
}

#[test]
fn an_admitted_call_allocates_nothing() {
    let quota = Quota::per_minute(1_000);
    let all = RateLimiter::new(quota);
    let tenants: RateLimiter<String> = RateLimiter::keyed(quota);
    let users: RateLimiter<u64> = RateLimiter::keyed(quota);
    let by_tenant = || tenants.rule().by_ref(|call: &Call| Some(call.tenant.as_str()));
    let by_user = || users.rule().by(|call: &Call| Some(call.user));

    let counts = [
        ("unkeyed", second_call(&all.layer())),
        ("by_ref", second_call(&RateLimitLayer::new(by_tenant()))),
        ("by a number", second_call(&RateLimitLayer::new(by_user()))),
        ("three at once", second_call(&RateLimitLayer::all((by_tenant(), by_user(), all.rule())))),
        ("two from a file", second_call(&RateLimitLayer::all_of(vec![by_user(), by_user()]))),
        ("queueing", second_call(&all.layer().queue(9, Duration::MAX))),
        ("queueing by_ref", second_call(&RateLimitLayer::new(by_tenant()).queue(9, Duration::MAX))),
        (
            "queueing for two",
            second_call(&RateLimitLayer::all((by_tenant(), all.rule())).queue(9, Duration::MAX)),
        ),
        ("backpressure", second_call(&all.layer().backpressure())),
        (
            "settled",
            second_call(&RateLimitLayer::new(all.rule().settle(|call: &Call| {
                let cost = call.user;
                move || Some(cost)
            }))),
        ),
        ("queueing by a number", second_call(&RateLimitLayer::new(by_user()).queue(9, Duration::MAX))),
    ];
    for (what, (result, counted)) in counts {
        assert!(result.is_ok());
        assert_eq!(counted.allocated, 0, "{what}");
    }
}

/// One for the error, one for the source in it that names the limit.
#[test]
fn a_refusal_allocates_once() {
    let quota = Quota::per_minute(1);
    let tenants: RateLimiter<String> = RateLimiter::keyed(quota);
    let by_tenant = tenants.rule().by_ref(|call: &Call| Some(call.tenant.as_str()));
    let all = RateLimiter::new(quota);
    for (result, counted) in [
        second_call(&all.layer()),
        second_call(&RateLimitLayer::new(by_tenant.clone())),
        second_call(&RateLimiter::new(quota).layer().queue(0, Duration::ZERO)),
        second_call(&RateLimitLayer::all((
            RateLimiter::<String>::keyed(quota).rule().by_ref(|call: &Call| Some(call.tenant.as_str())),
            RateLimiter::new(quota).rule(),
        ))),
    ] {
        let error = result.err().expect("1 a minute");
        assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::RateLimited));
        // The call itself is freed meanwhile; its string was allocated before.
        assert_eq!(counted.allocated, 1);
    }
}

#[test]
fn a_million_keys_take_at_most_64_bytes_each_above_the_key() {
    const KEYS: u64 = 1_000_000;
    let limiter: RateLimiter<u64> = RateLimiter::keyed(Limit::from(Quota::per_hour(1)));
    let before = counted().live;
    for key in 0..KEYS {
        assert!(limiter.try_acquire(&key, 1).is_ok());
    }
    let each = (counted().live - before) / i64::try_from(KEYS).unwrap() - 8;
    println!("{each} bytes a key above the key");
    assert!(each <= 64, "{each} bytes a key above the key");
    assert_eq!(limiter.stats().keys, 1_000_000);
    for key in (0..KEYS).step_by(97) {
        assert!(limiter.try_acquire(&key, 1).is_err(), "{key} is forgotten");
    }
}

/// A table that has just grown is as empty as it ever is.
#[test]
fn nor_do_fewer_keys_right_after_their_table_grew() {
    fn worst<K: Hash + Eq + Clone>(key: impl Fn(usize) -> K, of_a_key: usize) -> f64 {
        let keys: Vec<_> = (0..100_000).map(key).collect();
        let limiter: RateLimiter<K> = RateLimiter::keyed(Quota::per_hour(1));
        let before = counted().live;
        let above = |known: usize| (counted().live - before) as f64 / known as f64 - of_a_key as f64;
        let mut worst = 0.0_f64;
        for (known, key) in (1..).zip(&keys) {
            assert!(limiter.try_acquire(key, 1).is_ok());
            // Fewer share what every one of the table's parts takes.
            if known >= 10_000 {
                worst = worst.max(above(known));
            }
        }
        worst
    }

    let numbers = worst(|n| n as u64, 8);
    let strings = worst(|n| format!("{n:016}"), size_of::<String>() + 16);
    println!("at worst {numbers:.0} bytes a key above a number, {strings:.0} above a string");
    assert!(numbers <= 64.0 && strings <= 64.0, "{numbers:.0} and {strings:.0} bytes");
}
