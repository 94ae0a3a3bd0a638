//! Which calls are under way, and which answers are kept.
//!
//! Who changes either holds the lock of their key's part of the table, so a call is never in both, nor in neither. A fresh
//! answer is found without it. What is taken out is dropped where the lock is not held any more, since that is the user's
//! code, or takes the lock: a variable that is declared before the lock is dropped after it.

use std::{
    hash::{BuildHasher, Hash, RandomState},
    iter, ptr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::BoxError;
use tokio::runtime::Handle;

use crate::{
    Fingerprint, Identity, Replay, Served, Stats,
    aloft::{Aloft, Passed},
    entry::Entry,
    flight::{Execution, Flight, Home, Recorded, Value},
    kept::{Asked, Kept, Ledger},
    lifetime::{Age, Clock, Freshness, Terms},
    sync::{Mutex, lock},
};

#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) struct Table<K, T> {
    pub(crate) replay: Replay<T>,
    hasher: RandomState,
    clock: Clock,
    parts: Box<[Part<K, T>]>,
    bypassed: AtomicU64,
}

struct Part<K, T> {
    kept: Kept<K, Entry<K, T>>,
    busy: Busy<K, T>,
}

/// Apart from what hits read.
#[repr(align(128))]
struct Busy<K, T>(Mutex<Inside<K, T>>);

/// In this order, what a call that nobody shares changes is in one cache line with the lock.
#[repr(C)]
struct Inside<K, T> {
    aloft: Aloft<K, T>,
    counts: Counts,
    ledger: Ledger,
}

/// Fresh hits are counted where they are found.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Counts {
    misses: u64,
    stale_hits: u64,
    stood_in: u64,
    collapsed: u64,
    conflicts: u64,
    refreshes: u64,
}

/// What there is for a call.
pub(crate) enum Found<K, T, E> {
    Kept(Value<T>, Served),
    /// Stale, and this is for whoever is to fetch a new one.
    Stale(Arc<T>, Served, Refresh<K, T>),
    /// Another caller has begun it, so this one's was not.
    Joined(Arc<Flight<K, T>>, Box<E>),
    /// It has begun with this caller.
    Leads(Arc<Flight<K, T>>),
    /// The key is known with another fingerprint.
    Conflict,
}

pub(crate) enum Refresh<K, T> {
    /// It is for a task there, for as long as the stale answer is served.
    Spawns(Arc<Flight<K, T>>, Handle, Duration),
    /// Callers drive it as they pass. `leads`: it has begun with this one.
    Passes { flight: Arc<Flight<K, T>>, leads: bool },
    /// It is none of this caller's business.
    Runs,
}

/// No more than so many, and none for fewer entries than that.
const MOST_PARTS: usize = 16;
const ENTRIES_A_PART: usize = 64;

impl<K: Eq, T> Table<K, T> {
    pub(crate) fn new(replay: Replay<T>) -> Self {
        let parts = (replay.max_entries / ENTRIES_A_PART).clamp(1, MOST_PARTS);
        let parts = 1_usize << parts.ilog2();
        let entries = if replay.keeps() { replay.max_entries / parts } else { 0 };
        let bytes = replay.max_bytes / parts as u64;
        let part = || {
            let inside = Inside { aloft: Aloft::new(), ledger: Ledger::new(), counts: Counts::default() };
            Part { kept: Kept::new(entries, bytes), busy: Busy(Mutex::new(inside)) }
        };
        let parts = iter::repeat_with(part).take(parts).collect();
        let (hasher, clock, bypassed) = (RandomState::new(), Clock::new(), AtomicU64::new(0));
        Self { replay, hasher, clock, parts, bypassed }
    }
}

impl<K, T> Table<K, T> {
    /// A call without a key.
    pub(crate) fn bypass(&self) {
        self.bypassed.fetch_add(1, Relaxed);
    }

    fn part(&self, hash: u64) -> &Part<K, T> {
        // What is inside goes by the lower half, but for a few of the highest bits.
        &self.parts[(hash >> 32) as usize % self.parts.len()]
    }
}

