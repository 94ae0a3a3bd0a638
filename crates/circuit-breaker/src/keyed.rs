use std::{
    borrow::Borrow,
    collections::HashMap,
    fmt,
    hash::{BuildHasher, Hash, RandomState},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64, AtomicUsize,
            Ordering::{AcqRel, Acquire, Relaxed},
        },
    },
};

use bartizan_core::{Errors, UntilResponse, errors};

use crate::{
    By, ByRef, CircuitBreaker, CircuitBreakerLayer, InvalidSettings, Settings, State, clock,
    machine::Machine, permit::Admitted, wait::Wait,
};

/// A breaker for each key: each host, each model, each endpoint.
///
/// A breaker is made when its key first comes. At most [`max_keys`](Self::max_keys) are remembered. When there is no room,
/// breakers are dropped that hold nothing against their services, or nothing since an hour: they are closed without a
/// failure or slow call that counts, or an hour has passed since the last one, since a probe, and since the open period was
/// over. None is that a hand has opened or disabled, that has a call under way, or that somebody has asked for. If no other
/// is left, calls of a further key pass unwatched, and [`KeyedStats::unwatched`] counts them: that others fail is no reason
/// to refuse them.
///
/// ```
/// use bartizan_circuit_breaker::{CircuitBreakers, Settings, State};
///
/// let hosts: CircuitBreakers<String> = CircuitBreakers::new(Settings::consecutive(1)).max_keys(1_000);
/// let breaker = hosts.get("a.example").expect("there is room");
/// breaker.try_acquire()?.failure();
/// assert_eq!(breaker.state(), State::Open);
/// assert_eq!(hosts.get("b.example").map(|breaker| breaker.state()), Some(State::Closed));
/// # Ok::<(), bartizan_core::Rejected>(())
/// ```
pub struct CircuitBreakers<K>(Arc<Shared<K>>);

struct Shared<K> {
    settings: Arc<Settings>,
    hasher: RandomState,
    shards: [Shard<K>; SHARDS],
    max_keys: AtomicUsize,
    /// Keys remembered, and keys that came since somebody last looked which can be dropped.
    keys: AtomicUsize,
    came: AtomicUsize,
    unwatched: AtomicU64,
    /// What was counted by breakers that are dropped.
    gone: Mutex<KeyedStats>,
}

/// A shard has its cache lines to itself.
#[repr(align(128))]
struct Shard<K>(Mutex<HashMap<K, CircuitBreaker>>);

const SHARDS: usize = 16;

impl<K> Clone for CircuitBreakers<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Hash + Eq> CircuitBreakers<K> {
    /// Breakers of these settings.
    ///
    /// # Panics
    ///
    /// If they could never work: see [`InvalidSettings`].
    pub fn new(settings: Settings) -> Self {
        match Self::try_new(settings) {
            Ok(breakers) => breakers,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// Breakers of settings that come from a file.
    ///
    /// # Errors
    ///
    /// If they could never work.
    pub fn try_new(settings: Settings) -> Result<Self, InvalidSettings> {
        settings.check()?;
        Ok(Self(Arc::new(Shared {
            settings: Arc::new(settings),
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Shard(Mutex::default())),
            max_keys: AtomicUsize::new(10_000),
            keys: AtomicUsize::new(0),
            came: AtomicUsize::new(0),
            unwatched: AtomicU64::new(0),
            gone: Mutex::default(),
        })))
    }

    /// How many keys are remembered at most, from now on. 10,000 by default.
    ///
    /// # Panics
    ///
    /// If `keys` is 0.
    #[must_use]
    pub fn max_keys(self, keys: usize) -> Self {
        match self.try_max_keys(keys) {
            Ok(breakers) => breakers,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// [`max_keys`](Self::max_keys) for a value that comes from a file.
    ///
    /// # Errors
    ///
    /// If `keys` is 0.
    pub fn try_max_keys(self, keys: usize) -> Result<Self, InvalidSettings> {
        if keys == 0 {
            return Err(InvalidSettings::Keys);
        }
        self.0.max_keys.store(keys, Relaxed);
        Ok(self)
    }

    /// A layer in which each call meets the breaker of its key. A call without a key passes unwatched.
    ///
    /// The layer is ready when the service below is, since a key is known only in `call`; a readiness that fails counts
    /// for no key.
    pub fn by<Req, F>(&self, key: F) -> CircuitBreakerLayer<By<K, F>, Errors, UntilResponse>
    where
        F: Fn(&Req) -> Option<K>,
    {
        CircuitBreakerLayer::new(By::new(self.clone(), key), errors())
    }

    /// [`by`](Self::by) a key that is borrowed from the call: nothing is allocated for one that is known.
    pub fn by_ref<Req, Q, F>(&self, key: F) -> CircuitBreakerLayer<ByRef<K, F, Q>, Errors, UntilResponse>
    where
        F: for<'r> Fn(&'r Req) -> Option<&'r Q>,
        K: Borrow<Q>,
        Q: ?Sized,
    {
        CircuitBreakerLayer::new(ByRef::new(self.clone(), key), errors())
    }

    /// The breaker of a key, which is remembered as long as it, a layer of it or a permit is held. `None` if there is no
    /// room for one more key.
    pub fn get<Q>(&self, key: &Q) -> Option<CircuitBreaker>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        self.with(key, Clone::clone)
    }

    /// What all breakers together do and have done.
    pub fn stats(&self) -> KeyedStats {
        let Shared { shards, unwatched, gone, .. } = &*self.0;
        let mut stats = KeyedStats { unwatched: unwatched.load(Relaxed), ..*lock(gone) };
        for shard in shards {
            // Whoever is told or woken by what time has brought about runs without the lock.
            let breakers: Vec<_> = lock(&shard.0).values().cloned().collect();
            for of in breakers.iter().map(CircuitBreaker::stats) {
                stats.keys += 1;
                stats.open += usize::from(matches!(of.state, State::Open | State::ForcedOpen));
                stats.half_open += usize::from(of.state == State::HalfOpen);
                stats.opens += of.opens;
                stats.refused += of.refused;
                stats.late += of.late;
            }
        }
        stats
    }

    /// The state of every key that is remembered now.
    pub fn states(&self) -> Vec<(K, State)>
    where
        K: Clone,
    {
        let of = |shard: &Shard<K>| -> Vec<_> {
            lock(&shard.0).iter().map(|(key, breaker)| (key.clone(), breaker.clone())).collect()
        };
        let breakers = self.0.shards.iter().flat_map(of);
        breakers.map(|(key, breaker)| (key, breaker.state())).collect()
    }

    pub(crate) fn admit<Q>(&self, key: &Q) -> Result<Option<Admitted>, Wait>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        match self.with(key, Clone::clone) {
            Some(breaker) => breaker.admit_and_keep().map(Some),
            None => {
                self.0.unwatched.fetch_add(1, Relaxed);
                Ok(None)
            }
        }
    }

