use std::{error::Error, fmt, io, sync::Arc, time::Duration};

use crate::{BoxError, Class};

/// The one error with which every layer refuses a call.
///
/// It says what happened ([`kind`](Self::kind)), which layer says so ([`layer`](Self::layer)) and when to come back
/// ([`retry_after`](Self::retry_after)). The layer's own detail, if there is any, is the
/// [`source`](std::error::Error::source).
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
///
/// let refusal = Rejected::new(RejectionKind::RateLimited, "rate-limit")
///     .with_retry_after(RetryAfter::After(Duration::from_millis(1500)));
/// assert_eq!(refusal.to_string(), "rate-limit: rate limited, retry after 1.5s");
///
/// // Whatever was wrapped around it on the way up, another layer finds it again.
/// let seen: BoxError = std::io::Error::other(refusal).into();
/// let found = Rejected::find(&*seen).expect("there is a refusal in this chain");
/// assert_eq!(found.kind(), RejectionKind::RateLimited);
/// ```
pub struct Rejected {
    kind: RejectionKind,
    layer: &'static str,
    retry_after: RetryAfter,
    detail: Detail,
}

/// In one place, so that one look tells that there is none: most refusals say no more, and are made and dropped often.
enum Detail {
    None,
    Own(BoxError),
    Shared(Arc<dyn Error + Send + Sync>),
    #[cfg(feature = "http")]
    WithHeaders(Box<(Detail, http::HeaderMap)>),
}

impl Detail {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::None => None,
            Self::Own(error) => Some(&**error),
            Self::Shared(error) => Some(&**error),
            #[cfg(feature = "http")]
            Self::WithHeaders(both) => both.0.source(),
        }
    }

    /// Where the source stands, or is to.
    fn place(&mut self) -> &mut Self {
        match self {
            #[cfg(feature = "http")]
            Self::WithHeaders(both) => &mut both.0,
            detail => detail,
        }
    }
}

impl Rejected {
    /// A refusal by `layer`, which is the layer's name in kebab case (`"rate-limit"`).
    ///
    /// [`retry_after`](Self::retry_after) is [`RetryAfter::Unknown`] and there is no source until they are set.
    pub const fn new(kind: RejectionKind, layer: &'static str) -> Self {
        Self { kind, layer, retry_after: RetryAfter::Unknown, detail: Detail::None }
    }

    /// Says when the same call may be worth making again.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: RetryAfter) -> Self {
        self.retry_after = retry_after;
        self
    }

    /// Adds the layer's own detail: violations, attempts, the policy that was hit.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<BoxError>) -> Self {
        *self.detail.place() = Detail::Own(source.into());
        self
    }

    /// [`with_source`](Self::with_source) for a detail that all refusals of a limit share: nothing is allocated for it.
    #[must_use]
    pub fn with_shared_source(mut self, source: Arc<dyn Error + Send + Sync>) -> Self {
        *self.detail.place() = Detail::Shared(source);
        self
    }

    /// Adds headers that a response made from this refusal carries: what the layer says over HTTP beside `Retry-After`.
    #[cfg(feature = "http")]
    #[must_use]
    pub fn with_headers(mut self, headers: http::HeaderMap) -> Self {
        let source = std::mem::replace(self.detail.place(), Detail::None);
        self.detail = Detail::WithHeaders(Box::new((source, headers)));
        self
    }

    /// The headers for a response made from this refusal. `RejectionLayer` writes them by itself; `Retry-After` is not
    /// among them.
    #[cfg(feature = "http")]
    pub fn headers(&self) -> Option<&http::HeaderMap> {
        match &self.detail {
            Detail::WithHeaders(both) => Some(&both.1),
            _ => None,
        }
    }

    /// What happened.
    pub const fn kind(&self) -> RejectionKind {
        self.kind
    }

    /// The name of the layer that refused.
    pub const fn layer(&self) -> &'static str {
        self.layer
    }

    /// When the same call may be worth making again.
    pub const fn retry_after(&self) -> RetryAfter {
        self.retry_after
    }

    /// What this refusal says about the service below the layer that refused, for whoever counts.
    ///
    /// Most refusals say nothing about it: it was not asked, or the caller is to blame. Four say that it was asked and
    /// failed: see [`RejectionKind::is_failure`]. Those keep when to come back.
    ///
    /// ```
    /// use std::time::Duration;
    /// use bartizan_core::{Class, Rejected, RejectionKind, RetryAfter};
    ///
    /// let wait = RetryAfter::After(Duration::from_secs(7));
    /// let exhausted = Rejected::new(RejectionKind::Exhausted, "fallback").with_retry_after(wait);
    /// assert_eq!(exhausted.class(), Class::Failure(wait));
    /// assert_eq!(Rejected::new(RejectionKind::RateLimited, "rate-limit").class(), Class::Ignore);
    /// ```
    pub const fn class(&self) -> Class {
        if self.kind.is_failure() { Class::Failure(self.retry_after) } else { Class::Ignore }
    }

    /// The outermost refusal in the chain of sources that starts at `error`, `error` itself included.
    ///
    /// This is how a layer knows another's refusal without depending on it.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        chain(error).find_map(|error| error.downcast_ref())
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.layer, self.kind)?;
        match self.retry_after {
            RetryAfter::After(wait) => write!(f, ", retry after {wait:?}"),
            RetryAfter::Never => f.write_str(", and no later try will pass"),
            RetryAfter::Unknown => Ok(()),
        }
    }
}

