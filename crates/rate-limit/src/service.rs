use std::{
    borrow::Borrow,
    fmt,
    hash::Hash,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use tower_service::Service;

use crate::{
    KeyOf, QueuedFuture, ResponseFuture, Rule,
    layer::{Queue, Reject},
    rule::{CostOf, Refused, Rules},
    ticket::Ticket,
};

/// The service of a [`RateLimitLayer`](crate::RateLimitLayer).
#[derive(Clone)]
pub struct RateLimit<S, R, M = Reject> {
    inner: S,
    rules: R,
    mode: M,
}

impl<S, R, M> RateLimit<S, R, M> {
    pub(crate) const fn new(inner: S, rules: R, mode: M) -> Self {
        Self { inner, rules, mode }
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

impl<S, R, Req> Service<Req> for RateLimit<S, R>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    R: Rules<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        match self.rules.admit(&request) {
            Ok(()) => ResponseFuture::admitted(self.inner.call(request)),
            Err(Refused(refusal)) => {
                // The instance that is ready goes, and with it what it holds for a call that is not made.
                self.inner = self.inner.clone();
                ResponseFuture::refused(refusal)
            }
        }
    }
}

impl<S, K, Key, Cost, Req> Service<Req> for RateLimit<S, Rule<K, Key, Cost>, Queue>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    K: Hash + Eq + Clone + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = QueuedFuture<S, Req, K>;

    /// The inner service is made ready when the call's turn has come.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let Some(claim) = self.rules.claim(&request) else {
            return QueuedFuture::passing(self.inner.clone(), request, None);
        };
        let limiter = claim.limiter.clone();
        match Ticket::new(limiter, claim.key.into_owned(), claim.cost, self.mode.0) {
            Ok(ticket) => QueuedFuture::passing(self.inner.clone(), request, Some(ticket)),
            Err(refusal) => QueuedFuture::refused(refusal),
        }
    }
}

impl<S: fmt::Debug, R: fmt::Debug, M: fmt::Debug> fmt::Debug for RateLimit<S, R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RateLimit")
            .field("inner", &self.inner)
            .field("rules", &self.rules)
            .field("mode", &self.mode)
            .finish()
    }
}
