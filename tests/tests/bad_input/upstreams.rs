//! What upstreams answer, down to bytes that are no HTTP.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::{
    gateway_under_test::{Gateway, UPSTREAM_KEY, model, soon, within},
    wire::{Answer, GOOD, GOOD_STREAM, chat, chunked, exchange, send, with_length},
};

const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n";
const JSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n";

/// What a [`Raw`] upstream does after its answer.
#[derive(Clone, Copy)]
enum Then {
    Close,
    Stall,
}

/// An upstream that answers everything with the same bytes.
struct Raw {
    address: SocketAddr,
    seen: mpsc::UnboundedReceiver<Seen>,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Request(String),
    /// The gateway has closed the connection, while the upstream was stalling.
    Close,
}

impl Raw {
    async fn start(answer: impl Into<Vec<u8>>, then: Then) -> Self {
        let answer = answer.into();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (see, seen) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(misbehave(connection, answer.clone(), then, see.clone()));
            }
        });
        Self { address, seen }
    }

    async fn request(&mut self) -> String {
        match within("a request at the upstream", self.seen.recv()).await {
            Some(Seen::Request(request)) => request,
            seen => panic!("no request, but {seen:?}"),
        }
    }
}

async fn misbehave(mut connection: TcpStream, answer: Vec<u8>, then: Then, see: mpsc::UnboundedSender<Seen>) {
    let mut request = Vec::new();
    // All that the gateway is asked ends like this, and nothing else does.
    while !request.ends_with(br#""hello"}]}"#) {
        if connection.read_buf(&mut request).await.unwrap() == 0 {
            panic!("the gateway closed in the middle of its request");
        }
    }
    // The test may be over.
    let _ = see.send(Seen::Request(String::from_utf8(request).unwrap()));
    connection.write_all(&answer).await.unwrap();
    if let Then::Stall = then {
        let mut more = Vec::new();
        // A reset is as good.
        let _ = connection.read_to_end(&mut more).await;
        assert_eq!(more, b"");
        let _ = see.send(Seen::Close);
    }
}

/// A gateway in front of `upstream`, with short limits for what it may leave undone.
async fn gateway(upstream: SocketAddr) -> Gateway {
    let limits = "head_ms = 200\nfirst_frame_ms = 201\nidle_ms = 202\n";
    Gateway::start("", &[model("chat", upstream, limits)]).await
}

/// What comes of an upstream like this, of a plain request and of a stream.
async fn ask(answer: impl Into<Vec<u8>>, then: Then) -> [Answer; 2] {
    let upstream = Raw::start(answer, then).await;
    let gateway = gateway(upstream.address).await;
    let plain = exchange(gateway.address, &chat(GOOD)).await;
    let streamed = exchange(gateway.address, &chat(GOOD_STREAM)).await;
    // What the upstream did to others is nothing to those who ask nothing of it.
    let models =
        exchange(gateway.address, b"GET /v1/models HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n")
            .await;
    assert_eq!(models.status, 200);
    gateway.stop().await;
    [plain, streamed]
}

/// What comes of an upstream that answers with a stream whatever it is asked for.
async fn streamed(answer: impl Into<Vec<u8>>, then: Then) -> Answer {
    let [plain, streamed] = ask(answer, then).await;
    plain.assert_error(502, "api_error", Some("malformed_response"), "which nobody asked for");
    streamed
}

