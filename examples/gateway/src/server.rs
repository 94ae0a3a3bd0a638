//! The HTTP/1 server: one acceptor, and workers that share nothing.
//!
//! Each worker is a thread with its own current-thread runtime and its own service, so a request, its upstream
//! connection and its response never leave one core: what costs in a proxy is the hand-over between threads, and here it
//! happens once a connection. The acceptor gives a new connection to the worker that has the fewest. Where services do
//! share calls between workers, they may: no runtime ends before all workers have served.
//!
//! A client that disconnects drops the service's future or the response's body at once, provided that the service has
//! read the request to its end: HTTP/1 has no other way to look past it. That it has sent more by then changes nothing, up to
//! 64 KiB.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{SocketAddr, TcpStream},
    num::NonZeroUsize,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bartizan_core::BoxError;
use http::{Request, Response};
use http_body::Body;
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::rt::TokioTimer;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tower_service::Service;

use worker::{Phase, Serving, Worker};

mod patience;
mod worker;

/// The largest request head. Hyper would let one grow to 400 KiB, a connection.
const MAX_HEAD: usize = 64 * 1024;

/// How long to leave the acceptor alone when the process has run out of something, most likely file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// How long a worker may take to drop what it was told to cut. Longer means that something blocks its thread.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// How a [`Server`] runs.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Worker threads. Default: the number of cores.
    pub workers: NonZeroUsize,
    /// Connections open at once; beyond them new ones wait in the listener's backlog. Default: 10,000.
    pub max_connections: NonZeroUsize,
    /// How long a client may take to send a request's head. It also ends connections that idle between requests.
    /// Default: 30 seconds.
    pub header_timeout: Duration,
    /// How long a client may leave unread what it was sent. Default: 30 seconds.
    pub write_timeout: Duration,
    /// How long requests in flight may go on after the shutdown. Default: 30 seconds.
    pub drain_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            max_connections: const { NonZeroUsize::new(10_000).unwrap() },
            header_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// How the connections ended that were open when the server was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Connections open at the shutdown, idle ones included.
    pub open: usize,
    /// Those that were still busy after the drain timeout, and were cut.
    pub cut: usize,
}

/// A bound server, which does nothing until it [runs](Server::run).
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    options: ServerOptions,
}

impl Server {
    /// Binds the address; port 0 takes any free one.
    ///
    /// # Errors
    ///
    /// When the address cannot be bound.
    pub async fn bind(address: SocketAddr, options: ServerOptions) -> io::Result<Self> {
        Ok(Self { listener: TcpListener::bind(address).await?, options })
    }

    /// The address that is listened on.
    ///
    /// # Errors
    ///
    /// When the socket does not say.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until `shutdown` resolves, then lets what is in flight finish.
    ///
    /// `factory` is called once in each worker, on its thread and inside its runtime, with the worker's index. After
    /// the shutdown new connections are refused, idle ones are closed, and the workers' threads have ended when this
    /// returns. Dropping the future instead cuts everything at once.
    ///
    /// A service that panics costs its own connection and nothing else.
    ///
    /// # Errors
    ///
    /// When a worker's thread or runtime cannot be made, or `factory` panics. Errors of single connections are logged.
    pub async fn run<F, S, B>(self, factory: F, shutdown: impl Future) -> io::Result<Drained>
    where
        F: Fn(usize) -> S + Send + Sync + 'static,
        S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
        S::Future: Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let Self { listener, options } = self;
        // Dropped with this future, which the workers take for `Phase::Cut`.
        let (phase, phases) = watch::channel(Phase::Serve);
        let factory = Arc::new(factory);
        let http = http(&options);
        // Every connection holds a permit, so no queue can hold more than these.
        let max_connections = options.max_connections.get().min(Semaphore::MAX_PERMITS);
        let serving = Serving::new();
        let start = |index| {
            let (http, phases, serving) = (http.clone(), phases.clone(), serving.clone());
            Worker::start(index, max_connections, http, phases, serving, factory.clone())
        };
        let mut workers = (0..options.workers.get()).map(start).collect::<io::Result<Vec<_>>>()?;
        drop((phases, serving));
        for worker in &mut workers {
            worker.started().await?;
        }

