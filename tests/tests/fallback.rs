//! Every way in which a stream can fail, against the mock; and what the fallback layer allocates, exactly.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::{BoxError, Budget, Rejected, RejectionKind};
use bartizan_fallback::{
    Attempt, CommitLayer, Exhausted, Fallback, FirstChunk, FirstEvent, LlmEvents, NotBegun, ServedBy,
    Settings,
};
use bartizan_provider::{
    Class, Error, Limits, Provider, RetryPolicy,
    mock::{Mock, Script},
};
use bartizan_tests::alloc::{Counted, Counting, allocations};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SECOND: Duration = Duration::from_secs(1);

type Streamed = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
type Stack = BoxCloneSyncService<Request<Bytes>, Response<Streamed>, BoxError>;

fn question() -> Request<Bytes> {
    let body = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"Hello"}]}"#;
    Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

/// What the second mock says to it.
const ANSWER: &str = "You said: Hello";

/// Two mocks, the first of which does as it is told, each below a layer that waits for content; and the fallback over them.
struct Pair {
    mocks: [Mock; 2],
    fallback: Fallback,
    service: Stack,
}

impl Pair {
    /// Over the mocks' own bytes.
    fn raw(script: Script) -> Self {
        Self::over(script, |mock| {
            let inner = mock.service().map_request(|request: Request<Bytes>| request.map(Full::new));
            boxed(CommitLayer::new(LlmEvents::new()).within(SECOND).layer(inner))
        })
    }

    /// Over providers, which know errors by their class and end every stream.
    fn provided(script: Script) -> Self {
        Self::over(script, |mock| {
            let limits = Limits { first_frame: SECOND, idle: SECOND, ..Limits::default() };
            let provider = Provider::new(mock.service(), "http://mock.example/v1").unwrap().limits(limits);
            let typed = LlmEvents::new()
                .error(|data| Error::of_event(data, &[]).map_or_else(|| "an error".into(), BoxError::from));
            boxed(CommitLayer::new(typed).within(SECOND).layer(provider))
        })
    }

    fn over(script: Script, target: impl Fn(&Mock) -> Stack) -> Self {
        let mocks = [Mock::new(), Mock::new()];
        mocks[0].script_always(script);
        let fallback = Fallback::with(Settings::new().within(60 * SECOND), ["first", "second"]);
        let layer = fallback.http_layer("first").or("second", target(&mocks[1])).served_by();
        let service = boxed(layer.layer(target(&mocks[0])));
        Self { mocks, fallback, service }
    }

    fn calls(&self) -> [u64; 2] {
        [self.mocks[0].calls(), self.mocks[1].calls()]
    }

    async fn ask(&self) -> Result<Response<Streamed>, BoxError> {
        self.service.clone().oneshot(question()).await
    }
}

fn boxed<S, B>(service: S) -> Stack
where
    S: Service<Request<Bytes>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let service = service
        .map_response(|response: Response<B>| response.map(|body| body.map_err(Into::into).boxed_unsync()));
    Stack::new(service.map_err(Into::into))
}

/// What the words of a stream make, and the error at its end if there is one.
async fn read(response: Response<Streamed>) -> (String, Option<BoxError>) {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let error = loop {
        match body.frame().await {
            Some(Ok(frame)) => bytes.extend_from_slice(frame.data_ref().map_or(&[], |data| data)),
            Some(Err(error)) => break Some(error),
            None => break None,
        }
    };
    let text = String::from_utf8(bytes).unwrap();
    let words = text.split("\n\n").filter_map(|event| {
        let event: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ")?).ok()?;
        event["choices"][0]["delta"]["content"].as_str().map(ToOwned::to_owned)
    });
    (words.collect(), error)
}

fn events<const N: usize>(frames: [&str; N]) -> Script {
    let frames = frames.map(|data| format!("data: {data}\n\n"));
    Script::new().header("content-type", "text/event-stream").frames(frames)
}

