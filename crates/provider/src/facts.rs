use std::{fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{error::Category, value::RawValue};

use crate::{Class, Error};

/// What the layers of a gateway want to know of a request, worked out once and carried in its extensions.
///
/// [`IntakeLayer`](crate::IntakeLayer) puts it there. A clone counts two references up and copies nothing.
///
/// ```
/// use bartizan_provider::{Facts, Operation};
/// use bytes::Bytes;
///
/// let body = Bytes::from_static(br#"{"model":"fast","stream":true,"max_tokens":100,"messages":[]}"#);
/// let facts = Facts::read(Operation::Chat, &body)?;
/// assert_eq!(facts.model(), "fast");
/// assert!(facts.stream());
/// assert_eq!(facts.estimated_tokens(), 116);
///
/// let renamed = facts.rename(&body, "gpt-4o-mini");
/// assert_eq!(renamed, &br#"{"model":"gpt-4o-mini","stream":true,"max_tokens":100,"messages":[]}"#[..]);
/// # Ok::<(), bartizan_provider::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    operation: Operation,
    model: Arc<str>,
    model_span: Range<usize>,
    stream: bool,
    tenant: Option<Tenant>,
    estimated_tokens: u64,
}

impl Facts {
    /// Reads the facts from a request's body, in one pass that keeps nothing but the model's name.
    ///
    /// A body is looked at for [`Chat`](Operation::Chat) and [`Embeddings`](Operation::Embeddings) only; the facts of
    /// other operations have an empty model and nothing estimated.
    ///
    /// # Errors
    ///
    /// Of class [`BadRequest`](Class::BadRequest), naming what is wrong and where: the body is empty, not UTF-8, not
    /// JSON, not an object, nested deeper than 127 levels; `model` is missing, empty or no string; `stream` is no
    /// boolean (null counts as absent); either of the two appears twice, since whoever reads the body after us could
    /// read the other one. Nothing that the body says is repeated.
    pub fn read(operation: Operation, body: &Bytes) -> Result<Self, Error> {
        if !operation.has_model() {
            return Ok(Self {
                operation,
                model: Arc::from(""),
                model_span: 0..0,
                stream: false,
                tenant: None,
                estimated_tokens: 0,
            });
        }
        if body.is_empty() {
            return Err(Error::new(Class::BadRequest, "the body is empty, where a JSON object was expected"));
        }
        let text = str::from_utf8(body).map_err(|error| {
            let message = format!("the body is not UTF-8: wrong byte at offset {}", error.valid_up_to());
            Error::new(Class::BadRequest, message).with_source(error)
        })?;
        let mut found = Found::default();
        let mut json = serde_json::Deserializer::from_str(text);
        (&mut found).deserialize(&mut json).and_then(|()| json.end()).map_err(|error| {
            let message = match (error.classify(), found.wrong) {
                // Of the whole, since what is in it has a key to blame. serde would quote it, to the last byte.
                (Category::Data, None) => {
                    return Error::new(Class::BadRequest, "the body is wrong: it must be a JSON object");
                }
                (Category::Data, Some(_)) => format!("the body is wrong: {error}"),
                _ => format!("the body is not valid JSON: {error}"),
            };
            let failed = Error::new(Class::BadRequest, message).with_source(error);
            match found.wrong {
                Some(param) => failed.with_param(param),
                None => failed,
            }
        })?;
        let Some((model, raw)) = found.model else {
            return Err(Error::new(Class::BadRequest, "`model` is missing").with_param("model"));
        };
        // The raw value borrows from the body, so its address tells its place.
        let start = raw.as_ptr().addr() - text.as_ptr().addr();
        Ok(Self {
            operation,
            model: model.into(),
            model_span: start..start + raw.len(),
            stream: found.stream.unwrap_or(false),
            tenant: None,
            estimated_tokens: (body.len() as u64)
                .div_ceil(4)
                .saturating_add(found.max_completion_tokens.or(found.max_tokens).unwrap_or(0)),
        })
    }

