use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Class, Classify, Extent, Rejected};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{Answered, Permit, breaker::refusal, wait::Wait};

pin_project! {
    /// The response future of [`Break`](crate::Break).
    pub struct ResponseFuture<S, Req, C, E>
    where
        S: Service<Req>,
    {
        #[pin]
        state: Stage<S, Req, S::Future>,
        permit: Permit,
        classify: C,
        extent: E,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, Req, F> {
        Calling { #[pin] inner: F },
        Readying { next: Option<(S, Req)> },
        Refused { wait: Wait },
    }
}

impl<S: Service<Req>, Req, C, E> ResponseFuture<S, Req, C, E> {
    #[inline]
    pub(crate) fn calling(inner: S::Future, permit: Permit, classify: C, extent: E) -> Self {
        Self { state: Stage::Calling { inner }, permit, classify, extent }
    }

    pub(crate) fn readying(inner: S, request: Req, permit: Permit, classify: C, extent: E) -> Self {
        Self { state: Stage::Readying { next: Some((inner, request)) }, permit, classify, extent }
    }

    pub(crate) fn refused(wait: Wait, classify: C, extent: E) -> Self {
        Self { state: Stage::Refused { wait }, permit: Permit::from(None), classify, extent }
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
        loop {
            let next = match this.state.as_mut().project() {
                StageProjection::Calling { inner } => {
                    // What is over is settled where it stands: to move it just after it was written would cost more than
                    // all the rest.
                    let (result, class) = ready!(this.permit.armed(|watched| {
                        inner
                            .poll(cx)
                            .map(|result| judged(result.map_err(Into::into), this.classify, watched))
                    }));
                    // What has succeeded so far is not over before its extent is.
                    let goes_on = !E::ENDS_WITH_RESPONSE && result.is_ok() && class == Class::Success;
                    let goes_on = if goes_on { this.permit.take() } else { None };
                    this.permit.finish(class);
                    let answered = goes_on.map(|permit| Answered::new(permit, this.classify.clone()));
                    return Poll::Ready(result.map(|response| this.extent.hold(response, answered)));
                }
                StageProjection::Readying { next } => next,
                StageProjection::Refused { wait } => return Poll::Ready(Err(refused(*wait))),
            };
            let inner = ready!(ready_and_call(next, this.permit, this.classify, cx))?;
            this.state.set(Stage::Calling { inner });
        }
    }
}

#[inline]
fn judged<Res>(
    result: Result<Res, BoxError>,
    classify: &impl Classify<Res>,
    watched: bool,
) -> (Result<Res, BoxError>, Class) {
    let class = match &result {
        _ if !watched => Class::Ignore,
        Ok(response) => classify.classify(Ok(response)),
        Err(error) => classify.classify(Err(&**error)),
    };
    (result, class)
}

/// What is refused most wants to be told fast: it is written where it stays. Made first and boxed then it would be copied in
/// other parts than it was written in, which the processor stands still for.
#[cold]
fn refused(wait: Wait) -> BoxError {
    let refused: Box<Rejected> = Box::write(Box::new_uninit(), refusal(wait));
    refused
}

/// A readiness that fails is a failure of the call.
#[cold]
fn ready_and_call<S, Req>(
    next: &mut Option<(S, Req)>,
    permit: &mut Permit,
    classify: &impl Classify<S::Response>,
    cx: &mut Context<'_>,
) -> Poll<Result<S::Future, BoxError>>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    let (result, class) = ready!(permit.armed(|watched| {
        let (inner, _) = next.as_mut().expect("polled after completion");
        let ready = ready!(inner.poll_ready(cx));
        let (mut inner, request) = next.take().expect("it was there just now");
        Poll::Ready(match ready {
            Ok(()) => (Ok(inner.call(request)), None),
            Err(error) => {
                let error = error.into();
                let class = watched.then(|| classify.classify(Err(&*error)));
                (Err(error), class)
            }
        })
    }));
    if let Some(class) = class {
        permit.finish(class);
    }
    Poll::Ready(result)
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