const ROLE: &str = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
const WORD: &str = r#"{"choices":[{"index":0,"delta":{"content":"Hel"}}]}"#;
const ERROR: &str = r#"{"error":{"message":"The engine is overloaded","type":"server_error","code":"engine_overloaded_error"}}"#;

/// Everything that can go wrong before the first content, by what has come until then.
fn before_content() -> Vec<(&'static str, Script)> {
    let new = Script::new;
    vec![
        ("error instead of a head", new().fail()),
        ("503 instead of a head", new().status(503)),
        ("404 instead of a head", new().status(404)),
        ("cut after the head", new().fail_after(0)),
        ("ended after the head", new().end_after(0)),
        ("stalled after the head", new().hang_after(0)),
        ("garbage after the head", new().garbage_after(0)),
        ("error event after the head", events([ERROR])),
        ("[DONE] after the head", events(["[DONE]"])),
        ("cut after the role", new().fail_after(1)),
        ("ended after the role", new().end_after(1)),
        ("stalled after the role", new().hang_after(1)),
        ("garbage after the role", new().garbage_after(1)),
        ("error event after the role", events([ROLE, ERROR])),
        ("[DONE] after the role", events([ROLE, "[DONE]"])),
        ("cut within the first content", events([ROLE, WORD]).chop(7).fail_after(1)),
        ("comments without end", events([ROLE]).pace(SECOND / 9).frames(vec![": still here\n\n"; 1_000])),
        ("more than may be held back", {
            let comment = format!(": {}\n\n", "x".repeat(60_000));
            let word = format!("data: {WORD}\n\ndata: [DONE]\n\n");
            events([]).frames([comment.clone(), comment, word])
        }),
    ]
}

/// Pitfalls 40 and 41: nothing of it has been seen, so somebody else is asked; the caller sees one whole answer.
#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_before_its_content_is_asked_for_elsewhere() {
    for over in [Pair::raw, Pair::provided] {
        for (what, script) in before_content() {
            let pair = over(script);
            let begin = Instant::now();
            let response = pair.ask().await.unwrap_or_else(|error| panic!("{what}: {error}"));
            let served = response.extensions().get::<ServedBy>().unwrap().clone();
            assert_eq!((response.status().as_u16(), served.name()), (200, "second"), "{what}");
            assert_eq!(served.attempts().iter().map(Attempt::name).collect::<Vec<_>>(), ["first"], "{what}");
            assert!(begin.elapsed() <= SECOND, "{what}: {:?}", begin.elapsed());
            let (words, error) = read(response).await;
            assert_eq!((words.as_str(), error.map(|error| error.to_string())), (ANSWER, None), "{what}");
            assert_eq!(pair.calls(), [1, 1], "{what}");
            // What failed was let go of there and then.
            assert_eq!(pair.mocks[0].running(), 0, "{what}");
            let failed: Vec<_> = pair.fallback.stats().targets.iter().map(|it| it.failed).collect();
            assert_eq!(failed, [1, 0], "{what}");
        }
    }
}

/// One that does not come at all is the provider's to end, or the request's own time.
#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_takes_the_requests_time() {
    let pair = Pair::raw(Script::new().hang());
    let error = pair.ask().await.unwrap_err();
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!((rejected.kind(), pair.calls()), (RejectionKind::Deadline, [1, 0]));
    assert_eq!(pair.mocks[0].running(), 0);
}

