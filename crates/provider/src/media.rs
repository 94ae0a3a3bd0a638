//! Content types, as far as they decide what to do.

use http::{HeaderMap, header::CONTENT_TYPE};

pub(crate) fn is_event_stream(headers: &HeaderMap) -> bool {
    essence(headers).is_some_and(|essence| essence.eq_ignore_ascii_case("text/event-stream"))
}

/// `application/json` and whatever says that it is JSON underneath: `application/problem+json`.
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    let Some((kind, subtype)) = essence(headers).and_then(|essence| essence.split_once('/')) else {
        return false;
    };
    kind.eq_ignore_ascii_case("application")
        && subtype.rsplit('+').next().is_some_and(|syntax| syntax.eq_ignore_ascii_case("json"))
}

/// The content type without its parameters.
fn essence(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next().unwrap_or(value).trim())
}
