use std::time::Duration;

use crate::{Measure, Quota, Window, policy::Policy};

/// A quota or a window, with the name that refusals tell and the number of keys that it is kept for.
///
/// ```
/// use bartizan_rate_limit::{Limit, Quota, RateLimiter};
///
/// let limit = Limit::new("tenant-minute", Quota::per_minute(60)).max_keys(10_000);
/// let limiter: RateLimiter<String> = RateLimiter::keyed(limit);
/// ```
#[derive(Clone, Debug)]
pub struct Limit {
    pub(crate) name: Box<str>,
    pub(crate) measure: Measure,
    pub(crate) max_keys: usize,
}

impl Measure {
    pub(crate) fn policy(self) -> Policy {
        match self {
            Self::Quota(quota) => Policy::Gcra(quota.gcra()),
            Self::Window(window) => window.policy(since_1970),
        }
    }
}

impl Limit {
    /// A limit of this name: a [`Quota`] or a [`Window`].
    pub fn new(name: impl Into<Box<str>>, what: impl Into<Self>) -> Self {
        Self { name: name.into(), ..what.into() }
    }

    /// How many keys are remembered at most. 1,000,000 by default.
    ///
    /// A key that is full again cannot be told from one that never came, and is dropped when room is needed; no other
    /// ever is. When so many keys are not full, a call with a further key is refused until the first of them is.
    ///
    /// # Panics
    ///
    /// If `keys` is 0.
    #[must_use]
    pub fn max_keys(mut self, keys: usize) -> Self {
        assert!(keys > 0, "a rate limiter for 0 keys lets nothing pass");
        self.max_keys = keys;
        self
    }
}

impl From<Quota> for Limit {
    /// A limit named `default`.
    fn from(quota: Quota) -> Self {
        Self { name: "default".into(), measure: Measure::Quota(quota), max_keys: 1_000_000 }
    }
}

impl From<Window> for Limit {
    /// A limit named `default`.
    fn from(window: Window) -> Self {
        Self { name: "default".into(), measure: Measure::Window(window), max_keys: 1_000_000 }
    }
}

fn since_1970() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