/// After content an error is the caller's: it is seen, and nobody else is asked.
#[tokio::test(start_paused = true)]
async fn a_stream_that_fails_after_its_content_fails_for_the_caller() {
    let ways = [
        ("cut", Script::new().fail_after(3)),
        ("ended", Script::new().end_after(3)),
        ("stalled", Script::new().hang_after(3)),
        ("garbage", Script::new().garbage_after(3)),
        ("error event", events([ROLE, WORD, ERROR])),
    ];
    for (what, script) in ways {
        let pair = Pair::provided(script);
        let response = pair.ask().await.unwrap();
        assert_eq!(response.extensions().get::<ServedBy>().unwrap().name(), "first", "{what}");
        let (words, error) = read(response).await;
        assert!(
            !words.is_empty() && ANSWER.replace("You said: ", "You said: Hel").contains(&*words)
                || words == "Hel",
            "{what}: {words}"
        );
        let error = error.unwrap_or_else(|| panic!("{what}: the stream just ended"));
        assert!(Error::find(&*error).is_some(), "{what}: {error}");
        assert_eq!(pair.calls(), [1, 0], "{what}");
    }
    // Of bare bytes the layer itself sees those that end.
    for script in [Script::new().fail_after(3), Script::new().end_after(3), events([ROLE, WORD])] {
        let pair = Pair::raw(script);
        let (words, error) = read(pair.ask().await.unwrap()).await;
        assert!(!words.is_empty() && error.is_some(), "{words}");
        assert_eq!(pair.calls(), [1, 0]);
    }
}

