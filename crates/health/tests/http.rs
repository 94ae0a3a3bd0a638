//! What is told over HTTP, and streams.
#![cfg(feature = "http")]

use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use bartizan_core::{BoxError, Class, RetryAfter};
use bartizan_health::{Fault, Health, Report, State};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Method, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use serde_json::{Value, json};
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

async fn ask(health: &Health, method: Method, path: &str) -> (u16, String, Response<()>) {
    let request = Request::builder().method(method).uri(path).body(()).unwrap();
    let (parts, body) = health.service().oneshot(request).await.unwrap().into_parts();
    let body = String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap();
    (parts.status.as_u16(), body, Response::from_parts(parts, ()))
}

async fn get(health: &Health, path: &str) -> (u16, String) {
    let (status, body, _) = ask(health, Method::GET, path).await;
    (status, body)
}

fn fail(health: &Health, name: &str) {
    for _ in 0..10 {
        let fault = Fault::new("io").text("refused");
        health.component(name).record(Class::Failure(RetryAfter::Unknown), SECOND, Some(fault));
    }
}

/// Pitfall 52: whether it is alive has nothing to do with what it depends on.
#[tokio::test]
async fn liveness_never_looks_at_dependencies() {
    static ASKED: AtomicUsize = AtomicUsize::new(0);
    let health = Health::new();
    health.report("cache", || {
        ASKED.fetch_add(1, Relaxed);
        State::Unhealthy
    });
    fail(&health, "database");
    let _ = health.component("database").required();
    health.drain();
    assert_eq!(get(&health, "/livez").await, (200, "alive\n".to_owned()));
    assert_eq!(ASKED.load(Relaxed), 0);
    assert_eq!((get(&health, "/readyz").await.0, ASKED.load(Relaxed)), (503, 1));
}

#[tokio::test]
async fn readiness_names_what_is_not_healthy() {
    let health = Health::new();
    health.component("a");
    assert_eq!(get(&health, "/readyz").await, (200, "ready\n".to_owned()));
    fail(&health, "b\nc \"d\"");
    health.report("cache", || State::Degraded);
    let told = "ready\n\"b\\nc \\\"d\\\"\" is unhealthy\n\"cache\" is degraded\n";
    assert_eq!(get(&health, "/readyz").await, (200, told.to_owned()));
    let _ = health.component("b\nc \"d\"").required();
    assert_eq!(get(&health, "/readyz").await.0, 503);
    health.reset();
    assert_eq!(get(&health, "/readyz").await.0, 200);
    health.drain();
    assert_eq!(get(&health, "/readyz").await, (503, "draining\n\"cache\" is degraded\n".to_owned()));
}

#[tokio::test]
async fn the_document_is_json_whatever_names_there_are() {
    let health = Health::new();
    let nasty = "a \"b\"\\\n\u{1}ü</script>";
    fail(&health, nasty);
    health.component(nasty).drain();
    health.report(nasty, || {
        Report::new(State::Degraded)
            .says("line\nline")
            .with("count", 7)
            .with("share", 0.5)
            .with("nothing", f64::NAN)
            .with("flag", true)
            .with("word\"", "a\tword")
    });
    health.report("other", || State::Healthy);
    let (status, body, response) = ask(&health, Method::GET, "/health").await;
    assert_eq!(
        (status, &response.headers()["content-type"]),
        (200, &"application/health+json".parse().unwrap())
    );
    assert_eq!(response.headers()["cache-control"], "no-store");
    let told: Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}"));
    assert_eq!(told["status"], "warn");
    let [component, report] = &told["checks"][nasty].as_array().unwrap()[..] else { panic!("{told}") };
    for (key, value) in [
        ("status", json!("fail")),
        ("state", json!("unhealthy")),
        ("draining", json!(true)),
        ("required", json!(false)),
        ("requests", json!(10)),
        ("errorRate", json!(1)),
        ("consecutiveFailures", json!(10)),
        ("errors", json!({"io": 10})),
        ("output", json!("refused")),
    ] {
        assert!(component[key] == value || component[key].as_f64() == value.as_f64(), "{key}: {component}");
    }
    assert!((component["latencySeconds"]["p99"].as_f64().unwrap() - 1.0).abs() < 0.07, "{component}");
    let expected = json!({
        "componentType": "report", "status": "warn", "state": "degraded", "output": "line\nline",
        "count": 7, "share": 0.5, "nothing": null, "flag": true, "word\"": "a\tword",
    });
    assert_eq!(*report, expected);
    assert_eq!(told["checks"]["other"][0]["status"], "pass");
    assert_eq!(serde_json::from_str::<Value>(&health.to_json()).unwrap()["status"], "warn");

    fail(&health, "second");
    health.report(nasty, || State::Unhealthy);
    health.report("other", || State::Unhealthy);
    let (status, body) = get(&health, "/health").await;
    assert_eq!((status, &serde_json::from_str::<Value>(&body).unwrap()["status"]), (503, &json!("fail")));
}

