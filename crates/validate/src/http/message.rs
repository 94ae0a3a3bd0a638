use http::{
    HeaderMap, HeaderValue, Request, Response,
    header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body::Body;

use super::scan::scan;
use crate::{Found, Rule};

/// A request or a response whose body is there: what rules for bodies look at.
pub trait Message {
    /// Its headers.
    fn headers(&self) -> &HeaderMap;

    /// The bytes of its body.
    fn body(&self) -> &[u8];
}

impl<B: AsRef<[u8]>> Message for Request<B> {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn body(&self) -> &[u8] {
        self.body().as_ref()
    }
}

impl<B: AsRef<[u8]>> Message for Response<B> {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn body(&self) -> &[u8] {
        self.body().as_ref()
    }
}

/// Why no rule can look into the body, if none can: it is coded (compressed, say), or no UTF-8 by its own account.
pub(crate) fn uncheckable(headers: &HeaderMap) -> Option<&'static str> {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    if codings.any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Some("a body with a content coding cannot be checked");
    }
    if headers.get_all(CONTENT_TYPE).iter().any(|value| !is_utf8(value)) {
        return Some("a body in a character set other than UTF-8 cannot be checked");
    }
    None
}

/// Whether a content type names no character set, or one of which UTF-8 is true.
fn is_utf8(content_type: &HeaderValue) -> bool {
    let Ok(value) = content_type.to_str() else { return true };
    let mut parameters = value.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    parameters.all(|(name, value)| {
        let value = value.trim().trim_matches(['"', '\'']);
        !name.trim().eq_ignore_ascii_case("charset")
            || ["utf-8", "utf8", "us-ascii"].iter().any(|known| known.eq_ignore_ascii_case(value))
    })
}

/// How many bytes a body has at least, as far as anybody said.
pub(super) fn declared<B: Body>(headers: &HeaderMap, body: &B) -> u64 {
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    body.size_hint().lower().max(length.unwrap_or(0))
}

/// The content type without its parameters; empty if there is none, or more than one.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    let mut values = headers.get_all(CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return "" };
    value.to_str().unwrap_or_default().split(';').next().unwrap_or_default().trim()
}

/// A rule: the body has at most this many bytes.
///
/// The layer sees a body that is there already. What bounds how much is read is [`GatherLayer`](crate::GatherLayer) or the
/// server, and [`Validator::whole`](crate::Validator::whole) for responses.
pub const fn max_bytes<M: Message>(max: usize) -> impl Rule<M> + Copy + Send + Sync + 'static {
    move |message: &M, found: &mut Found<'_>| {
        if message.body().len() > max {
            found.violation("", format!("the body is longer than {max} bytes"));
        }
    }
}

/// A rule: the content type is one of these, whatever its parameters and the case of its letters. One that is missing is
/// none of them, and neither are two.
pub fn content_type<M: Message>(
    allowed: impl IntoIterator<Item: Into<String>>,
) -> impl Rule<M> + Clone + Send + Sync + 'static {
    let allowed: Vec<String> = allowed.into_iter().map(Into::into).collect();
    move |message: &M, found: &mut Found<'_>| {
        let media_type = media_type(message.headers());
        if !allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(media_type)) {
            found.violation("", format!("the content type is none of {}", allowed.join(", ")));
        }
    }
}

/// A rule: the body is JSON (RFC 8259) in UTF-8, with at most `max_depth` arrays and objects inside each other.
///
/// One pass without recursion that builds nothing. A body that is not is malformed, which refuses at every level; so is
/// one with a content coding or a character set other than UTF-8. The content type is not looked at.
///
/// ```
/// use bartizan_validate::{Level, Rules, well_formed};
/// use http::Request;
///
/// let rules = Rules::new().error("json", well_formed(2));
/// let of = |body: &'static str| rules.check(&Request::new(body), Level::Lenient);
/// assert!(of(r#"{"a":[1, 2]}"#).is_clean());
/// assert!(of(r#"{"a":[[1]]}"#).is_malformed(), "nested too deep");
/// assert!(of(r#"{"a":NaN}"#).refuses(), "at every level");
/// ```
pub const fn well_formed<M: Message>(max_depth: usize) -> impl Rule<M> + Copy + Send + Sync + 'static {
    move |message: &M, found: &mut Found<'_>| {
        if let Some(why) = uncheckable(message.headers()) {
            found.malformed(why);
        } else if let Err(flaw) = scan(message.body(), max_depth) {
            found.malformed(flaw.to_string());
        }
    }
}

/// Has a rule for text look at the body as it stands.
///
/// A body that is not UTF-8, by its bytes or its own account, or has a content coding cannot be checked: it is malformed. Of JSON, escapes (`\u0041`) are
/// seen as they are written, so what hides behind one is missed: `strings` and `at` (feature `json`) look at what they
/// say.
pub const fn text<M: Message, R: Rule<str> + Send + Sync + 'static>(
    rule: R,
) -> impl Rule<M> + Send + Sync + 'static {
    move |message: &M, found: &mut Found<'_>| {
        if let Some(why) = uncheckable(message.headers()) {
            return found.malformed(why);
        }
        match str::from_utf8(message.body()) {
            Ok(text) => rule.check(text, found),
            Err(_) => found.malformed("a body that is not UTF-8 cannot be checked"),
        }
    }
}
