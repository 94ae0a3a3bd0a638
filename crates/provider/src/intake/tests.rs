use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use http::{Response, header::ALLOW};
use http_body::Frame;
use http_body_util::{Empty, Full};
use tokio::time::Instant;
use tower::{ServiceExt, service_fn};

use super::*;

const BODY: &str = r#"{"model":"m","stream":true,"messages":[]}"#;

/// Frames that come one every so often, and what became of the body.
struct Slow {
    frames: Vec<Bytes>,
    every: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    alive: Arc<()>,
}

impl Slow {
    fn new(frames: &[&'static str], every: Duration) -> Self {
        let frames = frames.iter().rev().map(|frame| Bytes::from_static(frame.as_bytes())).collect();
        Self { frames, every, timer: None, alive: Arc::new(()) }
    }
}

impl Body for Slow {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let every = self.every;
        ready!(self.timer.get_or_insert_with(|| Box::pin(sleep(every))).as_mut().poll(cx));
        self.timer = None;
        Poll::Ready(self.frames.pop().map(|frame| Ok(Frame::data(frame))))
    }
}

/// Answers with the facts and the body, and counts clones of itself that were made ready.
#[derive(Clone, Default)]
struct Inner {
    made_ready: Arc<AtomicUsize>,
    ready: bool,
}

impl Service<Request<Bytes>> for Inner {
    type Response = (Facts, Bytes);
    type Error = BoxError;
    type Future = std::future::Ready<Result<(Facts, Bytes), BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        self.made_ready.fetch_add(1, SeqCst);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called unready");
        let facts = request.extensions().get::<Facts>().expect("facts ride along").clone();
        std::future::ready(Ok((facts, request.into_body())))
    }
}

fn post<B>(body: B) -> Request<B> {
    Request::post("/v1/chat/completions").header(CONTENT_TYPE, "application/json").body(body).unwrap()
}

fn refused(result: Result<(Facts, Bytes), BoxError>) -> (u16, String) {
    let error = result.expect_err("this should be refused");
    let error = Error::find(&*error).expect("ours");
    (error.status().as_u16(), error.message().to_owned())
}

async fn take_in<B>(layer: &IntakeLayer, request: Request<B>) -> Result<(Facts, Bytes), BoxError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    layer.layer(Inner::default()).oneshot(request).await
}

