use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::BoxError;
use bytes::{Buf, Bytes, BytesMut};
use http::{
    HeaderMap, HeaderName, Method, Request, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    request::Parts,
};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_layer::Layer;
use tower_service::Service;

use crate::{Class, Error, Facts, Operation, Tenant, media::is_json};

/// How much of what a request announces is reserved before it has arrived.
const MAX_RESERVE: u64 = 64 * 1024;

/// Takes a request in: reads its body into memory, within limits, and puts its [`Facts`] into its extensions.
///
/// Put it outside of every layer that looks at the facts or the body: those get an `http::Request<Bytes>`. What cannot
/// be taken in is answered with an [`Error`] that names what was wrong:
///
/// | what | status |
/// |---|---|
/// | not JSON, not an object, no model, see [`Facts::read`]; a body that breaks off; an unreadable tenant | 400 |
/// | the wrong method for an operation that is known by its path | 405 |
/// | a body that has not arrived in time | 408 |
/// | a body that is too large | 413 |
/// | a `POST` with a body that is not called JSON by its `content-type` | 415 |
///
/// The body of a `GET` or `HEAD` is not read; the inner service gets an empty one.
///
/// ```
/// use bartizan_provider::{Error, Facts, IntakeLayer};
/// use bytes::Bytes;
/// use http::{Request, Response, header::CONTENT_TYPE};
/// use http_body_util::Full;
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # tokio_test::block_on(async {
/// let inner = service_fn(|request: Request<Bytes>| async move {
///     let facts = request.extensions().get::<Facts>().expect("intake puts them there");
///     Ok::<_, Error>(Response::new(facts.model().to_owned()))
/// });
/// let intake = IntakeLayer::new().max_body(1_000).layer(inner);
///
/// let post = |body: &'static str| {
///     let request = Request::post("/v1/chat/completions").header(CONTENT_TYPE, "application/json");
///     request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
/// };
/// let response = intake.clone().oneshot(post(r#"{"model":"fast","messages":[]}"#)).await?;
/// assert_eq!(response.body(), "fast");
///
/// let refusal = intake.oneshot(post(r#"{"messages":[]}"#)).await.unwrap_err();
/// assert_eq!(refusal.to_string(), "bad request: `model` is missing (param `model`)");
/// # Ok::<(), bartizan_core::BoxError>(())
/// # }).unwrap();
/// ```
///
/// # Behaviour
///
/// Always ready. The inner service, a clone of it for each call, is made ready only once there is something to call it
/// with. Dropping the future drops the body, and with it stops reading.
#[derive(Clone, Debug)]
pub struct IntakeLayer {
    limits: Limits,
    tenant_header: Option<HeaderName>,
}

impl IntakeLayer {
    /// Bodies of up to 10 MiB that arrive within 30 seconds; tenants are not looked for.
    pub const fn new() -> Self {
        let limits = Limits { max_body: 10 * 1024 * 1024, body_within: Duration::from_secs(30) };
        Self { limits, tenant_header: None }
    }

    /// The largest body that is read, in bytes. Default: 10 MiB.
    ///
    /// One that says in its head that it is larger is refused before any of it is read.
    #[must_use]
    pub const fn max_body(mut self, bytes: u64) -> Self {
        self.limits.max_body = bytes;
        self
    }

    /// How long the whole body may take to arrive, from when it first has to be waited for. Default: 30 s.
    #[must_use]
    pub const fn body_within(mut self, limit: Duration) -> Self {
        self.limits.body_within = limit;
        self
    }

    /// The header that names the tenant, set by whoever authenticates the caller. Default: none.
    ///
    /// Absent or empty, there is no tenant. A value that is given twice or is no visible ASCII is refused, since limits
    /// and caches are kept apart by it. Do not name one that holds a secret: tenants are shown in logs.
    #[must_use]
    pub fn tenant_header(mut self, name: HeaderName) -> Self {
        self.tenant_header = Some(name);
        self
    }

