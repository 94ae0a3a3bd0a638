//! What a limiter says over HTTP, and what it hears there (feature `http`).

use std::{borrow::Borrow, error::Error, fmt::Write, hash::Hash, time::Duration};

use bartizan_core::headers::{self, ceil_seconds};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tokio::time::Instant;

use crate::{
    RateLimitLayer,
    after::Charge,
    cells::Seen,
    error::Refusal,
    rules::{Claims, Refused, Rules, RulesFor, with_claims},
    stake::{Asking, Stakes},
};

impl<R, M, E> RateLimitLayer<R, M, E> {
    /// Responses and refusals tell what is left, as the IETF's draft on rate-limit headers has it:
    /// `RateLimit-Policy: "default";q=100;w=60` is what a limit holds and in how many seconds all of it is there again,
    /// `RateLimit: "default";r=12;t=40` what is left and for how many seconds it has to do. With several limits each
    /// is told.
    ///
    /// `RejectionLayer` writes a refusal's headers. The user's key functions are asked twice for a call.
    #[must_use]
    pub fn headers(self) -> RateLimitLayer<Told<R>, M, E> {
        let rules = Told { rules: self.rules, legacy: false };
        RateLimitLayer { rules, mode: self.mode, extent: self.extent }
    }
}

impl<R, M, E> RateLimitLayer<Told<R>, M, E> {
    /// Tells `X-RateLimit-Limit`, `X-RateLimit-Remaining` and `X-RateLimit-Reset` (in seconds) as well: those of the
    /// limit of which least is left.
    #[must_use]
    pub fn legacy_headers(mut self) -> Self {
        self.rules.legacy = true;
        self
    }
}

/// How long an upstream's own limit is spent, as it says itself: for [`Rule::hold_when`](crate::Rule::hold_when).
///
/// A 429 or 503 says so by any header that `bartizan_core::headers::retry_after` reads, any other response by a
/// rate-limit dimension that has nothing remaining. `None` for an error.
///
/// ```
/// use std::time::Duration;
/// use http::Response;
///
/// let refused = Response::builder().status(429).header("retry-after", "7").body(()).unwrap();
/// assert_eq!(bartizan_rate_limit::exhausted(Ok(&refused)), Some(Duration::from_secs(7)));
///
/// let last = Response::builder()
///     .header("x-ratelimit-remaining-requests", "0")
///     .header("x-ratelimit-reset-requests", "6m0s")
///     .body(())
///     .unwrap();
/// assert_eq!(bartizan_rate_limit::exhausted(Ok(&last)), Some(Duration::from_secs(360)));
/// ```
pub fn exhausted<B>(result: Result<&Response<B>, &(dyn Error + 'static)>) -> Option<Duration> {
    let response = result.ok()?;
    let refused =
        matches!(response.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE);
    match headers::retry_after(response.headers()) {
        bartizan_core::RetryAfter::After(wait) if refused => Some(wait),
        _ => headers::exhausted(response.headers()),
    }
}

/// Rules whose calls are told what is left. [`RateLimitLayer::headers`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Told<R> {
    rules: R,
    legacy: bool,
}

impl<R> Told<R> {
    fn headers<Req>(&self, kept: &R::Kept, request: &Req) -> HeaderMap
    where
        R: Rules<Req>,
    {
        with_claims(&self.rules, kept, request, |stakes| write(stakes, self.legacy))
    }
}

impl<Req, R: Rules<Req>> Rules<Req> for Told<R> {
    type Kept = R::Kept;

    fn keep(&self, request: &Req) -> R::Kept {
        self.rules.keep(request)
    }

