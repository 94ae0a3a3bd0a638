use std::{
    error::Error,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{Response, header::CONTENT_LENGTH};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{BoxError, Ending, Extent, Guard};

/// A call is over when its response body has ended: for streams, and for whatever counts what is still under way.
///
/// A body has also ended when it has given as many bytes as `content-length` says: servers ask for no more. An answer to
/// `HEAD` has a body that servers drop unread; it counts as cancelled unless it is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct UntilBodyEnd;

impl<B> Extent<Response<B>> for UntilBodyEnd
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Response<G: Guard> = Response<GuardedBody<B, G>>;

    fn hold<G: Guard>(&self, response: Response<B>, guard: G) -> Self::Response<G> {
        let length =
            response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        response.map(|body| GuardedBody::with_length(body, guard, length))
    }
}

pin_project! {
    /// A body that settles a [`Guard`] when it ends.
    ///
    /// The guard settles as complete when the inner body reports its end, be it at creation or with its last frame:
    /// servers drop such a body without asking for more. It settles as failed with the body's error. A body that panics
    /// says so ([`Guard::panicked`]), and one that is dropped before any of that drops the guard, which means cancelled.
    pub struct GuardedBody<B, G> {
        #[pin]
        inner: B,
        guard: Option<G>,
        // Bytes that are still to come, where somebody said how many there are.
        left: Option<u64>,
    }
}

impl<B: Body, G: Guard> GuardedBody<B, G> {
    /// Ties `guard` to the end of `inner`.
    pub fn new(inner: B, guard: G) -> Self {
        Self::with_length(inner, guard, None)
    }

    /// As [`new`](Self::new), for a body that is over after `length` bytes, whether it says so or not.
    pub fn with_length(inner: B, guard: G, length: Option<u64>) -> Self {
        let guard = if inner.is_end_stream() || length == Some(0) {
            guard.settle(Ending::Complete);
            None
        } else {
            Some(guard)
        };
        Self { inner, guard, left: length }
    }
}

