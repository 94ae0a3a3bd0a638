//! The answers that are kept, in one part of the table.
//!
//! Each has a place with a lock of its own, and an index says where to look. The index is read without a lock: whoever looks
//! for an answer takes the lock of its place alone, which those who look for others leave alone. Whoever changes what is
//! kept holds the [`Ledger`], which stands under the lock of the part; a look without it may miss what is moved at that
//! moment, and never finds what is not there, since the key is compared in the place. Who must be sure looks with it.
//!
//! Which go first is SIEVE's choice (Zhang and others, NSDI 2024): a hand goes from the oldest to the newest, lets those
//! stay that were asked for since it came by, and takes the first that was not.

use std::sync::{
    OnceLock,
    atomic::Ordering::{Acquire, Release},
};

use crate::{
    sync::{AtomicU64, AtomicUsize, Mutex, lock},
    table::Hashed,
};

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

pub(crate) struct Kept<K, V> {
    /// One is made for twice as many when the one before is half full. Those stay, since somebody may be looking there.
    indexes: [OnceLock<Index>; SIZES],
    /// Which one is used.
    size: AtomicUsize,
    /// Twice as many each time.
    shelves: [OnceLock<Shelf<K, V>>; SIZES],
    most: usize,
    most_bytes: u64,
}

/// How often what is there can double.
const SIZES: usize = 24;

/// How many places there are at first.
const SHELF: usize = 64;

/// For how many there is an index at first.
const LEAST: usize = if cfg!(loom) { 2 } else { SHELF };

type Shelf<K, V> = Box<[Place<K, V>]>;

/// It has its cache lines to itself: who looks here writes here.
#[repr(align(64))]
struct Place<K, V>(Mutex<Spot<K, V>>);

/// What is in a place.
struct Spot<K, V> {
    held: Option<(Hashed<K>, V)>,
    asked: Asked,
}

/// What is where, for whoever changes it.
pub(crate) struct Ledger {
    links: Vec<Link>,
    free: Vec<u32>,
    newest: Option<u32>,
    oldest: Option<u32>,
    /// Where the hand goes on; from the oldest if it came to the end.
    hand: Option<u32>,
    entries: usize,
    bytes: u64,
}

/// A place's neighbours.
#[derive(Clone, Copy, Default)]
struct Link {
    newer: Option<u32>,
    older: Option<u32>,
    size: u64,
}

/// What was taken out. To be dropped where no lock is held.
pub(crate) type Left<K, V> = Vec<(Hashed<K>, V)>;

impl<K, V> Kept<K, V> {
    /// Room for so many, which together have no more bytes than that.
    pub(crate) fn new(most: usize, most_bytes: u64) -> Self {
        let most = most.min(SHELF << (SIZES - 2));
        let kept = Self {
            indexes: [const { OnceLock::new() }; SIZES],
            size: AtomicUsize::new(0),
            shelves: [const { OnceLock::new() }; SIZES],
            most,
            most_bytes,
        };
        kept.indexes[0].get_or_init(|| Index::new(most.min(LEAST)));
        kept
    }

    fn index(&self) -> &Index {
        self.indexes[self.size.load(Acquire)].get().expect("it was made before it was used")
    }

    fn place(&self, place: u32) -> &Mutex<Spot<K, V>> {
        let nth = place as usize + SHELF;
        let size = (nth / SHELF).ilog2() as usize;
        let first = SHELF << size;
        let shelf = self.shelves[size].get_or_init(|| {
            let room = first.min(self.most + SHELF - first);
            (0..room).map(|_| Place(Mutex::new(Spot { held: None, asked: Asked(0) }))).collect()
        });
        &shelf[nth - first].0
    }
}

impl<K: Eq, V> Kept<K, V> {
    /// What `look` says of what is kept under this key.
    ///
    /// `look` runs under a lock.
    #[inline]
    pub(crate) fn look<R>(&self, key: &Hashed<K>, look: impl FnOnce(&V, &mut Asked) -> R) -> Option<R> {
        if self.most == 0 {
            return None;
        }
        self.at(key, |_, Spot { held, asked }| held.as_ref().map(|(_, value)| look(value, asked)))
    }

    /// The same, where what is kept may be changed.
    pub(crate) fn change<R>(&self, key: &Hashed<K>, change: impl FnOnce(&mut V) -> R) -> Option<R> {
        self.at(key, |_, spot| spot.held.as_mut().map(|(_, value)| change(value)))
    }

