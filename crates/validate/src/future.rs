use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use pin_project_lite::pin_project;

use crate::{
    Policy, Report,
    answers::{Answers, Asked},
};

pin_project! {
    /// The response future of [`Validate`](crate::Validate).
    pub struct ResponseFuture<F, A, C> {
        #[pin]
        state: State<F, A, C>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, A, C> {
        Calling { #[pin] inner: F, rest: Option<(A, Option<Policy>, Asked)> },
        Checking { #[pin] checking: C },
        Refused { report: Option<Report>, headers: bool },
    }
}

impl<F, A, C> ResponseFuture<F, A, C> {
    #[inline]
    pub(crate) const fn passed(inner: F, answers: A, policy: Option<Policy>, asked: Asked) -> Self {
        Self { state: State::Calling { inner, rest: Some((answers, policy, asked)) } }
    }

    pub(crate) const fn refused(report: Report, headers: bool) -> Self {
        Self { state: State::Refused { report: Some(report), headers } }
    }
}

impl<F, Res, E, A> Future for ResponseFuture<F, A, A::Checking>
where
    F: Future<Output = Result<Res, E>>,
    E: Into<BoxError>,
    A: Answers<Res>,
{
    type Output = Result<A::Response, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let checking = match this.state.as_mut().project() {
                StateProjection::Calling { inner, rest } => {
                    let response = ready!(inner.poll(cx)).map_err(Into::into)?;
                    let (answers, policy, asked) = rest.take().expect("polled after completion");
                    answers.check(response, policy, asked)
                }
                StateProjection::Checking { checking } => return checking.poll(cx),
                StateProjection::Refused { report, headers } => {
                    let report = report.take().expect("polled after completion");
                    return Poll::Ready(Err(report.into_error(*headers)));
                }
            };
            this.state.set(State::Checking { checking });
        }
    }
}

impl<F, A, C> fmt::Debug for ResponseFuture<F, A, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::Checking { .. } => "checking",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
