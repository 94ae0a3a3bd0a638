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
    clock,
    error::Refusal,
    keyed::{Asked, Keyed},
    one::One,
    policy::{Denied, Level, Policy, Terms},
    queue::LAST,
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
}

impl<K: Hash + Eq> RateLimiter<K> {
    #[inline]
    pub(crate) fn ask<'a, Q: Hash + ?Sized>(&self, key: &'a Q) -> Asked<'a, Q> {
        match &self.0.cells {
            Cells::One(_) => Asked { hash: NonZeroU64::MIN, key },
            Cells::Keyed(keyed) => keyed.ask(key),
        }
    }

    /// Takes for a caller who goes by the time `at`, which is not later than `now`, and counts.
    #[inline]
    pub(crate) fn take<Q>(&self, asked: &Asked<'_, Q>, now: u64, at: u64, n: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.gated(asked.hash, || match &self.0.cells {
            Cells::One(one) => {
                let taken = one.take_at(now, at, n);
                one.count(Count::of(&taken));
                taken
            }
            Cells::Keyed(keyed) => keyed.take(asked, now, at, n),
        })
    }

    /// Does something behind the gate, if there is one.
    #[inline]
    pub(crate) fn gated<T>(&self, hash: NonZeroU64, take: impl FnOnce() -> T) -> T {
        let _gate = self.0.gated.load(Relaxed).then(|| lock(self.gate(hash)));
        take()
    }

    /// Takes for a call that came as `number`. Whoever asks has the gate, and counts.
    pub(crate) fn take_as<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64, number: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) if number == LAST => one.take_at(now, now, n),
            Cells::One(one) => one.take_slowly(now, now, n, number),
            Cells::Keyed(keyed) => keyed.with(asked, now, |it| it.take(now, now, n, number))?,
        }
    }

    /// What [`take_as`](Self::take_as) would say.
    pub(crate) fn look<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64, number: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        match &self.0.cells {
            Cells::One(one) => one.look(now, n, number),
            Cells::Keyed(keyed) => keyed.with(asked, now, |it| it.look(now, n, number))?,
        }
    }

    /// Corrects what was counted here.
    pub(crate) fn settle_here<Q>(&self, asked: &Asked<'_, Q>, reserved: u64, actual: u64, since: Option<u64>)
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let now = self.nanos(clock::now());
        // Only a key that is full again and for which there is no room any more is out of reach.
        let _ = self.with(asked, now, |account| account.settle(now, reserved, actual, since.unwrap_or(now)));
        if actual < reserved {
            self.gave_back();
        }
    }

    pub(crate) fn gave_back(&self) {
        if let Cells::Keyed(keyed) = &self.0.cells {
            keyed.gave_back();
        }
    }

    #[cold]
    pub(crate) fn refusal<Q>(&self, asked: &Asked<'_, Q>, denied: Denied) -> Refusal
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        Refusal::new(denied, self.detail(asked))
    }

    /// What a refusal of a key tells.
    fn detail<Q>(&self, asked: &Asked<'_, Q>) -> Arc<Exceeded>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let own = match &self.0.cells {
            Cells::One(one) => one.detail(),
            Cells::Keyed(keyed) => keyed.detail(asked),
        };
        own.unwrap_or_else(|| self.0.detail.clone())
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
    pub(crate) fn see<Q>(&self, asked: &Asked<'_, Q>, now: u64, at: u64) -> Seen
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let seen = self.with(asked, now, |account| {
            account.advance(now);
            let wait = match account.look(now, 1, LAST) {
                Err(Denied::Wait(wait)) => wait,
                Ok(()) | Err(Denied::Never) => 0,
            };
            let (terms, level) = (account.terms, account.level(at));
            Seen { terms, level, wait, queued: account.queue.len() }
        });
        seen.unwrap_or_else(|denied| {
            // Nothing is known of it, and there is no room for it.
            let Denied::Wait(wait) = denied else { unreachable!("there is room later") };
            let terms = Terms { policy: self.0.policy, hold: 0 };
            let level = Level { available: 0, remaining: 0, reset_after: wait };
            Seen { terms, level, wait, queued: 0 }
        })
    }

    /// What a store is asked for a call.
    pub(crate) fn store_ask<Q>(&self, asked: &Asked<'_, Q>, cost: u64) -> Ask
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let text = self.0.link.get().expect("a layer that asks a store attaches its limits").text;
        let now = self.nanos(clock::now());
        let measure = self.see(asked, now, now).terms.policy.measure();
        Ask { limit: self.detail(asked), key: text(&asked.key.to_owned()), measure, cost }
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
