use std::{
    pin::Pin,
    sync::Barrier,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, mpsc, oneshot},
    task::JoinHandle,
};

use super::{patience::READ_AHEAD, *};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// For what has to happen at once, on a busy machine too.
const SOON: Duration = Duration::from_secs(10);

type TestBody = http_body_util::combinators::BoxBody<Bytes, Infallible>;

/// Says which worker it is on, or does what the path asks for.
#[derive(Clone)]
struct Probe {
    worker: usize,
    shared: Arc<Shared>,
}

struct Shared {
    /// Lets `/hold` go on.
    release: Notify,
    /// Lets `/block` go on.
    unblock: Barrier,
    /// Hears when a request arrives, and when a held one is dropped.
    events: mpsc::UnboundedSender<String>,
}

impl Shared {
    fn say(&self, event: String) {
        let _ = self.events.send(event);
    }
}

struct SayOnDrop(Arc<Shared>);

impl Drop for SayOnDrop {
    fn drop(&mut self) {
        self.0.say("dropped".to_owned());
    }
}

impl Service<Request<Incoming>> for Probe {
    type Response = Response<TestBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let Self { worker, shared } = self.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            shared.say(path.clone());
            let body = match path.as_str() {
                "/hold" => {
                    let _guard = SayOnDrop(shared.clone());
                    shared.release.notified().await;
                    Full::from("held").boxed()
                }
                "/stream" => OneFrame { sent: false, _guard: SayOnDrop(shared) }.boxed(),
                "/endless" => Endless(SayOnDrop(shared)).boxed(),
                "/block" => {
                    shared.unblock.wait();
                    Full::from("unblocked").boxed()
                }
                "/panic" => panic!("as asked"),
                _ => Full::from(format!("worker {worker}")).boxed(),
            };
            Ok(Response::new(body))
        })
    }
}

/// A stream that stalls after its first frame.
struct OneFrame {
    sent: bool,
    _guard: SayOnDrop,
}

impl Body for OneFrame {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if std::mem::replace(&mut self.sent, true) {
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"first")))))
    }
}

/// A stream that never runs dry.
struct Endless(#[expect(dead_code, reason = "tells of its drop")] SayOnDrop);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'.'; 64 * 1024])))))
    }
}

/// A server on its own threads, driven from the test's runtime.
struct Running {
    address: SocketAddr,
    shared: Arc<Shared>,
    events: mpsc::UnboundedReceiver<String>,
    stop: oneshot::Sender<()>,
    done: JoinHandle<io::Result<Drained>>,
}

fn options(workers: usize) -> ServerOptions {
    ServerOptions { workers: NonZeroUsize::new(workers).unwrap(), ..ServerOptions::default() }
}

async fn start(options: ServerOptions) -> Running {
    let (sender, events) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared { release: Notify::new(), unblock: Barrier::new(2), events: sender });
    let server = Server::bind(LOOPBACK, options).await.unwrap();
    let address = server.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let factory = {
        let shared = shared.clone();
        move |worker| Probe { worker, shared: shared.clone() }
    };
    let done = tokio::spawn(server.run(factory, stopped));
    Running { address, shared, events, stop, done }
}

impl Running {
    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn event(&mut self, expected: &str) {
        assert_eq!(self.events.recv().await.as_deref(), Some(expected));
    }

    async fn stop(self) -> Drained {
        self.stop.send(()).unwrap();
        self.done.await.unwrap().unwrap()
    }
}

async fn send(connection: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
}

/// Reads one response with a content-length, and returns its body.
async fn receive(connection: &mut TcpStream) -> String {
    let mut response = Vec::new();
    loop {
        if let Some(head) = response.windows(4).position(|window| window == b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&response[..head]).to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if response.len() == head + 4 + length.parse::<usize>().unwrap() {
                return String::from_utf8(response.split_off(head + 4)).unwrap();
            }
        }
        let read = connection.read_buf(&mut response).await.unwrap();
        assert_ne!(read, 0, "closed after {:?}", String::from_utf8_lossy(&response));
    }
}

