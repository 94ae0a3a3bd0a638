//! What a limiter knows of some of its keys.

use std::{borrow::Borrow, num::NonZeroU64};

use crate::{
    policy::{Policy, State, Terms},
    queue::Queue,
    stats::{Count, Counts},
    table::Table,
};

#[derive(Debug)]
pub(crate) struct Part<K> {
    pub(crate) entries: Table<K, Entry>,
    pub(crate) policies: Table<K, Policy>,
    pub(crate) queues: Table<K, Queue>,
    /// Until when keys are held. Only of keys that have an entry.
    pub(crate) holds: Table<K, u64>,
    /// What was counted of a key and does not fit its entry. Only of keys that have one.
    carries: Table<K, Counts>,
    pub(crate) counts: Counts,
}

/// What most keys need.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Entry {
    pub(crate) state: State,
    /// Admitted and refused, as far as 32 bits go.
    pub(crate) counts: [u32; 2],
}

impl<K> Part<K> {
    pub(crate) const fn new() -> Self {
        Self {
            entries: Table::new(),
            policies: Table::new(),
            queues: Table::new(),
            holds: Table::new(),
            carries: Table::new(),
            counts: [0; 3],
        }
    }

    /// Whether the limiter's own policy is all that any key here is subject to.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.queues.is_empty() && self.policies.is_empty() && self.holds.is_empty()
    }

    pub(crate) fn terms<Q>(&self, hash: NonZeroU64, key: &Q, policy: &Policy) -> Terms
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let policy = *self.policies.get(hash, key).unwrap_or(policy);
        Terms { policy, hold: self.holds.get(hash, key).copied().unwrap_or(0) }
    }

    /// Drops every key that cannot be told from a fresh one and for which nobody waits, and says how many.
    pub(crate) fn drop_fresh(&mut self, policy: &Policy, now: u64) -> usize
    where
        K: Eq,
    {
        let Self { entries, policies, queues, holds, carries, .. } = self;
        holds.rebuild(|_, _, until| now < *until);
        let dropped = entries.rebuild(|key, hash, entry| {
            let policy = policies.get(hash, key).unwrap_or(policy);
            let used = !policy.is_fresh(entry.state, now);
            used || holds.get(hash, key).is_some() || queues.get(hash, key).is_some()
        });
        carries.rebuild(|key, hash, _| entries.get(hash, key).is_some());
        dropped
    }

    pub(crate) fn count<Q>(&mut self, hash: NonZeroU64, key: &Q, count: Count)
    where
        K: Borrow<Q> + Eq,
        Q: Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.counts[count as usize] += 1;
        let Some(entry) = self.entries.get_mut(hash, key) else { return };
        if let Some(n) = entry.counts.get_mut(count as usize) {
            *n = n.wrapping_add(1);
            if *n != 0 {
                return;
            }
        }
        let carry = if count == Count::TimedOut { 1 } else { 1 << 32 };
        match self.carries.get_mut(hash, key) {
            Some(counts) => counts[count as usize] += carry,
            None => {
                let mut counts = [0; 3];
                counts[count as usize] = carry;
                self.carries.set(hash, key.to_owned(), counts);
            }
        }
    }

    /// What was counted of a key since it was last fresh and forgotten.
    pub(crate) fn counts_of<Q>(&self, hash: NonZeroU64, key: &Q) -> Counts
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let [admitted, refused] = self.entries.get(hash, key).map_or([0; 2], |entry| entry.counts);
        let mut counts = self.carries.get(hash, key).copied().unwrap_or([0; 3]);
        counts[Count::Admitted as usize] += u64::from(admitted);
        counts[Count::Refused as usize] += u64::from(refused);
        counts
    }
}
