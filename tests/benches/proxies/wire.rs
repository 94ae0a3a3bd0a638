//! The messages that load and upstream exchange, and as much of HTTP/1.1 as takes to read them.

use std::net::SocketAddr;

use memchr::memmem;

use crate::BoxError;

/// Events of one stream, not counting `[DONE]`.
pub(crate) const EVENTS: usize = 50;
/// Bytes of a request's body, and of a plain response's.
pub(crate) const BODY: usize = 1024;
/// Digits of the time stamp in an event.
const STAMP: usize = 20;

const BEFORE_STAMP: &str = r#"{"index":0,"delta":{"content":""#;
const DONE: &[u8] = b"data: [DONE]\n\n";
/// A head longer than this is not one of ours.
const MAX_HEAD: usize = 16 << 10;

/// What a request asks of the upstream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// One JSON body.
    Plain,
    /// All events at once.
    Stream,
    /// An event each millisecond, stamped with the time it was written.
    Paced,
}

impl Kind {
    /// What the body of a request asks for.
    pub(crate) fn of(body: &[u8]) -> Self {
        if memmem::find(body, br#""stream":true"#).is_none() {
            Kind::Plain
        } else if memmem::find(body, br#""user":"paced""#).is_none() {
            Kind::Stream
        } else {
            Kind::Paced
        }
    }
}

