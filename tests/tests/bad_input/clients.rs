//! What clients send.

use std::net::SocketAddr;

use bartizan_provider::mock::Mock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    gateway_under_test::{Gateway, mock, model, within},
    wire::{Answer, CHAT, GOOD, assert_good, chat, chunked, exchange, send, with_length},
};

const INVALID: &str = "invalid_request_error";

/// A gateway with these lines of `[server]` in front of a mock, which nothing bad may reach.
struct Front {
    gateway: Gateway,
    mock: Mock,
    address: SocketAddr,
}

impl Front {
    async fn start(server: &str) -> Self {
        let (mock, upstream) = mock().await;
        let gateway = Gateway::start(server, &[model("chat", upstream, "")]).await;
        Self { address: gateway.address, gateway, mock }
    }

    /// The server is as well as it was before, and the mock has seen nothing but what is good.
    async fn stop(self) {
        assert_eq!(self.mock.calls(), 0);
        assert_good(self.address).await;
        self.gateway.stop().await;
    }
}

/// Sends these bytes to a gateway, which must survive it.
async fn answer(bytes: &[u8]) -> Answer {
    let front = Front::start("").await;
    let answer = exchange(front.address, bytes).await;
    front.stop().await;
    answer
}

#[tokio::test]
async fn not_json() {
    for (body, words) in [
        ("Hello, gateway!", "not valid JSON"),
        (r#"{"model":"chat","messages":["#, "not valid JSON"),
        (r#"{"model":"chat"} and more"#, "not valid JSON"),
        (r#"["chat"]"#, "a JSON object"),
        ("null", "a JSON object"),
    ] {
        answer(&chat(body)).await.assert_error(400, INVALID, None, words);
    }
}

#[tokio::test]
async fn an_empty_body() {
    answer(&chat("")).await.assert_error(400, INVALID, None, "empty");
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n";
    answer(head.as_bytes()).await.assert_error(400, INVALID, None, "empty");
}

#[tokio::test]
async fn bad_utf8() {
    let body = b"{\"model\":\"chat\",\"messages\":[{\"role\":\"user\",\"content\":\"\xc3\x28\"}]}";
    answer(&chat(body)).await.assert_error(400, INVALID, None, "not UTF-8: wrong byte at offset 54");
}

#[tokio::test]
async fn nested_too_deep() {
    for deep in ["[", r#"{"a":"#] {
        let body = format!(r#"{{"model":"chat","messages":{}"#, deep.repeat(100_000));
        answer(&chat(body)).await.assert_error(400, INVALID, None, "recursion limit");
    }
}

#[tokio::test]
async fn no_model() {
    let asked = answer(&chat(r#"{"messages":[]}"#)).await;
    asked.assert_error(400, INVALID, None, "`model` is missing");
    assert!(asked.body.contains(r#""param":"model""#), "{asked:?}");
    answer(&chat(r#"{"model":7}"#)).await.assert_error(400, INVALID, None, "must be a string");
}

#[tokio::test]
async fn two_models() {
    let body = r#"{"model":"chat","messages":[],"model":"other"}"#;
    answer(&chat(body)).await.assert_error(400, INVALID, None, "`model`");
    // The same key, however it is spelled.
    let body = r#"{"model":"chat","messages":[],"mod\u0065l":"other"}"#;
    answer(&chat(body)).await.assert_error(400, INVALID, None, "`model`");
}

#[tokio::test]
async fn an_unknown_model() {
    let asked = answer(&chat(r#"{"model":"gpt-9","messages":[]}"#)).await;
    asked.assert_error(404, INVALID, Some("model_not_found"), "gpt-9");
}

#[tokio::test]
async fn the_wrong_content_type() {
    for kind in ["", "content-type: text/plain\r\n", "content-type: multipart/form-data; boundary=json\r\n"] {
        let head =
            format!("POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{kind}");
        let asked = answer(&with_length(&head, GOOD)).await;
        asked.assert_error(415, INVALID, None, "content-type: application/json");
    }
}

#[tokio::test]
async fn the_wrong_method() {
    for (line, allowed) in [
        ("GET /v1/chat/completions", "post"),
        ("DELETE /v1/embeddings", "post"),
        ("DELETE /v1/models", "get, head"),
        ("PUT /v1/models/chat", "get, head"),
        ("BREW /livez", "get, head"),
        ("PUT /", "get, head"),
        ("DELETE /metrics", "get, head"),
    ] {
        let head = format!("{line} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n");
        let asked = answer(head.as_bytes()).await;
        asked.assert_error(405, INVALID, Some("method_not_allowed"), "this path is for");
        assert_eq!(asked.header("allow"), Some(allowed), "{line}");
    }
}

#[tokio::test]
async fn an_unknown_path() {
    for path in ["/v1", "/v1/chat/completion", "/v1/chat/completions/", "/v1/../etc/passwd"] {
        let head = format!("POST {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n");
        answer(&with_length(&head, GOOD)).await.assert_error(404, INVALID, Some("unknown_url"), path);
    }
    let long = answer(&with_length(
        &format!("POST /{} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n", "x".repeat(5_000)),
        GOOD,
    ))
    .await;
    assert!(long.status == 404 && long.body.len() < 500, "{long:?}");
    // It lists those that there are, and they are there.
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n");
    let paths =
        "but /v1/chat/completions, /v1/embeddings, /v1/models, /livez, /readyz, /, /health and /metrics";
    answer(get("/v1").as_bytes()).await.assert_error(404, INVALID, Some("unknown_url"), paths);
    for path in ["/v1/models", "/livez", "/readyz", "/", "/health", "/metrics"] {
        assert_eq!(answer(get(path).as_bytes()).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_path_that_is_no_text() {
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n");
    for path in ["/v1/models/%ff%zz", "/v1/models/%ff"] {
        answer(get(path).as_bytes()).await.assert_error(400, INVALID, None, "not UTF-8");
    }
}

#[tokio::test]
async fn a_body_that_announces_to_be_too_large() {
    const LARGE: usize = 10 * 1024 * 1024 + 1;
    // With or without asking first, nothing of the body is sent before the answer.
    for expect in ["", "expect: 100-continue\r\n"] {
        let asked = answer(format!("{CHAT}{expect}content-length: {LARGE}\r\n\r\n").as_bytes()).await;
        asked.assert_error(413, INVALID, Some("request_too_large"), "10485760 bytes");
    }
}

#[tokio::test]
async fn a_body_that_grows_too_large() {
    let front = Front::start("").await;
    let megabyte = "x".repeat(1024 * 1024);
    // As many clients do, sends all that it has, with no eye on the answer.
    let mut connection = send(front.address, b"").await;
    let request = chunked(CHAT, &[megabyte.as_str(); 11]);
    let _ = within("the gateway to take or refuse a large body", connection.write_all(&request)).await;
    let asked = Answer::read(&mut connection).await;
    asked.assert_error(413, INVALID, Some("request_too_large"), "10485760 bytes");
    front.stop().await;
}

#[tokio::test]
async fn half_a_body_then_silence() {
    let front = Front::start("body_timeout_ms = 200").await;
    let whole = chat(GOOD);
    for half in [&whole[..whole.len() - 10], &chunked(CHAT, &[r#"{"model":"#])] {
        let asked = exchange(front.address, half).await;
        asked.assert_error(408, "timeout_error", Some("timeout"), "the body did not arrive within 200ms");
    }
    front.stop().await;
}

#[tokio::test]
async fn half_a_body_then_the_end() {
    let front = Front::start("").await;
    let mut connection = send(front.address, &chat(GOOD)[..CHAT.len() + 30]).await;
    connection.shutdown().await.unwrap();
    // Who has closed is gone, as far as HTTP/1 tells: there may be an answer, or none.
    let mut rest = String::new();
    within("the gateway to close", connection.read_to_string(&mut rest)).await.unwrap();
    assert!(rest.is_empty() || rest.starts_with("HTTP/1.1 400 "), "{rest}");
    front.stop().await;
}

#[tokio::test]
async fn half_a_head_then_silence() {
    let front = Front::start("header_timeout_ms = 200").await;
    for half in ["P", "POST /v1/chat", CHAT] {
        let asked = exchange(front.address, half.as_bytes()).await;
        asked.assert_error(408, INVALID, Some("request_timeout"), "the head of the request");
    }
    front.stop().await;
}

/// Nothing of HTTP, so there is no telling what the other side speaks: it gets a status, and the connection is closed.
#[tokio::test]
async fn no_http() {
    let front = Front::start("").await;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET\r\n\r\n",
        b"GET /v1/models HTTP/9.9\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nno header\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n",
    ] {
        let asked = exchange(front.address, garbage).await;
        assert_eq!(asked.status, 400, "{asked:?}");
    }
    front.stop().await;
}

#[tokio::test]
async fn chunks_that_are_none() {
    let body = chunked(CHAT, &[r#"{"model":"#]);
    let asked = answer(&[&body, &b"no size\r\n"[..]].concat()).await;
    asked.assert_error(400, INVALID, None, "the body broke off");
}

#[tokio::test]
async fn two_hundred_that_stop_half_way() {
    let front = Front::start("").await;
    let whole = chat(GOOD);
    let mut halves = Vec::new();
    for number in 0..200 {
        let sent = if number % 2 == 0 { CHAT.len() / 2 } else { whole.len() - 10 };
        halves.push(send(front.address, &whole[..sent]).await);
    }
    assert_good(front.address).await;
    assert_eq!(front.mock.calls(), 1);
    // Those that did not give up are answered in the end.
    for half in halves.iter_mut().skip(1).step_by(20) {
        within("the gateway to take the rest", half.write_all(&whole[whole.len() - 10..])).await.unwrap();
        assert_eq!(Answer::read(half).await.status, 200);
    }
    assert_eq!(front.mock.calls(), 11);
    drop(halves);
    front.gateway.stop().await;
}
