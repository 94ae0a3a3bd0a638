use std::time::Duration;

/// How much one request may cost, and how far upstreams are believed.
///
/// ```
/// use std::time::Duration;
/// use bartizan_fallback::Settings;
///
/// let second = Duration::from_secs(1);
/// // Three calls and ten seconds for a request; a call is not begun with less than one second left.
/// let settings = Settings::new().attempts(3).within(10 * second).min_attempt(second);
/// # let _ = settings;
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) attempts: u32,
    pub(crate) within: Option<Duration>,
    pub(crate) min_attempt: Duration,
    pub(crate) ready_within: Duration,
    pub(crate) longest_retry_after: Duration,
}

impl Settings {
    /// Every target once, without a limit of time.
    pub const fn new() -> Self {
        Self {
            attempts: u32::MAX,
            within: None,
            min_attempt: Duration::ZERO,
            ready_within: Duration::ZERO,
            longest_retry_after: Duration::from_secs(3600),
        }
    }

    /// How many targets are called for one request, at most. By default all of them. A skipped one is not called.
    #[must_use]
    pub const fn attempts(mut self, most: u32) -> Self {
        self.attempts = most;
        self
    }

    /// How long one request may take, all its targets together, until it is answered (a stream: until it has begun). By
    /// default as long as it takes.
    ///
    /// A call that is under way then is dropped.
    #[must_use]
    pub const fn within(mut self, time: Duration) -> Self {
        self.within = Some(time);
        self
    }

    /// With less time left than this no further call is begun. Zero by default.
    #[must_use]
    pub const fn min_attempt(mut self, time: Duration) -> Self {
        self.min_attempt = time;
        self
    }

    /// How long a target may take to become ready before it is skipped. Zero by default: it is asked once.
    #[must_use]
    pub const fn ready_within(mut self, time: Duration) -> Self {
        self.ready_within = time;
        self
    }

    /// How much of a target's `Retry-After` is believed. An hour by default; zero ignores it.
    #[must_use]
    pub const fn longest_retry_after(mut self, longest: Duration) -> Self {
        self.longest_retry_after = longest;
        self
    }

    /// Panics at what can never work.
    pub(crate) fn check(&self) {
        assert!(self.attempts > 0, "a fallback with 0 attempts never asks anybody");
        if let Some(within) = self.within {
            assert!(!within.is_zero(), "a fallback within no time never asks anybody");
            let least = self.min_attempt;
            assert!(
                least <= within,
                "a fallback within {within:?} never asks anybody if a call needs {least:?}"
            );
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}