/// Whatever a report calls its figures, the document says what it has to say, and says it once.
#[tokio::test]
async fn figures_have_names_of_their_own() {
    let health = Health::new();
    health.report("breaker", || {
        let report = Report::new(State::Degraded).says("half-open");
        report
            .with("status", "open")
            .with("state", "open")
            .with("output", 1)
            .with("opens", 2)
            .with("opens", 3)
    });
    let (_, body) = get(&health, "/health").await;
    for name in ["status", "state", "output", "opens"] {
        // The whole has a status, too.
        let times = body.matches(&format!("\"{name}\":")).count();
        assert_eq!(times, if name == "status" { 2 } else { 1 }, "{name} in {body}");
    }
    let told: Value = serde_json::from_str(&body).unwrap();
    let expected = json!({
        "componentType": "report", "status": "warn", "state": "degraded", "output": "half-open",
        "status_": "open", "state_": "open", "output_": 1, "opens": 2, "opens_": 3,
    });
    assert_eq!(told["checks"]["breaker"][0], expected);
}

#[tokio::test]
async fn only_get_and_head_of_three_paths() {
    let health = Health::new();
    for path in ["/livez", "/readyz", "/health"] {
        let (status, body, _) = ask(&health, Method::HEAD, path).await;
        assert_eq!((status, body.as_str()), (200, ""));
        let (status, _, response) = ask(&health, Method::POST, path).await;
        assert_eq!((status, &response.headers()["allow"]), (405, &"GET, HEAD".parse().unwrap()));
    }
    for path in ["/", "/livez/", "/healthz"] {
        assert_eq!(get(&health, path).await.0, 404);
    }
}

type Streamed = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, BoxError>>>;

/// Its first bytes come after two seconds, and an empty frame before; its end after five.
fn streamed(good: bool) -> Streamed {
    let frames =
        stream::iter([(1, Ok("")), (1, Ok("a")), (1, Ok("b")), (2, if good { Ok("c") } else { Err("cut") })]);
    let frames = frames.then(async |(seconds, what)| {
        sleep(seconds * SECOND).await;
        what.map(|text| Frame::data(Bytes::from_static(text.as_bytes()))).map_err(BoxError::from)
    });
    StreamBody::new(frames.boxed())
}

async fn body(
    health: &Health,
    status: u16,
    good: bool,
) -> impl Body<Data = Bytes, Error = BoxError> + Unpin + use<> {
    let inner = service_fn(move |()| async move {
        Ok::<_, Infallible>(Response::builder().status(status).body(streamed(good)).unwrap())
    });
    let layer = health.layer("it").server_errors().until_body_end();
    layer.layer(inner).oneshot(()).await.unwrap().into_body()
}

fn about(seconds: f64, told: Option<Duration>) -> bool {
    told.is_some_and(|told| (told.as_secs_f64() - seconds).abs() <= seconds / 16.0)
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_a_first_frame_and_an_end() {
    let health = Health::new();
    body(&health, 200, true).await.collect().await.unwrap();
    let stats = health.component("it").stats();
    assert!(about(2.0, stats.first_frame.p50) && about(5.0, stats.latency.p50), "{stats:?}");
    assert_eq!((stats.totals.successes, health.component("it").first_frames().count()), (1, 1));

    assert!(body(&health, 200, false).await.collect().await.is_err());
    let stats = health.component("it").stats();
    assert_eq!((stats.totals.failures, stats.first_frame.count), (1, 2));
    assert_eq!(stats.last_error.unwrap().message, "cut");

    // What the head shows counts at once, and whoever does not read to the end decides nothing.
    drop(body(&health, 503, true).await);
    let mut cancelled = body(&health, 200, true).await;
    assert!(cancelled.frame().await.is_some());
    drop(cancelled);
    let stats = health.component("it").stats();
    assert_eq!((stats.totals.failures, stats.totals.cancelled, stats.totals.successes), (2, 1, 1));
    assert_eq!(stats.errors, [("error", 1), ("http_503", 1)]);
}

/// A body that panics is a failure, as whatever panics below is.
#[tokio::test]
async fn a_body_that_panics_has_failed() {
    let health = Health::new();
    let inner = service_fn(async |()| {
        let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"a")))]);
        let panics = stream::poll_fn(|_| -> std::task::Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("in the middle")
        });
        Ok::<_, Infallible>(Response::new(StreamBody::new(frames.chain(panics))))
    });
    let mut body = health.layer("it").until_body_end().layer(inner).oneshot(()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_ok());
    let next = std::panic::AssertUnwindSafe(|| body.frame().now_or_never().is_some());
    assert!(std::panic::catch_unwind(next).is_err());
    drop(body);
    let stats = health.component("it").stats();
    assert_eq!((stats.totals.failures, stats.totals.cancelled), (1, 0));
    assert_eq!(stats.errors, [("panic", 1)]);
}

/// A client's mistake is no failure, and not told as an error.
#[tokio::test]
async fn statuses_are_what_they_are() {
    let health = Health::new();
    let answer = async |status: u16| {
        let inner = service_fn(move |()| async move {
            let body = Full::new(Bytes::from_static(b"all of it"));
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        });
        let layer = health.layer("it").server_errors().until_body_end();
        let body = layer.layer(inner).oneshot(()).await.unwrap().into_body();
        assert_eq!(body.size_hint().exact(), Some(9), "content-length survives");
        body.collect().await.unwrap();
    };
    for status in [200, 404, 422, 429, 500] {
        answer(status).await;
    }
    let stats = health.component("it").stats();
    assert_eq!((stats.totals.successes, stats.totals.failures), (3, 2));
    assert_eq!(stats.errors, [("http_429", 1), ("http_500", 1)]);
    assert_eq!(stats.first_frame.count, 3);
}