/// What the first target says, all of it and byte for byte, however it is cut.
#[tokio::test(start_paused = true)]
async fn what_was_held_back_is_not_lost() {
    for over in [Pair::raw, Pair::provided] {
        for bytes in [1, 7, 10_000] {
            let pair = over(Script::new().chop(bytes).usage(7, 5));
            let (words, error) = read(pair.ask().await.unwrap()).await;
            assert_eq!((words.as_str(), error.is_none(), pair.calls()), (ANSWER, true, [1, 0]), "{bytes}");
        }
        // An answer that is no stream passes as it is.
        let pair = over(Script::new());
        let plain = question().map(|_| Bytes::from_static(br#"{"model":"m","messages":[]}"#));
        let response = pair.service.clone().oneshot(plain).await.unwrap();
        assert!(response.into_body().collect().await.unwrap().to_bytes().starts_with(b"{"));
    }
}

/// Causes keep their class, so nobody has to read messages.
#[tokio::test(start_paused = true)]
async fn causes_keep_their_class() {
    let class_of = async |script: Script| {
        let pair = Pair::provided(script.clone());
        pair.mocks[1].script_always(script);
        let error = pair.ask().await.unwrap_err();
        assert_eq!(pair.calls(), [1, 1]);
        let attempts = Exhausted::find(&*error).unwrap().attempts();
        assert!(attempts.iter().all(|it| it.cause().is::<NotBegun>()), "{error}");
        Error::find(attempts[1].cause())
            .unwrap_or_else(|| panic!("{error}: {:?}", attempts[1].cause()))
            .class()
    };
    assert_eq!(class_of(Script::new().fail_after(0)).await, Class::Upstream);
    assert_eq!(class_of(Script::new().garbage_after(1)).await, Class::Malformed);
    assert_eq!(class_of(Script::new().hang_after(0)).await, Class::Timeout);
    assert_eq!(class_of(events([ROLE, ERROR])).await, Class::Overloaded);
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_lets_go_of_the_stream() {
    let pair = Pair::provided(Script::new().hang_after(1));
    assert!(pair.ask().now_or_never().is_none());
    assert_eq!((pair.mocks[0].cancelled(), pair.calls()), (1, [1, 0]));
}

/// Other ways to commit.
#[tokio::test(start_paused = true)]
async fn first_events_and_first_chunks() {
    let status_of = async |script: Script, layer: &dyn Fn(&Mock) -> Stack| {
        let pair = Pair::over(script, layer);
        let response = pair.ask().await.unwrap();
        (response.extensions().get::<ServedBy>().unwrap().name().to_owned(), read(response).await.1.is_some())
    };
    let inner = |mock: &Mock| mock.service().map_request(|request: Request<Bytes>| request.map(Full::new));
    let event = |mock: &Mock| boxed(CommitLayer::new(FirstEvent).within(SECOND).layer(inner(mock)));
    let chunk = |mock: &Mock| boxed(CommitLayer::new(FirstChunk).within(SECOND).layer(inner(mock)));
    let second = ("second".to_owned(), false);
    let first_broken = ("first".to_owned(), true);
    for script in [Script::new().fail_after(0), Script::new().hang_after(0)] {
        assert_eq!(status_of(script.clone(), &event).await, second);
        assert_eq!(status_of(script, &chunk).await, second);
    }
    assert_eq!(status_of(events([]).frames([": hello\n\n"]), &event).await, second);
    assert_eq!(status_of(events([ROLE, WORD]).fail_after(1), &event).await, first_broken);
    assert_eq!(status_of(Script::new().fail_after(1), &chunk).await, first_broken);
}

/// Three upstreams which all do as `script` says, each retried, in one fallback.
fn retried(settings: Settings, retries: u32, shared: bool, script: &Script) -> (Stack, [Mock; 3]) {
    let mocks = [Mock::new(), Mock::new(), Mock::new()];
    mocks.iter().for_each(|mock| mock.script_always(script.clone()));
    let target = |mock: &Mock| {
        let provider = Provider::new(mock.service(), "http://mock.example/v1").unwrap();
        let commit = CommitLayer::new(LlmEvents::new()).layer(provider);
        boxed(ServiceBuilder::new().retry(RetryPolicy::new().retries(retries)).service(commit))
    };
    let fallback = Fallback::with(settings, ["a", "b", "c"]);
    let layer = fallback.http_layer("a").or_each([("b", target(&mocks[1])), ("c", target(&mocks[2]))]);
    let first = target(&mocks[0]);
    (if shared { boxed(layer.shared_budget().layer(first)) } else { boxed(layer.layer(first)) }, mocks)
}

fn all_calls(mocks: &[Mock; 3]) -> u64 {
    mocks.iter().map(Mock::calls).sum()
}

/// Pitfall 42: retries within fallbacks multiply, unless they have one budget: the upstreams count.
#[tokio::test(start_paused = true)]
async fn retries_and_fallbacks_together_never_exceed_the_budget() {
    for script in [Script::new().status(503), Script::new().fail(), Script::new().fail_after(1)] {
        for retries in 0..4 {
            // With no budget of their own each target has its retries.
            let (service, mocks) = retried(Settings::new(), retries, false, &script);
            assert!(service.oneshot(question()).await.is_err());
            assert_eq!(all_calls(&mocks), 3 * (1 + u64::from(retries)));

            for budget in 1..10_u32 {
                let most = u64::from(budget).min(3 * (1 + u64::from(retries)));
                let (service, mocks) = retried(Settings::new(), retries, false, &script);
                let mut request = question();
                request.extensions_mut().insert(Budget::new(budget));
                let error = service.oneshot(request).await.unwrap_err();
                assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::Exhausted);
                assert_eq!(all_calls(&mocks), most, "{retries} retries, a budget of {budget}");

                // The fallback's own settings, shared.
                let (service, mocks) = retried(Settings::new().attempts(budget), retries, true, &script);
                assert!(service.oneshot(question()).await.is_err());
                assert_eq!(all_calls(&mocks), most, "{retries} retries, {budget} attempts");

                // The other way round: the fallback begins anew each time.
                let (service, mocks) = retried(Settings::new(), 0, false, &script);
                let service =
                    ServiceBuilder::new().retry(RetryPolicy::new().retries(retries)).service(service);
                let mut request = question();
                request.extensions_mut().insert(Budget::new(budget));
                assert!(service.oneshot(request).await.is_err());
                assert_eq!(all_calls(&mocks), most, "{retries} retries outside, a budget of {budget}");
            }
        }
    }
}

/// What all are short of is time: no retry, and no other target, begins after it.
#[tokio::test(start_paused = true)]
async fn retries_and_fallbacks_together_have_one_time() {
    let script = Script::new().status(503).header("retry-after", "4");
    let (begin, time) = (Instant::now(), 10 * SECOND);
    let (service, mocks) = retried(Settings::new().within(time), 9, true, &script);
    assert!(service.oneshot(question()).await.is_err());
    // At 0, 4 and 8 seconds the first one; and what is left of the time then is enough for the others once.
    assert_eq!(mocks.each_ref().map(Mock::calls), [3, 1, 1]);
    assert_eq!(begin.elapsed(), 8 * SECOND);

    let (begin, hang) = (Instant::now(), Script::new().hang());
    let (service, mocks) = retried(Settings::new().within(time), 9, true, &hang);
    let error = service.oneshot(question()).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::Deadline);
    assert_eq!((begin.elapsed(), all_calls(&mocks)), (time, 1));
}

/// A retry that succeeds asks nobody else; what cannot succeed is asked for elsewhere at once.
#[tokio::test(start_paused = true)]
async fn retries_before_fallbacks() {
    let (service, mocks) = retried(Settings::new(), 2, true, &Script::new());
    mocks[0].script(Script::new().status(503));
    let response = service.clone().oneshot(question()).await.unwrap();
    assert_eq!(read(response).await.0, ANSWER);
    assert_eq!(mocks.each_ref().map(Mock::calls), [2, 0, 0]);

    mocks[0].script_always(Script::new().status(401));
    let begin = Instant::now();
    let response = service.oneshot(question()).await.unwrap();
    assert_eq!((read(response).await.0.as_str(), begin.elapsed()), (ANSWER, Duration::ZERO));
    assert_eq!(mocks.each_ref().map(Mock::calls), [3, 1, 0]);
}

/// A request, which knows how often it was copied.
struct Copied(Arc<AtomicUsize>, Vec<u8>);

impl Clone for Copied {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Self(self.0.clone(), self.1.clone())
    }
}