#[tokio::test]
async fn one_frame_is_not_copied_and_many_are_joined() {
    let layer = IntakeLayer::new();
    let body = Bytes::from_static(BODY.as_bytes());
    let (facts, taken) = take_in(&layer, post(Full::new(body.clone()))).await.unwrap();
    assert_eq!(taken.as_ptr(), body.as_ptr());
    assert_eq!((facts.model(), facts.stream(), facts.operation()), ("m", true, Operation::Chat));

    let slow = Slow::new(&[&BODY[..3], &BODY[3..9], &BODY[9..]], Duration::ZERO);
    let (_, taken) = take_in(&layer, post(slow)).await.unwrap();
    assert_eq!(taken, BODY);
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused_before_it_is_read_or_while() {
    let layer = IntakeLayer::new().max_body(BODY.len() as u64 - 1);
    let expected = (413, format!("the body is larger than {} bytes", BODY.len() - 1));

    let inner = Inner::default();
    let mut announced = post(Slow::new(&[], Duration::MAX));
    announced.headers_mut().insert(CONTENT_LENGTH, BODY.len().into());
    assert_eq!(refused(layer.layer(inner.clone()).oneshot(announced).await), expected);
    assert_eq!(refused(take_in(&layer, post(Full::new(Bytes::from(BODY)))).await), expected);
    let slow = Slow::new(&[&BODY[..9], &BODY[9..]], Duration::ZERO);
    assert_eq!(refused(layer.layer(inner.clone()).oneshot(post(slow)).await), expected);
    assert_eq!(inner.made_ready.load(SeqCst), 0, "a refusal does not touch the inner service");

    let fits = IntakeLayer::new().max_body(BODY.len() as u64);
    assert!(take_in(&fits, post(Full::new(Bytes::from(BODY)))).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn the_whole_body_has_to_arrive_in_time() {
    let start = Instant::now();
    let silent = Slow::new(&[&BODY[..9]], Duration::from_secs(20));
    let alive = silent.alive.clone();
    let late = (408, "the body did not arrive within 30s".to_owned());
    assert_eq!(refused(take_in(&IntakeLayer::new(), post(silent)).await), late);
    assert_eq!(start.elapsed(), Duration::from_secs(30), "a byte now and then buys no time");
    assert_eq!(Arc::strong_count(&alive), 1, "the body is dropped");

    let layer = IntakeLayer::new().body_within(Duration::from_secs(61));
    let slow = Slow::new(&[&BODY[..9], &BODY[9..]], Duration::from_secs(20));
    assert!(take_in(&layer, post(slow)).await.is_ok(), "three waits of 20 s, the last for the end");
}

#[tokio::test(start_paused = true)]
async fn no_place_below_is_held_while_a_body_arrives() {
    let limited = tower::limit::ConcurrencyLimit::new(Inner::default(), 1);
    let intake = IntakeLayer::new().layer(limited);
    let slow = tokio::spawn(intake.clone().oneshot(post(Slow::new(&[BODY], Duration::from_secs(10)))));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let fast = intake.clone().oneshot(post(Full::new(Bytes::from(BODY))));
    assert!(tokio::time::timeout(Duration::ZERO, fast).await.is_ok_and(|result| result.is_ok()));
    assert!(slow.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn dropping_the_future_drops_the_body() {
    let body = Slow::new(&[BODY], Duration::from_secs(1));
    let alive = body.alive.clone();
    let layer = IntakeLayer::new();
    let call = tokio::time::timeout(Duration::from_millis(1), take_in(&layer, post(body))).await;
    assert!(call.is_err());
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[tokio::test]
async fn bodies_have_to_be_called_json() {
    let with = async |content_type: Option<&str>| {
        let mut request = post(Full::new(Bytes::from(BODY)));
        match content_type {
            Some(value) => request.headers_mut().insert(CONTENT_TYPE, value.parse().unwrap()),
            None => request.headers_mut().remove(CONTENT_TYPE),
        };
        take_in(&IntakeLayer::new(), request).await
    };
    for fine in ["application/json", "Application/JSON ; charset=utf-8", "application/vnd.api+json"] {
        assert!(with(Some(fine)).await.is_ok(), "{fine}");
    }
    for wrong in [
        None,
        Some(""),
        Some("text/json"),
        Some("application/x-www-form-urlencoded"),
        Some("application/jsonl"),
    ] {
        assert_eq!(refused(with(wrong).await).0, 415, "{wrong:?}");
    }
    let empty = Request::post("/v1/embeddings").body(Empty::<Bytes>::new()).unwrap();
    let message = "the body is empty, where a JSON object was expected".to_owned();
    assert_eq!(refused(take_in(&IntakeLayer::new(), empty).await), (400, message));
}

#[tokio::test]
async fn each_operation_has_its_methods() {
    let call = async |method: Method, path: &str| {
        let body = if method == Method::POST { BODY } else { "" };
        let mut request = post(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        take_in(&IntakeLayer::new(), request).await
    };
    for (method, path, allow) in [
        (Method::GET, "/v1/chat/completions", "POST"),
        (Method::PUT, "/v1/embeddings", "POST"),
        (Method::POST, "/v1/models", "GET, HEAD"),
        (Method::DELETE, "/v1/models/m", "GET, HEAD"),
    ] {
        let error = call(method.clone(), path).await.unwrap_err();
        let response = Error::find(&*error).unwrap().to_response();
        assert_eq!(response.status(), 405, "{method} {path}");
        assert_eq!(response.headers()[ALLOW], allow);
    }
    for (method, path, operation) in [
        (Method::POST, "/v1/embeddings?x=1", Operation::Embeddings),
        (Method::GET, "/v1/models", Operation::Models),
        (Method::HEAD, "/v1/models/m", Operation::Models),
        (Method::DELETE, "/elsewhere", Operation::Other),
    ] {
        assert_eq!(call(method, path).await.unwrap().0.operation(), operation, "{path}");
    }
}

#[tokio::test]
async fn the_body_of_a_get_is_not_waited_for() {
    let body = Slow::new(&["x"], Duration::MAX);
    let request = Request::get("/v1/models").body(body).unwrap();
    let (facts, body) = take_in(&IntakeLayer::new(), request).await.unwrap();
    assert_eq!((facts.operation(), body.len()), (Operation::Models, 0));
}

#[tokio::test]
async fn how_the_body_came_is_not_passed_on() {
    let inner = service_fn(|request: Request<Bytes>| async move {
        Ok::<_, BoxError>(Response::new(
            request.headers().keys().map(ToString::to_string).collect::<Vec<_>>(),
        ))
    });
    let framed = |request: http::request::Builder| {
        let request = request.header(CONTENT_LENGTH, "40").header(TRANSFER_ENCODING, "chunked");
        request.header(CONTENT_TYPE, "application/json").body(Full::new(Bytes::from(BODY))).unwrap()
    };
    for request in [Request::get("/v1/models"), Request::post("/v1/chat/completions")] {
        let response = IntakeLayer::new().layer(inner).oneshot(framed(request)).await.unwrap();
        assert_eq!(response.body(), &["content-type"]);
    }
}

#[tokio::test]
async fn tenants_are_read_or_refused() {
    let name = HeaderName::from_static("x-tenant");
    let layer = IntakeLayer::new().tenant_header(name.clone());
    let call = async |layer: &IntakeLayer, values: &[&[u8]]| {
        let mut request = post(Full::new(Bytes::from(BODY)));
        for value in values {
            request.headers_mut().append(name.clone(), http::HeaderValue::from_bytes(value).unwrap());
        }
        take_in(layer, request).await
    };
    let tenant = |(facts, _): (Facts, Bytes)| facts.tenant().map(ToString::to_string);
    assert_eq!(tenant(call(&layer, &[b"acme"]).await.unwrap()).as_deref(), Some("acme"));
    assert_eq!(tenant(call(&layer, &[]).await.unwrap()), None);
    assert_eq!(tenant(call(&layer, &[b""]).await.unwrap()), None);
    assert_eq!(tenant(call(&IntakeLayer::new(), &[b"acme"]).await.unwrap()), None);
    let longest = "x".repeat(256);
    assert_eq!(tenant(call(&layer, &[longest.as_bytes()]).await.unwrap()).as_deref(), Some(&*longest));
    assert!(call(&layer, &[&[b'x'; 257]]).await.is_err());
    assert_eq!(refused(call(&layer, &[b"acme", b"acme"]).await).0, 400);
    assert_eq!(refused(call(&layer, &[b"caf\xe9"]).await).0, 400);
}

#[tokio::test]
async fn errors_of_the_body_and_of_the_inner_service_come_out() {
    let frames = http_body_util::StreamBody::new(
        tokio_test::stream_mock::StreamMockBuilder::new()
            .next(Err::<Frame<Bytes>, _>(std::io::Error::other("reset")))
            .build(),
    );
    let (status, message) = refused(take_in(&IntakeLayer::new(), post(frames)).await);
    assert_eq!((status, &*message), (400, "the body broke off before its end"));

    let failing = service_fn(|_: Request<Bytes>| async { Err::<Response<()>, _>(BoxError::from("inner")) });
    let error =
        IntakeLayer::new().layer(failing).oneshot(post(Full::new(Bytes::from(BODY)))).await.unwrap_err();
    assert_eq!(error.to_string(), "inner");
}

#[test]
fn everything_is_send_and_sync() {
    fn both<T: Send + Sync>() {}
    both::<IntakeLayer>();
    both::<Intake<Inner>>();
    both::<IntakeFuture<Inner, Full<Bytes>>>();
}
