use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{Share, flight::Recorded};

pin_project! {
    /// A call by an instance of the inner service of its own, from its readiness to its response.
    #[project = CallProjection]
    pub(crate) enum Call<S, Req>
    where
        S: Service<Req>,
    {
        Readying { next: Option<(S, Req)> },
        Calling { #[pin] inner: S::Future },
    }
}

impl<S: Service<Req>, Req> Call<S, Req> {
    pub(crate) const fn new(inner: S, request: Req) -> Self {
        Self::Readying { next: Some((inner, request)) }
    }
}

impl<S, Req> Future for Call<S, Req>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let inner = match self.as_mut().project() {
                CallProjection::Calling { inner } => return inner.poll(cx).map_err(Into::into),
                CallProjection::Readying { next } => {
                    let (inner, _) = next.as_mut().expect("polled after completion");
                    let ready = ready!(inner.poll_ready(cx));
                    let (mut inner, request) = next.take().expect("it was there just now");
                    ready.map_err(Into::into)?;
                    inner.call(request)
                }
            };
            self.set(Self::Calling { inner });
        }
    }
}

pin_project! {
    /// A call whose response is taken in, for all.
    pub(crate) struct Record<S, Req, X>
    where
        S: Service<Req>,
    {
        #[pin]
        call: Call<S, Req>,
        share: X,
    }
}

impl<S: Service<Req>, Req, X> Record<S, Req, X> {
    pub(crate) const fn new(inner: S, request: Req, share: X) -> Self {
        Self { call: Call::new(inner, request), share }
    }

    /// The call as it is, for one.
    pub(crate) fn into_call(self) -> Call<S, Req> {
        self.call
    }
}

impl<S, Req, X> Future for Record<S, Req, X>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    X: Share<S::Response>,
{
    type Output = Result<Recorded<X::Tape>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.call.poll(cx))?;
        let tape = this.share.record(response);
        let (verdict, size) = (this.share.verdict(&tape), this.share.complete(&tape));
        let verdict = if size.is_none() { verdict.since_now() } else { verdict };
        Poll::Ready(Ok(Recorded { tape, verdict, size }))
    }
}