type Inner = tower::util::ServiceFn<fn(Copied) -> Ready<Result<usize, Infallible>>>;

fn inner() -> Inner {
    service_fn(|request| ready(Ok(request.1.len())))
}

/// A target that says when it is touched.
#[derive(Debug)]
struct Untouched(Arc<AtomicUsize>);

impl Clone for Untouched {
    fn clone(&self) -> Self {
        self.0.fetch_add(1, Relaxed);
        Self(self.0.clone())
    }
}

impl Service<Copied> for Untouched {
    type Response = usize;
    type Error = Infallible;
    type Future = Ready<Result<usize, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.fetch_add(1, Relaxed);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Copied) -> Self::Future {
        panic!("nobody asks it")
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nobody waits here"),
    }
}

fn call<S, Req>(mut service: S, request: Req) -> (S::Response, Counted)
where
    S: Service<Req, Error = BoxError>,
{
    let mut cx = Context::from_waker(Waker::noop());
    let (result, counted) = allocations(|| {
        assert!(service.poll_ready(&mut cx).is_ready());
        now(service.call(request))
    });
    (result.unwrap_or_else(|error| panic!("{error}")), counted)
}

/// The request is copied once, and nobody but the first target is touched.
#[tokio::test(start_paused = true)]
async fn a_call_that_the_first_target_answers_allocates_a_copy_of_the_request() {
    for (settings, allocated) in
        [(Settings::new(), 1), (Settings::new().within(SECOND), 1), (Settings::new().attempts(1), 0)]
    {
        let (copies, touched) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let fallback = Fallback::with(settings, ["a", "b", "c"]);
        let untouched = || Untouched(touched.clone());
        let layer = fallback.layer("a").or("b", untouched()).or_each([("c", untouched())]);
        let service = layer.layer(inner());
        let before = touched.load(Relaxed);
        let (answer, counted) = call(service, Copied(copies.clone(), vec![0; 100]));
        assert_eq!((answer, copies.load(Relaxed) as u64), (100, allocated));
        assert_eq!(counted.allocated, allocated, "the copy, and nothing else");
        assert_eq!(touched.load(Relaxed), before, "others are left alone");
    }
}