    /// What `look` says of the place of what is kept under this key.
    #[inline]
    fn at<R>(&self, key: &Hashed<K>, look: impl FnOnce(u32, &mut Spot<K, V>) -> Option<R>) -> Option<R> {
        let search = self.index().search(key.hash);
        for place in search {
            let mut spot = lock(self.place(place));
            if spot.held.as_ref().is_some_and(|(known, _)| known == key) {
                return look(place, &mut spot);
            }
        }
        None
    }

    /// Keeps this, in place of what is kept under the key and of as many others as must go. What is larger than all may be
    /// is not kept.
    pub(crate) fn insert(&self, ledger: &mut Ledger, key: Hashed<K>, value: V, size: u64) -> Left<K, V> {
        let mut left: Left<K, V> = self.remove(ledger, &key).into_iter().collect();
        if size > self.most_bytes || self.most == 0 {
            left.push((key, value));
            return left;
        }
        while ledger.entries == self.most || ledger.bytes > self.most_bytes - size {
            left.extend(self.evict(ledger));
        }
        let (place, hash) = (ledger.enter(size), key.hash);
        {
            let mut spot = lock(self.place(place));
            spot.held = Some((key, value));
            spot.asked.pass();
        }
        self.grow(ledger.entries);
        self.index().insert(hash, place);
        left
    }

    pub(crate) fn remove(&self, ledger: &mut Ledger, key: &Hashed<K>) -> Option<(Hashed<K>, V)> {
        let place = self.at(key, |place, _| Some(place))?;
        self.take(ledger, place)
    }

    /// Takes out what `keeps` does not want.
    pub(crate) fn retain(&self, ledger: &mut Ledger, keeps: impl Fn(&V) -> bool) -> Left<K, V> {
        let goes =
            |place: &u32| lock(self.place(*place)).held.as_ref().is_some_and(|(_, value)| !keeps(value));
        let all: Vec<_> = ledger.places().filter(goes).collect();
        all.into_iter().filter_map(|place| self.take(ledger, place)).collect()
    }

    /// How often what was found here was asked for.
    pub(crate) fn hits(&self, ledger: &Ledger) -> u64 {
        (0..ledger.links.len() as u32).map(|place| lock(self.place(place)).asked.count()).sum()
    }

    fn evict(&self, ledger: &mut Ledger) -> Option<(Hashed<K>, V)> {
        let mut place = ledger.hand.or(ledger.oldest)?;
        while lock(self.place(place)).asked.pass() {
            place = ledger.links[place as usize].newer.or(ledger.oldest)?;
        }
        ledger.hand = Some(place);
        self.take(ledger, place)
    }

    fn take(&self, ledger: &mut Ledger, place: u32) -> Option<(Hashed<K>, V)> {
        let held = lock(self.place(place)).held.take()?;
        self.index().remove(held.0.hash, place);
        ledger.leave(place);
        Some(held)
    }

    /// Sees to an index for so many.
    fn grow(&self, entries: usize) {
        let old = self.index();
        if old.holds(entries) {
            return;
        }
        let size = self.size.load(Acquire) + 1;
        self.indexes[size].get_or_init(|| {
            let new = Index::new(old.0.len());
            old.all().for_each(|(hash, place)| new.insert(hash, place));
            new
        });
        self.size.store(size, Release);
    }
}

/// How often what is in a place was asked for, of all that was ever there; and, in the highest bit, whether it was since the
/// hand came by. A place is as small as can be, since whoever looks for an answer has all of it brought to him.
pub(crate) struct Asked(u64);

impl Asked {
    const SINCE: u64 = 1 << 63;

    /// It was.
    #[inline]
    pub(crate) fn hit(&mut self) {
        self.0 = (self.0 + 1) | Self::SINCE;
    }

    /// The hand comes by; whether it was asked for since the last time.
    fn pass(&mut self) -> bool {
        let since = self.0 & Self::SINCE != 0;
        self.0 = self.count();
        since
    }

    const fn count(&self) -> u64 {
        self.0 & !Self::SINCE
    }
}

impl Ledger {
    pub(crate) const fn new() -> Self {
        Self {
            links: Vec::new(),
            free: Vec::new(),
            newest: None,
            oldest: None,
            hand: None,
            entries: 0,
            bytes: 0,
        }
    }