    /// What the head of a request says, or why it is refused for that.
    fn admit(&self, head: &Parts, body: &impl Body) -> Result<Head, Error> {
        let operation = Operation::of_path(head.uri.path());
        match (operation, &head.method) {
            (Operation::Chat | Operation::Embeddings, &Method::POST) | (Operation::Other, _) => {}
            (Operation::Models, &Method::GET | &Method::HEAD) => {}
            (Operation::Models, _) => return Err(Error::method_not_allowed("GET, HEAD")),
            _ => return Err(Error::method_not_allowed("POST")),
        }
        let tenant = match &self.tenant_header {
            Some(name) => tenant(&head.headers, name)?,
            None => None,
        };
        if head.method == Method::POST && !body.is_end_stream() && !is_json(&head.headers) {
            let message = "a body needs `content-type: application/json`";
            return Err(Error::new(Class::BadRequest, message)
                .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE)
                .with_param(CONTENT_TYPE.as_str()));
        }
        let announced =
            head.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.unwrap_or(0).max(body.size_hint().lower()) > self.limits.max_body {
            return Err(self.limits.too_large());
        }
        Ok(Head { operation, tenant })
    }
}

impl Default for IntakeLayer {
    fn default() -> Self {
        Self::new()
    }
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    max_body: u64,
    body_within: Duration,
}

impl Limits {
    fn too_large(self) -> Error {
        Error::new(Class::TooLarge, format!("the body is larger than {} bytes", self.max_body))
    }

    fn too_late(self) -> Error {
        Error::new(Class::Timeout, format!("the body did not arrive within {:?}", self.body_within))
            .with_status(StatusCode::REQUEST_TIMEOUT)
    }
}

impl<S> Layer<S> for IntakeLayer {
    type Service = Intake<S>;

    fn layer(&self, inner: S) -> Intake<S> {
        Intake { inner, options: self.clone() }
    }
}

/// The service made by [`IntakeLayer`].
#[derive(Clone, Debug)]
pub struct Intake<S> {
    inner: S,
    options: IntakeLayer,
}

impl<S, B> Service<Request<B>> for Intake<S>
where
    S: Service<Request<Bytes>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = IntakeFuture<S, B>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let state = match self.options.admit(&head, &body) {
            Err(error) => State::Refused { error: Some(error) },
            Ok(read) => {
                let reading = Reading {
                    limits: self.options.limits,
                    // A GET that comes with a body is not worth waiting for it.
                    skip: matches!(head.method, Method::GET | Method::HEAD),
                    body,
                    so_far: Collected::Nothing,
                    timer: None,
                };
                let service = self.inner.clone();
                State::Reading { reading, rest: Some((head, read, service)) }
            }
        };
        IntakeFuture { state }
    }
}

/// What is known before the body.
struct Head {
    operation: Operation,
    tenant: Option<Tenant>,
}

impl Head {
    fn with_body(self, mut parts: Parts, body: Bytes) -> Result<Request<Bytes>, Error> {
        let facts = Facts::read(self.operation, &body)?;
        parts.extensions.insert(match self.tenant {
            Some(tenant) => facts.with_tenant(tenant),
            None => facts,
        });
        Ok(Request::from_parts(parts, body))
    }
}

pin_project! {
    /// The response future of [`Intake`].
    pub struct IntakeFuture<S, B>
    where
        S: Service<Request<Bytes>>,
    {
        #[pin]
        state: State<S, B, S::Future>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, B, F> {
        Refused { error: Option<Error> },
        Reading {
            #[pin] reading: Reading<B>,
            rest: Option<(Parts, Head, S)>,
        },
        MakingReady { service: S, request: Option<Request<Bytes>> },
        Running { #[pin] future: F },
    }
}

impl<S, B> Future for IntakeFuture<S, B>
where
    S: Service<Request<Bytes>>,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProj::Refused { error } => {
                    return Poll::Ready(Err(error.take().expect("polled after completion").into()));
                }
                StateProj::Reading { reading, rest } => {
                    let body = ready!(reading.poll(cx))?;
                    let (parts, head, service) = rest.take().expect("polled after completion");
                    State::MakingReady { service, request: Some(head.with_body(parts, body)?) }
                }
                StateProj::MakingReady { service, request } => {
                    ready!(service.poll_ready(cx)).map_err(Into::into)?;
                    let request = request.take().expect("polled after completion");
                    State::Running { future: service.call(request) }
                }
                StateProj::Running { future } => return future.poll(cx).map_err(Into::into),
            };
            this.state.set(next);
        }
    }
}