        let mut acceptor =
            Acceptor { listener, slots: Arc::new(Semaphore::new(max_connections)), warned: false };
        let mut next = 0;
        let mut shutdown = pin!(shutdown);
        loop {
            tokio::select! {
                biased;
                _ = &mut shutdown => break,
                (stream, slot) = acceptor.accept() => {
                    let chosen = least_loaded(workers.len(), next, |index| workers[index].connections());
                    workers[chosen].hand(stream, slot)?;
                    next = chosen + 1;
                }
            }
        }

        // New connections are refused from here on.
        drop(acceptor);
        let open = workers.iter().map(Worker::connections).sum();
        tracing::info!(open, timeout = ?options.drain_timeout, "draining");
        phase.send_replace(Phase::Drain);
        workers.iter_mut().for_each(Worker::close);
        let cut = match timeout(options.drain_timeout, finish(&mut workers)).await {
            Ok(cut) => cut,
            Err(_) => {
                phase.send_replace(Phase::Cut);
                timeout(CUT_GRACE, finish(&mut workers)).await.unwrap_or_else(|_| {
                    tracing::error!("a worker's thread is blocked, and left behind");
                    workers.iter().map(Worker::cut).sum()
                })
            }
        };
        if cut == 0 {
            tracing::info!("drained");
        } else {
            tracing::warn!(cut, "cut connections that were busy after the drain timeout");
        }
        Ok(Drained { open, cut })
    }
}

/// How connections are served.
#[derive(Clone)]
struct Http {
    builder: http1::Builder,
    write_timeout: Duration,
}

fn http(options: &ServerOptions) -> Http {
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(options.header_timeout)
        .max_header_size(MAX_HEAD)
        .keep_alive(true)
        // The next two are hyper's defaults, which it reserves the right to change. A response is written when it is
        // there, and a client that has closed its half is gone.
        .pipeline_flush(false)
        .half_close(false);
    Http { builder, write_timeout: options.write_timeout }
}

/// The worker with the fewest connections, looking from `next` on so that equals take turns.
fn least_loaded(workers: usize, next: usize, connections: impl Fn(usize) -> usize) -> usize {
    let turns = (0..workers).map(|turn| (next + turn) % workers);
    turns.min_by_key(|&index| connections(index)).expect("there is at least one worker")
}

/// Waits for the workers to end and says how many connections they cut. May be called again when it was dropped.
async fn finish(workers: &mut [Worker]) -> usize {
    let mut cut = 0;
    for worker in &mut *workers {
        cut += worker.ended().await;
    }
    workers.iter_mut().for_each(Worker::join);
    cut
}

struct Acceptor {
    listener: TcpListener,
    slots: Arc<Semaphore>,
    warned: bool,
}

impl Acceptor {
    /// The next connection and its place among `max_connections`. Taking the place first leaves the connections beyond
    /// it in the backlog, where they cost nothing.
    async fn accept(&mut self) -> (TcpStream, OwnedSemaphorePermit) {
        if self.slots.available_permits() == 0 && !self.warned {
            self.warned = true;
            tracing::warn!("all of server.max_connections are open: new ones wait (said once)");
        }
        let slot = self.slots.clone().acquire_owned().await.expect("never closed");
        loop {
            let error = match self.listener.accept().await {
                // Leaves this reactor for a worker's.
                Ok((stream, _)) => match stream.into_std() {
                    Ok(stream) => return (stream, slot),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
            if !matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset) {
                tracing::error!(%error, "cannot accept");
                // The listener stays readable, so without a pause this would spin until a descriptor is free.
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
