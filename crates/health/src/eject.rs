//! Who is left out because it fails again and again, and for how long.
//!
//! Nothing is locked, and nobody waits. There are as many tickets as the cap allows. Who goes out needs one, and keeps it when
//! it is in again until another one takes it away: so no clock is watched for what is over, and no count is off.

use std::sync::{Arc, OnceLock};

use crate::{
    clock::nanos,
    settings::Ejection,
    sync::{AcqRel, Acquire, AtomicU64, Relaxed, Release},
};

/// The members of a pool, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Roster {
    consecutive: u32,
    base: u64,
    max: u64,
    at_most: u64,
    panic_below: u64,
    forget_after: Option<u64>,
    /// How many members there are.
    members: AtomicU64,
    /// [`Word`]s in the order of their members. Each chunk has twice as many as the one before, so none ever moves.
    chunks: [OnceLock<Arc<[AtomicU64]>>; CHUNKS],
    /// Tickets that members hold, or are about to.
    tickets: AtomicU64,
    overflow: AtomicU64,
}

/// Room for 16,383.
const CHUNKS: usize = 14;

/// A member's.
#[derive(Debug)]
pub(crate) struct Seat {
    chunk: Arc<[AtomicU64]>,
    index: usize,
}

impl Seat {
    #[inline]
    fn word(&self) -> &AtomicU64 {
        &self.chunk[self.index]
    }

    /// Until when its member is out, if it is.
    #[inline]
    pub(crate) fn until(&self, now: u64) -> Option<u64> {
        Some(Word(self.word().load(Acquire)).until()).filter(|until| now < *until)
    }
}

impl Roster {
    pub(crate) fn new(ejection: &Ejection) -> Self {
        Self {
            consecutive: ejection.consecutive,
            base: nanos(ejection.base),
            max: nanos(ejection.max),
            at_most: ejection.at_most.into(),
            panic_below: ejection.panic_below.into(),
            forget_after: ejection.forget_after.map(nanos),
            members: AtomicU64::new(0),
            chunks: std::array::from_fn(|_| OnceLock::new()),
            tickets: AtomicU64::new(0),
            overflow: AtomicU64::new(0),
        }
    }

    /// One more. They come one at a time.
    pub(crate) fn join(&self) -> Seat {
        let number = self.members.load(Relaxed) + 1;
        let chunk = number.ilog2();
        let index = (number - (1 << chunk)) as usize;
        let words = || (0..1 << chunk).map(|_| AtomicU64::new(0)).collect();
        let chunk = self.chunks[chunk as usize].get_or_init(words).clone();
        self.members.store(number, Release);
        Seat { chunk, index }
    }

    fn words(&self, members: u64) -> impl Iterator<Item = &AtomicU64> {
        self.chunks.iter().map_while(OnceLock::get).flat_map(|chunk| &chunk[..]).take(members as usize)
    }

    /// How many failures in a row are too many.
    pub(crate) fn consecutive(&self) -> u32 {
        self.consecutive
    }

    /// A member has failed too often in a row. Until when it is out now, unless the cap forbids that. `None` as well if it
    /// is out already, or somebody else is about to decide it.
    pub(crate) fn eject(&self, seat: &Seat, now: u64) -> Option<u64> {
        let slot = seat.word();
        let claim = |word| Word(word).can_be_claimed(now).then_some(word | CLAIMED);
        let word = Word(slot.fetch_update(AcqRel, Acquire, claim).ok()?);
        let claimed = word.0 | CLAIMED;
        let has_one = word.has_ticket();
        if !has_one && !self.take_ticket(now) {
            self.overflow.fetch_add(1, Relaxed);
            // If it has been forgiven meanwhile there is nothing to undo.
            let _ = slot.compare_exchange(claimed, word.0, AcqRel, Relaxed);
            return None;
        }
        let out = self.out(word, now);
        if slot.compare_exchange(claimed, out.0, AcqRel, Relaxed).is_ok() {
            return Some(out.until());
        }
        // It has been forgiven meanwhile, and what it had before was taken then.
        if !has_one {
            self.tickets.fetch_sub(1, AcqRel);
        }
        None
    }

    /// A new ticket, or one of a member that is in again.
    fn take_ticket(&self, now: u64) -> bool {
        let members = self.members.load(Acquire);
        let one_more = |tickets| (100 * (tickets + 1) <= self.at_most * members).then_some(tickets + 1);
        let idle = |word| Word(word).is_idle(now).then_some(word & !TICKET);
        self.tickets.fetch_update(AcqRel, Acquire, one_more).is_ok()
            || self.words(members).any(|word| word.fetch_update(AcqRel, Acquire, idle).is_ok())
    }

    /// What becomes of a member that goes out.
    fn out(&self, word: Word, now: u64) -> Word {
        let forgotten = self.forget_after.is_some_and(|time| now >= word.until().saturating_add(time));
        let times = (if forgotten { 0 } else { word.times() } + 1).min(MOST_TIMES);
        let until = now.saturating_add(self.base.saturating_mul(times).min(self.max));
        Word::new(times, until)
    }

    /// How often members were not ejected because too many were out.
    pub(crate) fn overflow(&self) -> u64 {
        self.overflow.load(Relaxed)
    }

    /// Whether so few are up that all may be asked.
    pub(crate) fn panics(&self, up: usize) -> bool {
        100 * (up as u64) < self.panic_below * self.members.load(Relaxed)
    }

    /// It is in, and was never out.
    pub(crate) fn forgive(&self, seat: &Seat) {
        if Word(seat.word().swap(0, AcqRel)).has_ticket() {
            self.tickets.fetch_sub(1, AcqRel);
        }
    }
}

/// From the lowest bit: whether it holds a ticket, whether somebody is about to put it out, how often it was out as far as
/// that is remembered, and until which millisecond it is or was the last time, which is enough for 139 years.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word(u64);

const TICKET: u64 = 1;
const CLAIMED: u64 = 2;
const TIMES_AT: u32 = 2;
const UNTIL_AT: u32 = 22;
const MOST_TIMES: u64 = (1 << (UNTIL_AT - TIMES_AT)) - 1;
const LATEST: u64 = (1 << (64 - UNTIL_AT)) - 1;
const MILLISECOND: u64 = 1_000_000;

impl Word {
    fn new(times: u64, until: u64) -> Self {
        Self(TICKET | times << TIMES_AT | until.div_ceil(MILLISECOND).min(LATEST) << UNTIL_AT)
    }

    #[inline]
    fn until(self) -> u64 {
        (self.0 >> UNTIL_AT) * MILLISECOND
    }

    fn times(self) -> u64 {
        self.0 >> TIMES_AT & MOST_TIMES
    }

    fn has_ticket(self) -> bool {
        self.0 & TICKET != 0
    }

    fn can_be_claimed(self, now: u64) -> bool {
        self.0 & CLAIMED == 0 && self.until() <= now
    }

    /// Whether it holds a ticket that it does not need.
    fn is_idle(self, now: u64) -> bool {
        self.has_ticket() && self.can_be_claimed(now)
    }
}

#[cfg(all(test, not(loom)))]
#[path = "eject/tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "eject/models.rs"]
mod models;
