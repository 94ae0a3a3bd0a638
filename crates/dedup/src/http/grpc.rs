//! What gRPC says of how a call went. In HTTP each has the status 200.

use http::HeaderMap;

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Good,
    /// The same call may fare better later.
    Failure,
    /// It will not.
    Refusal,
}

/// What these headers, or trailers, say of it; `None` if they do not.
pub(super) fn outcome(headers: &HeaderMap) -> Option<Outcome> {
    let status = headers.get("grpc-status")?.to_str().ok().and_then(|status| status.parse().ok());
    Some(match status {
        Some(0) => Outcome::Good,
        // Invalid, not found, there already, forbidden, not now, out of range, not implemented, and nobody known.
        Some(3 | 5 | 6 | 7 | 9 | 11 | 12 | 16) => Outcome::Refusal,
        // What is no number, or a new one, tells of no answer.
        _ => Outcome::Failure,
    })
}
