use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{
    Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH},
};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{error::event_of, media::is_event_stream};

/// Tells a client of a stream that failed, in the stream: its error becomes its last event.
///
/// Put it where responses leave for clients. Without it a server can only cut the connection when a stream fails, which
/// many clients take for its end. Responses that are no event streams are left alone, and so are compressed ones: put
/// compression outside.
///
/// ```
/// use bartizan_core::BoxError;
/// use bartizan_provider::{Class, Error, ErrorEventsLayer};
/// use bytes::Bytes;
/// use http::Response;
/// use http_body::Frame;
/// use http_body_util::{BodyExt, StreamBody};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # tokio_test::block_on(async {
/// let upstream = service_fn(|()| async {
///     let frames = [Ok(Frame::data(Bytes::from("data: 1\n\n"))), Err(Error::new(Class::Upstream, "it broke"))];
///     let body = StreamBody::new(futures_util::stream::iter(frames));
///     Response::builder().header("content-type", "text/event-stream").body(body)
/// });
/// let response = ErrorEventsLayer::new().on_error(|error| eprintln!("{error}")).layer(upstream).oneshot(()).await?;
/// let body = response.into_body().collect().await?.to_bytes();
/// assert!(body.starts_with(b"data: 1\n\ndata: {\"error\":{\"message\":\"it broke\""));
/// # Ok::<(), BoxError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Copy)]
pub struct ErrorEventsLayer<F = fn(&BoxError)> {
    on_error: F,
}

impl ErrorEventsLayer {
    /// Tells the client, and nobody else.
    pub const fn new() -> Self {
        Self { on_error: |_| {} }
    }
}

impl Default for ErrorEventsLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<F> ErrorEventsLayer<F> {
    /// Shows every error of a body to `on_error` as well, those of other bodies included: for logs.
    pub fn on_error<G>(self, on_error: G) -> ErrorEventsLayer<G>
    where
        G: Fn(&BoxError) + Clone,
    {
        ErrorEventsLayer { on_error }
    }
}

impl<F> fmt::Debug for ErrorEventsLayer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorEventsLayer").finish_non_exhaustive()
    }
}

impl<S, F: Clone> Layer<S> for ErrorEventsLayer<F> {
    type Service = ErrorEvents<S, F>;

    fn layer(&self, inner: S) -> Self::Service {
        ErrorEvents { inner, on_error: self.on_error.clone() }
    }
}

/// The service made by [`ErrorEventsLayer`].
#[derive(Clone)]
pub struct ErrorEvents<S, F = fn(&BoxError)> {
    inner: S,
    on_error: F,
}

impl<S: fmt::Debug, F> fmt::Debug for ErrorEvents<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorEvents").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, F, Req, B> Service<Req> for ErrorEvents<S, F>
where
    S: Service<Req, Response = Response<B>>,
    F: Clone,
{
    type Response = Response<ErrorEventsBody<B, F>>;
    type Error = S::Error;
    type Future = ErrorEventsFuture<S::Future, F>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ErrorEventsFuture { future: self.inner.call(request), on_error: Some(self.on_error.clone()) }
    }
}

pin_project! {
    /// The response future of [`ErrorEvents`].
    pub struct ErrorEventsFuture<Fut, F> {
        #[pin]
        future: Fut,
        on_error: Option<F>,
    }
}

impl<Fut, F, B, E> Future for ErrorEventsFuture<Fut, F>
where
    Fut: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ErrorEventsBody<B, F>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.future.poll(cx))?;
        let on_error = this.on_error.take().expect("polled after completion");
        let headers = response.headers_mut();
        let applies = is_event_stream(headers) && !headers.contains_key(CONTENT_ENCODING);
        if applies {
            // An event more than it counts may come.
            headers.remove(CONTENT_LENGTH);
        }
        Poll::Ready(Ok(response.map(|inner| ErrorEventsBody {
            inner,
            on_error,
            applies,
            within_event: false,
            failed: false,
        })))
    }
}

impl<Fut, F> fmt::Debug for ErrorEventsFuture<Fut, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorEventsFuture").finish_non_exhaustive()
    }
}

/// How a frame ends that ends with an event. One that is not recognised costs an empty line.
const ENDINGS: [&[u8]; 3] = [b"\n\n", b"\r\n\r\n", b"\r\r"];

pin_project! {
    /// The response body of [`ErrorEvents`].
    pub struct ErrorEventsBody<B, F> {
        #[pin]
        inner: B,
        on_error: F,
        // It is an event stream, and nothing is wrapped around it.
        applies: bool,
        // What came last is not the end of an event.
        within_event: bool,
        failed: bool,
    }
}

impl<B, F> Body for ErrorEventsBody<B, F>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    F: Fn(&BoxError),
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.project();
        if *this.failed {
            return Poll::Ready(None);
        }
        let error = match ready!(this.inner.poll_frame(cx)) {
            Some(Err(error)) => error.into(),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
                    *this.within_event = !ENDINGS.iter().any(|ending| data.ends_with(ending));
                }
                return Poll::Ready(Some(Ok(frame)));
            }
            None => return Poll::Ready(None),
        };
        (this.on_error)(&error);
        if !*this.applies {
            return Poll::Ready(Some(Err(error)));
        }
        *this.failed = true;
        let event = event_of(&*error);
        // Half an event must not swallow this one.
        let event = if *this.within_event { [b"\n\n", &event[..]].concat().into() } else { event };
        Poll::Ready(Some(Ok(Frame::data(event))))
    }

    fn is_end_stream(&self) -> bool {
        self.failed || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // An event more than the inner body knows of may come.
        if self.applies { SizeHint::default() } else { self.inner.size_hint() }
    }
}

impl<B: fmt::Debug, F> fmt::Debug for ErrorEventsBody<B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorEventsBody")
            .field("inner", &self.inner)
            .field("failed", &self.failed)
            .finish_non_exhaustive()
    }
}
