//! One thread, its runtime and its connections.

use std::{
    convert::Infallible,
    io, net,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bartizan_core::BoxError;
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    io::{AsyncRead, AsyncReadExt, copy, sink},
    net::TcpStream,
    runtime,
    sync::{OwnedSemaphorePermit, mpsc, oneshot, watch},
    task::JoinSet,
    time::timeout,
};
use tower_service::Service;

use super::{Http, patience::Patient};

/// What the server asks of its workers and their connections; it only ever goes up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(super) enum Phase {
    Serve,
    /// Close what idles, finish what does not.
    Drain,
    /// Drop everything.
    Cut,
}

/// A worker as the acceptor sees it.
pub(super) struct Worker {
    index: usize,
    /// `None` once closed.
    connections: Option<mpsc::Sender<Connection>>,
    active: Arc<AtomicUsize>,
    started: oneshot::Receiver<io::Result<()>>,
    ended: End,
    thread: Option<thread::JoinHandle<()>>,
}

enum End {
    Running(oneshot::Receiver<usize>),
    /// With so many connections cut.
    Ended(usize),
}

/// Who is serving. What one worker's connections wait for may have its sockets and timers on another's runtime, where a
/// timer that is polled after that runtime has ended panics. So each goes on until none serves.
#[derive(Clone)]
pub(super) struct Serving {
    serves: watch::Sender<()>,
    nobody: watch::Receiver<()>,
}

impl Serving {
    pub(super) fn new() -> Self {
        let (serves, nobody) = watch::channel(());
        Self { serves, nobody }
    }

    /// Serves no more, and waits until all others do not.
    async fn leave(self) {
        let Self { serves, mut nobody } = self;
        drop(serves);
        // An error says that all senders are gone. Nothing is ever sent.
        while nobody.changed().await.is_ok() {}
    }
}

/// An accepted connection on its way to its worker.
struct Connection {
    stream: net::TcpStream,
    slot: Slot,
}

/// A connection's place in the bound on all of them, and in its worker's count.
struct Slot {
    _permit: OwnedSemaphorePermit,
    active: Arc<AtomicUsize>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// Starts the thread. `queue` must be no less than the connections that can be open at once.
    pub(super) fn start<F, S, B>(
        index: usize,
        queue: usize,
        http: Http,
        phase: watch::Receiver<Phase>,
        serving: Serving,
        factory: Arc<F>,
    ) -> io::Result<Self>
    where
        F: Fn(usize) -> S + Send + Sync + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let (sender, receiver) = mpsc::channel(queue);
        let (starting, started) = oneshot::channel();
        let (ending, ended) = oneshot::channel();
        let run = move || {
            let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(starting.send(Err(error))),
            };
            runtime.block_on(async {
                let service = factory(index);
                drop(factory);
                // The receiver is gone when `run` was dropped while it waited for another worker.
                let _ = starting.send(Ok(()));
                let cut = serve(receiver, phase, &http, &service).await;
                let _ = ending.send(cut);
                serving.leave().await;
            });
            // Not `drop`, which would wait for a name lookup that is still going on.
            runtime.shutdown_background();
        };
        let thread = thread::Builder::new().name(format!("gateway-{index}")).spawn(run)?;
        Ok(Self {
            index,
            connections: Some(sender),
            active: Arc::default(),
            started,
            ended: End::Running(ended),
            thread: Some(thread),
        })
    }

    /// Waits until the worker has its runtime and its service.
    pub(super) async fn started(&mut self) -> io::Result<()> {
        (&mut self.started).await.unwrap_or_else(|_| Err(self.gone()))
    }

    /// How many connections it has, those on their way to it included.
    pub(super) fn connections(&self) -> usize {
        self.active.load(Ordering::Relaxed)
    }

    /// Hands it a connection.
    pub(super) fn hand(&self, stream: net::TcpStream, permit: OwnedSemaphorePermit) -> io::Result<()> {
        self.active.fetch_add(1, Ordering::Relaxed);
        let slot = Slot { _permit: permit, active: self.active.clone() };
        let connections = self.connections.as_ref().expect("not closed before the last connection");
        // Not full: it is as long as there are permits.
        connections.try_send(Connection { stream, slot }).map_err(|_| self.gone())
    }

    /// Says that no more connections will come, after which the worker ends as soon as it has none.
    pub(super) fn close(&mut self) {
        self.connections = None;
    }

    /// Waits until it serves no more, and says how many connections it cut.
    pub(super) async fn ended(&mut self) -> usize {
        if let End::Running(ended) = &mut self.ended {
            // An error is a panic outside of any connection, after which nothing is left to count.
            let cut = ended.await.unwrap_or(0);
            self.ended = End::Ended(cut);
        }
        self.cut()
    }

    /// Waits for the thread. When all workers have [`ended`](Self::ended) that does not block.
    pub(super) fn join(&mut self) {
        if let Some(Err(_)) = self.thread.take().map(thread::JoinHandle::join) {
            tracing::error!(worker = self.index, "a worker panicked");
        }
    }

    /// How many connections it has cut, or is about to.
    pub(super) fn cut(&self) -> usize {
        match self.ended {
            End::Running(_) => self.connections(),
            End::Ended(cut) => cut,
        }
    }

    fn gone(&self) -> io::Error {
        io::Error::other(format!("worker {} has ended", self.index))
    }
}

