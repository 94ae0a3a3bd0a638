use std::{cell::Cell, fmt};

use http::{
    HeaderMap, HeaderName, Request,
    header::{
        CONTENT_ENCODING, CONTENT_TYPE, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        IF_UNMODIFIED_SINCE, RANGE,
    },
};

use super::{
    cache_control::CacheControl,
    canonical::{self, Exceptions, Scratch},
    key::{Key, KeyBuilder},
};
use crate::Identity;

/// What an HTTP request is known by: scope, method, URI with its host, chosen headers, body and what kind of body it is.
///
/// JSON bodies of one kind are the same if they say the same: the order of an object's members does not matter, but where it
/// is [said to](Self::in_order), nor do white space and escapes; every field does, unless it is listed. Numbers are the same
/// if they are written the same.
///
/// ```
/// use bartizan_dedup::RequestKey;
/// use bytes::Bytes;
/// use http::Request;
///
/// let key = RequestKey::scoped_by(|request: &Request<Bytes>| request.headers().get("x-tenant")?.to_str().ok())
///     .leave_out(["user"]);
/// let of = |tenant: &str, body: &'static str| {
///     let request = Request::post("/v1/chat/completions")
///         .header("content-type", "application/json")
///         .header("x-tenant", tenant)
///         .body(Bytes::from_static(body.as_bytes()));
///     key.of(&request.unwrap())
/// };
/// let asked = of("acme", r#"{"model": "m", "n": 1, "user": "a"}"#);
/// assert!(asked.is_some());
/// assert_eq!(asked, of("acme", r#"{"n":1,"model":"m","user":"b"}"#));
/// assert_ne!(asked, of("acme", r#"{"n":2,"model":"m"}"#), "every field counts");
/// assert_ne!(asked, of("umbrella", r#"{"model": "m", "n": 1, "user": "a"}"#), "and so does who asks");
/// assert_eq!(of("acme", "{"), None, "what cannot be read is shared with nobody");
/// ```
///
/// The method counts and none is left out: what must not be made once for many must have no key.
///
/// Of the headers, `Content-Type` and `Content-Encoding` count, `Host` where the URI names no host, and else those alone that
/// are [named](Self::header). Not `Authorization` and not `Cookie`: `scope` must say who may see the answer. Nor `Accept` and
/// `Accept-Language`: name what the answer depends on.
pub struct RequestKey<F> {
    scope: F,
    headers: Vec<HeaderName>,
    exceptions: Exceptions,
    max_body: usize,
}

impl<F> RequestKey<F> {
    /// `scope` says who may see the answer: the tenant, as a rule. A request for which it says `None` has no key.
    pub const fn scoped_by<B>(scope: F) -> Self
    where
        F: Fn(&Request<B>) -> Option<&str>,
    {
        Self { scope, headers: Vec::new(), exceptions: Exceptions::new(), max_body: 1 << 20 }
    }

    /// A header on which the answer depends, beside those that count anyway.
    #[must_use]
    pub fn header(mut self, name: HeaderName) -> Self {
        self.headers.push(name);
        self
    }

