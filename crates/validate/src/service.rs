use std::{
    fmt,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use tower_service::Service;

use crate::{
    Part, Policy, Report, ResponseFuture, Validator, Waiting,
    answers::{Answers, Asked, Unchecked},
};

/// The service of a [`ValidateLayer`](crate::ValidateLayer).
pub struct Validate<S, Req, A = Unchecked> {
    inner: S,
    validator: Validator<Req, A>,
    policy: Policy,
}

impl<S, Req, A> Validate<S, Req, A> {
    pub(crate) const fn new(inner: S, validator: Validator<Req, A>, policy: Policy) -> Self {
        Self { inner, validator, policy }
    }

    /// The service below.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below. What is called there directly is not checked.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service below, for good.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Req, A> Service<Req> for Validate<S, Req, A>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    A: Answers<S::Response>,
{
    type Response = A::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, A, A::Checking, Waiting<S, Req, A>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        // Nothing that is ready is held while services are asked.
        if self.validator.shared.waits() {
            return Poll::Ready(Ok(()));
        }
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let Validator { shared, answers, tally } = &self.validator;
        if shared.waits() {
            return ResponseFuture::waiting(Waiting::new(
                self.inner.clone(),
                request,
                self.validator.clone(),
                self.policy,
            ));
        }
        if !shared.is_enabled() {
            let asked = Asked::new(Report::clean(Part::Request));
            return ResponseFuture::passed(self.inner.call(request), answers.clone(), None, asked);
        }
        let mut findings = shared.requests.findings(self.policy);
        let expected = shared.look(&request, &mut findings);
        let asked = shared.conclude(&mut request, findings, expected, tally);
        if asked.report.refuses() {
            // The instance that is ready goes, and with it what it holds for a call that is not made.
            self.inner = self.inner.clone();
            return ResponseFuture::refused(asked.report, shared.headers);
        }
        ResponseFuture::passed(self.inner.call(request), answers.clone(), Some(self.policy), asked)
    }
}

impl<S: Clone, Req, A: Clone> Clone for Validate<S, Req, A> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.validator.clone(), self.policy)
    }
}

impl<S: fmt::Debug, Req, A> fmt::Debug for Validate<S, Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validate")
            .field("inner", &self.inner)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
