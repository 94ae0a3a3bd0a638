//! Responses whose bodies are shared while they run.
#![cfg(feature = "http")]

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_dedup::{Dedup, Frames, Key, Playback, Recording, Replay, RequestKey, Served, Share, Verdict};
use bytes::{Buf, Bytes, buf::Chain};
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header::AGE, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::{
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::advance,
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

enum Part {
    Data(&'static str),
    Trailer(&'static str),
    Cut,
    Panic,
}

/// A body of which a test is the upstream.
struct Upstream(UnboundedReceiver<Part>);

impl Body for Upstream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.poll_recv(cx).map(|part| {
            Some(match part? {
                Part::Data(data) => Ok(Frame::data(Bytes::from(data))),
                Part::Trailer(value) => {
                    let mut trailers = HeaderMap::new();
                    trailers.insert("x-checksum", HeaderValue::from_static(value));
                    Ok(Frame::trailers(trailers))
                }
                Part::Cut => Err("cut".into()),
                Part::Panic => panic!("the body panics"),
            })
        })
    }
}

type Shared = Dedup<String, Recording, Frames>;
type Answer = Response<Playback<Upstream>>;
type Head = fn(response::Builder) -> response::Builder;

/// The upstreams of all calls so far.
#[derive(Clone, Default)]
struct Inner(Arc<Mutex<Vec<UnboundedSender<Part>>>>);

impl Inner {
    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn send(&self, n: usize, parts: impl IntoIterator<Item = Part>) {
        let upstream = &self.0.lock().unwrap()[n];
        parts.into_iter().for_each(|part| upstream.send(part).map_err(drop).expect("somebody reads"));
    }

    /// The upstream of the last call ends.
    fn end(&self) {
        let (other, _) = unbounded_channel();
        let mut all = self.0.lock().unwrap();
        *all.last_mut().expect("there was a call") = other;
    }

    fn is_dropped(&self, n: usize) -> bool {
        self.0.lock().unwrap()[n].is_closed()
    }

    fn ask(&self, dedup: &Shared, head: Head) -> Answer {
        self.try_ask(dedup, head).now_or_never().expect("the head comes at once").expect("the call succeeds")
    }

    fn try_ask(&self, dedup: &Shared, head: Head) -> impl Future<Output = Result<Answer, BoxError>> + use<> {
        let (all, layer) = (self.0.clone(), dedup.layer(|_: &Request<()>| Some("k".to_owned())));
        let mut service = layer.layer(service_fn(move |_| {
            let (upstream, body) = unbounded_channel();
            all.lock().unwrap().push(upstream);
            async move { Ok::<_, BoxError>(head(Response::builder()).body(Upstream(body)).unwrap()) }
        }));
        // It asks now, though it is polled later.
        service.call(Request::new(()))
    }
}

fn ok(head: response::Builder) -> response::Builder {
    head.header("content-type", "text/event-stream")
}

/// Its responses carry [`Served`].
fn told<K: Eq>(replay: Replay<Recording>) -> Dedup<K, Recording, Frames> {
    Dedup::sharing(Frames::new().served(), replay)
}

fn kept() -> Shared {
    told(Replay::ttl(SECOND))
}

/// The next frame, if it is there.
fn frame(answer: &mut Answer) -> Option<Result<Bytes, BoxError>> {
    let frame = answer.body_mut().frame().now_or_never().expect("it is there")?;
    Some(frame.map(|frame| frame.into_data().expect("data")))
}

fn data(answer: &mut Answer) -> Bytes {
    frame(answer).expect("more is to come").expect("all is well")
}

fn waits(answer: &mut Answer) -> bool {
    answer.body_mut().frame().now_or_never().is_none()
}

fn status(answer: &Answer) -> &str {
    answer.headers()["cache-status"].to_str().unwrap()
}

fn served(answer: &Answer) -> Served {
    *answer.extensions().get().expect("every answer says where it comes from")
}

#[test]
fn extensions_say_where_an_answer_comes_from_where_that_is_wanted() {
    for (frames, expected) in [(Frames::new(), None), (Frames::new().served(), Some(Served::Miss))] {
        let answer = Inner::default().ask(&Dedup::sharing(frames, Replay::none()), ok);
        assert_eq!(answer.extensions().get().copied(), expected);
        assert_eq!(status(&answer), "bartizan; fwd=miss");
    }
}

#[test]
fn whoever_joins_gets_all_frames_so_far_and_the_rest_as_it_comes() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut first = inner.ask(&dedup, ok);
    assert_eq!((served(&first), status(&first)), (Served::Miss, "bartizan; fwd=miss"));
    inner.send(0, [Part::Data("a"), Part::Data("b")]);
    assert_eq!(data(&mut first), "a");
    let mut second = inner.ask(&dedup, ok);
    assert_eq!((served(&second), status(&second)), (Served::Collapsed, "bartizan; fwd=miss; collapsed"));
    assert_eq!(second.headers()["content-type"], "text/event-stream");
    assert_eq!([data(&mut second), data(&mut second)], ["a", "b"], "it drives what nobody has read yet");
    assert!(waits(&mut second));
    assert_eq!(data(&mut first), "b");
    assert!(waits(&mut first));

    inner.send(0, [Part::Data(""), Part::Data("c")]);
    for answer in [&mut first, &mut second] {
        assert_eq!([data(answer), data(answer)], ["", "c"]);
    }
    assert_eq!((dedup.stats().in_flight, dedup.stats().entries), (1, 0));
    inner.end();
    assert!(frame(&mut first).is_none());
    assert_eq!((dedup.stats().in_flight, dedup.stats().entries), (0, 1), "now it is kept");
    assert!(frame(&mut second).is_none());

    let mut replay = inner.ask(&dedup, ok);
    assert!(matches!(served(&replay), Served::Hit { .. }));
    let frames: Vec<_> = std::iter::from_fn(|| frame(&mut replay)).map(Result::unwrap).collect();
    assert_eq!(frames, ["a", "b", "", "c"], "the frames as they came");
    assert_eq!(inner.calls(), 1);
}

