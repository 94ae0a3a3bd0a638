//! The pooled transport against real sockets: reuse, disconnects, and servers that do not keep to HTTP.
#![cfg(feature = "client")]

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_provider::{Class, Error, HttpTransport, Provider, ResponseBody};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::coop,
};
use tower::{Service, ServiceExt};

type Answer = Result<Response<ResponseBody<bartizan_provider::DrivenBody>>, Error>;

struct Upstream {
    listener: TcpListener,
    provider: Provider<HttpTransport>,
    transport: HttpTransport,
}

impl Upstream {
    async fn new() -> Self {
        Self::with(HttpTransport::new()).await
    }

    async fn with(transport: HttpTransport) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let provider = Provider::new(transport.clone(), &base).unwrap();
        Self { listener, provider, transport }
    }

    async fn accept(&self) -> TcpStream {
        self.listener.accept().await.unwrap().0
    }

    /// One call, on a task of its own, as in a server.
    fn call(&self) -> tokio::task::JoinHandle<Answer> {
        tokio::spawn(call(self.provider.clone()))
    }
}

async fn call(mut provider: Provider<HttpTransport>) -> Answer {
    let request =
        Request::post("/v1/chat/completions").body(Bytes::from_static(br#"{"model":"m"}"#)).unwrap();
    provider.ready().await?.call(request).await
}

/// Reads one request, body and all.
async fn request(io: &mut (impl AsyncRead + Unpin)) -> String {
    let mut got = Vec::new();
    while !got.ends_with(br#"{"model":"m"}"#) {
        assert_ne!(io.read_buf(&mut got).await.unwrap(), 0, "closed within a request");
    }
    String::from_utf8(got).unwrap()
}

async fn say(io: &mut (impl AsyncWrite + Unpin), text: &str) {
    io.write_all(text.as_bytes()).await.unwrap();
    io.flush().await.unwrap();
}

/// Lets the runtime hear what happened on its sockets so far, as it does all the time in a server.
async fn turn_the_reactor() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (connected, accepted) =
        tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    connected.unwrap();
    accepted.unwrap();
}

const PLAIN: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
const STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

async fn whole(answer: Answer) -> Bytes {
    answer.unwrap().into_body().collect().await.unwrap().to_bytes()
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let upstream = Upstream::new().await;
    let first = upstream.call();
    let mut io = upstream.accept().await;
    let head = request(&mut io).await;
    let host = format!("host: {}\r\n", upstream.listener.local_addr().unwrap());
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n") && head.contains(&host), "{head}");
    say(&mut io, PLAIN).await;
    assert_eq!(whole(first.await.unwrap()).await, "{}");
    assert_eq!(upstream.transport.idle_connections(), 1);

    // A stream that is read to its end gives it back as well.
    let second = upstream.call();
    request(&mut io).await;
    say(&mut io, &format!("{STREAM}e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")).await;
    assert_eq!(whole(second.await.unwrap()).await, "data: [DONE]\n\n");
    assert_eq!(upstream.transport.idle_connections(), 1);
}

/// The end of a body may come a little after that of its events, and is waited for. What waits for it are the events' last
/// only: all others are passed on.
#[tokio::test]
async fn a_connection_whose_stream_ends_late_is_used_again_and_one_whose_does_not_is_closed() {
    let upstream = Upstream::new().await;
    let first = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    say(&mut io, &format!("{STREAM}17\r\ndata: 1\n\ndata: [DONE]\n\n\r\n")).await;
    let mut body = first.await.unwrap().unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    say(&mut io, "0\r\n\r\n").await;
    turn_the_reactor().await;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: [DONE]\n\n");
    assert!(body.is_end_stream());
    assert_eq!(upstream.transport.idle_connections(), 1);

    let second = upstream.call();
    request(&mut io).await;
    say(&mut io, &format!("{STREAM}e\r\ndata: [DONE]\n\n\r\n")).await;
    let mut body = second.await.unwrap().unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: [DONE]\n\n");
    assert!(body.is_end_stream());
    assert_eq!(upstream.transport.idle_connections(), 0);
    assert_eq!(io.read(&mut [0]).await.unwrap(), 0, "it is closed, although the body is still there");
}

/// A version is a connection's, and the client's connection is another one: a server that is handed an answer "in HTTP/1.0"
/// would close its own after it, and could send no chunks.
#[tokio::test]
async fn the_version_of_an_upstream_is_its_own() {
    for answer in [
        "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.0 400 Bad Request\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: [DONE]\n\n",
    ] {
        let upstream = Upstream::new().await;
        let call = upstream.call();
        let mut io = upstream.accept().await;
        request(&mut io).await;
        say(&mut io, answer).await;
        drop(io);
        assert_eq!(call.await.unwrap().unwrap().version(), http::Version::HTTP_11, "{answer}");
    }
}

/// A server would write the words behind a status that they are not of.
#[tokio::test]
async fn the_words_of_a_status_go_with_it() {
    let json = "content-type: application/json\r\nconnection: close\r\n\r\n{\"error\":{\"message\":\"no\"}}";
    let text = "content-type: text/plain\r\nconnection: close\r\n\r\noops";
    for (status, rest, expected) in [
        ("429 Slow Down", json, Some("Slow Down")),
        ("429 Slow Down", text, Some("Slow Down")),
        ("500 Oops", json, Some("Oops")),
        ("500 Oops", text, None),
        ("200 Fine", json, None),
    ] {
        let upstream = Upstream::new().await;
        let call = upstream.call();
        let mut io = upstream.accept().await;
        request(&mut io).await;
        say(&mut io, &format!("HTTP/1.1 {status}\r\n{rest}")).await;
        drop(io);
        let response = call.await.unwrap().unwrap();
        let words = response.extensions().get::<hyper::ext::ReasonPhrase>();
        let words = words.map(|words| str::from_utf8(words.as_bytes()).unwrap());
        assert_eq!(words, expected, "{status} became {}", response.status());
    }
}

#[tokio::test]
async fn a_connection_that_its_server_closed_is_replaced() {
    let upstream = Upstream::new().await;
    let first = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    say(&mut io, PLAIN).await;
    whole(first.await.unwrap()).await;
    // As far as this runtime has heard it is open still.
    drop(io);

    let second = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    say(&mut io, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{}").await;
    drop(io);
    assert_eq!(whole(second.await.unwrap()).await, "{}");
    assert_eq!(upstream.transport.idle_connections(), 0, "a connection that was to be closed is not kept");
}

#[tokio::test]
async fn the_pool_keeps_no_more_than_it_may() {
    let upstream = Upstream::with(HttpTransport::new().keep_idle(1, Duration::from_secs(60))).await;
    let (one, two) = (upstream.call(), upstream.call());
    let (mut a, mut b) = (upstream.accept().await, upstream.accept().await);
    for io in [&mut a, &mut b] {
        request(io).await;
        say(io, PLAIN).await;
    }
    whole(one.await.unwrap()).await;
    whole(two.await.unwrap()).await;
    assert_eq!(upstream.transport.idle_connections(), 1);

    let upstream = Upstream::with(HttpTransport::new().keep_idle(8, Duration::ZERO)).await;
    for _ in 0..2 {
        let answer = upstream.call();
        let mut io = upstream.accept().await;
        request(&mut io).await;
        say(&mut io, PLAIN).await;
        whole(answer.await.unwrap()).await;
        assert_eq!(upstream.transport.idle_connections(), 0, "what is too old is not there");
    }
}

#[tokio::test]
async fn who_stops_listening_is_seen_by_the_upstream() {
    let upstream = Upstream::new().await;
    // Before the head.
    let answer = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    answer.abort();
    assert_eq!(io.read(&mut [0]).await.unwrap(), 0);

    // In the middle of a stream.
    let answer = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    say(&mut io, &format!("{STREAM}9\r\ndata: 1\n\n\r\n")).await;
    let mut body = answer.await.unwrap().unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    drop(body);
    assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn events_in_chunks_of_their_own_that_arrive_together_are_one_frame() {
    let upstream = Upstream::new().await;
    let answer = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    let mut reply = STREAM.to_owned();
    for _ in 0..20 {
        reply.push_str("9\r\ndata: 1\n\n\r\n");
    }
    say(&mut io, &reply).await;
    let mut body = answer.await.unwrap().unwrap().into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert_eq!(first, "data: 1\n\n".repeat(20));

    // Alone, an event does not wait for company.
    say(&mut io, "e\r\ndata: [DONE]\n\n\r\n").await;
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: [DONE]\n\n");
    say(&mut io, "0\r\n\r\n").await;
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn servers_that_break_off_or_talk_nonsense() {
    for (reply, class) in [
        ("", Class::Upstream),
        ("HTTP/1.1 200 OK\r\ncontent-ty", Class::Upstream),
        ("SSH-2.0-OpenSSH_9.2\r\n", Class::Malformed),
        ("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{}", Class::Upstream),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: x\r\n\r\n{}",
            Class::Malformed,
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            Class::Upstream,
        ),
    ] {
        let upstream = Upstream::new().await;
        let answer = upstream.call();
        let mut io = upstream.accept().await;
        request(&mut io).await;
        say(&mut io, reply).await;
        drop(io);
        let error = answer.await.unwrap().unwrap_err();
        assert_eq!(error.class(), class, "{reply:?}: {error}");
    }
}

#[tokio::test]
async fn a_cut_stream_says_so() {
    let upstream = Upstream::new().await;
    let answer = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    say(&mut io, &format!("{STREAM}9\r\ndata: 1\n\n\r\n9\r\ndata")).await;
    let mut body = answer.await.unwrap().unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "data: 1\n\n");
    drop(io);
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Upstream);
    assert!(error.message().starts_with("the upstream's answer was cut off"), "{error}");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let upstream = Upstream::new().await;
    let address = upstream.listener.local_addr().unwrap();
    let Upstream { listener, provider, .. } = upstream;
    drop(listener);
    let error = call(provider).await.unwrap_err();
    assert_eq!(error.class(), Class::Connect);
    assert_eq!(error.message(), format!("could not connect to {address}: connection refused"));

    // One that never says a word of TLS.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let transport = HttpTransport::new().connect_within(Duration::ZERO);
    let error = call(Provider::new(transport, &format!("https://{address}/v1")).unwrap()).await.unwrap_err();
    assert_eq!(error.message(), format!("could not connect to {address}: no connection within 0ns"));
}

#[tokio::test]
async fn credentials_in_an_address_are_neither_sent_nor_told() {
    let upstream = Upstream::new().await;
    let uri = format!("http://anna:geheim@{}/", upstream.listener.local_addr().unwrap());
    let exchange = upstream.transport.clone().call(Request::get(uri).body(Full::default()).unwrap());
    assert!(!format!("{exchange:?}").contains("geheim"));
    let error = exchange.await.unwrap_err();
    assert_eq!(error.class(), Class::Connect);
    assert!(!format!("{error:?}").contains("geheim"), "{error:?}");
}

#[tokio::test]
async fn hosts_that_nobody_asks_any_more_do_not_keep_their_connections() {
    let transport = HttpTransport::new().keep_idle(8, Duration::ZERO);
    let (one, other) = (Upstream::with(transport.clone()).await, Upstream::with(transport).await);
    let mut left = None;
    for upstream in [&one, &other] {
        let answer = upstream.call();
        let mut io = upstream.accept().await;
        request(&mut io).await;
        say(&mut io, PLAIN).await;
        whole(answer.await.unwrap()).await;
        // The first host's connection is closed when the second's comes into the pool.
        if let Some(mut io) = left.replace(io) {
            assert_eq!(io.read(&mut [0]).await.unwrap(), 0);
        }
    }
}

/// A poll that has nothing to do ends, and registers one waker: nobody wakes himself.
#[tokio::test]
async fn waiting_costs_no_polls() {
    let upstream = Upstream::new().await;
    let answer = upstream.call();
    let mut io = upstream.accept().await;
    request(&mut io).await;
    say(&mut io, &format!("{STREAM}9\r\ndata: 1\n\n\r\n")).await;
    let mut body = pin!(answer.await.unwrap().unwrap().into_body());
    let mut polls = 0;
    {
        let mut next = poll_fn(|cx| {
            polls += 1;
            body.as_mut().poll_frame(cx)
        });
        (&mut next).await.unwrap().unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(20), next).await;
        assert!(waiting.is_err());
    }
    assert!(polls <= 4, "{polls} polls for one event and one wait");
}

