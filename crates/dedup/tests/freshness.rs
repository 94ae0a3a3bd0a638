//! How long responses are kept, and how old they are (RFC 9111, section 4.2).
#![cfg(feature = "http")]

mod upstream;

use std::time::{Duration, SystemTime};

use bartizan_dedup::{Recording, Replay};
use http::{HeaderValue, header::AGE, response};
use tokio::time::advance;

use upstream::{Answer, Head, Inner, Part, SECOND, Shared, data, frame, ok, status, told};

/// So long ago by the clock on the wall, in a header.
fn ago(time: Duration) -> HeaderValue {
    httpdate::fmt_http_date(SystemTime::now() - time).parse().unwrap()
}

const HOUR: Duration = Duration::from_secs(3_600);

/// Answers are kept for an hour if their heads allow it.
fn for_an_hour() -> Shared {
    told(Replay::ttl(HOUR))
}

/// Asks, and reads an answer that is empty; how many are kept then.
fn kept_of(dedup: &Shared, inner: &Inner, head: Head) -> usize {
    let mut answer = inner.ask(dedup, head);
    inner.end();
    assert!(frame(&mut answer).is_none());
    dedup.stats().entries
}

fn age(answer: &Answer) -> u64 {
    answer.headers()[AGE].to_str().unwrap().parse().unwrap()
}

#[test]
fn of_several_times_the_least_counts() {
    let heads: [(Head, usize); 6] = [
        (|head| head.header("cache-control", "max-age=0").header("cache-control", "max-age=60"), 0),
        (|head| head.header("cache-control", "max-age=60, max-age=0"), 0),
        (|head| head.header("cache-control", "s-maxage=0, max-age=60, s-maxage=60"), 0),
        (|head| head.header("cache-control", "max-age=0, s-maxage=60"), 1),
        (|head| head.header("cache-control", "max-age=0, by=\"a, s-maxage=60\""), 0),
        (|head| head.header("cache-control", "max-age=60, by=\"no-store, max-age=0\""), 1),
    ];
    for (head, expected) in heads {
        let head_of = head(response::Builder::new());
        assert_eq!(kept_of(&for_an_hour(), &Inner::default(), head), expected, "{head_of:?}");
    }
}

/// Whoever had it before may not have said for how long.
#[tokio::test(start_paused = true)]
async fn an_answer_is_as_old_as_its_date_says() {
    let old: [Head; 4] = [
        |head| head.header("date", ago(HOUR)).header("cache-control", "max-age=60"),
        |head| head.header("date", ago(HOUR)).header("age", "3").header("cache-control", "max-age=60"),
        |head| head.header("date", ago(2 * HOUR)).header("expires", ago(HOUR)),
        |head| head.header("date", ago(HOUR)).header("cache-control", "s-maxage=3600"),
    ];
    for head in old {
        assert_eq!(kept_of(&for_an_hour(), &Inner::default(), head), 0);
    }
    let none: Head = |head| head.header("date", ago(100 * SECOND));
    let later: Head = |head| head.header("date", ago(100 * SECOND)).header("age", "200");
    let ahead: Head = |head| head.header("date", ago(Duration::ZERO)).header("expires", "0");
    for (head, old) in [(none, Some(100)), (later, Some(200)), (ok, Some(0)), (ahead, None)] {
        let (dedup, inner) = (for_an_hour(), Inner::default());
        assert_eq!(kept_of(&dedup, &inner, head), usize::from(old.is_some()));
        let Some(old) = old else { continue };
        advance(SECOND).await;
        let hit = inner.ask(&dedup, ok);
        assert_eq!(
            status(&hit),
            "bartizan; hit; ttl=3599",
            "the handle's own time counts from when it was there"
        );
        // The clock on the wall goes on.
        assert!((old + 1..old + 10).contains(&age(&hit)), "{}", age(&hit));
    }
    let (dedup, inner) = (for_an_hour(), Inner::default());
    let head: Head = |head| head.header("date", ago(HOUR)).header("cache-control", "max-age=4200");
    assert_eq!(kept_of(&dedup, &inner, head), 1);
    advance(590 * SECOND).await;
    assert_eq!(dedup.stats().entries, 1);
    advance(11 * SECOND).await;
    assert_eq!(dedup.stats().entries, 0);
}

/// What the upstream allows counts from when its head came, and so does the age.
#[tokio::test(start_paused = true)]
async fn an_answer_gets_older_while_its_body_comes() {
    let head: Head = |head| head.header("cache-control", "max-age=10").header("age", "2");
    for (takes, kept_for) in [(0, Some(8)), (5, Some(3)), (8, None), (60, None)] {
        let (dedup, inner) = (for_an_hour(), Inner::default());
        let [mut first, mut second] = [0; 2].map(|_| inner.ask(&dedup, head));
        inner.send(0, [Part::Data("a")]);
        assert_eq!(data(&mut first), "a");
        advance(takes * SECOND).await;
        inner.send(0, [Part::Data("b")]);
        inner.end();
        for answer in [&mut second, &mut first] {
            while frame(answer).is_some() {}
        }
        assert_eq!(dedup.stats().entries, usize::from(kept_for.is_some()), "{takes}");
        let Some(kept_for) = kept_for else { continue };
        advance(2 * SECOND).await;
        let hit = inner.ask(&dedup, ok);
        assert_eq!(status(&hit), format!("bartizan; hit; ttl={}", kept_for - 2));
        assert_eq!(age(&hit), 2 + u64::from(takes) + 2);
    }
}

/// Also for whoever judges answers himself.
#[tokio::test(start_paused = true)]
async fn no_judgement_makes_a_slow_answer_younger() {
    let dedup: Shared = told(Replay::ttl(HOUR).cache_when(|_: &Recording| true).ttl_of(|_| Some(HOUR)));
    let inner = Inner::default();
    let mut answer = inner.ask(&dedup, |head| head.status(404).header("cache-control", "max-age=10"));
    advance(10 * SECOND).await;
    inner.end();
    assert!(frame(&mut answer).is_none());
    assert_eq!(dedup.stats().entries, 0);
}
