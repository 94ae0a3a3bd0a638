//! What has passed and what has not, counted exactly and without a write that threads share.

use std::{
    cell::{Cell, OnceCell},
    sync::atomic::{
        AtomicU32, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use crate::stats::{Count, Counts};

/// Counters, some of which a thread has to itself.
#[derive(Debug, Default)]
pub(crate) struct Counters(Box<[Place; OWN + SHARED]>);

/// Places that belong to a thread as long as it lives. It needs no locked instruction there.
const OWN: usize = 24;

/// Places for all further threads.
const SHARED: usize = 8;

/// It has a cache line to itself.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Place([AtomicU64; 3]);

impl Counters {
    #[inline]
    pub(crate) fn count(&self, count: Count) {
        let place = PLACE.get();
        if place < OWN {
            // Nobody else writes here.
            let counter = &self.0[place].0[count as usize];
            counter.store(counter.load(Relaxed).wrapping_add(1), Relaxed);
        } else {
            self.count_elsewhere(count);
        }
    }

    #[cold]
    fn count_elsewhere(&self, count: Count) {
        if PLACE.get() == NONE_YET {
            PLACE.set(choose());
            return self.count(count);
        }
        self.0[PLACE.get()].0[count as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        std::array::from_fn(|count| self.0.iter().map(|place| place.0[count].load(Relaxed)).sum())
    }
}

thread_local! {
    /// Constant and without a destructor, so that it costs a load and is there to the end of the thread.
    static PLACE: Cell<usize> = const { Cell::new(NONE_YET) };
    static OWNED: OnceCell<Owned> = const { OnceCell::new() };
}

const NONE_YET: usize = usize::MAX;

/// The places that belong to a thread now, a bit each.
static TAKEN: AtomicU32 = AtomicU32::new(0);

/// This thread's place from now on, in all limiters: one of its own while there are any.
fn choose() -> usize {
    OWNED
        .try_with(|owned| owned.get().map(|owned| owned.0).or_else(|| own(owned)))
        .ok()
        .flatten()
        .unwrap_or_else(share)
}

fn own(owned: &OnceCell<Owned>) -> Option<usize> {
    let first_free = |taken: u32| Some(taken | 1 << taken.trailing_ones()).filter(|taken| *taken < 1 << OWN);
    // Whoever had the place before has written what this one reads.
    let taken = TAKEN.fetch_update(Acquire, Relaxed, first_free).ok()?;
    let place = taken.trailing_ones() as usize;
    let _ = owned.set(Owned(place));
    Some(place)
}

fn share() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    OWN + NEXT.fetch_add(1, Relaxed) % SHARED
}

/// A thread's place, free for another one once it ends.
struct Owned(usize);

impl Drop for Owned {
    fn drop(&mut self) {
        PLACE.set(share());
        TAKEN.fetch_and(!(1 << self.0), Release);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{sync::Barrier, thread};

    use super::*;

    /// More threads at once than there are places, and again when those have gone.
    #[test]
    fn every_count_counts() {
        const THREADS: u64 = 40;
        let counts = Counters::default();
        for round in 1..=3 {
            let all = Barrier::new(THREADS as usize);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        counts.count(Count::Admitted);
                        all.wait();
                        (0..1_000).for_each(|_| counts.count(Count::Admitted));
                        counts.count(Count::Refused);
                    });
                }
            });
            assert_eq!(counts.counts(), [round * THREADS * 1_001, round * THREADS, 0]);
        }
    }

    #[test]
    fn threads_have_places_of_their_own_and_leave_them() {
        let places = || {
            let both = Barrier::new(2);
            let place = || {
                Counters::default().count(Count::Admitted);
                both.wait();
                PLACE.get()
            };
            thread::scope(|scope| {
                let threads = [scope.spawn(place), scope.spawn(place)];
                threads.map(|thread| thread.join().unwrap())
            })
        };
        for _ in 0..100 {
            let [one, other] = places();
            assert_ne!(one, other);
        }
    }
}
