use std::{
    borrow::Cow,
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Value, value::RawValue};

use super::{
    bounds::{Affordable, Costs, MOST_DEEP},
    document::{Flaw, read},
    schema::Schema,
};
use crate::{Found, Message, Rule, Severity, http::uncheckable, rule::Step};

/// Where a request says in what form it wants the text of the answer, and where an answer has that text.
///
/// [`chat`](Self::chat) knows OpenAI's chat completions; [`new`](Self::new) is for other ways to say it.
/// [`Validator::structured`](crate::Validator::structured) makes a rule of it.
///
/// Schemas come from strangers, so what they can cost is bounded: a format takes at most 64 KiB, a schema has at most 2,000
/// parts, of which 32 in a row apply to one value, and 16 regular expressions of 128 KiB each; it refers to nothing but its
/// own parts, has no `unevaluated*`, no dynamic references, no `$id` or anchors below its top, and is of draft 6 or later. A
/// request whose schema is none of this is refused. An answer that is nested more than 64 deep, or that could take more than
/// 2,000,000 steps to check, is refused. The 16 schemas that were used last stay compiled.
#[derive(Clone)]
pub struct ResponseFormat {
    member: Cow<'static, str>,
    find: Arc<Find>,
    whole: Place,
    events: Place,
    max_bytes: usize,
}

type Find = dyn Fn(&Value) -> Wanted + Send + Sync;

/// In what form a request wants the text of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Wanted {
    /// Any text.
    Anything,
    /// A JSON object.
    Object,
    /// What fits the JSON Schema at this JSON pointer, which begins at the format.
    Schema(Cow<'static, str>),
}

impl ResponseFormat {
    /// OpenAI's chat completions: `response_format` is `{"type": "json_schema", "json_schema": {"schema": {..}}}` or
    /// `{"type": "json_object"}`, and the text is each choice's `content`.
    pub fn chat() -> Self {
        let find = |format: &Value| match format.get("type").and_then(Value::as_str) {
            Some("json_schema") if format.pointer("/json_schema/schema").is_some() => {
                Wanted::Schema("/json_schema/schema".into())
            }
            Some("json_schema" | "json_object") => Wanted::Object,
            _ => Wanted::Anything,
        };
        Self::new("response_format", find)
    }

    /// `member` of the request's JSON has the format, and `find` says what it is; the text is where chat completions have it.
    pub fn new(
        member: impl Into<Cow<'static, str>>,
        find: impl Fn(&Value) -> Wanted + Send + Sync + 'static,
    ) -> Self {
        Self {
            member: member.into(),
            find: Arc::new(find),
            whole: Place::new("/choices/*/message/content"),
            events: Place::new("/choices/*/delta/content"),
            max_bytes: 1 << 20,
        }
    }

    /// Where the text is: JSON pointers into a whole answer and into the events of a stream, each with at most one `*`,
    /// which stands for every item of an array.
    ///
    /// # Panics
    ///
    /// If one does not begin with `/`, or has more than one `*`.
    #[must_use]
    pub fn text_at(mut self, whole: &str, events: &str) -> Self {
        (self.whole, self.events) = (Place::new(whole), Place::new(events));
        self
    }

    /// A longer answer is refused, as is a stream with more text. In bytes; 1 MiB by default. Where
    /// [`Validator::whole`](crate::Validator::whole) is set, it says how long a whole body may be.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }
}

impl fmt::Debug for ResponseFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFormat").field("member", &self.member).finish_non_exhaustive()
    }
}

/// A place in JSON: behind each item of an array, or just there.
#[derive(Clone)]
struct Place {
    items: Option<String>,
    text: String,
}

impl Place {
    fn new(pointer: &str) -> Self {
        assert!(pointer.starts_with('/'), "{pointer:?} is no JSON pointer to a text");
        let Some((items, text)) = pointer.split_once("/*") else {
            return Self { items: None, text: pointer.to_owned() };
        };
        assert!(!text.contains("/*"), "{pointer:?} has more than one *");
        Self { items: Some(items.to_owned()), text: text.to_owned() }
    }

    /// The choices that are there, with the number that each says it has.
    fn choices<'a>(&self, value: &'a Value) -> Vec<(u64, &'a Value)> {
        let Some(items) = &self.items else { return vec![(0, value)] };
        let items = value.pointer(items).and_then(Value::as_array);
        let numbered = |(place, item): (usize, &'a Value)| {
            (item.get("index").and_then(Value::as_u64).unwrap_or(place as u64), item)
        };
        items.into_iter().flatten().enumerate().map(numbered).collect()
    }

    /// What a choice has of the text, and whether it has something else instead: it calls tools, or says that it refuses.
    fn read(&self, choice: &Value) -> (Option<String>, bool) {
        let text = match choice.pointer(&self.text) {
            Some(Value::String(text)) => Some(text.clone()),
            Some(Value::Array(parts)) => {
                Some(parts.iter().filter_map(|part| part.get("text")?.as_str()).collect())
            }
            _ => None,
        };
        let around = self.text.rsplit_once('/').and_then(|(around, _)| choice.pointer(around));
        let instead = ["tool_calls", "function_call", "refusal"].iter().any(|name| {
            match around.and_then(|around| around.get(name)) {
                Some(Value::String(text)) => !text.is_empty(),
                Some(Value::Array(items)) => !items.is_empty(),
                Some(Value::Object(_)) => true,
                _ => false,
            }
        });
        (text, instead)
    }

    fn pointer(&self, choice: u64) -> String {
        match &self.items {
            Some(items) => format!("{items}/{choice}{}", self.text),
            None => self.text.clone(),
        }
    }
}

