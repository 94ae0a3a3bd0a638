//! Event streams: what events add to each text, put together.

use bartizan_core::sse::{Decoder, Event};
use bytes::{Bytes, BytesMut};
use serde_json::Value;

use super::bodies::NOT_UTF8;
use super::window::{AskedOf, Hold, Judge, Seen, Window};
use crate::{
    Report,
    json::{Expected, Listener, read},
    rules::ask,
};

/// A longer event is refused, in bytes.
const MOST_EVENT: usize = 1 << 20;
/// JSON that is nested deeper is not read.
const MOST_DEEP: usize = 127;
/// More is not held, in bytes, however little text is in it.
const MOST_HELD: usize = 64 << 10;
/// A stream with more texts is refused: that bounds what is remembered.
const MOST_TEXTS: usize = 256;

pub(super) struct Events {
    window: Window,
    judge: Judge,
    decoder: Decoder,
    /// Bytes that are with the decoder.
    undecoded: usize,
    /// Whole events that have not passed.
    held: BytesMut,
    texts: Vec<Text>,
    /// Bytes of text in what is held.
    fresh: usize,
    /// Where the request asked for a form of the texts.
    listener: Option<Listener>,
}

/// One text that events add to.
struct Text {
    /// Which: the way to it in an event's JSON, with the index that a choice says it has.
    key: String,
    seen: Seen,
    fresh: String,
}

impl Events {
    pub(super) fn new(window: Window, judge: Judge, expected: Option<Expected>) -> Self {
        Self {
            window,
            judge,
            decoder: Decoder::new(MOST_EVENT),
            undecoded: 0,
            held: BytesMut::new(),
            texts: Vec::new(),
            fresh: 0,
            listener: expected.map(Listener::new),
        }
    }

    fn take(&mut self, event: &Event) -> Result<(), Report> {
        let raw = event.raw();
        // What was added to end a last event that had no end is not the stream's.
        let own = raw.len().min(self.undecoded);
        self.undecoded -= own;
        self.held.extend_from_slice(&raw[..own]);
        match event.data() {
            None => Ok(()),
            Some(data) if data.trim_ascii() == b"[DONE]" => self.verdict(true),
            Some(data) => self.read(&data),
        }
    }

    fn read(&mut self, data: &[u8]) -> Result<(), Report> {
        match read(data, MOST_DEEP) {
            Ok(value) => {
                let (texts, fresh) = (&mut self.texts, &mut self.fresh);
                let all =
                    gather(&value, &mut String::new(), false, &mut |key, text| add(texts, fresh, key, text));
                if !all {
                    return Err(self.judge.malformed("more texts in one stream than are looked at"));
                }
                match self.listener.as_mut().map(|listener| listener.event(&value)) {
                    None | Some(Ok(false)) => Ok(()),
                    Some(Ok(true)) => self.verdict(false),
                    Some(Err(more)) => Err(self.judge.malformed(more)),
                }
            }
            Err(_) if data.trim_ascii_start().starts_with(b"{") => {
                Err(self.judge.malformed("an event whose JSON is broken or ambiguous cannot be checked"))
            }
            Err(_) => match str::from_utf8(data) {
                Ok(text) => {
                    add(&mut self.texts, &mut self.fresh, "", text);
                    Ok(())
                }
                Err(_) => Err(self.judge.malformed(NOT_UTF8)),
            },
        }
    }

    /// Looks at the form of the texts that have come to their ends, or of `all`.
    fn verdict(&mut self, all: bool) -> Result<(), Report> {
        let Some(listener) = &mut self.listener else { return Ok(()) };
        let mut findings = self.judge.rules.findings(self.judge.policy);
        let expected = listener.expected().clone();
        ask(&mut findings, expected.name(), expected.severity(), |found| listener.judge(all, found));
        self.judge.conclude(findings, &mut String::new())
    }

    fn pass(&mut self, asked: &mut Vec<AskedOf>) -> Result<Option<Bytes>, Report> {
        for text in self.texts.iter_mut().filter(|text| !text.fresh.is_empty()) {
            text.seen.pass(&text.fresh, self.window, &self.judge, asked)?;
            text.fresh.clear();
        }
        self.fresh = 0;
        Ok(Some(self.held.split().freeze()))
    }
}

impl Hold for Events {
    fn push(&mut self, data: Bytes) {
        self.undecoded += data.len();
        self.decoder.push(data);
    }

    fn next(&mut self, all: bool, ended: bool, asked: &mut Vec<AskedOf>) -> Result<Option<Bytes>, Report> {
        loop {
            match self.decoder.next_event() {
                Ok(Some(event)) => {
                    self.take(&event)?;
                    if self.window.is_full(self.fresh) || self.held.len() >= MOST_HELD {
                        return self.pass(asked);
                    }
                }
                Ok(None) if ended && self.undecoded > 0 => {
                    // Some read what a stream was cut off in, so it is an event as well.
                    self.decoder.push(Bytes::from_static(b"\n\n"));
                }
                Ok(None) if ended && !self.is_settled() => self.verdict(true)?,
                Ok(None) => break,
                Err(_) => return Err(self.judge.malformed("an event that is too long cannot be checked")),
            }
        }
        match self.held.is_empty() {
            true => Ok(None),
            // What has no text waits for nothing.
            false if all || ended || self.fresh == 0 => self.pass(asked),
            false => Ok(None),
        }
    }

    fn held(&self) -> usize {
        self.held.len() + self.undecoded
    }

    fn by(&self) -> &Judge {
        &self.judge
    }

    fn cut(&mut self) {
        self.listener = None;
    }

    fn is_settled(&self) -> bool {
        self.listener.as_ref().is_none_or(Listener::is_settled)
    }
}

/// False if there are too many texts.
fn add(texts: &mut Vec<Text>, fresh: &mut usize, key: &str, text: &str) -> bool {
    let at = texts.iter().position(|text| text.key == key).unwrap_or(texts.len());
    if at == MOST_TEXTS {
        return false;
    }
    if at == texts.len() {
        texts.push(Text { key: key.to_owned(), seen: Seen::default(), fresh: String::new() });
    }
    texts[at].fresh.push_str(text);
    *fresh += text.len();
    true
}

/// What servers say of an event and not in it, unless it is in a `delta`: no text.
const NO_TEXT: [&str; 12] = [
    "id",
    "object",
    "model",
    "type",
    "role",
    "finish_reason",
    "stop_reason",
    "system_fingerprint",
    "service_tier",
    "item_id",
    "response_id",
    "logprobs",
];

/// The strings of an event, each of which adds to a text. False once `add` says so.
fn gather(value: &Value, key: &mut String, inside: bool, add: &mut impl FnMut(&str, &str) -> bool) -> bool {
    let length = key.len();
    match value {
        Value::String(text) => add(key, text),
        Value::Object(members) => members.iter().all(|(name, member)| {
            if !inside && NO_TEXT.contains(&name.as_str()) {
                return true;
            }
            key.truncate(length);
            key.push('/');
            key.push_str(name);
            gather(member, key, inside || name == "delta", add)
        }),
        Value::Array(items) => items.iter().enumerate().all(|(place, item)| {
            key.truncate(length);
            let index = item.get("index").and_then(Value::as_u64).unwrap_or(place as u64);
            key.push('/');
            key.push_str(&index.to_string());
            gather(item, key, inside, add)
        }),
        _ => true,
    }
}