#[test]
fn readers_wake_each_other() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut answers = [0; 3].map(|_| inner.ask(&dedup, ok));
    let mut reads = answers.each_mut().map(|answer| task::spawn(answer.body_mut().frame()));
    reads.iter_mut().for_each(|read| assert_pending!(read.poll()));
    inner.send(0, [Part::Data("a")]);
    let [first, mut second, mut third] = reads;
    assert!(first.is_woken() && second.is_woken() && third.is_woken());
    drop(first);
    for read in [&mut third, &mut second] {
        let frame = assert_ready!(read.poll()).unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "a");
    }
}

#[test]
fn a_reader_who_goes_leaves_no_waker_behind() {
    struct Task;
    impl std::task::Wake for Task {
        fn wake(self: Arc<Self>) {}
    }
    let (dedup, inner) = (kept(), Inner::default());
    let read = |answer: &mut Answer, waker: &Waker| {
        assert!(Pin::new(answer.body_mut()).poll_frame(&mut Context::from_waker(waker)).is_pending());
    };
    let [mut first, mut second] = [0; 2].map(|_| inner.ask(&dedup, ok));
    let task = Arc::new(Task);
    read(&mut first, &task.clone().into());
    assert!(Arc::strong_count(&task) > 1, "it waits");
    read(&mut second, Waker::noop());
    assert_eq!(Arc::strong_count(&task), 2, "it waits with the other one, and the body does not have it");
    drop(first);
    assert_eq!(Arc::strong_count(&task), 1);
    // Alone with the body, which has its waker and goes with it.
    drop(second);
    let mut alone = inner.ask(&dedup, ok);
    read(&mut alone, &task.clone().into());
    drop(alone);
    assert_eq!(Arc::strong_count(&task), 1);
}

#[test]
fn the_first_reader_may_go_and_when_all_have_gone_upstream_sees_it() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut first = inner.ask(&dedup, ok);
    let mut second = inner.ask(&dedup, ok);
    inner.send(0, [Part::Data("a")]);
    assert_eq!(data(&mut first), "a");
    drop(first);
    inner.send(0, [Part::Data("b")]);
    assert_eq!([data(&mut second), data(&mut second)], ["a", "b"]);
    let third = inner.ask(&dedup, ok);
    drop(second);
    assert!(!inner.is_dropped(0));
    drop(third);
    assert!(inner.is_dropped(0));
    assert_eq!(dedup.stats().in_flight, 0);
    drop(inner.ask(&dedup, ok));
    assert_eq!(inner.calls(), 2, "the key is free");
}

