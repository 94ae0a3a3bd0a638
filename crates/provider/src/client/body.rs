use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use super::{
    Key,
    connection::{Connection, no_waker},
    pool::Pool,
    root_cause,
};
use crate::{Class, Error};

/// The response body of [`HttpTransport`](super::HttpTransport).
///
/// Reading it drives the connection that it arrives on. Read to its end it puts the connection back into the pool;
/// dropped before that it closes it.
pub struct DrivenBody {
    incoming: Incoming,
    /// While it is needed for this body.
    connection: Option<Box<Connection>>,
    home: Option<(Arc<Pool>, Key)>,
}

impl DrivenBody {
    pub(super) fn new(
        incoming: Incoming,
        connection: Option<Box<Connection>>,
        pool: Arc<Pool>,
        key: Key,
        cx: &mut Context<'_>,
    ) -> Self {
        let mut body = Self { incoming, connection, home: Some((pool, key)) };
        if body.incoming.is_end_stream() {
            body.give_back(cx);
        }
        body
    }

    fn give_back(&mut self, cx: &mut Context<'_>) {
        if let (Some(mut connection), Some((pool, key))) = (self.connection.take(), self.home.take())
            && connection.is_reusable(cx)
        {
            pool.put(key, connection);
        }
    }
}

impl Body for DrivenBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        // Asking tells the connection that there is room; then the connection fills it.
        let mut frame = Pin::new(&mut this.incoming).poll_frame(&mut no_waker());
        if frame.is_pending() {
            let closed = this.connection.as_mut().is_none_or(|connection| connection.poll(cx).is_ready());
            if closed {
                this.connection = None;
            }
            frame = Pin::new(&mut this.incoming).poll_frame(&mut no_waker());
            if frame.is_pending() && closed {
                return Poll::Ready(Some(Err(Error::new(Class::Upstream, CUT))));
            }
        }
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                if this.incoming.is_end_stream() {
                    this.give_back(cx);
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.connection = None;
                Poll::Ready(Some(Err(broken(error))))
            }
            Poll::Ready(None) => {
                this.give_back(cx);
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

const CUT: &str = "the upstream's answer was cut off";

fn broken(error: hyper::Error) -> Error {
    let message = format!("{CUT}: {}", root_cause(&error));
    Error::new(Class::Upstream, message).with_source(error)
}

impl fmt::Debug for DrivenBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrivenBody").field("incoming", &self.incoming).finish_non_exhaustive()
    }
}
