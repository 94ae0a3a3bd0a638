use std::{
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{Either, Full};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{BoxError, Rejected, RejectionKind, RetryAfter, headers, rejected::chain};

/// Turns errors into responses, so that a stack of layers is infallible and drops into `axum::Router::layer`.
///
/// Put it outermost. The response body is [`Either`] the inner one or the one made from the error.
///
/// A [`Rejected`] anywhere in the error's chain chooses the status:
///
/// | kind | status |
/// |---|---|
/// | `Invalid` | 400 |
/// | `Conflict` | 409 |
/// | `ExceedsCapacity` | 413 |
/// | `RateLimited`, `QueueFull`, `QueueTimeout` | 429 |
/// | `Panicked` | 500 |
/// | `Exhausted`, `InvalidAnswer`, `Protocol` | 502 |
/// | `CircuitOpen`, `Unhealthy`, `Lagged`, `Closed` | 503 |
/// | `Deadline` | 504 |
///
/// Any other error is 502 if an [`std::io::Error`] is in its chain and 500 if not, and its text stays inside: only the
/// status is told.
///
/// What a refusal says by [`Rejected::headers`] is among the response's headers, and so is its `Retry-After`.
///
/// # Behaviour
///
/// Always ready once the inner service has answered: an inner `poll_ready` error is kept and becomes the next call's
/// response.
#[derive(Clone, Copy)]
pub struct RejectionLayer<F> {
    respond: F,
}

impl<F, RB> RejectionLayer<F>
where
    F: Fn(BoxError) -> Response<RB>,
{
    /// Errors become what `respond` makes of them.
    pub const fn new(respond: F) -> Self {
        Self { respond }
    }
}

impl RejectionLayer<fn(BoxError) -> Response<Full<Bytes>>> {
    /// Errors become RFC 9457 problem documents: `{"type":"about:blank","title":..,"status":..,"detail":..}`.
    pub const fn problem_json() -> Self {
        Self { respond: problem_json }
    }

    /// Errors become what OpenAI's clients understand: `{"error":{"message":..,"type":..,"param":null,"code":..}}`.
    ///
    /// Refusals that no later try can pass carry `x-should-retry: false`, which OpenAI's clients obey.
    pub const fn openai_json() -> Self {
        Self { respond: openai_json }
    }
}

impl<F> fmt::Debug for RejectionLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RejectionLayer").finish_non_exhaustive()
    }
}

impl<S, F: Clone> Layer<S> for RejectionLayer<F> {
    type Service = Rejection<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Rejection { inner, respond: self.respond.clone(), failed: None }
    }
}

/// The service made by [`RejectionLayer`].
pub struct Rejection<S, F> {
    inner: S,
    respond: F,
    /// The error of `poll_ready`, until the next call answers with it.
    failed: Option<BoxError>,
}

/// A clone is not ready, so what the original's `poll_ready` said stays with the original.
impl<S: Clone, F: Clone> Clone for Rejection<S, F> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), respond: self.respond.clone(), failed: None }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Rejection<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejection").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, F, Req, B, RB> Service<Req> for Rejection<S, F>
where
    S: Service<Req, Response = Response<B>>,
    S::Error: Into<BoxError>,
    F: Fn(BoxError) -> Response<RB> + Clone,
{
    type Response = Response<Either<B, RB>>;
    type Error = Infallible;
    type Future = ResponseFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        if self.failed.is_none()
            && let Err(error) = ready!(self.inner.poll_ready(cx))
        {
            self.failed = Some(error.into());
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let state = match self.failed.take() {
            Some(error) => State::Failed { error: Some(error) },
            None => State::Running { future: self.inner.call(request) },
        };
        ResponseFuture { state, respond: self.respond.clone() }
    }
}