/// While somebody is left alone, too.
#[tokio::test(start_paused = true)]
async fn a_target_that_is_left_alone_costs_no_allocation() {
    let fallback = Fallback::new(["a", "b"]);
    fallback.put_aside("b", SECOND);
    let service = fallback.layer("a").or("b", inner()).layer(inner());
    let (_, counted) = call(service, Copied(Arc::default(), Vec::new()));
    assert_eq!(counted.allocated, 0, "an empty vector takes nothing to copy");
}

#[test]
fn http_says_who_has_answered_only_if_asked() {
    type Http = fn(Request<Bytes>) -> Ready<Result<Response<Full<Bytes>>, Infallible>>;
    let answer: Http = |request| ready(Ok(Response::new(Full::new(request.into_body()))));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let fallback = Fallback::new(["a", "b"]);
    let layer = fallback.http_layer("a").or("b", service_fn(answer));
    let request = || Request::new(Bytes::from_static(b"a body"));
    let (response, counted) = call(layer.clone().layer(service_fn(answer)), request());
    assert!(response.extensions().get::<ServedBy>().is_none());
    assert_eq!(counted.allocated, 0, "a request without headers takes nothing to copy");

    // What extensions take for their first entry.
    let served = layer.served_by();
    let (response, _) = call(served.layer(service_fn(answer)), request());
    let mark = response.extensions().get::<ServedBy>().unwrap().clone();
    assert_eq!(mark.name(), "a");
    let mut extensions = http::Extensions::new();
    let (_, of_extensions) = allocations(|| extensions.insert(mark));
    let (_, counted) = call(served.layer(service_fn(answer)), request());
    assert_eq!(counted.allocated, of_extensions.allocated);
}

/// A budget in the extensions binds the fallback, whoever put it there; and the fallback puts one there if told to.
#[tokio::test(start_paused = true)]
async fn budgets_of_requests() {
    let calls = Arc::new(AtomicUsize::new(0));
    let lent = Arc::new(AtomicUsize::new(0));
    let (counted, left) = (calls.clone(), lent.clone());
    let fails = service_fn(move |request: Request<()>| {
        counted.fetch_add(1, Relaxed);
        left.store(request.extensions().get::<Budget>().map_or(99, |it| it.left() as usize), Relaxed);
        ready(Err::<Response<String>, BoxError>("no".into()))
    });
    let fallback = Fallback::with(Settings::new().attempts(3), ["a", "b", "c", "d"]);
    let rest = || ["b", "c", "d"].map(|name| (name, fails.clone()));
    let ask = async |service: BoxCloneSyncService<Request<()>, _, BoxError>, budget: Option<Budget>| {
        let mut request = Request::new(());
        budget.into_iter().for_each(|budget| drop(request.extensions_mut().insert(budget)));
        calls.store(0, Relaxed);
        let error: BoxError = service.oneshot(request).await.map(|_: Response<_>| ()).unwrap_err();
        (calls.load(Relaxed), lent.load(Relaxed), Rejected::find(&*error).unwrap().kind())
    };
    let plain = BoxCloneSyncService::new(fallback.http_layer("a").or_each(rest()).layer(fails.clone()));
    let shared = BoxCloneSyncService::new(
        fallback.http_layer("a").or_each(rest()).shared_budget().layer(fails.clone()),
    );
    use RejectionKind::{Deadline, Exhausted};
    assert_eq!(ask(plain.clone(), None).await, (3, 99, Exhausted));
    assert_eq!(ask(shared.clone(), None).await, (3, 0, Exhausted));
    for service in [plain.clone(), shared] {
        assert_eq!(ask(service.clone(), Some(Budget::new(2))).await, (2, 0, Exhausted));
        assert_eq!(ask(service, Some(Budget::new(9))).await, (3, 6, Exhausted));
    }
    let over = Budget::until(9, Instant::now().into_std());
    assert_eq!(ask(plain, Some(over)).await.2, Deadline);
}
