//! The service below every contender, and calls of it.

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use tower::Service;

use crate::measure::{drive, drive_refused, drive_whatever};

/// What a call of a benchmark asks for. Its number is its key.
pub(crate) type Call = u64;

/// Answers at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Inner;

impl Service<Call> for Inner {
    type Response = Call;
    type Error = Infallible;
    type Future = Ready<Result<Call, Infallible>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        ready(Ok(call))
    }
}

/// Answers at once, and fails one call of fifty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failing;

/// Why [`Failing`] fails.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed;

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it fails")
    }
}

impl Error for Failed {}

impl Service<Call> for Failing {
    type Response = Call;
    type Error = Failed;
    type Future = Ready<Result<Call, Failed>>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        ready(if call % 50 == 49 { Err(Failed) } else { Ok(call) })
    }
}

pub(crate) fn outcomes_of<S: Service<Call>>(mut service: S) -> impl FnMut(u64) {
    move |calls| drive_whatever(&mut service, 0..calls)
}

pub(crate) fn calls_of<S: Service<Call>>(mut service: S) -> impl FnMut(u64) {
    move |calls| drive(&mut service, 0..calls)
}

pub(crate) fn refusals_of<S: Service<Call>>(mut service: S) -> impl FnMut(u64) {
    move |calls| drive_refused(&mut service, (0..calls).map(|_| 0))
}
