use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bartizan_core::{BoxError, Rejected};
use pin_project_lite::pin_project;

use crate::error::Refusal;

pin_project! {
    /// The response future of [`RateLimit`](crate::RateLimit).
    #[derive(Debug)]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = StateProjection]
    enum State<F> {
        Admitted { #[pin] inner: F },
        Refused { refusal: Option<Refusal> },
    }
}

impl<F> ResponseFuture<F> {
    pub(crate) const fn admitted(inner: F) -> Self {
        Self { state: State::Admitted { inner } }
    }

    pub(crate) const fn refused(refusal: Refusal) -> Self {
        Self { state: State::Refused { refusal: Some(refusal) } }
    }
}

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Admitted { inner } => inner.poll(cx).map_err(Into::into),
            StateProjection::Refused { refusal } => {
                let refusal = refusal.take().expect("polled after completion");
                Poll::Ready(Err(Rejected::from(refusal).into()))
            }
        }
    }
}
