//! Refusals as gRPC statuses.

use http::Response;
use tonic::{Code, Status, metadata::MetadataMap};
use tonic_types::{ErrorDetails, StatusExt};

use crate::{BoxError, Rejected, RejectionKind, RejectionLayer, RetryAfter, rejected::chain};

/// The status that tells a gRPC client what `error` is.
///
/// A [`Rejected`] in the error's chain chooses the code; its wait rides along as `google.rpc.RetryInfo` and its headers
/// as metadata:
///
/// | kind | code |
/// |---|---|
/// | `RateLimited`, `ExceedsCapacity`, `QueueFull`, `QueueTimeout` | 8 `RESOURCE_EXHAUSTED` |
/// | `CircuitOpen`, `Unhealthy`, `Exhausted`, `Lagged`, `Closed` | 14 `UNAVAILABLE` |
/// | `Invalid` | 3 `INVALID_ARGUMENT` |
/// | `Deadline` | 4 `DEADLINE_EXCEEDED` |
/// | `Conflict` | 10 `ABORTED` |
/// | `InvalidAnswer`, `Panicked`, `Protocol` | 13 `INTERNAL` |
///
/// A `tonic::Status` in the chain is given as it is; anything else is 13 `INTERNAL` without its text.
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::{Rejected, RejectionKind, RetryAfter, grpc};
/// use tonic_types::StatusExt;
///
/// let wait = Duration::from_millis(1500);
/// let refusal = Rejected::new(RejectionKind::RateLimited, "rate-limit").with_retry_after(RetryAfter::After(wait));
/// let status = grpc::status(&refusal);
/// assert_eq!(status.code(), tonic::Code::ResourceExhausted);
/// assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(wait));
/// ```
pub fn status(error: &(dyn std::error::Error + 'static)) -> Status {
    if let Some(rejected) = Rejected::find(error) {
        let code = of_kind(rejected.kind());
        let mut status = match rejected.retry_after() {
            RetryAfter::After(wait) => Status::with_error_details(
                code,
                rejected.to_string(),
                ErrorDetails::with_retry_info(Some(wait)),
            ),
            RetryAfter::Never | RetryAfter::Unknown => Status::new(code, rejected.to_string()),
        };
        if let Some(headers) = rejected.headers() {
            let mut all = std::mem::take(status.metadata_mut()).into_headers();
            all.extend(headers.clone());
            *status.metadata_mut() = MetadataMap::from_headers(all);
        }
        return status;
    }
    chain(error)
        .find_map(|error| error.downcast_ref::<Status>().cloned())
        .unwrap_or_else(|| Status::new(Code::Internal, "internal error"))
}

impl RejectionLayer<fn(BoxError) -> Response<tonic::body::Body>> {
    /// Errors become gRPC statuses, as [`status`] says: for a stack in front of a tonic server.
    pub const fn grpc() -> Self {
        Self::new(|error| status(&*error).into_http())
    }
}

fn of_kind(kind: RejectionKind) -> Code {
    match kind {
        RejectionKind::RateLimited
        | RejectionKind::ExceedsCapacity
        | RejectionKind::QueueFull
        | RejectionKind::QueueTimeout => Code::ResourceExhausted,
        RejectionKind::CircuitOpen
        | RejectionKind::Unhealthy
        | RejectionKind::Exhausted
        | RejectionKind::Lagged
        | RejectionKind::Closed => Code::Unavailable,
        RejectionKind::Invalid => Code::InvalidArgument,
        RejectionKind::Deadline => Code::DeadlineExceeded,
        RejectionKind::Conflict => Code::Aborted,
        // Not one of those that clients try again by themselves: the answer costs as much a second time.
        RejectionKind::InvalidAnswer | RejectionKind::Panicked | RejectionKind::Protocol => Code::Internal,
    }
}
