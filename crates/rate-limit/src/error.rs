use std::{fmt, sync::Arc, time::Duration};

use bartizan_core::{Rejected, RejectionKind, RetryAfter};

use crate::policy::Denied;

/// Which limit refused: the [`source`](std::error::Error::source) of a refusal.
///
/// ```
/// use bartizan_rate_limit::{Exceeded, Limit, Quota, RateLimiter};
/// use std::error::Error;
///
/// let limiter = RateLimiter::new(Limit::new("tokens", Quota::per_minute(10)));
/// let refusal = limiter.try_acquire(&(), 11).unwrap_err();
/// let detail = refusal.source().and_then(|source| source.downcast_ref::<Exceeded>()).unwrap();
/// assert_eq!((detail.limit(), detail.capacity()), ("tokens", 10));
/// ```
#[derive(Clone, Debug)]
pub struct Exceeded {
    pub(crate) limit: Box<str>,
    pub(crate) capacity: u64,
}

impl Exceeded {
    /// The name of the limit. If several refused, the one that has to be waited for longest.
    pub fn limit(&self) -> &str {
        &self.limit
    }

    /// The most that one call can cost there.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "limit {:?}, which holds {} at most", self.limit, self.capacity)
    }
}

impl std::error::Error for Exceeded {}

/// Why a call does not pass, before it becomes an error.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) kind: RejectionKind,
    pub(crate) retry_after: RetryAfter,
    pub(crate) detail: Arc<Exceeded>,
    #[cfg(feature = "http")]
    pub(crate) headers: Option<Box<http::HeaderMap>>,
}

impl Refusal {
    pub(crate) fn new(denied: Denied, detail: &Arc<Exceeded>) -> Self {
        let (kind, retry_after) = match denied {
            Denied::Never => (RejectionKind::ExceedsCapacity, RetryAfter::Never),
            Denied::Wait(nanos) => {
                (RejectionKind::RateLimited, RetryAfter::After(Duration::from_nanos(nanos)))
            }
        };
        Self {
            kind,
            retry_after,
            detail: detail.clone(),
            #[cfg(feature = "http")]
            headers: None,
        }
    }

    /// The same, for another reason.
    pub(crate) fn of_kind(self, kind: RejectionKind) -> Self {
        Self { kind, ..self }
    }
}

impl From<Refusal> for Rejected {
    fn from(refusal: Refusal) -> Self {
        let rejected = Self::new(refusal.kind, crate::NAME)
            .with_retry_after(refusal.retry_after)
            .with_shared_source(refusal.detail);
        #[cfg(feature = "http")]
        if let Some(headers) = refusal.headers {
            return rejected.with_headers(*headers);
        }
        rejected
    }
}
