//! Whom a request is sent to, with what, and what becomes of it.

use std::{
    convert::Infallible,
    error::Error,
    future::{Ready, pending, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{BoxError, Class, Classify, Rejected, RejectionKind, RetryAfter, errors, failure_if};
use bartizan_fallback::{Attempt, Exhausted, FailedResult, Fallback, Panicked, Settings, Target, Why};
use futures_util::{FutureExt, future::join_all};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// An upstream that is asked for text and counts how often.
#[derive(Clone)]
struct Upstream {
    seen: Arc<Mutex<Vec<String>>>,
    answer: Arc<Answer>,
}

type Answer = dyn Fn(&str) -> Result<String, BoxError> + Send + Sync;

impl Upstream {
    fn new(answer: impl Fn(&str) -> Result<String, BoxError> + Send + Sync + 'static) -> Self {
        Self { seen: Arc::default(), answer: Arc::new(answer) }
    }

    fn works(name: &'static str) -> Self {
        Self::new(move |request| Ok(format!("{name} {request}")))
    }

    fn fails(error: &'static str) -> Self {
        Self::new(move |_| Err(error.into()))
    }

    /// Fails, and says when to come back.
    fn busy(wait: Duration) -> Self {
        Self::new(move |_| Err(Busy(wait).into()))
    }

    fn refuses(kind: RejectionKind, wait: RetryAfter) -> Self {
        Self::new(move |_| Err(Rejected::new(kind, "another").with_retry_after(wait).into()))
    }

    fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    fn calls(&self) -> usize {
        self.seen().len()
    }
}

impl Service<String> for Upstream {
    type Response = String;
    type Error = BoxError;
    type Future = Ready<Result<String, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: String) -> Self::Future {
        self.seen.lock().unwrap().push(request.clone());
        ready((self.answer)(&request))
    }
}

#[derive(Debug)]
struct Busy(Duration);

impl std::fmt::Display for Busy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "busy for {:?}", self.0)
    }
}

impl Error for Busy {}

/// Errors say themselves when to come back.
#[derive(Clone, Copy)]
struct Judge;

