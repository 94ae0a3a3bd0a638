use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::reel::Reader;

pin_project! {
    /// The body of a response that [`Frames`](super::Frames) shares: all frames so far, and then the rest as it comes.
    ///
    /// It fails as the shared body fails; with [`Lagged`](bartizan_core::RejectionKind::Lagged) if it is read so slowly
    /// that what comes next has been dropped, and with [`Panicked`](bartizan_core::RejectionKind::Panicked) if the shared
    /// body panicked while another caller polled it.
    pub struct Playback<B> {
        #[pin]
        inner: Inner<B>,
    }
}

pin_project! {
    #[project = InnerProjection]
    enum Inner<B> {
        Own { #[pin] body: B },
        Shared { reader: Reader },
    }
}

impl<B> Playback<B> {
    pub(super) const fn own(body: B) -> Self {
        Self { inner: Inner::Own { body } }
    }

    pub(super) const fn shared(reader: Reader) -> Self {
        Self { inner: Inner::Shared { reader } }
    }
}

impl<B> Body for Playback<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().inner.project() {
            InnerProjection::Own { body } => body.poll_frame(cx).map_err(Into::into),
            InnerProjection::Shared { reader } => reader.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Own { body } => body.is_end_stream(),
            Inner::Shared { reader } => reader.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Own { body } => body.size_hint(),
            Inner::Shared { reader } => reader.size_hint(),
        }
    }
}

impl<B> fmt::Debug for Playback<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = matches!(self.inner, Inner::Shared { .. });
        f.debug_struct("Playback").field("shared", &shared).finish_non_exhaustive()
    }
}

/// Reads a body to its end for nobody.
pub struct Rest(Reader);

impl Rest {
    pub(super) const fn new(reader: Reader) -> Self {
        Self(reader)
    }
}

impl Future for Rest {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        while let Some(Ok(_)) = ready!(self.0.poll_frame(cx)) {}
        Poll::Ready(())
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Rest")
    }
}
