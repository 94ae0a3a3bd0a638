use std::{borrow::Cow, error, fmt, sync::LazyLock};

use bartizan_core::{BoxError, Rejected, RetryAfter, chain, headers};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ALLOW, CONTENT_TYPE},
};
use http_body_util::Full;
use memchr::memmem::{self, Finder};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Class,
    class::{Told, classify},
    usage::value,
};

/// OpenAI's clients try again, or not, as this header tells them, whatever the status.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// The longest message taken over from an upstream, in bytes.
const MAX_MESSAGE: usize = 2_000;

/// Why a call to an LLM provider failed.
///
/// The [`class`](Self::class) is for programs, [`message`](Self::message) for people, and both are safe to pass on: what
/// an upstream said goes through [`redact`] first.
///
/// ```
/// use bartizan_provider::{Class, Error};
/// use http::{HeaderMap, StatusCode};
///
/// let body = br#"{"error":{"message":"The model `gpt-9` does not exist","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#;
/// let error = Error::of_response(StatusCode::NOT_FOUND, &HeaderMap::new(), body, &["sk-secret"]);
/// assert_eq!(error.class(), Class::NotFound);
/// assert_eq!(error.to_string(), "not found: The model `gpt-9` does not exist (param `model`)");
/// assert_eq!(error.to_response().headers()["x-should-retry"], "false");
/// ```
pub struct Error {
    /// Boxed, so that a `Result` with this error stays small.
    inner: Box<Inner>,
}

#[derive(Debug)]
struct Inner {
    class: Class,
    status: Option<StatusCode>,
    /// The upstream's own.
    answered: Option<StatusCode>,
    message: Cow<'static, str>,
    param: Option<Cow<'static, str>>,
    code: Option<Cow<'static, str>>,
    allow: Option<&'static str>,
    retry_after: RetryAfter,
    /// The event that told it, if that can be passed on as it came.
    event: Option<Bytes>,
    source: Option<BoxError>,
}

impl Error {
    /// An error of this class. The message is for whoever made the request, so it must hold no secret.
    ///
    /// `type`, `code` and status are the class's, nothing is said about retrying, until they are set.
    pub fn new(class: Class, message: impl Into<Cow<'static, str>>) -> Self {
        let inner = Inner {
            class,
            status: None,
            answered: None,
            message: message.into(),
            param: None,
            code: None,
            allow: None,
            retry_after: RetryAfter::Unknown,
            event: None,
            source: None,
        };
        Self { inner: Box::new(inner) }
    }

    /// The request used a method that its path does not have: status 405, with `allow` in the header of that name.
    pub fn method_not_allowed(allow: &'static str) -> Self {
        let mut error = Self::new(Class::BadRequest, format!("this path is for {allow}"))
            .with_status(StatusCode::METHOD_NOT_ALLOWED)
            .with_code("method_not_allowed");
        error.inner.allow = Some(allow);
        error
    }

    /// What an upstream's error response means.
    ///
    /// The class is [`Class::of_response`]'s. A 4xx status is kept where it says no more than the class does (422 stays
    /// 422), otherwise the class's is used. `secrets`, the keys that the request carried, are taken out of everything the
    /// upstream said; of class [`Auth`](Class::Auth), where providers like to quote keys, its message is not passed on
    /// at all. When to come back is read from the headers ([`headers::retry_after`]); `x-should-retry: false` means
    /// [`RetryAfter::Never`].
    pub fn of_response(status: StatusCode, headers: &HeaderMap, body: &[u8], secrets: &[&str]) -> Self {
        let told = Told::read(body);
        let spoken = told.is_some();
        let mut told = told.unwrap_or_default();
        let class = classify(Some(status), &told);
        if !spoken && let Some(text) = plain_text(body) {
            told.message = text.to_owned();
        }
        if told.message.is_empty() {
            told.message = match status.canonical_reason() {
                Some(reason) => format!("the upstream answered {} {reason}", status.as_u16()),
                None => format!("the upstream answered {}", status.as_u16()),
            };
        }
        let mut error = Self::told(class, told, secrets);
        error.inner.answered = Some(status);
        if class == Class::of_status(status) && status.is_client_error() && class.status().is_client_error() {
            error.inner.status = Some(status);
        }
        error.inner.retry_after = retry_after(headers);
        error
    }