    /// Members of a JSON body, at its top, on which the answer does not depend.
    #[must_use]
    pub fn leave_out<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        names.into_iter().for_each(|name| self.exceptions.leave_out(&name.into()));
        self
    }

    /// Members of a JSON body, at its top, in which the order of all members counts too. None by default.
    ///
    /// For JSON schemas above all: whoever is to answer in the form of one writes its properties in their order, and thinks
    /// first of what comes first.
    ///
    /// ```
    /// # use bartizan_dedup::RequestKey;
    /// # use http::Request;
    /// let key = RequestKey::scoped_by(|_: &Request<&str>| Some("acme")).in_order(["response_format"]);
    /// let of = |body| {
    ///     let request = Request::post("/").header("content-type", "application/json").body(body);
    ///     key.of(&request.unwrap())
    /// };
    /// let asked = of(r#"{"model": "m", "response_format": {"why": {}, "answer": {}}}"#);
    /// assert_eq!(asked, of(r#"{"response_format":{"why":{},"answer":{}},"model":"m"}"#));
    /// assert_ne!(asked, of(r#"{"response_format":{"answer":{},"why":{}},"model":"m"}"#));
    /// ```
    #[must_use]
    pub fn in_order<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        names.into_iter().for_each(|name| self.exceptions.in_order(&name.into()));
        self
    }

    /// Requests with a longer body have no key. In bytes; 1 MiB by default.
    #[must_use]
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// What this request is known by.
    ///
    /// `None`, so that it is made by itself, if it has no scope, says `Cache-Control: no-store`, asks for a part (`Range`,
    /// `Last-Event-ID`) or sets a condition (`If-Match` and its like), or if its body is too long, is JSON that cannot be read
    /// or is nested more than 128 deep. One that says `no-cache` or `max-age=0` is not answered with what was kept. A longer
    /// `max-age`, `min-fresh`, `max-stale` and `only-if-cached` are not obeyed.
    pub fn of<B>(&self, request: &Request<B>) -> Option<Identity<Key>>
    where
        F: Fn(&Request<B>) -> Option<&str>,
        B: AsRef<[u8]>,
    {
        let headers = request.headers();
        let control = CacheControl::of(headers);
        let body = request.body().as_ref();
        let conditional = CONDITIONS.iter().any(|name| headers.contains_key(name));
        if control.no_store || conditional || body.len() > self.max_body {
            return None;
        }
        let uri = request.uri();
        // Of an origin server's request, the header says it.
        let host = || headers.get(HOST).map_or(&b""[..], |host| host.as_bytes());
        let mut key = Key::scope((self.scope)(request)?)
            .part(request.method().as_str())
            .part(uri.scheme_str().unwrap_or_default())
            .part(uri.authority().map_or_else(host, |authority| authority.as_str().as_bytes()))
            .part(uri.path())
            // A query that is empty is another one than none.
            .part(if uri.query().is_some() { "?" } else { "" })
            .part(uri.query().unwrap_or_default());
        for name in &self.headers {
            let values = headers.get_all(name);
            key = key.part(name).part(values.iter().count().to_le_bytes());
            key = values.iter().fold(key, KeyBuilder::part);
        }
        let key = self.body(key, headers, body)?.finish();
        let identity = Identity::new(key);
        let no_cache = control.no_cache || control.max_age.is_some_and(|most| most.is_zero());
        Some(if no_cache { identity.no_cache() } else { identity })
    }

    fn body(&self, key: KeyBuilder, headers: &HeaderMap, body: &[u8]) -> Option<KeyBuilder> {
        let Some(kind) = json(headers).filter(|_| !body.is_empty()) else {
            // What the bytes mean depends on these.
            let meaning = |name| headers.get(name).map_or(&b""[..], |value| value.as_bytes());
            return Some(
                key.part("bytes").part(meaning(CONTENT_TYPE)).part(meaning(CONTENT_ENCODING)).part(body),
            );
        };
        SCRATCH.with(|kept| {
            let mut scratch = kept.take();
            let json = canonical::of(body, &self.exceptions, &mut scratch);
            let key = json.map(|json| key.part("json").part(kind).part(json));
            if scratch.weight() <= MOST_SCRATCH {
                kept.set(scratch);
            }
            key
        })
    }
}

thread_local! {
    /// Room to work in, so that nothing is allocated for most requests.
    static SCRATCH: Cell<Scratch> = const { Cell::new(Scratch::new()) };
}

/// What a thread keeps at most, in bytes.
const MOST_SCRATCH: usize = 256 << 10;

/// What asks for a part, or sets a condition. An event source that comes back asks for what it has missed.
const CONDITIONS: [HeaderName; 7] = [
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    HeaderName::from_static("last-event-id"),
];

/// Which kind of JSON the body is, if it is any: nothing for `application/json` as such, or else as it is written.
fn json(headers: &HeaderMap) -> Option<&[u8]> {
    let whole = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let (kind, parameters) = whole.split_once(';').unwrap_or((whole, ""));
    let (kind, parameters) = (kind.trim(), parameters.trim());
    let ends = |with: &str| {
        let start = kind.len().checked_sub(with.len());
        start.is_some_and(|start| kind.as_bytes()[start..].eq_ignore_ascii_case(with.as_bytes()))
    };
    if headers.contains_key(CONTENT_ENCODING) || !(ends("/json") || ends("+json")) {
        return None;
    }
    let says_nothing = ["", "charset=utf-8", "charset=\"utf-8\""];
    let is_plain = kind.eq_ignore_ascii_case("application/json")
        && says_nothing.iter().any(|nothing| parameters.eq_ignore_ascii_case(nothing));
    Some(if is_plain { b"" } else { whole.as_bytes() })
}

impl<F: Clone> Clone for RequestKey<F> {
    fn clone(&self) -> Self {
        let Self { scope, headers, exceptions, max_body } = self;
        Self {
            scope: scope.clone(),
            headers: headers.clone(),
            exceptions: exceptions.clone(),
            max_body: *max_body,
        }
    }
}

impl<F> fmt::Debug for RequestKey<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestKey")
            .field("headers", &self.headers)
            .field("max_body", &self.max_body)
            .finish_non_exhaustive()
    }
}