/// Everything until the server closes. A reset counts as closed.
async fn rest(connection: &mut TcpStream) -> String {
    let mut all = Vec::new();
    while let Ok(1..) = connection.read_buf(&mut all).await {}
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn connections_are_spread_over_the_workers_and_kept_alive() {
    let server = start(options(2)).await;
    let (mut a, mut b) = (server.connect().await, server.connect().await);
    for _ in 0..2 {
        send(&mut a, "/").await;
        send(&mut b, "/").await;
        assert_eq!(receive(&mut a).await, "worker 0");
        assert_eq!(receive(&mut b).await, "worker 1");
    }
    assert_eq!(server.stop().await, Drained { open: 2, cut: 0 });
}

#[test]
fn a_new_connection_goes_to_the_least_loaded_worker() {
    let choose = |loads: &[usize], next| least_loaded(loads.len(), next, |index| loads[index]);
    assert_eq!(choose(&[0], 1), 0);
    assert_eq!(choose(&[3, 1, 2], 0), 1);
    assert_eq!(choose(&[1, 1, 1], 2), 2);
    assert_eq!(choose(&[1, 0, 1, 0], 2), 3);
    assert_eq!(choose(&[1, 0, 1, 0], 4), 1);
}

#[tokio::test]
async fn the_drain_waits_for_what_is_in_flight_and_refuses_new_connections() {
    let mut server = start(options(2)).await;
    let (mut busy, mut idle) = (server.connect().await, server.connect().await);
    send(&mut busy, "/hold").await;
    server.event("/hold").await;
    server.stop.send(()).unwrap();
    // An idle connection is closed without a word.
    assert_eq!(rest(&mut idle).await, "");
    let refused = TcpStream::connect(server.address).await.unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    assert!(!server.done.is_finished());
    server.shared.release.notify_one();
    assert_eq!(receive(&mut busy).await, "held");
    assert_eq!(rest(&mut busy).await, "");
    assert_eq!(server.done.await.unwrap().unwrap(), Drained { open: 2, cut: 0 });
}

#[tokio::test]
async fn what_is_busy_after_the_drain_timeout_is_cut() {
    let mut server = start(ServerOptions { drain_timeout: Duration::from_millis(30), ..options(1) }).await;
    let (mut held, mut streaming) = (server.connect().await, server.connect().await);
    send(&mut held, "/hold").await;
    server.event("/hold").await;
    send(&mut streaming, "/stream").await;
    server.event("/stream").await;
    assert_eq!(server.stop().await, Drained { open: 2, cut: 2 });
    assert_eq!(rest(&mut held).await, "");
    // No last chunk: the client can tell that this is not all.
    assert!(rest(&mut streaming).await.ends_with("first\r\n"));
}

/// The clock is the acceptor's alone; it jumps as soon as there is nothing to do but wait.
#[tokio::test(start_paused = true)]
async fn a_worker_that_is_blocked_is_left_behind() {
    let mut server = start(options(2)).await;
    let mut blocking = server.connect().await;
    send(&mut blocking, "/block").await;
    server.event("/block").await;
    let shared = server.shared.clone();
    assert_eq!(server.stop().await, Drained { open: 1, cut: 1 });
    shared.unblock.wait();
}

#[tokio::test]
async fn dropping_the_server_cuts_everything() {
    let mut server = start(options(1)).await;
    let mut held = server.connect().await;
    send(&mut held, "/hold").await;
    server.event("/hold").await;
    server.done.abort();
    server.event("dropped").await;
    assert_eq!(rest(&mut held).await, "");
}

#[tokio::test]
async fn half_a_head_then_silence_is_told_and_closed() {
    let server = start(ServerOptions { header_timeout: Duration::from_millis(50), ..options(1) }).await;
    let (mut half, mut silent) = (server.connect().await, server.connect().await);
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nhost: te").await.unwrap();
    let answer = rest(&mut half).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())));
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["error"]["code"], "request_timeout");
    assert_eq!(rest(&mut silent).await, "");
    server.stop().await;
}

