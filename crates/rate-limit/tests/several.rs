//! Calls that wait for several limits at once, many of them, in many orders.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
use proptest::prelude::*;
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);

struct Polled<F>(F, Arc<AtomicUsize>);

impl<F: Future + Unpin> Future for Polled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, SeqCst);
        Pin::new(&mut self.0).poll(cx)
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn calls_of_one_key_are_served_in_order() {
    let all = RateLimiter::new(Quota::per_second(10).burst(1));
    let each: RateLimiter<u8> = RateLimiter::keyed(Quota::per_second(7).burst(3));
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = order.clone();
    let inner = service_fn(move |n: usize| {
        log.lock().unwrap().push(n);
        async { Ok::<_, BoxError>(()) }
    });
    let rules = (all.rule(), each.rule().by(|_: &usize| Some(0)));
    let mut service = RateLimitLayer::all(rules).queue(99, Duration::MAX).layer(inner);
    let (polls, begin) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let tasks: Vec<_> =
        (0..30).map(|n| tokio::spawn(Polled(Box::pin(service.call(n)), polls.clone()))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert!(order.lock().unwrap().iter().copied().eq(0..30));
    // 3 at once of the key's, but 1 of all's; then at the key's rate.
    assert!(begin.elapsed() <= SECOND * 27 / 7 + Duration::from_millis(30), "{:?}", begin.elapsed());
    assert!(polls.load(SeqCst) <= 30 * 8, "{polls:?} polls");
}

/// One is not polled when its turn comes: those behind it do not wait for that.
#[tokio::test(start_paused = true)]
async fn a_head_that_nobody_polls_holds_nobody_up() {
    let all = RateLimiter::new(Quota::one_every(SECOND));
    let each: RateLimiter<u8> = RateLimiter::keyed(Quota::one_every(SECOND));
    let rules = (all.rule(), each.rule().by(|n: &u8| Some(*n)));
    let inner = service_fn(|_: u8| async { Ok::<_, BoxError>(()) });
    let mut service = RateLimitLayer::all(rules).queue(99, Duration::MAX).layer(inner);
    service.call(0).await.unwrap();
    let mut parked = Box::pin(service.call(1));
    assert!(tokio_test::task::spawn(&mut parked).poll().is_pending());
    let never_polled = service.call(2);
    for n in 3..6 {
        timeout(10 * SECOND, service.call(n)).await.expect("nobody hangs").unwrap();
    }
    drop(never_polled);
    timeout(10 * SECOND, parked).await.expect("it has its turn when it is polled").unwrap();
    assert_eq!((all.stats().queued, each.stats().queued), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_limit_twice_costs_the_sum() {
    let limiter = RateLimiter::new(Quota::per_hour(2).burst(1));
    let layer = RateLimitLayer::all((limiter.rule(), limiter.rule()));
    let inner = || service_fn(|()| async { Ok::<_, BoxError>(()) });
    for error in [
        layer.clone().layer(inner()).oneshot(()).await.unwrap_err(),
        layer.queue(9, Duration::MAX).layer(inner()).oneshot(()).await.unwrap_err(),
    ] {
        let refusal = Rejected::find(&*error).unwrap();
        assert_eq!(
            (refusal.kind(), refusal.retry_after()),
            (RejectionKind::ExceedsCapacity, RetryAfter::Never)
        );
    }
    assert_eq!(limiter.stats_of(&()).remaining, 1);
}

#[derive(Clone, Debug)]
enum Op {
    Call { key: u8, cost: u64 },
    Abort(usize),
    Settle(u64, u64),
    SettleKey(u8, u64, u64),
    Hold(u8, u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (0..3_u8, 1..3_u64).prop_map(|(key, cost)| Op::Call { key, cost }),
        2 => (0..40_usize).prop_map(Op::Abort),
        1 => (0..3_u64, 0..5_u64).prop_map(|(reserved, actual)| Op::Settle(reserved, actual)),
        1 => (0..3_u8, 0..2_u64, 0..3_u64).prop_map(|(key, reserved, actual)| Op::SettleKey(key, reserved, actual)),
        1 => (0..3_u8, 0..500_u64).prop_map(|(key, ms)| Op::Hold(key, ms)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    /// Whatever comes, all end, in time that debts and holds allow, with few polls, and nothing is lost or won.
    #[test]
    fn everybody_ends_and_nothing_is_lost(
        rates in (1..20_u64, 1..20_u64),
        ops in prop::collection::vec((op(), 0..60_000_u64), 1..60),
    ) {
        let polls = Arc::new(AtomicUsize::new(0));
        let admitted = Arc::new(Mutex::new(Vec::new()));
        runtime().block_on(async {
            let all = RateLimiter::new(Quota::per_second(rates.0).burst(3));
            let each: RateLimiter<u8> = RateLimiter::keyed(Limit::new("each", Quota::per_second(rates.1).burst(3)));
            let rules = (
                all.rule().cost(|(_, cost): &(u8, u64)| *cost),
                each.rule().by(|(key, _): &(u8, u64)| Some(*key)),
            );
            let log = admitted.clone();
            let inner = service_fn(move |call: (u8, u64)| {
                log.lock().unwrap().push((Instant::now(), call));
                async { Ok::<_, BoxError>(()) }
            });
            let mut service = RateLimitLayer::all(rules).queue(99, Duration::MAX).layer(inner);
            let (mut tasks, mut given) = (Vec::new(), 0);
            for (op, micros) in ops {
                match op {
                    Op::Call { key, cost } => {
                        let call = Polled(Box::pin(service.call((key, cost))), polls.clone());
                        tasks.push(tokio::spawn(call));
                    }
                    Op::Abort(n) => drop(tasks.get(n).map(tokio::task::JoinHandle::abort)),
                    Op::Settle(reserved, actual) => {
                        given += reserved.saturating_sub(actual);
                        all.settle(&(), reserved, actual);
                    }
                    Op::SettleKey(key, reserved, actual) => each.settle(&key, reserved, actual),
                    Op::Hold(key, ms) => each.hold(&key, Duration::from_millis(ms)),
                }
                sleep(Duration::from_micros(micros)).await;
            }
            let calls = tasks.len();
            for task in tasks {
                let ended = timeout(HOUR, task).await.expect("nobody hangs");
                assert!(ended.map_or_else(|gone| gone.is_cancelled(), |result| result.is_ok()));
            }
            assert!(polls.load(SeqCst) <= 20 * (calls + 1), "{polls:?} polls for {calls} calls");
            assert_eq!((all.stats().queued, each.stats().queued), (0, 0));
            // In any span of time no more than the burst, what is earned, and what was given by hand.
            let admitted = std::mem::take(&mut *admitted.lock().unwrap());
            for (n, (begin, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (end, (_, cost)) in &admitted[n..] {
                    sum += cost;
                    // A waiter is served as of when it was due, at most 1 ms before.
                    let earned = (*end - *begin + Duration::from_millis(1)).as_secs_f64() * rates.0 as f64;
                    assert!(sum as f64 <= 3.0 + earned + given as f64 + 1e-6, "{sum} in {:?}", *end - *begin);
                }
            }
            sleep(HOUR).await;
            assert_eq!(all.stats_of(&()).remaining, 3);
            assert!((0..3).all(|key| each.stats_of(&key).remaining == 3));
            assert_eq!(each.stats().keys, 0);
        });
    }
}