/// The bytes of a whole request to the server at `address`.
pub(crate) fn request(kind: Kind, address: SocketAddr) -> Vec<u8> {
    let (stream, user) = match kind {
        Kind::Plain => ("false", "plain"),
        Kind::Stream => ("true", "burst"),
        Kind::Paced => ("true", "paced"),
    };
    let open = format!(
        r#"{{"model":"bench","stream":{stream},"user":"{user}","messages":[{{"role":"user","content":""#
    );
    let body = padded(&open, r#""}]}"#);
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nuser-agent: bench\r\naccept: */*\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len(),
    )
    .into_bytes()
}

/// The body of a plain response.
pub(crate) fn completion() -> String {
    padded(
        r#"{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":""#,
        r#""}}],"usage":{"prompt_tokens":200,"completion_tokens":150,"total_tokens":350}}"#,
    )
}

fn padded(open: &str, close: &str) -> String {
    let words = "the quick brown fox jumps over the lazy dog ".chars().cycle();
    let pad: String = words.take(BODY - open.len() - close.len()).collect();
    format!("{open}{pad}{close}")
}

/// One event of a stream; its content is the stamp.
pub(crate) fn event(stamp: u64) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
         \"model\":\"bench\",\"choices\":[{BEFORE_STAMP}{stamp:0STAMP$}\"}},\"finish_reason\":null}}]}}\n\n"
    )
}

/// What a stream is made of, an HTTP chunk each: the events, then `[DONE]`.
pub(crate) fn burst() -> Vec<Vec<u8>> {
    (1..=EVENTS as u64).map(|stamp| event(stamp).into_bytes()).chain([DONE.to_vec()]).collect()
}

/// The stamp of one event, if it is exactly an event of ours.
fn stamp_of(bytes: &[u8]) -> Option<u64> {
    let at = memmem::find(bytes, BEFORE_STAMP.as_bytes())? + BEFORE_STAMP.len();
    let stamp = std::str::from_utf8(bytes.get(at..at + STAMP)?).ok()?.parse().ok()?;
    (event(stamp).as_bytes() == bytes).then_some(stamp)
}

/// Reads the events of a stream as they arrive.
#[derive(Default)]
pub(crate) struct Events {
    read: usize,
    count: usize,
    last: u64,
    done: bool,
}

impl Events {
    /// Looks at what is new in `body` and gives the stamps of the complete events in it to `each`.
    pub(crate) fn advance(&mut self, body: &[u8], mut each: impl FnMut(u64)) -> Result<(), BoxError> {
        while let Some(end) = memmem::find(&body[self.read..], b"\n\n") {
            let event = &body[self.read..self.read + end + 2];
            match stamp_of(event) {
                Some(stamp) if !self.done && stamp >= self.last => {
                    self.count += 1;
                    self.last = stamp;
                    each(stamp);
                }
                _ if event == DONE && !self.done => self.done = true,
                _ => return Err(format!("a wrong event: {:?}", String::from_utf8_lossy(event)).into()),
            }
            self.read += event.len();
        }
        Ok(())
    }

    /// At the end of the stream: was it all there, and nothing else?
    pub(crate) fn finish(&self, body: &[u8]) -> Result<(), BoxError> {
        if self.count == EVENTS && self.done && self.read == body.len() {
            return Ok(());
        }
        let done = if self.done { "" } else { "no " };
        Err(format!(
            "a stream of {} events, {done}[DONE], {} bytes left over",
            self.count,
            body.len() - self.read
        )
        .into())
    }
}

/// What a response has to be.
pub(crate) struct Expected {
    kind: Kind,
    body: Vec<u8>,
}

impl Expected {
    pub(crate) fn of(kind: Kind) -> Self {
        let body = if kind == Kind::Plain { completion().into_bytes() } else { burst().concat() };
        Self { kind, body }
    }

    /// Fails unless `response` is complete and right to the last byte.
    pub(crate) fn check(&self, response: &Message) -> Result<(), BoxError> {
        let body = response.body();
        let first = response.first_line();
        if !first.starts_with(b"HTTP/1.1 200") {
            let first = String::from_utf8_lossy(first);
            return Err(format!("{first}: {}", String::from_utf8_lossy(body)).into());
        }
        match self.kind {
            // One comparison instead of a parse: it holds for every event and `[DONE]`, and costs the load little.
            Kind::Plain | Kind::Stream if body == self.body => Ok(()),
            Kind::Plain => Err(format!("a wrong body of {} bytes", body.len()).into()),
            Kind::Stream | Kind::Paced => {
                let mut events = Events::default();
                events.advance(body, |_| {})?;
                events.finish(body)
            }
        }
    }
}

/// A message being read: bytes go in at `buffer`, `advance` says when it is complete.
#[derive(Default)]
pub(crate) struct Message {
    raw: Vec<u8>,
    body: Vec<u8>,
    at: usize,
    part: Part,
}

#[derive(Clone, Copy, Default)]
enum Part {
    #[default]
    Head,
    Length(usize),
    Size,
    Chunk(usize),
    ChunkEnd,
    Trailer,
    End,
}

impl Message {
    /// Where to append the bytes that arrive.
    pub(crate) fn buffer(&mut self) -> &mut Vec<u8> {
        self.raw.reserve(16 << 10);
        &mut self.raw
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// The request or status line, once the head is complete.
    pub(crate) fn first_line(&self) -> &[u8] {
        &self.raw[..memmem::find(&self.raw, b"\r\n").unwrap_or(0)]
    }

    /// Forgets a complete message. What has arrived after it stays.
    pub(crate) fn next(&mut self) {
        self.raw.drain(..self.at);
        self.body.clear();
        self.at = 0;
        self.part = Part::Head;
    }

    /// Reads on; true once the message is complete.
    pub(crate) fn advance(&mut self) -> Result<bool, BoxError> {
        loop {
            self.part = match self.part {
                Part::Head => match memmem::find(&self.raw, b"\r\n\r\n") {
                    None if self.raw.len() > MAX_HEAD => return Err("a head without end".into()),
                    None => return Ok(false),
                    Some(end) => {
                        self.at = end + 4;
                        framing(&self.raw[..end])?
                    }
                },
                Part::Length(left) => match self.take(left) {
                    0 => Part::End,
                    left => {
                        self.part = Part::Length(left);
                        return Ok(false);
                    }
                },
                Part::Size => {
                    let Some(line) = self.line() else { return Ok(false) };
                    let size = std::str::from_utf8(line)?;
                    let size = size.split(';').next().unwrap_or(size).trim();
                    match usize::from_str_radix(size, 16)? {
                        0 => Part::Trailer,
                        size => Part::Chunk(size),
                    }
                }
                Part::Chunk(left) => match self.take(left) {
                    0 => Part::ChunkEnd,
                    left => {
                        self.part = Part::Chunk(left);
                        return Ok(false);
                    }
                },
                Part::ChunkEnd => match self.line() {
                    None => return Ok(false),
                    Some(b"") => Part::Size,
                    Some(_) => return Err("a chunk longer than its size".into()),
                },
                Part::Trailer => match self.line() {
                    None => return Ok(false),
                    Some(b"") => Part::End,
                    Some(_) => Part::Trailer,
                },
                Part::End => return Ok(true),
            };
        }
    }

    /// Moves up to `wanted` bytes to the body; how many are still missing.
    fn take(&mut self, wanted: usize) -> usize {
        let here = wanted.min(self.raw.len() - self.at);
        self.body.extend_from_slice(&self.raw[self.at..self.at + here]);
        self.at += here;
        wanted - here
    }

    /// The next line without its end, if all of it is here.
    fn line(&mut self) -> Option<&[u8]> {
        let start = self.at;
        let end = start + memmem::find(&self.raw[start..], b"\r\n")?;
        self.at = end + 2;
        Some(&self.raw[start..end])
    }
}

/// How the head says that the body is framed. One that says nothing has no body.
fn framing(head: &[u8]) -> Result<Part, BoxError> {
    let head = std::str::from_utf8(head)?;
    let mut part = Part::Length(0);
    for line in head.split("\r\n").skip(1) {
        let (name, value) = line.split_once(':').ok_or("a header without colon")?;
        if name.eq_ignore_ascii_case("content-length") {
            part = Part::Length(value.trim().parse()?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.trim().eq_ignore_ascii_case("chunked") {
                return Err(format!("transfer-encoding {value}").into());
            }
            return Ok(Part::Size);
        }
    }
    Ok(part)
}