#[tokio::test]
async fn the_request_is_made_with_the_gateways_key() {
    let mut upstream = Raw::start(with_length(JSON, r#"{"id":"1"}"#), Then::Close).await;
    let gateway = gateway(upstream.address).await;
    let answer = exchange(gateway.address, &chat(GOOD)).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"id":"1"}"#));
    let request = upstream.request().await;
    assert!(request.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{request}");
    assert!(request.contains(&format!("\r\nauthorization: Bearer {UPSTREAM_KEY}\r\n")), "{request}");
    assert!(!request.contains("sk-of-the-client"), "{request}");
    assert!(request.ends_with(GOOD), "{request}");
    gateway.stop().await;
}

#[tokio::test]
async fn garbage_instead_of_a_head() {
    for garbage in [&b"\x00\x01\x02 what?\r\n\r\n"[..], b"<html>\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n"] {
        for answer in ask(garbage, Then::Close).await {
            answer.assert_error(502, "api_error", Some("malformed_response"), "is not HTTP");
        }
    }
}

#[tokio::test]
async fn nothing_at_all() {
    for answer in ask("", Then::Close).await {
        answer.assert_error(
            502,
            "api_error",
            Some("upstream_error"),
            "closed the connection without an answer",
        );
    }
}

#[tokio::test]
async fn a_head_that_is_cut() {
    for answer in ask(JSON, Then::Close).await {
        answer.assert_error(502, "api_error", Some("upstream_error"), "closed the connection");
    }
}

#[tokio::test]
async fn a_head_that_stalls() {
    for answer in ask(JSON, Then::Stall).await {
        answer.assert_error(
            504,
            "timeout_error",
            Some("timeout"),
            "no answer from the upstream within 200ms",
        );
    }
}

#[tokio::test]
async fn a_body_that_is_cut() {
    for body in ["", r#"{"id":"1"}"#] {
        for answer in ask(format!("{JSON}content-length: 999\r\n\r\n{body}"), Then::Close).await {
            answer.assert_error(502, "api_error", Some("upstream_error"), "was cut off");
        }
    }
    for answer in ask(chunked(JSON, &[r#"{"id":"1"}"#]), Then::Close).await {
        answer.assert_error(502, "api_error", Some("upstream_error"), "was cut off");
    }
}

#[tokio::test]
async fn a_body_that_stalls() {
    for (body, words) in [("", "nothing within 201ms"), (r#"{"id":"1"}"#, "nothing more for 202ms")] {
        for answer in ask(format!("{JSON}content-length: 999\r\n\r\n{body}"), Then::Stall).await {
            answer.assert_error(504, "timeout_error", Some("timeout"), words);
        }
    }
}

#[tokio::test]
async fn a_body_that_is_longer_than_it_says() {
    for answer in ask(format!("{JSON}content-length: 5\r\n\r\n{{\"id\":\"1\"}}"), Then::Close).await {
        answer.assert_error(502, "api_error", Some("malformed_response"), "no whole JSON document (5 bytes)");
    }
}

/// The length is the connection's, and the last byte looks as if that was all.
#[tokio::test]
async fn an_answer_that_only_looks_whole() {
    let cut = r#"{"choices":[{"index":0,"message":{"role":"assistant","content":"hello"}"#;
    for body in [cut, "{this is not json at all}"] {
        let answer = format!("{}\r\n{body}", JSON.replace("1.1", "1.0"));
        for answer in ask(answer, Then::Close).await {
            answer.assert_error(502, "api_error", Some("malformed_response"), "no whole JSON document");
        }
    }
}

/// A client of OpenAI's would take it for a stream without a word in it.
#[tokio::test]
async fn a_stream_that_is_none() {
    let [plain, streamed] = ask(with_length(JSON, r#"{"id":"1"}"#), Then::Close).await;
    assert_eq!((plain.status, plain.body.as_str()), (200, r#"{"id":"1"}"#));
    streamed.assert_error(502, "api_error", Some("malformed_response"), "no stream, which was asked for");
}

#[tokio::test]
async fn an_answer_with_nothing_in_it_or_a_part() {
    for answer in ask("HTTP/1.1 204 No Content\r\n\r\n", Then::Close).await {
        answer.assert_error(502, "api_error", Some("malformed_response"), "status 204");
    }
    let part = JSON.replace("200 OK", "206 Partial Content");
    for answer in ask(with_length(&part, r#"{"id":"1"}"#), Then::Close).await {
        answer.assert_error(502, "api_error", Some("malformed_response"), "status 206");
    }
}

#[tokio::test]
async fn an_error_that_is_called_200() {
    let error = r#"{"error":{"message":"no","type":"rate_limit_error","param":null,"code":"slow_down"}}"#;
    for answer in ask(with_length(JSON, error), Then::Close).await {
        answer.assert_error(429, "rate_limit_error", Some("slow_down"), "no");
    }
}

#[tokio::test]
async fn a_web_page() {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\n";
    for answer in ask(with_length(head, "<html>Welcome</html>"), Then::Close).await {
        answer.assert_error(502, "api_error", Some("malformed_response"), "text/html");
        assert!(!answer.body.contains("Welcome"), "{answer:?}");
    }
    let head = "HTTP/1.1 500 Oops\r\ncontent-type: text/html\r\n";
    for answer in ask(with_length(head, "<html>It broke</html>"), Then::Close).await {
        answer.assert_error(502, "api_error", Some("upstream_error"), "500");
        assert!(!answer.body.contains("html"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_within_an_event() {
    let half = &EVENT[..20];
    for body in [chunked(EVENTS, &[EVENT, half]), chunked(EVENTS, &[&format!("{EVENT}{half}")])] {
        let answer = streamed(body, Then::Close).await;
        answer.assert_broken_stream(EVENT, "api_error", "upstream_error", "cut off");
    }
    // The length is the connection's: only `[DONE]` would say that this is all.
    let answer = streamed(format!("{EVENTS}\r\n{EVENT}{half}"), Then::Close).await;
    answer.assert_broken_stream(EVENT, "api_error", "upstream_error", "[DONE]");
}

#[tokio::test]
async fn a_stream_that_ends_without_its_end() {
    let head = EVENTS.to_owned() + "connection: close\r\n";
    let answer = streamed(with_length(&head, EVENT), Then::Close).await;
    answer.assert_broken_stream(EVENT, "api_error", "upstream_error", "[DONE]");
    // Of which nothing was told yet: it is no stream but an error.
    let answer = streamed(with_length(&head, ""), Then::Close).await;
    answer.assert_error(502, "api_error", Some("upstream_error"), "[DONE]");
}

/// It has ended with its end: nobody waits for what else there may be, and the answer is a whole one.
#[tokio::test]
async fn a_stream_that_goes_on_after_its_end() {
    let finish = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
    let done = "data: [DONE]\n\n";
    for behind in [&[][..], &[EVENT], &["data: {\"error\":{}}\n\n", "what?"]] {
        let answer = chunked(EVENTS, &[&[EVENT, finish, done], behind].concat());
        let mut upstream = Raw::start(answer, Then::Stall).await;
        let dedup = "[dedup]\nenabled = true\nttl_ms = 3_600_000\n".to_owned();
        let gateway = Gateway::start("", &[model("chat", upstream.address, ""), dedup]).await;
        for status in ["bartizan; fwd=miss", "bartizan; hit"] {
            let answer = exchange(gateway.address, &chat(GOOD_STREAM)).await;
            assert_eq!(answer.body, format!("{EVENT}{finish}{done}"));
            assert!(answer.header("cache-status").is_some_and(|it| it.starts_with(status)), "{answer:?}");
        }
        upstream.request().await;
        assert_eq!(soon("the gateway's close", upstream.seen.recv()).await, Some(Seen::Close));
        gateway.stop().await;
    }
}

/// An empty line more or less is no reason to throw an answer away.
#[tokio::test]
async fn a_stream_whose_end_lacks_its_empty_line() {
    let head = EVENTS.to_owned() + "connection: close\r\n";
    let answer = streamed(with_length(&head, format!("{EVENT}data: [DONE]")), Then::Close).await;
    assert_eq!((answer.status, answer.body), (200, format!("{EVENT}data: [DONE]\n\n")));
}

#[tokio::test]
async fn a_stream_that_stalls() {
    let answer = streamed(chunked(EVENTS, &[]), Then::Stall).await;
    answer.assert_error(504, "timeout_error", Some("timeout"), "nothing within 201ms");
    let answer = streamed(chunked(EVENTS, &[EVENT, &EVENT[..20]]), Then::Stall).await;
    answer.assert_broken_stream(EVENT, "timeout_error", "timeout", "nothing more for 202ms");
}

#[tokio::test]
async fn a_stream_with_garbage_in_it() {
    let mut chunks = chunked(EVENTS, &[EVENT]);
    chunks.extend_from_slice(b"this is no size\r\n");
    let answer = streamed(chunks, Then::Stall).await;
    answer.assert_broken_stream(EVENT, "api_error", "upstream_error", "cut off");
    let answer = streamed(chunked(EVENTS, &["<html>502 Bad Gateway</html>\n\n"]), Then::Stall).await;
    answer.assert_error(502, "api_error", Some("malformed_response"), "server-sent events");
    // In one piece with what is good.
    let body = [EVENT.as_bytes(), EVENT.as_bytes(), b"data: {\"\xff\xfe\n\n", EVENT.as_bytes()].concat();
    let stream = [format!("{EVENTS}\r\n").as_bytes(), &body].concat();
    let answer = streamed(stream, Then::Stall).await;
    answer.assert_broken_stream(&EVENT.repeat(2), "api_error", "malformed_response", "not UTF-8");
}

#[tokio::test]
async fn a_connection_that_is_refused() {
    // Once a port of ours, now nobody's.
    let upstream = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap();
    let gateway = gateway(upstream).await;
    for body in [GOOD, GOOD_STREAM] {
        let answer = exchange(gateway.address, &chat(body)).await;
        answer.assert_error(502, "api_error", Some("upstream_unreachable"), "connection refused");
    }
    gateway.stop().await;
}

/// Following it would hand the key to whoever it points to.
#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let to = elsewhere.local_addr().unwrap();
    for status in [301, 302, 307, 308] {
        let head = format!("HTTP/1.1 {status} Moved\r\nlocation: http://{to}/v1/chat/completions\r\n");
        for answer in ask(with_length(&head, ""), Then::Close).await {
            answer.assert_error(502, "api_error", Some("malformed_response"), &status.to_string());
            assert_eq!(answer.header("location"), None);
        }
    }
    assert_eq!(elsewhere.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "somebody was sent on");
}

#[tokio::test]
async fn a_client_that_leaves_before_the_head() {
    let mut upstream = Raw::start("", Then::Stall).await;
    let gateway = Gateway::start("", &[model("chat", upstream.address, "")]).await;
    // Whatever follows the request.
    for (body, more) in [(GOOD, ""), (GOOD_STREAM, ""), (GOOD, "GET "), (GOOD_STREAM, "\r\n")] {
        let connection = send(gateway.address, &[&chat(body), more.as_bytes()].concat()).await;
        upstream.request().await;
        drop(connection);
        assert_eq!(soon("the client's close", upstream.seen.recv()).await, Some(Seen::Close));
    }
    gateway.stop().await;
}

#[tokio::test]
async fn connections_are_kept_for_as_long_as_the_model_says() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let (see, mut seen) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for number in 1.. {
            let (mut connection, _) = listener.accept().await.unwrap();
            let see = see.clone();
            tokio::spawn(async move {
                let mut request = Vec::new();
                while connection.read_buf(&mut request).await.is_ok_and(|read| read > 0) {
                    if request.ends_with(br#""hello"}]}"#) {
                        request.clear();
                        see.send(number).unwrap();
                        connection.write_all(&with_length(JSON, r#"{"id":"1"}"#)).await.unwrap();
                    }
                }
            });
        }
    });
    let models = [
        model("chat", upstream, "keep_idle_ms = 60_000"),
        model("other", upstream, ""),
        "[limits]\nkeep_idle_ms = 0\n".to_owned(),
    ];
    let gateway = Gateway::start("workers = 1", &models).await;
    let mut used = async |model: &str| {
        let answer = exchange(gateway.address, &chat(GOOD.replace("chat", model))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        seen.recv().await.unwrap()
    };
    assert_eq!([used("chat").await, used("chat").await, used("chat").await], [1, 1, 1]);
    assert_eq!([used("other").await, used("other").await, used("chat").await], [2, 3, 1]);
    gateway.stop().await;
}
