use std::error::Error;

use http::{Response, StatusCode};

use crate::{Explain, Fault, fault::of_error};

/// Explains responses with a status from 400 to 599 by it, as `http_503`, and errors as [`causes`](crate::causes) does.
///
/// ```
/// use bartizan_health::{Explain, statuses};
///
/// let busy = http::Response::builder().status(503).body(()).unwrap();
/// let fault = statuses().explain(Ok(&busy)).unwrap();
/// assert_eq!((fault.class(), fault.to_string()), ("http_503", "Service Unavailable".to_owned()));
/// ```
pub const fn statuses() -> Statuses {
    Statuses
}

/// The explanation made by [`statuses`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Statuses;

impl<B> Explain<Response<B>> for Statuses {
    fn explain<'a>(&self, result: Result<&'a Response<B>, &'a (dyn Error + 'static)>) -> Option<Fault<'a>> {
        let status = match result {
            Ok(response) => response.status(),
            Err(error) => return Some(of_error(error)),
        };
        let fault = Fault::new(class(status)?);
        Some(status.canonical_reason().map_or(fault, |reason| fault.text(reason)))
    }
}

/// Those that say something of the service have a class of their own.
fn class(status: StatusCode) -> Option<&'static str> {
    Some(match status.as_u16() {
        401 => "http_401",
        403 => "http_403",
        404 => "http_404",
        408 => "http_408",
        425 => "http_425",
        429 => "http_429",
        500 => "http_500",
        502 => "http_502",
        503 => "http_503",
        504 => "http_504",
        _ if status.is_client_error() => "http_4xx",
        _ if status.is_server_error() => "http_5xx",
        _ => return None,
    })
}