#[tokio::test]
async fn what_is_not_http_gets_a_400_and_the_server_stays_up() {
    let server = start(options(1)).await;
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"[..], b"GET / \xff\xfe\r\n\r\n"] {
        let mut connection = server.connect().await;
        connection.write_all(garbage).await.unwrap();
        assert!(rest(&mut connection).await.starts_with("HTTP/1.1 400 "));
    }
    let mut connection = server.connect().await;
    send(&mut connection, "/").await;
    assert_eq!(receive(&mut connection).await, "worker 0");
    server.stop().await;
}

/// As many clients do, sends all that it has, with no eye on the answer.
#[tokio::test]
async fn a_refusal_reaches_who_is_still_sending() {
    let server = start(options(1)).await;
    let mut connection = server.connect().await;
    let head = "POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 20000000\r\n\r\n";
    connection.write_all(head.as_bytes()).await.unwrap();
    // The answer is there already, and is looked at when all is sent.
    connection.readable().await.unwrap();
    for _ in 0..20 {
        connection.write_all(&[b'x'; 1_000_000]).await.unwrap();
    }
    assert_eq!(receive(&mut connection).await, "worker 0");
    assert_eq!(rest(&mut connection).await, "");
    // What is no HTTP, too.
    let mut connection = server.connect().await;
    connection.write_all(b"GET / \xff\xfe\r\n\r\n").await.unwrap();
    connection.write_all(&[b'x'; 100_000]).await.unwrap();
    assert!(rest(&mut connection).await.starts_with("HTTP/1.1 400 "));
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_is_listened_to_for_ever_after_a_refusal() {
    let (sender, receiver) = tokio::io::duplex(64);
    let begin = tokio::time::Instant::now();
    worker::linger(receiver).await;
    assert_eq!(begin.elapsed(), worker::LINGER);
    drop(sender);

    let (mut sender, receiver) = tokio::io::duplex(1 << 20);
    let sent = async {
        let piece = vec![b'x'; 1 << 20];
        let mut sent = 0;
        while sender.write_all(&piece).await.is_ok() {
            sent += piece.len() as u64;
        }
        sent
    };
    let ((), sent) = tokio::join!(worker::linger(receiver), sent);
    assert!((worker::LINGER_BYTES..worker::LINGER_BYTES + (2 << 20)).contains(&sent), "{sent}");

    // Whoever has gone need not be waited for.
    let begin = tokio::time::Instant::now();
    worker::linger(&b"the rest"[..]).await;
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_who_is_still_sending() {
    let server = start(options(1)).await;
    let mut connection = server.connect().await;
    connection.write_all(b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    assert_eq!(receive(&mut connection).await, "worker 0");
    assert_eq!(rest(&mut connection).await, "");
    let stopping = timeout(worker::LINGER / 2, server.stop());
    assert_eq!(stopping.await.unwrap(), Drained { open: 1, cut: 0 });
}

#[tokio::test]
async fn a_head_that_never_ends_gets_a_431() {
    let server = start(options(1)).await;
    let mut connection = server.connect().await;
    connection.write_all(b"GET / HTTP/1.1\r\nx: ").await.unwrap();
    connection.write_all(&vec![b'x'; 2 * MAX_HEAD]).await.unwrap();
    assert!(rest(&mut connection).await.starts_with("HTTP/1.1 431 "));
    server.stop().await;
}

#[tokio::test]
async fn a_panic_costs_its_connection_only() {
    let server = start(options(1)).await;
    let (mut bystander, mut victim) = (server.connect().await, server.connect().await);
    send(&mut victim, "/panic").await;
    assert_eq!(rest(&mut victim).await, "");
    send(&mut bystander, "/").await;
    assert_eq!(receive(&mut bystander).await, "worker 0");
    assert_eq!(server.stop().await, Drained { open: 1, cut: 0 });
}

#[tokio::test]
async fn a_disconnect_drops_the_future_and_the_body() {
    for path in ["/hold", "/stream"] {
        let mut server = start(options(1)).await;
        let mut connection = server.connect().await;
        send(&mut connection, path).await;
        server.event(path).await;
        drop(connection);
        server.event("dropped").await;
        server.stop().await;
    }
}

/// Whatever it has sent on after its request, and whenever.
#[tokio::test]
async fn a_disconnect_is_seen_past_what_follows_the_request() {
    let large = "x".repeat(READ_AHEAD - 1);
    for path in ["/hold", "/stream"] {
        for more in ["G", "GET / HTTP/1.1\r\nhost: test\r\n\r\n", "\r\n", &large] {
            for at_once in [true, false] {
                let mut server = start(options(1)).await;
                let mut connection = server.connect().await;
                if at_once {
                    send(&mut connection, &format!("{path} HTTP/1.1\r\nhost: test\r\n\r\n{more}")).await;
                } else {
                    send(&mut connection, path).await;
                }
                server.event(path).await;
                if !at_once {
                    connection.write_all(more.as_bytes()).await.unwrap();
                }
                drop(connection);
                timeout(SOON, server.event("dropped"))
                    .await
                    .unwrap_or_else(|_| panic!("{path} {at_once} {more:.9?}"));
                server.stop().await;
            }
        }
    }
}

#[tokio::test]
async fn requests_that_come_ahead_of_answers_are_served() {
    let mut server = start(options(1)).await;
    let mut connection = server.connect().await;
    let padding = "x".repeat(MAX_HEAD / 2);
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: test\r\nx: {padding}\r\n\r\n");
    connection.write_all(one("/hold").as_bytes()).await.unwrap();
    server.event("/hold").await;
    let (mut reads, mut writes) = connection.split();
    let ahead = [one("/1"), one("/2"), one("/3"), one("/4")].concat();
    let written = async { writes.write_all(ahead.as_bytes()).await.unwrap() };
    let answered = async {
        server.shared.release.notify_one();
        let mut all = String::new();
        while all.matches("worker 0").count() < 4 {
            let mut some = [0; 4096];
            let read = reads.read(&mut some).await.unwrap();
            all += str::from_utf8(&some[..read]).unwrap();
        }
        all
    };
    let ((), all) = tokio::join!(written, answered);
    assert!(all.contains("held"), "{all}");
    server.event("dropped").await;
    for path in ["/1", "/2", "/3", "/4"] {
        server.event(path).await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let write_timeout = Duration::from_millis(50);
    let mut running = start(ServerOptions { write_timeout, ..options(1) }).await;
    let mut connection = running.connect().await;
    send(&mut connection, "/endless").await;
    running.event("/endless").await;
    running.event("dropped").await;
    drop(connection);
    assert_eq!(running.stop().await.cut, 0);
}

#[tokio::test]
async fn connections_beyond_the_bound_wait() {
    let mut server = start(ServerOptions { max_connections: NonZeroUsize::MIN, ..options(1) }).await;
    let (mut first, mut second) = (server.connect().await, server.connect().await);
    send(&mut second, "/second").await;
    for _ in 0..10 {
        send(&mut first, "/first").await;
        receive(&mut first).await;
        server.event("/first").await;
    }
    drop(first);
    assert_eq!(receive(&mut second).await, "worker 0");
    server.stop().await;
}

#[tokio::test]
async fn a_factory_that_panics_is_an_error() {
    let server = Server::bind(LOOPBACK, options(2)).await.unwrap();
    let factory = |worker| {
        assert_eq!(worker, 0, "as asked");
        axum::Router::new()
    };
    let error = server.run(factory, std::future::pending::<()>()).await.unwrap_err();
    assert_eq!(error.to_string(), "worker 1 has ended");
}
