//! The mock upstream: on one thread, with canned answers, so that it is never what is measured.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::BoxError;
use crate::wire::{self, Kind, Message};

const STREAM_HEAD: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n\
                           x-request-id: req-bench\r\ntransfer-encoding: chunked\r\n\r\n";
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

struct Answers {
    plain: Vec<u8>,
    /// Head, events and end of a stream: one write.
    stream: Vec<u8>,
}

impl Answers {
    fn new() -> Self {
        let body = wire::completion();
        let plain = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: req-bench\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len(),
        );
        let mut stream = STREAM_HEAD.as_bytes().to_vec();
        for event in wire::burst() {
            stream.extend(chunk(&event));
        }
        stream.extend(LAST_CHUNK);
        Self { plain: plain.into_bytes(), stream }
    }
}

fn chunk(data: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
}

pub(crate) async fn serve(listener: TcpListener) -> io::Result<()> {
    let answers = Arc::new(Answers::new());
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let answers = answers.clone();
        tokio::spawn(async move {
            // A client that goes away is its own affair: whoever needed the answer notices.
            if let Err(error) = converse(stream, &answers).await
                && !error.is::<io::Error>()
            {
                eprintln!("upstream: {error}");
            }
        });
    }
}

async fn converse(mut stream: TcpStream, answers: &Answers) -> Result<(), BoxError> {
    let mut request = Message::default();
    loop {
        while !request.advance()? {
            if stream.read_buf(request.buffer()).await? == 0 {
                return Ok(());
            }
        }
        let body = request.body();
        // A proxy that does not pass the whole body on is no good either.
        let right = request.first_line() == b"POST /v1/chat/completions HTTP/1.1"
            && body.len().abs_diff(wire::BODY) <= 64
            && body.ends_with(b"}");
        if !right {
            stream.write_all(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").await?;
            let line = String::from_utf8_lossy(request.first_line());
            return Err(format!("a wrong request: {line}, {} bytes", body.len()).into());
        }
        match Kind::of(body) {
            Kind::Plain => stream.write_all(&answers.plain).await?,
            Kind::Stream => stream.write_all(&answers.stream).await?,
            Kind::Paced => pace(&mut stream).await?,
        }
        request.next();
    }
}

async fn pace(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(STREAM_HEAD.as_bytes()).await?;
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks.tick().await;
    for _ in 0..wire::EVENTS {
        ticks.tick().await;
        stream.write_all(&chunk(wire::event(nanoseconds()).as_bytes())).await?;
    }
    let mut end = wire::burst().pop().map(|done| chunk(&done)).unwrap_or_default();
    end.extend(LAST_CHUNK);
    stream.write_all(&end).await
}

/// The time of day, which processes on one machine share.
pub(crate) fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
