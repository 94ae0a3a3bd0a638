//! A component's place among those that are ejected together.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use crate::{eject::Roster, watched::lock};

#[derive(Debug)]
pub(crate) struct Place {
    roster: Arc<Mutex<Roster>>,
    number: usize,
    consecutive: u32,
    /// Failures in a row, since an ejection or a try of one.
    run: AtomicU32,
    /// Until when it is out, or was the last time.
    until: AtomicU64,
}

impl Place {
    /// One more in the roster, which has so many already.
    pub(crate) fn join(roster: &Arc<Mutex<Roster>>, number: usize) -> Self {
        let mut members = lock(roster);
        members.join();
        let (roster, consecutive) = (roster.clone(), members.consecutive());
        Self { roster, number, consecutive, run: AtomicU32::new(0), until: AtomicU64::new(0) }
    }

    /// It has failed. Whether that ejects it: only then there is a lock.
    #[cold]
    pub(crate) fn fail(&self, now: u64) -> bool {
        // What is still under way when it is out tells nothing new.
        if self.until(now).is_some() || self.run.fetch_add(1, Relaxed) + 1 < self.consecutive {
            return false;
        }
        self.run.store(0, Relaxed);
        let mut roster = lock(&self.roster);
        // Others may have failed as often meanwhile.
        let until = if self.until(now).is_some() { None } else { roster.eject(self.number, now) };
        if let Some(until) = until {
            self.until.store(until, Relaxed);
        }
        until.is_some()
    }

    pub(crate) fn succeed(&self) {
        self.run.store(0, Relaxed);
    }

    /// Until when it is out, if it is.
    #[inline]
    pub(crate) fn until(&self, now: u64) -> Option<u64> {
        Some(self.until.load(Relaxed)).filter(|until| now < *until)
    }

    /// How often it was ejected.
    pub(crate) fn ejections(&self) -> u64 {
        lock(&self.roster).ejections(self.number)
    }

    /// It is in, and nothing is held against it.
    pub(crate) fn forgive(&self) {
        lock(&self.roster).forgive(self.number);
        self.run.store(0, Relaxed);
        self.until.store(0, Relaxed);
    }
}