impl<R> Classify<R> for Judge {
    fn classify(&self, result: Result<&R, &(dyn Error + 'static)>) -> Class {
        match result {
            Ok(_) => Class::Success,
            Err(error) => match error.downcast_ref() {
                Some(Busy(wait)) => Class::Failure(RetryAfter::After(*wait)),
                None if error.to_string() == "yours" => Class::Success,
                None => Classify::<R>::classify(&errors(), Err(error)),
            },
        }
    }
}

fn abc() -> Fallback {
    Fallback::new(["a", "b", "c"])
}

/// A service over three upstreams.
fn chain(
    fallback: &Fallback,
    [a, b, c]: [&Upstream; 3],
) -> impl Service<String, Response = String, Error = BoxError> + Clone + use<> {
    fallback.layer("a").or("b", b.clone()).or("c", c.clone()).classify(Judge).layer(a.clone())
}

async fn ask<S>(service: &S, request: &str) -> Result<S::Response, BoxError>
where
    S: Service<String, Error = BoxError> + Clone,
{
    service.clone().oneshot(request.to_owned()).await
}

#[track_caller]
fn exhausted(error: &BoxError) -> (RejectionKind, &Exhausted) {
    let rejected = Rejected::find(&**error).unwrap_or_else(|| panic!("no refusal: {error}"));
    assert_eq!(rejected.layer(), "fallback");
    (rejected.kind(), Exhausted::find(&**error).expect("its detail"))
}

fn names(exhausted: &Exhausted) -> Vec<&str> {
    exhausted.attempts().iter().map(Attempt::name).collect()
}

#[tokio::test(start_paused = true)]
async fn the_first_answers_and_nobody_else_is_asked() {
    let [a, b, c] = ["a", "b", "c"].map(Upstream::works);
    let fallback = abc();
    assert_eq!(ask(&chain(&fallback, [&a, &b, &c]), "1").await.unwrap(), "a 1");
    assert_eq!((a.calls(), b.calls(), c.calls()), (1, 0, 0));
    assert!(fallback.stats().targets.iter().all(|it| it.took_over + it.failed + it.skipped == 0));
}

#[tokio::test(start_paused = true)]
async fn causes_are_kept_in_order() {
    let upstreams = ["one", "two", "three"].map(Upstream::fails);
    let fallback = abc();
    let error = ask(&chain(&fallback, upstreams.each_ref()), "1").await.unwrap_err();
    let (kind, detail) = exhausted(&error);
    assert_eq!((kind, detail.why()), (RejectionKind::Exhausted, Why::Failed));
    assert_eq!(detail.to_string(), "every target failed (a: one; b: two; c: three)");
    assert_eq!(detail.source().unwrap().to_string(), "three");
    assert_eq!(fallback.stats().exhausted, 1);
}

/// Pitfall 43: what is the caller's own is not asked for elsewhere, and comes back as it is.
#[tokio::test(start_paused = true)]
async fn an_error_that_is_the_callers_ends_the_call() {
    let (a, b) = (Upstream::fails("yours"), Upstream::works("b"));
    let error = ask(&chain(&abc(), [&a, &b, &b]), "1").await.unwrap_err();
    assert_eq!((error.to_string().as_str(), b.calls()), ("yours", 0));
    assert!(Rejected::find(&*error).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_response_can_be_a_failure() {
    let (a, b) = (Upstream::works(""), Upstream::works("b"));
    let fallback = Fallback::new(["a", "b"]);
    let layer = fallback.layer("a").or("b", b).classify(failure_if(|text: &String| text.starts_with(' ')));
    assert_eq!(ask(&layer.layer(a.clone()), "1").await.unwrap(), "b 1");
    let layer =
        fallback.layer("a").or("b", a.clone()).classify(failure_if(|text: &String| text.starts_with(' ')));
    let error = ask(&layer.layer(a), "1").await.unwrap_err();
    assert!(exhausted(&error).1.attempts()[1].cause().is::<FailedResult>());
}

#[tokio::test(start_paused = true)]
async fn refusals_of_other_layers_move_on_but_for_what_is_wrong_with_the_request() {
    use RejectionKind as K;
    let wait = RetryAfter::After(9 * SECOND);
    for kind in [
        K::CircuitOpen,
        K::RateLimited,
        K::QueueFull,
        K::Exhausted,
        K::Deadline,
        K::ExceedsCapacity,
        K::InvalidAnswer,
    ] {
        let (a, b) = (Upstream::refuses(kind, wait), Upstream::works("b"));
        let fallback = abc();
        let service = chain(&fallback, [&a, &b, &b]);
        for _ in 0..2 {
            assert_eq!(ask(&service, "1").await.unwrap(), "b 1", "{kind}");
        }
        assert_eq!(a.calls(), 2, "{kind}: to refuse costs nothing, so nobody is left alone for it");
    }
    for kind in [K::Invalid, K::Conflict] {
        let (a, b) = (Upstream::refuses(kind, wait), Upstream::works("b"));
        let error = ask(&chain(&abc(), [&a, &b, &b]), "1").await.unwrap_err();
        assert_eq!((Rejected::find(&*error).unwrap().kind(), b.calls()), (kind, 0));
    }
}

/// FB-12 says what each gets; nobody gets what another one's transform has made.
#[tokio::test(start_paused = true)]
async fn transforms_and_values() {
    let (a, b) = (Upstream::fails("no"), Upstream::fails("no"));
    let fallback = Fallback::new(["a", "b", "value"]);
    let service = fallback
        .layer("a")
        .or_with("b", b.clone(), |request: String| format!("{request}, by b"))
        .or_value("value", |request: String| format!("nobody knows {request}"))
        .layer(ServiceBuilder::new().map_request(|request: String| request + ", by a").service(a.clone()));
    assert_eq!(ask(&service, "it").await.unwrap(), "nobody knows it");
    assert_eq!((a.seen(), b.seen()), (vec!["it, by a".to_owned()], vec!["it, by b".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn a_list_of_one_type() {
    let [a, b, c] = [Upstream::fails("no"), Upstream::fails("no"), Upstream::works("c")];
    let fallback = Fallback::new(["c", "b", "a"]);
    let service = fallback.layer("a").or_each([("b", b.clone()), ("c", c)]).layer(a);
    assert_eq!(ask(&service, "1").await.unwrap(), "c 1");
    let counted: Vec<_> = fallback.stats().targets.iter().map(|it| (it.took_over, it.failed)).collect();
    assert_eq!(counted, [(1, 0), (0, 1), (0, 1)]);
}

/// A configuration may say nobody: then the first one is all.
#[tokio::test(start_paused = true)]
async fn a_list_of_nobody() {
    let fallback = Fallback::new(["a"]);
    let nobody: [(&str, Upstream); 0] = [];
    let error =
        ask(&fallback.layer("a").or_each(nobody).layer(Upstream::fails("no")), "1").await.unwrap_err();
    assert_eq!(names(exhausted(&error).1), ["a"]);
}

/// Each takes over from what it is for.
#[tokio::test(start_paused = true)]
async fn targets_for_some_failures() {
    let ask_with = async |error: &'static str| {
        let (a, general, large) =
            (Upstream::fails(error), Upstream::works("general"), Upstream::works("large"));
        let service = Fallback::new(["a", "general", "large"])
            .layer("a")
            .or("general", general)
            .when("general", |cause| cause.is_none_or(|cause| cause.to_string() != "too long"))
            .or_each([("large", large)])
            .when("large", |cause| cause.is_some_and(|cause| cause.to_string() == "too long"))
            .layer(a);
        ask(&service, "1").await.unwrap()
    };
    assert_eq!(ask_with("too long").await, "large 1");
    assert_eq!(ask_with("down").await, "general 1");

    // It need not be anybody's first choice.
    let (a, large) = (Upstream::works("a"), Upstream::works("large"));
    let fallback = Fallback::new(["a", "large"]);
    fallback.put_aside("a", SECOND);
    let service =
        fallback.layer("a").or("large", large.clone()).when("large", |cause| cause.is_some()).layer(a);
    assert_eq!((ask(&service, "1").await.unwrap().as_str(), large.calls()), ("a 1", 0));
}

/// Pitfall 44: whoever says when to come back is left alone until then, by all layers, and so is who shares its quota.
#[tokio::test(start_paused = true)]
async fn whoever_says_when_to_come_back_is_left_alone() {
    let (a, b, c) = (Upstream::busy(5 * SECOND), Upstream::works("b"), Upstream::works("c"));
    let targets = [Target::new("a").quota("q"), Target::new("b").quota("q"), Target::new("c")];
    let fallback = Fallback::new(targets);
    assert_eq!(ask(&chain(&fallback, [&a, &b, &c]), "1").await.unwrap(), "c 1", "b has a's quota");
    let aside: Vec<_> = fallback.stats().targets.iter().map(|it| it.aside_for).collect();
    assert_eq!(aside, [Some(5 * SECOND), Some(5 * SECOND), None]);

    tokio::time::advance(5 * SECOND - Duration::from_millis(1)).await;
    let another_layer = chain(&fallback, [&a, &b, &c]);
    assert_eq!((ask(&another_layer, "2").await.unwrap().as_str(), a.calls()), ("c 2", 1));
    assert_eq!(fallback.stats().targets.iter().map(|it| it.skipped).collect::<Vec<_>>(), [1, 2, 0]);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(ask(&another_layer, "3").await.unwrap(), "c 3");
    assert_eq!(a.calls(), 2, "the time is over");

    fallback.release("b");
    assert_eq!((ask(&another_layer, "4").await.unwrap().as_str(), a.calls()), ("c 4", 3));
    tokio::time::advance(3600 * SECOND).await;
    assert!(fallback.stats().targets.iter().all(|it| it.aside_for.is_none()), "an idle hour later");
}

#[tokio::test(start_paused = true)]
async fn the_least_bad_is_asked_if_all_are_to_be_left_alone() {
    let [a, b, c] = ["a", "b", "c"].map(Upstream::works);
    let fallback = abc();
    for (name, seconds) in [("a", 9), ("b", 3), ("c", 6)] {
        fallback.put_aside(name, seconds * SECOND);
    }
    assert_eq!(ask(&chain(&fallback, [&a, &b, &c]), "1").await.unwrap(), "b 1");

    // If that one fails, it was the one try.
    let b = Upstream::fails("no");
    let error = ask(&chain(&fallback, [&a, &b, &c]), "1").await.unwrap_err();
    let (kind, detail) = exhausted(&error);
    assert_eq!((kind, names(detail)), (RejectionKind::Exhausted, vec!["b"]));
    assert_eq!(
        detail.skipped().iter().map(|it| (it.name(), it.is_aside())).collect::<Vec<_>>(),
        [("a", true), ("c", true)]
    );
}

#[tokio::test(start_paused = true)]
async fn an_upstream_is_believed_up_to_a_bound() {
    let (a, b) = (Upstream::busy(Duration::MAX), Upstream::works("b"));
    let fallback = abc();
    ask(&chain(&fallback, [&a, &b, &b]), "1").await.unwrap();
    assert_eq!(fallback.stats().targets[0].aside_for, Some(3600 * SECOND));
    let nobody = Fallback::with(Settings::new().longest_retry_after(Duration::ZERO), ["a", "b", "c"]);
    ask(&chain(&nobody, [&a, &b, &b]), "1").await.unwrap();
    assert_eq!(nobody.stats().targets[0].aside_for, None);
    nobody.put_aside("a", Duration::MAX);
    tokio::time::advance(300 * 24 * 3600 * SECOND).await;
    assert!(nobody.stats().targets[0].aside_for.is_some());
}

/// The refusal says when to come back: as soon as one of those that have failed has said.
#[tokio::test(start_paused = true)]
async fn a_refusal_says_when_to_come_back() {
    let ask_three = async |upstreams: [Upstream; 3]| {
        let error = ask(&chain(&abc(), upstreams.each_ref()), "1").await.unwrap_err();
        Rejected::find(&*error).unwrap().retry_after()
    };
    let never = || Upstream::refuses(RejectionKind::ExceedsCapacity, RetryAfter::Never);
    let (after, busy) = (RetryAfter::After, Upstream::busy);
    assert_eq!(ask_three([busy(9 * SECOND), busy(4 * SECOND), busy(6 * SECOND)]).await, after(4 * SECOND));
    assert_eq!(ask_three([never(), Upstream::fails("no"), busy(6 * SECOND)]).await, after(6 * SECOND));
    assert_eq!(ask_three([never(), never(), Upstream::fails("no")]).await, RetryAfter::Unknown);
    assert_eq!(ask_three([never(), never(), never()]).await, RetryAfter::Never);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded() {
    let upstreams = ["one", "two", "three"].map(Upstream::fails);
    let fallback = Fallback::with(Settings::new().attempts(2), ["a", "b", "c"]);
    let error = ask(&chain(&fallback, upstreams.each_ref()), "1").await.unwrap_err();
    let (kind, detail) = exhausted(&error);
    assert_eq!(
        (kind, detail.why(), names(detail)),
        (RejectionKind::Exhausted, Why::Attempts, vec!["a", "b"])
    );
    assert_eq!(upstreams[2].calls(), 0);
}

/// Bad input: a request that can be sent only once is, and the refusal says so.
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_copied_is_sent_once() {
    struct Once(u8);
    let (fails, works) = (
        service_fn(async |_: Once| Err::<u8, BoxError>("no".into())),
        service_fn(async |it: Once| Ok::<_, BoxError>(it.0)),
    );
    let fallback = Fallback::new(["a", "b"]);
    let layer =
        fallback.layer("a").or("b", works).clone_request(|it: &Once| (it.0 > 0).then_some(Once(it.0)));
    let service = layer.layer(fails);
    assert_eq!(service.clone().oneshot(Once(7)).await.unwrap(), 7);
    let error = service.clone().oneshot(Once(0)).await.unwrap_err();
    let (kind, detail) = exhausted(&error);
    assert_eq!((kind, detail.why(), names(detail)), (RejectionKind::Exhausted, Why::NotCloned, vec!["a"]));
}

/// Nobody copies a request for a target that cannot come.
#[tokio::test(start_paused = true)]
async fn the_last_one_gets_the_request_itself() {
    let copies = Arc::new(AtomicUsize::new(0));
    let counted = copies.clone();
    let [a, b] = ["one", "two"].map(Upstream::fails);
    let service = Fallback::new(["a", "b"])
        .layer("a")
        .or("b", b)
        .clone_request(move |request: &String| {
            counted.fetch_add(1, SeqCst);
            Some(request.clone())
        })
        .layer(a);
    ask(&service, "1").await.unwrap_err();
    assert_eq!(copies.load(SeqCst), 1);
}

/// Bad input: a target or a transform that panics has failed.
#[tokio::test(start_paused = true)]
async fn whoever_panics_has_failed() {
    let panics = service_fn(|_: String| async { panic!("in poll") as Result<String, Infallible> });
    let works = Upstream::works("c");
    let service = Fallback::new(["a", "b", "c", "d"])
        .layer("a")
        .or_with("b", works.clone(), |_: String| -> String { panic!("in the transform of {}", "b") })
        .or_value("c", |_: String| -> String { panic!("in the value") })
        .layer(panics);
    let error = ask(&service, "1").await.unwrap_err();
    let attempts = exhausted(&error).1.attempts().iter();
    let messages: Vec<_> =
        attempts.map(|it| it.cause().downcast_ref::<Panicked>().unwrap().message()).collect();
    assert_eq!(messages, ["in poll", "in the transform of b", "in the value"]);
    assert_eq!(works.calls(), 0);
}

/// What a layer is told by may panic: that is the caller's to see, nothing is poisoned, and whatever was under way is gone.
#[tokio::test(start_paused = true)]
async fn whoever_judges_may_panic() {
    let (first, second) = (Upstream::works("a"), Upstream::works("b"));
    let fallback = Fallback::new(["a", "b"]);
    let judges = fallback.layer("a").or("b", second.clone()).classify(failure_if(|text: &String| {
        assert!(!text.contains("judge"), "in the classifier");
        text.contains("fail")
    }));
    let service = judges
        .when("b", |cause| {
            assert!(cause.is_none_or(|cause| !cause.is::<FailedResult>()), "in the condition");
            true
        })
        .layer(first.clone());
    for (request, calls) in [("judge", 1), ("fail", 2)] {
        let call = tokio::spawn({
            let service = service.clone();
            async move { ask(&service, request).await }
        });
        assert!(call.await.unwrap_err().is_panic());
        assert_eq!((first.calls(), second.calls()), (calls, 0));
    }
    assert_eq!(ask(&service, "1").await.unwrap(), "a 1");
    fallback.put_aside("a", SECOND);
    assert_eq!(ask(&service, "2").await.unwrap(), "b 2");
    let stats = fallback.stats();
    assert_eq!((stats.targets[0].failed, stats.targets[1].took_over, stats.exhausted), (1, 1, 0));
}

fn never_ready()
-> impl Service<String, Response = String, Error = BoxError, Future = Ready<Result<String, BoxError>>> + Clone
{
    #[derive(Clone)]
    struct NeverReady;
    impl Service<String> for NeverReady {
        type Response = String;
        type Error = BoxError;
        type Future = Ready<Result<String, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Pending
        }

        fn call(&mut self, _: String) -> Self::Future {
            panic!("it is not ready")
        }
    }
    NeverReady
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_ready_is_skipped() {
    let works = Upstream::works("b");
    let limited = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(1))
        .service(service_fn(async |_: String| -> Result<String, BoxError> { pending().await }));
    let fallback = Fallback::new(["a", "b"]);
    let service = fallback.layer("a").or("b", works).layer(limited);
    let mut holds = Box::pin(service.clone().oneshot("1".to_owned()));
    assert!(holds.as_mut().now_or_never().is_none());
    assert_eq!(ask(&service, "2").await.unwrap(), "b 2");
    assert_eq!(fallback.stats().targets[0].skipped, 1);
    drop(holds);
    assert!(ask(&service, "3").now_or_never().is_none(), "the place is free again");

    let alone = Fallback::new(["a", "b"]);
    let service = alone.layer("a").or("b", never_ready()).layer(never_ready());
    let error = ask(&service, "1").now_or_never().expect("nobody is waited for").unwrap_err();
    let (kind, detail) = exhausted(&error);
    assert_eq!((kind, detail.why()), (RejectionKind::Unhealthy, Why::NoTarget));
    assert_eq!(
        detail.skipped().iter().map(|it| (it.name(), it.is_aside())).collect::<Vec<_>>(),
        [("a", false), ("b", false)]
    );
    assert_eq!(alone.stats().no_target, 1);
}

#[tokio::test(start_paused = true)]
async fn readiness_has_its_time() {
    let begin = Instant::now();
    let settings = Settings::new().ready_within(3 * SECOND);
    let fallback = Fallback::with(settings.clone(), ["a", "b"]);
    let service = fallback.layer("a").or("b", Upstream::works("b")).layer(never_ready());
    assert_eq!(ask(&service, "1").await.unwrap(), "b 1");
    assert_eq!(begin.elapsed(), 3 * SECOND);

    // The request's own time ends it, too, and then nobody is asked any more.
    let begin = Instant::now();
    let b = Upstream::works("b");
    let fallback = Fallback::with(settings.within(2 * SECOND), ["a", "b"]);
    let error = ask(&fallback.layer("a").or("b", b.clone()).layer(never_ready()), "1").await.unwrap_err();
    assert_eq!((exhausted(&error).0, begin.elapsed(), b.calls()), (RejectionKind::Deadline, 2 * SECOND, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_has_its_time() {
    let dropped = Arc::new(());
    let held = dropped.clone();
    let hangs = service_fn(move |_: String| {
        let held = held.clone();
        async move {
            let _held = held;
            pending::<Result<String, BoxError>>().await
        }
    });
    let fallback = Fallback::with(Settings::new().within(5 * SECOND), ["a", "b"]);
    let (begin, b) = (Instant::now(), Upstream::works("b"));
    let service = fallback.layer("a").or("b", b.clone()).layer(hangs);
    let asked = tokio::time::timeout(60 * SECOND, ask(&service, "1")).await;
    let error = asked.expect("it ends").unwrap_err();
    assert_eq!((exhausted(&error).0, begin.elapsed()), (RejectionKind::Deadline, 5 * SECOND));
    assert_eq!((b.calls(), fallback.stats().out_of_time), (0, 1));
    drop(service);
    assert_eq!(Arc::strong_count(&dropped), 1, "the call under way was dropped");
}

/// Pitfall 46: those who fall back do not wait for each other.
#[tokio::test(start_paused = true)]
async fn ten_at_once_take_as_long_as_one() {
    let slow = service_fn(async |request: String| {
        tokio::time::sleep(SECOND / 10).await;
        Ok::<_, BoxError>(request)
    });
    let fallback = Fallback::new(["a", "b"]);
    let service = fallback.layer("a").or("b", slow).layer(Upstream::fails("no"));
    let begin = Instant::now();
    let all = join_all((0..10).map(|n| service.clone().oneshot(n.to_string()))).await;
    assert!(all.into_iter().all(|it| it.is_ok()));
    assert_eq!(begin.elapsed(), SECOND / 10);
}

#[tokio::test(start_paused = true)]
async fn dropped_calls_ask_nobody_else_and_count_nowhere() {
    let hangs = service_fn(async |_: String| pending::<Result<String, BoxError>>().await);
    let (fallback, b) = (Fallback::new(["a", "b"]), Upstream::works("b"));
    let service = fallback.layer("a").or("b", b.clone()).layer(hangs);
    let mut call = Box::pin(service.oneshot("1".to_owned()));
    assert!(call.as_mut().now_or_never().is_none());
    drop(call);
    tokio::time::advance(SECOND).await;
    let stats = fallback.stats();
    assert_eq!((b.calls(), stats.targets[0].failed + stats.targets[1].took_over), (0, 0));
}

#[test]
fn what_can_never_work_cannot_be_built() {
    let panics = |what: &str, build: &dyn Fn()| {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build)).expect_err(what);
        let message = panic.downcast_ref::<String>().cloned();
        let message = message.or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned())).unwrap();
        assert!(message.contains(what), "{message:?} does not say {what:?}");
    };
    let a = || Upstream::works("a");
    panics("needs targets", &|| drop(Fallback::new([""; 0])));
    panics("two targets of a fallback are named \"a\"", &|| drop(Fallback::new(["a", "a"])));
    panics("no target that is named \"z\"", &|| drop(abc().layer("z")));
    panics("no target that is named \"z\"", &|| drop(abc().layer("a").or("z", a())));
    panics("in this layer twice", &|| drop(abc().layer("a").or("b", a()).or("a", a())));
    panics("does not fall back to \"a\"", &|| drop(abc().layer("a").or("b", a()).when("a", |_| true)));
    panics("0 attempts", &|| drop(Fallback::with(Settings::new().attempts(0), ["a"])));
    panics("within no time", &|| drop(Fallback::with(Settings::new().within(Duration::ZERO), ["a"])));
    panics("if a call needs 2s", &|| {
        drop(Fallback::with(Settings::new().within(SECOND).min_attempt(2 * SECOND), ["a"]));
    });
    panics("at most 64", &|| {
        let names: Vec<_> = (0..65).map(|n| n.to_string()).collect();
        let rest = names[1..].iter().map(|name| (name.as_str(), a()));
        drop(Fallback::new(names.iter().map(String::as_str)).layer("0").or_each(rest));
    });
}