    /// What an answer means that is no error by its status, if it is one by its body.
    pub(crate) fn of_answer(headers: &HeaderMap, body: &[u8], secrets: &[&str]) -> Option<Self> {
        if !may_tell_error(body) {
            return None;
        }
        let mut error = Self::of_event(body, secrets)?;
        error.inner.retry_after = retry_after(headers);
        Some(error)
    }

    /// What the data of a stream's event means if it is an error object, and `None` if it is none.
    ///
    /// Providers that fail inside a 200 say so with an event in the shape of an error body. One that has OpenAI's shape,
    /// and nothing in it that has to be taken out, is what [`event`](Self::event) gives. This parses the whole event, so
    /// look for `"error"` in it first.
    pub fn of_event(data: &[u8], secrets: &[&str]) -> Option<Self> {
        let mut told = Told::read(data).filter(|told| told.explicit)?;
        if told.message.is_empty() {
            told.message = "the upstream told of an error, and not of which".into();
        }
        let mut error = Self::told(classify(None, &told), told, secrets);
        let one_line = !data.contains(&b'\n') && !data.contains(&b'\r');
        if one_line && error.passes(data, secrets) {
            error.inner.event = Some(as_event(data));
        }
        Some(error)
    }

    fn told(class: Class, told: Told, secrets: &[&str]) -> Self {
        let message: Cow<'static, str> = match class {
            Class::Auth => "the provider refused the credentials it was given".into(),
            _ => clip(redact(&told.message, secrets).into_owned()).into(),
        };
        let clean = |text: Option<String>| text.map(|text| clip(redact(&text, secrets).into_owned()).into());
        let mut error = Self::new(class, message);
        error.inner.param = clean(told.param);
        error.inner.code = clean(told.code);
        error
    }

    /// Whether the body that told it is fit for clients as it is: it has the shape of OpenAI's errors, and names no key.
    pub(crate) fn passes(&self, body: &[u8], secrets: &[&str]) -> bool {
        let names = |secret: &&str| memmem::find(body, secret.as_bytes()).is_some();
        self.class() != Class::Auth && is_error_object(body) && !secrets.iter().any(names)
    }

    /// Sets the status to answer with, where the class's is not precise enough.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        self.inner.status = Some(status);
        self
    }

    /// Names the part of the request that is wrong: a JSON key or a header.
    #[must_use]
    pub fn with_param(mut self, param: impl Into<Cow<'static, str>>) -> Self {
        self.inner.param = Some(param.into());
        self
    }

    /// Sets a more precise `code` than the class's.
    #[must_use]
    pub fn with_code(mut self, code: impl Into<Cow<'static, str>>) -> Self {
        self.inner.code = Some(code.into());
        self
    }

    /// Says when the same request may be worth making again. [`RetryAfter::Never`] tells OpenAI's clients not to try.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: RetryAfter) -> Self {
        self.inner.retry_after = retry_after;
        self
    }

    #[cfg(feature = "retry")]
    pub(crate) fn set_retry_after(&mut self, retry_after: RetryAfter) {
        self.inner.retry_after = retry_after;
    }

    /// The same without its cause.
    #[cfg(feature = "retry")]
    pub(crate) fn retold(&self) -> Self {
        let Inner { class, status, answered, allow, retry_after, .. } = *self.inner;
        let (message, param, code) =
            (self.inner.message.clone(), self.inner.param.clone(), self.inner.code.clone());
        let event = self.inner.event.clone();
        let inner =
            Inner { class, status, answered, message, param, code, allow, retry_after, event, source: None };
        Self { inner: Box::new(inner) }
    }

    /// Adds the cause. It stays inside: responses and events never show it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        self.inner.source = Some(source.into());
        self
    }

    /// What kind of failure it was.
    pub fn class(&self) -> Class {
        self.inner.class
    }

    /// The status to answer with: the class's, unless another was set.
    pub fn status(&self) -> StatusCode {
        self.inner.status.unwrap_or(self.inner.class.status())
    }

    /// The status of the upstream's error response, if it was one: [`status`](Self::status) is what a caller is told.
    pub fn answered(&self) -> Option<StatusCode> {
        self.inner.answered
    }

    /// What was wrong, in words.
    pub fn message(&self) -> &str {
        &self.inner.message
    }

    /// The part of the request that is wrong, if it is known.
    pub fn param(&self) -> Option<&str> {
        self.inner.param.as_deref()
    }

    /// The `code`: the upstream's own or one that was set, otherwise the class's.
    pub fn code(&self) -> Option<&str> {
        self.inner.code.as_deref().or(self.inner.class.openai_code())
    }

    /// When the same request may be worth making again.
    pub fn retry_after(&self) -> RetryAfter {
        self.inner.retry_after
    }

    /// Whether the same request may fare better later or elsewhere: the class is transient, and nobody said never.
    pub fn is_transient(&self) -> bool {
        self.inner.class.is_transient() && self.inner.retry_after != RetryAfter::Never
    }

    /// The outermost `Error` in the chain of sources that starts at `error`, `error` itself included.
    pub fn find<'a>(error: &'a (dyn error::Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(|error| error.downcast_ref())
    }

    /// The one that decides what is told of an error, unless a [`Rejected`] around it does.
    pub(crate) fn outermost<'a>(error: &'a (dyn error::Error + 'static)) -> Option<&'a Self> {
        chain(error).find(|error| error.is::<Self>() || error.is::<Rejected>())?.downcast_ref()
    }

    /// The error as OpenAI's API would answer it: `{"error":{"message","type","param","code"}}`.
    ///
    /// With `Retry-After` if it is known, and `x-should-retry: false` if trying again cannot help.
    pub fn to_response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.json())));
        *response.status_mut() = self.status();
        let map = response.headers_mut();
        map.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers::set_retry_after(map, self.inner.retry_after);
        if !self.is_transient() {
            map.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
        }
        if let Some(allow) = self.inner.allow {
            map.insert(ALLOW, HeaderValue::from_static(allow));
        }
        response
    }

    /// The error as the last event of a stream that cannot go on: `data: {"error":{..}}` and an empty line.
    ///
    /// OpenAI's clients raise it as an exception. No `[DONE]` belongs after it. What an upstream has told in an event of
    /// this kind is told in its words ([`of_event`](Self::of_event)).
    pub fn event(&self) -> Bytes {
        // JSON has no bare line break, so this is one line of data whatever the message holds.
        self.inner.event.clone().unwrap_or_else(|| as_event(&self.json()))
    }

    pub(crate) fn json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Object<'a>,
        }
        #[derive(Serialize)]
        struct Object<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: Option<&'a str>,
        }
        let error = Object {
            message: self.message(),
            r#type: self.inner.class.openai_type(),
            param: self.param(),
            code: self.code(),
        };
        serde_json::to_vec(&Outer { error }).expect("strings always serialize")
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.inner, f)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.inner.class, self.inner.message)?;
        match &self.inner.param {
            Some(param) => write!(f, " (param `{param}`)"),
            None => Ok(()),
        }
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

