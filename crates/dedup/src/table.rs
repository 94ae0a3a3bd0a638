//! Which calls are under way, and which answers are kept.
//!
//! Both stand under the lock of their key's part of the table, so a call is never in both, nor in neither.

use std::{
    cell::RefCell,
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    iter, ptr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use quick_cache::{Lifecycle, Options, OptionsBuilder, Weighter, unsync::Cache};
use tokio::time::Instant;

use crate::{
    Fingerprint, Identity, Replay, Served, Stats,
    flight::{Flight, Value},
    lifetime::{Freshness, Lifetime, Terms},
    sync::{Mutex, lock},
};

#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) struct Table<K, T> {
    pub(crate) replay: Replay<T>,
    hasher: RandomState,
    parts: Box<[Part<K, T>]>,
    bypassed: AtomicU64,
}

/// A part of the table has its cache lines to itself.
#[repr(align(128))]
struct Part<K, T>(Mutex<Inside<K, T>>);

struct Inside<K, T> {
    flights: HashMap<Hashed<K>, Aloft<K, T>, BuildHasherDefault<Known>>,
    kept: Cache<Hashed<K>, Entry<K, T>, Weight, BuildHasherDefault<Known>, Evict>,
    counts: Counts,
}

struct Aloft<K, T> {
    flight: Weak<Flight<K, T>>,
    fingerprint: Option<Fingerprint>,
}

struct Entry<K, T> {
    value: Value<T>,
    life: Lifetime,
    fingerprint: Option<Fingerprint>,
    size: u64,
    /// The call for a new one that nobody waits for: callers drive it as they pass.
    refresh: Option<Arc<Flight<K, T>>>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    hits: u64,
    stale: u64,
    misses: u64,
    collapsed: u64,
    conflicts: u64,
}

/// What there is for a call.
pub(crate) enum Found<K, T> {
    Kept(Value<T>, Served),
    /// Stale, and this is for whoever is to fetch a new one.
    Stale(Arc<T>, Served, Refresh<K, T>),
    /// Another caller has begun it.
    Joined(Arc<Flight<K, T>>),
    /// It is for this caller to begin.
    Leads(Arc<Flight<K, T>>),
    /// The key is known with another fingerprint.
    Conflict,
}

pub(crate) enum Refresh<K, T> {
    /// It is for this caller to begin.
    Leads(Arc<Flight<K, T>>),
    /// This caller may drive it.
    Joined(Arc<Flight<K, T>>),
    /// A task drives it.
    Runs,
}

/// What was taken out under a lock and is to be dropped outside of it: dropping it is the user's code, or takes the lock.
struct Leftovers<K, T> {
    entries: Vec<Entry<K, T>>,
    flights: Vec<Arc<Flight<K, T>>>,
}

impl<K, T> Default for Leftovers<K, T> {
    fn default() -> Self {
        Self { entries: Vec::new(), flights: Vec::new() }
    }
}

/// No more than so many, and none for fewer entries than that.
const MOST_PARTS: usize = 16;
const ENTRIES_A_PART: usize = 64;

impl<K: Eq, T> Table<K, T> {
    pub(crate) fn new(replay: Replay<T>) -> Self {
        let parts = (replay.max_entries / ENTRIES_A_PART).clamp(1, MOST_PARTS);
        let parts = 1_usize << parts.ilog2();
        let (options, weight) = bounds(&replay, parts);
        let part = || {
            let kept = Cache::with_options(options.clone(), weight, BuildHasherDefault::default(), Evict);
            Part(Mutex::new(Inside { flights: HashMap::default(), kept, counts: Counts::default() }))
        };
        let parts = iter::repeat_with(part).take(parts).collect();
        Self { replay, hasher: RandomState::new(), parts, bypassed: AtomicU64::new(0) }
    }
}

impl<K, T> Table<K, T> {
    /// A call without a key.
    pub(crate) fn bypass(&self) {
        self.bypassed.fetch_add(1, Relaxed);
    }

    fn part(&self, hash: u64) -> &Mutex<Inside<K, T>> {
        // The maps inside use the lowest and the highest bits.
        &self.parts[(hash >> 32) as usize % self.parts.len()].0
    }
}

