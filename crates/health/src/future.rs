use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Class, Classify, Rejected, RejectionKind, RetryAfter};
use pin_project_lite::pin_project;

use crate::{Answered, Explain, NAME, Until, call::Call};

pin_project! {
    /// The response future of [`HealthService`](crate::HealthService).
    pub struct ResponseFuture<F, C, X, E> {
        #[pin]
        stage: Stage<F>,
        call: Call,
        classify: C,
        explain: X,
        until: E,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<F> {
        Calling { #[pin] inner: F },
        Refused { wait: RetryAfter },
    }
}

impl<F, C, X, E> ResponseFuture<F, C, X, E> {
    #[inline]
    pub(crate) const fn calling(inner: F, call: Call, classify: C, explain: X, until: E) -> Self {
        Self { stage: Stage::Calling { inner }, call, classify, explain, until }
    }

    pub(crate) const fn refused(wait: RetryAfter, classify: C, explain: X, until: E) -> Self {
        Self { stage: Stage::Refused { wait }, call: Call::nothing(), classify, explain, until }
    }
}

impl<F, Res, Err, C, X, E> Future for ResponseFuture<F, C, X, E>
where
    F: Future<Output = Result<Res, Err>>,
    Err: Into<BoxError>,
    C: Classify<Res> + Clone,
    X: Explain<Res> + Clone,
    E: Until<Res>,
{
    type Output = Result<E::Response<C, X>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let inner = match this.stage.project() {
            StageProjection::Calling { inner } => inner,
            StageProjection::Refused { wait } => return Poll::Ready(Err(refusal(*wait))),
        };
        let (classify, explain) = (&*this.classify, &*this.explain);
        let (result, goes_on) = ready!(this.call.armed(|call| {
            inner.poll(cx).map(|result| {
                let result = result.map_err(Into::into);
                let seen = result.as_ref().map_err(|error| &**error as _);
                let class = classify.classify(seen);
                // What has succeeded so far is not over before its extent is.
                let goes_on = !E::ENDS_WITH_RESPONSE && result.is_ok() && class == Class::Success;
                if !goes_on {
                    call.answered(class, explain, seen);
                }
                (result, goes_on)
            })
        }));
        let answered = goes_on.then(|| Answered::new(this.call.take(), classify.clone(), explain.clone()));
        Poll::Ready(result.map(|response| this.until.hold(response, answered)))
    }
}

#[cold]
fn refusal(wait: RetryAfter) -> BoxError {
    Rejected::new(RejectionKind::Unhealthy, NAME).with_retry_after(wait).into()
}

impl<F, C, X, E> fmt::Debug for ResponseFuture<F, C, X, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Calling { .. } => "calling",
            Stage::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .field("call", &self.call)
            .finish_non_exhaustive()
    }
}