impl<S, B> fmt::Debug for IntakeFuture<S, B>
where
    S: Service<Request<Bytes>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntakeFuture").finish_non_exhaustive()
    }
}

pin_project! {
    struct Reading<B> {
        #[pin]
        body: B,
        limits: Limits,
        skip: bool,
        so_far: Collected,
        // Made when the body first has to be waited for: most have arrived with their head.
        #[pin]
        timer: Option<Sleep>,
    }
}

impl<B> Reading<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Bytes, Error>> {
        let mut this = self.project();
        while !*this.skip {
            match this.body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    // Trailers have no use here.
                    let Ok(data) = frame.into_data() else { continue };
                    let arrived = (this.so_far.len() as u64).saturating_add(data.remaining() as u64);
                    if arrived > this.limits.max_body {
                        return Poll::Ready(Err(this.limits.too_large()));
                    }
                    this.so_far.push(data, this.body.size_hint().lower());
                }
                Poll::Ready(Some(Err(error))) => {
                    let failed = Error::new(Class::BadRequest, "the body broke off before its end");
                    return Poll::Ready(Err(failed.with_source(error)));
                }
                Poll::Ready(None) => break,
                Poll::Pending => {
                    if this.timer.is_none() {
                        this.timer.set(Some(sleep(this.limits.body_within)));
                    }
                    let timer = this.timer.as_mut().as_pin_mut().expect("set just now");
                    ready!(timer.poll(cx));
                    return Poll::Ready(Err(this.limits.too_late()));
                }
            }
        }
        Poll::Ready(Ok(this.so_far.take()))
    }
}

/// The data of a body: as it came if it came in one piece, else copied together.
enum Collected {
    Nothing,
    One(Bytes),
    Many(BytesMut),
}

impl Collected {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(bytes) => bytes.len(),
            Self::Many(bytes) => bytes.len(),
        }
    }

    /// `more` is what is still to come, as far as anybody says.
    fn push(&mut self, mut data: impl Buf, more: u64) {
        match self {
            // Not a copy where the data is `Bytes`.
            Self::Nothing => *self = Self::One(data.copy_to_bytes(data.remaining())),
            Self::One(first) => {
                let more = usize::try_from(more.min(MAX_RESERVE)).unwrap_or(0);
                let mut all = BytesMut::with_capacity(first.len() + data.remaining() + more);
                all.extend_from_slice(first);
                bytes::BufMut::put(&mut all, data);
                *self = Self::Many(all);
            }
            Self::Many(all) => bytes::BufMut::put(all, data),
        }
    }

    fn take(&mut self) -> Bytes {
        match std::mem::replace(self, Self::Nothing) {
            Self::Nothing => Bytes::new(),
            Self::One(bytes) => bytes,
            Self::Many(bytes) => bytes.freeze(),
        }
    }
}

/// Whether the `content-type` is `application/json` or another type in JSON's syntax (`application/x+json`).
fn tenant(headers: &HeaderMap, name: &HeaderName) -> Result<Option<Tenant>, Error> {
    let wrong = |what| Error::new(Class::BadRequest, what).with_param(name.as_str().to_owned());
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(wrong("the header that names the tenant is given twice"));
    }
    let value = value.to_str().map_err(|_| wrong("the header that names the tenant is not visible ASCII"))?;
    Ok((!value.is_empty()).then(|| Tenant::from(value)))
}

#[cfg(test)]
mod tests {
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

        let failing =
            service_fn(|_: Request<Bytes>| async { Err::<Response<()>, _>(BoxError::from("inner")) });
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
}
