use std::{borrow::Borrow, error::Error, fmt, marker::PhantomData, time::Duration};

use crate::{
    RateLimiter,
    after::{Hold, Settle, Spent},
    key::{By, ByRef, Costs, Each, Unkeyed},
};

/// A limit, what a call's key is there, what it costs, and what its answer says about that.
///
/// ```
/// use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
///
/// struct Call { tenant: String, tokens: u64 }
///
/// let requests: RateLimiter<String> = RateLimiter::keyed(Limit::new("requests", Quota::per_minute(60)));
/// let tokens = RateLimiter::new(Limit::new("tokens", Quota::per_minute(90_000)));
/// // Both must let a call pass, or neither is charged.
/// let layer = RateLimitLayer::all((
///     requests.rule().by_ref(|call: &Call| Some(call.tenant.as_str())),
///     tokens.rule().cost(|call: &Call| call.tokens),
/// ));
/// # let _ = layer;
/// ```
pub struct Rule<K, Key = Unkeyed, Cost = Each, Then = Spent> {
    pub(crate) limiter: RateLimiter<K>,
    pub(crate) key: Key,
    pub(crate) cost: Cost,
    pub(crate) after: Then,
}

impl<K> Rule<K> {
    pub(crate) fn new(limiter: RateLimiter<K>) -> Self {
        Self { limiter, key: Unkeyed, cost: Each, after: Spent }
    }
}

impl<K, Cost, Then> Rule<K, Unkeyed, Cost, Then> {
    /// The key of a call. One without a key is not limited by this limit.
    pub fn by<Req, F>(self, key: F) -> Rule<K, By<F>, Cost, Then>
    where
        F: Fn(&Req) -> Option<K>,
    {
        Rule { limiter: self.limiter, key: By(key), cost: self.cost, after: self.after }
    }

    /// The key of a call, borrowed from it: nothing is allocated for a key that is known.
    ///
    /// A layer that lets calls wait asks more than once for the key of a call, and must be told the same.
    pub fn by_ref<Req, Q, F>(self, key: F) -> Rule<K, ByRef<F, Q>, Cost, Then>
    where
        F: for<'r> Fn(&'r Req) -> Option<&'r Q>,
        K: Borrow<Q>,
        Q: ?Sized,
    {
        Rule { limiter: self.limiter, key: ByRef(key, PhantomData), cost: self.cost, after: self.after }
    }
}

impl<K, Key, Then> Rule<K, Key, Each, Then> {
    /// What a call costs. Otherwise it costs 1.
    pub fn cost<Req, F>(self, cost: F) -> Rule<K, Key, Costs<F>, Then>
    where
        F: Fn(&Req) -> u64,
    {
        Rule { limiter: self.limiter, key: self.key, cost: Costs(cost), after: self.after }
    }
}

impl<K, Key, Cost, Then> Rule<K, Key, Cost, Then> {
    /// The cost is an estimate, and the answer tells what a call actually cost.
    ///
    /// It does so in two steps: `meter` sees the response, and what it returns is asked when the call is over: at once,
    /// or, in a layer that counts a call [until its body ends], then or when the body is dropped before. `None` means
    /// that the estimate stands. A call that fails costs nothing; one that is cancelled before it is answered costs what
    /// was estimated.
    ///
    /// The key is kept for the length of the call, so a key that is cheap to clone is welcome (`Arc<str>`).
    ///
    /// ```
    /// use bartizan_core::BoxError;
    /// use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// struct Answer { tokens: u64 }
    ///
    /// # tokio_test::block_on(async {
    /// let tokens = RateLimiter::new(Limit::new("tokens", Quota::per_hour(1_000)));
    /// let rule = tokens.rule().cost(|prompt: &&str| prompt.len() as u64).settle(|answer: &Answer| {
    ///     let tokens = answer.tokens;
    ///     move || Some(tokens)
    /// });
    /// let inner = service_fn(|_: &str| async { Ok::<_, BoxError>(Answer { tokens: 990 }) });
    /// let service = RateLimitLayer::new(rule).layer(inner);
    ///
    /// service.clone().oneshot("how much is the fish?").await?;
    /// assert_eq!(tokens.stats_of(&()).remaining, 10);
    /// assert!(service.oneshot("and how much is the chair?").await.is_err());
    /// # Ok::<(), BoxError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// [until its body ends]: crate::RateLimitLayer::extent
    pub fn settle<Res, F, M>(self, meter: F) -> Rule<K, Key, Cost, Settle<Then, F>>
    where
        F: Fn(&Res) -> M + Clone,
        M: FnOnce() -> Option<u64>,
    {
        let after = Settle { first: self.after, meter };
        Rule { limiter: self.limiter, key: self.key, cost: self.cost, after }
    }

    /// If `when` says so of a call's result, nothing of its key passes for that time: whoever is behind the limit has
    /// its own, and has told. Feature `http` has `exhausted` for this, which reads what HTTP services say.
    pub fn hold_when<Res, F>(self, when: F) -> Rule<K, Key, Cost, Hold<Then, F>>
    where
        F: Fn(Result<&Res, &(dyn Error + 'static)>) -> Option<Duration> + Clone,
    {
        let after = Hold { first: self.after, when };
        Rule { limiter: self.limiter, key: self.key, cost: self.cost, after }
    }
}

impl<K, Key: Clone, Cost: Clone, Then: Clone> Clone for Rule<K, Key, Cost, Then> {
    fn clone(&self) -> Self {
        Self {
            limiter: self.limiter.clone(),
            key: self.key.clone(),
            cost: self.cost.clone(),
            after: self.after.clone(),
        }
    }
}

impl<K, Key, Cost, Then> fmt::Debug for Rule<K, Key, Cost, Then> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("limit", &self.limiter.name()).finish_non_exhaustive()
    }
}