/// Answers any error of a stack in OpenAI's shape; give it to
/// [`RejectionLayer::new`](bartizan_core::RejectionLayer::new).
///
/// The outermost [`Error`] or [`Rejected`] in the chain decides, since whoever wrapped the other knew more: an `Error`
/// becomes [`Error::to_response`], all else what
/// [`RejectionLayer::openai_json`](bartizan_core::RejectionLayer::openai_json) makes of it.
pub fn openai_error(error: BoxError) -> Response<Full<Bytes>> {
    match Error::outermost(&*error) {
        Some(error) => error.to_response(),
        None => bartizan_core::openai_json(error),
    }
}

/// [`Error::event`] for any error of a body. Of errors that are neither ours nor a layer's the text stays inside.
pub(crate) fn event_of(error: &(dyn error::Error + 'static)) -> Bytes {
    if let Some(error) = Error::find(error) {
        return error.event();
    }
    let Some(rejected) = Rejected::find(error) else {
        return Error::new(Class::Upstream, "the stream broke off").event();
    };
    let (status, code) = rejected.kind().status_and_code();
    Error::new(Class::of_status(status), rejected.to_string()).with_code(code).event()
}

fn retry_after(map: &HeaderMap) -> RetryAfter {
    match map.get(&SHOULD_RETRY) {
        Some(value) if value == "false" => RetryAfter::Never,
        _ => headers::retry_after(map),
    }
}

fn as_event(json: &[u8]) -> Bytes {
    Bytes::from([b"data: ", json, b"\n\n"].concat())
}

/// Whether the name that an error has in JSON is among these, and not only to say that there is none.
pub(crate) fn may_tell_error(json: &[u8]) -> bool {
    /// To make one costs more than to look through an event with it.
    static NAME: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"\"error\""));
    let behind = |at: usize| value(&json[at + NAME.needle().len()..]);
    NAME.find_iter(json).any(|at| behind(at).is_none_or(|value| !value.starts_with(b"null")))
}