impl<K: Hash + Eq + Clone, T> Table<K, T> {
    /// What there is for a call, which is counted as what it finds.
    pub(crate) fn find(self: &Arc<Self>, identity: Identity<K>) -> Found<K, T> {
        let Identity { key, fingerprint, no_cache } = identity;
        let key = Hashed::new(&self.hasher, key);
        let mut left = Leftovers::default();
        let mut part = lock(self.part(key.hash));
        let inside = &mut *part;
        let aloft = inside.flights.get(&key);
        let aloft = aloft.and_then(|aloft| Some((aloft.flight.upgrade()?, aloft.fingerprint)));

        if let Some(entry) = inside.kept.get(&key) {
            let now = Instant::now();
            match entry.life.at(now) {
                Freshness::IfError | Freshness::Gone => {}
                _ if entry.fingerprint != fingerprint => {
                    inside.counts.conflicts += 1;
                    left.flights.extend(aloft.map(|(flight, _)| flight));
                    return Found::Conflict;
                }
                _ if no_cache => {}
                Freshness::Fresh => {
                    inside.counts.hits += 1;
                    left.flights.extend(aloft.map(|(flight, _)| flight));
                    let (age, fresh_for) = (entry.life.age(now), entry.life.fresh_for(now));
                    return Found::Kept(entry.value.clone(), Served::Hit { age, fresh_for });
                }
                // Only answers have such a time.
                Freshness::Revalidate => {
                    if let Ok(tape) = entry.value.clone() {
                        inside.counts.hits += 1;
                        inside.counts.stale += 1;
                        let served = entry.stale(now);
                        let refresh = match aloft {
                            Some((flight, _)) if self.replay.spawns => {
                                left.flights.push(flight);
                                Refresh::Runs
                            }
                            Some((flight, _)) => Refresh::Joined(flight),
                            None => Refresh::Leads(self.begin(inside, key.clone(), fingerprint)),
                        };
                        if let Refresh::Leads(flight) = &refresh
                            && !self.replay.spawns
                            && let Some(mut entry) = inside.kept.peek_mut(&key)
                        {
                            left.flights.extend(entry.refresh.replace(flight.clone()));
                        }
                        return Found::Stale(tape, served, refresh);
                    }
                }
            }
        }

        match aloft {
            Some((flight, known)) if known != fingerprint => {
                inside.counts.conflicts += 1;
                left.flights.push(flight);
                Found::Conflict
            }
            Some((flight, _)) => {
                inside.counts.collapsed += 1;
                Found::Joined(flight)
            }
            None => {
                inside.counts.misses += 1;
                Found::Leads(self.begin(inside, key, fingerprint))
            }
        }
    }

    fn begin(
        self: &Arc<Self>,
        inside: &mut Inside<K, T>,
        key: Hashed<K>,
        fingerprint: Option<Fingerprint>,
    ) -> Arc<Flight<K, T>> {
        let flight = Arc::new(Flight::new(Arc::downgrade(self), key.clone()));
        inside.flights.insert(key, Aloft { flight: Arc::downgrade(&flight), fingerprint });
        flight
    }

    /// What was kept is served no more, and who asks from now on does not join a call that is under way.
    pub(crate) fn invalidate(&self, key: &K) {
        let key = Hashed::new(&self.hasher, key.clone());
        let mut left = Leftovers::default();
        let mut part = lock(self.part(key.hash));
        let inside = &mut *part;
        inside.flights.remove(&key);
        left.entries.extend(inside.kept.remove(&key).map(|(_, entry)| entry));
    }

    /// [`invalidate`](Self::invalidate) for all keys.
    pub(crate) fn clear(&self) {
        for part in &self.parts {
            let mut left = Leftovers::default();
            let mut part = lock(&part.0);
            part.flights.clear();
            left.entries.extend(part.kept.drain().map(|(_, entry)| entry));
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats { bypassed: self.bypassed.load(Relaxed), ..Stats::default() };
        let now = Instant::now();
        for part in &self.parts {
            let left = RefCell::new(Leftovers::default());
            let mut part = lock(&part.0);
            // What serves no more is not there any more.
            part.kept.retain(|_, entry| {
                let serves = entry.life.at(now) != Freshness::Gone;
                if !serves {
                    left.borrow_mut().entries.push(entry.clone());
                }
                serves
            });
            let Counts { hits, stale, misses, collapsed, conflicts } = part.counts;
            stats.hits += hits;
            stats.stale += stale;
            stats.misses += misses;
            stats.collapsed += collapsed;
            stats.conflicts += conflicts;
            stats.in_flight += part.flights.values().filter(|aloft| aloft.flight.strong_count() > 0).count();
            stats.entries += part.kept.len();
            stats.bytes += part.kept.iter().map(|(_, entry)| entry.size).sum::<u64>();
        }
        stats
    }
}

impl<K: Eq, T> Table<K, T> {
    /// A stale answer for a call that failed.
    pub(crate) fn stand_in(&self, key: &Hashed<K>) -> Option<(Arc<T>, Served)> {
        let mut part = lock(self.part(key.hash));
        let entry = part.kept.peek(key)?;
        let now = Instant::now();
        let tape = entry.value.as_ref().ok().filter(|_| entry.life.stands_in(now))?.clone();
        let served = entry.stale(now);
        part.counts.stale += 1;
        Some((tape, served))
    }

