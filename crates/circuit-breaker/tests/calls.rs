//! What calls meet in a layer: outcomes, drops, panics, readiness, time.

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bartizan_circuit_breaker::{CircuitBreaker, CircuitBreakers, Settings, State, Window};
use bartizan_core::{BoxError, Class, Classify, Rejected, RejectionKind, RetryAfter, failure_if};
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// What a call does.
#[derive(Clone, Copy, Debug)]
enum Do {
    Succeed,
    Fail,
    Panic,
    Hang,
    Take(Duration),
}

async fn inner(what: Do) -> Result<&'static str, BoxError> {
    match what {
        Do::Succeed => Ok("done"),
        Do::Fail => Err("it fails".into()),
        Do::Panic => panic!("it panics"),
        Do::Hang => std::future::pending().await,
        Do::Take(time) => {
            sleep(time).await;
            Ok("done at last")
        }
    }
}

async fn call(breaker: &CircuitBreaker, what: Do) -> Result<&'static str, BoxError> {
    breaker.layer().layer(service_fn(inner)).oneshot(what).await
}

fn refused(result: Result<&'static str, BoxError>) -> RetryAfter {
    let error = result.expect_err("it is refused");
    let rejected = Rejected::find(&*error).expect("it is refused");
    assert_eq!((rejected.kind(), rejected.layer()), (RejectionKind::CircuitOpen, "circuit-breaker"));
    rejected.retry_after()
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

fn strict() -> Settings {
    Settings::consecutive(1).open_for(10 * SECOND)
}

async fn half_open(settings: Settings) -> CircuitBreaker {
    let breaker = CircuitBreaker::new(settings.open_for(10 * SECOND));
    assert!(call(&breaker, Do::Fail).await.is_err());
    advance(10 * SECOND).await;
    breaker
}

#[tokio::test(start_paused = true)]
async fn it_opens_refuses_probes_and_closes() {
    let breaker = CircuitBreaker::new(Settings::consecutive(2).open_for(10 * SECOND));
    let mut watched = breaker.subscribe();
    assert!(call(&breaker, Do::Fail).await.is_err() && call(&breaker, Do::Succeed).await.is_ok());
    assert!(call(&breaker, Do::Fail).await.is_err() && call(&breaker, Do::Fail).await.is_err());
    let change = *watched.borrow_and_update();
    assert_eq!((change.from, change.to), (State::Closed, State::Open));
    advance(4 * SECOND).await;
    assert_eq!(refused(call(&breaker, Do::Succeed).await), RetryAfter::After(6 * SECOND));
    let stats = breaker.stats();
    assert_eq!((stats.state, stats.failures, stats.opens, stats.refused), (State::Open, 2, 1, 1));
    assert_eq!(stats.last_failure, Some(Instant::now() - 4 * SECOND));

    advance(6 * SECOND).await;
    assert_eq!((breaker.state(), breaker.stats().state), (State::HalfOpen, State::HalfOpen));
    assert!(!watched.has_changed().unwrap(), "time alone makes no transition");
    assert!(call(&breaker, Do::Succeed).await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
    assert_eq!(watched.borrow_and_update().from, State::HalfOpen);
    drop(breaker);
    assert!(watched.changed().await.is_err(), "nothing will come any more");
}

/// Pitfall 1: every layer of a handle is a view of it.
#[tokio::test(start_paused = true)]
async fn layers_of_a_handle_share_its_state() {
    let breaker = CircuitBreaker::new(strict());
    let (one, other) = (breaker.layer().layer(service_fn(inner)), breaker.layer().layer(service_fn(inner)));
    assert!(one.oneshot(Do::Fail).await.is_err());
    refused(other.oneshot(Do::Succeed).await);
}

/// Pitfall 25 and 26.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_makes_room_for_the_next() {
    let breaker = half_open(Settings::consecutive(1)).await;
    {
        let mut probe = pin!(call(&breaker, Do::Hang));
        assert!(poll(probe.as_mut()).is_pending());
        assert_eq!(refused(call(&breaker, Do::Succeed).await), RetryAfter::Unknown);
        assert_eq!(breaker.stats().probes, 1);
    }
    assert_eq!((breaker.state(), breaker.stats().probes), (State::HalfOpen, 0));
    assert!(call(&breaker, Do::Succeed).await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
}

/// Pitfall 25: a hung probe, and nobody who asks.
#[tokio::test(start_paused = true)]
async fn a_probe_that_hangs_is_given_up() {
    let breaker = half_open(Settings::consecutive(1).probe_timeout(20 * SECOND)).await;
    let mut probe = pin!(call(&breaker, Do::Hang));
    assert!(poll(probe.as_mut()).is_pending());
    advance(25 * SECOND).await;
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.stats().retry_after, RetryAfter::After(5 * SECOND));
    advance(5 * SECOND).await;
    assert!(call(&breaker, Do::Succeed).await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
}

/// Pitfall 28: fifty timeouts, and the breaker saw none.
#[tokio::test(start_paused = true)]
async fn an_outer_timeout_is_seen_if_asked_for() {
    for (settings, opens) in [(strict(), 0), (strict().count_cancelled_after(5 * SECOND), 1)] {
        let breaker = CircuitBreaker::new(settings);
        assert!(timeout(4 * SECOND, call(&breaker, Do::Hang)).await.is_err());
        assert_eq!(breaker.stats().opens, 0, "it was dropped early");
        assert!(timeout(5 * SECOND, call(&breaker, Do::Hang)).await.is_err());
        assert_eq!(breaker.stats().opens, opens);
    }
    let breaker = half_open(Settings::consecutive(1).count_cancelled_after(5 * SECOND)).await;
    assert!(timeout(5 * SECOND, call(&breaker, Do::Hang)).await.is_err());
    assert_eq!((breaker.state(), breaker.stats().opens), (State::Open, 2));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failure_and_leaks_no_probe() {
    let panics = |result: std::thread::Result<Poll<_>>| {
        assert!(result.map(|_: Poll<Result<_, BoxError>>| ()).is_err());
    };
    // In the future, on the closed path and as a probe.
    let breaker = CircuitBreaker::new(strict());
    for opens in [1, 2] {
        let mut call = Box::pin(call(&breaker, Do::Panic));
        panics(catch_unwind(AssertUnwindSafe(|| poll(call.as_mut()))));
        // It counts there and then, not when somebody drops the remains.
        assert_eq!((breaker.stats().opens, breaker.stats().probes, breaker.state()), (opens, 0, State::Open));
        advance(10 * SECOND).await;
    }
    // In `call`.
    let breaker = CircuitBreaker::new(strict());
    for opens in [1, 2] {
        let bad = service_fn(|(): ()| -> std::future::Ready<Result<&str, BoxError>> { panic!("in call") });
        let mut call = Box::pin(breaker.layer().layer(bad).oneshot(()));
        panics(catch_unwind(AssertUnwindSafe(|| poll(call.as_mut()))));
        assert_eq!((breaker.stats().opens, breaker.stats().probes), (opens, 0));
        advance(10 * SECOND).await;
    }
    // In the classifier.
    let breaker = CircuitBreaker::new(strict());
    for opens in [1, 2] {
        let judge = failure_if(|_: &&str| panic!("in the classifier"));
        let mut call =
            Box::pin(breaker.layer().classify(judge).layer(service_fn(inner)).oneshot(Do::Succeed));
        panics(catch_unwind(AssertUnwindSafe(|| poll(call.as_mut()))));
        assert_eq!((breaker.stats().opens, breaker.stats().probes), (opens, 0));
        advance(10 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_result_changes_nothing_but_the_count_of_late_ones() {
    let breaker = CircuitBreaker::new(strict());
    let mut late = pin!(call(&breaker, Do::Take(30 * SECOND)));
    assert!(poll(late.as_mut()).is_pending());
    assert!(call(&breaker, Do::Fail).await.is_err());
    advance(10 * SECOND).await;
    let mut probe = pin!(call(&breaker, Do::Take(60 * SECOND)));
    assert!(poll(probe.as_mut()).is_pending());
    assert!(late.await.is_ok(), "the caller gets it nevertheless");
    assert_eq!((breaker.state(), breaker.stats().late), (State::HalfOpen, 1));

    breaker.reset();
    assert_eq!((breaker.stats().late, breaker.stats().opens), (0, 0));
    assert!(call(&breaker, Do::Fail).await.is_err());
    breaker.reset();
    assert_eq!(breaker.state(), State::Closed, "nothing of the past survives a reset");
    assert!(call(&breaker, Do::Succeed).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_hand_opens_and_disables() {
    let breaker = CircuitBreaker::new(strict());
    breaker.force_open();
    advance(3600 * SECOND).await;
    assert_eq!(refused(call(&breaker, Do::Succeed).await), RetryAfter::Never);
    breaker.disable();
    for _ in 0..9 {
        assert!(call(&breaker, Do::Fail).await.is_err_and(|error| Rejected::find(&*error).is_none()));
    }
    assert_eq!((breaker.state(), breaker.stats().failures), (State::Disabled, 0));
    breaker.reset();
    assert_eq!(breaker.state(), State::Closed);
}

/// Pitfall 29 and slow calls: the clock is the runtime's.
#[tokio::test(start_paused = true)]
async fn slow_calls_trip_though_they_succeed() {
    let window = Window::of_time(60 * SECOND).min_calls(4).slow(2 * SECOND, 50);
    let breaker = CircuitBreaker::new(Settings::window(window));
    for (time, state) in [(2, State::Closed), (2, State::Closed), (3, State::Closed), (3, State::Open)] {
        assert_eq!(breaker.state(), State::Closed);
        assert!(call(&breaker, Do::Take(time * SECOND)).await.is_ok());
        assert_eq!(breaker.state(), state);
    }
    assert_eq!((breaker.stats().calls, breaker.stats().slow, breaker.stats().failures), (4, 2, 0));
    advance(61 * SECOND).await;
    assert_eq!(breaker.stats().calls, 0, "true after an idle hour too");
}

/// A service that says what `poll_ready` says.
#[derive(Clone, Default)]
struct Gate {
    error: Arc<AtomicBool>,
    pending: Arc<AtomicBool>,
    polled: Arc<AtomicUsize>,
}

impl Service<Do> for Gate {
    type Response = &'static str;
    type Error = BoxError;
    type Future = std::future::Ready<Result<&'static str, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.polled.fetch_add(1, SeqCst);
        match (self.pending.load(SeqCst), self.error.load(SeqCst)) {
            (true, _) => Poll::Pending,
            (_, true) => Poll::Ready(Err("no connection".into())),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, what: Do) -> Self::Future {
        std::future::ready(match what {
            Do::Succeed => Ok("done"),
            _ => Err("it fails".into()),
        })
    }
}

/// Pitfall 30: a provider that cannot be reached counts.
#[tokio::test(start_paused = true)]
async fn a_readiness_that_fails_is_a_failure() {
    let (breaker, gate) = (CircuitBreaker::new(strict()), Gate::default());
    gate.error.store(true, SeqCst);
    let mut service = breaker.layer().layer(gate.clone());
    assert!(service.ready().await.is_err());
    assert_eq!(breaker.stats().opens, 1);
    // Of a probe too, whose readiness is found in the call.
    advance(10 * SECOND).await;
    assert!(service.ready().await.unwrap().call(Do::Succeed).await.is_err());
    assert_eq!((breaker.state(), breaker.stats().opens, breaker.stats().probes), (State::Open, 2, 0));
}

/// As an error it is, so as a panic too.
#[tokio::test(start_paused = true)]
async fn a_readiness_that_panics_is_a_failure() {
    #[derive(Clone)]
    struct Bad;

    impl Service<Do> for Bad {
        type Response = &'static str;
        type Error = BoxError;
        type Future = std::future::Ready<Result<&'static str, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            panic!("in poll_ready")
        }

        fn call(&mut self, _: Do) -> Self::Future {
            unreachable!("it is never ready")
        }
    }

    let breaker = CircuitBreaker::new(strict());
    for opens in [1, 2] {
        // As a probe it becomes ready in the call.
        let mut call = Box::pin(breaker.layer().layer(Bad).oneshot(Do::Succeed));
        assert!(catch_unwind(AssertUnwindSafe(|| poll(call.as_mut()))).is_err());
        assert_eq!((breaker.stats().opens, breaker.stats().probes), (opens, 0));
        advance(10 * SECOND).await;
    }
    let waiting = breaker.layer().backpressure();
    let mut call = Box::pin(waiting.layer(Bad).oneshot(Do::Succeed));
    assert!(catch_unwind(AssertUnwindSafe(|| poll(call.as_mut()))).is_err());
    assert_eq!((breaker.stats().opens, breaker.stats().probes), (3, 0));
}

/// An open breaker says so at once, whatever is below.
#[tokio::test(start_paused = true)]
async fn an_open_breaker_does_not_wait_for_what_it_does_not_need() {
    let (breaker, gate) = (CircuitBreaker::new(strict()), Gate::default());
    assert!(call(&breaker, Do::Fail).await.is_err());
    gate.pending.store(true, SeqCst);
    let mut service = breaker.layer().layer(gate.clone());
    refused(service.ready().await.unwrap().call(Do::Succeed).await);
    assert_eq!(gate.polled.load(SeqCst), 0);
    // As a probe it waits in the call.
    advance(10 * SECOND).await;
    let mut probe = pin!(service.ready().await.unwrap().call(Do::Succeed));
    assert!(poll(probe.as_mut()).is_pending());
    gate.pending.store(false, SeqCst);
    assert!(probe.await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn backpressure_waits_for_time_for_a_place_and_for_a_hand() {
    let breaker = CircuitBreaker::new(strict());
    assert!(call(&breaker, Do::Fail).await.is_err());
    let layer = breaker.layer().backpressure();
    let begin = Instant::now();
    assert!(layer.layer(service_fn(inner)).oneshot(Do::Succeed).await.is_ok());
    assert_eq!((begin.elapsed(), breaker.state()), (10 * SECOND, State::Closed));

    // Half-open with its probe taken: whoever waits is woken when the probe goes, and only then.
    assert!(call(&breaker, Do::Fail).await.is_err());
    advance(10 * SECOND).await;
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut cx = Context::from_waker(&waker);
    let mut service = layer.layer(service_fn(inner));
    let ready = |service: &mut _, cx: &mut _| Service::<Do>::poll_ready(service, cx).is_ready();
    {
        let mut probe = pin!(call(&breaker, Do::Hang));
        assert!(poll(probe.as_mut()).is_pending());
        for _ in 0..3 {
            assert!(!ready(&mut service, &mut cx));
        }
        assert_eq!(woken.0.load(SeqCst), 0);
    }
    assert_eq!(woken.0.load(SeqCst), 1);
    assert!(ready(&mut service, &mut cx) && ready(&mut service, &mut cx));
    assert_eq!(breaker.stats().probes, 0, "readiness takes no probe");
    // Another call takes the probe first: then `call` refuses.
    let mut probe = pin!(call(&breaker, Do::Hang));
    assert!(poll(probe.as_mut()).is_pending());
    refused(service.call(Do::Succeed).await);

    breaker.force_open();
    assert!(!ready(&mut service, &mut cx));
    breaker.reset();
    assert_eq!(woken.0.load(SeqCst), 2);
    assert!(ready(&mut service, &mut cx));
}

/// Pitfall 31, and a fallback below that gave up: what a classifier calls nobody's fault decides nothing.
#[tokio::test(start_paused = true)]
async fn refusals_of_others_are_ignored_unless_the_service_failed() {
    let inner = |kind| {
        service_fn(move |(): ()| async move { Err::<(), BoxError>(Rejected::new(kind, "other").into()) })
    };
    let breaker = CircuitBreaker::new(strict());
    for kind in [RejectionKind::RateLimited, RejectionKind::Invalid, RejectionKind::CircuitOpen] {
        assert!(breaker.layer().layer(inner(kind)).oneshot(()).await.is_err());
        assert_eq!(breaker.state(), State::Closed);
    }
    assert!(breaker.layer().layer(inner(RejectionKind::Exhausted)).oneshot(()).await.is_err());
    assert_eq!(breaker.state(), State::Open);
}

#[derive(Clone)]
struct Ignores;

impl Classify<&'static str> for Ignores {
    fn classify(&self, _: Result<&&'static str, &(dyn Error + 'static)>) -> Class {
        Class::Ignore
    }
}

#[tokio::test(start_paused = true)]
async fn keys_have_breakers_of_their_own() {
    let hosts: CircuitBreakers<String> = CircuitBreakers::new(strict());
    let layer = hosts.by_ref(|(host, _): &(&'static str, Do)| (!host.is_empty()).then_some(*host));
    let service = layer.layer(service_fn(|(_, what)| inner(what)));
    let call = |host, what| service.clone().oneshot((host, what));
    assert!(call("a", Do::Fail).await.is_err());
    refused(call("a", Do::Succeed).await);
    assert!(call("b", Do::Succeed).await.is_ok());
    for _ in 0..3 {
        let error = call("", Do::Fail).await.unwrap_err();
        assert!(Rejected::find(&*error).is_none(), "a call without a key is not watched");
    }
    let stats = hosts.stats();
    assert_eq!((stats.keys, stats.open, stats.opens, stats.refused), (2, 1, 1, 1));
    hosts.get("a").unwrap().reset();
    assert!(call("a", Do::Succeed).await.is_ok());
    let mut states = hosts.states();
    states.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert_eq!(states, [("a".to_owned(), State::Closed), ("b".to_owned(), State::Closed)]);
}

#[tokio::test(start_paused = true)]
async fn an_ignored_probe_decides_nothing() {
    let breaker = half_open(Settings::consecutive(1)).await;
    for what in [Do::Succeed, Do::Fail] {
        let _ = breaker.layer().classify(Ignores).layer(service_fn(inner)).oneshot(what).await;
        assert_eq!((breaker.state(), breaker.stats().probes), (State::HalfOpen, 0));
    }
}

/// However seldom calls come, good probes close it, and one that hangs does not keep it half-open.
#[tokio::test(start_paused = true)]
async fn probes_that_come_seldom_close_it() {
    let settings = Settings::consecutive(1).open_for(5 * SECOND).successes(3).probe_timeout(60 * SECOND);
    let breaker = CircuitBreaker::new(settings);
    breaker.try_acquire().unwrap().failure();
    for _ in 0..3 {
        advance(45 * SECOND).await;
        breaker.try_acquire().unwrap().success();
    }
    assert_eq!(breaker.state(), State::Closed);

    breaker.try_acquire().unwrap().failure();
    advance(50 * SECOND).await;
    breaker.try_acquire().unwrap().success();
    advance(50 * SECOND).await;
    let hangs = breaker.try_acquire().unwrap();
    advance(59 * SECOND).await;
    assert_eq!(breaker.state(), State::HalfOpen);
    advance(SECOND).await;
    assert_eq!(breaker.state(), State::Open);
    assert_eq!(breaker.stats().last_failure, Some(Instant::now()));
    hangs.success();
    assert_eq!((breaker.state(), breaker.stats().late), (State::Open, 1));
}

/// Clocks of tests stand still at times of their own; a circuit serves one breaker after another.
#[test]
fn a_straggler_of_a_breaker_that_is_gone_does_not_tell_the_next_one_the_time() {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (one, other) = (runtime(), runtime());
    let straggler = one.block_on(async {
        let permit = CircuitBreaker::new(Settings::consecutive(1)).try_acquire().unwrap();
        advance(3_600 * SECOND).await;
        permit
    });
    let breakers: Vec<_> = other.block_on(async {
        let breaker = || CircuitBreaker::new(Settings::consecutive(1).open_for(5 * SECOND));
        // One of these has its circuit, whoever else makes breakers meanwhile.
        (0..32).map(|_| breaker()).inspect(|breaker| breaker.try_acquire().unwrap().failure()).collect()
    });
    one.block_on(async { straggler.failure() });
    other.block_on(async {
        assert!(breakers.iter().all(|breaker| breaker.state() == State::Open));
        assert!(breakers.iter().all(|breaker| breaker.stats().late == 0));
    });
}

#[tokio::test(start_paused = true)]
async fn a_breaker_whose_upstream_said_when_to_come_back_is_not_like_new() {
    let hosts: CircuitBreakers<u8> = CircuitBreakers::new(Settings::consecutive(2)).max_keys(1);
    let told = || Class::Failure(RetryAfter::After(1_800 * SECOND));
    let host = hosts.get(&1).unwrap();
    host.try_acquire().unwrap().settle(told());
    host.try_acquire().unwrap().success();
    drop(host);
    assert!(hosts.get(&2).is_none(), "there is something to remember");
    advance(1_800 * SECOND).await;
    assert!(hosts.get(&2).is_some());
}

/// A key is no reason to remember a breaker for good: with nothing against its service it goes when room is needed, and so
/// it does when what there is lies an hour back.
#[tokio::test(start_paused = true)]
async fn what_is_long_past_makes_room_for_other_keys() {
    let healthy = |hosts: &CircuitBreakers<u8>| {
        for host in 0..10 {
            let breaker = hosts.get(&host).unwrap_or_else(|| panic!("there is no room for {host}"));
            breaker.try_acquire().unwrap().success();
        }
    };
    for window in [Window::of_calls(5).failures(50), Window::of_calls(5).slow(SECOND, 50)] {
        healthy(&CircuitBreakers::new(Settings::window(window)).max_keys(2));
    }

    let slow = Window::of_calls(3).slow(SECOND, 100);
    let told = RetryAfter::After(1_800 * SECOND);
    for (settings, class, dies_of) in [
        (Settings::consecutive(2), Class::Failure(RetryAfter::Unknown), 1),
        (Settings::consecutive(2), Class::Failure(RetryAfter::Unknown), 2),
        (Settings::consecutive(2), Class::Failure(told), 2),
        (Settings::window(Window::of_calls(3).failures(100)), Class::Failure(RetryAfter::Unknown), 2),
        (Settings::window(slow.clone()), Class::Success, 1),
        (Settings::window(slow), Class::Success, 3),
    ] {
        let what = format!("{dies_of} of {settings:?}");
        let hosts: CircuitBreakers<u8> = CircuitBreakers::new(settings.open_for(10 * SECOND)).max_keys(1);
        let bad = hosts.get(&1).unwrap();
        advance(7_200 * SECOND).await;
        for _ in 0..dies_of {
            bad.try_acquire().unwrap().took(2 * SECOND).settle(class);
        }
        // So long it would be missed: its open period is over after half an hour at the most.
        let open = bad.stats().retry_after;
        drop(bad);
        let open = if let RetryAfter::After(wait) = open { wait } else { Duration::ZERO };
        advance(open + 3_599 * SECOND).await;
        assert!(hosts.get(&2).is_none(), "{what}");
        advance(SECOND).await;
        assert!(hosts.get(&2).is_some(), "{what}");
    }

    // Whoever has a permit has the key.
    let hosts: CircuitBreakers<u8> = CircuitBreakers::new(strict()).max_keys(1);
    let permit = hosts.get(&1).unwrap().try_acquire().unwrap();
    assert!(hosts.get(&2).is_none());
    permit.failure();
    assert_eq!(hosts.get(&1).unwrap().state(), State::Open);

    // A hand's doing is for good.
    let hosts: CircuitBreakers<u8> = CircuitBreakers::new(strict()).max_keys(1);
    hosts.get(&1).unwrap().disable();
    advance(100 * 3_600 * SECOND).await;
    assert!(hosts.get(&2).is_none());
}

/// A time that has passed reads as now, whether the breaker has looked at a clock since or not.
#[tokio::test(start_paused = true)]
async fn a_clock_that_goes_back_is_read_as_the_largest_time() {
    let breaker = CircuitBreaker::new(Settings::consecutive(1).open_for(5 * SECOND));
    let before = Instant::now();
    advance(10 * SECOND).await;
    call(&breaker, Do::Succeed).await.unwrap();
    breaker.try_acquire_at(before).unwrap().settle_at(Class::Failure(RetryAfter::Unknown), before);
    let refusal = breaker.try_acquire_at(before).unwrap_err();
    assert_eq!(refusal.retry_after(), RetryAfter::After(5 * SECOND));
}