    pub(crate) const fn entries(&self) -> usize {
        self.entries
    }

    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// From the oldest to the newest.
    fn places(&self) -> impl Iterator<Item = u32> {
        std::iter::successors(self.oldest, |place| self.links[*place as usize].newer)
    }

    /// A place for what is the newest from now on.
    fn enter(&mut self, size: u64) -> u32 {
        let place = self.free.pop().unwrap_or_else(|| {
            self.links.push(Link::default());
            (self.links.len() - 1) as u32
        });
        self.links[place as usize] = Link { newer: None, older: self.newest, size };
        match self.newest.replace(place) {
            Some(older) => self.links[older as usize].newer = Some(place),
            None => self.oldest = Some(place),
        }
        self.entries += 1;
        self.bytes += size;
        place
    }

    fn leave(&mut self, place: u32) {
        let Link { newer, older, size } = self.links[place as usize];
        match newer {
            Some(newer) => self.links[newer as usize].older = older,
            None => self.newest = older,
        }
        match older {
            Some(older) => self.links[older as usize].newer = newer,
            None => self.oldest = newer,
        }
        if self.hand == Some(place) {
            self.hand = newer;
        }
        self.free.push(place);
        self.entries -= 1;
        self.bytes -= size;
    }
}

/// Where to look for a hash: from its home on, until nothing is there. Half of it is empty at least.
struct Index(Box<[AtomicU64]>);

/// Nothing is there. A hash's lower half and the place, from one on, make up what is.
const NOTHING: u64 = 0;

impl Index {
    fn new(entries: usize) -> Self {
        let room = (2 * entries).next_power_of_two().max(4);
        Self((0..room).map(|_| AtomicU64::new(NOTHING)).collect())
    }

    fn holds(&self, entries: usize) -> bool {
        2 * entries <= self.0.len()
    }

    /// All that is there, with as much of the hash as it takes to insert it.
    fn all(&self) -> impl Iterator<Item = (u64, u32)> {
        let cells = self.0.iter().map(|cell| cell.load(Acquire));
        cells.filter(|cell| *cell != NOTHING).map(|cell| (tag(cell), place(cell)))
    }

    fn search(&self, hash: u64) -> Search<'_> {
        Search { index: &self.0, tag: hash & TAG, at: hash as usize }
    }

    fn insert(&self, hash: u64, place: u32) {
        let mut at = self.home(hash);
        while self.0[at].load(Acquire) != NOTHING {
            at = self.next(at);
        }
        self.0[at].store(cell(hash, place), Release);
    }

    /// Takes out what is there, and moves what stands behind it closer to its home.
    fn remove(&self, hash: u64, place: u32) {
        let mut hole = self.home(hash);
        while self.0[hole].load(Acquire) != cell(hash, place) {
            hole = self.next(hole);
        }
        let mut at = hole;
        loop {
            at = self.next(at);
            let cell = self.0[at].load(Acquire);
            if cell == NOTHING {
                break;
            }
            if self.steps(self.home(cell), at) >= self.steps(hole, at) {
                self.0[hole].store(cell, Release);
                hole = at;
            }
        }
        self.0[hole].store(NOTHING, Release);
    }

    fn home(&self, hash: u64) -> usize {
        (hash & TAG) as usize & (self.0.len() - 1)
    }

    fn next(&self, at: usize) -> usize {
        (at + 1) & (self.0.len() - 1)
    }

    fn steps(&self, from: usize, to: usize) -> usize {
        to.wrapping_sub(from) & (self.0.len() - 1)
    }
}

/// The places at which what has some hash may be.
struct Search<'a> {
    index: &'a [AtomicU64],
    tag: u64,
    at: usize,
}

impl Iterator for Search<'_> {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        loop {
            let cell = self.index[self.at & (self.index.len() - 1)].load(Acquire);
            self.at = self.at.wrapping_add(1);
            if cell == NOTHING {
                return None;
            }
            if tag(cell) == self.tag {
                return Some(place(cell));
            }
        }
    }
}

const TAG: u64 = u32::MAX as u64;

const fn cell(hash: u64, place: u32) -> u64 {
    (place as u64 + 1) << 32 | hash & TAG
}

const fn tag(cell: u64) -> u64 {
    cell & TAG
}

const fn place(cell: u64) -> u32 {
    (cell >> 32) as u32 - 1
}
