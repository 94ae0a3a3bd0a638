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
    limiter::Count,
    policy::{Denied, Policy, State},
    queue::Queue,
    table::Table,
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

#[derive(Debug)]
struct Part<K> {
    states: Table<K, State>,
    policies: Table<K, Policy>,
    queues: Table<K, Queue>,
    counts: [u64; 3],
}

impl<K> Part<K> {
    fn drop_fresh(&mut self, policy: &Policy, now: u64) -> usize
    where
        K: Eq,
    {
        let Self { states, policies, .. } = self;
        states.rebuild(|key, hash, state| {
            let policy = policies.get(hash, key).unwrap_or(policy);
            !policy.is_fresh(*state, now)
        })
    }
}

/// A key on its way to a look-up: borrowed if that is enough.
pub(crate) struct Asked<'a, Q: ?Sized> {
    pub(crate) hash: NonZeroU64,
    pub(crate) key: &'a Q,
}

impl<K: Hash + Eq> Keyed<K> {
    pub(crate) fn new(policy: Policy, max_keys: usize) -> Self {
        let part =
            || Part { states: Table::new(), policies: Table::new(), queues: Table::new(), counts: [0; 3] };
        let shard = || Shard { part: Mutex::new(part()), gate: Mutex::new(()) };
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
        let mut part = lock(&self.shard(asked.hash).part);
        if part.queues.is_empty()
            && part.policies.is_empty()
            && let Some(state) = part.states.get_mut(asked.hash, asked.key)
        {
            let taken = self.policy.take(*state, now, n).map(|next| *state = next);
            let count = if taken.is_ok() { Count::Admitted } else { Count::Refused };
            part.counts[count as usize] += 1;
            return taken;
        }
        drop(part);
        let taken = self.with(asked, now, |account| account.take(now, n)).and_then(|taken| taken);
        self.count(asked.hash, if taken.is_ok() { Count::Admitted } else { Count::Refused });
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
        let Part { states, policies, queues, .. } = &mut *part;
        let policy = *policies.get(hash, key).unwrap_or(&self.policy);
        let (mut fresh, mut nobody) = ([0, 0], Queue::default());
        let mut account = Account {
            policy,
            state: Home::Plain(states.get_mut(hash, key).unwrap_or(&mut fresh)),
            queue: queues.get_mut(hash, key).unwrap_or(&mut nobody),
            wake: Vec::new(),
        };
        let told = look(&mut account);
        let (wake, empty) = (std::mem::take(&mut account.wake), account.queue.is_empty());
        if reserved && !policy.is_fresh(fresh, now) {
            states.insert(hash, key.to_owned(), fresh);
        } else {
            self.keys.fetch_sub(usize::from(reserved), Relaxed);
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
            if part.states.get(hash, key).is_some() {
                return Ok((part, false));
            }
            if part.states.is_full() {
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
            for (key, hash, state) in part.states.iter() {
                let policy = part.policies.get(hash, key).unwrap_or(&self.policy);
                soonest = soonest.min(policy.level(*state, now).reset_after);
            }
        }
        self.full_until.store(now.saturating_add(soonest), Relaxed);
    }

    pub(crate) fn set_policy(&self, key: K, policy: Option<Policy>, now: u64) {
        let asked = self.ask::<K>(&key);
        let hash = asked.hash;
        let mut part = lock(&self.shard(hash).part);
        let new = policy.unwrap_or(self.policy);
        let old = *part.policies.get(hash, &key).unwrap_or(&self.policy);
        let mut wake = Vec::new();
        if let Some(state) = part.states.get_mut(hash, &key) {
            *state = old.convert(*state, now, &new);
            let state = *state;
            if let Some(queue) = part.queues.get_mut(hash, &key) {
                queue.reckon(&new, state, now, &mut wake);
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

    pub(crate) fn count(&self, hash: NonZeroU64, count: Count) {
        lock(&self.shard(hash).part).counts[count as usize] += 1;
    }

    pub(crate) fn counted(&self, count: Count) -> u64 {
        self.shards.iter().map(|shard| lock(&shard.part).counts[count as usize]).sum()
    }

    pub(crate) fn queued(&self) -> usize {
        let of = |part: &Part<K>| part.queues.iter().map(|(_, _, queue)| queue.len()).sum::<usize>();
        self.shards.iter().map(|shard| of(&lock(&shard.part))).sum()
    }

    pub(crate) fn keys(&self) -> usize {
        self.shards.iter().map(|shard| lock(&shard.part).states.len()).sum()
    }
}