/// A caller who joined and was not polled yet holds the body, though all who read it have gone.
#[test]
fn a_stream_stays_while_somebody_waits_for_its_head() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut first = inner.ask(&dedup, ok);
    let second = inner.try_ask(&dedup, ok);
    inner.send(0, [Part::Data("a"), Part::Data("b")]);
    assert_eq!(data(&mut first), "a");
    drop(first);
    let mut second = second.now_or_never().unwrap().unwrap();
    assert_eq!([data(&mut second), data(&mut second)], ["a", "b"]);
    assert_eq!((inner.calls(), served(&second)), (1, Served::Collapsed));
}

#[test]
fn a_stream_that_breaks_off_fails_for_all_and_is_not_kept() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut answers = [0; 2].map(|_| inner.ask(&dedup, ok));
    inner.send(0, [Part::Data("a"), Part::Cut]);
    for answer in &mut answers {
        assert_eq!(data(answer), "a");
        let error = frame(answer).unwrap().unwrap_err();
        assert_eq!(error.source().unwrap().to_string(), "cut");
        assert!(frame(answer).is_none(), "after an error there is nothing");
    }
    let stats = dedup.stats();
    assert_eq!((stats.in_flight, stats.entries), (0, 0));
    drop(inner.ask(&dedup, ok));
    assert_eq!(inner.calls(), 2);
}

#[test]
fn a_body_that_is_shorter_than_its_head_says_is_not_whole() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut answer = inner.ask(&dedup, |head| head.header("content-length", "3"));
    inner.send(0, [Part::Data("ab")]);
    inner.end();
    assert_eq!(data(&mut answer), "ab");
    assert!(frame(&mut answer).unwrap().is_err());
    assert_eq!(dedup.stats().entries, 0);
}

/// Not even if the body says itself that this was all.
#[test]
fn a_body_whose_length_is_not_what_its_head_says_is_not_kept() {
    for (length, whole) in [("3", true), ("2", false), ("4", false)] {
        let dedup = told(Replay::ttl(SECOND));
        let service = dedup.layer(|_: &()| Some(1)).layer(service_fn(move |()| async move {
            let head = Response::builder().header("content-length", length);
            Ok::<_, Infallible>(head.body(Full::new(Bytes::from_static(b"all"))).unwrap())
        }));
        let mut body = service.oneshot(()).now_or_never().unwrap().unwrap().into_body();
        assert_eq!(body.frame().now_or_never().unwrap().unwrap().unwrap().into_data().unwrap(), "all");
        assert_eq!(body.is_end_stream(), whole);
        let end = body.frame().now_or_never().unwrap();
        assert_eq!((end.is_none(), end.is_some_and(|end| end.is_err())), (whole, !whole), "{length}");
        assert_eq!((dedup.stats().entries, dedup.stats().in_flight), (usize::from(whole), 0));
    }
}

#[test]
fn the_last_byte_ends_a_body_whose_length_its_head_says() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut answer = inner.ask(&dedup, |head| head.header("content-length", "2"));
    inner.send(0, [Part::Data("ab")]);
    assert_eq!(data(&mut answer), "ab");
    assert!(answer.body().is_end_stream());
    assert_eq!(dedup.stats().entries, 1, "servers ask for no more");
    drop(inner.ask(&dedup, |head| head.header("content-length", "0")));

    let empty = told(Replay::ttl(SECOND));
    assert!(inner.ask(&empty, |head| head.header("content-length", "0")).body().is_end_stream());
    assert_eq!(empty.stats().entries, 1);
}

#[test]
fn trailers_are_shared_too() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut answers = [0; 2].map(|_| inner.ask(&dedup, ok));
    inner.send(0, [Part::Data("a"), Part::Trailer("1")]);
    inner.end();
    for answer in answers.iter_mut().chain([&mut inner.ask(&dedup, ok)]) {
        assert_eq!(data(answer), "a");
        let trailers = answer.body_mut().frame().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(trailers.into_trailers().unwrap()["x-checksum"], "1");
        assert!(frame(answer).is_none());
    }
}

