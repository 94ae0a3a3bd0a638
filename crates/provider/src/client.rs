//! The default transport: pooled HTTP/1.1 connections with TLS.

use std::{
    error, fmt, io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{BoxError, chain};
use bytes::Bytes;
use http::{Request, Response, StatusCode, uri::Authority};
use http_body_util::Full;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use tower_service::Service;

pub use self::{body::DrivenBody, future::Exchange};
use self::{
    link::Connector,
    pool::{Key, Pool},
};
use crate::{Class, Error};

mod body;
mod connection;
mod future;
mod link;
mod pool;

/// Pooled HTTP/1.1 connections, plain and TLS: the transport that [`Provider`](crate::Provider) is meant to run on.
///
/// No task stands behind a connection. Whoever waits for a response drives the connection that it arrives on, so a
/// byte passes from upstream to client within one task, everything that arrived together passes on together, and
/// dropping the response closes the connection at once: the upstream sees that nobody listens any more. The price is
/// HTTP/1.1 only, and that a connection that its server closes while it is idle is noticed when it is next taken out: then
/// the system is asked whether the close has arrived. One that arrives after that, while the request is on its way, fails the
/// call, since the server may have read it.
///
/// Clones share the pool. A connection lives on the runtime that opened it, so give each runtime its own transport.
///
/// # Errors
///
/// [`Error`] of class [`Connect`](crate::Class::Connect) when no connection could be had in time (default: 5 s), of
/// class [`Upstream`](crate::Class::Upstream) when it broke before the response head was there. A request that a pooled
/// connection refused before a byte of it was written goes out again on another connection. [`OutOfDescriptors`] is the
/// source where the fault is not the server's.
#[derive(Clone)]
pub struct HttpTransport {
    shared: Arc<Shared>,
}

#[derive(Clone)]
struct Shared {
    connector: HttpsConnector<Connector>,
    pool: Arc<Pool>,
    connect_within: Duration,
}

impl HttpTransport {
    /// A transport that trusts Mozilla's root certificates.
    ///
    /// # Panics
    ///
    /// Never in practice: only if `rustls` and its own `ring` provider disagree about protocol versions.
    pub fn new() -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring supports the default protocol versions")
            .with_webpki_roots()
            .with_no_client_auth();
        Self::with_tls(tls)
    }

    /// A transport with its own idea of whom to trust: a private authority, a client certificate.
    pub fn with_tls(tls: rustls::ClientConfig) -> Self {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .wrap_connector(Connector(http));
        let shared = Shared { connector, pool: Arc::default(), connect_within: Duration::from_secs(5) };
        Self { shared: Arc::new(shared) }
    }

    /// How long opening a connection may take: name look-up, TCP and TLS together. Default: 5 s. The pool stays shared with
    /// the transport that this one was cloned from.
    #[must_use]
    pub fn connect_within(mut self, limit: Duration) -> Self {
        Arc::make_mut(&mut self.shared).connect_within = limit;
        self
    }

    /// Starts a new, empty pool that keeps at most `max_idle` unused connections a host (default: 256; the oldest goes
    /// first, 0 keeps none) and uses none that is older than `for_at_most` (default: 60 s). There is no task to close
    /// those: they go when the pool is next used, at the latest that much later.
    #[must_use]
    pub fn keep_idle(mut self, max_idle: usize, for_at_most: Duration) -> Self {
        Arc::make_mut(&mut self.shared).pool = Arc::new(Pool::new(max_idle, for_at_most));
        self
    }

    /// How many connections wait in the pool and are not too old to be used. One that its server has closed since is
    /// counted until it is taken out.
    pub fn idle_connections(&self) -> usize {
        self.shared.pool.len()
    }
}

impl Default for HttpTransport {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpTransport")
            .field("idle_connections", &self.idle_connections())
            .field("connect_within", &self.shared.connect_within)
            .finish_non_exhaustive()
    }
}

impl Service<Request<Full<Bytes>>> for HttpTransport {
    type Response = Response<DrivenBody>;
    type Error = Error;
    type Future = Exchange;

    /// Always ready: there is no bound on connections here, a `ConcurrencyLimit` sets one.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Full<Bytes>>) -> Exchange {
        Exchange::new(self.shared.clone(), request)
    }
}

/// The source of the [`Error`] of a call for which this process, or its machine, had no file descriptor left: the upstream
/// was not asked, which whoever counts its failures wants to know.
///
/// The error's class is [`Connect`](crate::Class::Connect), its status 503 and its code `out_of_descriptors`.
#[derive(Debug)]
#[non_exhaustive]
pub struct OutOfDescriptors {
    source: BoxError,
}

impl fmt::Display for OutOfDescriptors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no file descriptor was left")
    }
}

impl error::Error for OutOfDescriptors {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// Why there is no connection to `host`.
fn not_connected(host: &Authority, error: BoxError) -> Error {
    // ENFILE and EMFILE, whose numbers are the same on all Unixes.
    let ours = |error: &io::Error| cfg!(unix) && matches!(error.raw_os_error(), Some(23 | 24));
    let told = Error::new(Class::Connect, format!("could not connect to {host}: {}", root_cause(&*error)));
    if chain(&*error).filter_map(|error| error.downcast_ref()).any(ours) {
        let told = told.with_status(StatusCode::SERVICE_UNAVAILABLE).with_code("out_of_descriptors");
        return told.with_source(OutOfDescriptors { source: error });
    }
    told.with_source(error)
}

/// The innermost message of an I/O failure: what the outer ones say is that something failed.
fn root_cause(error: &(dyn error::Error + 'static)) -> String {
    let cause = chain(error).last().expect("it begins with the error itself");
    match cause.downcast_ref::<io::Error>() {
        // What is of a kind is told by that, on all systems alike; what is of none by the system's own words.
        Some(io) if io.raw_os_error().is_some() && io.kind() != nameless() => io.kind().to_string(),
        _ => cause.to_string(),
    }
}

/// The kind of what is of none, which has no name in Rust.
fn nameless() -> io::ErrorKind {
    io::Error::from_raw_os_error(i32::MAX).kind()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Other systems have other numbers.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_system_says_is_told() {
        let host = Authority::from_static("here:1");
        let failed = |errno| {
            let wrapped = io::Error::other(io::Error::from_raw_os_error(errno));
            not_connected(&host, io::Error::other(wrapped).into())
        };
        let words = |errno| failed(errno).message().to_owned();
        assert_eq!(words(111), "could not connect to here:1: connection refused");
        assert_eq!(words(24), "could not connect to here:1: Too many open files (os error 24)");
        let ours = |errno| {
            let error = failed(errno);
            let found = chain(&error).any(<dyn error::Error>::is::<OutOfDescriptors>);
            (found, error.status().as_u16(), error.code() == Some("out_of_descriptors"))
        };
        assert_eq!([ours(23), ours(24)], [(true, 503, true); 2]);
        assert_eq!(ours(111), (false, 502, false));
    }
}
