//! HTTP as bytes, for what no HTTP library would send or take.

use std::{io, net::SocketAddr};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::gateway_under_test::within;

/// A request that any gateway with a model `chat` answers.
pub(crate) const GOOD: &str = r#"{"model":"chat","messages":[{"role":"user","content":"hello"}]}"#;

/// As [`GOOD`], for a stream.
pub(crate) const GOOD_STREAM: &str =
    r#"{"model":"chat","stream":true,"messages":[{"role":"user","content":"hello"}]}"#;

/// The head of a request, up to the headers about its body.
pub(crate) const CHAT: &str = "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\
                               authorization: Bearer sk-of-the-client\r\ncontent-type: application/json\r\n";

/// A chat request with this body.
pub(crate) fn chat(body: impl AsRef<[u8]>) -> Vec<u8> {
    with_length(CHAT, body)
}

/// A head, the length of a body, and the body.
pub(crate) fn with_length(head: &str, body: impl AsRef<[u8]>) -> Vec<u8> {
    let body = body.as_ref();
    [format!("{head}content-length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// A head, and these chunks of a body without a length or an end.
pub(crate) fn chunked(head: &str, chunks: &[&str]) -> Vec<u8> {
    let mut bytes = format!("{head}transfer-encoding: chunked\r\n\r\n");
    for chunk in chunks {
        bytes += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
    }
    bytes.into_bytes()
}

/// What came back on a connection, up to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Answer {
    /// Reads until the other side closes.
    pub(crate) async fn read(connection: &mut TcpStream) -> Self {
        let mut bytes = Vec::new();
        let read = within("the gateway to answer and close", connection.read_to_end(&mut bytes)).await;
        // A server that closes while something is being sent to it resets the connection, after its answer.
        if let Err(error) = read {
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
        }
        Self::parse(&String::from_utf8(bytes).expect("the gateway answers in UTF-8"))
    }

    fn parse(text: &str) -> Self {
        let (head, mut rest) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|head| head.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("no status: {text:?}"));
        let mut answer = Self { status, head: head.to_ascii_lowercase(), body: String::new() };
        if let Some(length) = answer.header("content-length") {
            assert_eq!(length, rest.len().to_string(), "{text:?}");
            answer.body = rest.to_owned();
            return answer;
        }
        assert_eq!(answer.header("transfer-encoding"), Some("chunked"), "{text:?}");
        loop {
            let (size, chunk) = rest
                .split_once("\r\n")
                .unwrap_or_else(|| panic!("cut off, for the client to guess: {text:?}"));
            let size = usize::from_str_radix(size, 16).unwrap();
            if size == 0 {
                return answer;
            }
            answer.body += &chunk[..size];
            rest = &chunk[size + 2..];
        }
    }

    /// Header names and values are in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.head.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let value = values.next();
        assert_eq!(values.next(), None, "{name} is there twice");
        value
    }

    /// That it is this error in OpenAI's shape, with these words in its message.
    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, kind: &str, code: Option<&str>, words: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert_error_object(&self.body, kind, code, words);
    }

    /// That it is a stream that begins like this and ends with this error.
    #[track_caller]
    pub(crate) fn assert_broken_stream(&self, beginning: &str, kind: &str, code: &str, words: &str) {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.header("content-type"), Some("text/event-stream"), "{self:?}");
        let last = self.body.strip_prefix(beginning).unwrap_or_else(|| panic!("no {beginning:?}: {self:?}"));
        let error = last.strip_prefix("data: ").and_then(|event| event.strip_suffix("\n\n"));
        assert_error_object(error.unwrap_or_else(|| panic!("no event: {last:?}")), kind, Some(code), words);
    }
}

#[track_caller]
fn assert_error_object(text: &str, kind: &str, code: Option<&str>, words: &str) {
    let Ok(Value::Object(outer)) = serde_json::from_str(text) else { panic!("no JSON object: {text}") };
    let Some(Value::Object(error)) = outer.get("error") else { panic!("no error object: {text}") };
    let names: Vec<_> = error.keys().map(String::as_str).collect();
    assert_eq!((outer.len(), &names[..]), (1, &["code", "message", "param", "type"][..]), "{text}");
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some(kind), code), "{text}");
    assert!(error["message"].as_str().unwrap().contains(words), "no {words:?} in {text}");
}

/// Connects and sends these bytes.
pub(crate) async fn send(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut connection = within("a connection", TcpStream::connect(address)).await.unwrap();
    within("the gateway to take a request", connection.write_all(bytes)).await.unwrap();
    connection
}

/// Sends these bytes and reads until the other side closes.
pub(crate) async fn exchange(address: SocketAddr, bytes: &[u8]) -> Answer {
    Answer::read(&mut send(address, bytes).await).await
}

/// That an ordinary request is answered.
pub(crate) async fn assert_good(address: SocketAddr) {
    let answer = exchange(address, &chat(GOOD)).await;
    assert_eq!(answer.status, 200, "a good request: {answer:?}");
    assert!(answer.body.contains("You said: hello"), "a good request: {answer:?}");
}
