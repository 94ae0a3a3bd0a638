use std::{
    error::Error,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::{BoxError, Classify};
use tower_service::Service;

use crate::{CloneRequest, Fallback, Form, ResponseFuture, Targets, lanes::Lanes};

/// The service of a [`FallbackLayer`](crate::FallbackLayer). Its clones, and the calls under way, share its targets.
pub struct FallbackService<T, C, K, F> {
    shared: Lanes<Shared<T, C, K, F>>,
}

pub(crate) struct Shared<T, C, K, F> {
    pub(crate) fallback: Fallback,
    /// One for each target.
    pub(crate) links: Box<[Link]>,
    pub(crate) targets: T,
    pub(crate) classify: C,
    pub(crate) clone: K,
    pub(crate) form: F,
}

/// What is known of a layer's target, but for its service.
#[derive(Clone)]
pub(crate) struct Link {
    /// Its place in the fallback.
    pub(crate) place: usize,
    pub(crate) takes: Option<Arc<Takes>>,
}

/// Whether a target takes over from a failure with this cause, or from nobody.
pub(crate) type Takes = dyn Fn(Option<&(dyn Error + 'static)>) -> bool + Send + Sync;

impl Link {
    pub(crate) const fn to(place: usize) -> Self {
        Self { place, takes: None }
    }
}

impl<T, C, K, F> FallbackService<T, C, K, F> {
    pub(crate) fn new(shared: Shared<T, C, K, F>) -> Self {
        Self { shared: Lanes::new(shared) }
    }
}

impl<T, C, K, F, Req> Service<Req> for FallbackService<T, C, K, F>
where
    T: Targets<Req>,
    C: Classify<T::Response>,
    K: CloneRequest<Req>,
    F: Form<Req, T::Response>,
{
    type Response = T::Response;
    type Error = BoxError;
    type Future = ResponseFuture<T, C, K, F, Req>;

    /// Always: whoever is asked is made ready within the call.
    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture::new(self.shared.own(), request)
    }
}

impl<T, C, K, F> Clone for FallbackService<T, C, K, F> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone() }
    }
}

impl<T: fmt::Debug, C, K, F> fmt::Debug for FallbackService<T, C, K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackService")
            .field("fallback", &self.shared.fallback)
            .field("targets", &self.shared.targets)
            .finish_non_exhaustive()
    }
}
