//! What the parts of a limiter ask it.

use std::{
    borrow::Borrow,
    hash::Hash,
    num::NonZeroU64,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    Ask, Exceeded, RateLimiter, StoredKey,
    account::{Account, lock},
    error::Refusal,
    keyed::{Asked, Keyed},
    one::One,
    policy::{Denied, Level, Policy, Terms},
    stats::Count,
    store::{Link, Sink},
};

#[derive(Debug)]
pub(crate) struct Shared<K> {
    pub(crate) detail: Arc<Exceeded>,
    pub(crate) policy: Policy,
    pub(crate) birth: Instant,
    pub(crate) cells: Cells<K>,
    /// Whether a layer asks this limit together with others: then all callers pass its gates.
    pub(crate) gated: AtomicBool,
    /// If a layer counts this limit in a store.
    pub(crate) link: OnceLock<Link<K>>,
    pub(crate) store_failures: AtomicU64,
}

#[derive(Debug)]
pub(crate) enum Cells<K> {
    One(One),
    Keyed(Keyed<K>),
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

impl<K> RateLimiter<K> {
    pub(crate) fn gate_from_now_on(&self) {
        self.0.gated.store(true, Relaxed);
    }

    /// From now on what is settled goes to a store, unless it goes to one already.
    pub(crate) fn attach(&self, sink: &Sink)
    where
        K: StoredKey,
    {
        self.0.link.get_or_init(|| Link { text: K::text, sink: sink.clone() });
    }

    pub(crate) fn count_store_failure(&self) {
        self.0.store_failures.fetch_add(1, Relaxed);
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

    /// [`take`](Self::take) for whoever has the gate, and counts by himself.
    pub(crate) fn take_uncounted<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) => one.take(now, n),
            Cells::Keyed(keyed) => keyed.with(asked, now, |it| it.take(now, n))?,
        }
    }

    /// What [`take`](Self::take) would say.
    pub(crate) fn look<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) => one.look(now, n),
            Cells::Keyed(keyed) => keyed.with(asked, now, |it| it.look(now, n))?,
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

    /// What a store is asked for a call.
    pub(crate) fn store_ask<Q>(&self, asked: &Asked<'_, Q>, cost: u64) -> Ask
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let text = self.0.link.get().expect("a layer that asks a store attaches its limits").text;
        let now = self.nanos(Instant::now());
        let measure = self.see(asked, now).terms.policy.measure();
        Ask { limit: self.0.detail.clone(), key: text(&asked.key.to_owned()), measure, cost }
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