    /// Sets on whose behalf the request is made.
    #[must_use]
    pub fn with_tenant(mut self, tenant: impl Into<Tenant>) -> Self {
        self.tenant = Some(tenant.into());
        self
    }

    /// What is asked for.
    pub const fn operation(&self) -> Operation {
        self.operation
    }

    /// The model that the request names; empty if the operation has none in its body.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Where the model's name stands in the body, quotes included, in bytes. Empty if there is none.
    pub fn model_span(&self) -> Range<usize> {
        self.model_span.clone()
    }

    /// Whether the answer is asked for as a stream of events. `false` unless the body says so.
    pub const fn stream(&self) -> bool {
        self.stream
    }

    /// On whose behalf the request is made, if that is known.
    pub fn tenant(&self) -> Option<&Tenant> {
        self.tenant.as_ref()
    }

    /// Roughly how many tokens the request will use, prompt and answer together.
    ///
    /// One for every four bytes of body, rounded up, plus `max_completion_tokens`, or else `max_tokens`, if the request
    /// has it as a whole number. Good enough to reserve from a quota which is settled with the true usage later: English
    /// prose has about 4.5 bytes a token, JSON around it makes up for some, other scripts have fewer.
    pub const fn estimated_tokens(&self) -> u64 {
        self.estimated_tokens
    }

    /// Whether these facts can still be those of `body`: the model's name stands where they say.
    pub(crate) fn describe(&self, body: &[u8]) -> bool {
        let Some(raw) = body.get(self.model_span()).filter(|raw| !raw.is_empty()) else { return false };
        // Names have no escapes, as a rule.
        let plain = raw.strip_prefix(b"\"").and_then(|raw| raw.strip_suffix(b"\""));
        plain == Some(self.model.as_bytes())
            || serde_json::from_slice::<String>(raw).is_ok_and(|name| name == *self.model)
    }

    /// The body with another model's name in it, every other byte as it was. Without parsing.
    ///
    /// `body` must be the one that these facts were read from. Asked for the name that is there already, or where there
    /// is no model, this returns the body itself and copies nothing.
    ///
    /// # Panics
    ///
    /// May panic if `body` is another than the one that was read.
    #[must_use]
    pub fn rename(&self, body: &Bytes, model: &str) -> Bytes {
        if self.model_span.is_empty() || *self.model == *model {
            return body.clone();
        }
        let name = serde_json::to_string(model).expect("a string always serializes");
        let (before, after) = (&body[..self.model_span.start], &body[self.model_span.end..]);
        Bytes::from([before, name.as_bytes(), after].concat())
    }
}

/// What a request asks for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// `POST /v1/chat/completions`.
    Chat,
    /// `POST /v1/embeddings`.
    Embeddings,
    /// `GET /v1/models` and `GET /v1/models/{model}`.
    Models,
    /// Anything else.
    Other,
}

impl Operation {
    /// The operation at this path of OpenAI's API, with or without `/v1` in front.
    ///
    /// ```
    /// use bartizan_provider::Operation;
    ///
    /// assert_eq!(Operation::of_path("/v1/chat/completions"), Operation::Chat);
    /// assert_eq!(Operation::of_path("/v1/models/meta-llama/Llama-3"), Operation::Models);
    /// assert_eq!(Operation::of_path("/v1/chat/completions/17"), Operation::Other);
    /// ```
    pub fn of_path(path: &str) -> Self {
        match path.strip_prefix("/v1").unwrap_or(path) {
            "/chat/completions" => Self::Chat,
            "/embeddings" => Self::Embeddings,
            "/models" => Self::Models,
            path if path.starts_with("/models/") => Self::Models,
            _ => Self::Other,
        }
    }

    const fn has_model(self) -> bool {
        matches!(self, Self::Chat | Self::Embeddings)
    }
}

