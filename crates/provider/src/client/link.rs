//! The socket below HTTP and TLS.

use std::{
    io::{self, Read},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

/// A socket that can be asked what has arrived, and that can still be read when it can no longer be written.
///
/// A server that refuses a request while it is being sent may answer and close at once. Then a write fails though there is
/// an answer to read, and hyper reads no more where a write has failed. So here writes go on in vain, and the reader comes
/// to the answer or, behind it, to the write's error.
pub(super) struct Link {
    stream: TcpStream,
    look: Look,
    /// Why nothing more can be written.
    broken: Option<io::Error>,
}

/// Whether reads ask the system itself.
///
/// What has arrived is known to tokio only when its runtime has next asked for events, which a busy one does after a good
/// many polls. Too late for whoever wants to know whether a connection that was idle is still open.
#[derive(Clone, Debug, Default)]
pub(super) struct Look(Arc<AtomicBool>);

impl Look {
    /// Runs `read` with reads that miss nothing. It costs them a system call.
    pub(super) fn closely<T>(&self, read: impl FnOnce() -> T) -> T {
        self.0.store(true, Relaxed);
        let read = read();
        self.0.store(false, Relaxed);
        read
    }
}

impl Link {
    fn new(stream: TcpStream) -> Self {
        Self { stream, look: Look::default(), broken: None }
    }

    pub(super) fn look(&self) -> Look {
        self.look.clone()
    }

    /// What has arrived, whatever tokio knows of it. The next event finds less than it has told, which is an ordinary thing.
    fn read_now(&self, buf: &mut ReadBuf<'_>) -> io::Result<usize> {
        let mut arrived = [0; 1024];
        let room = arrived.len().min(buf.remaining());
        let read = (&*SockRef::from(&self.stream)).read(&mut arrived[..room])?;
        buf.put_slice(&arrived[..read]);
        Ok(read)
    }

    /// Writes go well, whatever became of this one.
    fn written(&mut self, written: io::Result<usize>, wanted: usize) -> io::Result<usize> {
        written.or_else(|error| {
            self.broken = Some(error);
            Ok(wanted)
        })
    }
}

impl AsyncRead for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.broken.is_some() {
            // All that will ever come is there.
            return Poll::Ready(match self.read_now(buf) {
                Ok(1..) => Ok(()),
                Ok(0) | Err(_) => self.broken.take().map_or(Ok(()), Err),
            });
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if read.is_ready() || !self.look.0.load(Relaxed) {
            return read;
        }
        match self.read_now(buf) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Poll::Pending,
            read => Poll::Ready(read.map(drop)),
        }
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.broken.is_some() {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        Poll::Ready(self.written(written, buf.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if self.broken.is_some() {
            return Poll::Ready(Ok(wanted));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        Poll::Ready(self.written(written, wanted))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// hyper-util's connector, for links.
#[derive(Clone)]
pub(super) struct Connector(pub(super) HttpConnector);

type Connecting<E> = Pin<Box<dyn Future<Output = Result<TokioIo<Link>, E>> + Send>>;

impl Service<Uri> for Connector {
    type Response = TokioIo<Link>;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Connecting<Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = self.0.call(to);
        Box::pin(async move { Ok(TokioIo::new(Link::new(connecting.await?.into_inner()))) })
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (Link, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (Link::new(near.unwrap()), far.unwrap().0)
    }

    #[tokio::test]
    async fn an_answer_is_read_though_the_request_cannot_be_written() {
        let (mut link, mut server) = pair().await;
        link.write_all(b"a request that nobody reads").await.unwrap();
        server.write_all(b"too large").await.unwrap();
        // With something unread that is a reset.
        drop(server);
        let large = vec![b'x'; 64 * 1024];
        while link.broken.is_none() {
            link.write_all(&large).await.unwrap();
        }
        link.write_all(&large).await.unwrap();
        let mut answer = Vec::new();
        let error = link.read_to_end(&mut answer).await.unwrap_err();
        assert_eq!(answer, b"too large");
        assert!(
            matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset),
            "{error}"
        );
        assert_eq!(link.read(&mut [0]).await.unwrap(), 0);
    }

    /// Between these steps the runtime never asks for events.
    #[tokio::test]
    async fn what_has_arrived_is_seen_by_who_looks_closely() {
        let (mut link, server) = pair().await;
        let mut read = async |look: bool| {
            let closely = link.look();
            let mut bytes = [0; 8];
            let mut buf = ReadBuf::new(&mut bytes);
            let read = poll_fn(|cx| {
                let mut read = || Pin::new(&mut link).poll_read(cx, &mut buf);
                Poll::Ready(if look { closely.closely(read) } else { read() })
            });
            read.await.map(|read| read.map(|()| buf.filled().to_vec()).unwrap())
        };
        assert_eq!((read(false).await, read(true).await), (Poll::Pending, Poll::Pending));
        server.try_write(b"more than fits").unwrap();
        assert_eq!(read(false).await, Poll::Pending);
        assert_eq!(read(true).await, Poll::Ready(b"more tha".to_vec()));
        assert_eq!(read(true).await, Poll::Ready(b"n fits".to_vec()));
        assert_eq!(read(true).await, Poll::Pending);
        drop(server);
        assert_eq!(read(false).await, Poll::Pending);
        assert_eq!(read(true).await, Poll::Ready(Vec::new()));
    }
}
