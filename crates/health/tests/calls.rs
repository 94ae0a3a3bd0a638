//! Calls through the layer, and what is told of them.

use std::{
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::{BoxError, Class, Rejected, RejectionKind, RetryAfter, failure_if};
use bartizan_health::{Active, Ejection, Fault, Health, Passive, Report, Settings, State};
use tokio::time::{advance, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// How an inner call ends.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Answer,
    Fail,
    Refuse,
    Hang,
    Panic,
    PanicInCall,
}

#[derive(Clone)]
struct Inner;

impl Service<Then> for Inner {
    type Response = &'static str;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<&'static str, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, then: Then) -> Self::Future {
        assert!(then != Then::PanicInCall, "it panics when it is called");
        Box::pin(async move {
            sleep(SECOND).await;
            match then {
                Then::Answer => Ok("an answer"),
                Then::Fail => Err("it fails".into()),
                Then::Refuse => Err(Rejected::new(RejectionKind::RateLimited, "rate-limit").into()),
                Then::Hang => pending().await,
                Then::Panic | Then::PanicInCall => panic!("it panics"),
            }
        })
    }
}

async fn call(health: &Health, then: Then) -> Result<&'static str, BoxError> {
    health.layer("it").layer(Inner).oneshot(then).await
}

#[tokio::test(start_paused = true)]
async fn every_ending_is_counted_as_what_it_is() {
    let health = Health::new();
    call(&health, Then::Answer).await.unwrap();
    call(&health, Then::Fail).await.unwrap_err();
    call(&health, Then::Refuse).await.unwrap_err();
    tokio::time::timeout(2 * SECOND, call(&health, Then::Hang)).await.unwrap_err();
    let panics = tokio::spawn({
        let health = health.clone();
        async move { call(&health, Then::Panic).await }
    });
    assert!(panics.await.unwrap_err().is_panic());
    let mut service = health.layer("it").layer(Inner);
    assert!(catch_unwind(AssertUnwindSafe(|| drop(service.call(Then::PanicInCall)))).is_err());
    drop(health.layer("it").layer(Inner).oneshot(Then::Answer));

    let stats = health.component("it").stats();
    let totals = stats.totals;
    assert_eq!((totals.successes, totals.failures, totals.ignored, totals.cancelled), (1, 3, 1, 1));
    assert_eq!((stats.requests, stats.failures, stats.consecutive_failures), (4, 3, 3));
    assert_eq!(stats.errors, [("error", 1), ("refused", 1), ("panic", 2)]);
    assert_eq!(stats.last_error.unwrap().message, "it panicked");
    assert_eq!(stats.latency.count, 4);
    let p50 = stats.latency.p50.unwrap().as_secs_f64();
    assert!((p50 - 1.0).abs() <= 1.0 / 16.0, "{p50}");
}

/// What is ignored says nothing about the component, but operators want to know of it.
#[tokio::test(start_paused = true)]
async fn what_is_ignored_is_told_and_decides_nothing() {
    let health = Health::with(Settings::new().passive(Passive::new().min_requests(1).unhealthy(1)));
    call(&health, Then::Refuse).await.unwrap_err();
    let stats = health.component("it").stats();
    assert_eq!((stats.state, stats.requests), (State::Healthy, 0));
    assert_eq!(stats.last_error.unwrap().message, "rate-limit: rate limited");
}

#[tokio::test(start_paused = true)]
async fn a_failed_readiness_is_a_failure_without_a_latency() {
    #[derive(Clone)]
    struct Unready;
    impl Service<()> for Unready {
        type Response = ();
        type Error = BoxError;
        type Future = std::future::Pending<Result<(), BoxError>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Err("no connection".into()))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            pending()
        }
    }
    let health = Health::new();
    assert!(health.layer("it").layer(Unready).ready().await.is_err());
    let stats = health.component("it").stats();
    assert_eq!((stats.totals.successes, stats.totals.failures, stats.latency.count), (0, 1, 0));
    assert_eq!(stats.last_error.unwrap().message, "no connection");
}

