use std::{
    collections::hash_map::RandomState,
    error::Error as StdError,
    fmt,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::{BoxError, Budget, Class as Outcome, Rejected, RetryAfter, headers};
use http::{HeaderValue, Request, Response};
use tokio::time::{Instant, Sleep, sleep};
use tower::retry::{Policy, budget::Budget as Share};

use crate::{Class, Error, error::SHOULD_RETRY};

/// When to ask an upstream again, and how soon: a policy for tower's `Retry`.
///
/// As OpenAI's own clients do: `x-should-retry` overrides all; then failures are tried again that may be better the next
/// time ([`Error::is_transient`], or by their status 408, 409, 429 and 5xx), after as long as the upstream says
/// (`retry-after-ms`, `Retry-After` and its relatives), or else after half a second, twice as long each time up to eight
/// seconds, less up to a quarter of it at random. What cannot succeed is not tried again: refused credentials, a quota that
/// is used up, a context that is too long, and an upstream that wants more patience than there is. A failure that was tried
/// again in vain says `x-should-retry: false`, or being an [`Error`] [`RetryAfter::Never`], or those clients would do it all
/// once more.
///
/// A [`Budget`] in the request's extensions bounds retries and fallbacks together: each further call takes one from it, and
/// none is made that would begin after its deadline. Refusals of other layers are not tried again, unless they say that the
/// service below has failed ([`Rejected::class`]).
///
/// Each attempt is a call of the service below, so put breakers and a `CommitLayer` there, and a fallback outside.
///
/// ```
/// use bartizan_core::{BoxError, Budget};
/// use bartizan_provider::{Provider, RetryPolicy, mock::{Mock, Script}};
/// use bytes::Bytes;
/// use http::Request;
/// use tower::{ServiceBuilder, ServiceExt};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), BoxError> {
/// let mock = Mock::new();
/// let service = ServiceBuilder::new()
///     .retry(RetryPolicy::new().retries(5))
///     .service(Provider::new(mock.service(), "http://mock.example/v1")?);
/// let hello = r#"{"model":"m","messages":[{"role":"user","content":"Hello"}]}"#;
/// let ask = || Request::post("/v1/chat/completions").body(Bytes::from(hello));
///
/// mock.script(Script::new().status(503));
/// assert_eq!(service.clone().oneshot(ask()?).await?.status(), 200);
/// assert_eq!(mock.calls(), 2);
///
/// // Whatever the policy says, this request has three calls in all.
/// mock.script_always(Script::new().status(503));
/// let mut request = ask()?;
/// request.extensions_mut().insert(Budget::new(3));
/// assert_eq!(service.clone().oneshot(request).await?.status(), 503);
/// assert_eq!(mock.calls(), 2 + 3);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RetryPolicy {
    left: u32,
    made: u32,
    first_delay: Duration,
    longest_delay: Duration,
    longest_retry_after: Duration,
    share: Option<Arc<dyn Share + Send + Sync>>,
}

impl RetryPolicy {
    /// Two retries.
    pub const fn new() -> Self {
        Self {
            left: 2,
            made: 0,
            first_delay: Duration::from_millis(500),
            longest_delay: Duration::from_secs(8),
            longest_retry_after: Duration::from_secs(60),
            share: None,
        }
    }

    /// How often a request is tried again, at most. Twice by default.
    #[must_use]
    pub const fn retries(mut self, most: u32) -> Self {
        self.left = most;
        self
    }

    /// How long to wait before the first retry, of an upstream that has not said. Half a second by default.
    ///
    /// The wait doubles with each further one, up to [`longest_delay`](Self::longest_delay), and is up to a quarter shorter
    /// at random.
    #[must_use]
    pub const fn first_delay(mut self, delay: Duration) -> Self {
        self.first_delay = delay;
        self
    }

    /// How long to wait at most, of an upstream that has not said. Eight seconds by default.
    #[must_use]
    pub const fn longest_delay(mut self, delay: Duration) -> Self {
        self.longest_delay = delay;
        self
    }

    /// An upstream that wants more time than this is not tried again. A minute by default.
    #[must_use]
    pub const fn longest_retry_after(mut self, wait: Duration) -> Self {
        self.longest_retry_after = wait;
        self
    }

    /// Bounds the retries of all requests together, to a share of them: a budget of tower's, such as `TpsBudget`. By
    /// default there is none.
    #[must_use]
    pub fn share(mut self, budget: Arc<dyn Share + Send + Sync>) -> Self {
        self.share = Some(budget);
        self
    }

    /// How long to wait for the next try; `None` if there is to be none.
    fn next<B>(&mut self, request: &Request<B>, said: Said) -> Option<Duration> {
        let wait = match said {
            Said::Fine => {
                self.share.iter().for_each(|share| share.deposit());
                return None;
            }
            Said::Never => return None,
            Said::Again(RetryAfter::Never) => return None,
            Said::Again(RetryAfter::After(wait)) if wait > self.longest_retry_after => return None,
            Said::Again(RetryAfter::After(wait)) => wait,
            Said::Again(RetryAfter::Unknown) => self.delay(),
        };
        if self.left == 0 {
            return None;
        }
        let budget: Option<&Budget> = request.extensions().get();
        if let Some(deadline) = budget.and_then(Budget::deadline)
            && Instant::now() + wait >= Instant::from_std(deadline)
        {
            return None;
        }
        // The budget of the request last: what is taken from it is used.
        if budget.is_some_and(|budget| budget.left() == 0)
            || self.share.as_ref().is_some_and(|share| !share.withdraw())
            || budget.is_some_and(|budget| !budget.again())
        {
            return None;
        }
        self.left -= 1;
        self.made = self.made.saturating_add(1);
        Some(wait)
    }