    fn claims(&self, kept: &R::Kept, request: &Req, show: &mut dyn FnMut(Claims<'_>)) {
        self.rules.claims(kept, request, show);
    }

    fn tell(&self, Refused(refusal): Refused, kept: &R::Kept, request: &Req) -> Refused {
        let headers = Some(Box::new(self.headers(kept, request)));
        Refused(Refusal { headers, ..refusal })
    }
}

impl<Req, B, R> RulesFor<Req, Response<B>> for Told<R>
where
    R: RulesFor<Req, Response<B>>,
{
    type Charge = Telling<R::Charge>;

    fn admit(&self, request: &Req) -> Result<Self::Charge, Refused> {
        match self.rules.admit(request) {
            Ok(charge) => {
                let headers = self.headers(&self.rules.keep(request), request);
                Ok(Telling { charge, headers })
            }
            Err(refused) => Err(self.tell(refused, &self.rules.keep(request), request)),
        }
    }

    fn charge(&self, kept: &R::Kept, request: &Req) -> Self::Charge {
        let charge = self.rules.charge(kept, request);
        Telling { charge, headers: self.headers(kept, request) }
    }
}

/// A charge, and what was left when it was made.
#[doc(hidden)]
#[derive(Debug)]
pub struct Telling<C> {
    charge: C,
    headers: HeaderMap,
}

impl<B, C: Charge<Response<B>>> Charge<Response<B>> for Telling<C> {
    type Guard = C::Guard;

    fn answered(self, response: &mut Response<B>) -> Self::Guard {
        let guard = self.charge.answered(response);
        response.headers_mut().extend(self.headers);
        guard
    }

    fn failed(self, error: &(dyn Error + 'static)) {
        self.charge.failed(error);
    }
}

/// What a limit has to say of a call's key.
pub(crate) struct Report {
    name: String,
    capacity: u64,
    /// Nanoseconds in which all of it is there again.
    period: u64,
    remaining: u64,
    /// Nanoseconds for which that has to do.
    reset: u64,
}

impl Report {
    pub(crate) fn of<K, Q>(asking: &Asking<'_, K, Q>, now: Instant) -> Self
    where
        K: Hash + Eq + Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let now = asking.limiter.nanos(now);
        let Seen { terms, level, wait, .. } = asking.limiter.see(&asking.asked, now);
        let reset = if level.remaining == 0 { wait } else { level.reset_after };
        let name = asking.limiter.name().replace(|c: char| !(' '..='~').contains(&c), "_");
        let name = name.replace('\\', "\\\\").replace('"', "\\\"");
        let (capacity, period) = (terms.policy.capacity(), terms.policy.period());
        Self { name, capacity, period, remaining: level.remaining, reset }
    }
}

fn seconds(nanos: u64) -> u64 {
    ceil_seconds(Duration::from_nanos(nanos))
}

fn write(stakes: &Stakes<'_>, legacy: bool) -> HeaderMap {
    let now = Instant::now();
    let (mut policies, mut limits) = (String::new(), String::new());
    let mut least: Option<Report> = None;
    for stake in stakes.iter().flatten() {
        let report = stake.report(now);
        let Report { name, capacity, period, remaining, reset } = &report;
        let comma = if policies.is_empty() { "" } else { ", " };
        let _ = write!(policies, "{comma}\"{name}\";q={capacity};w={}", seconds(*period));
        let _ = write!(limits, "{comma}\"{name}\";r={remaining};t={}", seconds(*reset));
        if least.as_ref().is_none_or(|least| (*remaining, least.reset) < (least.remaining, *reset)) {
            least = Some(report);
        }
    }
    let mut headers = HeaderMap::new();
    let Some(Report { capacity, remaining, reset, .. }) = least else { return headers };
    let text = |text: String| HeaderValue::try_from(text).expect("printable ASCII");
    headers.insert(HeaderName::from_static("ratelimit-policy"), text(policies));
    headers.insert(HeaderName::from_static("ratelimit"), text(limits));
    if legacy {
        headers.insert(HeaderName::from_static("x-ratelimit-limit"), capacity.into());
        headers.insert(HeaderName::from_static("x-ratelimit-remaining"), remaining.into());
        headers.insert(HeaderName::from_static("x-ratelimit-reset"), seconds(reset).into());
    }
    headers
}
