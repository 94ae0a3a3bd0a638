//! Which responses are shared and kept, and how long, as they say themselves.
#![cfg(feature = "http")]

mod upstream;

use std::time::Duration;

use bartizan_dedup::{Dedup, Frames, Recording, Replay, Served, Share, Verdict};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Response, StatusCode, header::AGE, response};
use http_body_util::{BodyExt, Full};
use tokio::time::advance;

use upstream::{Head, Inner, Part, SECOND, data, frame, kept, ok, served, status, told};

/// gRPC says at the end how a call went, after a status of 200.
#[test]
fn an_answer_whose_trailers_tell_of_an_error_is_not_kept() {
    for (status, kept) in [("0", 1), ("14", 0), ("5", 0), ("?", 0)] {
        let (dedup, inner) = (told(Replay::ttl(SECOND).cache_when(|_| true)), Inner::default());
        let mut answers = [0; 2].map(|_| inner.ask(&dedup, ok));
        inner.send(0, [Part::Data("a"), Part::Trailer("grpc-status", status)]);
        for answer in &mut answers {
            assert_eq!(data(answer), "a");
            let trailers = answer.body_mut().frame().now_or_never().unwrap().unwrap().unwrap();
            assert_eq!(trailers.into_trailers().unwrap()["grpc-status"], status);
        }
        assert_eq!(dedup.stats().in_flight, kept, "nobody joins what failed");
        inner.end();
        answers.iter_mut().for_each(|answer| assert!(frame(answer).is_none()));
        assert_eq!((dedup.stats().in_flight, dedup.stats().entries), (0, kept), "{status}");
    }
}

/// One that fails before it has an answer has its status in the head.
#[tokio::test(start_paused = true)]
async fn an_answer_whose_head_tells_of_an_error_is_not_kept() {
    let heads: [(Head, Served); 5] = [
        (|head| head.header("grpc-status", "0"), Served::Miss),
        (|head| head.header("grpc-status", "14"), STALE),
        (|head| head.header("grpc-status", "8").header("set-cookie", "session=1"), STALE),
        (|head| head.header("grpc-status", ""), STALE),
        // What is not found now is not found later either.
        (|head| head.header("grpc-status", "5"), Served::Miss),
    ];
    for (head, expected) in heads {
        let replay = Replay::ttl(SECOND).stale_if_error(SECOND).cache_when(|_| true);
        let (dedup, inner) = (told(replay), Inner::default());
        let mut answer = inner.ask(&dedup, head);
        inner.end();
        assert!(frame(&mut answer).is_none());
        let is_good = answer.headers()["grpc-status"] == "0";
        assert_eq!(dedup.stats().entries, usize::from(is_good));

        dedup.clear();
        let mut good = inner.ask(&dedup, ok);
        inner.end();
        assert!(frame(&mut good).is_none());
        advance(SECOND).await;
        assert_eq!(served(&inner.ask(&dedup, head)), expected);
    }
}

/// Of a second that has passed.
const STALE: Served = Served::Stale { age: SECOND, stale_for: Duration::ZERO };

#[test]
fn a_judge_sees_the_trailers() {
    let is_whole = |recording: &Recording| recording.trailers().is_some_and(|all| all["x-checksum"] == "1");
    let dedup = told(Replay::ttl(SECOND).cache_when(is_whole));
    let inner = Inner::default();
    for (parts, kept) in [
        (vec![], 0),
        (vec![Part::Trailer("x-checksum", "0")], 0),
        (vec![Part::Data("a"), Part::Trailer("x-checksum", "1")], 1),
    ] {
        let mut answer = inner.ask(&dedup, ok);
        inner.send(inner.calls() - 1, parts);
        inner.end();
        while answer.body_mut().frame().now_or_never().unwrap().is_some() {}
        assert_eq!(dedup.stats().entries, kept);
    }
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
        inner.give(&dedup, head, "a");
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
    inner.give(&dedup, ok, "a");
    advance(SECOND).await;
    let mut stale = inner.ask(&dedup, |head| head.status(503).header("cache-control", "no-store"));
    assert_eq!((stale.status(), status(&stale)), (StatusCode::OK, "bartizan; hit; ttl=-0"));
    assert!(matches!(served(&stale), Served::Stale { .. }));
    assert_eq!(data(&mut stale), "a");
    assert!(inner.is_dropped(1), "the failure is not read");
    advance(SECOND).await;
    assert_eq!(inner.ask(&dedup, |head| head.status(503)).status(), 503);
}