impl<K: Hash + Eq + Clone, T> Table<K, T> {
    /// What there is for a call, which is counted as what it finds. It is made, but not begun, where no fresh answer is found
    /// at once: it is the user's code that makes it, which must not be where the lock is held.
    pub(crate) fn find<E>(self: &Arc<Self>, identity: Identity<K>, make: impl FnOnce() -> E) -> Found<K, T, E>
    where
        E: Future<Output = Result<Recorded<T>, BoxError>> + Send + 'static,
    {
        let Identity { key, fingerprint, no_cache } = identity;
        let key = Hashed::new(&self.hasher, key);
        let asks = (fingerprint.as_ref(), no_cache);
        let part = self.part(key.hash);
        let sight = || part.kept.look(&key, |entry, asked| self.seen(entry, asks, asked));
        if let Some(Seen::Fresh(value, age)) = sight() {
            return Found::hit(value, age);
        }

        let execution = Box::new(make());
        let (mut aloft, mut passed) = (None, Passed::new());
        let mut held = lock(&part.busy.0);
        let inside = &mut *held;
        // It may have landed since.
        let seen = sight().unwrap_or(Seen::Nothing);
        inside.aloft.get(&key, &mut aloft, &mut passed);
        if let (Seen::Nothing, Some(flight)) = (&seen, &aloft) {
            // Not for who passes any more, but for those who wait. If there are none, nobody has driven it for who knows how
            // long.
            let refresh = part.let_go(flight);
            if refresh.is_some() && Arc::strong_count(flight) == 2 {
                inside.take(flight);
                passed.extend(aloft.take());
            }
            passed.extend(refresh);
        }
        let begin = |inside: &mut _, home, execution| {
            Self::begin(home, inside, key, fingerprint, Box::<E>::into_pin(execution))
        };
        let found = match (seen, &aloft) {
            (Seen::Fresh(value, age), _) => Found::hit(value, age),
            (Seen::Stale(tape, age), aloft) => {
                inside.counts.stale_hits += 1;
                let refresh = match aloft {
                    Some(flight) if flight.is_held() => {
                        Refresh::Passes { flight: flight.clone(), leads: false }
                    }
                    Some(_) => Refresh::Runs,
                    None => {
                        let begin = |inside: &mut _, home| begin(inside, home, execution);
                        self.refresh(part, inside, age, begin, &mut passed)
                    }
                };
                Found::Stale(tape, stale(age), refresh)
            }
            (Seen::Nothing, Some(flight)) if flight.fingerprint.as_deref() == fingerprint.as_ref() => {
                inside.counts.collapsed += 1;
                Found::Joined(flight.clone(), execution)
            }
            (Seen::Conflict, _) | (Seen::Nothing, Some(_)) => {
                inside.counts.conflicts += 1;
                Found::Conflict
            }
            (Seen::Nothing, None) => {
                inside.counts.misses += 1;
                Found::Leads(begin(inside, Home::Held(self.clone()), execution))
            }
        };
        // Before the key, where that is not needed.
        drop(held);
        found
    }

    /// Begins a call for a new answer while the old one is served.
    fn refresh(
        self: &Arc<Self>,
        part: &Part<K, T>,
        inside: &mut Inside<K, T>,
        old: Age,
        begin: impl FnOnce(&mut Inside<K, T>, Home<K, T>) -> Arc<Flight<K, T>>,
        passed: &mut Passed<K, T>,
    ) -> Refresh<K, T> {
        inside.counts.refreshes += 1;
        if self.replay.spawns
            && let Ok(runtime) = Handle::try_current()
        {
            let left = self.replay.windows.revalidate.saturating_sub(old.stale_for());
            let flight = begin(inside, Home::Held(self.clone()));
            return Refresh::Spawns(flight, runtime, left);
        }
        let flight = begin(inside, Home::Holds(Arc::downgrade(self)));
        let replace = |entry: &mut Entry<K, T>| entry.refresh().replace(flight.clone());
        passed.extend(part.kept.change(&flight.key, replace).flatten());
        Refresh::Passes { flight, leads: true }
    }

    fn begin(
        home: Home<K, T>,
        inside: &mut Inside<K, T>,
        key: Hashed<K>,
        fingerprint: Option<Fingerprint>,
        execution: Execution<T>,
    ) -> Arc<Flight<K, T>> {
        let flight = Arc::new(Flight::new(home, key, fingerprint.map(Box::new), execution));
        inside.aloft.insert(&flight);
        flight
    }