/// What a request asked for.
#[derive(Clone)]
pub(crate) struct Expected(Arc<Inner>);

struct Inner {
    name: Arc<str>,
    severity: Severity,
    format: ResponseFormat,
    /// None for any object.
    schema: Option<(Schema, Costs)>,
}

/// The formats that were asked for last, compiled, the latest in front: by the very bytes of the request.
pub(crate) struct Formats {
    name: Arc<str>,
    severity: Severity,
    format: ResponseFormat,
    known: Mutex<VecDeque<(Box<str>, Expected)>>,
}

/// A longer format is refused, in bytes.
const MOST_BYTES: usize = 64 << 10;
const MOST_KNOWN: usize = 16;

impl Formats {
    pub(crate) fn new(name: &str, severity: Severity, format: ResponseFormat) -> Self {
        assert!(!name.is_empty(), "a rule needs a name: reports are of no use without");
        Self { name: name.into(), severity, format, known: Mutex::default() }
    }

    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// What a request asks for, if it asks for anything.
    pub(crate) fn expected<M: Message>(&self, request: &M) -> Result<Option<Expected>, Flaw> {
        let body = request.body();
        if body.is_empty() {
            return Ok(None);
        }
        if let Some(why) = uncheckable(request.headers()) {
            return Err(whole(why));
        }
        let member = Member { name: &self.format.member };
        let mut parser = serde_json::Deserializer::from_slice(body);
        let found = member.deserialize(&mut parser).and_then(|found| parser.end().map(|()| found));
        let found = found.map_err(|_| {
            whole("it is no JSON object, or asks for the format of the answer more than once")
        })?;
        match found.map(RawValue::get) {
            None | Some("null") => Ok(None),
            Some(raw) if raw.len() > MOST_BYTES => {
                Err(self.below("", "the format that is asked for is too long"))
            }
            Some(raw) => match self.known(raw) {
                Some(known) => Ok(Some(known)),
                None => self.compile(raw),
            },
        }
    }

    fn known(&self, raw: &str) -> Option<Expected> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let at = known.iter().position(|(text, _)| **text == *raw)?;
        let found = known.remove(at)?;
        let expected = found.1.clone();
        known.push_front(found);
        Some(expected)
    }

    fn compile(&self, raw: &str) -> Result<Option<Expected>, Flaw> {
        let value = read(raw.as_bytes(), 127).map_err(|flaw| self.below(&flaw.pointer, &flaw.message))?;
        let schema = match (self.format.find)(&value) {
            Wanted::Anything => return Ok(None),
            Wanted::Object => None,
            Wanted::Schema(at) => {
                let schema = value.pointer(&at).ok_or_else(|| self.below(&at, "there is no schema"))?;
                let costs = Costs::of(schema)
                    .map_err(|flaw| self.below(&format!("{at}{}", flaw.pointer), &flaw.message))?;
                let schema = Schema::of_stranger(schema).map_err(|error| {
                    self.below(&format!("{at}{}", error.place()), "the schema cannot be used")
                })?;
                Some((schema, costs))
            }
        };
        let (name, severity, format) = (self.name.clone(), self.severity, self.format.clone());
        let expected = Expected(Arc::new(Inner { name, severity, format, schema }));
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.truncate(MOST_KNOWN - 1);
        known.push_front((raw.into(), expected.clone()));
        Ok(Some(expected))
    }

    fn below(&self, pointer: &str, message: &str) -> Flaw {
        let mut whole = String::new();
        super::push(&mut whole, &self.format.member);
        whole.push_str(pointer);
        Flaw { pointer: whole, message: message.to_owned() }
    }
}

fn whole(message: &str) -> Flaw {
    Flaw { pointer: String::new(), message: message.to_owned() }
}

impl fmt::Debug for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Expected").field("name", &self.0.name).finish_non_exhaustive()
    }
}

impl Expected {
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    pub(crate) fn severity(&self) -> Severity {
        self.0.severity
    }

    pub(crate) fn most_bytes(&self) -> usize {
        self.0.format.max_bytes
    }