/// tokio gives a task a budget of operations a poll; what is left of it must not change what is seen.
#[tokio::test]
async fn a_task_that_has_done_much_already_misses_nothing() {
    const REPLIES: [&str; 3] = [
        "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ];
    for reply in REPLIES {
        for left in 0..8 {
            let upstream = Upstream::new().await;
            let mut transport = upstream.transport.clone();
            let uri = format!("http://{}/", upstream.listener.local_addr().unwrap());
            let asked = Request::post(uri).body(Full::from(r#"{"model":"m"}"#)).unwrap();
            let mut answer = pin!(transport.call(asked));
            // Sent, and then answered while nobody looks.
            let mut io = tokio::select! {
                biased;
                _ = &mut answer => panic!("nobody has answered yet"),
                io = async { let mut io = upstream.accept().await; request(&mut io).await; io } => io,
            };
            say(&mut io, reply).await;
            turn_the_reactor().await;

            let mut cx_of_nobody = Context::from_waker(Waker::noop());
            let first = poll_fn(|cx| {
                for _ in left..128 {
                    if let Poll::Ready(spent) = coop::poll_proceed(&mut cx_of_nobody) {
                        spent.made_progress();
                    }
                }
                Poll::Ready(answer.as_mut().poll(cx))
            })
            .await;
            let answered = match first {
                Poll::Ready(answered) => answered,
                Poll::Pending => {
                    let woken = tokio::time::timeout(Duration::from_secs(5), answer).await;
                    woken.unwrap_or_else(|_| panic!("never woken with {left} left: {reply:?}"))
                }
            };
            assert!(answered.is_ok(), "with {left} left: {answered:?}");
        }
    }
}

#[tokio::test]
async fn tls_is_spoken_and_checked() {
    let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = certified.cert.der().clone();
    let key = PrivateKeyDer::try_from(certified.signing_key.serialize_der()).unwrap();
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(ring.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = format!("https://localhost:{}/v1", listener.local_addr().unwrap().port());

    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate).unwrap();
    let tls = rustls::ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let answer = tokio::spawn(call(Provider::new(HttpTransport::with_tls(tls), &base).unwrap()));
    let mut io = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
    request(&mut io).await;
    say(&mut io, PLAIN).await;
    assert_eq!(whole(answer.await.unwrap()).await, "{}");

    // Mozilla's roots do not know this authority.
    let answer = tokio::spawn(call(Provider::new(HttpTransport::new(), &base).unwrap()));
    assert!(acceptor.accept(listener.accept().await.unwrap().0).await.is_err());
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.class(), Class::Connect);
    assert!(error.message().contains("certificate"), "{error}");
}
