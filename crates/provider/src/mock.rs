//! The scripted upstream.

mod answer;
mod body;
mod script;
mod service;

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderMap, Method, Uri,
    header::{AUTHORIZATION, COOKIE},
};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tower_service::Service;

pub use self::{
    body::MockBody,
    script::Script,
    service::{MockFuture, MockService},
};

/// The most that recorded bodies take together, in bytes; the oldest requests are forgotten first.
const MAX_RECORDED: usize = 64 * 1024 * 1024;

/// How long to wait before accepting again, when the process is out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// An upstream that speaks OpenAI's API and does as it is told: for tests, benchmarks, and trying things out.
///
/// It answers chat completions, plain and streamed, with what the last user message said; embeddings with vectors made
/// from the text; models with a list. The same calls in the same order get the same bytes. [`Script`]s make it slow,
/// wrong or broken; [`stats`](Self::stats), [`requests`](Self::requests) and [`until`](Self::until) tell what it saw.
///
/// A clone is another handle on the same upstream.
///
/// ```
/// use std::time::Duration;
/// use bartizan_provider::mock::{Mock, Script};
/// use bytes::Bytes;
/// use http::Request;
/// use http_body_util::{BodyExt, Full};
/// use tower::ServiceExt;
///
/// # tokio_test::block_on(async {
/// let mock = Mock::new();
/// mock.script(Script::new().status(503).header("retry-after", "7"));
///
/// let ask = || {
///     let body = r#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;
///     Request::post("/v1/chat/completions").body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
/// };
/// let refused = mock.service().oneshot(ask()).await?;
/// assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"7".parse().unwrap()));
///
/// let answer = mock.service().oneshot(ask()).await?.into_body().collect().await?.to_bytes();
/// assert!(str::from_utf8(&answer)?.contains("You said: hello"));
/// assert_eq!(mock.calls(), 2);
/// # drop(refused);
/// # Ok::<(), bartizan_core::BoxError>(())
/// # }).unwrap();
/// ```
///
/// # Behaviour
///
/// Paths may stand with or without `/v1`. Any model is known unless [`with_models`](Self::with_models) says which; any
/// key is accepted, and none. `n`, tools and response formats are ignored. Tokens are counted roughly: words for answers,
/// a quarter of the bytes for prompts.
///
/// Time is tokio's, so that a paused clock works. Nothing is spawned but what [`serve`](Self::serve) spawns, which ends
/// with that.
#[derive(Clone)]
pub struct Mock {
    shared: Arc<Shared>,
}

struct Shared {
    /// The models that there are; any, if `None`.
    models: Option<Vec<String>>,
    stats: watch::Sender<MockStats>,
    inner: Mutex<Inner>,
}

struct Inner {
    next: VecDeque<Arc<Script>>,
    of_model: HashMap<String, Arc<Script>>,
    always: Arc<Script>,
    requests: VecDeque<MockRequest>,
    recorded_bytes: usize,
    keep: usize,
}

impl Mock {
    /// An upstream that knows any model, and remembers the last 1,000 requests.
    pub fn new() -> Self {
        Self::of(None)
    }

    /// An upstream that knows these models, and answers 404 `model_not_found` for any other.
    pub fn with_models<M: Into<String>>(models: impl IntoIterator<Item = M>) -> Self {
        Self::of(Some(models.into_iter().map(Into::into).collect()))
    }

    fn of(models: Option<Vec<String>>) -> Self {
        let inner = Inner {
            next: VecDeque::new(),
            of_model: HashMap::new(),
            always: Arc::default(),
            requests: VecDeque::new(),
            recorded_bytes: 0,
            keep: 1_000,
        };
        let stats = watch::Sender::new(MockStats::default());
        Self { shared: Arc::new(Shared { models, stats, inner: Mutex::new(inner) }) }
    }

    /// Does as `script` says on the next call that no earlier `script` is waiting for, once.
    ///
    /// Calls take their scripts in the order in which their bodies have arrived, whatever they ask for.
    pub fn script(&self, script: Script) {
        self.shared.lock().next.push_back(Arc::new(script));
    }

    /// Does as `script` says on every call for this model, from now on.
    pub fn script_for(&self, model: impl Into<String>, script: Script) {
        self.shared.lock().of_model.insert(model.into(), Arc::new(script));
    }

    /// Does as `script` says on every call for which there is no other, from now on.
    pub fn script_always(&self, script: Script) {
        self.shared.lock().always = Arc::new(script);
    }

    /// Remembers at most this many requests, from now on; 0 saves the work. Default: 1,000.
    ///
    /// Whatever the number, no more than 64 MiB of bodies are kept. The oldest go first.
    pub fn keep_requests(&self, most: usize) {
        let mut inner = self.shared.lock();
        inner.keep = most;
        inner.trim();
    }

    /// The requests so far, the oldest first, as far as they are [kept](Self::keep_requests).
    pub fn requests(&self) -> Vec<MockRequest> {
        self.shared.lock().requests.iter().cloned().collect()
    }

    /// What has happened so far.
    pub fn stats(&self) -> MockStats {
        self.shared.stats.borrow().clone()
    }

    /// How many calls have come in.
    pub fn calls(&self) -> u64 {
        self.shared.stats.borrow().calls
    }