    /// The call is over and its answer is kept, unless it was invalidated.
    pub(crate) fn land(&self, flight: &Flight<K, T>, value: Value<T>, size: usize, terms: Terms) {
        let mut left = Vec::new();
        let life = Lifetime::new(Instant::now(), terms);
        let mut part = lock(self.part(flight.key.hash));
        let inside = &mut *part;
        if let Some((key, aloft)) = inside.take(flight) {
            let (fingerprint, size) = (aloft.fingerprint, size as u64);
            left.extend(inside.kept.peek(&key).cloned());
            let entry = Entry { value, life, fingerprint, size, refresh: None };
            inside.kept.insert_with_lifecycle(key, entry, &mut left);
        }
    }

    /// Nobody joins the call any more and it is not kept. `supersedes`: nor is what was kept before.
    pub(crate) fn leave(&self, flight: &Flight<K, T>, supersedes: bool) {
        let mut left = Leftovers::default();
        let mut part = lock(self.part(flight.key.hash));
        let inside = &mut *part;
        if let Some((key, _)) = inside.take(flight)
            && supersedes
        {
            left.entries.extend(inside.kept.remove(&key).map(|(_, entry)| entry));
        }
    }
}

impl<K: Eq, T> Inside<K, T> {
    /// The flight's place, if it still has it.
    fn take(&mut self, flight: &Flight<K, T>) -> Option<(Hashed<K>, Aloft<K, T>)> {
        let aloft = self.flights.get(&flight.key)?;
        if !ptr::eq(aloft.flight.as_ptr(), flight) {
            return None;
        }
        flight.aloft.store(false, Relaxed);
        self.flights.remove_entry(&flight.key)
    }
}

/// How much a part holds, and what an answer weighs.
///
/// Neither bound is passed if no answer weighs less than all bytes over all entries, and each byte as much as entries fit.
fn bounds<T>(replay: &Replay<T>, parts: usize) -> (Options, Weight) {
    let entries = (replay.max_entries / parts).max(1);
    let byte = entries as u64;
    let bytes = (replay.max_bytes / parts as u64).clamp(1, (1 << 62) / byte);
    let capacity = bytes * byte;
    let options = OptionsBuilder::new()
        // The room that is made at once.
        .estimated_items_capacity(entries.min(ENTRIES_A_PART))
        .weight_capacity(capacity)
        .hot_allocation(HOT)
        .build()
        .expect("both capacities are given");
    // What is heavier than the hot part is not let in at all.
    let heaviest = ((capacity as f64 * HOT) as u64).max(1);
    (options, Weight { byte, least: bytes.min(heaviest) })
}

/// The share of what is kept that is not the first to go: quick_cache's default.
const HOT: f64 = 0.97;

impl<K, T> Entry<K, T> {
    fn stale(&self, now: Instant) -> Served {
        Served::Stale { age: self.life.age(now), stale_for: self.life.stale_for(now) }
    }
}

impl<K, T> Clone for Entry<K, T> {
    fn clone(&self) -> Self {
        let Self { value, life, fingerprint, size, refresh } = self;
        Self {
            value: value.clone(),
            life: *life,
            fingerprint: *fingerprint,
            size: *size,
            refresh: refresh.clone(),
        }
    }
}

#[derive(Clone, Copy)]
struct Weight {
    byte: u64,
    least: u64,
}

impl<K, T> Weighter<Hashed<K>, Entry<K, T>> for Weight {
    fn weight(&self, _: &Hashed<K>, entry: &Entry<K, T>) -> u64 {
        // Half of what a sum can be: nothing of that size is let in.
        entry.size.saturating_mul(self.byte).clamp(self.least, 1 << 63)
    }
}

/// What is evicted is handed out, to be dropped where no lock is held.
struct Evict;

impl<K, T> Lifecycle<Hashed<K>, Entry<K, T>> for Evict {
    type RequestState = Vec<Entry<K, T>>;

    fn on_evict(&self, left: &mut Self::RequestState, _: Hashed<K>, entry: Entry<K, T>) {
        left.push(entry);
    }
}

/// A key that was hashed already.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hashed<K> {
    hash: u64,
    key: K,
}

impl<K: Hash> Hashed<K> {
    fn new(hasher: &RandomState, key: K) -> Self {
        Self { hash: hasher.hash_one(&key), key }
    }
}

impl<K> Hash for Hashed<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Hashes what was hashed already.
#[derive(Default)]
struct Known(u64);

impl Hasher for Known {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("hashed keys write their hash");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
