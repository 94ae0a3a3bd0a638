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
    header::{CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING},
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

/// The longest name of a tenant: what keeps tenants apart keeps their names.
const MAX_TENANT: usize = 256;

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
/// The body of a `GET` or `HEAD` is not read; the inner service gets an empty one. `content-length` and
/// `transfer-encoding`, which say how the body came, are taken away.
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
    /// Absent or empty, there is no tenant. A value that is given twice, is no visible ASCII or is longer than 256 bytes
    /// is refused, since limits and caches are kept apart by it. Do not name one that holds a secret: tenants are shown in logs.
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
        // How the body came says nothing any more, and less than nothing where it was not read.
        parts.headers.remove(CONTENT_LENGTH);
        parts.headers.remove(TRANSFER_ENCODING);
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
    if value.len() > MAX_TENANT {
        return Err(wrong("the header that names the tenant is longer than 256 bytes"));
    }
    Ok((!value.is_empty()).then(|| Tenant::from(value)))
}

#[cfg(test)]
mod tests;
