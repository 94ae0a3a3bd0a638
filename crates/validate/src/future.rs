use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    Part, Policy, Report, Validator,
    answers::{Answers, Asked, Expected},
    pending::Inquiring,
};

pin_project! {
    /// The response future of [`Validate`](crate::Validate).
    pub struct ResponseFuture<F, A, C, W> {
        #[pin]
        state: State<F, A, C, W>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, A, C, W> {
        // In a box, so that calls that wait for nobody are not as large.
        Waiting { waiting: Box<W> },
        Calling { #[pin] inner: F, rest: Option<(A, Option<Policy>, Asked)> },
        Checking { #[pin] checking: C },
        Refused { report: Option<Report>, headers: bool },
    }
}

impl<F, A, C, W> ResponseFuture<F, A, C, W> {
    #[inline]
    pub(crate) const fn passed(inner: F, answers: A, policy: Option<Policy>, asked: Asked) -> Self {
        Self { state: State::Calling { inner, rest: Some((answers, policy, asked)) } }
    }

    pub(crate) const fn refused(report: Report, headers: bool) -> Self {
        Self { state: State::Refused { report: Some(report), headers } }
    }

    pub(crate) fn waiting(waiting: W) -> Self {
        Self { state: State::Waiting { waiting: Box::new(waiting) } }
    }
}

impl<S, Req, A> Future for ResponseFuture<S::Future, A, A::Checking, Waiting<S, Req, A>>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    A: Answers<S::Response>,
{
    type Output = Result<A::Response, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                StateProjection::Waiting { waiting } => match ready!(waiting.poll(cx)) {
                    Ok((inner, rest)) => State::Calling { inner, rest: Some(rest) },
                    Err(error) => return Poll::Ready(Err(error)),
                },
                StateProjection::Calling { inner, rest } => {
                    let response = ready!(inner.poll(cx)).map_err(Into::into)?;
                    let (answers, policy, asked) = rest.take().expect("polled after completion");
                    State::Checking { checking: answers.check(response, policy, asked) }
                }
                StateProjection::Checking { checking } => return checking.poll(cx),
                StateProjection::Refused { report, headers } => {
                    let report = report.take().expect("polled after completion");
                    return Poll::Ready(Err(report.into_error(*headers)));
                }
            };
            this.state.set(next);
        }
    }
}

impl<F, A, C, W> fmt::Debug for ResponseFuture<F, A, C, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Waiting { .. } => "waiting",
            State::Calling { .. } => "calling",
            State::Checking { .. } => "checking",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}

/// A call whose rules are services: it waits for what they say, and then for the service below, of which it has a clone.
pub struct Waiting<S, Req, A> {
    inner: S,
    request: Option<Req>,
    validator: Validator<Req, A>,
    policy: Policy,
    step: Step,
}

enum Step {
    Asking { inquiring: Inquiring, expected: Option<Expected> },
    Ready { policy: Option<Policy>, asked: Option<Asked> },
}

/// What the service below makes of the call, and what is kept meanwhile.
type Called<F, A> = (F, (A, Option<Policy>, Asked));

impl<S, Req, A> Waiting<S, Req, A> {
    pub(crate) fn new(inner: S, request: Req, validator: Validator<Req, A>, policy: Policy) -> Self {
        let step = if validator.shared.is_enabled() {
            let rules = &validator.shared.requests;
            let mut findings = rules.findings(policy);
            let expected = validator.shared.look(&request, &mut findings);
            Step::Asking { inquiring: rules.inquire_all(&request, findings), expected }
        } else {
            Step::Ready { policy: None, asked: Some(Asked::new(Report::clean(Part::Request))) }
        };
        Self { inner, request: Some(request), validator, policy, step }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Called<S::Future, A>, BoxError>>
    where
        S: Service<Req>,
        S::Error: Into<BoxError>,
        A: Clone,
    {
        let Validator { shared, answers, tally } = &self.validator;
        if let Step::Asking { inquiring, expected } = &mut self.step {
            ready!(inquiring.poll(cx));
            let request = self.request.as_mut().expect("polled after completion");
            let asked = shared.conclude(request, inquiring.take(), expected.take(), tally);
            if asked.report.refuses() {
                return Poll::Ready(Err(asked.report.into_error(shared.headers)));
            }
            self.step = Step::Ready { policy: Some(self.policy), asked: Some(asked) };
        }
        ready!(self.inner.poll_ready(cx)).map_err(Into::into)?;
        let Step::Ready { policy, asked } = &mut self.step else { unreachable!("nobody is asked any more") };
        let request = self.request.take().expect("polled after completion");
        let asked = asked.take().expect("polled after completion");
        Poll::Ready(Ok((self.inner.call(request), (answers.clone(), *policy, asked))))
    }
}

impl<S, Req, A> fmt::Debug for Waiting<S, Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").field("policy", &self.policy).finish_non_exhaustive()
    }
}
