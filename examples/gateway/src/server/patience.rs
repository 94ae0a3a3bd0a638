//! A client's connection, as hyper uses it: with a limit on how long the client may leave unread what it was sent, and an eye
//! on whether it is still there.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How much of what a client sends before it is answered is read, in bytes: as much as the head of one more request may have.
/// Behind more than that a close is not seen, and the request goes on until something is written to whoever has gone.
pub(super) const READ_AHEAD: usize = super::MAX_HEAD;

/// A stream whose writes fail when none of them gets on for too long, and that fails when its client has closed it.
///
/// A client that does not read stops the body, and with it every limit that is looked at when the body is polled; but
/// it holds its connection and the upstream's.
///
/// While a request is under way hyper looks for a close only as long as it holds nothing that the client has sent since. One
/// byte more, and it would see the client go when it has answered it. So what comes then is read here, and kept for hyper.
pub(super) struct Patient<T> {
    inner: T,
    limit: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Read, and not asked for yet.
    ahead: BytesMut,
    /// The last read has got something, so its reader may leave the rest for later.
    more: bool,
}

impl<T> Patient<T> {
    pub(super) fn new(inner: T, limit: Duration) -> Self {
        Self { inner, limit, waiting: None, ahead: BytesMut::new(), more: false }
    }

    pub(super) fn into_inner(self) -> T {
        self.inner
    }

    fn unless_too_long<R>(
        &mut self,
        written: Poll<io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let limit = self.limit;
        let timer = self.waiting.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(cx).map(|()| {
            let message = format!("the client has read nothing for {limit:?}");
            Err(io::Error::new(io::ErrorKind::TimedOut, message))
        })
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Patient<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.ahead.is_empty() {
            let next = this.ahead.split_to(this.ahead.len().min(buf.remaining()));
            buf.put_slice(&next);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let read = Pin::new(&mut this.inner).poll_read(cx, buf);
        this.more = read.is_ready() && buf.filled().len() > before;
        read
    }
}

impl<T: AsyncRead + Unpin> Patient<T> {
    /// Fails if the client has closed the connection.
    fn look_ahead(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if !self.more {
            return Ok(());
        }
        let mut some = [0; 2048];
        while self.ahead.len() < READ_AHEAD {
            let room = some.len().min(READ_AHEAD - self.ahead.len());
            let mut buf = ReadBuf::new(&mut some[..room]);
            match Pin::new(&mut self.inner).poll_read(cx, &mut buf)? {
                Poll::Ready(()) if buf.filled().is_empty() => {
                    return Err(io::Error::new(
                        io::ErrorKind::ConnectionAborted,
                        "the client has closed the connection",
                    ));
                }
                Poll::Ready(()) => self.ahead.extend_from_slice(buf.filled()),
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.unless_too_long(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.unless_too_long(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Whenever hyper has done what it can, it ends with this.
        self.look_ahead(cx)?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