/// What may fare better a while later is no answer, and nothing that was good is lost to it.
#[tokio::test(start_paused = true)]
async fn a_server_that_asks_to_come_later_has_failed() {
    let heads: [(Head, bool); 12] = [
        (|head| head.status(408), true),
        (|head| head.status(425), true),
        (|head| head.status(429).header("retry-after", "30"), true),
        (|head| head.status(500), true),
        (|head| head.status(502), true),
        (|head| head.status(503).header("set-cookie", "session=1"), true),
        (|head| head.status(504), true),
        (|head| head.status(520), true),
        (|head| head.status(529), true),
        // These say that it will never be otherwise.
        (|head| head.status(404), false),
        (|head| head.status(501), false),
        (|head| head.status(505), false),
    ];
    for (head, fails) in heads {
        let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND).stale_if_error(4 * SECOND);
        let (dedup, inner) = (told(replay.cache_when(|_| true)), Inner::default());
        inner.give(&dedup, ok, "a");
        advance(SECOND).await;
        assert!(matches!(served(&inner.ask(&dedup, head)), Served::Stale { .. }));
        advance(SECOND).await;
        inner.end();
        advance(Duration::ZERO).await;
        assert_eq!(inner.calls(), 2, "a task has asked");
        let answer = inner.ask(&dedup, head);
        assert_eq!(answer.status() == 200, fails, "{}", answer.status());
        assert_eq!(matches!(served(&answer), Served::Stale { .. }), fails);
    }
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

/// So that many answers without bodies have a bound.
#[test]
fn heads_take_room_too() {
    let size = |head: response::Builder| {
        let frames = Frames::new();
        let recording = frames.record(head.body(Full::<Bytes>::default()).unwrap());
        Share::<Response<Full<Bytes>>>::complete(&frames, &recording).expect("all is there")
    };
    let bare = size(Response::builder());
    assert!(bare > 0);
    let small = size(Response::builder().header("x-a", "b"));
    assert!(small > bare + 4, "a field takes more than its letters");
    let large = size(Response::builder().header("x-a", "b".repeat(1_001)));
    assert_eq!(large - small, 1_000);
    let twice = size(Response::builder().header("x-a", "b").header("x-a", "b"));
    assert_eq!(twice - small, small - bare, "each value counts");

    let (dedup, inner) = (kept(), Inner::default());
    inner.give(&dedup, |head| head.header("x-a", "b"), "data");
    assert!(dedup.stats().bytes > (small + "data".len()) as u64, "of a stream as well");
    assert!(dedup.stats().bytes < (small + "data".len() + 100) as u64);
}

#[test]
fn heads_do_not_count_for_what_is_held_of_a_body() {
    let dedup = Dedup::sharing(Frames::new().served().max_body(100), Replay::ttl(SECOND));
    let inner = Inner::default();
    inner.give(&dedup, |head| head.header("x-large", "x".repeat(1_000)), "data");
    assert_eq!(dedup.stats().entries, 1);
}

/// A structured field's integer has no more than 15 digits.
#[test]
fn an_answer_that_is_kept_for_ever_says_so_in_few_digits() {
    let (dedup, inner) = (told(Replay::ttl(Duration::MAX)), Inner::default());
    let mut answer = inner.ask(&dedup, ok);
    inner.end();
    assert!(frame(&mut answer).is_none());
    let hit = inner.ask(&dedup, ok);
    let (_, ttl) = status(&hit).rsplit_once("ttl=").expect("a hit has a time");
    assert!((1..=15).contains(&ttl.len()), "{ttl}");
}
