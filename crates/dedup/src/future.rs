use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    NAME, Served, Share, Ticket,
    execution::{Call, Record},
    flight::{Arrival, Outcome, Seat, Value},
};

pin_project! {
    /// The response future of [`Deduplicate`](crate::Deduplicate).
    pub struct ResponseFuture<S, Req, K, T, X>
    where
        S: Service<Req>,
    {
        #[pin]
        stage: Stage<S, Req, K, T, X>,
        share: X,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, Req, K, T, X>
    where
        S: Service<Req>,
    {
        Kept { value: Option<Value<T>>, served: Served },
        // `instead`: the caller's own call, should the answer turn out to be for another one alone.
        Waiting { seat: Option<Seat<K, T>>, instead: Option<Box<Record<S, Req, X>>> },
        // Drives a call for a new answer, and takes the stale one.
        Passing { seat: Option<Seat<K, T>>, tape: Arc<T>, served: Served },
        Alone { #[pin] call: Call<S, Req> },
        Conflict,
    }
}

impl<S: Service<Req>, Req, K, T, X> ResponseFuture<S, Req, K, T, X> {
    pub(crate) const fn kept(value: Value<T>, served: Served, share: X) -> Self {
        Self { stage: Stage::Kept { value: Some(value), served }, share }
    }

    pub(crate) const fn waiting(seat: Seat<K, T>, instead: Option<Box<Record<S, Req, X>>>, share: X) -> Self {
        Self { stage: Stage::Waiting { seat: Some(seat), instead }, share }
    }

    pub(crate) const fn passing(seat: Seat<K, T>, tape: Arc<T>, served: Served, share: X) -> Self {
        Self { stage: Stage::Passing { seat: Some(seat), tape, served }, share }
    }

    pub(crate) const fn alone(inner: S, request: Req, share: X) -> Self {
        Self { stage: Stage::Alone { call: Call::new(inner, request) }, share }
    }

    pub(crate) const fn conflict(share: X) -> Self {
        Self { stage: Stage::Conflict, share }
    }
}

impl<S, Req, K, T, X> Future for ResponseFuture<S, Req, K, T, X>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    K: Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    X: Share<S::Response, Tape = T>,
{
    type Output = Result<X::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let instead = match this.stage.as_mut().project() {
                StageProjection::Kept { value, served } => {
                    let value = value.take().expect("polled after completion");
                    let played = value.map(|tape| this.share.play(&tape, Ticket::kept(*served)));
                    return Poll::Ready(played.map_err(Into::into));
                }
                StageProjection::Passing { seat, tape, served } => {
                    let mut seat = seat.take().expect("polled after completion");
                    let arrival = seat.poll(cx);
                    let new = match &arrival {
                        Poll::Ready(Arrival::Own(tape)) => Some(tape),
                        Poll::Ready(Arrival::Shared(Outcome::Done(Ok(tape)))) => Some(&**tape),
                        _ => None,
                    };
                    let response = match new {
                        Some(tape) if this.share.is_whole(tape) => {
                            seat.renewed();
                            this.share.play(tape, seat.ticket())
                        }
                        _ => this.share.play(tape, Ticket::kept(*served)),
                    };
                    return Poll::Ready(Ok(response));
                }
                StageProjection::Waiting { seat, instead } => {
                    let waiting = seat.as_mut().expect("polled after completion");
                    let arrival = ready!(waiting.poll(cx));
                    let seat = seat.take().expect("it was there just now");
                    match arrival {
                        Arrival::Own(tape) => {
                            return Poll::Ready(Ok(this.share.play(&tape, seat.ticket())));
                        }
                        Arrival::Shared(outcome) => match instead.take() {
                            Some(instead) if !is_for_all(&outcome, this.share) => {
                                seat.parts();
                                instead
                            }
                            _ => return Poll::Ready(arrived(outcome, seat, this.share)),
                        },
                    }
                }
                StageProjection::Alone { call } => {
                    let response = ready!(call.poll(cx))?;
                    return Poll::Ready(Ok(this.share.pass(response)));
                }
                StageProjection::Conflict => {
                    let conflict = Rejected::new(RejectionKind::Conflict, NAME);
                    return Poll::Ready(Err(conflict.with_retry_after(RetryAfter::Never).into()));
                }
            };
            this.stage.set(Stage::Alone { call: instead.into_call() });
        }
    }
}

/// Whether it is for those who have joined, too.
fn is_for_all<Res, T, X: Share<Res, Tape = T>>(outcome: &Outcome<T>, share: &X) -> bool {
    match outcome {
        Outcome::Private(_) => false,
        Outcome::Done(Ok(tape)) | Outcome::Failure(tape) => share.is_whole(tape),
        _ => true,
    }
}

fn arrived<Res, K, T, X>(outcome: Outcome<T>, seat: Seat<K, T>, share: &X) -> Result<X::Response, BoxError>
where
    K: Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    X: Share<Res, Tape = T>,
{
    match outcome {
        Outcome::Done(Ok(tape)) | Outcome::Failure(tape) | Outcome::Private(tape) => {
            Ok(share.play(&tape, seat.ticket()))
        }
        Outcome::StandIn(stand_in) => {
            let (tape, served) = *stand_in;
            seat.stood_in();
            Ok(share.play(&tape, Ticket::kept(served)))
        }
        Outcome::Done(Err(error)) => {
            // So that the last one has the error to himself.
            drop(seat);
            Err(error.into_box())
        }
        Outcome::Panicked => Err(Rejected::new(RejectionKind::Panicked, NAME).into()),
    }
}

impl<S: Service<Req>, Req, K, T, X> fmt::Debug for ResponseFuture<S, Req, K, T, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Kept { .. } => "kept",
            Stage::Waiting { .. } => "waiting",
            Stage::Passing { .. } => "passing",
            Stage::Alone { .. } => "alone",
            Stage::Conflict => "conflict",
        };
        f.debug_struct("ResponseFuture").field("stage", &stage).finish_non_exhaustive()
    }
}