impl fmt::Debug for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rejected")
            .field("kind", &self.kind)
            .field("layer", &self.layer)
            .field("retry_after", &self.retry_after)
            .field("source", &self.detail.source())
            .finish()
    }
}

impl Error for Rejected {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.detail.source()
    }
}

/// `error` and its sources, outermost first: where one looks for an error of one's own type.
///
/// An [`io::Error`] hides the error it was made from: its `source` is that error's source. Here it is shown, because
/// bodies and streams wrap whatever they carry in one.
///
/// ```
/// use std::{io, num::ParseIntError};
///
/// let error = io::Error::other("x".parse::<u8>().unwrap_err());
/// assert!(bartizan_core::chain(&error).any(|error| error.is::<ParseIntError>()));
/// ```
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    fn next<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
        match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped as _),
            None => error.source(),
        }
    }
    std::iter::successors(Some(error), |error| next(*error))
}

/// Why a layer refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// The quota is spent for now.
    RateLimited,
    /// The call costs more than the quota can ever hold.
    ExceedsCapacity,
    /// No place to wait is left.
    QueueFull,
    /// The call waited as long as it may.
    QueueTimeout,
    /// The circuit breaker is open, or half-open with all its probes taken.
    CircuitOpen,
    /// The request breaks a rule.
    Invalid,
    /// The answer of the service below breaks a rule. It says nothing about whether that service works: what a caller asks
    /// for decides what is answered, and no caller shall open a breaker for all others.
    InvalidAnswer,
    /// The component is known to be down.
    Unhealthy,
    /// Every target was tried and failed.
    Exhausted,
    /// The time for this call is used up.
    Deadline,
    /// The key is in use with another payload.
    Conflict,
    /// The shared execution that this call waited for panicked.
    Panicked,
    /// The inner service broke the layer's contract (a batch answered with the wrong number of results).
    Protocol,
    /// The caller read a shared stream too slowly.
    Lagged,
    /// The layer was shut down.
    Closed,
}

impl RejectionKind {
    /// Whether the service below was asked and failed, so that a breaker outside of the layer that refused must count it:
    /// [`Exhausted`](Self::Exhausted), [`Panicked`](Self::Panicked), [`Protocol`](Self::Protocol) and
    /// [`Deadline`](Self::Deadline).
    ///
    /// All others are the caller's doing or the refusing layer's: they tell nothing about the service.
    pub const fn is_failure(self) -> bool {
        match self {
            Self::Exhausted | Self::Panicked | Self::Protocol | Self::Deadline => true,
            Self::RateLimited
            | Self::ExceedsCapacity
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::CircuitOpen
            | Self::Invalid
            | Self::InvalidAnswer
            | Self::Unhealthy
            | Self::Conflict
            | Self::Lagged
            | Self::Closed => false,
        }
    }
}

