use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Extent, Rejected, UntilResponse};
use pin_project_lite::pin_project;

use crate::{after::Charge, error::Refusal};

pin_project! {
    /// The response future of [`RateLimit`](crate::RateLimit).
    pub struct ResponseFuture<F, C = (), E = UntilResponse> {
        #[pin]
        state: State<F, C, E>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F, C, E> {
        Admitted { #[pin] inner: F, charge: Option<C>, extent: E },
        Refused { refusal: Option<Refusal> },
    }
}

impl<F, C, E> ResponseFuture<F, C, E> {
    #[inline]
    pub(crate) const fn admitted(inner: F, charge: C, extent: E) -> Self {
        Self { state: State::Admitted { inner, charge: Some(charge), extent } }
    }

    #[inline]
    pub(crate) const fn refused(refusal: Refusal) -> Self {
        Self { state: State::Refused { refusal: Some(refusal) } }
    }
}

impl<F, Res, Err, C, E> Future for ResponseFuture<F, C, E>
where
    F: Future<Output = Result<Res, Err>>,
    Err: Into<BoxError>,
    C: Charge<Res>,
    E: Extent<Res>,
{
    type Output = Result<E::Response<C::Guard>, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Admitted { inner, charge, extent } => {
                let result = ready!(inner.poll(cx)).map_err(Into::into);
                let charge = charge.take().expect("polled after completion");
                Poll::Ready(match result {
                    Ok(mut response) => {
                        let guard = charge.answered(&mut response);
                        Ok(extent.hold(response, guard))
                    }
                    Err(error) => {
                        charge.failed(&*error);
                        Err(error)
                    }
                })
            }
            StateProjection::Refused { refusal } => {
                let refusal = refusal.take().expect("polled after completion");
                Poll::Ready(Err(Rejected::from(refusal).into()))
            }
        }
    }
}

impl<F, C, E> fmt::Debug for ResponseFuture<F, C, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Admitted { .. } => "admitted",
            State::Refused { .. } => "refused",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
