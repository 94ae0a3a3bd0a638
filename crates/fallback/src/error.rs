use std::{error::Error, fmt, sync::Arc};

use bartizan_core::RetryAfter;

/// Why a request went unanswered: who was asked and failed, in order, and who was not asked.
///
/// The `source` of the [`Rejected`](bartizan_core::Rejected) with which a fallback refuses. Its own source is the last
/// cause.
#[derive(Clone, Debug)]
pub struct Exhausted {
    pub(crate) why: Why,
    pub(crate) attempts: Vec<Attempt>,
    pub(crate) skipped: Vec<Skipped>,
}

/// What ended a request's way through the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// Everybody who could be asked was, and failed.
    Failed,
    /// As many were asked as may be.
    Attempts,
    /// The request could not be copied, so it was sent once.
    NotCloned,
    /// The time was over, or too little was left for a further call.
    Deadline,
    /// Nobody was ready.
    NoTarget,
}

impl Exhausted {
    /// What ended it.
    pub const fn why(&self) -> Why {
        self.why
    }

    /// Who was asked, and why they failed, in order.
    pub fn attempts(&self) -> &[Attempt] {
        &self.attempts
    }

    /// Who was not asked, in order.
    pub fn skipped(&self) -> &[Skipped] {
        &self.skipped
    }

    /// The outermost `Exhausted` in the chain of sources that starts at `error`, `error` itself included.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        bartizan_core::chain(error).find_map(|error| error.downcast_ref())
    }
}

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.why {
            Why::Failed => "every target failed",
            Why::Attempts => "no further attempt is left",
            Why::NotCloned => "the request can be sent only once",
            Why::Deadline => "out of time",
            Why::NoTarget => "no target is ready",
        })?;
        let mut begin = " (";
        for attempt in &self.attempts {
            write!(f, "{begin}{}: {}", attempt.name, attempt.cause)?;
            begin = "; ";
        }
        for skipped in &self.skipped {
            write!(f, "{begin}{} was skipped", skipped.name)?;
            begin = "; ";
        }
        if begin == " (" { Ok(()) } else { f.write_str(")") }
    }
}

impl Error for Exhausted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.attempts.last()?.cause())
    }
}

/// A target that was asked and failed.
#[derive(Clone)]
pub struct Attempt {
    pub(crate) name: Arc<str>,
    pub(crate) cause: Arc<dyn Error + Send + Sync>,
    pub(crate) retry_after: RetryAfter,
}

impl Attempt {
    /// The target.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Why it failed: its error, or what is left of its response.
    pub fn cause(&self) -> &(dyn Error + 'static) {
        &*self.cause
    }

    /// When it may be asked again, if it said so.
    pub const fn retry_after(&self) -> RetryAfter {
        self.retry_after
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Attempt").field(&self.name).field(&self.cause).finish()
    }
}

/// A target that was not asked.
#[derive(Clone)]
pub struct Skipped {
    pub(crate) name: Arc<str>,
    pub(crate) aside: bool,
    pub(crate) error: Option<Arc<dyn Error + Send + Sync>>,
}

impl Skipped {
    /// The target.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it was to be left alone, for it had said so. Otherwise it was not ready.
    pub const fn is_aside(&self) -> bool {
        self.aside
    }

    /// The error with which it was not ready, if it was one.
    pub fn error(&self) -> Option<&(dyn Error + 'static)> {
        Some(self.error.as_deref()?)
    }
}

impl fmt::Debug for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Skipped")
            .field("name", &self.name)
            .field("aside", &self.aside)
            .field("error", &self.error)
            .finish()
    }
}

/// The cause of a target that panicked.
#[derive(Clone, Debug)]
pub struct Panicked {
    pub(crate) message: String,
}

impl Panicked {
    /// What the panic said, if it was text.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the target panicked: {}", self.message)
    }
}

impl Error for Panicked {}

/// The cause where a response counts as a failure and nothing is known of responses.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct FailedResult;

impl fmt::Display for FailedResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the response counts as a failure")
    }
}

impl Error for FailedResult {}
