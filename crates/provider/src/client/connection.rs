use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    client::conn::{TrySendError, http1},
};
use hyper_rustls::MaybeHttpsStream;
use hyper_util::rt::TokioIo;
use tokio::task::coop::unconstrained;

use super::link::{Link, Look};

pub(super) type Io = MaybeHttpsStream<TokioIo<Link>>;
pub(super) type Sent = Pin<Box<dyn Future<Output = SendResult> + Send>>;
pub(super) type SendResult = Result<Response<Incoming>, TrySendError<Request<Full<Bytes>>>>;

/// A connection without a task: it moves when it is polled, by whoever waits for what it carries.
pub(super) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
    driver: http1::Connection<Io, Full<Bytes>>,
    look: Look,
}

impl Connection {
    pub(super) async fn open(io: Io) -> hyper::Result<Box<Self>> {
        let look = match &io {
            MaybeHttpsStream::Http(io) => io.inner().look(),
            MaybeHttpsStream::Https(io) => io.inner().get_ref().0.inner().inner().look(),
        };
        let (sender, driver) = http1::handshake(io).await?;
        Ok(Box::new(Self { sender, driver, look }))
    }

    /// Outside of tokio's budget: `Pending` must mean that the connection has not delivered, never that the task has
    /// done enough for now, since then only the waker of the receiving end would be called, and there is none.
    pub(super) fn send(&mut self, request: Request<Full<Bytes>>) -> Sent {
        Box::pin(unconstrained(self.sender.try_send_request(request)))
    }

    /// Reads and writes what can be read and written now. Ready means closed.
    ///
    /// What it delivers, it delivers within this call, so its receiving ends need no waker of their own: they are
    /// polled with [`no_waker`] right after. With a real one the task would wake itself.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        Pin::new(&mut self.driver).poll(cx)
    }

    /// As [`is_reusable`](Self::is_reusable), of one that was idle: a close that has arrived is not missed.
    pub(super) fn is_still_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        let look = self.look.clone();
        look.closely(|| self.is_reusable(cx))
    }

    /// Whether the next request may be sent: the last one is done, both ways, and the server keeps the connection.
    pub(super) fn is_reusable(&mut self, cx: &mut Context<'_>) -> bool {
        // A task that has done enough for now would not see that the connection is closed.
        let pending = pin!(unconstrained(poll_fn(|cx| self.poll(cx)))).poll(cx).is_pending();
        pending && matches!(self.sender.poll_ready(&mut no_waker()), Poll::Ready(Ok(())))
    }
}

/// A context for the receiving ends of a [`Connection`].
pub(super) fn no_waker() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