    /// Looks at the breaker of a key under its shard's lock. `None` if there is none, and no room for it.
    fn with<Q, T>(&self, key: &Q, look: impl Fn(&CircuitBreaker) -> T) -> Option<T>
    where
        K: Borrow<Q>,
        Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
    {
        let shared = &*self.0;
        let shard = self.shard(shared.hasher.hash_one(key));
        if let Some(breaker) = lock(shard).get(key) {
            return Some(look(breaker));
        }
        let max_keys = shared.max_keys.load(Relaxed);
        if shared.keys.load(Acquire) >= max_keys {
            self.sweep();
        }
        let mut shard = lock(shard);
        if let Some(breaker) = shard.get(key) {
            return Some(look(breaker));
        }
        let one_more = |keys| (keys < max_keys).then_some(keys + 1);
        let owned = key.to_owned();
        shared.came.fetch_add(1, Relaxed);
        shared.keys.fetch_update(AcqRel, Acquire, one_more).ok()?;
        let breaker = CircuitBreaker::of_many(shared.settings.clone());
        let seen = look(&breaker);
        shard.insert(owned, breaker);
        Some(seen)
    }

    fn shard(&self, hash: u64) -> &Mutex<HashMap<K, CircuitBreaker>> {
        &self.0.shards[(hash >> 60) as usize % SHARDS].0
    }

    /// Drops what can be forgotten, unless that was done not long ago: a look at all keys costs a further key no
    /// more than 64 looks.
    fn sweep(&self) {
        let shared = &*self.0;
        let keys = shared.keys.load(Relaxed);
        let due = |came: usize| (came > keys / 64).then_some(0);
        if shared.came.fetch_update(Relaxed, Relaxed, due).is_err() {
            return;
        }
        let now = clock::now();
        for shard in &shared.shards {
            let mut dropped = Vec::new();
            lock(&shard.0).retain(|_, breaker| {
                // Nobody comes by one but under this lock.
                let kept = !(breaker.is_unused() && breaker.circuit.with(now, Machine::is_forgettable));
                if !kept {
                    dropped.push(breaker.clone());
                }
                kept
            });
            shared.keys.fetch_sub(dropped.len(), AcqRel);
            for breaker in dropped {
                let of = breaker.stats();
                let mut gone = lock(&shared.gone);
                gone.opens += of.opens;
                gone.refused += of.refused;
                gone.late += of.late;
            }
        }
    }
}

/// Nothing of a user's runs under these locks but `Hash`, `Eq`, `Clone` and `Drop` of keys, and what those leave is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K> fmt::Debug for CircuitBreakers<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.keys.load(Relaxed);
        f.debug_struct("CircuitBreakers").field("keys", &keys).finish_non_exhaustive()
    }
}

/// What all breakers of [`CircuitBreakers`] do and have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyedStats {
    /// Keys that are remembered now.
    pub keys: usize,
    /// Keys that are open now, by hand or not.
    pub open: usize,
    /// Keys that are half-open now.
    pub half_open: usize,
    /// How often breakers opened, those that are dropped included.
    pub opens: u64,
    /// Calls refused.
    pub refused: u64,
    /// Results that came after the state had changed, and were dropped.
    pub late: u64,
    /// Calls whose key found no room, and that passed unwatched.
    pub unwatched: u64,
}
