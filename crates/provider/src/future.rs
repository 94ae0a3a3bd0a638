use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version,
    header::{CONTENT_ENCODING, CONTENT_LANGUAGE, ETAG, LAST_MODIFIED},
    response::Parts,
};
use http_body::Body;
use pin_project_lite::pin_project;

use crate::{
    Class, Error, Facts, Operation, ResponseBody, Usage, UsageReport,
    body::Frames,
    error::SHOULD_RETRY,
    events::Events,
    json::is_well_formed,
    limits::Watch,
    media::{is_event_stream, is_json},
    service::{Upstream, clean_response, of_transport},
};

/// What headers say of the bytes of a body, and of none that take their place.
pub(crate) const OF_THE_BYTES: [HeaderName; 6] = [
    CONTENT_ENCODING,
    CONTENT_LANGUAGE,
    ETAG,
    LAST_MODIFIED,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
];

/// The longest error response that is read, in bytes.
const MAX_ERROR: u64 = 64 * 1024;

pin_project! {
    /// The response future of [`Provider`](crate::Provider).
    pub struct ResponseFuture<F, B> {
        #[pin]
        state: State<F, B>,
        expected: Expected,
        upstream: Arc<Upstream>,
    }
}

/// What is known of an answer before it is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// To a HEAD: there is nothing to check.
    head_only: bool,
    operation: Operation,
    /// Of a model's answer, whether it was asked for as a stream, if anybody has read the request.
    stream: Option<bool>,
}

impl Expected {
    pub(crate) fn of(request: &Request<Bytes>) -> Self {
        let operation = Operation::of_path(request.uri().path());
        let facts = request.extensions().get::<Facts>();
        let stream = match operation {
            Operation::Chat => facts.filter(|facts| facts.describe(request.body())).map(Facts::stream),
            Operation::Embeddings => Some(false),
            _ => None,
        };
        Self { head_only: request.method() == Method::HEAD, operation, stream }
    }

    /// The answer is a model's, and always has something in it.
    fn is_of_a_model(self) -> bool {
        matches!(self.operation, Operation::Chat | Operation::Embeddings)
    }
}

pin_project! {
    #[project = StateProj]
    #[project_replace = StateOwn]
    enum State<F, B> {
        Failed { error: Error },
        Head { #[pin] future: F, watch: Watch },
        Body { #[pin] body: B, reading: Reading },
        Done,
    }
}

/// An answer that is being read whole.
struct Reading {
    head: Parts,
    frames: Frames,
    max: u64,
    watch: Watch,
    expected: Expected,
}

impl<F, B> ResponseFuture<F, B> {
    pub(crate) fn new(future: F, expected: Expected, upstream: Arc<Upstream>) -> Self {
        let watch = Watch::start(upstream.limits);
        Self { state: State::Head { future, watch }, expected, upstream }
    }

    pub(crate) fn failed(error: Error, expected: Expected, upstream: Arc<Upstream>) -> Self {
        Self { state: State::Failed { error }, expected, upstream }
    }
}

impl<F, B, E> Future for ResponseFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<ResponseBody<B>>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Head { future, watch } => {
                    let response = match future.poll(cx) {
                        Poll::Ready(response) => response.map_err(|error| of_transport(error.into()))?,
                        Poll::Pending => return Poll::Ready(Err(ready!(watch.poll_over(cx)))),
                    };
                    watch.head();
                    let StateOwn::Head { watch, .. } = this.state.as_mut().project_replace(State::Done)
                    else {
                        unreachable!("the state was looked at above")
                    };
                    let (mut head, body) = response.into_parts();
                    // That is what the connection speaks, and the client has another one.
                    head.version = Version::default();
                    let empty = head.status == StatusCode::NO_CONTENT && !this.expected.is_of_a_model();
                    if this.expected.head_only || empty {
                        clean_response(&mut head.headers);
                        return Poll::Ready(Ok(Response::from_parts(
                            head,
                            ResponseBody::whole(Frames::default()),
                        )));
                    }
                    let kind = Kind::of(&head, *this.expected)?;
                    clean_response(&mut head.headers);
                    if let Kind::Events = kind {
                        let usage = UsageReport::default();
                        head.extensions.insert(usage.clone());
                        let events = Events::new(body, watch, usage, this.upstream.clone());
                        return Poll::Ready(Ok(Response::from_parts(head, ResponseBody::events(events))));
                    }
                    let max = if let Kind::Error = kind { MAX_ERROR } else { this.upstream.max_response };
                    let reading =
                        Reading { head, frames: Frames::default(), max, watch, expected: *this.expected };
                    this.state.set(State::Body { body, reading });
                }
                StateProj::Body { body, reading } => {
                    ready!(reading.poll(body, cx))?;
                    let StateOwn::Body { reading, .. } = this.state.as_mut().project_replace(State::Done)
                    else {
                        unreachable!("the state was looked at above")
                    };
                    return Poll::Ready(reading.finish(this.upstream.secret()));
                }
                StateProj::Failed { .. } | StateProj::Done => {
                    return match this.state.project_replace(State::Done) {
                        StateOwn::Failed { error } => Poll::Ready(Err(error)),
                        _ => panic!("polled after completion"),
                    };
                }
            }
        }
    }
}

enum Kind {
    Events,
    Json,
    Error,
}

