use std::{sync::Arc, time::Duration};

use bartizan_core::UntilResponse;
use tower_layer::Layer;

use crate::{
    RateLimit, RateLimiter, Rule,
    account::Bounds,
    backpressure::Backpressure,
    key::Unkeyed,
    rules::{All, Together},
    stake::MOST,
};

/// Limits the rate of calls. [`RateLimiter::layer`](crate::RateLimiter::layer) makes one.
///
/// A view of the limiters that its rules name: it has no state of its own.
#[derive(Clone, Copy, Debug)]
pub struct RateLimitLayer<R, M = Reject, E = UntilResponse> {
    pub(crate) rules: R,
    pub(crate) mode: M,
    pub(crate) extent: E,
}

/// A call that has no permit is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reject;

/// A call that has no permit waits for it. [`RateLimitLayer::queue`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Queue(pub(crate) Bounds);

impl<R> RateLimitLayer<R> {
    /// Calls pass as `rule` says, and are refused otherwise.
    pub const fn new(rule: R) -> Self {
        Self { rules: rule, mode: Reject, extent: UntilResponse }
    }
}

impl<T: Together> RateLimitLayer<All<Arc<T>>> {
    /// Calls pass if all `rules` let them, up to eight in a tuple. Otherwise none of them is charged.
    ///
    /// From then on whoever asks one of these limits locks: a call that takes from several must not be seen halfway.
    pub fn all(rules: T) -> Self {
        rules.gate_from_now_on();
        Self::new(All(Arc::new(rules)))
    }
}

impl<K, Key, Cost, Then> RateLimitLayer<All<Arc<[Rule<K, Key, Cost, Then>]>>> {
    /// [`all`](Self::all) for rules that are known when the program runs: from a file, say.
    ///
    /// # Panics
    ///
    /// If there are more than eight.
    pub fn all_of(rules: Vec<Rule<K, Key, Cost, Then>>) -> Self {
        assert!(rules.len() <= MOST, "more than {MOST} rules at once are too many");
        rules.iter().for_each(|rule| rule.limiter.gate_from_now_on());
        Self::new(All(rules.into()))
    }
}

impl<R, E> RateLimitLayer<R, Reject, E> {
    /// A call that has no permit waits for it: at most `max_queue` of a key at once, and at most `max_wait` each.
    ///
    /// First come, first served, whatever a call costs. A call that would have to wait longer is refused at once, and so
    /// is one of the rejecting layers of the same limiter while others wait.
    ///
    /// With several limits a call waits for the one that makes it wait longest, and takes from all at once when its
    /// turn has come there.
    #[must_use]
    pub fn queue(self, max_queue: usize, max_wait: Duration) -> RateLimitLayer<R, Queue, E> {
        let max_wait = u64::try_from(max_wait.as_nanos()).unwrap_or(u64::MAX);
        let mode = Queue(Bounds { max_queue, max_wait });
        RateLimitLayer { rules: self.rules, mode, extent: self.extent }
    }
}

impl<Cost, Then, E> RateLimitLayer<Rule<(), Unkeyed, Cost, Then>, Reject, E> {
    /// Nothing is refused that could pass later: the layer is not ready before there is a permit.
    ///
    /// `poll_ready` takes one permit, first come, first served, and `call` the rest of what the call costs, which is
    /// owed if it is not there. A service that is dropped while it is ready gives its permit back. Only for a limit
    /// without keys, since nobody knows whose call it will be.
    ///
    /// ```
    /// use std::time::Duration;
    /// use bartizan_core::BoxError;
    /// use bartizan_rate_limit::{Quota, RateLimiter};
    /// use tower::{Layer, Service, ServiceExt, service_fn};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?.block_on(async {
    /// let limiter = RateLimiter::new(Quota::one_every(Duration::from_secs(1)));
    /// let inner = service_fn(|_: ()| async { Ok::<_, BoxError>(()) });
    /// let mut service = limiter.layer().backpressure().layer(inner);
    /// let begin = tokio::time::Instant::now();
    /// for _ in 0..3 {
    ///     service.ready().await?.call(()).await?;
    /// }
    /// assert_eq!(begin.elapsed(), Duration::from_secs(2));
    /// # Ok::<(), BoxError>(())
    /// # })?;
    /// # Ok::<(), BoxError>(())
    /// ```
    #[must_use]
    pub fn backpressure(self) -> RateLimitLayer<Rule<(), Unkeyed, Cost, Then>, Backpressure, E> {
        RateLimitLayer { rules: self.rules, mode: Backpressure::default(), extent: self.extent }
    }
}

impl<R, M> RateLimitLayer<R, M> {
    /// When a call is over, and rules that [settle](Rule::settle) ask what it cost: `UntilResponse`, the default, or
    /// `UntilBodyEnd` of `bartizan-core`.
    #[must_use]
    pub fn extent<E>(self, extent: E) -> RateLimitLayer<R, M, E> {
        RateLimitLayer { rules: self.rules, mode: self.mode, extent }
    }
}

impl RateLimiter {
    /// A layer that refuses what this limit does not let pass.
    pub fn layer(&self) -> RateLimitLayer<Rule<()>> {
        RateLimitLayer::new(self.rule())
    }
}

impl<S, R: Clone, M: Clone, E: Clone> Layer<S> for RateLimitLayer<R, M, E> {
    type Service = RateLimit<S, R, M, E>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.rules.clone(), self.mode.clone(), self.extent.clone())
    }
}