/// A stranger's words may panic as well.
#[test]
fn words_that_panic_are_a_panic() {
    struct Words;
    impl std::fmt::Display for Words {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("no words")
        }
    }
    let component = Health::new().component("it");
    let record = || {
        let fault = Fault::new("error").says(&Words);
        component.record(Class::Failure(RetryAfter::Unknown), SECOND, Some(fault));
    };
    assert!(catch_unwind(AssertUnwindSafe(record)).is_err());
    component.record(Class::Failure(RetryAfter::Unknown), SECOND, None);
    assert_eq!(component.stats().last_error.unwrap().message, "failure");

    #[derive(Debug)]
    struct Bad;
    impl std::error::Error for Bad {}
    impl std::fmt::Display for Bad {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("no words")
        }
    }
    let mut service = component.layer().layer(service_fn(async |()| Err::<(), _>(Bad)));
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(service.poll_ready(cx).is_ready());
    let future = service.call(());
    assert!(catch_unwind(AssertUnwindSafe(|| pin!(future).poll(cx).is_ready())).is_err());
    let stats = component.stats();
    assert_eq!((stats.totals.failures, stats.totals.cancelled), (2, 0));
    assert_eq!(stats.errors, [("failure", 1), ("panic", 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_classifier_says_what_a_failure_is() {
    let health = Health::new();
    let layer = health.layer("it").classify(failure_if(|answer: &&str| *answer == "an answer"));
    assert_eq!(layer.layer(Inner).oneshot(Then::Answer).await.unwrap(), "an answer");
    let stats = health.component("it").stats();
    assert_eq!((stats.totals.failures, stats.errors), (1, vec![("failure", 1)]));
}

/// Handles never lie: after an idle hour they say what is true then, and since when.
#[tokio::test(start_paused = true)]
async fn after_an_idle_hour() {
    let passive = Passive::new().window(60 * SECOND).min_requests(10).unhealthy(50);
    let health = Health::with(Settings::new().passive(passive));
    let component = health.component("it");
    advance(30 * SECOND).await;
    for _ in 0..10 {
        component.record(Class::Failure(RetryAfter::Unknown), SECOND, None);
    }
    assert_eq!((component.state(), component.stats().in_state), (State::Unhealthy, Duration::ZERO));
    advance(3_600 * SECOND).await;
    let stats = component.stats();
    assert_eq!((stats.state, stats.requests, stats.failures), (State::Healthy, 0, 0));
    // The window was empty after a minute.
    assert_eq!(stats.in_state, 3_540 * SECOND);
    assert_eq!((stats.latency.p50, stats.latency.count), (None, 0));
    assert_eq!((stats.totals.failures, stats.last_error.unwrap().ago), (10, 3_600 * SECOND));
    assert_eq!(stats.consecutive_failures, 10, "nothing has succeeded since");
}

#[tokio::test(start_paused = true)]
async fn shedding_refuses_until_the_window_is_empty() {
    let passive = Passive::new().window(16 * SECOND).min_requests(2).unhealthy(50);
    let health = Health::with(Settings::new().passive(passive));
    let shed = || health.layer("it").shed().layer(Inner);
    for _ in 0..2 {
        shed().oneshot(Then::Fail).await.unwrap_err();
    }
    let error = shed().oneshot(Then::Answer).await.unwrap_err();
    let refusal = Rejected::find(&*error).unwrap();
    assert_eq!((refusal.kind(), refusal.layer()), (RejectionKind::Unhealthy, "health"));
    let RetryAfter::After(wait) = refusal.retry_after() else { panic!("{refusal}") };
    assert!(wait > 15 * SECOND && wait <= 16 * SECOND, "{wait:?}");
    advance(wait).await;
    assert_eq!(shed().oneshot(Then::Answer).await.unwrap(), "an answer");
    let totals = health.component("it").stats().totals;
    assert_eq!((totals.refused, totals.failures, totals.successes), (1, 2, 1));
}

/// A refusal says when it can be asked again, not when anything changes: probes say nothing of that.
#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_all_that_holds_it_back_is_over() {
    let passive = Passive::new().window(64 * SECOND).min_requests(4).unhealthy(50);
    let ejection = Ejection::after(2).times(10 * SECOND, 200 * SECOND).at_most(50).panic_below(0);
    let health = Health::with(Settings::new().passive(passive).ejection(ejection));
    health.component("other");
    let component = health.component("it");
    let refused = async || {
        let error = component.layer().shed().layer(Inner).oneshot(Then::Answer).await.unwrap_err();
        Rejected::find(&*error).unwrap().retry_after()
    };
    fail(&health, "it", 2);
    assert_eq!(refused().await, RetryAfter::After(10 * SECOND), "ejected");
    fail(&health, "it", 2);
    assert_eq!(component.state(), State::Unhealthy);
    let RetryAfter::After(wait) = refused().await else { panic!("it says when") };
    assert!(wait > 59 * SECOND && wait <= 64 * SECOND, "the window is empty later: {wait:?}");

    for _ in 0..3 {
        assert!(component.start_probe().unwrap().failed(&"dead"));
    }
    assert_eq!(refused().await, RetryAfter::Unknown, "a probe must be good first");
    let probe = component.start_probe();
    assert_eq!(refused().await, RetryAfter::Unknown, "also while one is under way");
    drop(probe);
}

fn pool(names: &[&str]) -> Health {
    let ejection = Ejection::after(3).times(10 * SECOND, 20 * SECOND).at_most(50).panic_below(50);
    let health = Health::with(Settings::new().passive(Passive::none()).ejection(ejection));
    names.iter().for_each(|name| _ = health.component(name));
    health
}

fn fail(health: &Health, name: &str, times: usize) {
    for _ in 0..times {
        health.component(name).record(Class::Failure(RetryAfter::Unknown), Duration::ZERO, None);
    }
}

#[tokio::test(start_paused = true)]
async fn ejected_until_its_time_is_over() {
    let health = pool(&["a", "b", "c", "d"]);
    fail(&health, "a", 2);
    health.component("a").record(Class::Success, Duration::ZERO, None);
    fail(&health, "a", 2);
    assert!(health.component("a").is_eligible(), "in a row");
    fail(&health, "a", 1);
    assert_eq!(health.eligible().names, ["b", "c", "d"]);
    // What was still under way is no reason to be out for longer.
    fail(&health, "a", 9);
    let stats = health.component("a").stats();
    assert_eq!((stats.ejected_for, stats.ejections), (Some(10 * SECOND), 1));
    advance(10 * SECOND).await;
    assert_eq!(health.eligible().names, ["a", "b", "c", "d"]);
    fail(&health, "a", 3);
    assert_eq!(health.component("a").stats().ejected_for, Some(20 * SECOND));
    health.component("a").reset();
    assert!(health.component("a").is_eligible());
    fail(&health, "a", 3);
    assert_eq!(health.component("a").stats().ejected_for, Some(10 * SECOND), "all is forgiven");
}

#[tokio::test(start_paused = true)]
async fn no_more_are_ejected_than_the_cap_and_in_panic_all_are_asked() {
    let health = pool(&["a", "b", "c", "d"]);
    ["a", "b", "c", "d"].iter().for_each(|name| fail(&health, name, 3));
    assert_eq!((health.eligible().names, health.ejections_refused()), (vec!["c".into(), "d".into()], 2));
    // Those that are going away are not asked even then, and count as not up.
    health.component("d").drain();
    let eligible = health.eligible();
    assert_eq!((eligible.names, eligible.panic), (vec!["a".into(), "b".into(), "c".into()], true));
    let layer = |name: &str| health.layer(name).shed().layer(Inner);
    assert!(layer("a").oneshot(Then::Answer).await.is_ok());
    assert!(layer("d").oneshot(Then::Answer).await.is_err());
    health.component("d").undrain();
    assert_eq!(health.eligible().names, ["c", "d"]);
    assert!(layer("a").oneshot(Then::Answer).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_whole_is_as_bad_as_what_it_needs() {
    let health = Health::new();
    let dead = |name: &str| {
        let component = health.component(name);
        for _ in 0..3 {
            assert!(component.start_probe().unwrap().failed(&"dead"));
        }
        component
    };
    assert_eq!(health.state(), State::Healthy, "of nothing");
    health.component("a");
    let b = dead("b");
    assert_eq!((health.state(), health.is_ready()), (State::Degraded, true));
    dead("a");
    assert_eq!((health.state(), health.is_ready()), (State::Unhealthy, false));
    health.component("a").reset();
    let _ = b.required();
    assert_eq!(health.state(), State::Unhealthy);
    health.reset();
    assert_eq!(health.state(), State::Healthy);
    health.report("r", || State::Degraded);
    assert_eq!(health.state(), State::Degraded);
}

#[test]
fn reports_may_panic_and_ask_for_themselves() {
    let health = Health::new();
    health.component("it");
    let asks = health.clone();
    health.report("asks", move || Report::new(asks.state()).says(format!("{:?}", asks.summary().reports)));
    health.report("panics", || -> Report { panic!("no report") });
    for _ in 0..2 {
        let reports = health.summary().reports;
        assert_eq!((reports[0].1.state(), reports[0].1.message()), (State::Healthy, Some("[]")));
        assert_eq!(
            (reports[1].1.state(), reports[1].1.message()),
            (State::Unhealthy, Some("it panicked: no report"))
        );
    }
    health.report("panics", || State::Healthy);
    assert_eq!((health.summary().reports.len(), health.state()), (2, State::Healthy));

    // What is thrown may panic itself when it is dropped. Whoever looks next sees all the same.
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("it goes on")
        }
    }
    health.report("panics", || -> Report { std::panic::panic_any(Bomb) });
    assert!(catch_unwind(AssertUnwindSafe(|| health.summary())).is_err());
    health.report("panics", || State::Healthy);
    assert_eq!(health.summary().reports.len(), 2);
}

/// A component of its own settings, and one name for one state.
#[tokio::test(start_paused = true)]
async fn settings_of_its_own() {
    let health = Health::new();
    let strict = Passive::new().min_requests(1).unhealthy(1);
    let component = health.component_with("strict", &strict, &Active::new().unhealthy_after(1));
    let _ = call(&health, Then::Fail).await;
    health.layer("strict").layer(Inner).oneshot(Then::Fail).await.unwrap_err();
    assert_eq!((component.state(), health.component("it").state()), (State::Unhealthy, State::Healthy));
    // The settings of who came first.
    let same = health.component_with("strict", &Passive::none(), &Active::new());
    same.reset();
    same.record(Class::Failure(RetryAfter::Unknown), SECOND, None);
    assert_eq!(component.state(), State::Unhealthy);
    assert_eq!(health.components().len(), 2);
}

/// A reset takes what is under way as it comes.
#[tokio::test(start_paused = true)]
async fn a_reset_forgets_what_was_and_keeps_what_is_counted() {
    let health = Health::new();
    for _ in 0..10 {
        call(&health, Then::Fail).await.unwrap_err();
    }
    let component = health.component("it");
    assert_eq!(component.state(), State::Unhealthy);
    advance(SECOND).await;
    component.reset();
    let stats = component.stats();
    assert_eq!((stats.state, stats.in_state, stats.requests), (State::Healthy, Duration::ZERO, 0));
    assert_eq!((stats.consecutive_failures, stats.latency.count), (0, 0));
    assert_eq!((stats.totals.failures, component.latencies().count()), (10, 10));
    call(&health, Then::Answer).await.unwrap();
    assert_eq!((component.stats().requests, component.stats().latency.count), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn watch_tells_of_every_change_those_of_time_included() {
    let passive = Passive::new().window(16 * SECOND).min_requests(1).unhealthy(50);
    let health = Health::with(Settings::new().passive(passive));
    let mut watch = health.watch(Some("it"));
    assert_eq!(watch.next().await, Some(None), "there is no such component yet");
    let component = health.component("it");
    assert_eq!(watch.next().await.unwrap().unwrap().state, State::Healthy);
    let begin = tokio::time::Instant::now();
    component.record(Class::Failure(RetryAfter::Unknown), SECOND, None);
    assert!(!watch.next().await.unwrap().unwrap().serves());
    assert_eq!(watch.next().await.unwrap().unwrap().state, State::Healthy);
    assert_eq!(begin.elapsed(), 16 * SECOND);
    // A probe that nobody answers.
    for _ in 0..3 {
        let probe = component.start_probe().unwrap();
        sleep(SECOND).await;
        drop(probe);
    }
    assert_eq!(watch.next().await.unwrap().unwrap().state, State::Unhealthy);
    component.drain();
    assert!(watch.next().await.unwrap().unwrap().draining);

    let flag = Arc::new(AtomicBool::new(true));
    let mut whole = health.watch(None);
    component.undrain();
    component.reset();
    assert_eq!(whole.next().await.unwrap().unwrap().state, State::Healthy);
    let seen = flag.clone();
    health.report("flag", move || if seen.load(Relaxed) { State::Healthy } else { State::Degraded });
    let changes = tokio::spawn(async move { (whole.next().await, whole.next().await) });
    sleep(5 * SECOND).await;
    flag.store(false, Relaxed);
    sleep(2 * SECOND).await;
    // What is still under way keeps a component, but nobody's watch.
    let (_, prober) = health.prober("it", SECOND, async || Ok::<_, BoxError>(()));
    drop((component, health));
    let (first, second) = changes.await.unwrap();
    assert_eq!((first.unwrap().unwrap().state, second), (State::Degraded, None));
    drop(prober);
}
