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
use tower::{Layer, Service, ServiceExt, service_fn};

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
async fn thousands_behind_a_head_that_nobody_polls_are_served_with_few_polls() {
    const WAITERS: usize = 2_000;
    let limiter = RateLimiter::new(Quota::per_second(500).burst(1));
    let (mut call, order) = calls(&limiter, WAITERS + 1, Duration::MAX);
    call(0).await.unwrap();
    let mut parked = call(1);
    assert!(tokio_test::task::spawn(&mut parked).poll().is_pending());
    let polls = Arc::new(AtomicUsize::new(0));
    let tasks: Vec<_> = (2..WAITERS + 2).map(|n| tokio::spawn(Polled(call(n), polls.clone()))).collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let order = order.lock().unwrap();
    assert!(order.iter().map(|(n, _)| *n).eq([0].into_iter().chain(2..WAITERS + 2)));
    let (late, polls) = (order[WAITERS].1, polls.load(SeqCst));
    println!("{polls} polls for {WAITERS} waiters, the last one after {late:?}");
    assert!(late <= Duration::from_millis(2) * 2_003, "{late:?}");
    assert!(polls <= 4 * WAITERS, "{polls} polls");
    drop(parked);
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

/// A call of two limits: who it is for, and when it was let in.
type Turns = Arc<Mutex<Vec<(&'static str, Duration)>>>;
type Named = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// Two limits: one for all, one for each name. A call named `"-"` has no key.
fn of_two(all: Quota, each: Quota, max_wait: Duration) -> (Limits, impl FnMut(&'static str) -> Named, Turns) {
    let (all, each) = (RateLimiter::new(all), RateLimiter::<String>::keyed(each));
    let turns = Turns::default();
    let (log, start) = (turns.clone(), Instant::now());
    let inner = service_fn(move |name: &'static str| {
        log.lock().unwrap().push((name, start.elapsed()));
        async { Ok::<_, BoxError>(()) }
    });
    let rules = (all.rule(), each.rule().by_ref(|name: &&'static str| (*name != "-").then_some(*name)));
    let mut service = RateLimitLayer::all(rules).queue(9, max_wait).layer(inner);
    (Limits { all, each }, move |name| Box::pin(service.call(name)) as _, turns)
}

struct Limits {
    all: RateLimiter,
    each: RateLimiter<String>,
}

#[tokio::test(start_paused = true)]
async fn a_call_of_several_limits_waits_for_the_slowest_and_holds_nothing_meanwhile() {
    let (limits, mut call, turns) = of_two(Quota::per_second(10), Quota::one_every(SECOND), Duration::MAX);
    call("anna").await.unwrap();
    let (second, third) = (tokio::spawn(call("anna")), tokio::spawn(call("anna")));
    sleep(SECOND / 10).await;
    // They wait for their key, and take nothing from everybody's.
    assert_eq!((limits.all.stats_of(&()).remaining, limits.each.stats_of("anna").queued), (10, 2));
    for _ in 0..9 {
        call("-").await.unwrap();
    }
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    let annas: Vec<_> =
        turns.lock().unwrap().iter().filter(|turn| turn.0 == "anna").map(|turn| turn.1).collect();
    assert_eq!(annas, [Duration::ZERO, SECOND, 2 * SECOND]);
    assert_eq!((limits.all.stats().admitted, limits.each.stats().admitted), (12, 3));
}

#[tokio::test(start_paused = true)]
async fn whoever_finds_another_limit_spent_when_its_turn_comes_waits_there() {
    let (limits, mut call, turns) =
        of_two(Quota::one_every(3 * SECOND), Quota::one_every(SECOND), Duration::MAX);
    limits.each.settle("anna", 0, 1);
    let waiting = tokio::spawn(call("anna"));
    sleep(SECOND / 2).await;
    // It waits for its key; meanwhile another one takes what is there for all.
    call("-").await.unwrap();
    waiting.await.unwrap().unwrap();
    let expected = [("-", SECOND / 2), ("anna", 3 * SECOND + SECOND / 2)];
    assert_eq!(*turns.lock().unwrap(), expected);
    // What it had been granted of its key it gave back, and took it when it was let in.
    assert_eq!(limits.each.stats_of("anna").available, 0);
    sleep(SECOND).await;
    assert_eq!(limits.each.stats_of("anna").available, 1);
}

#[tokio::test(start_paused = true)]
async fn whoever_would_wait_too_long_for_another_limit_is_refused_when_that_is_known() {
    let (limits, mut call, _) = of_two(Quota::one_every(9 * SECOND), Quota::one_every(SECOND), 2 * SECOND);
    limits.each.settle("anna", 0, 1);
    let (waiting, begin) = (tokio::spawn(call("anna")), Instant::now());
    sleep(SECOND / 2).await;
    call("-").await.unwrap();
    let error = waiting.await.unwrap().unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!(refusal.kind(), RejectionKind::QueueTimeout);
    assert_eq!(refusal.retry_after(), RetryAfter::After(8 * SECOND + SECOND / 2));
    assert_eq!(begin.elapsed(), SECOND);
    assert_eq!(limits.each.stats_of("anna").available, 1, "and its key has its permit back");
    // At once, when it is known at once.
    let begin = Instant::now();
    assert!(call("anna").await.is_err());
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_several_limits_that_goes_away_gives_all_back() {
    let (limits, mut call, turns) = of_two(Quota::one_every(SECOND), Quota::one_every(SECOND), Duration::MAX);
    call("anna").await.unwrap();
    let (waiting, behind) = (call("anna"), tokio::spawn(call("-")));
    sleep(SECOND / 2).await;
    drop(waiting);
    behind.await.unwrap().unwrap();
    assert_eq!(turns.lock().unwrap()[1], ("-", SECOND));
    // Granted by all, and gone before it was called.
    sleep(2 * SECOND).await;
    drop(call("anna"));
    assert_eq!((limits.all.stats_of(&()).available, limits.each.stats_of("anna").available), (1, 1));
    assert_eq!(limits.all.stats().queued + limits.each.stats().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn a_hold_makes_those_wait_who_can_and_refuses_the_others() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let (mut call, order) = calls(&limiter, 9, 5 * SECOND);
    let (mut impatient, _) = calls(&limiter, 9, 2 * SECOND);
    call(0).await.unwrap();
    let (refused, waits) = (tokio::spawn(impatient(1)), tokio::spawn(call(2)));
    sleep(SECOND / 2).await;
    limiter.hold(&(), 4 * SECOND);
    let error = refused.await.unwrap().unwrap_err();
    assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::QueueTimeout));
    waits.await.unwrap().unwrap();
    assert_eq!(order.lock().unwrap()[1], (2, 4 * SECOND + SECOND / 2));
    let refusal = limiter.try_acquire(&(), 1).unwrap_err();
    assert_eq!(refusal.retry_after(), RetryAfter::After(SECOND), "and then it goes on as before");
}

#[tokio::test(start_paused = true)]
async fn backpressure_reserves_one_and_gives_it_back() {
    let limiter = RateLimiter::new(Quota::per_second(1).burst(4));
    let layer = RateLimitLayer::new(limiter.rule().cost(|n: &u64| *n)).backpressure();
    let service = layer.layer(service_fn(|n: u64| async move { Ok::<_, BoxError>(n) }));
    let left = || limiter.stats_of(&()).available;
    let mut first = service.clone();
    for _ in 0..3 {
        first.ready().await.unwrap();
        assert_eq!(left(), 3, "ready is ready");
    }
    let clone = first.clone();
    drop(first);
    assert_eq!(left(), 4, "and a clone of one that is ready has nothing");
    drop(clone);

    // The rest of what a call costs is owed.
    let mut first = service.clone();
    let mut second = service.clone();
    second.ready().await.unwrap();
    assert_eq!(first.ready().await.unwrap().call(4).await.unwrap(), 4);
    assert_eq!(left(), -1);
    let begin = Instant::now();
    first.ready().await.unwrap();
    assert_eq!(begin.elapsed(), 2 * SECOND, "the debt and one permit");
    // Nothing, for nothing; never, at once.
    assert_eq!(first.call(0).await.unwrap(), 0);
    assert_eq!(left(), 1);
    let error = second.call(5).await.unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((refusal.kind(), refusal.retry_after()), (RejectionKind::ExceedsCapacity, RetryAfter::Never));
    assert_eq!(left(), 2, "and its permit is back");
    assert_eq!((limiter.stats().admitted, limiter.stats().refused), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn backpressure_is_first_come_first_served() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let service = limiter.layer().backpressure().layer(service_fn(|()| async { Ok::<_, BoxError>(()) }));
    service.clone().ready().await.unwrap().call(()).await.unwrap();
    let turn = async |mut service: tower::util::BoxCloneService<(), (), BoxError>| {
        service.ready().await?.call(()).await?;
        Ok::<_, BoxError>(Instant::now())
    };
    let boxed = || tower::util::BoxCloneService::new(service.clone());
    let begin = Instant::now();
    let mut gives_up = tokio_test::task::spawn(Box::pin(turn(boxed())));
    assert!(gives_up.poll().is_pending());
    let (one, two) = (tokio::spawn(turn(boxed())), tokio::spawn(turn(boxed())));
    sleep(SECOND / 2).await;
    drop(gives_up);
    assert!(limiter.try_acquire(&(), 1).is_err(), "others wait");
    assert_eq!(one.await.unwrap().unwrap() - begin, SECOND);
    assert_eq!(two.await.unwrap().unwrap() - begin, 2 * SECOND);
    assert_eq!(limiter.stats().queued, 0);
}

/// Above a service that is not done at once, whoever takes his turn is not woken to look whether it came.
#[tokio::test(start_paused = true)]
async fn nobody_wakes_himself_when_his_turn_has_come() {
    let limiter = RateLimiter::new(Quota::one_every(SECOND));
    let hangs = service_fn(|()| std::future::pending::<Result<(), BoxError>>());
    limiter.try_acquire(&(), 1).unwrap();
    let mut queued = tokio_test::task::spawn(limiter.layer().queue(1, SECOND).layer(hangs).oneshot(()));
    assert!(queued.poll().is_pending());
    advance(SECOND).await;
    sleep(Duration::ZERO).await;
    assert!(queued.is_woken());
    assert!(queued.poll().is_pending());
    assert_eq!(limiter.stats().admitted, 2);
    assert!(!queued.is_woken());
}