/// On whose behalf a request is made: what limits are counted by and caches are kept apart by.
///
/// A name, not a secret: it is shown by `Debug`, and belongs in logs.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant(Arc<str>);

impl Tenant {
    /// The tenant's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Tenant {
    fn from(name: &str) -> Self {
        Self(name.into())
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// What has been found so far.
#[derive(Default)]
struct Found<'de> {
    /// The name, and the JSON that spells it.
    model: Option<(String, &'de str)>,
    /// `Some` once seen, were it null.
    stream: Option<bool>,
    max_tokens: Option<u64>,
    max_completion_tokens: Option<u64>,
    /// The key to blame, if the pass ends in an error of ours.
    wrong: Option<&'static str>,
}

impl<'de> DeserializeSeed<'de> for &mut Found<'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &mut Found<'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(KeySeed)? {
            match key {
                Key::Model => {
                    self.wrong = Some("model");
                    if self.model.is_some() {
                        return Err(A::Error::custom("`model` appears twice"));
                    }
                    let raw = map.next_value::<&RawValue>()?.get();
                    if !raw.starts_with('"') {
                        return Err(A::Error::custom("`model` must be a string"));
                    }
                    let name: String = serde_json::from_str(raw).map_err(|error| {
                        A::Error::custom(format_args!("`model` is no string of Unicode text: {error}"))
                    })?;
                    if name.is_empty() {
                        return Err(A::Error::custom("`model` is empty"));
                    }
                    self.model = Some((name, raw));
                }
                Key::Stream => {
                    self.wrong = Some("stream");
                    if self.stream.is_some() {
                        return Err(A::Error::custom("`stream` appears twice"));
                    }
                    self.stream = Some(match map.next_value_seed(Skim)? {
                        Skimmed::Bool(stream) => stream,
                        Skimmed::Null => false,
                        _ => return Err(A::Error::custom("`stream` must be a boolean")),
                    });
                }
                Key::MaxTokens => self.max_tokens = map.next_value_seed(Skim)?.number(),
                Key::MaxCompletionTokens => self.max_completion_tokens = map.next_value_seed(Skim)?.number(),
                Key::Other => {
                    map.next_value_seed(Skim)?;
                }
            }
            self.wrong = None;
        }
        Ok(())
    }
}

enum Key {
    Model,
    Stream,
    MaxTokens,
    MaxCompletionTokens,
    Other,
}

struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(match key {
            "model" => Key::Model,
            "stream" => Key::Stream,
            "max_tokens" => Key::MaxTokens,
            "max_completion_tokens" => Key::MaxCompletionTokens,
            _ => Key::Other,
        })
    }
}

/// Passes over a value, whatever it is, and keeps what fits in a register.
///
/// Not [`IgnoredAny`], although faster: serde_json takes that to any depth, and the next one to read this body may not.
struct Skim;

enum Skimmed {
    Null,
    Bool(bool),
    Number(u64),
    Other,
}

impl Skimmed {
    fn number(self) -> Option<u64> {
        match self {
            Self::Number(number) => Some(number),
            _ => None,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Skim {
    type Value = Skimmed;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Skimmed, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Skim {
    type Value = Skimmed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E>(self) -> Result<Skimmed, E> {
        Ok(Skimmed::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Skimmed, E> {
        Ok(Skimmed::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Skimmed, E> {
        Ok(Skimmed::Number(value))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Skimmed, E> {
        Ok(Skimmed::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Skimmed, E> {
        Ok(Skimmed::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Skimmed, E> {
        Ok(Skimmed::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Skimmed, A::Error> {
        while seq.next_element_seed(Skim)?.is_some() {}
        Ok(Skimmed::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Skimmed, A::Error> {
        while map.next_key::<IgnoredAny>()?.is_some() {
            map.next_value_seed(Skim)?;
        }
        Ok(Skimmed::Other)
    }
}

#[cfg(test)]
mod tests;
