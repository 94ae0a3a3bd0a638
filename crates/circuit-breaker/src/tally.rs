//! A count to which many threads add and which is seldom read.
//!
//! An atomic addition has a cache line to itself until it is done, and the processor waits for that: what else there is in
//! refusing a call takes hardly longer. So each of the first few threads has a number of its own, which nobody else writes,
//! and adds without that. All others share one.

#[cfg(loom)]
use loom::sync::atomic::AtomicU64;
#[cfg(not(loom))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

#[derive(Debug)]
pub(crate) struct Tally {
    own: [AtomicU64; THREADS],
    shared: AtomicU64,
    /// What had been counted when it was last begun anew.
    before: AtomicU64,
}

/// As many as a cache line holds.
const THREADS: usize = 8;

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            own: std::array::from_fn(|_| AtomicU64::new(0)),
            shared: AtomicU64::new(0),
            before: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn add_one(&self) {
        match self.own.get(this_thread()) {
            Some(own) => own.store(own.load(Relaxed) + 1, Relaxed),
            None => _ = self.shared.fetch_add(1, Relaxed),
        }
    }

    /// How many since it was begun anew.
    pub(crate) fn count(&self) -> u64 {
        self.all().saturating_sub(self.before.load(Relaxed))
    }

    pub(crate) fn begin_anew(&self) {
        self.before.store(self.all(), Relaxed);
    }

    fn all(&self) -> u64 {
        self.own.iter().chain([&self.shared]).map(|count| count.load(Relaxed)).sum()
    }
}

/// Threads are numbered in the order in which they come here. No number is given twice.
#[cfg(not(loom))]
#[inline]
fn this_thread() -> usize {
    use std::{cell::Cell, sync::atomic::AtomicUsize};

    const NONE: usize = usize::MAX;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static NUMBER: Cell<usize> = const { Cell::new(NONE) });
    NUMBER.with(|number| {
        if number.get() == NONE {
            number.set(NEXT.fetch_add(1, Relaxed));
        }
        number.get()
    })
}

/// The threads of a model are none that the standard library knows.
#[cfg(loom)]
fn this_thread() -> usize {
    THREADS
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn nothing_is_lost_however_many_threads_there_are() {
        let tally = Tally::new();
        let add = |n: u64| (0..n).for_each(|_| tally.add_one());
        for round in 1..=3 {
            thread::scope(|scope| (0..2 * THREADS).for_each(|_| _ = scope.spawn(|| add(1_000))));
            add(7);
            assert_eq!(tally.count(), round * (2_000 * THREADS as u64 + 7));
        }
        tally.begin_anew();
        assert_eq!(tally.count(), 0);
        add(5);
        assert_eq!(tally.count(), 5);
    }
}
