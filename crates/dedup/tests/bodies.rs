//! Responses whose bodies are shared while they run.
#![cfg(feature = "http")]

mod upstream;

use std::{
    convert::Infallible,
    future::ready,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc::channel,
    },
    task::{Context, Poll, Waker},
    thread::spawn,
    time::Duration,
};

use bartizan_core::{Rejected, RejectionKind};
use bartizan_dedup::{Dedup, Frames, Key, Playback, Replay, RequestKey, Served, Share, Verdict};
use bytes::{Buf, Bytes, buf::Chain};
use futures_util::FutureExt;
use http::{Request, Response, response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};

use upstream::{
    Answer, Head, Inner, Part, SECOND, Shared, data, frame, kept, ok, served, status, told, waits,
};

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
    inner.send(0, [Part::Data("a"), Part::Trailer("x-checksum", "1")]);
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

/// Who waits for it would fall behind as likely as not, though he reads as fast as he can.
#[test]
fn one_that_is_known_to_be_too_long_is_joined_by_nobody() {
    let heads: [(Head, bool); 3] = [
        (|head| head.header("content-length", "20"), true),
        // A frame counts for more than its data.
        (|head| head.header("content-length", "100"), false),
        (|head| head.status(503).header("content-length", "1000"), false),
    ];
    for (head, is_shared) in heads {
        let dedup = Dedup::sharing(Frames::new().served().max_body(100), Replay::ttl(SECOND));
        let inner = Inner::default();
        let [first, second] = [0; 2].map(|_| inner.try_ask(&dedup, head));
        let [second, first] = [second, first].map(|answer| answer.now_or_never().unwrap().unwrap());
        let expected = if is_shared { (1, Served::Collapsed) } else { (2, Served::Bypassed) };
        assert_eq!((inner.calls(), served(&second), served(&first)), (expected.0, expected.1, Served::Miss));
        assert_eq!(dedup.stats().in_flight, usize::from(is_shared));
    }
    let verdict = |head: response::Builder, body: &'static str| {
        let frames = Frames::new().max_body(100);
        let recording = frames.record(head.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap());
        Share::<Response<Full<Bytes>>>::verdict(&frames, &recording)
    };
    let long = "x".repeat(100).leak();
    assert_eq!(verdict(Response::builder(), long), Verdict::Private, "the body knows it itself");
    let head = verdict(Response::builder().header("content-length", "1000"), "");
    assert!(matches!(head, Verdict::Keep(_)), "of what is there at once nothing is to come");
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

/// Whoever has the new answer in place of a stale one has all of it.
#[tokio::test(start_paused = true)]
async fn a_body_that_callers_have_fetched_ends_with_the_last_who_reads_it() {
    for readers in [1, 2] {
        let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND).refresh_by_callers();
        let (dedup, inner) = (told(replay), Inner::default());
        let mut answer = inner.ask(&dedup, ok);
        inner.end();
        assert!(frame(&mut answer).is_none());
        advance(SECOND).await;
        let mut new: Vec<_> = (0..readers).map(|_| inner.ask(&dedup, ok)).collect();
        inner.send(1, [Part::Data("a")]);
        new.iter_mut().for_each(|new| assert_eq!(data(new), "a"));
        assert!(!inner.is_dropped(1));
        drop(new);
        assert!(inner.is_dropped(1), "{readers} have gone");
        assert!(matches!(served(&inner.ask(&dedup, ok)), Served::Miss), "another one begins");
    }
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

/// The task that fetches a new answer reads its body too, since nobody else does.
#[tokio::test(start_paused = true)]
async fn a_stream_is_revalidated_to_its_end() {
    let dedup = told(Replay::ttl(SECOND).stale_while_revalidate(SECOND));
    let inner = Inner::default();
    inner.give(&dedup, ok, "old");
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

/// Nobody reads it, so it is read no further than it may be kept.
#[tokio::test(start_paused = true)]
async fn a_revalidation_that_gets_too_long_ends() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND);
    let dedup = Dedup::sharing(Frames::new().served().max_body(1_000), replay);
    let inner = Inner::default();
    inner.give(&dedup, ok, "old");
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

type Other = Arc<Mutex<Option<Playback<Nosies>>>>;

/// Bytes of a kind of their own, which look how much of another body is left when they go.
struct Nosy(Other);

impl AsRef<[u8]> for Nosy {
    fn as_ref(&self) -> &[u8] {
        &[0; 600]
    }
}

impl Drop for Nosy {
    fn drop(&mut self) {
        if let Some(other) = self.0.lock().unwrap().as_ref() {
            other.size_hint();
        }
    }
}

/// A body of four of those.
struct Nosies(u8, Other);

impl Body for Nosies {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0 += 1;
        let nosy = Nosy(self.1.clone());
        Poll::Ready((self.0 <= 4).then(|| Ok(Frame::data(Bytes::from_owner(nosy)))))
    }
}

/// Data may be of a kind of its own, and what it does when it is dropped is not ours to know.
#[test]
fn data_is_dropped_where_no_lock_is_held() {
    let (done, is_done) = channel();
    // If it waited for a lock that it holds itself, it would do so for ever.
    spawn(move || {
        let other = Other::default();
        let dedup = Dedup::sharing(Frames::new().max_body(1_000), Replay::none());
        let service = dedup.layer(|_: &()| Some(1)).layer(service_fn({
            let other = Arc::clone(&other);
            move |()| ready(Ok::<_, Infallible>(Response::new(Nosies(0, other.clone()))))
        }));
        let [mut one, two] =
            [0; 2].map(|_| service.clone().call(()).now_or_never().unwrap().unwrap().into_body());
        *other.lock().unwrap() = Some(two);
        while one.frame().now_or_never().unwrap().is_some() {}
        let two = other.lock().unwrap().take().expect("it was put there");
        done.send(two.size_hint().lower()).unwrap();
    });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(10)), Ok(2_400));
}
