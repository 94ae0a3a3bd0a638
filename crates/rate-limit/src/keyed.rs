use std::{
    borrow::Borrow,
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroU64,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use crate::{
    account::{Account, Home, lock, wake_all},
    part::{Entry, Part},
    policy::{Denied, Policy, Terms},
    queue::Queue,
    stats::{Count, Counts},
};

/// The states of a limiter with keys, in parts that are locked by themselves.
#[derive(Debug)]
pub(crate) struct Keyed<K> {
    policy: Policy,
    hasher: RandomState,
    shards: Box<[Shard<K>]>,
    keys: AtomicUsize,
    max_keys: usize,
    /// Before this no key can be dropped: a sweep has looked.
    full_until: AtomicU64,
}

const SHARDS: usize = 64;

/// A shard has its cache lines to itself.
#[derive(Debug)]
#[repr(align(128))]
struct Shard<K> {
    part: Mutex<Part<K>>,
    gate: Mutex<()>,
}

/// A key on its way to a look-up: borrowed if that is enough.
pub(crate) struct Asked<'a, Q: ?Sized> {
    pub(crate) hash: NonZeroU64,
    pub(crate) key: &'a Q,
}

impl<K: Hash + Eq> Keyed<K> {
    pub(crate) fn new(policy: Policy, max_keys: usize) -> Self {
        let shard = || Shard { part: Mutex::new(Part::new()), gate: Mutex::new(()) };
        Self {
            policy,
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(shard).take(SHARDS).collect(),
            keys: AtomicUsize::new(0),
            max_keys,
            full_until: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn ask<'a, Q: Hash + ?Sized>(&self, key: &'a Q) -> Asked<'a, Q> {
        let hash = self.hasher.hash_one(key);
        Asked { hash: NonZeroU64::new(hash).unwrap_or(NonZeroU64::MIN), key }
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the low bits choose the shard, the high ones the slot"
    )]
    fn shard(&self, hash: NonZeroU64) -> &Shard<K> {
        &self.shards[hash.get() as usize % SHARDS]
    }

    /// One look-up, one lock.
    #[inline]
    pub(crate) fn take<Q>(&self, asked: &Asked<'_, Q>, now: u64, n: u64) -> Result<(), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        let Asked { hash, key } = *asked;
        let mut part = lock(&self.shard(hash).part);
        let taken = if part.is_plain()
            && let Some(entry) = part.entries.get_mut(hash, key)
        {
            let taken = self.policy.take(entry.state, now, n).map(|next| entry.state = next);
            let n = &mut entry.counts[usize::from(taken.is_err())];
            if *n < u32::MAX {
                *n += 1;
                part.counts[usize::from(taken.is_err())] += 1;
                return taken;
            }
            taken
        } else {
            drop(part);
            let taken = self.with(asked, now, |account| account.take(now, n)).and_then(|taken| taken);
            part = lock(&self.shard(hash).part);
            taken
        };
        part.count(hash, key, Count::of(&taken));
        taken
    }

    /// Looks at a key, which is remembered from then on if it is not fresh.
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
        let Asked { hash, key } = *asked;
        let (mut part, reserved) = self.room_for(hash, key, now)?;
        let terms = part.terms(hash, key, &self.policy);
        let Part { entries, queues, holds, .. } = &mut *part;
        let (mut fresh, mut nobody) = (Entry::default(), Queue::default());
        let mut account = Account {
            terms,
            state: Home::Plain(&mut entries.get_mut(hash, key).unwrap_or(&mut fresh).state),
            queue: queues.get_mut(hash, key).unwrap_or(&mut nobody),
            wake: Vec::new(),
        };
        let told = look(&mut account);
        let (wake, empty) = (std::mem::take(&mut account.wake), account.queue.is_empty());
        let hold = account.terms.hold;
        if reserved && (!terms.policy.is_fresh(fresh.state, now) || now < hold) {
            entries.insert(hash, key.to_owned(), fresh);
        } else {
            self.keys.fetch_sub(usize::from(reserved), Relaxed);
        }
        if hold > terms.hold {
            holds.set(hash, key.to_owned(), hold);
        } else if hold > 0 && hold <= now {
            holds.remove(hash, key);
        }
        if !nobody.is_empty() {
            queues.set(hash, key.to_owned(), nobody);
        } else if empty && !queues.is_empty() {
            queues.remove(hash, key);
        }
        drop(part);
        wake_all(wake);
        Ok(told)
    }

    /// The part of a key, and whether a slot was reserved for one that is not there yet. Denied if `max_keys` others are
    /// there and none of them is fresh.
    fn room_for<Q>(
        &self,
        hash: NonZeroU64,
        key: &Q,
        now: u64,
    ) -> Result<(MutexGuard<'_, Part<K>>, bool), Denied>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let shard = self.shard(hash);
        for swept in [false, true] {
            let mut part = lock(&shard.part);
            if part.entries.get(hash, key).is_some() {
                return Ok((part, false));
            }
            if part.entries.is_full() {
                let gone = part.drop_fresh(&self.policy, now);
                self.keys.fetch_sub(gone, Relaxed);
            }
            let one_more = |keys| (keys < self.max_keys).then_some(keys + 1);
            if self.keys.fetch_update(Relaxed, Relaxed, one_more).is_ok() {
                return Ok((part, true));
            }
            drop(part);
            if swept || now < self.full_until.load(Relaxed) {
                break;
            }
            self.sweep(now);
        }
        Err(Denied::Wait(self.full_until.load(Relaxed).saturating_sub(now).max(1)))
    }

    /// Drops every key that cannot be told from a fresh one.
    pub(crate) fn sweep(&self, now: u64) {
        let mut soonest = u64::MAX;
        for shard in &self.shards {
            let mut part = lock(&shard.part);
            let gone = part.drop_fresh(&self.policy, now);
            self.keys.fetch_sub(gone, Relaxed);
            for (key, hash, entry) in part.entries.iter() {
                let terms = part.terms(hash, key, &self.policy);
                soonest = soonest.min(terms.level(entry.state, now).reset_after);
            }
        }
        self.full_until.store(now.saturating_add(soonest), Relaxed);
    }

    pub(crate) fn set_policy(&self, key: K, policy: Option<Policy>, now: u64) {
        let asked = self.ask::<K>(&key);
        let hash = asked.hash;
        let mut part = lock(&self.shard(hash).part);
        let new = policy.unwrap_or(self.policy);
        let Terms { policy: old, hold } = part.terms(hash, &key, &self.policy);
        let mut wake = Vec::new();
        if let Some(entry) = part.entries.get_mut(hash, &key) {
            entry.state = old.convert(entry.state, now, &new);
            let state = entry.state;
            if let Some(queue) = part.queues.get_mut(hash, &key) {
                queue.reckon(&Terms { policy: new, hold }, state, now, &mut wake);
            }
        }
        match policy {
            Some(policy) => part.policies.set(hash, key, policy),
            None => drop(part.policies.remove(hash, &key)),
        }
        drop(part);
        wake_all(wake);
    }

    /// What several limits at once lock.
    pub(crate) fn gate(&self, hash: NonZeroU64) -> &Mutex<()> {
        &self.shard(hash).gate
    }

    pub(crate) fn count<Q>(&self, asked: &Asked<'_, Q>, count: Count)
    where
        K: Borrow<Q>,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        lock(&self.shard(asked.hash).part).count(asked.hash, asked.key, count);
    }

    pub(crate) fn counts_of<Q>(&self, asked: &Asked<'_, Q>) -> Counts
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        lock(&self.shard(asked.hash).part).counts_of(asked.hash, asked.key)
    }

    pub(crate) fn counts(&self) -> Counts {
        self.shards.iter().fold([0; 3], |sum, shard| {
            let counts = lock(&shard.part).counts;
            std::array::from_fn(|n| sum[n] + counts[n])
        })
    }

    pub(crate) fn queued(&self) -> usize {
        let of = |part: &Part<K>| part.queues.iter().map(|(_, _, queue)| queue.len()).sum::<usize>();
        self.shards.iter().map(|shard| of(&lock(&shard.part))).sum()
    }

    pub(crate) fn keys(&self) -> usize {
        self.shards.iter().map(|shard| lock(&shard.part).entries.len()).sum()
    }
}
