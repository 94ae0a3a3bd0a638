//! The calls under way that can be joined, in one part of the table.

use std::{
    ptr,
    sync::{Arc, Weak},
};

use hashbrown::HashTable;

use crate::{flight::Flight, table::Hashed};

/// Calls by their keys, which stand in the calls. It holds none of them: a call that all have left is on its way out, and is
/// found no more.
pub(crate) struct Aloft<K, T>(HashTable<Place<K, T>>);

struct Place<K, T> {
    hash: u64,
    flight: Weak<Flight<K, T>>,
}

/// Calls that somebody had until now, and may have been the last to. To be dropped where no lock is held.
pub(crate) type Passed<K, T> = Vec<Arc<Flight<K, T>>>;

impl<K, T> Aloft<K, T> {
    pub(crate) const fn new() -> Self {
        Self(HashTable::new())
    }

    pub(crate) fn insert(&mut self, flight: &Arc<Flight<K, T>>) {
        let place = Place { hash: flight.key.hash, flight: Arc::downgrade(flight) };
        self.0.insert_unique(place.hash, place, |place| place.hash);
    }

    /// Whether it was there.
    pub(crate) fn remove(&mut self, flight: &Flight<K, T>) -> bool {
        match self.0.find_entry(flight.key.hash, |place| ptr::eq(place.flight.as_ptr(), flight)) {
            Ok(place) => {
                place.remove();
                true
            }
            Err(_) => false,
        }
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    #[cfg(all(test, not(loom)))]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many have not been left yet.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().filter(|place| place.flight.strong_count() > 0).count()
    }
}

impl<K: Eq, T> Aloft<K, T> {
    /// Puts the call under this key into `found`. What was looked at besides goes into `passed`.
    pub(crate) fn get(
        &self,
        key: &Hashed<K>,
        found: &mut Option<Arc<Flight<K, T>>>,
        passed: &mut Passed<K, T>,
    ) {
        self.0.find(key.hash, |place| {
            *found = if place.hash == key.hash { place.flight.upgrade() } else { None };
            // It has left our hands before keys are compared, which is the user's code and may panic.
            let is_it = found.as_ref().is_some_and(|flight| flight.key == *key);
            if !is_it {
                passed.extend(found.take());
            }
            is_it
        });
    }
}
