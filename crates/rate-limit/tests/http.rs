//! What the layer says over HTTP, what it hears there, and calls that last until their body ends.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use bartizan_core::{BoxError, RejectionLayer, UntilBodyEnd};
use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter, Window, exhausted};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::advance;
use tower::{Layer, Service, ServiceExt, service_fn};

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

async fn ok(_: Request<()>) -> Result<Response<Full<Bytes>>, BoxError> {
    Ok(Response::new(Full::from("an answer")))
}

fn key(request: &Request<()>) -> Option<&str> {
    request.headers().get("x-key")?.to_str().ok()
}

fn of(key: &str) -> Request<()> {
    Request::builder().header("x-key", key).body(()).unwrap()
}

fn told<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).unwrap_or_else(|| panic!("no {name} in {headers:?}")).to_str().unwrap()
}

#[tokio::test(start_paused = true)]
async fn admitted_and_refused_answers_tell_what_is_left() {
    let limiter: RateLimiter<String> = RateLimiter::keyed(Quota::per_minute(100).burst(2));
    let layer = RateLimitLayer::new(limiter.rule().by_ref(key)).headers();
    let service = RejectionLayer::problem_json().layer(layer.layer(service_fn(ok)));
    let call = |key| service.clone().oneshot(of(key)).map(Result::unwrap);

    let first = call("anna").await;
    assert_eq!(told(first.headers(), "ratelimit-policy"), r#""default";q=2;w=2"#);
    assert_eq!(told(first.headers(), "ratelimit"), r#""default";r=1;t=1"#);
    let second = call("anna").await;
    assert_eq!(
        (second.status(), told(second.headers(), "ratelimit")),
        (StatusCode::OK, r#""default";r=0;t=1"#)
    );
    let third = call("anna").await;
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(told(third.headers(), "ratelimit-policy"), r#""default";q=2;w=2"#);
    assert_eq!(told(third.headers(), "ratelimit"), r#""default";r=0;t=1"#);
    assert_eq!(told(third.headers(), "retry-after"), "1");
    assert_eq!(told(third.headers(), "content-type"), "application/problem+json");
    assert!(!third.headers().contains_key("x-ratelimit-limit"), "only if asked for");
    assert_eq!(told(call("ben").await.headers(), "ratelimit"), r#""default";r=1;t=1"#);
    // The wait that is told is enough.
    advance(SECOND).await;
    assert_eq!(call("anna").await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn every_limit_is_told_and_the_tightest_in_the_old_form() {
    let hour = RateLimiter::new(Limit::new("per hour", Window::fixed(3, 60 * MINUTE)));
    let each: RateLimiter<String> = RateLimiter::keyed(Limit::new("a \"key\"\u{e9}", Quota::per_minute(60)));
    let rules = (hour.rule(), each.rule().by_ref(key));
    let layer = RateLimitLayer::all(rules).headers().legacy_headers();
    let service = RejectionLayer::openai_json().layer(layer.layer(service_fn(ok)));
    let call = |request| service.clone().oneshot(request).map(Result::unwrap);

    advance(30 * MINUTE).await;
    let first = call(of("anna")).await;
    let policy = r#""per hour";q=3;w=3600, "a \"key\"_";q=60;w=60"#;
    assert_eq!(told(first.headers(), "ratelimit-policy"), policy);
    assert_eq!(told(first.headers(), "ratelimit"), r#""per hour";r=2;t=1800, "a \"key\"_";r=59;t=1"#);
    let old = ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"];
    assert_eq!(old.map(|name| told(first.headers(), name)), ["3", "2", "1800"]);
    // Without a key only one of the limits is asked.
    let second = call(Request::new(())).await;
    assert_eq!(told(second.headers(), "ratelimit"), r#""per hour";r=1;t=1800"#);
    call(of("anna")).await;
    let refused = call(of("anna")).await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(told(refused.headers(), "retry-after"), "1800");
    assert_eq!(old.map(|name| told(refused.headers(), name)), ["3", "0", "1800"]);
}

#[tokio::test(start_paused = true)]
async fn a_queueing_layer_tells_it_too() {
    let limiter = RateLimiter::new(Quota::one_every(MINUTE));
    let layer = limiter.layer().queue(1, MINUTE).headers();
    let service = RejectionLayer::problem_json().layer(layer.layer(service_fn(ok)));
    let call = || service.clone().oneshot(Request::new(())).map(Result::unwrap);
    assert_eq!(told(call().await.headers(), "ratelimit"), r#""default";r=0;t=60"#);
    let mut waiting = tokio_test::task::spawn(Box::pin(service.clone().oneshot(Request::new(()))));
    assert!(waiting.poll().is_pending());
    let refused = call().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(told(refused.headers(), "retry-after"), "120");
    assert_eq!(told(refused.headers(), "ratelimit"), r#""default";r=0;t=120"#);
    let served = waiting.into_inner().await.unwrap();
    assert_eq!(told(served.headers(), "ratelimit"), r#""default";r=0;t=60"#);
}

#[tokio::test(start_paused = true)]
async fn what_the_upstream_says_is_spent_is_not_asked_for() {
    let calls = Arc::new(AtomicU64::new(0));
    let upstream = {
        let calls = calls.clone();
        service_fn(move |request: Request<()>| {
            calls.fetch_add(1, SeqCst);
            let path = request.uri().path().to_owned();
            async move {
                let response = match path.as_str() {
                    "/refuses" => Response::builder().status(429).header("retry-after", "10"),
                    "/last" => Response::builder()
                        .header("x-ratelimit-remaining-tokens", "0")
                        .header("x-ratelimit-reset-tokens", "1m30s"),
                    "/moved" => Response::builder().status(301).header("retry-after", "99"),
                    _ => Response::builder().header("x-ratelimit-remaining-tokens", "7"),
                };
                Ok::<_, BoxError>(response.body(()).unwrap())
            }
        })
    };
    let limiter: RateLimiter<String> = RateLimiter::keyed(Quota::per_second(1_000));
    let rule = limiter.rule().by_ref(key).hold_when(exhausted::<()>);
    let service = RateLimitLayer::new(rule).layer(upstream);
    let call = |path: &str, key: &str| {
        let request = Request::builder().uri(path).header("x-key", key).body(()).unwrap();
        service.clone().oneshot(request)
    };
    for path in ["/", "/moved", "/refuses"] {
        call(path, "a").await.unwrap();
    }
    let refusal = |error: BoxError| bartizan_core::Rejected::find(&*error).unwrap().retry_after();
    let after = |wait| bartizan_core::RetryAfter::After(wait);
    assert_eq!(refusal(call("/", "a").await.unwrap_err()), after(10 * SECOND));
    let held = limiter.stats_of("a");
    assert_eq!((held.remaining, held.available, held.reset_after), (0, 0, 10 * SECOND));
    call("/last", "b").await.unwrap();
    assert_eq!(refusal(call("/", "b").await.unwrap_err()), after(90 * SECOND));
    assert_eq!(calls.load(SeqCst), 4, "nobody asks an upstream that has said no");
    // A shorter hold does not shorten it, and a longer one lengthens it.
    limiter.hold("b", SECOND);
    advance(10 * SECOND).await;
    call("/", "a").await.unwrap();
    assert_eq!(limiter.stats_of("a").remaining, 999, "full again but for this call");
    assert_eq!(refusal(call("/", "b").await.unwrap_err()), after(80 * SECOND));
    assert_eq!(limiter.stats().keys, 2, "a key that is held is remembered");
    advance(MINUTE * 2).await;
    assert_eq!(limiter.stats().keys, 0);
}

type Frames = Vec<Result<Frame<Bytes>, BoxError>>;

#[tokio::test(start_paused = true)]
async fn a_call_is_settled_when_its_body_ends() {
    let tokens = RateLimiter::new(Quota::per_hour(1_000));
    let rule = tokens.rule().cost(|_: &Request<Frames>| 100).settle(|response: &Response<_>| {
        let usage = response.extensions().get::<Arc<AtomicU64>>().cloned();
        let failed = !response.status().is_success();
        move || if failed { Some(0) } else { usage.map(|usage| usage.load(SeqCst)) }
    });
    let usage = Arc::new(AtomicU64::new(0));
    let inner = {
        let usage = usage.clone();
        service_fn(move |request: Request<Frames>| {
            let (status, usage) = (request.uri().path()[1..].parse::<u16>().unwrap(), usage.clone());
            async move {
                if status == 0 {
                    return Err(BoxError::from("unreachable"));
                }
                let mut response = Response::new(StreamBody::new(stream::iter(request.into_body())));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                response.extensions_mut().insert(usage);
                Ok(response)
            }
        })
    };
    let service = RateLimitLayer::new(rule).extent(UntilBodyEnd).layer(inner);
    let call = |status: u16, frames| {
        let request = Request::builder().uri(format!("/{status}")).body(frames).unwrap();
        service.clone().oneshot(request)
    };
    let frames = || vec![Ok(Frame::data(Bytes::from("a"))), Ok(Frame::data(Bytes::from("b")))];
    let left = || tokens.stats_of(&()).available;

    let mut body = call(200, frames()).await.unwrap().into_body();
    assert!(body.frame().await.is_some());
    assert_eq!(left(), 900, "the estimate");
    usage.store(30, SeqCst);
    assert!(body.frame().await.is_some() && body.frame().await.is_none());
    assert_eq!(left(), 970, "the body has ended");
    // Debt, a stream that breaks off, one that is dropped, an error, a refusal of the upstream.
    usage.store(1_200, SeqCst);
    call(200, frames()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(left(), -230);
    tokens.settle(&(), 1_230, 0);
    assert_eq!(left(), 1_000);
    usage.store(7, SeqCst);
    let broken = vec![Err("cut".into())];
    assert!(call(200, broken).await.unwrap().into_body().collect().await.is_err());
    assert_eq!(left(), 993);
    drop(call(200, frames()).await.unwrap());
    assert_eq!(left(), 986, "a client that goes before the end pays what is known by then");
    assert!(call(0, frames()).await.is_err());
    assert_eq!(left(), 986, "one that fails costs nothing");
    call(503, frames()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(left(), 986);
}

/// Errors of the body pass, and an upstream's refusal is the upstream's.
#[tokio::test(start_paused = true)]
async fn held_for_an_error_that_says_so() {
    let limiter = RateLimiter::new(Quota::per_second(9));
    let rule = limiter.rule().hold_when(|result: Result<&(), _>| result.err().map(|_| MINUTE));
    let fails =
        service_fn(|fail: bool| async move { if fail { Err(BoxError::from("down")) } else { Ok(()) } });
    let mut service = RateLimitLayer::new(rule).layer(fails);
    service.ready().await.unwrap().call(false).await.unwrap();
    service.ready().await.unwrap().call(true).await.unwrap_err();
    assert_eq!(limiter.stats_of(&()).reset_after, MINUTE);
    advance(MINUTE).await;
    service.ready().await.unwrap().call(false).await.unwrap();
}
