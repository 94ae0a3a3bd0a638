//! Which batch is due first, and which takes the items of a key. In both, one has a place of its own: where there is only one
//! at a time nothing is moved, and nothing hashed.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
};

use tokio::time::Instant;

/// When each batch is due, the oldest first of those due at once.
#[derive(Default)]
pub(super) struct Line {
    first: Option<Due>,
    others: BTreeSet<Due>,
}

/// A batch that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Due {
    pub(super) at: Instant,
    pub(super) batch: u64,
    pub(super) index: usize,
}

impl Line {
    pub(super) fn first(&self) -> Option<&Due> {
        self.first.as_ref()
    }

    pub(super) fn insert(&mut self, due: Due) {
        let later = match self.first {
            Some(first) if first < due => due,
            _ => match self.first.replace(due) {
                Some(first) => first,
                None => return,
            },
        };
        self.others.insert(later);
    }

    pub(super) fn remove(&mut self, due: &Due) {
        if self.first.as_ref() == Some(due) {
            self.first = self.others.pop_first();
        } else {
            self.others.remove(due);
        }
    }
}

/// Which batch takes the items of a key.
pub(super) struct Open<K> {
    first: Option<(K, usize)>,
    others: HashMap<K, usize>,
}

impl<K> Default for Open<K> {
    fn default() -> Self {
        Self { first: None, others: HashMap::new() }
    }
}

impl<K: Eq + Hash> Open<K> {
    pub(super) fn get(&self, key: &K) -> Option<usize> {
        match &self.first {
            Some((first, index)) if first == key => Some(*index),
            _ if self.others.is_empty() => None,
            _ => self.others.get(key).copied(),
        }
    }

    #[cfg(all(test, not(loom)))]
    pub(super) fn is_empty(&self) -> bool {
        self.first.is_none() && self.others.is_empty()
    }

    pub(super) fn insert(&mut self, key: K, index: usize) {
        if self.first.is_none() {
            self.first = Some((key, index));
        } else {
            self.others.insert(key, index);
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        if self.first.as_ref().is_some_and(|(first, _)| first == key) {
            self.first = None;
        } else {
            self.others.remove(key);
        }
    }
}
