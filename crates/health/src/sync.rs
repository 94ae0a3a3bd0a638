//! The atomics, which loom replaces where it looks at every interleaving, and the only ways to a lock.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

#[cfg(all(loom, test))]
pub(crate) use loom::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    takes_a_lock();
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    takes_a_lock();
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    takes_a_lock();
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Whoever calls something that locks inside says so here.
pub(crate) fn takes_a_lock() {
    #[cfg(all(test, not(loom)))]
    locks::count();
}

/// How many locks this thread has taken.
#[cfg(all(test, not(loom)))]
pub(crate) mod locks {
    use std::cell::Cell;

    thread_local!(static LOCKS: Cell<u64> = const { Cell::new(0) });

    pub(super) fn count() {
        LOCKS.set(LOCKS.get() + 1);
    }

    pub(crate) fn during<T>(run: impl FnOnce() -> T) -> (T, u64) {
        let before = LOCKS.get();
        (run(), LOCKS.get() - before)
    }
}
