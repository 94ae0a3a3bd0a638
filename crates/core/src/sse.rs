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
}

impl Aligner {
    /// An aligner that refuses to hold back more than `max_event` bytes.
    pub fn new(max_event: usize) -> Self {
        Self { scanner: Scanner::default(), partial: BytesMut::new(), max_event }
    }

    /// Takes the next bytes of the stream and gives back all events that are now complete; empty if none is.
    ///
    /// # Errors
    ///
    /// [`TooLong`] when the event under way is longer than allowed.
    pub fn push(&mut self, mut chunk: Bytes) -> Result<Bytes, TooLong> {
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
            return Err(TooLong { max: self.max_event });
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
mod tests {
    use eventsource_stream::Eventsource;
    use futures_util::{FutureExt, StreamExt, stream};
    use proptest::prelude::*;

    use super::*;

    fn events(chunks: &[&[u8]]) -> (Vec<Event>, Bytes) {
        let mut decoder = Decoder::new(usize::MAX);
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.push(Bytes::copy_from_slice(chunk));
            while let Some(event) = decoder.next_event().unwrap() {
                events.push(event);
            }
        }
        (events, decoder.into_rest())
    }

    fn data(chunks: &[&[u8]]) -> Vec<String> {
        let (events, _) = events(chunks);
        events.iter().filter_map(Event::data).map(|data| String::from_utf8(data.into()).unwrap()).collect()
    }

    #[test]
    fn every_line_end_ends_events() {
        for end in ["\n", "\r\n", "\r"] {
            let text = format!("data: a{end}{end}: hi{end}data:b{end}data{end}data:  c{end}{end}");
            assert_eq!(data(&[text.as_bytes()]), ["a", "b\n\n c"], "{end:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(data(&bytes), ["a", "b\n\n c"], "{end:?}, a byte at a time");
        }
    }

    #[test]
    fn an_event_that_came_alone_is_not_held_back() {
        for text in ["data: a\n\n", "data: a\r\n\r\n", "data: a\r\r", "data: a\n\r\n", "data: a\r\n\n"] {
            assert_eq!(data(&[text.as_bytes()]), ["a"], "{text:?}");
            let mut aligner = Aligner::new(100);
            assert_eq!(aligner.push(text.into()).unwrap(), text);
            assert!(aligner.held().is_empty());
        }
    }

    #[test]
    fn a_mixed_ending_waits_for_its_second_half() {
        let mut aligner = Aligner::new(100);
        assert_eq!(aligner.push("data: a\r\n\r".into()).unwrap(), "");
        assert_eq!(aligner.push("\ndata".into()).unwrap(), "data: a\r\n\r\n");
        assert_eq!(aligner.held(), b"data");

        let mut aligner = Aligner::new(100);
        assert_eq!(aligner.push("data: a\n\r".into()).unwrap(), "");
        assert_eq!(aligner.finish(), "data: a\n\r");
        assert_eq!(aligner.finish(), "");
    }

    #[test]
    fn fields_as_the_standard_reads_them() {
        let (events, rest) = events(&[
            b"\xef\xbb\xbfdata:x\n\n",
            b"\xef\xbb\xbfdata:y\n\n",
            b"event: a\nevent: b\nid: 1\nid: 2\0\ndata\n\n",
            b": only a comment\n\n",
            b"dataset: no\nData: no\n\n",
            b"data: cut off",
        ]);
        assert_eq!(events[0].data().as_deref(), Some(&b"x"[..]), "a byte order mark is no field");
        assert_eq!(events[1].data(), None, "but only the first is one");
        assert_eq!((events[2].kind(), events[2].id()), ("b", Some(&b"1"[..])));
        assert_eq!(events[2].data().as_deref(), Some(&b""[..]));
        assert_eq!((events[3].kind(), events[3].data()), ("message", None));
        assert_eq!(events[4].data(), None);
        assert_eq!(events.len(), 5);
        assert_eq!(rest, "data: cut off");
    }

    #[test]
    fn what_lies_in_one_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
        let mut decoder = Decoder::new(100);
        decoder.push(chunk.clone());
        decoder.next_event().unwrap();
        let second = decoder.next_event().unwrap().unwrap();
        assert_eq!(second.raw().as_ptr(), chunk[9..].as_ptr());
        assert_eq!(second.data().unwrap().as_ptr(), chunk[15..].as_ptr());
        assert_eq!(Aligner::new(100).push(chunk.clone()).unwrap().as_ptr(), chunk.as_ptr());
    }

    #[test]
    fn an_event_that_does_not_end_is_refused_at_the_bound() {
        let mut aligner = Aligner::new(10);
        assert_eq!(aligner.push("data: 345".into()).unwrap(), "");
        assert_eq!(
            aligner.push("6\n\ndata: 7890".into()).unwrap(),
            "data: 3456\n\n",
            "what is complete may be long"
        );
        assert_eq!(
            aligner.push("1".into()).unwrap_err().to_string(),
            "a server-sent event is longer than 10 bytes"
        );

        let mut decoder = Decoder::new(10);
        decoder.push("data: 34567\n\n".into());
        assert!(decoder.next_event().is_err());
        assert_eq!(decoder.into_rest(), "data: 34567\n\n");
    }

    /// Streams out of the pieces that matter, and where to split them.
    fn split_streams() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
        let piece = prop::sample::select(vec![
            "\n", "\r", "\r\n", "\n\n", "data", ":", " ", "data: x", "event: e", "id: 1", ": c", "é",
            "data:", "\u{feff}",
        ]);
        prop::collection::vec(piece, 0..40).prop_flat_map(|pieces| {
            let bytes = pieces.concat().into_bytes();
            let cuts = prop::collection::vec(0..=bytes.len(), 0..8);
            (Just(bytes), cuts)
        })
    }

