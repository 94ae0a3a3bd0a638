use std::{
    borrow::Borrow,
    hash::Hash,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::Rejected;
use tokio::time::Instant;

use crate::{
    Exceeded, KeyStats, Limit, Rule, Stats,
    cells::{Cells, Seen, Shared},
    keyed::Keyed,
    one::One,
    policy::{Level, Policy},
};

/// A limit's state: made once, shared by every layer, service and clone that is made from it.
///
/// `RateLimiter::new` counts everything together, `RateLimiter::keyed` each key for itself. Layers are views of it, and it
/// can be asked and corrected by hand.
///
/// ```
/// use bartizan_rate_limit::{Quota, RateLimiter};
///
/// let limiter: RateLimiter<String> = RateLimiter::keyed(Quota::per_minute(2));
/// assert!(limiter.try_acquire("anna", 2).is_ok());
/// assert!(limiter.try_acquire("anna", 1).is_err());
/// assert!(limiter.try_acquire("ben", 1).is_ok());
///
/// limiter.set_quota("anna".to_owned(), Quota::per_minute(600));
/// limiter.settle("anna", 2, 0);
/// assert_eq!(limiter.stats_of("anna").remaining, 600);
/// assert_eq!(limiter.stats().refused, 1);
/// ```
#[derive(Debug)]
pub struct RateLimiter<K = ()>(pub(crate) Arc<Shared<K>>);

impl<K> Clone for RateLimiter<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl RateLimiter {
    /// One limit for everything that passes.
    pub fn new(limit: impl Into<Limit>) -> Self {
        let limit = limit.into();
        let policy = limit.measure.policy();
        Self::build(limit.name, policy, Cells::One(One::new(policy)))
    }
}

impl<K: Hash + Eq> RateLimiter<K> {
    /// A limit for each key by itself.
    pub fn keyed(limit: impl Into<Limit>) -> Self {
        let limit = limit.into();
        let policy = limit.measure.policy();
        Self::build(limit.name, policy, Cells::Keyed(Keyed::new(policy, limit.max_keys)))
    }
}

impl<K> RateLimiter<K> {
    fn build(name: Box<str>, policy: Policy, cells: Cells<K>) -> Self {
        let gated = AtomicBool::new(false);
        Self(Arc::new(Shared {
            detail: Arc::new(Exceeded { limit: name, capacity: policy.capacity() }),
            policy,
            birth: Instant::now(),
            cells,
            gated,
            link: OnceLock::new(),
            store_failures: AtomicU64::new(0),
        }))
    }

    /// This limit as a part of a layer: say what a call's key is and what it costs, then make it a layer.
    pub fn rule(&self) -> Rule<K> {
        Rule::new(self.clone())
    }

    /// The name that refusals tell.
    pub fn name(&self) -> &str {
        self.0.detail.limit()
    }
}

impl<K: Hash + Eq> RateLimiter<K> {
    /// Takes `n` permits of `key` now, or nothing.
    ///
    /// # Errors
    ///
    /// A refusal that says when they would be there.
    pub fn try_acquire<Q>(&self, key: &Q, n: u64) -> Result<(), Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let now = self.nanos(Instant::now());
        self.take(&self.ask(key), now, n).map_err(|denied| self.refusal(denied).into())
    }

    /// [`try_acquire`](Self::try_acquire) at a given time. One that has passed reads as now.
    ///
    /// # Errors
    ///
    /// A refusal that says when they would be there.
    pub fn try_acquire_at<Q>(&self, key: &Q, n: u64, now: Instant) -> Result<(), Rejected>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let now = self.nanos(now.max(Instant::now()));
        self.take(&self.ask(key), now, n).map_err(|denied| self.refusal(denied).into())
    }

    /// Corrects what was `reserved` for a call of `key` to what it `actual`ly cost.
    ///
    /// What it cost more is charged as if it had been known when the call came, and owed if it is not there; of a key
    /// that has been full and forgotten meanwhile it is charged now. What it cost less is given back, though a key
    /// never gets fuller than full.
    pub fn settle<Q>(&self, key: &Q, reserved: u64, actual: u64)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        if reserved == actual {
            return;
        }
        let asked = self.ask(key);
        if let Some(link) = self.0.link.get() {
            (link.sink.0)(&self.store_ask(&asked, reserved), actual);
        } else {
            let now = self.nanos(Instant::now());
            // Only a key that is full again and for which there is no room any more is out of reach.
            let _ = self.with(&asked, now, |account| account.settle(now, reserved, actual));
        }
    }

    /// Lets nothing of `key` pass for `time` from now on, since whoever is behind the limit said so.
    ///
    /// What waits then waits on, or is refused if that is too long for it. A hold that lasts longer already is not
    /// shortened. If `max_keys` others are in use, it is not remembered.
    pub fn hold<Q>(&self, key: &Q, time: Duration)
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let now = self.nanos(Instant::now());
        let until = now.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let _ = self.with(&self.ask(key), now, |account| account.hold(now, until));
    }

    /// What is left for `key` now, and what was counted of it.
    pub fn stats_of<Q>(&self, key: &Q) -> KeyStats
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let now = self.nanos(Instant::now());
        let asked = self.ask(key);
        let Seen { terms, level, queued, .. } = self.see(&asked, now);
        let [admitted, refused, timed_out] = match &self.0.cells {
            Cells::One(one) => one.counts(),
            Cells::Keyed(keyed) => keyed.counts_of(&asked),
        };
        let Level { available, remaining, reset_after } = level;
        let (capacity, reset_after) = (terms.policy.capacity(), Duration::from_nanos(reset_after));
        KeyStats { available, remaining, capacity, reset_after, queued, admitted, refused, timed_out }
    }

    /// What has passed and what is remembered now.
    pub fn stats(&self) -> Stats {
        let now = self.nanos(Instant::now());
        let (queued, keys) = match &self.0.cells {
            Cells::One(one) => {
                let used = one.with(now, |account| account.level(now).reset_after > 0);
                (one.queued(), usize::from(used))
            }
            Cells::Keyed(keyed) => {
                keyed.sweep(now);
                (keyed.queued(), keyed.keys())
            }
        };
        let [admitted, refused, timed_out] = match &self.0.cells {
            Cells::One(one) => one.counts(),
            Cells::Keyed(keyed) => keyed.counts(),
        };
        let store_failures = self.0.store_failures.load(Relaxed);
        Stats { admitted, refused, timed_out, queued, keys, store_failures }
    }

    /// Gives `key` a limit of its own, from now on. What it has used it has used still, though never more than the new
    /// limit holds, and what it owes it owes. The name and the number of keys remain those of the limiter.
    ///
    /// Own limits are remembered until [`reset_quota`](Self::reset_quota), and do not count as keys.
    pub fn set_quota(&self, key: K, limit: impl Into<Limit>) {
        self.change(key, Some(limit.into().measure.policy()));
    }

    /// Gives `key` the limiter's own limit again.
    pub fn reset_quota(&self, key: K) {
        self.change(key, None);
    }

    fn change(&self, key: K, policy: Option<Policy>) {
        let now = self.nanos(Instant::now());
        match &self.0.cells {
            Cells::One(one) => one.set_policy(policy.unwrap_or(self.0.policy), now),
            Cells::Keyed(keyed) => keyed.set_policy(key, policy, now),
        }
    }
}