/// What is dropped gives back all that it weighed: a reader may stay behind by as much at the end as at the beginning.
#[test]
fn a_long_body_holds_as_much_at_its_end_as_at_its_beginning() {
    let dedup = Dedup::sharing(Frames::new().served().max_body(1_000), Replay::ttl(SECOND));
    let inner = Inner::default();
    let [mut fast, mut slow] = [0; 2].map(|_| inner.ask(&dedup, ok));
    for n in 0..200 {
        inner.send(0, [Part::Data("x")]);
        assert_eq!(data(&mut fast), "x");
        if n >= 8 {
            assert_eq!(data(&mut slow), "x", "after {n}");
        }
    }
}

#[test]
fn a_body_that_is_too_long_goes_on_unshared_and_a_slow_reader_is_told() {
    let dedup = Dedup::sharing(Frames::new().served().max_body(1_000), Replay::ttl(SECOND));
    let inner = Inner::default();
    let [mut fast, mut slow] = [0; 2].map(|_| inner.ask(&dedup, ok));
    let long = "x".repeat(600).leak();
    inner.send(0, [Part::Data("a"), Part::Data(long), Part::Data(long), Part::Data(long)]);
    assert_eq!([data(&mut fast), data(&mut slow)], ["a", "a"]);
    for _ in 0..3 {
        assert_eq!(data(&mut fast), long.as_bytes());
    }
    let error = frame(&mut slow).unwrap().unwrap_err();
    assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::Lagged));
    assert!(frame(&mut slow).is_none());

    let mut other = inner.ask(&dedup, ok);
    assert_eq!((inner.calls(), served(&other)), (2, Served::Miss), "nobody joins it");
    inner.send(0, [Part::Data("b")]);
    inner.send(1, [Part::Data("c")]);
    assert_eq!([data(&mut fast), data(&mut other)], ["b", "c"]);
    inner.end();
    assert!(frame(&mut other).is_none());
    assert_eq!(dedup.stats().entries, 1);
}

#[test]
fn what_a_request_was_known_by_can_be_forgotten() {
    let dedup = told::<Key>(Replay::ttl(SECOND));
    let key = RequestKey::scoped_by(|_: &Request<&'static str>| Some("acme"));
    let request = || Request::new("");
    let known = *key.of(&request()).unwrap().key();
    let service = dedup
        .layer(move |request: &Request<&'static str>| key.of(request))
        .layer(service_fn(async |_| Ok::<_, Infallible>(Response::new(Full::new(Bytes::new())))));
    let ask = || service.clone().oneshot(request()).now_or_never().unwrap().unwrap();
    drop(ask());
    assert_eq!(dedup.stats().entries, 1);
    dedup.invalidate(&known);
    assert_eq!(ask().extensions().get(), Some(&Served::Miss));
}

/// He had no turn before the body's beginning was gone, so he has his own.
#[test]
fn who_joins_a_body_that_has_lost_its_beginning_makes_a_call_of_his_own() {
    let dedup = Dedup::sharing(Frames::new().served().max_body(1_000), Replay::ttl(SECOND));
    let inner = Inner::default();
    let [first, second] = [0; 2].map(|_| inner.try_ask(&dedup, ok));
    let mut first = first.now_or_never().unwrap().unwrap();
    let long = "x".repeat(600).leak();
    inner.send(0, [Part::Data(long), Part::Data(long)]);
    assert_eq!([data(&mut first), data(&mut first)], [long.as_bytes(); 2]);

    let mut second = second.now_or_never().unwrap().unwrap();
    assert_eq!((inner.calls(), served(&second)), (2, Served::Bypassed));
    inner.send(1, [Part::Data("b")]);
    assert_eq!(data(&mut second), "b");
    assert_eq!((dedup.stats().misses, dedup.stats().collapsed), (2, 0));
}

/// And one who could have the new answer has the stale one then.
#[tokio::test(start_paused = true)]
async fn who_passes_a_body_that_has_lost_its_beginning_is_served_the_stale_one() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND).refresh_by_callers();
    let dedup = Dedup::sharing(Frames::new().served().max_body(1_000), replay);
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, ok);
    inner.end();
    assert!(frame(&mut answer).is_none());
    advance(SECOND).await;
    let mut new = inner.ask(&dedup, ok);
    assert_eq!(served(&new), Served::Miss);
    let passes = inner.try_ask(&dedup, ok);
    let long = "x".repeat(600).leak();
    inner.send(1, [Part::Data(long), Part::Data(long)]);
    assert_eq!([data(&mut new), data(&mut new)], [long.as_bytes(); 2]);
    assert!(matches!(served(&passes.now_or_never().unwrap().unwrap()), Served::Stale { .. }));
    assert_eq!(inner.calls(), 2);
}

