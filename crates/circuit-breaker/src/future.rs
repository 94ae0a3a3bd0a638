use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Class, Classify, Extent, RetryAfter};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{Answered, Permit, breaker::refusal};

pin_project! {
    /// The response future of [`Break`](crate::Break).
    pub struct ResponseFuture<S, Req, C, E>
    where
        S: Service<Req>,
    {
        #[pin]
        state: Stage<S, Req, S::Future>,
        permit: Option<Permit>,
        classify: C,
        extent: E,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, Req, F> {
        Calling { #[pin] inner: F },
        Readying { next: Option<(S, Req)> },
        Refused { retry_after: RetryAfter },
    }
}

impl<S: Service<Req>, Req, C, E> ResponseFuture<S, Req, C, E> {
    #[inline]
    pub(crate) const fn calling(inner: S::Future, permit: Option<Permit>, classify: C, extent: E) -> Self {
        Self { state: Stage::Calling { inner }, permit, classify, extent }
    }

    pub(crate) const fn readying(
        inner: S,
        request: Req,
        permit: Option<Permit>,
        classify: C,
        extent: E,
    ) -> Self {
        Self { state: Stage::Readying { next: Some((inner, request)) }, permit, classify, extent }
    }

    pub(crate) const fn refused(retry_after: RetryAfter, classify: C, extent: E) -> Self {
        Self { state: Stage::Refused { retry_after }, permit: None, classify, extent }
    }
}

impl<S, Req, C, E> Future for ResponseFuture<S, Req, C, E>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    C: Classify<S::Response> + Clone,
    E: Extent<S::Response>,
{
    type Output = Result<E::Response<Option<Answered<C, S::Response>>>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let state = this.state.as_mut();
        let (result, class) = match this.permit {
            Some(permit) => {
                ready!(permit.armed(|| run(state, cx).map(|result| judged(result, this.classify))))
            }
            // No breaker watches this call, or refused it.
            None => ready!(run(state, cx).map(|result| (result, Class::Ignore))),
        };
        // What has succeeded so far is not over before its extent is. What is over is settled where it stands: to move it
        // just after it was written would cost more than all the rest.
        if (E::ENDS_WITH_RESPONSE || result.is_err() || class != Class::Success)
            && let Some(permit) = this.permit
        {
            permit.finish(class);
        }
        let permit = if E::ENDS_WITH_RESPONSE { None } else { this.permit.take() };
        let answered = permit.map(|permit| Answered::new(permit, this.classify.clone()));
        Poll::Ready(result.map(|response| this.extent.hold(response, answered)))
    }
}

#[inline]
fn run<S, Req>(
    mut state: Pin<&mut Stage<S, Req, S::Future>>,
    cx: &mut Context<'_>,
) -> Poll<Result<S::Response, BoxError>>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    loop {
        let calling = match state.as_mut().project() {
            StageProjection::Calling { inner } => return inner.poll(cx).map_err(Into::into),
            StageProjection::Readying { next } => {
                let (inner, _) = next.as_mut().expect("polled after completion");
                let ready = ready!(inner.poll_ready(cx));
                let (mut inner, request) = next.take().expect("it was there just now");
                if let Err(error) = ready {
                    return Poll::Ready(Err(error.into()));
                }
                inner.call(request)
            }
            StageProjection::Refused { retry_after } => {
                return Poll::Ready(Err(refusal(*retry_after).into()));
            }
        };
        state.set(Stage::Calling { inner: calling });
    }
}

#[inline]
fn judged<Res>(
    result: Result<Res, BoxError>,
    classify: &impl Classify<Res>,
) -> (Result<Res, BoxError>, Class) {
    let class = match &result {
        Ok(response) => classify.classify(Ok(response)),
        Err(error) => classify.classify(Err(&**error)),
    };
    (result, class)
}

impl<S: Service<Req>, Req, C, E> fmt::Debug for ResponseFuture<S, Req, C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.state {
            Stage::Calling { .. } => "calling",
            Stage::Readying { .. } => "readying",
            Stage::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture")
            .field("stage", &stage)
            .field("permit", &self.permit)
            .finish_non_exhaustive()
    }
}
