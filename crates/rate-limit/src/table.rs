use std::{borrow::Borrow, mem, num::NonZeroU64};

/// A hash table that stores the hash with each key: it never hashes again, compares keys only when hashes are equal, and
/// a look-up is one run of neighbouring slots.
///
/// At most four fifths of the slots are in use, and at least a half after it grew.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    slots: Vec<Option<Slot<K, V>>>,
    len: usize,
}

#[derive(Debug)]
struct Slot<K, V> {
    hash: NonZeroU64,
    key: K,
    value: V,
}

impl<K, V> Table<K, V> {
    pub(crate) const fn new() -> Self {
        Self { slots: Vec::new(), len: 0 }
    }

    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, NonZeroU64, &V)> {
        self.slots.iter().flatten().map(|slot| (&slot.key, slot.hash, &slot.value))
    }

    #[inline]
    pub(crate) fn get<Q>(&self, hash: NonZeroU64, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let at = self.find(hash, key)?;
        self.slots[at].as_ref().map(|slot| &slot.value)
    }

    #[inline]
    pub(crate) fn get_mut<Q>(&mut self, hash: NonZeroU64, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let at = self.find(hash, key)?;
        self.slots[at].as_mut().map(|slot| &mut slot.value)
    }

    /// Whether one more key needs more slots: [`rebuild`](Self::rebuild) makes them.
    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.slots.len() / 5 * 4
    }

    /// Adds a key that is not there. There must be a slot for it.
    pub(crate) fn insert(&mut self, hash: NonZeroU64, key: K, value: V) -> &mut V {
        debug_assert!(!self.is_full());
        let mut at = self.home(hash);
        while self.slots[at].is_some() {
            at = self.after(at);
        }
        self.len += 1;
        &mut self.slots[at].insert(Slot { hash, key, value }).value
    }

    /// Adds a key that is not there, or replaces its value.
    pub(crate) fn set(&mut self, hash: NonZeroU64, key: K, value: V)
    where
        K: Eq,
    {
        if let Some(old) = self.get_mut(hash, &key) {
            *old = value;
            return;
        }
        if self.is_full() {
            self.rebuild(|_, _, _| true);
        }
        self.insert(hash, key, value);
    }

    pub(crate) fn remove<Q>(&mut self, hash: NonZeroU64, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut hole = self.find(hash, key)?;
        let removed = self.slots[hole].take()?;
        self.len -= 1;
        // Whoever stood behind and was pushed away from its home moves up.
        let mut at = self.after(hole);
        while let Some(slot) = &self.slots[at] {
            let home = self.home(slot.hash);
            if self.distance(home, at) >= self.distance(hole, at) {
                self.slots[hole] = self.slots[at].take();
                hole = at;
            }
            at = self.after(at);
        }
        Some(removed.value)
    }

    /// Drops what is not to be kept, and makes as many slots as the rest and one more key need. Says how many went.
    pub(crate) fn rebuild(&mut self, mut keep: impl FnMut(&K, NonZeroU64, &V) -> bool) -> usize {
        let before = self.len;
        let kept = self.slots.iter_mut().filter_map(|slot| {
            let there = slot.as_ref()?;
            if !keep(&there.key, there.hash, &there.value) {
                *slot = None;
            }
            slot.as_ref().map(|_| ())
        });
        self.len = kept.count();
        let slots = ((self.len + 1) * 8).div_ceil(5).max(10);
        let old = mem::replace(&mut self.slots, std::iter::repeat_with(|| None).take(slots).collect());
        self.len = 0;
        for slot in old.into_iter().flatten() {
            self.insert(slot.hash, slot.key, slot.value);
        }
        before - self.len
    }

    #[inline]
    fn find<Q>(&self, hash: NonZeroU64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        if self.len == 0 {
            return None;
        }
        let mut at = self.home(hash);
        loop {
            let slot = self.slots[at].as_ref()?;
            if slot.hash == hash && slot.key.borrow() == key {
                return Some(at);
            }
            at = self.after(at);
        }
    }

    #[inline]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the product's upper half is below the number of slots"
    )]
    fn home(&self, hash: NonZeroU64) -> usize {
        ((u128::from(hash.get()) * self.slots.len() as u128) >> 64) as usize
    }

    #[inline]
    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() { 0 } else { at + 1 }
    }

    fn distance(&self, from: usize, to: usize) -> usize {
        if to >= from { to - from } else { to + self.slots.len() - from }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// Few homes, so that runs are long and wrap around.
    fn hash(key: u16) -> NonZeroU64 {
        NonZeroU64::new(u64::from(key % 7) << 61 | u64::from(key) | 1).unwrap()
    }

    proptest! {
        #[test]
        fn agrees_with_the_standard_map(ops in prop::collection::vec((0..60_u16, 0..8_u8), 1..400)) {
            let (mut table, mut model) = (Table::new(), HashMap::new());
            for (n, (key, op)) in ops.into_iter().enumerate() {
                match op {
                    0..=3 => {
                        table.set(hash(key), key, n);
                        model.insert(key, n);
                    }
                    4..=6 => prop_assert_eq!(table.remove(hash(key), &key), model.remove(&key)),
                    _ => {
                        let before = model.len();
                        model.retain(|key, _| key % 3 != 0);
                        prop_assert_eq!(table.rebuild(|key, _, _| key % 3 != 0), before - model.len());
                    }
                }
                prop_assert_eq!(table.len(), model.len());
                for key in 0..60 {
                    prop_assert_eq!(table.get(hash(key), &key), model.get(&key));
                }
            }
            prop_assert_eq!(table.iter().count(), model.len());
        }
    }
}
