use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Classify, Extent, GuardedBody, UntilBodyEnd};
use bytes::Buf;
use http::Response;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::{Answered, Explain, Until, clock, watched::Watched};

impl<B> Until<Response<B>> for UntilBodyEnd
where
    B: Body,
    B::Error: Into<BoxError>,
{
    const ENDS_WITH_RESPONSE: bool = false;

    type Response<C: Classify<Response<B>>, X: Explain<Response<B>>> =
        Response<GuardedBody<FirstFrame<B>, Option<Answered<C, X, Response<B>>>>>;

    fn hold<C: Classify<Response<B>>, X: Explain<Response<B>>>(
        &self,
        response: Response<B>,
        answered: Option<Answered<C, X, Response<B>>>,
    ) -> Self::Response<C, X> {
        let waits = answered.as_ref().and_then(|answered| answered.call().first_frame());
        let response = response.map(|inner| FirstFrame { inner, waits });
        Extent::hold(self, response, answered)
    }
}

pin_project! {
    /// A body that tells when its first bytes have come.
    pub struct FirstFrame<B> {
        #[pin]
        inner: B,
        waits: Option<(Arc<Watched>, Instant)>,
    }
}

impl<B: Body> Body for FirstFrame<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let item = ready!(this.inner.poll_frame(cx));
        if this.waits.is_some()
            && let Some(Ok(frame)) = &item
            && frame.data_ref().is_some_and(Buf::has_remaining)
            && let Some((watched, started)) = this.waits.take()
        {
            let now = clock::now();
            watched.record_first_frame(now.saturating_duration_since(started), now);
        }
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: fmt::Debug> fmt::Debug for FirstFrame<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FirstFrame").field("inner", &self.inner).field("came", &self.waits.is_none()).finish()
    }
}
