use std::{
    collections::VecDeque,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::Watch;

/// The body of a response that has committed: what was held back, and then the rest as it comes.
///
/// It ends with an error where the body below does, and where its [`Watch`] says that it must not end.
pub struct CommittedBody<B, W> {
    held: Held,
    inner: B,
    /// Gone once the end was judged, and never there for what passes as it is.
    watch: Option<W>,
    /// What the watch has said of the end, while frames before it have not been asked for.
    failed: Option<BoxError>,
}

impl<B, W> CommittedBody<B, W> {
    pub(super) fn as_it_is(inner: B) -> Self {
        Self { held: Held::default(), inner, watch: None, failed: None }
    }
}

impl<B: Body<Data = Bytes>, W: Watch> CommittedBody<B, W> {
    pub(super) fn new(held: Held, inner: B, watch: W) -> Self {
        let mut body = Self { held, inner, watch: Some(watch), failed: None };
        body.look_for_the_end();
        body
    }

    /// Servers ask no further once a body says that it has ended: its end is judged then.
    fn look_for_the_end(&mut self) {
        if self.watch.is_some() && self.inner.is_end_stream() {
            self.judge_end();
        }
    }

    fn judge_end(&mut self) {
        if let Some(mut watch) = self.watch.take() {
            self.failed = watch.end().err();
        }
    }
}

impl<B, W> Body for CommittedBody<B, W>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
    W: Watch,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.held.pop() {
            return Poll::Ready(Some(Ok(frame)));
        }
        if let Some(failed) = this.failed.take() {
            return Poll::Ready(Some(Err(failed)));
        }
        match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let (Some(watch), Some(chunk)) = (&mut this.watch, frame.data_ref()) {
                    watch.pass(chunk);
                }
                this.look_for_the_end();
                Poll::Ready(Some(Ok(frame)))
            }
            Some(Err(error)) => {
                this.watch = None;
                Poll::Ready(Some(Err(error.into())))
            }
            None => {
                this.judge_end();
                Poll::Ready(this.failed.take().map(Err))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.held.is_empty() && self.failed.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (inner, held) = (self.inner.size_hint(), self.held.bytes() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower().saturating_add(held));
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint
    }
}

impl<B: fmt::Debug, W> fmt::Debug for CommittedBody<B, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommittedBody")
            .field("held", &self.held.bytes())
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// Frames that were held back. One, the usual case, allocates nothing.
#[derive(Default)]
pub(super) struct Held {
    first: Option<Frame<Bytes>>,
    more: VecDeque<Frame<Bytes>>,
    bytes: usize,
}

impl Held {
    pub(super) fn push(&mut self, frame: Frame<Bytes>) {
        self.bytes += len(&frame);
        if self.first.is_none() && self.more.is_empty() {
            self.first = Some(frame);
        } else {
            self.more.push_back(frame);
        }
    }

    fn pop(&mut self) -> Option<Frame<Bytes>> {
        let frame = self.first.take().or_else(|| self.more.pop_front())?;
        self.bytes -= len(&frame);
        Some(frame)
    }

    fn is_empty(&self) -> bool {
        self.first.is_none() && self.more.is_empty()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

fn len(frame: &Frame<Bytes>) -> usize {
    frame.data_ref().map_or(0, Bytes::len)
}
