//! What several requests have in common, and one of them all.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, header::CONTENT_TYPE};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{Facts, Operation};

/// An embedding request, as far as it matters for sharing a call with others.
///
/// ```
/// use bartizan_provider::Embedding;
/// use bytes::Bytes;
/// use http::Request;
///
/// let read = |body: &'static str| Embedding::read(&Request::post("/v1/embeddings").body(Bytes::from(body)).unwrap());
/// let one = read(r#"{"model":"m","input":"Hello","dimensions":8}"#).unwrap();
/// let two = read(r#"{"dimensions":8,"input":["Bonjour","Hallo"],"model":"m"}"#).unwrap();
/// assert_eq!((one.inputs(), two.inputs()), (1, 2));
/// assert_eq!(one.like(), two.like());
///
/// let longer = read(r#"{"model":"m","input":"Hello","dimensions":16}"#).unwrap();
/// assert_ne!(one.like(), longer.like());
/// assert!(read(r#"{"model":"m","input":[]}"#).is_none(), "let the upstream say what is wrong with it");
/// ```
#[derive(Clone)]
pub struct Embedding {
    /// What it was read from.
    body: Bytes,
    like: Arc<str>,
    inputs: usize,
    /// Where the value of `input` stands in the body.
    value: Range<usize>,
    /// Where its inputs stand, with the commas between them.
    list: Range<usize>,
}

impl Embedding {
    /// Takes a request apart. `None` if it is none that can share a call: its body is no JSON object, names something
    /// twice, or has an `input` that is no text, no list of tokens and no list of either.
    pub fn read(request: &Request<Bytes>) -> Option<Self> {
        if request.method() != Method::POST
            || Operation::of_path(request.uri().path()) != Operation::Embeddings
        {
            return None;
        }
        let body = request.body();
        let Fields(mut fields) = serde_json::from_slice(body).ok()?;
        fields.sort_by(|(a, _), (b, _)| a.cmp(b));
        if fields.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return None;
        }
        let (_, input) = fields.remove(fields.iter().position(|(name, _)| name.0 == "input")?);
        let (texts, inputs, inside) = inputs(input.get())?;
        // The raw value borrows from the body, so its address tells its place.
        let start = input.get().as_ptr().addr() - body.as_ptr().addr();
        let value = start..start + input.get().len();
        let list = start + inside.start..start + inside.end;

        let mut like = String::new();
        let mut add = |part: &str| like += &format!("{}:{part}", part.len());
        add(if texts { "texts" } else { "tokens" });
        add(&request.uri().to_string());
        for (name, value) in shared_headers(request.headers()) {
            add(name);
            add(value.to_str().ok()?);
        }
        for (name, value) in &fields {
            add(&name.0);
            add(value.get());
        }
        Some(Self { body: body.clone(), like: like.into(), inputs, value, list })
    }

    /// Requests of which this is equal differ in their inputs only: the model, the dimensions, the format, the user and
    /// whatever else their bodies say is the same, and so are the URL and the `openai-` headers. It is long; compare it.
    pub fn like(&self) -> &Arc<str> {
        &self.like
    }

    /// How many vectors are asked for, at least one.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Whether it was read from this very body.
    fn is_of(&self, body: &Bytes) -> bool {
        (self.body.as_ptr(), self.body.len()) == (body.as_ptr(), body.len())
    }

    /// How long its inputs are, in bytes.
    pub(super) fn length(&self) -> usize {
        self.list.len()
    }
}

/// Without the body, which is the caller's own.
impl fmt::Debug for Embedding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedding").field("inputs", &self.inputs).finish_non_exhaustive()
    }
}

/// Headers that say something about the call, and not about the client. In order.
fn shared_headers(headers: &HeaderMap) -> Vec<(&str, &HeaderValue)> {
    let ours = headers.iter().map(|(name, value)| (name.as_str(), value));
    let mut ours: Vec<_> = ours.filter(|(name, _)| name.starts_with("openai-")).collect();
    ours.sort_by_key(|(name, _)| *name);
    ours
}

/// Whether they are texts, how many there are, and where they stand in the value.
fn inputs(value: &str) -> Option<(bool, usize, Range<usize>)> {
    let all = 0..value.len();
    if value.starts_with('"') {
        return Some((true, 1, all));
    }
    let list: Vec<&RawValue> = serde_json::from_str(value).ok()?;
    let begin = |first: &str| list.iter().all(|item| item.get().starts_with(first));
    let numbers = || list.iter().all(|item| item.get().bytes().all(|byte| byte.is_ascii_digit()));
    // Without its brackets.
    let inside = 1..value.len() - 1;
    match list.len() {
        0 => None,
        inputs if begin("\"") => Some((true, inputs, inside)),
        inputs if begin("[") => Some((false, inputs, inside)),
        _ if numbers() => Some((false, 1, all)),
        _ => None,
    }
}

/// What each request is, if they can all be one.
pub(super) fn taken_apart(requests: &[Request<Bytes>]) -> Option<Vec<Embedding>> {
    let members: Option<Vec<_>> = requests
        .iter()
        .map(|request| {
            let read = request.extensions().get::<Embedding>().filter(|it| it.is_of(request.body()));
            read.cloned().or_else(|| Embedding::read(request))
        })
        .collect();
    members.filter(|members| members.windows(2).all(|pair| pair[0].like == pair[1].like))
}

/// The first request, with the inputs of all of them.
pub(super) fn merge(requests: &[Request<Bytes>], members: &[Embedding]) -> Request<Bytes> {
    let (first, whole) = (&requests[0], &members[0].value);
    let lists: Vec<_> =
        requests.iter().zip(members).map(|(it, member)| &it.body()[member.list.clone()]).collect();
    let (before, after) = (&first.body()[..whole.start], &first.body()[whole.end..]);
    let body = Bytes::from([before, b"[", &lists.join(&b","[..]), b"]", after].concat());

    let mut merged = Request::new(Bytes::new());
    *merged.method_mut() = first.method().clone();
    *merged.uri_mut() = first.uri().clone();
    merged.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    for (name, value) in first.headers() {
        if name.as_str().starts_with("openai-") {
            merged.headers_mut().append(name.clone(), value.clone());
        }
    }
    if let Ok(facts) = Facts::read(Operation::Embeddings, &body) {
        merged.extensions_mut().insert(facts);
    }
    *merged.body_mut() = body;
    merged
}

/// The fields of a JSON object, in their order.
#[derive(Debug)]
pub(super) struct Fields<'a>(pub(super) Vec<(Name<'a>, &'a RawValue)>);

/// Borrowed, unless it has escapes in it.
#[derive(Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Name<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(All)
    }
}