impl Kind {
    fn of(head: &Parts, expected: Expected) -> Result<Self, Error> {
        let malformed = |message: String| Err(Error::new(Class::Malformed, message));
        let status = head.status;
        if status.is_client_error() || status.is_server_error() {
            return Ok(Self::Error);
        }
        if !status.is_success() {
            // A redirect is not followed: the key would go wherever it points.
            return malformed(format!(
                "the upstream answered with status {status}, which is no answer to an API call"
            ));
        }
        if matches!(status.as_u16(), 204..=206) && expected.is_of_a_model() {
            return malformed(format!(
                "the upstream answered with status {status}, which is no whole answer"
            ));
        }
        if let Some(encoding) = head.headers.get(CONTENT_ENCODING).filter(|encoding| *encoding != "identity")
        {
            return malformed(format!(
                "the upstream's answer is compressed ({encoding:?}), which nobody asked for"
            ));
        }
        if is_event_stream(&head.headers) {
            match expected.stream {
                Some(false) => malformed("the upstream's answer is a stream, which nobody asked for".into()),
                _ => Ok(Self::Events),
            }
        } else if is_json(&head.headers) {
            Ok(Self::Json)
        } else {
            let found = head.headers.get(http::header::CONTENT_TYPE);
            malformed(format!(
                "the upstream's answer is neither JSON nor an event stream: its content type is {found:?}"
            ))
        }
    }
}

impl Reading {
    fn poll<B>(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Result<(), Error>>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<BoxError>,
    {
        while !body.is_end_stream() {
            match body.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    self.watch.frame();
                    if let Ok(bytes) = frame.into_data() {
                        if self.frames.len() + bytes.len() as u64 > self.max {
                            return Poll::Ready(self.too_long());
                        }
                        self.frames.push(bytes);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(cut(error.into()))),
                Poll::Ready(None) => break,
                Poll::Pending => return self.watch.poll_over(cx).map(Err),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn too_long(&self) -> Result<(), Error> {
        if self.is_error() {
            // The beginning of an error says what it is.
            return Ok(());
        }
        let message = format!("the upstream's answer is longer than {} bytes", self.max);
        Err(Error::new(Class::Malformed, message))
    }

    fn is_error(&self) -> bool {
        !self.head.status.is_success()
    }

    fn finish<B>(mut self, secret: Option<&str>) -> Result<Response<ResponseBody<B>>, Error> {
        let body = self.frames.concat();
        let secrets = secret.as_slice();
        let (status, headers) = (self.head.status, &self.head.headers);
        if self.is_error() {
            let error = Error::of_response(status, headers, &body, secrets);
            return Ok(self.error_response(error, status, &body, secrets));
        }
        if !is_document(&body, self.expected.operation) {
            let message = format!("the upstream's answer is no whole JSON document ({} bytes)", body.len());
            return Err(Error::new(Class::Malformed, message));
        }
        if self.expected.is_of_a_model()
            && let Some(error) = Error::of_answer(headers, &body, secrets)
        {
            let status = error.status();
            return Ok(self.error_response(error, status, &body, secrets));
        }
        if self.expected.stream == Some(true) {
            let message = "the upstream's answer is no stream, which was asked for";
            return Err(Error::new(Class::Malformed, message));
        }
        if let Some(usage) = Usage::of_json(&body) {
            self.head.extensions.insert(UsageReport::of(usage));
        }
        Ok(Response::from_parts(self.head, ResponseBody::whole(self.frames)))
    }

    fn set_status(&mut self, status: StatusCode) {
        if status != self.head.status {
            self.head.status = status;
            // hyper notes the words of a status line that are not the usual ones, and writes them behind any status.
            #[cfg(any(feature = "client", feature = "mock"))]
            self.head.extensions.remove::<hyper::ext::ReasonPhrase>();
        }
    }

    /// With this status, and in the upstream's words where they can be passed on.
    fn error_response<B>(
        mut self,
        error: Error,
        status: StatusCode,
        body: &[u8],
        secrets: &[&str],
    ) -> Response<ResponseBody<B>> {
        self.set_status(status);
        let frames = if error.passes(body, secrets) {
            if !error.is_transient() {
                // Else OpenAI's clients would try a 429 again that says that the quota is used up.
                let headers = &mut self.head.headers;
                headers.entry(SHOULD_RETRY).or_insert(HeaderValue::from_static("false"));
            }
            self.frames
        } else {
            let (told, _) = error.to_response().into_parts();
            self.set_status(told.status);
            for name in OF_THE_BYTES {
                self.head.headers.remove(name);
            }
            for (name, value) in &told.headers {
                self.head.headers.insert(name, value.clone());
            }
            Bytes::from(error.json()).into()
        };
        self.head.extensions.insert(Arc::new(error));
        Response::from_parts(self.head, ResponseBody::whole(frames))
    }
}

/// Whether the answer to this operation is there from its beginning to its end. Of what nobody here knows, all that can be
/// said is whether it begins and ends as JSON does.
fn is_document(body: &[u8], operation: Operation) -> bool {
    let text = body.trim_ascii();
    let ends = matches!((text.first(), text.last()), (Some(b'{'), Some(b'}')) | (Some(b'['), Some(b']')));
    ends && (operation == Operation::Other || is_well_formed(text))
}

fn cut(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::new(Class::Upstream, "the upstream's answer was cut off").with_source(error),
    }
}

impl<F, B> fmt::Debug for ResponseFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
