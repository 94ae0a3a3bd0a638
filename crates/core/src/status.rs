use std::error::Error;

use http::{Response, StatusCode};

use crate::{Class, Classify, classify::of_error, headers};

/// Every error is a failure, and so is every response whose status is transient: 408, 425, 429, 500, 502, 503, 504.
///
/// A failure carries the upstream's `Retry-After`, in any of the forms that [`headers::retry_after`] reads. Other
/// statuses, 4xx included, are successes: the service did its work. A [`Rejected`](crate::Rejected) counts as
/// [it says itself](crate::Rejected::class).
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::{Class, Classify, RetryAfter, server_errors};
/// use http::Response;
///
/// let judge = server_errors();
/// let busy = Response::builder().status(503).header("retry-after", "7").body(()).unwrap();
/// let mistake = Response::builder().status(400).body(()).unwrap();
/// assert_eq!(judge.classify(Ok(&busy)), Class::Failure(RetryAfter::After(Duration::from_secs(7))));
/// assert_eq!(judge.classify(Ok(&mistake)), Class::Success);
/// ```
pub const fn server_errors() -> ServerErrors {
    ServerErrors
}

/// Every error is a failure, and so is every response for whose status `predicate` holds.
///
/// Otherwise as [`server_errors`].
///
/// ```
/// use bartizan_core::{Class, Classify, RetryAfter, failure_status};
/// use http::Response;
///
/// let judge = failure_status(|status| status == 404);
/// let missing = Response::builder().status(404).body(()).unwrap();
/// assert_eq!(judge.classify(Ok(&missing)), Class::Failure(RetryAfter::Unknown));
/// ```
pub const fn failure_status<F>(predicate: F) -> FailureStatus<F>
where
    F: Fn(StatusCode) -> bool,
{
    FailureStatus(predicate)
}

/// The classifier made by [`server_errors`].
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerErrors;

impl<B> Classify<Response<B>> for ServerErrors {
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        judge(result, headers::is_transient)
    }
}

/// The classifier made by [`failure_status`].
#[derive(Clone, Copy, Debug)]
pub struct FailureStatus<F>(F);

impl<B, F> Classify<Response<B>> for FailureStatus<F>
where
    F: Fn(StatusCode) -> bool,
{
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        judge(result, &self.0)
    }
}

fn judge<B>(
    result: Result<&Response<B>, &(dyn Error + 'static)>,
    failed: impl Fn(StatusCode) -> bool,
) -> Class {
    match result {
        Ok(response) if failed(response.status()) => Class::Failure(headers::retry_after(response.headers())),
        Ok(_) => Class::Success,
        Err(error) => of_error(error),
    }
}