    /// What was kept is served no more, and who asks from now on does not join a call that is under way.
    pub(crate) fn invalidate(&self, key: &K) {
        let key = Hashed::new(&self.hasher, key.clone());
        let part = self.part(key.hash);
        let (_left, mut aloft, mut passed);
        (aloft, passed) = (None, Passed::new());
        let mut inside = lock(&part.busy.0);
        let inside = &mut *inside;
        inside.aloft.get(&key, &mut aloft, &mut passed);
        if let Some(flight) = &aloft {
            inside.aloft.remove(flight);
        }
        _left = part.kept.remove(&mut inside.ledger, &key);
    }

    /// [`invalidate`](Self::invalidate) for all keys.
    pub(crate) fn clear(&self) {
        for part in &self.parts {
            let _left;
            let mut inside = lock(&part.busy.0);
            inside.aloft.clear();
            _left = part.kept.retain(&mut inside.ledger, |_| false);
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats { bypassed: self.bypassed.load(Relaxed), ..Stats::default() };
        let (now, windows) = (self.clock.now(), self.replay.windows);
        for part in &self.parts {
            // What serves no more is not there any more, nor is what is held by it.
            let serves = |entry: &Entry<K, T>| entry.at(now, windows).0 != Freshness::Gone;
            let left = part.kept.retain(&mut lock(&part.busy.0).ledger, serves);
            drop(left);
            let inside = lock(&part.busy.0);
            let Counts { stale_hits, stood_in, misses, collapsed, conflicts, refreshes } = inside.counts;
            stats.hits += stale_hits + part.kept.hits(&inside.ledger);
            stats.stale += stale_hits + stood_in;
            stats.misses += misses;
            stats.collapsed += collapsed;
            stats.conflicts += conflicts;
            stats.refreshes += refreshes;
            stats.in_flight += inside.aloft.len();
            stats.entries += inside.ledger.entries();
            stats.bytes += inside.ledger.bytes();
        }
        stats
    }
}

impl<K: Eq, T> Table<K, T> {
    /// A stale answer for a call that failed.
    pub(crate) fn stand_in(&self, flight: &Flight<K, T>) -> Option<(Arc<T>, Served)> {
        let now = self.clock.now();
        let part = self.part(flight.key.hash);
        let _inside = lock(&part.busy.0);
        let stands_in = |entry: &Entry<K, T>| {
            let is_same = entry.fingerprint() == flight.fingerprint.as_deref();
            let tape = entry.value.as_ref().ok().filter(|_| is_same)?;
            Some((tape.clone(), stale(entry.stands_in(now, self.replay.windows)?)))
        };
        part.kept.look(&flight.key, |entry, _| stands_in(entry)).flatten()
    }

    /// Whether an answer is kept that is served still, in whatever window.
    pub(crate) fn serves(&self, flight: &Flight<K, T>) -> bool {
        let now = self.clock.now();
        let part = self.part(flight.key.hash);
        let _inside = lock(&part.busy.0);
        let serves = |entry: &Entry<K, T>| {
            entry.value.is_ok() && entry.at(now, self.replay.windows).0 != Freshness::Gone
        };
        part.kept.look(&flight.key, |entry, _| serves(entry)).unwrap_or(false)
    }

    /// A caller whose call failed was answered all the same.
    pub(crate) fn stood_in(&self, flight: &Flight<K, T>) {
        self.count(flight, |counts| counts.stood_in += 1);
    }

    /// A caller who had joined makes a call of his own.
    pub(crate) fn parted(&self, flight: &Flight<K, T>) {
        self.count(flight, |counts| {
            counts.collapsed -= 1;
            counts.misses += 1;
        });
    }

    /// A caller who was to be served what is stale has got what is new, and reads on if there is more to come. `leads`: it is
    /// what he asked for himself.
    pub(crate) fn renewed(&self, flight: &Flight<K, T>, leads: bool) {
        let part = self.part(flight.key.hash);
        let _flight;
        let mut inside = lock(&part.busy.0);
        let counts = &mut inside.counts;
        counts.stale_hits -= 1;
        if leads {
            counts.refreshes -= 1;
            counts.misses += 1;
        } else {
            counts.collapsed += 1;
        }
        _flight = part.let_go(flight);
    }

