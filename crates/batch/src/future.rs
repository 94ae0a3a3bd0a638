use std::{
    fmt,
    hash::Hash,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;

use crate::{error::Failure, flight::Outcome, shared::FlightOf};

/// The response future of [`Batched`](crate::Batched).
///
/// Dropped before its batch goes it takes its item out of it; dropped later it changes nothing for the others.
pub struct ResponseFuture<Req, T, E, K: Eq + Hash + Clone = ()> {
    state: State<Req, T, E, K>,
}

enum State<Req, T, E, K> {
    Waiting(Member<Req, T, E, K>),
    Refused,
    Over,
}

impl<Req, T, E, K: Eq + Hash + Clone> ResponseFuture<Req, T, E, K> {
    pub(crate) fn new(member: Option<Member<Req, T, E, K>>) -> Self {
        let state = match member {
            Some(member) => State::Waiting(member),
            None => State::Refused,
        };
        Self { state }
    }
}

impl<Req, T, E, K> Future for ResponseFuture<Req, T, E, K>
where
    E: Into<BoxError>,
    K: Eq + Hash + Clone,
{
    type Output = Result<T, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = match &self.state {
            State::Waiting(member) => ready!(member.flight.poll(member.seat, cx)),
            State::Refused => Outcome::Failed(Failure::Closed),
            State::Over => panic!("polled after completion"),
        };
        self.state = State::Over;
        Poll::Ready(match outcome {
            Outcome::Result(result) => result.map_err(Into::into),
            Outcome::Failed(failure) => Err(failure.into()),
        })
    }
}

impl<Req, T, E, K: Eq + Hash + Clone> Drop for ResponseFuture<Req, T, E, K> {
    fn drop(&mut self) {
        if let State::Waiting(Member { flight, seat, weight }) = &self.state
            && !flight.shared.leave(flight.place, *seat, *weight)
        {
            flight.leave(*seat);
        }
    }
}

/// A call that is in a batch.
pub(crate) struct Member<Req, T, E, K> {
    pub(crate) flight: FlightOf<Req, T, E, K>,
    pub(crate) seat: usize,
    pub(crate) weight: u64,
}

impl<Req, T, E, K: Eq + Hash + Clone> fmt::Debug for ResponseFuture<Req, T, E, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting(_) => "waiting",
            State::Refused => "refused",
            State::Over => "over",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
