//! Something that many own, with a count of owners for each of a few lanes: those of two threads then write to different
//! places, which one count would not let them do.

use std::{
    cell::Cell,
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

const LANES: usize = 16;

/// Who hands it out.
pub(crate) struct Lanes<T>(Arc<[Lane<T>; LANES]>);

/// An owner.
pub(crate) struct Lane<T>(Arc<Lined<T>>);

/// What is counted has its cache lines to itself.
#[repr(align(128))]
struct Lined<T>(Arc<T>);

impl<T> Lanes<T> {
    pub(crate) fn new(owned: T) -> Self {
        let owned = Arc::new(owned);
        Self(Arc::new(std::array::from_fn(|_| Lane(Arc::new(Lined(owned.clone()))))))
    }

    /// One more owner, counted in this thread's lane.
    #[inline]
    pub(crate) fn own(&self) -> Lane<T> {
        let Lane(lane) = &self.0[this_threads_lane() % LANES];
        Lane(lane.clone())
    }
}

impl<T> Clone for Lanes<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Lanes<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0]
    }
}

impl<T> Deref for Lane<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let Lined(owned) = &*self.0;
        owned
    }
}

/// Threads take turns in the order in which they come here.
#[inline]
fn this_threads_lane() -> usize {
    const NONE: usize = usize::MAX;
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static LANE: Cell<usize> = const { Cell::new(NONE) });
    LANE.with(|lane| {
        if lane.get() == NONE {
            lane.set(NEXT.fetch_add(1, Relaxed) % LANES);
        }
        lane.get()
    })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::thread;

    use super::*;

    impl<T> Lanes<T> {
        fn owners(&self) -> Vec<usize> {
            self.0.iter().map(|Lane(lane)| Arc::strong_count(lane) - 1).collect()
        }
    }

    fn on_threads(lanes: &Lanes<u8>, threads: usize) -> Vec<Lane<u8>> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| lanes.clone().own())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// More threads than lanes. Other tests' threads take turns, too.
    #[test]
    fn threads_do_not_all_count_in_one_lane() {
        let lanes = Lanes::new(7);
        let mine = [lanes.own(), lanes.own()];
        assert_eq!(lanes.owners().iter().filter(|owners| **owners > 0).count(), 1);
        let theirs = on_threads(&lanes, 2 * LANES);
        let owners = lanes.owners();
        assert_eq!(owners.iter().sum::<usize>(), 2 + 2 * LANES);
        assert!(owners.iter().filter(|owners| **owners > 0).count() > 1, "{owners:?}");
        assert!(mine.iter().chain(&theirs).all(|owner| **owner == 7) && *lanes == 7);
        drop((mine, theirs));
        assert_eq!(lanes.owners(), [0; LANES]);
    }

    #[test]
    fn the_last_owner_drops_it() {
        let counted = Arc::new(());
        let lanes = Lanes::new(counted.clone());
        let other = lanes.clone();
        let owner = lanes.own();
        drop((lanes, other));
        assert_eq!(Arc::strong_count(&counted), 2);
        thread::scope(|scope| scope.spawn(|| drop(owner)).join().unwrap());
        assert_eq!(Arc::strong_count(&counted), 1);
    }
}