    fn split<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
        let mut cuts: Vec<usize> = [&[0], cuts, &[bytes.len()]].concat();
        cuts.sort_unstable();
        cuts.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn any_split_gives_the_same_events_and_the_same_bytes((bytes, cuts) in split_streams()) {
            let chunks = split(&bytes, &cuts);
            let (mut whole, _) = events(&[&bytes]);
            let (mut parts, rest) = events(&chunks);
            let together: Vec<u8> = parts.iter().flat_map(|event| event.raw().to_vec()).chain(rest).collect();
            prop_assert_eq!(&together, &bytes, "no byte is lost or moved");
            whole.retain(|event| event.data().is_some());
            parts.retain(|event| event.data().is_some());
            prop_assert_eq!(whole, parts);
        }

        #[test]
        fn the_aligner_cuts_where_the_decoder_does((bytes, cuts) in split_streams()) {
            let chunks = split(&bytes, &cuts);
            let mut aligner = Aligner::new(usize::MAX);
            let mut decoder = Decoder::new(usize::MAX);
            for chunk in chunks {
                let aligned = aligner.push(Bytes::copy_from_slice(chunk)).unwrap();
                decoder.push(Bytes::copy_from_slice(chunk));
                let mut decoded = Vec::new();
                while let Some(event) = decoder.next_event().unwrap() {
                    decoded.extend_from_slice(event.raw());
                }
                prop_assert_eq!(aligned, decoded);
            }
            prop_assert_eq!(aligner.held(), decoder.into_rest());
        }

        #[test]
        fn data_and_kind_agree_with_eventsource_stream((bytes, cuts) in split_streams()) {
            // The oracle reads a lone `\r` and a second byte order mark otherwise than the standard does.
            let text = String::from_utf8(bytes).unwrap().replace(['\r', '\u{feff}'], "");
            let bytes = text.as_bytes();
            let cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            let chunks = split(bytes, &cuts);
            let source = stream::iter(chunks.iter().map(|chunk| Ok::<_, std::convert::Infallible>(*chunk)));
            let expected: Vec<(String, Vec<u8>)> = source
                .eventsource()
                .map(|event| event.map(|event| (event.event, event.data.into_bytes())).unwrap())
                .collect()
                .now_or_never()
                .unwrap();
            let (events, _) = events(&chunks);
            let ours: Vec<(String, Vec<u8>)> = events
                .iter()
                .filter_map(|event| Some((event.kind().to_owned(), event.data()?.to_vec())))
                .collect();
            prop_assert_eq!(ours, expected);
        }
    }
}