/// Serves until there are no connections and none can come, or until it is told to cut those that are left. Returns
/// their number.
async fn serve<S, B>(
    mut connections: mpsc::Receiver<Connection>,
    phase: watch::Receiver<Phase>,
    http: &Http,
    service: &S,
) -> usize
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    let mut tasks = JoinSet::new();
    let mut more = true;
    let mut cut = pin!(reached(phase.clone(), Phase::Cut));
    while more || !tasks.is_empty() {
        tokio::select! {
            biased;
            () = &mut cut => break,
            Some(ended) = tasks.join_next() => report(&ended),
            connection = connections.recv(), if more => match connection {
                Some(connection) => {
                    tasks.spawn(serve_connection(connection, http.clone(), service.clone(), phase.clone()));
                }
                None => more = false,
            },
        }
    }
    while let Some(ended) = tasks.try_join_next() {
        report(&ended);
    }
    connections.close();
    let cut = tasks.len() + connections.len();
    tasks.shutdown().await;
    cut
}

/// The panic hook has told what happened; this tells what became of it.
fn report(ended: &Result<(), tokio::task::JoinError>) {
    if ended.is_err() {
        tracing::error!("a request panicked; its connection is closed");
    }
}

/// Resolves in that phase and all later ones, and when the server is no more.
async fn reached(mut phase: watch::Receiver<Phase>, wanted: Phase) {
    // An error says that the sender was dropped.
    let _ = phase.wait_for(|&now| now >= wanted).await;
}

async fn serve_connection<S, B>(connection: Connection, http: Http, service: S, phase: watch::Receiver<Phase>)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone,
    B: Body + 'static,
    B::Error: Into<BoxError>,
{
    let Connection { stream, slot: _slot } = connection;
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return tracing::error!(%error, "cannot register a connection"),
    };
    // A small event must not wait for the acknowledgement of the one before it.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let io = TokioIo::new(Patient::new(stream, http.write_timeout));
    let sends = Arc::default();
    let service = Noting { inner: service, sends: Arc::clone(&sends) };
    let mut connection = http.builder.serve_connection(io, TowerToHyperService::new(service));
    let mut drains = pin!(reached(phase, Phase::Drain));
    let served = tokio::select! {
        biased;
        served = &mut connection => Some(served),
        () = &mut drains => None,
    };
    let served = match served {
        Some(served) => {
            let unheard = match &served {
                Ok(()) => sends.load(Ordering::Relaxed),
                Err(error) => error.is_parse(),
            };
            if unheard {
                tokio::select! {
                    biased;
                    () = drains => {}
                    () = linger(connection.into_parts().io.into_inner()) => {}
                }
                return tell(&served);
            }
            served
        }
        None => {
            Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    tell(&served);
    if served.is_err_and(|error| error.is_timeout()) {
        let parts = connection.into_parts();
        // Silence in the middle of a head deserves to be told; silence between requests is an ordinary end.
        if !parts.read_buf.is_empty() {
            // As much as the socket takes now: whoever does not send need not be waited for to read.
            let _ = parts.io.into_inner().into_inner().try_write(HEAD_TIMEOUT);
        }
    }
}

fn tell(served: &hyper::Result<()>) {
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Notes whether the last request has a body: its client may be sending that still when it is answered.
#[derive(Clone)]
struct Noting<S> {
    inner: S,
    sends: Arc<AtomicBool>,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for Noting<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Incoming>) -> S::Future {
        self.sends.store(!request.body().is_end_stream(), Ordering::Relaxed);
        self.inner.call(request)
    }
}

/// How long a client is listened to that was answered before it had sent all. A body at the default bound takes so long at
/// 17 megabits a second; whoever is slower, or sends more, may not see the answer, but does not hold up anybody.
pub(super) const LINGER: Duration = Duration::from_secs(5);

/// How much of what it sends by then is read, in bytes: three bodies at the default bound.
pub(super) const LINGER_BYTES: u64 = 32 << 20;

/// Reads on, for nothing, so that the close is no reset: that would take an answer with it that the client has not read yet.
pub(super) async fn linger(client: impl AsyncRead + Unpin) {
    // However it ends.
    _ = timeout(LINGER, copy(&mut client.take(LINGER_BYTES), &mut sink())).await;
}

/// Hyper only closes; a client that reads learns more from this.
const HEAD_TIMEOUT: &[u8] = b"HTTP/1.1 408 Request Timeout\r\n\
    content-type: application/json\r\n\
    content-length: 139\r\n\
    connection: close\r\n\r\n\
    {\"error\":{\"message\":\"the head of the request did not arrive in time\",\
    \"type\":\"invalid_request_error\",\"param\":null,\"code\":\"request_timeout\"}}";
