//! Targets that are no services of somebody's.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use tower_service::Service;

/// Answers with what a function says: [`FallbackLayer::or_value`](crate::FallbackLayer::or_value).
#[derive(Clone, Copy)]
pub struct Answer<F>(pub(crate) F);

impl<Req, Res, F: FnMut(Req) -> Res> Service<Req> for Answer<F> {
    type Response = Res;
    type Error = Infallible;
    type Future = Ready<Result<Res, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ready(Ok((self.0)(request)))
    }
}

impl<F> fmt::Debug for Answer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Answer")
    }
}

/// Asks a service for what a function makes of the request: [`FallbackLayer::or_with`](crate::FallbackLayer::or_with).
#[derive(Clone, Copy)]
pub struct Transform<S, F> {
    pub(crate) service: S,
    pub(crate) transform: F,
}

impl<Req, S, F, To> Service<Req> for Transform<S, F>
where
    S: Service<To>,
    F: FnMut(Req) -> To,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        self.service.call((self.transform)(request))
    }
}

impl<S: fmt::Debug, F> fmt::Debug for Transform<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transform").field("service", &self.service).finish_non_exhaustive()
    }
}
