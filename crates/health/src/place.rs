//! A component's place among those that are ejected together.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::eject::{Roster, Seat};

#[derive(Debug)]
pub(crate) struct Place {
    roster: Arc<Roster>,
    seat: Seat,
    consecutive: u32,
    /// Failures in a row, since an ejection or a try of one.
    run: AtomicU32,
    /// How often it was ejected at all.
    ejections: AtomicU64,
}

impl Place {
    /// One more in the roster. They come one at a time.
    pub(crate) fn join(roster: &Arc<Roster>) -> Self {
        Self {
            seat: roster.join(),
            consecutive: roster.consecutive(),
            roster: roster.clone(),
            run: AtomicU32::new(0),
            ejections: AtomicU64::new(0),
        }
    }

    /// It has failed. Whether that ejects it.
    #[cold]
    pub(crate) fn fail(&self, now: u64) -> bool {
        // What is still under way when it is out tells nothing new.
        if self.until(now).is_some() || self.run.fetch_add(1, Relaxed) + 1 < self.consecutive {
            return false;
        }
        self.run.store(0, Relaxed);
        let ejected = self.roster.eject(&self.seat, now).is_some();
        if ejected {
            self.ejections.fetch_add(1, Relaxed);
        }
        ejected
    }

    pub(crate) fn succeed(&self) {
        self.run.store(0, Relaxed);
    }

    /// Until when it is out, if it is.
    #[inline]
    pub(crate) fn until(&self, now: u64) -> Option<u64> {
        self.seat.until(now)
    }

    /// How often it was ejected.
    pub(crate) fn ejections(&self) -> u64 {
        self.ejections.load(Relaxed)
    }

    /// It is in, and nothing is held against it.
    pub(crate) fn forgive(&self) {
        self.roster.forgive(&self.seat);
        self.run.store(0, Relaxed);
    }
}