    fn count(&self, flight: &Flight<K, T>, count: impl FnOnce(&mut Counts)) {
        count(&mut lock(&self.part(flight.key.hash).busy.0).counts);
    }

    /// Nobody joins the call any more and it is not kept. `supersedes`: nor is what was kept before.
    pub(crate) fn leave(&self, flight: &Flight<K, T>, supersedes: bool) {
        let part = self.part(flight.key.hash);
        let (_left, _flight);
        let mut inside = lock(&part.busy.0);
        if !inside.take(flight) {
            return;
        }
        if supersedes {
            if self.replay.keeps() {
                _left = part.kept.remove(&mut inside.ledger, &flight.key);
            }
        } else {
            _flight = part.let_go(flight);
        }
    }
}

impl<K: Eq, T> Part<K, T> {
    /// The call for a new answer is held by the old one no more. To be called under the lock, and what it gives is to be
    /// dropped where that is not held.
    fn let_go(&self, flight: &Flight<K, T>) -> Option<Arc<Flight<K, T>>> {
        let is_it = |refresh: &mut Arc<Flight<K, T>>| ptr::eq(&**refresh, flight);
        flight
            .is_held()
            .then(|| self.kept.change(&flight.key, |entry| entry.refresh().take_if(is_it)))
            .flatten()
            .flatten()
    }
}

impl<K: Eq + Clone, T> Table<K, T> {
    /// The call is over and its answer is kept, unless it was invalidated.
    pub(crate) fn land(&self, flight: &Flight<K, T>, value: Value<T>, size: usize, terms: Terms) {
        let part = self.part(flight.key.hash);
        let entry = Entry::new(value, self.clock.now(), terms, flight.fingerprint.as_deref());
        let _left;
        let mut inside = lock(&part.busy.0);
        if inside.take(flight) {
            _left = part.kept.insert(&mut inside.ledger, flight.key.clone(), entry, size as u64);
        }
    }
}

impl<K, T> Inside<K, T> {
    /// Nobody finds the flight any more; whether somebody could until now.
    fn take(&mut self, flight: &Flight<K, T>) -> bool {
        let was_there = self.aloft.remove(flight);
        if was_there {
            flight.aloft.store(false, Relaxed);
        }
        was_there
    }
}

/// What a caller finds kept.
enum Seen<T> {
    Fresh(Value<T>, Age),
    Stale(Arc<T>, Age),
    Conflict,
    /// Nothing that he may have.
    Nothing,
}

impl<K, T, E> Found<K, T, E> {
    fn hit(value: Value<T>, age: Age) -> Self {
        Self::Kept(value, Served::Hit { age: age.since(), fresh_for: age.fresh_for() })
    }
}

impl<K, T> Table<K, T> {
    /// What this is for a call with this fingerprint, which may want a new answer.
    #[inline]
    fn seen(
        &self,
        entry: &Entry<K, T>,
        (fingerprint, no_cache): (Option<&Fingerprint>, bool),
        asked: &mut Asked,
    ) -> Seen<T> {
        let (freshness, age) = entry.at(self.clock.now(), self.replay.windows);
        match (freshness, &entry.value) {
            (Freshness::IfError | Freshness::Gone, _) => Seen::Nothing,
            _ if entry.fingerprint() != fingerprint => Seen::Conflict,
            _ if no_cache => Seen::Nothing,
            (Freshness::Fresh, value) => {
                asked.hit();
                Seen::Fresh(value.clone(), age)
            }
            // Only answers have such a time.
            (Freshness::Revalidate, Ok(tape)) => Seen::Stale(tape.clone(), age),
            (Freshness::Revalidate, Err(_)) => Seen::Nothing,
        }
    }
}

fn stale(age: Age) -> Served {
    Served::Stale { age: age.since(), stale_for: age.stale_for() }
}

/// A key that was hashed already.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hashed<K> {
    pub(crate) hash: u64,
    pub(crate) key: K,
}

impl<K: Hash> Hashed<K> {
    fn new(hasher: &RandomState, key: K) -> Self {
        Self { hash: hasher.hash_one(&key), key }
    }
}