    /// Looks at a whole answer.
    pub(crate) fn check(&self, body: &[u8], found: &mut Found<'_>) {
        let answer = match read(body, 127) {
            Ok(answer) => answer,
            Err(Flaw { pointer, message }) => return found.at(&pointer).malformed(message),
        };
        let place = &self.0.format.whole;
        let choices = place.choices(&answer);
        if choices.is_empty() {
            found.violation("", NO_TEXT);
        }
        for (index, choice) in choices {
            let (text, instead) = place.read(choice);
            self.check_text(text.as_deref(), instead, &place.pointer(index), found);
        }
    }

    fn check_text(&self, text: Option<&str>, instead: bool, pointer: &str, found: &mut Found<'_>) {
        if instead {
            return;
        }
        let found = &mut found.below(Step::Pointer(pointer));
        let Some(text) = text else { return found.violation("", NO_TEXT) };
        let value = match read(text.as_bytes(), MOST_DEEP) {
            Ok(value) => value,
            Err(Flaw { pointer, message }) => {
                return found.violation(&pointer, format!("not the JSON that was asked for: {message}"));
            }
        };
        match &self.0.schema {
            None if value.is_object() => {}
            None => found.violation("", "not the JSON object that was asked for"),
            Some((schema, costs)) => match costs.affordable(&value) {
                Affordable::Everything => schema.check(&value, found),
                Affordable::ToCheck if schema.is_valid(&value) => {}
                Affordable::ToCheck => found.violation("", "it does not fit the schema that was asked for"),
                Affordable::Nothing => {
                    found.malformed("it takes too much to check it by the schema that was asked for");
                }
            },
        }
    }
}

const NO_TEXT: &str = "there is no text where the one that was asked for should be";

/// Puts together the texts of a stream whose request asked for a format.
pub(crate) struct Listener {
    expected: Expected,
    choices: Vec<Choice>,
    /// Bytes of text in all.
    bytes: usize,
    settled: bool,
}

#[derive(Default)]
struct Choice {
    index: u64,
    text: Option<String>,
    instead: bool,
    ended: bool,
    judged: bool,
}

const MOST_CHOICES: usize = 128;

impl Listener {
    pub(crate) const fn new(expected: Expected) -> Self {
        Self { expected, choices: Vec::new(), bytes: 0, settled: false }
    }

    pub(crate) const fn expected(&self) -> &Expected {
        &self.expected
    }

    /// Whether all texts that have come so far were looked at, as those of a stream that has come to its end.
    pub(crate) const fn is_settled(&self) -> bool {
        self.settled
    }

    /// Takes an event. True if a text has come to its end, and was not looked at since.
    ///
    /// # Errors
    ///
    /// If there is more than is kept.
    pub(crate) fn event(&mut self, event: &Value) -> Result<bool, &'static str> {
        let place = &self.expected.0.format.events;
        for (index, part) in place.choices(event) {
            let known = self.choices.iter().position(|choice| choice.index == index);
            let at = known.unwrap_or(self.choices.len());
            if known.is_none() {
                if at == MOST_CHOICES {
                    return Err("a stream of more choices than are checked");
                }
                self.choices.push(Choice { index, ..Choice::default() });
            }
            let choice = &mut self.choices[at];
            let (text, instead) = place.read(part);
            choice.instead |= instead;
            if let Some(text) = text {
                self.bytes += text.len();
                if self.bytes > self.expected.most_bytes() {
                    return Err("a stream of more text than is checked");
                }
                choice.judged &= text.is_empty();
                self.settled &= text.is_empty();
                choice.text.get_or_insert_default().push_str(&text);
            }
            choice.ended |= part.get("finish_reason").is_some_and(|reason| !reason.is_null());
        }
        Ok(self.choices.iter().any(|choice| choice.ended && !choice.judged))
    }

    /// Looks at the texts that have come to their ends, or at `all` of them, unless it has.
    pub(crate) fn judge(&mut self, all: bool, found: &mut Found<'_>) {
        if all && !self.settled && self.choices.is_empty() {
            found.violation("", NO_TEXT);
        }
        for choice in self.choices.iter_mut().filter(|choice| !choice.judged && (all || choice.ended)) {
            choice.judged = true;
            let pointer = self.expected.0.format.events.pointer(choice.index);
            self.expected.check_text(choice.text.as_deref(), choice.instead, &pointer, found);
        }
        self.settled |= all;
    }
}

/// Reads one member of an object as it stands, and skips the others.
struct Member<'a> {
    name: &'a str,
}

impl<'de> DeserializeSeed<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(is_it) = members.next_key_seed(Is(self.name))? {
            if !is_it {
                members.next_value::<IgnoredAny>()?;
            } else if found.replace(members.next_value()?).is_some() {
                return Err(A::Error::custom("it stands twice"));
            }
        }
        Ok(found)
    }
}

/// Whether a name is this one, however it is written.
struct Is<'a>(&'a str);

impl<'de> DeserializeSeed<'de> for Is<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Is<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<bool, E> {
        Ok(name == self.0)
    }
}
