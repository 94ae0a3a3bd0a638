//! What is kept of a call.

use std::sync::Arc;

use crate::{
    Fingerprint,
    flight::{Flight, Value},
    lifetime::{Age, Freshness, Lifetime, Nanos, Terms, Windows},
};

/// An answer, or an error. All of it is brought to whoever looks for it, so it is as small as can be.
pub(crate) struct Entry<K, T> {
    pub(crate) value: Value<T>,
    life: Lifetime,
    rare: Option<Box<Rare<K, T>>>,
}

/// What most answers have nothing of.
struct Rare<K, T> {
    fingerprint: Option<Fingerprint>,
    /// It is not served stale.
    never_stale: bool,
    /// The call for a new one that nobody waits for: callers drive it as they pass.
    refresh: Option<Arc<Flight<K, T>>>,
}

impl<K, T> Rare<K, T> {
    const fn none() -> Self {
        Self { fingerprint: None, never_stale: false, refresh: None }
    }
}

impl<K, T> Entry<K, T> {
    pub(crate) fn new(value: Value<T>, now: Nanos, terms: Terms, fingerprint: Option<&Fingerprint>) -> Self {
        let rare = (fingerprint.is_some() || !terms.stale).then(|| {
            let (fingerprint, never_stale) = (fingerprint.copied(), !terms.stale);
            Box::new(Rare { fingerprint, never_stale, ..Rare::none() })
        });
        Self { value, life: Lifetime::new(now, terms.ttl), rare }
    }

    pub(crate) fn fingerprint(&self) -> Option<&Fingerprint> {
        self.rare.as_ref()?.fingerprint.as_ref()
    }

    /// What it is good for, and how old it is.
    #[inline]
    pub(crate) fn at(&self, now: Nanos, windows: Windows) -> (Freshness, Age) {
        self.life.at(now, self.windows(windows))
    }

    /// How old it is, if it may stand in for a new one that failed.
    pub(crate) fn stands_in(&self, now: Nanos, windows: Windows) -> Option<Age> {
        self.life.stands_in(now, self.windows(windows))
    }

    #[inline]
    fn windows(&self, windows: Windows) -> Windows {
        match &self.rare {
            Some(rare) if rare.never_stale => Windows::default(),
            _ => windows,
        }
    }

    pub(crate) fn refresh(&mut self) -> &mut Option<Arc<Flight<K, T>>> {
        &mut self.rare.get_or_insert_with(|| Box::new(Rare::none())).refresh
    }
}