impl<B, G> Body for GuardedBody<B, G>
where
    B: Body,
    B::Error: Into<BoxError>,
    G: Guard,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let armed = Armed(this.guard);
        let polled = this.inner.as_mut().poll_frame(cx);
        mem::forget(armed);
        let item = match ready!(polled) {
            Some(Ok(frame)) => {
                if let (Some(left), Some(data)) = (this.left.as_mut(), frame.data_ref()) {
                    *left = left.saturating_sub(data.remaining() as u64);
                }
                if this.inner.is_end_stream() || *this.left == Some(0) {
                    settle(this.guard, Ending::Complete);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let error = error.into();
                settle(this.guard, Ending::Failed(&*error as &(dyn Error + 'static)));
                Some(Err(error))
            }
            None => {
                settle(this.guard, Ending::Complete);
                None
            }
        };
        Poll::Ready(item)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A guard while the inner body is polled, which may panic.
struct Armed<'a, G: Guard>(&'a mut Option<G>);

impl<G: Guard> Drop for Armed<'_, G> {
    #[cold]
    fn drop(&mut self) {
        self.0.take().panicked();
    }
}

fn settle<G: Guard>(guard: &mut Option<G>, ending: Ending<'_>) {
    if let Some(guard) = guard.take() {
        guard.settle(ending);
    }
}

impl<B: fmt::Debug, G> fmt::Debug for GuardedBody<B, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedBody")
            .field("inner", &self.inner)
            .field("settled", &self.guard.is_none())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{Arc, Mutex},
    };

    use bytes::Bytes;
    use futures_util::{FutureExt, stream};
    use http_body_util::{BodyExt, Empty, Full, StreamBody};

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<&'static str>>>);

    impl Log {
        fn guard(&self) -> Probe {
            Probe { log: self.clone(), settled: false }
        }

        fn take(&self) -> Vec<&'static str> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    struct Probe {
        log: Log,
        settled: bool,
    }

    impl Guard for Probe {
        fn settle(mut self, ending: Ending<'_>) {
            self.settled = true;
            self.log.0.lock().unwrap().push(match ending {
                Ending::Complete => "complete",
                Ending::Failed(_) => "failed",
            });
        }

        fn panicked(mut self) {
            self.settled = true;
            self.log.0.lock().unwrap().push("panicked");
        }
    }

    impl Drop for Probe {
        fn drop(&mut self) {
            if !self.settled {
                self.log.0.lock().unwrap().push("cancelled");
            }
        }
    }

    #[test]
    fn a_body_that_is_empty_from_the_start_settles_at_once() {
        let log = Log::default();
        let body = GuardedBody::new(Empty::<Bytes>::new(), log.guard());
        assert_eq!(log.take(), ["complete"]);
        drop(body);
        assert!(log.take().is_empty());
    }

    #[test]
    fn the_last_frame_settles_without_asking_for_none() {
        let log = Log::default();
        let mut body = GuardedBody::new(Full::new(Bytes::from_static(b"all")), log.guard());
        assert_eq!(body.size_hint().exact(), Some(3), "content-length survives");
        assert!(!body.is_end_stream());
        let frame = body.frame().now_or_never().flatten().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "all");
        assert_eq!(log.take(), ["complete"]);
        assert!(body.is_end_stream());
    }

    #[test]
    fn none_settles_a_body_of_unknown_length() {
        let log = Log::default();
        let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"a")))]);
        let mut body = GuardedBody::new(StreamBody::new(frames), log.guard());
        assert!(body.frame().now_or_never().flatten().is_some());
        assert!(log.take().is_empty(), "more could come");
        assert!(body.frame().now_or_never().flatten().is_none());
        assert_eq!(log.take(), ["complete"]);
    }

    #[test]
    fn the_last_byte_settles_a_body_whose_length_only_its_head_knows() {
        let log = Log::default();
        let frames =
            || stream::iter(["ab", "c"].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text)))));
        let response =
            Response::builder().header("content-length", "3").body(StreamBody::new(frames())).unwrap();
        let mut body = UntilBodyEnd.hold(response, log.guard()).into_body();
        assert!(body.frame().now_or_never().flatten().is_some());
        assert!(log.take().is_empty(), "a byte is missing");
        assert!(body.frame().now_or_never().flatten().is_some());
        drop(body);
        assert_eq!(log.take(), ["complete"]);

        let response =
            Response::builder().header("content-length", "0").body(StreamBody::new(frames())).unwrap();
        drop(UntilBodyEnd.hold(response, log.guard()));
        assert_eq!(log.take(), ["complete"]);
    }

    #[test]
    fn a_panic_is_told_there_and_then() {
        use std::panic::{AssertUnwindSafe, catch_unwind};

        let log = Log::default();
        let frames = stream::poll_fn(|_| -> Poll<Option<Result<Frame<Bytes>, Infallible>>> { panic!("cut") });
        let mut body = GuardedBody::new(StreamBody::new(frames), Some(log.guard()));
        assert!(catch_unwind(AssertUnwindSafe(|| body.frame().now_or_never().is_some())).is_err());
        assert_eq!(log.take(), ["panicked"]);
    }

    #[test]
    fn an_error_settles_as_failed_and_a_drop_as_cancelled() {
        let log = Log::default();
        let frames = stream::iter([Err::<Frame<Bytes>, _>(std::io::Error::other("cut"))]);
        let mut body = GuardedBody::new(StreamBody::new(frames), log.guard());
        assert!(body.frame().now_or_never().flatten().unwrap().is_err());
        drop(body);
        assert_eq!(log.take(), ["failed"]);

        drop(GuardedBody::new(Full::new(Bytes::from_static(b"x")), log.guard()));
        assert_eq!(log.take(), ["cancelled"]);
    }
}
