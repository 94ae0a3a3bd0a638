use std::{sync::Arc, time::Duration};

use tower_layer::Layer;

use crate::{
    RateLimit, Rule,
    account::Bounds,
    rule::{All, MOST, Together},
};

/// Limits the rate of calls. [`RateLimiter::layer`](crate::RateLimiter::layer) makes one.
///
/// A view of the limiters that its rules name: it has no state of its own.
#[derive(Clone, Copy, Debug)]
pub struct RateLimitLayer<R, M = Reject> {
    rules: R,
    mode: M,
}

/// A call that has no permit is refused.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reject;

/// A call that has no permit waits for it. [`RateLimitLayer::queue`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Queue(pub(crate) Bounds);

impl<K, Key, Cost> RateLimitLayer<Rule<K, Key, Cost>> {
    /// A call that has no permit waits for it: at most `max_queue` of a key at once, and at most `max_wait` each.
    ///
    /// First come, first served, whatever a call costs. A call that would have to wait longer is refused at once, and so
    /// is one of the rejecting layers of the same limiter while others wait.
    #[must_use]
    pub fn queue(self, max_queue: usize, max_wait: Duration) -> RateLimitLayer<Rule<K, Key, Cost>, Queue> {
        let max_wait = u64::try_from(max_wait.as_nanos()).unwrap_or(u64::MAX);
        RateLimitLayer { rules: self.rules, mode: Queue(Bounds { max_queue, max_wait }) }
    }
}

impl<R> RateLimitLayer<R> {
    /// Calls pass as `rule` says, and are refused otherwise.
    pub const fn new(rule: R) -> Self {
        Self { rules: rule, mode: Reject }
    }
}

impl<T: Together> RateLimitLayer<All<T>> {
    /// Calls pass if all `rules` let them, up to eight in a tuple. Otherwise none of them is charged.
    ///
    /// From then on whoever asks one of these limits locks: a call that takes from several must not be seen halfway.
    pub fn all(rules: T) -> Self {
        rules.gate_from_now_on();
        Self::new(All(rules))
    }
}

impl<K, Key, Cost> RateLimitLayer<All<Arc<[Rule<K, Key, Cost>]>>> {
    /// [`all`](Self::all) for rules that are known when the program runs: from a file, say.
    ///
    /// # Panics
    ///
    /// If there are more than eight.
    pub fn all_of(rules: Vec<Rule<K, Key, Cost>>) -> Self {
        assert!(rules.len() <= MOST, "more than {MOST} rules at once are too many");
        rules.iter().for_each(|rule| rule.limiter.gate_from_now_on());
        Self::new(All(rules.into()))
    }
}

impl<S, R: Clone, M: Clone> Layer<S> for RateLimitLayer<R, M> {
    type Service = RateLimit<S, R, M>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit::new(inner, self.rules.clone(), self.mode.clone())
    }
}