#[test]
fn nobody_joins_a_failure_of_which_all_is_there() {
    let (dedup, inner) = (kept(), Inner::default());
    let mut first = inner.ask(&dedup, |head| head.status(503));
    inner.send(0, [Part::Data("no")]);
    let mut second = inner.ask(&dedup, ok);
    assert_eq!((second.status().as_u16(), served(&second)), (503, Served::Collapsed));
    inner.end();
    for answer in [&mut first, &mut second] {
        assert_eq!(data(answer), "no");
        assert!(frame(answer).is_none());
    }
    assert_eq!(served(&inner.ask(&dedup, ok)), Served::Miss, "though others have it still");
}

#[test]
fn one_that_was_too_long_is_not_kept_when_it_ends() {
    let dedup = Dedup::sharing(Frames::new().served().max_body(100), Replay::ttl(SECOND));
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, ok);
    inner.send(0, [Part::Data("x".repeat(200).leak())]);
    inner.end();
    data(&mut answer);
    assert!(frame(&mut answer).is_none());
    assert_eq!((dedup.stats().entries, dedup.stats().in_flight), (0, 0));
}

#[test]
fn a_body_that_panics_does_so_for_who_polls_it() {
    let (dedup, inner) = (kept(), Inner::default());
    let [mut first, mut second] = [0; 2].map(|_| inner.ask(&dedup, ok));
    inner.send(0, [Part::Panic]);
    catch_unwind(AssertUnwindSafe(|| frame(&mut first).is_some())).unwrap_err();
    let mut third = inner.ask(&dedup, ok);
    assert_eq!(inner.calls(), 2, "nobody joins it");
    assert!(waits(&mut third));
    let error = frame(&mut second).unwrap().unwrap_err();
    assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::Panicked));
}