    /// The wait for the next try, or the last result, which tells if it was not the first.
    fn again<B, R: InVain, E: InVain>(
        &mut self,
        request: &Request<B>,
        said: Said,
        result: &mut Result<R, E>,
    ) -> Option<Sleep> {
        let wait = self.next(request, said);
        if wait.is_none() && self.made > 0 && matches!(said, Said::Again(_)) {
            match result {
                Ok(response) => response.tell(),
                Err(error) => error.tell(),
            }
        }
        wait.map(sleep)
    }

    /// tower shows results only of requests that could be made again. Of retries the last one is looked at, too.
    fn looks_at_next(&self) -> bool {
        self.left > 0 || self.made > 0
    }

    fn delay(&self) -> Duration {
        let doubled = self.first_delay.saturating_mul(1_u32.checked_shl(self.made).unwrap_or(u32::MAX));
        let delay = doubled.min(self.longest_delay);
        delay - delay.mul_f64(random() / 4.0)
    }
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryPolicy")
            .field("left", &self.left)
            .field("made", &self.made)
            .finish_non_exhaustive()
    }
}

/// What a result says about trying again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Said {
    /// It is an answer.
    Fine,
    /// It is a failure for good.
    Never,
    /// The next time may be better.
    Again(RetryAfter),
}

fn of_response<B>(response: &Response<B>) -> Said {
    let failure = || match response.extensions().get::<Arc<Error>>() {
        Some(error) if error.is_transient() => Said::Again(error.retry_after()),
        Some(_) => Said::Never,
        None if !Class::of_status(response.status()).is_transient() => Said::Never,
        None => Said::Again(headers::retry_after(response.headers())),
    };
    let status = response.status();
    match response.headers().get(&SHOULD_RETRY).map(HeaderValue::as_bytes) {
        Some(b"true") => Said::Again(headers::retry_after(response.headers())),
        Some(b"false") if status.is_client_error() || status.is_server_error() => Said::Never,
        _ if status.is_client_error() || status.is_server_error() => failure(),
        _ => Said::Fine,
    }
}

/// Whatever is wrapped around it: a layer that has refused would do so again, however its refusal was told.
fn of_error(error: &(dyn StdError + 'static)) -> Said {
    match (Rejected::find(error).map(Rejected::class), Error::find(error)) {
        (Some(Outcome::Failure(retry_after)), _) => Said::Again(retry_after),
        (Some(Outcome::Success | Outcome::Ignore), _) => Said::Never,
        (None, Some(error)) if error.is_transient() => Said::Again(error.retry_after()),
        (None, Some(_)) => Said::Never,
        // A transport's own: it did not get through.
        (None, None) => Said::Again(RetryAfter::Unknown),
    }
}

/// A failure that was tried again in vain. Whoever has made the call would only do what was done already.
trait InVain {
    fn tell(&mut self);
}

impl<R> InVain for Response<R> {
    fn tell(&mut self) {
        self.headers_mut().insert(SHOULD_RETRY, HeaderValue::from_static("false"));
    }
}

impl InVain for Error {
    fn tell(&mut self) {
        self.set_retry_after(RetryAfter::Never);
    }
}

impl InVain for BoxError {
    fn tell(&mut self) {
        if let Some(error) = self.downcast_mut::<Error>() {
            return error.tell();
        }
        // Told in its words, with what was wrapped around it. What others have refused is theirs to tell.
        if let Some(mut told) = Error::outermost(&**self).map(Error::retold) {
            told.tell();
            let error = std::mem::replace(self, BoxError::from(""));
            *self = told.with_source(error).into();
        }
    }
}

impl<B: Clone, R> Policy<Request<B>, Response<R>, BoxError> for RetryPolicy {
    type Future = Sleep;

    fn retry(
        &mut self,
        request: &mut Request<B>,
        result: &mut Result<Response<R>, BoxError>,
    ) -> Option<Sleep> {
        let said = result.as_ref().map_or_else(|error| of_error(&**error), of_response);
        self.again(request, said, result)
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        self.looks_at_next().then(|| request.clone())
    }
}

impl<B: Clone, R> Policy<Request<B>, Response<R>, Error> for RetryPolicy {
    type Future = Sleep;

    fn retry(&mut self, request: &mut Request<B>, result: &mut Result<Response<R>, Error>) -> Option<Sleep> {
        let said = result.as_ref().map_or_else(|error| of_error(error), of_response);
        self.again(request, said, result)
    }

    fn clone_request(&mut self, request: &Request<B>) -> Option<Request<B>> {
        self.looks_at_next().then(|| request.clone())
    }
}

/// From 0 to 1. Good enough to keep callers from coming back in the same moment.
fn random() -> f64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let bits = RandomState::new().hash_one(CALLS.fetch_add(1, Relaxed));
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests;
