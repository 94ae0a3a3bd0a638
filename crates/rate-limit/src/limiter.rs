use std::{
    borrow::Borrow,
    hash::Hash,
    num::NonZeroU64,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::Rejected;
use tokio::time::Instant;

use crate::{
    Exceeded, Limit, Rule,
    account::{Account, lock},
    error::Refusal,
    keyed::{Asked, Keyed},
    one::One,
    policy::{Denied, Level, Policy, Terms},
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
pub struct RateLimiter<K = ()>(Arc<Shared<K>>);

#[derive(Debug)]
struct Shared<K> {
    detail: Arc<Exceeded>,
    policy: Policy,
    birth: Instant,
    cells: Cells<K>,
    /// Whether a layer asks this limit together with others: then all callers pass its gates.
    gated: AtomicBool,
}

#[derive(Debug)]
enum Cells<K> {
    One(One),
    Keyed(Keyed<K>),
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Admitted,
    Refused,
    TimedOut,
}

impl Count {
    pub(crate) const fn of<T, E>(taken: &Result<T, E>) -> Self {
        if taken.is_ok() { Self::Admitted } else { Self::Refused }
    }
}

/// What there is to see of a key.
pub(crate) struct Seen {
    pub(crate) terms: Terms,
    pub(crate) level: Level,
    /// How many nanoseconds a call would have to wait for one permit.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "only told over HTTP"))]
    pub(crate) wait: u64,
    pub(crate) queued: usize,
}

/// How often, in the order of [`Count`].
pub(crate) type Counts = [u64; 3];

impl<K> Clone for RateLimiter<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl RateLimiter {
    /// One limit for everything that passes.
    pub fn new(limit: impl Into<Limit>) -> Self {
        let limit = limit.into();
        let policy = limit.kind.policy();
        Self::build(limit.name, policy, Cells::One(One::new(policy)))
    }
}

impl<K: Hash + Eq> RateLimiter<K> {
    /// A limit for each key by itself.
    pub fn keyed(limit: impl Into<Limit>) -> Self {
        let limit = limit.into();
        let policy = limit.kind.policy();
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

    pub(crate) fn gate_from_now_on(&self) {
        self.0.gated.store(true, Relaxed);
    }

    /// Nanoseconds since this limiter was made.
    #[inline]
    pub(crate) fn nanos(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.0.birth).as_nanos()).unwrap_or(u64::MAX)
    }

    /// When so many nanoseconds since then have passed.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        self.0.birth + Duration::from_nanos(nanos)
    }

    #[cold]
    pub(crate) fn refusal(&self, denied: Denied) -> Refusal {
        Refusal::new(denied, &self.0.detail)
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
        if reserved != actual {
            let now = self.nanos(Instant::now());
            // Only a key that is full again and for which there is no room any more is out of reach.
            let _ = self.with(&self.ask(key), now, |account| account.settle(now, reserved, actual));
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
        Stats { admitted, refused, timed_out, queued, keys }
    }

    /// Gives `key` a limit of its own, from now on. What it has used it has used still, though never more than the new
    /// limit holds, and what it owes it owes. The name and the number of keys remain those of the limiter.
    ///
    /// Own limits are remembered until [`reset_quota`](Self::reset_quota), and do not count as keys.
    pub fn set_quota(&self, key: K, limit: impl Into<Limit>) {
        self.change(key, Some(limit.into().kind.policy()));
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

    #[inline]
    pub(crate) fn ask<'a, Q: Hash + ?Sized>(&self, key: &'a Q) -> Asked<'a, Q> {
        match &self.0.cells {
            Cells::One(_) => Asked { hash: NonZeroU64::MIN, key },
            Cells::Keyed(keyed) => keyed.ask(key),
        }
    }

    #[inline]
    pub(crate) fn take<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.gated(asked.hash, || self.take_inside(asked, now, n))
    }

    /// Does something behind the gate, if there is one.
    #[inline]
    pub(crate) fn gated<T>(&self, hash: NonZeroU64, take: impl FnOnce() -> T) -> T {
        let _gate = self.0.gated.load(Relaxed).then(|| lock(self.gate(hash)));
        take()
    }

    /// [`take`](Self::take) for whoever has the gate.
    #[inline]
    pub(crate) fn take_inside<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) => {
                let taken = one.take(now, n);
                one.count(Count::of(&taken));
                taken
            }
            Cells::Keyed(keyed) => keyed.take(asked, now, n),
        }
    }

    /// Looks at a key. Denied if there is no room for one more.
    pub(crate) fn with<Q, T>(
        &self,
        asked: &Asked<'_, Q>,
        now: u64,
        look: impl FnOnce(&mut Account<'_>) -> T,
    ) -> Result<T, Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) => Ok(one.with(now, look)),
            Cells::Keyed(keyed) => keyed.with(asked, now, look),
        }
    }

    /// What holds for a key, what is left of it, and how many nanoseconds a call would have to wait for one permit.
    pub(crate) fn see<Q>(&self, asked: &Asked<'_, Q>, now: u64) -> Seen
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let seen = self.with(asked, now, |account| {
            account.advance(now);
            let wait = match account.look(now, 1) {
                Err(Denied::Wait(wait)) => wait,
                Ok(()) | Err(Denied::Never) => 0,
            };
            let (terms, level) = (account.terms, account.level(now));
            Seen { terms, level, wait, queued: account.queue.len() }
        });
        seen.unwrap_or_else(|_| {
            let terms = Terms { policy: self.0.policy, hold: 0 };
            Seen { terms, level: terms.level([0, 0], now), wait: 0, queued: 0 }
        })
    }

    pub(crate) fn gate(&self, hash: NonZeroU64) -> &Mutex<()> {
        match &self.0.cells {
            Cells::One(one) => one.gate(),
            Cells::Keyed(keyed) => keyed.gate(hash),
        }
    }

    pub(crate) fn count<Q>(&self, asked: &Asked<'_, Q>, count: Count)
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) => one.count(count),
            Cells::Keyed(keyed) => keyed.count(asked, count),
        }
    }
}

/// What a limiter has done, and what it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls that passed, after a wait or without one.
    pub admitted: u64,
    /// Calls refused, those that waited in vain included.
    pub refused: u64,
    /// Calls that waited in vain.
    pub timed_out: u64,
    /// Calls that wait now.
    pub queued: usize,
    /// Keys that are not full now; without keys 1 or 0.
    pub keys: usize,
}

/// What is left for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStats {
    /// Permits that are there now; below 0 what is owed.
    pub available: i64,
    /// Permits that are there now.
    pub remaining: u64,
    /// The most that can be there.
    pub capacity: u64,
    /// When the key is full again if nothing comes any more.
    pub reset_after: Duration,
    /// Calls that wait now.
    pub queued: usize,
    /// Calls that passed since the key was last full and forgotten; without keys all of them.
    pub admitted: u64,
    /// Calls refused since then, those that waited in vain included.
    pub refused: u64,
    /// Calls that waited in vain since then.
    pub timed_out: u64,
}
