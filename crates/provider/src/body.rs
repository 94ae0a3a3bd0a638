use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{Error, events::Events};

pin_project! {
    /// The body of a [`Provider`](crate::Provider)'s response: an answer that is all there, or a stream of events.
    pub struct ResponseBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Whole { frames: Frames },
        Events { #[pin] events: Events<B> },
    }
}

impl<B> ResponseBody<B> {
    pub(crate) fn whole(frames: Frames) -> Self {
        Self { kind: Kind::Whole { frames } }
    }

    pub(crate) fn events(events: Events<B>) -> Self {
        Self { kind: Kind::Events { events } }
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.project().kind.project() {
            KindProj::Whole { frames } => Poll::Ready(frames.next().map(|bytes| Ok(Frame::data(bytes)))),
            KindProj::Events { events } => events.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Whole { frames } => frames.len() == 0,
            Kind::Events { events } => events.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Whole { frames } => SizeHint::with_exact(frames.len()),
            Kind::Events { .. } => SizeHint::default(),
        }
    }
}

impl<B> fmt::Debug for ResponseBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Whole { frames } => f.debug_tuple("ResponseBody").field(frames).finish(),
            Kind::Events { .. } => f.debug_tuple("ResponseBody").field(&"events").finish(),
        }
    }
}

/// Bytes in the pieces in which they arrived. One piece, the usual case, allocates nothing.
#[derive(Default)]
pub(crate) struct Frames {
    first: Option<Bytes>,
    more: VecDeque<Bytes>,
    len: u64,
}

impl Frames {
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.len += bytes.len() as u64;
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(bytes);
        } else {
            self.more.push_back(bytes);
        }
    }

    /// Bytes in all.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// All of it in one piece.
    pub(crate) fn concat(&self) -> Bytes {
        match (&self.first, self.more.is_empty()) {
            (Some(only), true) => only.clone(),
            _ => {
                let mut all = BytesMut::with_capacity(usize::try_from(self.len).unwrap_or_default());
                self.first.iter().chain(&self.more).for_each(|bytes| all.extend_from_slice(bytes));
                all.freeze()
            }
        }
    }
}

impl From<Bytes> for Frames {
    fn from(bytes: Bytes) -> Self {
        let mut frames = Self::default();
        frames.push(bytes);
        frames
    }
}

impl Iterator for Frames {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        let bytes = self.first.take().or_else(|| self.more.pop_front())?;
        self.len -= bytes.len() as u64;
        Some(bytes)
    }
}

impl fmt::Debug for Frames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frames").field("len", &self.len).finish_non_exhaustive()
    }
}