pin_project! {
    /// The response future of [`Rejection`].
    pub struct ResponseFuture<Fut, F> {
        #[pin]
        state: State<Fut>,
        respond: F,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<Fut> {
        Running { #[pin] future: Fut },
        Failed { error: Option<BoxError> },
    }
}

impl<Fut, F, B, E, RB> Future for ResponseFuture<Fut, F>
where
    Fut: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    F: Fn(BoxError) -> Response<RB>,
{
    type Output = Result<Response<Either<B, RB>>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let error = match this.state.project() {
            StateProj::Running { future } => match ready!(future.poll(cx)) {
                Ok(response) => return Poll::Ready(Ok(response.map(Either::Left))),
                Err(error) => error.into(),
            },
            StateProj::Failed { error } => error.take().expect("polled after completion"),
        };
        Poll::Ready(Ok((this.respond)(error).map(Either::Right)))
    }
}

impl<Fut, F> fmt::Debug for ResponseFuture<Fut, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// The response of [`RejectionLayer::problem_json`], for a function of one's own that handles some errors itself.
#[expect(clippy::needless_pass_by_value, reason = "the signature that `RejectionLayer::new` asks for")]
pub fn problem_json(error: BoxError) -> Response<Full<Bytes>> {
    let told = Told::of(&error);
    let title = told.status.canonical_reason().unwrap_or("Error");
    let body = format!(
        r#"{{"type":"about:blank","title":{},"status":{},"detail":{}}}"#,
        json_string(title),
        told.status.as_u16(),
        json_string(&told.message),
    );
    told.response("application/problem+json", body)
}

/// The response of [`RejectionLayer::openai_json`], for a function of one's own that handles some errors itself.
#[expect(clippy::needless_pass_by_value, reason = "the signature that `RejectionLayer::new` asks for")]
pub fn openai_json(error: BoxError) -> Response<Full<Bytes>> {
    let told = Told::of(&error);
    let kind = match told.status.as_u16() {
        400 | 409 | 413 => "invalid_request_error",
        429 => "rate_limit_error",
        503 => "service_unavailable_error",
        504 => "timeout_error",
        _ => "api_error",
    };
    let code = told.code.map_or_else(|| "null".to_owned(), json_string);
    let body = format!(
        r#"{{"error":{{"message":{},"type":"{kind}","param":null,"code":{code}}}}}"#,
        json_string(&told.message),
    );
    let mut response = told.response("application/json", body);
    if told.retry_after == RetryAfter::Never {
        response
            .headers_mut()
            .insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
    }
    response
}

/// What an error lets the outside know.
struct Told<'a> {
    status: StatusCode,
    message: String,
    code: Option<&'static str>,
    retry_after: RetryAfter,
    headers: Option<&'a HeaderMap>,
}

impl<'a> Told<'a> {
    fn of(error: &'a BoxError) -> Self {
        match Rejected::find(&**error) {
            Some(rejected) => {
                let (status, code) = rejected.kind().status_and_code();
                Self {
                    status,
                    message: rejected.to_string(),
                    code: Some(code),
                    retry_after: rejected.retry_after(),
                    headers: rejected.headers(),
                }
            }
            None => {
                let (status, message) = if is_transport(&**error) {
                    (StatusCode::BAD_GATEWAY, "the service behind this one could not be reached")
                } else {
                    (StatusCode::INTERNAL_SERVER_ERROR, "internal error")
                };
                let (message, retry_after) = (message.to_owned(), RetryAfter::Unknown);
                Self { status, message, code: None, retry_after, headers: None }
            }
        }
    }

    fn response(&self, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(body)));
        *response.status_mut() = self.status;
        if let Some(headers) = self.headers {
            response.headers_mut().clone_from(headers);
        }
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers::set_retry_after(response.headers_mut(), self.retry_after);
        response
    }
}

impl RejectionKind {
    /// The status and the `code` with which [`RejectionLayer`] answers a refusal of this kind.
    pub const fn status_and_code(self) -> (StatusCode, &'static str) {
        match self {
            Self::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "rate_limited"),
            Self::ExceedsCapacity => (StatusCode::PAYLOAD_TOO_LARGE, "exceeds_capacity"),
            Self::QueueFull => (StatusCode::TOO_MANY_REQUESTS, "queue_full"),
            Self::QueueTimeout => (StatusCode::TOO_MANY_REQUESTS, "queue_timeout"),
            Self::CircuitOpen => (StatusCode::SERVICE_UNAVAILABLE, "circuit_open"),
            Self::Invalid => (StatusCode::BAD_REQUEST, "invalid"),
            Self::InvalidAnswer => (StatusCode::BAD_GATEWAY, "invalid_answer"),
            Self::Unhealthy => (StatusCode::SERVICE_UNAVAILABLE, "unhealthy"),
            Self::Exhausted => (StatusCode::BAD_GATEWAY, "exhausted"),
            Self::Deadline => (StatusCode::GATEWAY_TIMEOUT, "deadline"),
            Self::Conflict => (StatusCode::CONFLICT, "conflict"),
            Self::Panicked => (StatusCode::INTERNAL_SERVER_ERROR, "panicked"),
            Self::Protocol => (StatusCode::BAD_GATEWAY, "protocol"),
            Self::Lagged => (StatusCode::SERVICE_UNAVAILABLE, "lagged"),
            Self::Closed => (StatusCode::SERVICE_UNAVAILABLE, "closed"),
        }
    }
}

fn is_transport(error: &(dyn std::error::Error + 'static)) -> bool {
    chain(error).any(<dyn std::error::Error>::is::<std::io::Error>)
}

/// `text` as a JSON string: a serializer for one string is not worth a dependency in every layer.
fn json_string(text: &str) -> String {
    use fmt::Write as _;

    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes everything"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}
