use std::{
    fmt, mem,
    task::{Context, Poll},
};

use bartizan_core::{BoxError, Classify, Extent};
use tower_service::Service;

use crate::{
    Answered, CircuitBreaker, Mode, Permit, ResponseFuture, Select,
    permit::{Admitted, Call},
};

/// The service of a [`CircuitBreakerLayer`](crate::CircuitBreakerLayer).
pub struct Break<S, B, C, E, M> {
    inner: S,
    asked: Asked,
    breaker: B,
    classify: C,
    extent: E,
    mode: M,
}

/// How far the inner service is, this instance of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    No,
    /// It may hold a place in a queue for a readiness that nobody uses.
    Pending,
    Ready,
}

impl<S, B, C, E, M> Break<S, B, C, E, M> {
    pub(crate) const fn new(inner: S, breaker: B, classify: C, extent: E, mode: M) -> Self {
        Self { inner, asked: Asked::No, breaker, classify, extent, mode }
    }

    /// The service below.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below. What is called there directly meets no breaker.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service below, for good.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: Clone, B, C, E, M> Break<S, B, C, E, M> {
    /// The instance that was asked goes, and with it what it holds for a call that is not made.
    #[cold]
    fn give_back(&mut self) {
        if mem::replace(&mut self.asked, Asked::No) != Asked::No {
            self.inner = self.inner.clone();
        }
    }

    /// This instance, with the place it has.
    #[cold]
    fn take_inner(&mut self) -> S {
        let clone = self.inner.clone();
        mem::replace(&mut self.inner, clone)
    }
}

impl<S, B, C, E, M, Req> Service<Req> for Break<S, B, C, E, M>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    B: Select<Req>,
    C: Classify<S::Response> + Clone,
    E: Extent<S::Response>,
    M: Mode,
{
    type Response = E::Response<Option<Answered<C, S::Response>>>;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, C, E>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if let Some(breaker) = self.breaker.one() {
            match self.mode.poll(breaker, cx) {
                Poll::Ready(true) => {}
                // Whoever can answer without the inner service does not wait for it.
                Poll::Ready(false) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    self.give_back();
                    return Poll::Pending;
                }
            }
        }
        let unready = self.breaker.one().map(Unready);
        let ready = self.inner.poll_ready(cx);
        mem::forget(unready);
        match ready {
            Poll::Ready(Ok(())) => {
                self.asked = Asked::Ready;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => {
                self.asked = Asked::No;
                let error = error.into();
                if let Some(breaker) = self.breaker.one() {
                    count_unready(breaker, &self.classify, &error);
                }
                Poll::Ready(Err(error))
            }
            Poll::Pending => {
                self.asked = Asked::Pending;
                Poll::Pending
            }
        }
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let (classify, extent) = (self.classify.clone(), self.extent.clone());
        let admitted = match self.breaker.admit(&request) {
            Ok(admitted) => admitted,
            Err(wait) => {
                self.give_back();
                return ResponseFuture::refused(wait, classify, extent);
            }
        };
        if mem::replace(&mut self.asked, Asked::No) == Asked::Ready {
            // In its parts: as a whole, which a panic would drop, it would have to stand in memory.
            let (call, owner) = admitted.map(Admitted::split).unzip();
            let armed = call.map(Call::arm);
            let inner = self.inner.call(request);
            mem::forget(armed);
            let admitted = call.map(|call| Admitted { call, owner: owner.flatten() });
            return ResponseFuture::calling(inner, admitted.into(), classify, extent);
        }
        // It became closed or half-open since: the call waits for the inner service itself, with the place it has.
        let permit = Permit::from(admitted);
        ResponseFuture::readying(self.take_inner(), request, permit, classify, extent)
    }
}

/// The inner service while it is asked whether it is ready: a panic there is a failure.
struct Unready<'a>(&'a CircuitBreaker);

impl Drop for Unready<'_> {
    #[cold]
    fn drop(&mut self) {
        if let Ok(admitted) = self.0.admit() {
            Permit::from(admitted).failure();
        }
    }
}

/// A readiness that fails is a failure.
#[cold]
fn count_unready<Res>(breaker: &CircuitBreaker, classify: &impl Classify<Res>, error: &BoxError) {
    if let Ok(admitted) = breaker.admit() {
        let mut permit = Permit::from(admitted);
        let class = permit.armed(|_| classify.classify(Err(&**error)));
        permit.finish(class);
    }
}

impl<S: Clone, B: Clone, C: Clone, E: Clone, M: Clone> Clone for Break<S, B, C, E, M> {
    /// Readiness belongs to the instance: a clone has none.
    fn clone(&self) -> Self {
        let Self { inner, breaker, classify, extent, mode, .. } = self;
        Self::new(inner.clone(), breaker.clone(), classify.clone(), extent.clone(), mode.clone())
    }
}

impl<S: fmt::Debug, B: fmt::Debug, C, E, M> fmt::Debug for Break<S, B, C, E, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Break")
            .field("inner", &self.inner)
            .field("asked", &self.asked)
            .field("breaker", &self.breaker)
            .finish_non_exhaustive()
    }
}
