//! Streams that commit: their response is given away once it has begun to say something.

use std::{
    error::Error,
    fmt,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Response, response::Parts};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

mod body;
mod future;

pub use body::CommittedBody;
pub use future::CommitFuture;

/// When a response has begun to say something: [`FirstChunk`], `FirstEvent` and `LlmEvents` (feature `sse`), or one's own.
pub trait Commit {
    /// What looks at one response.
    type Watch: Watch;

    /// What is to look at the response with this head; `None` lets it pass as it is.
    fn watch(&self, head: &Parts) -> Option<Self::Watch>;
}

/// Looks at one response's body, chunk by chunk as it comes.
pub trait Watch: Unpin {
    /// A chunk of a body that has not committed yet.
    fn chunk(&mut self, chunk: &Bytes) -> Step;

    /// A chunk of a body that has. Nothing is done with it unless [`end`](Self::end) has to know.
    fn pass(&mut self, chunk: &Bytes) {
        let _ = chunk;
    }

    /// The body has ended.
    ///
    /// # Errors
    ///
    /// If it must not end here: before the response has committed it fails with that, and afterwards the body does.
    fn end(&mut self) -> Result<(), BoxError>;
}

/// What a chunk means for the response that it is of.
#[derive(Debug)]
pub enum Step {
    /// Nothing yet.
    Wait,
    /// It has begun to say something: it is the answer.
    Commit,
    /// It has failed.
    Reject(BoxError),
}

/// The first byte commits, and a body without any is an answer, too.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstChunk;

impl Commit for FirstChunk {
    type Watch = Self;

    fn watch(&self, _: &Parts) -> Option<Self> {
        Some(*self)
    }
}

impl Watch for FirstChunk {
    fn chunk(&mut self, chunk: &Bytes) -> Step {
        if chunk.is_empty() { Step::Wait } else { Step::Commit }
    }

    fn end(&mut self) -> Result<(), BoxError> {
        Ok(())
    }
}

/// Holds a response back until its body has begun to say something, and fails the call if it does not.
///
/// A fallback, a retry or a breaker above it sees an upstream that breaks off, stalls or sends garbage after a good head as
/// what it is: a call that has failed, of which the caller has seen nothing. Put it around each target. Once a response has
/// committed, what was held back comes first, byte for byte, and an error of the body is the caller's.
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::BoxError;
/// use bartizan_fallback::{CommitLayer, Fallback, FirstChunk};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body::Frame;
/// use http_body_util::{BodyExt, Full, StreamBody};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let stalls = service_fn(async |_: Request<()>| {
///     let never = futures_util::stream::pending::<Result<Frame<Bytes>, BoxError>>();
///     Ok::<_, BoxError>(Response::new(StreamBody::new(never)))
/// });
/// let works = service_fn(async |_: Request<()>| Ok::<_, BoxError>(Response::new(Full::from("an answer"))));
///
/// let streams = CommitLayer::new(FirstChunk).within(Duration::from_secs(5));
/// let fallback = Fallback::new(["stalls", "works"]);
/// let service = fallback.http_layer("stalls").or("works", streams.layer(works)).layer(streams.layer(stalls));
/// let response = service.oneshot(Request::new(())).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), "an answer");
/// # Ok(())
/// # }
/// ```
///
/// # Behaviour
///
/// Ready when the service below is. A call resolves when the response commits; within [`within`](Self::within) of its head
/// and within [`max_start`](Self::max_start) bytes, or it fails with [`NotBegun`]. Dropping the call drops the body.
/// Bodies must be `Unpin`, as those of hyper, axum and tonic are.
#[derive(Clone, Debug)]
pub struct CommitLayer<C> {
    commit: C,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    within: Duration,
    max_start: usize,
}

impl<C> CommitLayer<C> {
    /// Commits as `commit` says, within 60 seconds and 64 KiB.
    pub const fn new(commit: C) -> Self {
        Self { commit, limits: Limits { within: Duration::from_secs(60), max_start: 64 * 1024 } }
    }

    /// How long a response may take from its head until it commits. 60 seconds by default.
    ///
    /// # Panics
    ///
    /// If that is no time.
    #[must_use]
    pub const fn within(mut self, time: Duration) -> Self {
        assert!(!time.is_zero(), "a response that must commit within no time never does");
        self.limits.within = time;
        self
    }

    /// How many bytes of a response are held back, at most. 64 KiB by default; one that has said nothing by then fails.
    ///
    /// # Panics
    ///
    /// If that is none.
    #[must_use]
    pub const fn max_start(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "a response that must commit within 0 bytes never does");
        self.limits.max_start = bytes;
        self
    }
}

impl<S, C: Clone> Layer<S> for CommitLayer<C> {
    type Service = CommitService<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        CommitService { inner, commit: self.commit.clone(), limits: self.limits }
    }
}

/// The service of a [`CommitLayer`].
#[derive(Clone, Debug)]
pub struct CommitService<S, C> {
    inner: S,
    commit: C,
    limits: Limits,
}

impl<S, C, Req, B> Service<Req> for CommitService<S, C>
where
    S: Service<Req, Response = Response<B>>,
    S::Error: Into<BoxError>,
    C: Commit + Clone,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Response = Response<CommittedBody<B, C::Watch>>;
    type Error = BoxError;
    type Future = CommitFuture<S::Future, B, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        CommitFuture::new(self.inner.call(request), self.commit.clone(), self.limits)
    }
}

/// Why a response has not committed. Its source is the body's error, or what a [`Watch`] has said.
#[derive(Debug)]
pub struct NotBegun {
    what: What,
    source: Option<BoxError>,
}

#[derive(Clone, Copy, Debug)]
enum What {
    BrokeOff,
    Rejected,
    Late(Duration),
    Long(usize),
}

impl NotBegun {
    const fn new(what: What) -> Self {
        Self { what, source: None }
    }

    fn of(what: What, source: BoxError) -> Self {
        Self { what, source: Some(source) }
    }

    /// Whether the response had its time, and said nothing.
    pub const fn is_late(&self) -> bool {
        matches!(self.what, What::Late(_))
    }
}

impl fmt::Display for NotBegun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.what {
            What::BrokeOff => f.write_str("the response broke off before it had begun")?,
            What::Rejected => f.write_str("the response has not begun as it should")?,
            What::Late(within) => write!(f, "the response had not begun within {within:?} of its head")?,
            What::Long(max) => write!(f, "the response had not begun within its first {max} bytes")?,
        }
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl Error for NotBegun {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
