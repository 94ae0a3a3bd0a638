use std::{
    fmt,
    task::{Context, Poll},
};

use bartizan_core::{BoxError, Extent, UntilResponse};
use tower_service::Service;

use crate::{
    QueuedFuture, ResponseFuture,
    after::Charge,
    layer::{Queue, Reject},
    rules::{Refused, RulesFor},
};

/// The service of a [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone)]
pub struct RateLimit<S, R, M = Reject, E = UntilResponse> {
    pub(crate) inner: S,
    pub(crate) rules: R,
    pub(crate) mode: M,
    pub(crate) extent: E,
}

impl<S, R, M, E> RateLimit<S, R, M, E> {
    pub(crate) const fn new(inner: S, rules: R, mode: M, extent: E) -> Self {
        Self { inner, rules, mode, extent }
    }

    /// The service below.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below. What is called there directly is not limited.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service below, for good.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

/// What a layer answers with: the response, held until the call is over.
pub(crate) type Held<Req, Res, R, E> =
    <E as Extent<Res>>::Response<<<R as RulesFor<Req, Res>>::Charge as Charge<Res>>::Guard>;

impl<S, R, E, Req> Service<Req> for RateLimit<S, R, Reject, E>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    R: RulesFor<Req, S::Response>,
    E: Extent<S::Response>,
{
    type Response = Held<Req, S::Response, R, E>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, R::Charge, E>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        match self.rules.admit(&request) {
            Ok(charge) => ResponseFuture::admitted(self.inner.call(request), charge, self.extent.clone()),
            Err(Refused(refusal)) => {
                // The instance that is ready goes, and with it what it holds for a call that is not made.
                self.inner = self.inner.clone();
                ResponseFuture::refused(refusal)
            }
        }
    }
}

impl<S, R, E, Req> Service<Req> for RateLimit<S, R, Queue, E>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    R: RulesFor<Req, S::Response> + Clone,
    E: Extent<S::Response>,
{
    type Response = Held<Req, S::Response, R, E>;
    type Error = BoxError;
    type Future = QueuedFuture<S, Req, R, E>;

    /// The inner service is made ready when the call's turn has come.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (service, rules) = (self.inner.clone(), self.rules.clone());
        QueuedFuture::new(service, request, rules, self.mode.0, self.extent.clone())
    }
}

impl<S: fmt::Debug, R: fmt::Debug, M: fmt::Debug, E> fmt::Debug for RateLimit<S, R, M, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("rules", &self.rules)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
