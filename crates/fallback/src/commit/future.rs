use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Response, response::Parts};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use super::{Commit, CommittedBody, Limits, NotBegun, Step, Watch, What, body::Held};
use crate::future::later;

pin_project! {
    /// The response future of [`CommitService`](crate::CommitService).
    pub struct CommitFuture<F, B, C>
    where
        C: Commit,
    {
        #[pin]
        stage: Stage<F, B, C::Watch>,
        #[pin]
        timer: Option<Sleep>,
        commit: C,
        limits: Limits,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F, B, W> {
        Call { #[pin] future: F },
        Begin { beginning: Option<Beginning<B, W>> },
    }
}

/// A response of which nobody has seen anything.
struct Beginning<B, W> {
    head: Parts,
    body: B,
    watch: W,
    held: Held,
    /// When it has had its time; known once it has to be waited for.
    late: Option<Instant>,
}

impl<F, B, C: Commit> CommitFuture<F, B, C> {
    pub(super) fn new(future: F, commit: C, limits: Limits) -> Self {
        Self { stage: Stage::Call { future }, timer: None, commit, limits }
    }
}

impl<F, E, B, C> Future for CommitFuture<F, B, C>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    C: Commit,
{
    type Output = Result<Response<CommittedBody<B, C::Watch>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let beginning = match this.stage.as_mut().project() {
                StageProjection::Call { future } => {
                    let (head, body) = ready!(future.poll(cx)).map_err(Into::into)?.into_parts();
                    let Some(watch) = this.commit.watch(&head) else {
                        this.stage.set(Stage::Begin { beginning: None });
                        return Poll::Ready(Ok(Response::from_parts(head, CommittedBody::as_it_is(body))));
                    };
                    let beginning = Beginning { head, body, watch, held: Held::default(), late: None };
                    this.stage.set(Stage::Begin { beginning: Some(beginning) });
                    continue;
                }
                StageProjection::Begin { beginning } => beginning,
            };
            let begun = beginning.as_mut().expect("polled after completion");
            let result = match begun.poll(this.limits.max_start, cx) {
                Poll::Ready(result) => result,
                Poll::Pending => {
                    let within = this.limits.within;
                    let late = *begun.late.get_or_insert_with(|| later(Instant::now(), within));
                    if this.timer.is_none() {
                        this.timer.set(Some(sleep_until(late)));
                    }
                    ready!(this.timer.as_mut().as_pin_mut().expect("it was set just now").poll(cx));
                    Err(NotBegun::new(What::Late(within)))
                }
            };
            // A response that fails is dropped here, and with it its connection.
            let begun = beginning.take().expect("it was there just now");
            return Poll::Ready(match result {
                Ok(()) => Ok(begun.into_response()),
                Err(error) => Err(error.into()),
            });
        }
    }
}

impl<B, W> Beginning<B, W>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    W: Watch,
{
    /// Ready when the response has committed, or never will.
    fn poll(&mut self, max_start: usize, cx: &mut Context<'_>) -> Poll<Result<(), NotBegun>> {
        loop {
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Err(NotBegun::of(What::BrokeOff, error.into()))),
                None => return Poll::Ready(self.end()),
            };
            let step = match frame.data_ref() {
                // Of frames without anything in them there is no end.
                Some(chunk) if chunk.is_empty() => continue,
                Some(chunk) => self.watch.chunk(chunk),
                None => Step::Wait,
            };
            self.held.push(frame);
            match step {
                Step::Commit => return Poll::Ready(Ok(())),
                Step::Reject(error) => return Poll::Ready(Err(NotBegun::of(What::Rejected, error))),
                Step::Wait if self.held.bytes() > max_start => {
                    return Poll::Ready(Err(NotBegun::new(What::Long(max_start))));
                }
                Step::Wait => {}
            }
        }
    }

    fn end(&mut self) -> Result<(), NotBegun> {
        self.watch.end().map_err(|error| NotBegun::of(What::Rejected, error))
    }

    fn into_response(self) -> Response<CommittedBody<B, W>> {
        Response::from_parts(self.head, CommittedBody::new(self.held, self.body, self.watch))
    }
}

impl<F, B, C: Commit> fmt::Debug for CommitFuture<F, B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Call { .. } => "calling",
            Stage::Begin { .. } => "beginning",
        };
        f.debug_struct("CommitFuture").field("stage", &stage).finish_non_exhaustive()
    }
}
