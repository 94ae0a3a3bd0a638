use std::{
    fmt,
    task::{Context, Poll},
};

use bartizan_core::{BoxError, Classify};
use tower_service::Service;

use crate::{Component, Explain, ResponseFuture, Until, call::Call, clock};

/// The service of a [`HealthLayer`](crate::HealthLayer).
pub struct HealthService<S, C, X, E> {
    inner: S,
    component: Component,
    classify: C,
    explain: X,
    until: E,
    shed: bool,
}

impl<S, C, X, E> HealthService<S, C, X, E> {
    pub(crate) const fn new(
        inner: S,
        component: Component,
        classify: C,
        explain: X,
        until: E,
        shed: bool,
    ) -> Self {
        Self { inner, component, classify, explain, until, shed }
    }

    /// The service below.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below. What is called there directly is not watched.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service below, for good.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, C, X, E, Req> Service<Req> for HealthService<S, C, X, E>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    C: Classify<S::Response> + Clone,
    X: Explain<S::Response> + Clone,
    E: Until<S::Response>,
{
    type Response = E::Response<C, X>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, C, X, E>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(|error| {
            let error = error.into();
            // A readiness that fails is a failure.
            let (classify, explain) = (&self.classify, &self.explain);
            Call::unready(&self.component.watched).fail(classify, explain, &*error);
            error
        })
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let (classify, explain, until) = (self.classify.clone(), self.explain.clone(), self.until.clone());
        let (watched, now) = (&self.component.watched, clock::now());
        if self.shed
            && let Err(wait) = self.component.admit(watched.at(now))
        {
            watched.record_refused();
            // The instance that was asked goes, and with it what it holds for a call that is not made.
            self.inner = self.inner.clone();
            return ResponseFuture::refused(wait, classify, explain, until);
        }
        let mut call = Call::begin(watched, now);
        let inner = call.armed(|_| self.inner.call(request));
        ResponseFuture::calling(inner, call, classify, explain, until)
    }
}

impl<S: Clone, C: Clone, X: Clone, E: Clone> Clone for HealthService<S, C, X, E> {
    fn clone(&self) -> Self {
        let Self { inner, component, classify, explain, until, shed } = self;
        Self {
            inner: inner.clone(),
            component: component.clone(),
            classify: classify.clone(),
            explain: explain.clone(),
            until: until.clone(),
            shed: *shed,
        }
    }
}

impl<S: fmt::Debug, C, X, E> fmt::Debug for HealthService<S, C, X, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthService")
            .field("inner", &self.inner)
            .field("component", &self.component)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, not(loom)))]
#[path = "service/tests.rs"]
mod tests;
