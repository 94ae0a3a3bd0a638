//! Calls that wait.

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
use bartizan_rate_limit::{Quota, RateLimitLayer, RateLimiter};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, service_fn};

const SECOND: Duration = Duration::from_secs(1);

type Call = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;
type Order = Arc<Mutex<Vec<(usize, Duration)>>>;

/// A call of a queueing layer whose turns are written down.
fn calls(limiter: &RateLimiter, max_queue: usize, max_wait: Duration) -> (impl FnMut(usize) -> Call, Order) {
    let order = Order::default();
    let (log, start) = (order.clone(), Instant::now());
    let inner = service_fn(move |n: usize| {
        log.lock().unwrap().push((n, start.elapsed()));
        async { Ok::<_, BoxError>(()) }
    });
    let mut service = limiter.layer().queue(max_queue, max_wait).layer(inner);
    (move |n| Box::pin(service.call(n)) as _, order)
}

/// Counts how often a future is polled.
struct Polled<F>(F, Arc<AtomicUsize>);

impl<F: Future + Unpin> Future for Polled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.1.fetch_add(1, SeqCst);
        Pin::new(&mut self.0).poll(cx)
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_waiters_are_served_in_order_with_few_polls() {
    const WAITERS: usize = 10_000;
    let limiter = RateLimiter::new(Quota::per_second(500).burst(1));
    let (mut call, order) = calls(&limiter, WAITERS, Duration::MAX);
    let polls = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (0..WAITERS).map(|n| tokio::spawn(Polled(call(n), polls.clone()))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let order = order.lock().unwrap();
    assert!(order.iter().map(|(n, _)| *n).eq(0..WAITERS), "first come, first served");
    assert_eq!(order[WAITERS - 1].1, Duration::from_millis(2) * 9_999, "at the full rate");
    let polls = polls.load(SeqCst);
    println!("{polls} polls for {WAITERS} waiters");
    assert!(polls <= 3 * WAITERS, "{polls} polls");
    assert_eq!((limiter.stats().queued, limiter.stats().admitted), (0, 10_000));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_nobody_polls_holds_nobody_up() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let (mut call, order) = calls(&limiter, 99, Duration::MAX);
    call(0).await.unwrap();
    let mut parked = call(1);
    assert!(tokio_test::task::spawn(&mut parked).poll().is_pending());
    let never_polled = call(2);
    for n in 3..6 {
        call(n).await.unwrap();
    }
    // Those two were granted their permits when the first one behind them looked, and not before: so much it was late.
    let (last, at) = *order.lock().unwrap().last().unwrap();
    assert!(last == 5 && (5 * SECOND..=8 * SECOND).contains(&at), "{at:?}");
    drop(never_polled);
    parked.await.unwrap();
    assert_eq!(limiter.stats().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_away_gives_his_place_back() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let (mut call, order) = calls(&limiter, 99, Duration::MAX);
    call(0).await.unwrap();
    let (first, second, last) = (call(1), call(2), tokio::spawn(call(3)));
    sleep(SECOND / 2).await;
    drop(first);
    drop(second);
    last.await.unwrap().unwrap();
    assert_eq!(*order.lock().unwrap(), [(0, Duration::ZERO), (3, SECOND)]);

    // Granted, and gone before the inner service was called: the permit is not lost.
    let granted = call(4);
    let behind = call(5);
    advance(SECOND).await;
    assert_eq!(limiter.stats_of(&()).queued, 1);
    drop(granted);
    behind.await.unwrap();
    assert_eq!(order.lock().unwrap().last(), Some(&(5, 2 * SECOND)));
}

#[tokio::test(start_paused = true)]
async fn whoever_would_wait_too_long_is_refused_at_once() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let (mut call, _) = calls(&limiter, 2, 2 * SECOND);
    call(0).await.unwrap();
    let refused = async |call: Call| {
        let begin = Instant::now();
        let error = call.await.unwrap_err();
        assert_eq!(begin.elapsed(), Duration::ZERO);
        let refusal = Rejected::find(&*error).unwrap();
        (refusal.kind(), refusal.retry_after())
    };
    let (_first, _second) = (call(1), call(2));
    let third = RetryAfter::After(3 * SECOND);
    assert_eq!(refused(call(3)).await, (RejectionKind::QueueFull, third));
    let (mut patient, _) = calls(&limiter, 9, 2 * SECOND);
    assert_eq!(refused(patient(4)).await, (RejectionKind::RateLimited, third));
    // Whoever does not wait is not let in before those who do.
    advance(SECOND).await;
    assert!(limiter.try_acquire(&(), 1).is_err());
    assert_eq!((limiter.stats().refused, limiter.stats().timed_out), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn debt_refuses_those_whom_it_makes_wait_too_long() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let (mut call, order) = calls(&limiter, 9, 2 * SECOND);
    call(0).await.unwrap();
    let (impatient, begin) = (tokio::spawn(call(1)), Instant::now());
    let (mut patient, later) = calls(&limiter, 9, 9 * SECOND);
    let patient = tokio::spawn(patient(2));
    sleep(SECOND / 2).await;
    limiter.settle(&(), 1, 5);
    let error = impatient.await.unwrap().unwrap_err();
    assert_eq!(begin.elapsed(), SECOND / 2, "at once");
    assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::QueueTimeout));
    patient.await.unwrap().unwrap();
    assert_eq!(later.lock().unwrap()[0], (2, 5 * SECOND), "and the debt is paid first");
    assert_eq!((order.lock().unwrap().len(), limiter.stats().timed_out), (1, 1));
}

/// Timers ring once a millisecond; the rate is kept nevertheless.
#[tokio::test(start_paused = true)]
async fn a_rate_faster_than_the_timers_is_kept() {
    let limiter = RateLimiter::new(Quota::per_second(7_000).burst(1));
    let (mut call, order) = calls(&limiter, usize::MAX, Duration::MAX);
    let tasks: Vec<_> = (0..=7_000).map(|n| tokio::spawn(call(n))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let took = order.lock().unwrap()[7_000].1;
    assert!((SECOND..=SECOND + Duration::from_millis(2)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn keys_wait_for_themselves() {
    let limiter: RateLimiter<u32> = RateLimiter::keyed(Quota::one_every(SECOND));
    let layer = RateLimitLayer::new(limiter.rule().by(|key: &u32| Some(*key))).queue(9, Duration::MAX);
    let mut service = layer.layer(service_fn(|_: u32| async { Ok::<_, BoxError>(Instant::now()) }));
    let begin = Instant::now();
    let calls: Vec<_> = [1, 1, 2, 2, 2].map(|key| tokio::spawn(service.call(key))).into();
    let mut ends = Vec::new();
    for call in calls {
        ends.push((call.await.unwrap().unwrap() - begin).as_secs());
    }
    assert_eq!(ends, [0, 1, 0, 1, 2]);
    advance(9 * SECOND).await;
    assert_eq!((limiter.stats().keys, limiter.stats().queued), (0, 0));
}
