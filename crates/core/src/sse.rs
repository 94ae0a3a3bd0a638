//! Server-sent events, byte for byte.
//!
//! [`Decoder`] cuts a byte stream into [`Event`]s; [`Aligner`] only moves its cuts to where events end, for whoever
//! passes events on and must never pass on half of one. Neither changes a byte: what comes out, put together, is what
//! went in, however it was split on the way. Fields are read as the HTML standard's
//! [event stream interpretation](https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation)
//! says.
//!
//! ```
//! use bartizan_core::sse::Decoder;
//!
//! let mut decoder = Decoder::new(1024);
//! decoder.push("event: ping\nda".into());
//! assert!(decoder.next_event()?.is_none(), "half an event is none");
//! decoder.push("ta: 1\n\ndata: [DONE]\n\n".into());
//!
//! let first = decoder.next_event()?.expect("the first event is complete");
//! assert_eq!(first.kind(), "ping");
//! assert_eq!(first.data().as_deref(), Some(&b"1"[..]));
//! assert_eq!(first.raw(), "event: ping\ndata: 1\n\n");
//! assert_eq!(decoder.next_event()?.unwrap().data().as_deref(), Some(&b"[DONE]"[..]));
//!
//! decoder.push("x".repeat(2000).into());
//! assert!(decoder.next_event().is_err(), "an event that never ends is refused");
//! # Ok::<(), bartizan_core::sse::TooLong>(())
//! ```

use std::{error::Error, fmt};

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

/// Cuts a byte stream into events.
#[derive(Debug)]
pub struct Decoder {
    scanner: Scanner,
    /// Bytes that were pushed and not looked at yet.
    ahead: Bytes,
    /// The event that has begun and not ended.
    partial: BytesMut,
    max_event: usize,
    started: bool,
}

impl Decoder {
    /// A decoder that refuses events of more than `max_event` bytes.
    pub fn new(max_event: usize) -> Self {
        Self {
            scanner: Scanner::default(),
            ahead: Bytes::new(),
            partial: BytesMut::new(),
            max_event,
            started: false,
        }
    }

    /// Adds the next bytes of the stream. An event that lies within one chunk is not copied.
    pub fn push(&mut self, chunk: Bytes) {
        self.ahead = concat(std::mem::take(&mut self.ahead), chunk);
    }

    /// The next complete event, or `None` until more is pushed.
    ///
    /// # Errors
    ///
    /// [`TooLong`] when the event under way is longer than allowed. What it holds stays available through
    /// [`into_rest`](Self::into_rest).
    pub fn next_event(&mut self) -> Result<Option<Event>, TooLong> {
        let end = self.scanner.next_end(&self.ahead);
        let head = self.ahead.split_to(end.unwrap_or(self.ahead.len()));
        if self.partial.len() + head.len() > self.max_event {
            self.partial.extend_from_slice(&head);
            return Err(TooLong { max: self.max_event });
        }
        if end.is_none() {
            self.partial.extend_from_slice(&head);
            return Ok(None);
        }
        let raw = join(&mut self.partial, head);
        let fields =
            if !std::mem::replace(&mut self.started, true) && raw.starts_with(BOM) { BOM.len() } else { 0 };
        Ok(Some(Event { raw, fields }))
    }

    /// What is left when the stream has ended: the bytes after the last complete event.
    pub fn into_rest(mut self) -> Bytes {
        let ahead = std::mem::take(&mut self.ahead);
        join(&mut self.partial, ahead)
    }
}

/// Moves the cuts of a byte stream to where events end.
///
/// Everything complete comes out at once, in one piece and without a copy if it arrived in one; only the beginning of
/// an event that is still under way is held back.
///
/// ```
/// use bartizan_core::sse::Aligner;
///
/// let mut aligner = Aligner::new(1024);
/// assert_eq!(aligner.push("data: 1\n\ndata: 2\n\nda".into())?, "data: 1\n\ndata: 2\n\n");
/// assert_eq!(aligner.push("ta: 3\n".into())?, "");
/// assert_eq!(aligner.push("\n".into())?, "data: 3\n\n");
/// assert!(aligner.held().is_empty(), "nothing is cut off if the stream ends here");
/// # Ok::<(), bartizan_core::sse::TooLong>(())
/// ```
#[derive(Debug)]
pub struct Aligner {
    scanner: Scanner,
    partial: BytesMut,
    max_event: usize,
    /// The event under way was too long when complete ones had to be given back first.
    overflowed: bool,
}

impl Aligner {
    /// An aligner that refuses to hold back more than `max_event` bytes.
    pub fn new(max_event: usize) -> Self {
        Self { scanner: Scanner::default(), partial: BytesMut::new(), max_event, overflowed: false }
    }

    /// Takes the next bytes of the stream and gives back all events that are now complete; empty if none is.
    ///
    /// # Errors
    ///
    /// [`TooLong`] when the event under way is longer than allowed. Events that were complete come out first, and the
    /// error with the next call.
    pub fn push(&mut self, mut chunk: Bytes) -> Result<Bytes, TooLong> {
        if self.overflowed {
            return Err(TooLong { max: self.max_event });
        }
        let mut end = None;
        let mut from = 0;
        while let Some(next) = self.scanner.next_end(&chunk[from..]) {
            from += next;
            end = Some(from);
        }
        let complete = match end {
            Some(end) => join(&mut self.partial, chunk.split_to(end)),
            None => Bytes::new(),
        };
        if self.partial.len() + chunk.len() > self.max_event {
            self.overflowed = true;
            return if complete.is_empty() { Err(TooLong { max: self.max_event }) } else { Ok(complete) };
        }
        self.partial.extend_from_slice(&chunk);
        Ok(complete)
    }