/// Whoever waited for an answer that is for another one alone asks himself.
#[test]
fn what_is_private_is_for_the_one_who_asked() {
    let heads: [Head; 13] = [
        |head| head.header("cache-control", "private, max-age=60"),
        |head| head.header("cache-control", "no-store"),
        |head| head.header("set-cookie", "session=1"),
        |head| head.header("vary", "accept-encoding, *"),
        |head| head.header("vary", "accept-encoding").header("vary", "Accept-Language"),
        |head| head.header("vary", "accept-encoding").header("content-encoding", "gzip"),
        |head| head.header("vary", "origin").header("access-control-allow-origin", "https://a.example"),
        |head| head.header("vary", HeaderValue::from_bytes(b"accept-\xeb").unwrap()),
        |head| head.status(StatusCode::PARTIAL_CONTENT),
        |head| head.status(StatusCode::SWITCHING_PROTOCOLS),
        |head| head.header("cache-control", HeaderValue::from_bytes(b"private, by=\"Zo\xeb\"").unwrap()),
        |head| head.status(503).header("set-cookie", "session=1"),
        |head| head.status(500).header("cache-control", "private"),
    ];
    for head in heads {
        let (dedup, inner) = (kept(), Inner::default());
        let [first, second] = [0; 2].map(|_| inner.try_ask(&dedup, head));
        assert_eq!((dedup.stats().misses, dedup.stats().collapsed), (1, 1));
        // The one who follows drives, and learns that it was not for him.
        let second = second.now_or_never().unwrap().unwrap();
        assert_eq!((inner.calls(), served(&second)), (2, Served::Bypassed));
        assert_eq!((dedup.stats().misses, dedup.stats().collapsed), (2, 0), "now there are two calls");
        let mut first = first.now_or_never().unwrap().unwrap();
        assert_eq!((inner.calls(), served(&first)), (2, Served::Miss));
        inner.send(0, [Part::Data("a")]);
        assert_eq!(data(&mut first), "a");
        assert_eq!(dedup.stats().in_flight, 0, "nobody joins it");
        drop(first);
        assert_eq!(dedup.stats().entries, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn what_may_be_kept_is_for_the_upstream_to_say() {
    let heads: [(Head, Option<u64>); 11] = [
        (ok, Some(1)),
        (|head| head.status(404), None),
        (|head| head.header("cache-control", "no-cache"), None),
        (|head| head.header("cache-control", "max-age=0"), None),
        (|head| head.header("cache-control", "max-age=60"), Some(1)),
        (|head| head.header("cache-control", "max-age=60").header("age", "60"), None),
        (|head| head.status(503), None),
        (|head| head.header("expires", "0"), None),
        (|head| head.header("expires", "0").header("cache-control", "max-age=60"), Some(1)),
        (|head| head.header("vary", "Accept-Encoding,"), Some(1)),
        (|head| head.header("vary", "origin").header("access-control-allow-origin", "*"), Some(1)),
    ];
    for (head, kept_for) in heads {
        let (dedup, inner) = (kept(), Inner::default());
        let mut answer = inner.ask(&dedup, head);
        inner.end();
        assert!(frame(&mut answer).is_none());
        assert_eq!(dedup.stats().entries as u64, kept_for.unwrap_or(0));
        assert_eq!(dedup.stats().in_flight, 0);
    }
    let dedup = told(Replay::ttl(60 * SECOND));
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, |head| head.header("cache-control", "max-age=5").header("age", "3"));
    inner.end();
    assert!(frame(&mut answer).is_none());
    advance(SECOND).await;
    let hit = inner.ask(&dedup, ok);
    assert_eq!((status(&hit), &hit.headers()[AGE]), ("bartizan; hit; ttl=1", &"4".parse().unwrap()));
    advance(SECOND).await;
    assert_eq!(served(&inner.ask(&dedup, ok)), Served::Miss);
}

#[tokio::test(start_paused = true)]
async fn what_must_be_revalidated_is_not_served_stale() {
    let replay = || Replay::ttl(SECOND).stale_while_revalidate(SECOND).stale_if_error(SECOND);
    let heads: [(Head, bool); 4] = [
        (ok, true),
        (|head| head.header("cache-control", "must-revalidate"), false),
        (|head| head.header("cache-control", "max-age=60, proxy-revalidate"), false),
        (|head| head.header("cache-control", "s-maxage=60"), false),
    ];
    for (head, may_be_stale) in heads {
        let (dedup, inner) = (told(replay().refresh_by_callers()), Inner::default());
        let mut answer = inner.ask(&dedup, head);
        inner.send(0, [Part::Data("a")]);
        inner.end();
        data(&mut answer);
        assert!(frame(&mut answer).is_none());
        assert!(matches!(served(&inner.ask(&dedup, ok)), Served::Hit { .. }));
        advance(SECOND).await;
        let answer = inner.ask(&dedup, |head| head.status(503));
        assert_eq!(matches!(served(&answer), Served::Stale { .. }), may_be_stale);
    }
}

/// What the key has in it, a response may vary with.
#[test]
fn a_response_varies_with_what_is_in_the_key() {
    let frames = Frames::new().keyed_by(&["accept-language", "x-tier"]);
    for (vary, is_shared) in
        [("Accept-Language", true), ("x-tier, accept-language", true), ("x-tier, cookie", false)]
    {
        let verdict = |head: response::Builder| {
            let response = head.header("vary", vary).body(Full::new(Bytes::new())).unwrap();
            let recording = frames.record(response);
            Share::<Response<Full<Bytes>>>::verdict(&frames, &recording)
        };
        let is_kept = matches!(verdict(Response::builder()), Verdict::Keep(_));
        assert_eq!(is_kept, is_shared, "{vary}");
    }
}

#[test]
fn an_upstream_that_says_no_cache_by_custom_is_kept_where_that_is_known() {
    let no_cache: Head = |head| head.header("cache-control", "no-cache");
    for (frames, kept) in [(Frames::new(), 0), (Frames::new().keep_no_cache(), 1)] {
        let (dedup, inner) = (Dedup::sharing(frames, Replay::ttl(SECOND)), Inner::default());
        let mut answer = inner.ask(&dedup, no_cache);
        inner.end();
        assert!(frame(&mut answer).is_none());
        assert_eq!(dedup.stats().entries, kept);
    }
}

/// Whoever judges answers himself may keep what is no success, and yet no longer than the upstream allows.
#[tokio::test(start_paused = true)]
async fn no_judgement_keeps_what_the_upstream_forbids() {
    let heads: [(Head, [usize; 2]); 5] = [
        (|head| head.status(404), [1, 1]),
        (|head| head.status(404).header("cache-control", "max-age=1"), [1, 0]),
        (|head| head.status(404).header("cache-control", "no-cache"), [0, 0]),
        (|head| head.header("cache-control", "no-cache"), [0, 0]),
        (|head| head.header("cache-control", "max-age=60").header("age", "60"), [0, 0]),
    ];
    for (head, kept) in heads {
        let dedup = told(Replay::ttl(60 * SECOND).cache_when(|_| true));
        let inner = Inner::default();
        let mut answer = inner.ask(&dedup, head);
        inner.end();
        assert!(frame(&mut answer).is_none());
        let now = dedup.stats().entries;
        advance(SECOND).await;
        assert_eq!([now, dedup.stats().entries], kept);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_upstream_is_answered_with_what_was_kept() {
    let dedup = told(Replay::ttl(SECOND).stale_if_error(SECOND));
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, ok);
    inner.send(0, [Part::Data("a")]);
    inner.end();
    data(&mut answer);
    assert!(frame(&mut answer).is_none());
    advance(SECOND).await;
    let mut stale = inner.ask(&dedup, |head| head.status(503).header("cache-control", "no-store"));
    assert_eq!((stale.status(), status(&stale)), (StatusCode::OK, "bartizan; hit; ttl=-0"));
    assert!(matches!(served(&stale), Served::Stale { .. }));
    assert_eq!(data(&mut stale), "a");
    assert!(inner.is_dropped(1), "the failure is not read");
    advance(SECOND).await;
    assert_eq!(inner.ask(&dedup, |head| head.status(503)).status(), 503);
}

/// The task that fetches a new answer reads its body too, since nobody else does.
#[tokio::test(start_paused = true)]
async fn a_stream_is_revalidated_to_its_end() {
    let dedup = told(Replay::ttl(SECOND).stale_while_revalidate(SECOND));
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, ok);
    inner.send(0, [Part::Data("old")]);
    inner.end();
    data(&mut answer);
    assert!(frame(&mut answer).is_none());
    advance(SECOND).await;
    assert_eq!(data(&mut inner.ask(&dedup, ok)), "old");
    advance(Duration::ZERO).await;
    inner.send(1, [Part::Data("new")]);
    assert_eq!(data(&mut inner.ask(&dedup, ok)), "old");
    inner.end();
    advance(Duration::ZERO).await;
    let mut fresh = inner.ask(&dedup, ok);
    assert!(matches!(served(&fresh), Served::Hit { .. }));
    assert_eq!(data(&mut fresh), "new");
    assert_eq!(inner.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_revalidation_that_fails_leaves_what_is_kept() {
    let heads: [Head; 2] =
        [|head| head.status(503), |head| head.status(503).header("set-cookie", "session=1")];
    for (head, by_callers) in heads.into_iter().flat_map(|head| [(head, false), (head, true)]) {
        let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND);
        let dedup = told(if by_callers { replay.refresh_by_callers() } else { replay });
        let inner = Inner::default();
        let mut answer = inner.ask(&dedup, ok);
        inner.end();
        assert!(frame(&mut answer).is_none());
        advance(SECOND).await;
        for calls in [2, 3] {
            assert!(matches!(served(&inner.ask(&dedup, head)), Served::Stale { .. }));
            advance(Duration::ZERO).await;
            assert_eq!((inner.calls(), inner.is_dropped(calls - 1)), (calls, true), "nobody reads it");
        }
        assert_eq!(dedup.stats().stale, 2);
    }
}

/// Nobody reads it, so it is read no further than it may be kept.
#[tokio::test(start_paused = true)]
async fn a_revalidation_that_gets_too_long_ends() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND);
    let dedup = Dedup::sharing(Frames::new().served().max_body(1_000), replay);
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, ok);
    inner.send(0, [Part::Data("old")]);
    inner.end();
    data(&mut answer);
    assert!(frame(&mut answer).is_none());
    advance(SECOND).await;
    assert_eq!(data(&mut inner.ask(&dedup, ok)), "old");
    advance(Duration::ZERO).await;
    inner.send(1, [Part::Data("x".repeat(2_000).leak())]);
    advance(Duration::ZERO).await;
    assert!(inner.is_dropped(1));
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
}