    /// How many calls are under way, the sending of their responses included.
    pub fn running(&self) -> u64 {
        self.shared.stats.borrow().running
    }

    /// How many calls were dropped before the end of their response: the caller went away.
    pub fn cancelled(&self) -> u64 {
        self.shared.stats.borrow().cancelled
    }

    /// A receiver of every change of the [`stats`](Self::stats).
    pub fn changed(&self) -> watch::Receiver<MockStats> {
        self.shared.stats.subscribe()
    }

    /// Waits until `reached` holds for the stats, and returns them. At once, if it holds now.
    ///
    /// With this, a test waits for what it wants to see, and for no longer.
    pub async fn until(&self, reached: impl FnMut(&MockStats) -> bool) -> MockStats {
        let mut changes = self.shared.stats.subscribe();
        let stats = changes.wait_for(reached).await.expect("the sender lives as long as `self`");
        stats.clone()
    }

    /// The upstream as a service.
    pub fn service(&self) -> MockService {
        MockService::new(self.shared.clone())
    }

    /// The upstream as an HTTP/1.1 server with keep-alive, for as long as this future is polled.
    ///
    /// It never ends by itself: errors of `accept` are waited out. Connections are tasks of tokio's runtime. Dropping the future ends them, in the middle of responses if need be.
    pub fn serve(&self, listener: TcpListener) -> impl Future<Output = Infallible> + Send + 'static + use<> {
        let service = self.service();
        async move {
            let mut connections = JoinSet::new();
            loop {
                let socket = match listener.accept().await {
                    Ok((socket, _)) => socket,
                    Err(error) if is_of_connection(&error) => continue,
                    Err(_) => {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                };
                // Those that ended since the last came.
                while connections.try_join_next().is_some() {}
                // Small events must not wait for acknowledgements. A socket that refuses works all the same.
                let _ = socket.set_nodelay(true);
                let service = service.clone();
                connections.spawn(async move {
                    // Always ready, so it may be called at once.
                    let service = service_fn(move |request| service.clone().call(request));
                    // An error here is a connection that broke off, ours to break or not: the script says which.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
                });
            }
        }
    }
}

impl Default for Mock {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Mock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mock")
            .field("models", &self.shared.models)
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// No code of a user runs under this lock, so what a panic left behind is whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers a request, and finds what to do about it.
    fn take_script(&self, model: Option<&str>, request: impl FnOnce() -> MockRequest) -> Arc<Script> {
        let mut inner = self.lock();
        if inner.keep > 0 {
            let request = request();
            inner.recorded_bytes += request.body.len();
            inner.requests.push_back(request);
            inner.trim();
        }
        if let Some(script) = inner.next.pop_front() {
            return script;
        }
        model.and_then(|model| inner.of_model.get(model)).unwrap_or(&inner.always).clone()
    }
}

impl Inner {
    fn trim(&mut self) {
        while self.requests.len() > self.keep || self.recorded_bytes > MAX_RECORDED {
            let Some(oldest) = self.requests.pop_front() else { return };
            self.recorded_bytes -= oldest.body.len();
        }
    }
}

/// What a [`Mock`] has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MockStats {
    /// Calls that have come in.
    pub calls: u64,
    /// Calls under way, the sending of their responses included.
    pub running: u64,
    /// Calls whose response was sent to its end, be it a scripted one.
    pub completed: u64,
    /// Calls that broke off: by script, or because the request did.
    pub failed: u64,
    /// Calls dropped before the end of their response: the caller went away.
    pub cancelled: u64,
}

/// A request that a [`Mock`] has seen.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MockRequest {
    /// The method.
    pub method: Method,
    /// The target, as it was sent.
    pub uri: Uri,
    /// The headers. `Debug` does not show those that hold credentials.
    pub headers: HeaderMap,
    /// The body, all of it.
    pub body: Bytes,
}

impl MockRequest {
    fn new(head: &http::request::Parts, body: Bytes) -> Self {
        let mut headers = head.headers.clone();
        for (name, value) in &mut headers {
            if *name == AUTHORIZATION
                || *name == COOKIE
                || name == "api-key"
                || name.as_str().ends_with("-api-key")
            {
                value.set_sensitive(true);
            }
        }
        Self { method: head.method.clone(), uri: head.uri.clone(), headers, body }
    }

    /// The path of the target.
    pub fn path(&self) -> &str {
        self.uri.path()
    }
}

/// Counts one call for as long as it lasts.
struct Call {
    shared: Arc<Shared>,
    number: u64,
    ended: Option<Ended>,
}

#[derive(Clone, Copy)]
enum Ended {
    Completed,
    Failed,
}

impl Call {
    fn new(shared: Arc<Shared>) -> Self {
        let mut number = 0;
        shared.stats.send_modify(|stats| {
            stats.calls += 1;
            stats.running += 1;
            number = stats.calls;
        });
        Self { shared, number, ended: None }
    }

    fn end(mut self, how: Ended) {
        self.ended = Some(how);
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.shared.stats.send_modify(|stats| {
            stats.running -= 1;
            match self.ended {
                Some(Ended::Completed) => stats.completed += 1,
                Some(Ended::Failed) => stats.failed += 1,
                None => stats.cancelled += 1,
            }
        });
    }
}

/// Errors of `accept` that are about the connection that was to be, not about the listener.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};

    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