    /// The event that has begun and not ended. What is here when the stream ends was cut off.
    ///
    /// A lone carriage return that ended the last event but could have become `\r\n` is no event: see
    /// [`finish`](Self::finish).
    pub fn held(&self) -> &[u8] {
        &self.partial
    }

    /// The stream has ended: gives back an event that was only waiting to learn whether its last `\r` is a `\r\n`.
    pub fn finish(&mut self) -> Bytes {
        if self.scanner.finish() { self.partial.split().freeze() } else { Bytes::new() }
    }
}

/// One event: a block of lines up to and including the empty line that ends it.
///
/// A block may say nothing at all (comments, stray empty lines): then [`data`](Self::data) is `None` and a browser would
/// not see it. Text is bytes, as it came.
#[derive(Clone, PartialEq, Eq)]
pub struct Event {
    raw: Bytes,
    /// Where the fields begin: behind the byte order mark, if there is one.
    fields: usize,
}

impl Event {
    /// The bytes of the event, its ending included.
    pub fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The event's data: the values of its `data` fields with a line feed between them; `None` if it has none.
    ///
    /// One `data` field, the usual case, is not copied.
    pub fn data(&self) -> Option<Bytes> {
        let mut values = self.values(b"data");
        let first = self.raw.slice_ref(values.next()?);
        let Some(second) = values.next() else { return Some(first) };
        let mut joined = BytesMut::from(first);
        for value in std::iter::once(second).chain(values) {
            joined.extend_from_slice(b"\n");
            joined.extend_from_slice(value);
        }
        Some(joined.freeze())
    }

    /// The event's type, `"message"` if it names none or none that is UTF-8.
    pub fn kind(&self) -> &str {
        match self.values(b"event").last().map(str::from_utf8) {
            Some(Ok(kind)) if !kind.is_empty() => kind,
            _ => "message",
        }
    }

    /// The event's own `id` field, if it has one that counts (ids with a NUL are ignored).
    pub fn id(&self) -> Option<&[u8]> {
        self.values(b"id").filter(|id| !id.contains(&0)).last()
    }

    fn values<'a>(&'a self, name: &'static [u8]) -> impl Iterator<Item = &'a [u8]> {
        Lines(&self.raw[self.fields..]).filter_map(move |line| {
            let value = line.strip_prefix(name)?;
            match value {
                [] => Some(value),
                [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
                _ => None,
            }
        })
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Event").field(&self.raw).finish()
    }
}

/// An event is longer than the bound, or does not end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLong {
    max: usize,
}

impl fmt::Display for TooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a server-sent event is longer than {} bytes", self.max)
    }
}

impl Error for TooLong {}

const BOM: &[u8] = b"\xef\xbb\xbf";

/// Finds where events end: at a line end that follows a line end, where `\r\n`, `\n` and `\r` all end lines.
#[derive(Debug)]
struct Scanner {
    /// The current line has no bytes so far.
    line_is_empty: bool,
    /// The last byte was a `\r`, so a `\n` now belongs to it.
    after_cr: bool,
    /// That `\r` ended an event, unless a `\n` follows: then the event ends behind the `\n`.
    ///
    /// In a stream that ends its lines with `\r` alone this is not asked: its events would all come one late.
    undecided: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self { line_is_empty: true, after_cr: false, undecided: false }
    }
}

impl Scanner {
    /// How many of `bytes` belong to the event under way, its ending included; `None` if it does not end in them.
    ///
    /// The next call goes on behind the bytes counted here, or behind all of them after `None`.
    fn next_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        if self.undecided && !bytes.is_empty() {
            self.undecided = false;
            self.line_is_empty = true;
            if bytes[0] == b'\n' {
                self.after_cr = false;
                return Some(1);
            }
            return Some(0);
        }
        while let Some(found) = memchr2(b'\n', b'\r', &bytes[at..]) {
            if found > 0 {
                self.line_is_empty = false;
                self.after_cr = false;
            }
            at += found + 1;
            let after_cr = self.after_cr;
            self.after_cr = bytes[at - 1] == b'\r';
            if after_cr && !self.after_cr {
                continue; // the second half of a line end that was counted
            }
            if !std::mem::replace(&mut self.line_is_empty, true) {
                continue;
            }
            if !self.after_cr || after_cr {
                return Some(at);
            }
            match bytes.get(at) {
                Some(b'\n') => {
                    self.after_cr = false;
                    return Some(at + 1);
                }
                Some(_) => return Some(at),
                None => self.undecided = true,
            }
        }
        if at < bytes.len() {
            self.line_is_empty = false;
            self.after_cr = false;
        }
        None
    }

    /// No byte follows: whether an undecided `\r` has ended an event.
    fn finish(&mut self) -> bool {
        std::mem::take(&mut self.undecided)
    }
}

/// The lines of an event, without their ends.
struct Lines<'a>(&'a [u8]);

impl<'a> Iterator for Lines<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.0.is_empty() {
            return None;
        }
        let end = memchr2(b'\n', b'\r', self.0).unwrap_or(self.0.len());
        let (line, rest) = self.0.split_at(end);
        self.0 = rest.strip_prefix(b"\r\n").or_else(|| rest.get(1..)).unwrap_or_default();
        Some(line)
    }
}

/// `partial` followed by `tail`; no copy if there is no partial.
fn join(partial: &mut BytesMut, tail: Bytes) -> Bytes {
    if partial.is_empty() {
        return tail;
    }
    partial.extend_from_slice(&tail);
    partial.split().freeze()
}

fn concat(head: Bytes, tail: Bytes) -> Bytes {
    if head.is_empty() { tail } else { join(&mut BytesMut::from(head), tail) }
}

#[cfg(test)]
mod tests;