/// The answer is judged once, when all of it is there; a judge who panics keeps nobody else from his answer.
#[test]
fn a_judge_who_panics_leaves_the_key_free() {
    let judged = Arc::new(AtomicUsize::new(0));
    let judge = judged.clone();
    let dedup = told(Replay::ttl(SECOND).cache_when(move |_| {
        assert!(judge.fetch_add(1, SeqCst) > 0, "the judge panics");
        true
    }));
    let inner = Inner::default();
    let [mut first, mut second] = [0; 2].map(|_| inner.ask(&dedup, ok));
    inner.end();
    catch_unwind(AssertUnwindSafe(|| frame(&mut first).is_some())).unwrap_err();
    assert_eq!(dedup.stats().in_flight, 0, "nobody joins it");
    assert!(frame(&mut second).is_none());
    assert_eq!((judged.load(SeqCst), dedup.stats().entries), (1, 0));

    let mut others = [0; 3].map(|_| inner.ask(&dedup, ok));
    inner.end();
    others.iter_mut().for_each(|other| assert!(frame(other).is_none()));
    assert_eq!((inner.calls(), judged.load(SeqCst), dedup.stats().entries), (2, 2, 1));
}

#[test]
fn an_answer_is_kept_only_if_what_it_says_may_be() {
    let whole = |recording: &Recording| recording.data().concat().ends_with(b"[DONE]");
    let dedup = told(Replay::ttl(SECOND).cache_when(whole));
    let inner = Inner::default();
    for (n, (last, kept)) in [("length", 0), ("[DONE]", 1)].into_iter().enumerate() {
        let mut answer = inner.ask(&dedup, ok);
        inner.send(n, [Part::Data("a"), Part::Data(last)]);
        inner.end();
        assert_eq!([data(&mut answer), data(&mut answer)], ["a", last]);
        assert!(frame(&mut answer).is_none());
        assert_eq!(dedup.stats().entries, kept);
    }
}