/// Whether a body has the shape of OpenAI's errors.
fn is_error_object(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow)]
        error: &'a RawValue,
    }
    serde_json::from_slice::<Outer<'_>>(body).is_ok_and(|outer| outer.error.get().starts_with('{'))
}

/// Takes `secrets` out of a text that somebody else wrote, such as an upstream's error message.
///
/// Every whole secret becomes `[redacted]`, and so does its masked echo: a word with `***` in it
/// (`sk-abc******wxyz`), or one with dots that begins as a secret does (`sk-abc...wxyz`).
///
/// ```
/// use bartizan_provider::redact;
///
/// let said = "Incorrect API key provided: sk-ab***************wxyz.";
/// assert_eq!(redact(said, &[]), "Incorrect API key provided: [redacted].");
/// assert_eq!(redact("no sk-abc123 here", &["sk-abc123"]), "no [redacted] here");
/// ```
pub fn redact<'a>(text: &'a str, secrets: &[&str]) -> Cow<'a, str> {
    const MARK: &str = "[redacted]";
    let mut out = String::new();
    let mut copied = 0;
    let mut at = 0;
    let mut in_word = false;
    while let Some(c) = text[at..].chars().next() {
        let rest = &text[at..];
        // Whole secrets first, the longest that fits: of two keys one may begin as the other does.
        let whole = secrets.iter().filter(|s| !s.is_empty() && rest.starts_with(**s)).map(|s| s.len()).max();
        let cut = whole.or_else(|| if in_word { None } else { masked(rest, secrets) });
        if let Some(len) = cut {
            out.push_str(&text[copied..at]);
            out.push_str(MARK);
            at += len;
            copied = at;
            in_word = false;
        } else {
            in_word = is_key_char(c);
            at += c.len_utf8();
        }
    }
    if copied == 0 && out.is_empty() {
        return Cow::Borrowed(text);
    }
    out.push_str(&text[copied..]);
    Cow::Owned(out)
}

/// The length of the word at the start of `text`, if it is a key with its middle left out.
fn masked(text: &str, secrets: &[&str]) -> Option<usize> {
    let end = text.find(|c| !is_key_char(c)).unwrap_or(text.len());
    let word = text[..end].trim_end_matches('.');
    let dotted = || {
        let head = word.split(['.', '…']).next().filter(|head| head.len() >= 3 && head.len() < word.len())?;
        secrets.iter().any(|secret| secret.starts_with(head)).then_some(())
    };
    (word.contains("***") || dotted().is_some()).then_some(word.len())
}

fn is_key_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '*' | '.' | '…')
}

/// A body that is no JSON, if a person could read it: short, and no page of HTML.
fn plain_text(body: &[u8]) -> Option<&str> {
    let text = str::from_utf8(body).ok()?.trim();
    (!text.is_empty() && text.len() <= 500 && !text.starts_with(['<', '{', '['])).then_some(text)
}

/// Redact before this: half a key is no whole key, and would pass.
fn clip(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        text.truncate(text.floor_char_boundary(MAX_MESSAGE));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests;
