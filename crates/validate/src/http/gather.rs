use std::{
    convert::Infallible,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, Request, request::Parts};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use super::message::declared;
use crate::{NAME, Part, Report};

/// Reads the bodies of requests, so that rules can look at them: put it outside of a validator's layer where bodies arrive
/// while the request is under way, as they do in a server.
///
/// What is below gets the body as it came, trailers included, in one piece. A body that is longer than is said is refused
/// unread if its length was declared, and as soon as it is longer if not: `ExceedsCapacity`, which `RejectionLayer` answers
/// with 413. One that breaks off is refused as `Invalid`. Both have a [`Report`] as their source, and say that no later try
/// will pass; no validator counts them.
///
/// It is always ready: a body is read first, and then a clone of the service below is made ready, so that none is held by
/// a client that takes its time. Whoever fears that bounds the time from outside.
///
/// ```
/// use bartizan_core::{BoxError, Rejected, RejectionKind};
/// use bartizan_validate::{GatherLayer, Gathered, Level, Rules, Validator, well_formed};
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # tokio_test::block_on(async {
/// let validator = Validator::http(Rules::new().error("json", well_formed(64)));
/// let service = ServiceBuilder::new()
///     .layer(GatherLayer::new(16))
///     .layer(validator.layer(Level::Moderate))
///     .service_fn(|request: Request<Gathered>| async move { Ok::<_, BoxError>(Response::new(request.into_body())) });
/// let call = |body: &'static str| service.clone().oneshot(Request::new(Full::<bytes::Bytes>::from(body)));
///
/// let echoed = call(r#"{"a": 1}"#).await?.into_body().collect().await?.to_bytes();
/// assert_eq!(echoed, r#"{"a": 1}"#);
/// assert!(call("{").await.is_err(), "the rule has seen the body");
/// let error = call(r#"{"a": "much too long"}"#).await.unwrap_err();
/// assert_eq!(Rejected::find(&*error).expect("a refusal").kind(), RejectionKind::ExceedsCapacity);
/// # Ok::<(), BoxError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy, Debug)]
pub struct GatherLayer {
    max_bytes: usize,
}

impl GatherLayer {
    /// Bodies of at most `max_bytes` bytes. As many may be held for every request that is under way.
    pub const fn new(max_bytes: usize) -> Self {
        Self { max_bytes }
    }
}

impl<S> Layer<S> for GatherLayer {
    type Service = Gather<S>;

    fn layer(&self, inner: S) -> Gather<S> {
        Gather { inner, max_bytes: self.max_bytes }
    }
}

/// The service of a [`GatherLayer`].
#[derive(Clone, Debug)]
pub struct Gather<S> {
    inner: S,
    max_bytes: usize,
}

impl<S, B> Service<Request<B>> for Gather<S>
where
    S: Service<Request<Gathered>> + Clone,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Gathering<S, B, S::Future>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let most = self.max_bytes;
        let state = if declared(request.headers(), request.body()) > most as u64 {
            State::TooLong
        } else {
            let (head, body) = request.into_parts();
            State::Reading { body, read: Read::Nothing, trailers: None, head: Some(head) }
        };
        Gathering { inner: self.inner.clone(), most, state }
    }
}

/// The body of a request that was read.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    data: Bytes,
    trailers: Option<HeaderMap>,
}

impl Gathered {
    /// Its bytes. What it has of trailers is lost.
    pub fn into_bytes(self) -> Bytes {
        self.data
    }
}

impl From<Bytes> for Gathered {
    fn from(data: Bytes) -> Self {
        Self { data, trailers: None }
    }
}

impl AsRef<[u8]> for Gathered {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Body for Gathered {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = if self.data.is_empty() {
            self.trailers.take().map(Frame::trailers)
        } else {
            Some(Frame::data(mem::take(&mut self.data)))
        };
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.len() as u64)
    }
}

/// What was read of a body. One that arrives in one piece is not copied.
enum Read {
    Nothing,
    One(Bytes),
    More(BytesMut),
}

impl Read {
    fn len(&self) -> usize {
        match self {
            Self::Nothing => 0,
            Self::One(data) => data.len(),
            Self::More(data) => data.len(),
        }
    }

    fn add(&mut self, next: Bytes) {
        *self = match mem::replace(self, Self::Nothing) {
            Self::Nothing => Self::One(next),
            Self::One(first) => {
                let mut all = BytesMut::from(first);
                all.extend_from_slice(&next);
                Self::More(all)
            }
            Self::More(mut all) => {
                all.extend_from_slice(&next);
                Self::More(all)
            }
        }
    }

    fn take(&mut self) -> Bytes {
        match mem::replace(self, Self::Nothing) {
            Self::Nothing => Bytes::new(),
            Self::One(data) => data,
            Self::More(data) => data.freeze(),
        }
    }
}

pin_project! {
    /// The response future of [`Gather`].
    pub struct Gathering<S, B, F> {
        inner: S,
        most: usize,
        #[pin]
        state: State<B, F>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<B, F> {
        TooLong,
        Reading { #[pin] body: B, read: Read, trailers: Option<HeaderMap>, head: Option<Parts> },
        Read { request: Option<Request<Gathered>> },
        Calling { #[pin] calling: F },
    }
}

impl<S, B> Future for Gathering<S, B, S::Future>
where
    S: Service<Request<Gathered>>,
    S::Error: Into<BoxError>,
    B: Body,
    B::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::TooLong => return Poll::Ready(Err(too_long(*this.most))),
                StateProjection::Reading { body, read, trailers, head } => {
                    match ready!(body.poll_frame(cx)) {
                        Some(Ok(frame)) => {
                            match frame.into_data() {
                                Ok(mut data) if data.remaining() <= *this.most - read.len() => {
                                    read.add(data.copy_to_bytes(data.remaining()));
                                    continue;
                                }
                                // The body goes at once: nobody reads on.
                                Ok(_) => State::TooLong,
                                Err(frame) => {
                                    *trailers = frame.into_trailers().ok();
                                    continue;
                                }
                            }
                        }
                        Some(Err(error)) => return Poll::Ready(Err(broken_off(&error.into()))),
                        None => {
                            let head = head.take().expect("polled after completion");
                            let body = Gathered { data: read.take(), trailers: trailers.take() };
                            State::Read { request: Some(Request::from_parts(head, body)) }
                        }
                    }
                }
                StateProjection::Read { request } => {
                    ready!(this.inner.poll_ready(cx)).map_err(Into::into)?;
                    let request = request.take().expect("polled after completion");
                    State::Calling { calling: this.inner.call(request) }
                }
                StateProjection::Calling { calling } => return calling.poll(cx).map_err(Into::into),
            };
            this.state.set(next);
        }
    }
}

fn too_long(most: usize) -> BoxError {
    refusal(RejectionKind::ExceedsCapacity, format!("the body is longer than {most} bytes"))
}

fn broken_off(error: &BoxError) -> BoxError {
    refusal(RejectionKind::Invalid, format!("the body could not be read: {error}"))
}

fn refusal(kind: RejectionKind, message: String) -> BoxError {
    let report = Report::malformed(Part::Request, "body", message);
    Rejected::new(kind, NAME).with_retry_after(RetryAfter::Never).with_source(report).into()
}

impl<S, B, F> fmt::Debug for Gathering<S, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::TooLong => "too long",
            State::Reading { .. } => "reading",
            State::Read { .. } => "read",
            State::Calling { .. } => "calling",
        };
        f.debug_struct("Gathering").field("state", &state).finish_non_exhaustive()
    }
}