impl fmt::Display for RejectionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RateLimited => "rate limited",
            Self::ExceedsCapacity => "costs more than the quota can hold",
            Self::QueueFull => "queue full",
            Self::QueueTimeout => "waited too long in the queue",
            Self::CircuitOpen => "circuit open",
            Self::Invalid => "invalid",
            Self::InvalidAnswer => "the answer is invalid",
            Self::Unhealthy => "unhealthy",
            Self::Exhausted => "every target failed",
            Self::Deadline => "out of time",
            Self::Conflict => "key in use with another payload",
            Self::Panicked => "the shared execution panicked",
            Self::Protocol => "the inner service broke its contract",
            Self::Lagged => "read too slowly",
            Self::Closed => "shut down",
        })
    }
}

/// When a refused or failed call may be worth making again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RetryAfter {
    /// Not before this much time has passed.
    After(Duration),
    /// Not at all: the same call can never pass.
    Never,
    /// Nobody said.
    #[default]
    Unknown,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn find_walks_to_the_outermost_refusal() {
        let inner = Rejected::new(RejectionKind::CircuitOpen, "circuit-breaker");
        let outer = Rejected::new(RejectionKind::Exhausted, "fallback").with_source(inner);
        let wrapped = std::io::Error::other(std::io::Error::other(outer));
        assert_eq!(Rejected::find(&wrapped).map(Rejected::kind), Some(RejectionKind::Exhausted));
        assert!(Rejected::find(&std::io::Error::other("nothing here")).is_none());
    }

    #[test]
    fn display_tells_layer_reason_and_wait() {
        let never =
            Rejected::new(RejectionKind::ExceedsCapacity, "rate-limit").with_retry_after(RetryAfter::Never);
        assert_eq!(
            never.to_string(),
            "rate-limit: costs more than the quota can hold, and no later try will pass"
        );
        assert_eq!(Rejected::new(RejectionKind::Closed, "batch").to_string(), "batch: shut down");
    }

    #[test]
    fn a_refusal_is_a_failure_where_the_service_was_asked() {
        use RejectionKind as K;
        let wait = RetryAfter::After(std::time::Duration::from_secs(7));
        let class = |kind| Rejected::new(kind, "layer").with_retry_after(wait).class();
        for kind in [K::Exhausted, K::Panicked, K::Protocol, K::Deadline] {
            assert_eq!(class(kind), Class::Failure(wait), "{kind}");
        }
        for kind in [
            K::RateLimited,
            K::ExceedsCapacity,
            K::QueueFull,
            K::QueueTimeout,
            K::CircuitOpen,
            K::Invalid,
            K::InvalidAnswer,
            K::Unhealthy,
            K::Conflict,
            K::Lagged,
            K::Closed,
        ] {
            assert_eq!(class(kind), Class::Ignore, "{kind}");
        }
    }

    #[test]
    fn source_is_the_layers_detail() {
        let refusal = Rejected::new(RejectionKind::Invalid, "validate").with_source("3 violations");
        assert_eq!(refusal.source().map(ToString::to_string).as_deref(), Some("3 violations"));
    }

    #[cfg(feature = "http")]
    #[test]
    fn headers_and_source_come_in_any_order() {
        let headers =
            || http::HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("it"))]);
        let new = || Rejected::new(RejectionKind::RateLimited, "rate-limit");
        let shared: Arc<dyn Error + Send + Sync> = Arc::from(BoxError::from("the last"));
        for refusal in [
            new().with_source("the last").with_headers(headers()),
            new().with_headers(headers()).with_shared_source(shared.clone()),
            new().with_source("the first").with_headers(headers()).with_source("the last"),
            new().with_headers(http::HeaderMap::new()).with_shared_source(shared).with_headers(headers()),
        ] {
            assert_eq!(refusal.source().map(ToString::to_string).as_deref(), Some("the last"));
            assert_eq!(refusal.headers().map(http::HeaderMap::len), Some(1));
        }
        assert!(new().with_headers(headers()).source().is_none());
        assert!(new().with_source("it").headers().is_none());
    }
}