#[test]
fn a_body_that_is_there_at_once_keeps_its_length() {
    let dedup = told(Replay::ttl(SECOND));
    let service = dedup.layer(|_: &()| Some(1)).layer(service_fn(async |()| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"all"))))
    }));
    for _ in 0..2 {
        let answer = service.clone().oneshot(()).now_or_never().unwrap().unwrap();
        let mut body = answer.into_body();
        assert_eq!(body.size_hint().exact(), Some(3));
        assert!(!body.is_end_stream());
        assert_eq!(body.frame().now_or_never().flatten().unwrap().unwrap().into_data().unwrap(), "all");
        assert!(body.is_end_stream());
        assert_eq!(body.size_hint().exact(), SizeHint::with_exact(0).exact());
    }
    assert_eq!((dedup.stats().misses, dedup.stats().hits), (1, 1));
}

/// A body that gives its bytes in two frames, and knows how many are left.
struct Counted(Chain<Bytes, Bytes>);

impl Body for Counted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.0.chunk().len();
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.0.copy_to_bytes(length)))))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0.remaining() as u64)
    }
}

/// What is to come, as the body knew it when its last frame came, and what is there already.
#[test]
fn each_reader_knows_how_much_is_left_for_him() {
    let dedup = told(Replay::ttl(SECOND));
    let service = dedup.layer(|_: &()| Some(1)).layer(service_fn(async |()| {
        let body = Bytes::from_static(b"ab").chain(Bytes::from_static(b"cde"));
        Ok::<_, Infallible>(Response::new(Counted(body)))
    }));
    let [mut one, other] =
        [0; 2].map(|_| service.clone().call(()).now_or_never().unwrap().unwrap().into_body());
    for left in [5, 3, 0] {
        assert_eq!(one.size_hint().exact(), Some(left));
        assert_eq!(other.size_hint().exact(), Some(5));
        assert_eq!(one.frame().now_or_never().unwrap().is_some(), left > 0);
    }
}

#[test]
fn one_without_a_key_passes_as_it_is() {
    let dedup: Shared = kept();
    let service = dedup.layer(|_: &()| None::<String>).layer(service_fn(async |()| {
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"all"))))
    }));
    let answer = service.oneshot(()).now_or_never().unwrap().unwrap();
    assert_eq!(answer.headers()["cache-status"], "bartizan; fwd=bypass");
    assert_eq!(answer.extensions().get(), Some(&Served::Bypassed));
    assert_eq!(answer.into_body().collect().now_or_never().unwrap().unwrap().to_bytes(), "all");
}
