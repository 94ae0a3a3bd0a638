use std::sync::{
    self,
    atomic::Ordering::{Acquire, Relaxed, Release},
};

use crate::{
    account::{Account, Home, wake_all},
    counters::Counters,
    gcra::Cell,
    policy::{Denied, Policy, State, Terms},
    queue::Queue,
    stats::{Count, Counts},
    sync::{AtomicBool, AtomicUsize, Mutex, fence, lock},
};

/// The state of a limiter without keys: one atomic number, and a lock only for what that cannot hold.
#[derive(Debug)]
pub(crate) struct One {
    hot: Hot,
    slowly: Box<Mutex<Slowly>>,
    gate: sync::Mutex<()>,
    counts: Counters,
    queued: AtomicUsize,
}

/// All that a call looks at that does not lock, in cache lines that nothing else is in.
#[derive(Debug)]
#[repr(align(128))]
struct Hot {
    /// As long as nothing is `slow`.
    cell: Option<Cell>,
    /// Whether calls have to lock: somebody waits, nothing passes, or the state does not fit the cell.
    slow: AtomicBool,
}

#[derive(Debug)]
struct Slowly {
    terms: Terms,
    /// The state, if the cell does not hold it.
    state: Option<State>,
    queue: Queue,
}

impl Slowly {
    fn is_needed(&self, now: u64) -> bool {
        self.state.is_some() || !self.queue.is_empty() || now < self.terms.hold
    }
}

impl One {
    pub(crate) fn new(policy: Policy) -> Self {
        let cell = match &policy {
            Policy::Gcra(gcra) => Cell::new(gcra),
            Policy::Fixed(_) | Policy::Sliding(_) => None,
        };
        let state = cell.is_none().then_some([0, 0]);
        Self {
            hot: Hot { slow: AtomicBool::new(cell.is_none()), cell },
            slowly: Box::new(Mutex::new(Slowly {
                terms: Terms { policy, hold: 0 },
                state,
                queue: Queue::default(),
            })),
            gate: sync::Mutex::default(),
            counts: Counters::default(),
            queued: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn take(&self, now: u64, n: u64) -> Result<(), Denied> {
        self.quickly(|cell| cell.take(now, n)).unwrap_or_else(|| self.take_slowly(now, n))
    }

    #[cold]
    fn take_slowly(&self, now: u64, n: u64) -> Result<(), Denied> {
        self.with(now, |account| account.take(now, n))
    }

    /// What [`take`](Self::take) would say.
    pub(crate) fn look(&self, now: u64, n: u64) -> Result<(), Denied> {
        let quickly = self.quickly(|cell| cell.look(now, n));
        quickly.unwrap_or_else(|| self.with(now, |account| account.look(now, n)))
    }

    /// Asks the cell, if that is all there is.
    #[inline]
    fn quickly(&self, ask: impl FnOnce(&Cell) -> Result<(), Denied>) -> Option<Result<(), Denied>> {
        let Hot { cell: Some(cell), slow } = &self.hot else { return None };
        if slow.load(Acquire) {
            return None;
        }
        let told = ask(cell);
        if told.is_err() {
            // The cell may have been closed meanwhile: then it denies, whatever the truth is.
            fence(Acquire);
            if slow.load(Relaxed) {
                return None;
            }
        }
        Some(told)
    }

    pub(crate) fn with<T>(&self, now: u64, look: impl FnOnce(&mut Account<'_>) -> T) -> T {
        let mut slowly = lock(&self.slowly);
        let Slowly { terms, state, queue } = &mut *slowly;
        let home = match (state, &self.hot.cell) {
            (Some(state), _) => Home::Plain(state),
            (None, Some(cell)) => Home::Shared(cell),
            (None, None) => unreachable!("a limiter without a cell has its state under the lock"),
        };
        let mut account = Account { terms: *terms, state: home, queue, wake: Vec::new() };
        let told = look(&mut account);
        let wake = std::mem::take(&mut account.wake);
        *terms = account.terms;
        self.hot.slow.store(slowly.is_needed(now), Release);
        self.queued.store(slowly.queue.len(), Relaxed);
        drop(slowly);
        wake_all(wake);
        told
    }

    /// From now on another policy holds, and calls lock.
    pub(crate) fn set_policy(&self, policy: Policy, now: u64) {
        let mut slowly = lock(&self.slowly);
        let state = match (slowly.state, &self.hot.cell) {
            (Some(state), _) => state,
            (None, Some(cell)) => {
                self.hot.slow.store(true, Release);
                cell.close()
            }
            (None, None) => [0, 0],
        };
        slowly.state = Some(slowly.terms.policy.convert(state, now, &policy));
        slowly.terms.policy = policy;
        drop(slowly);
        self.with(now, |account| account.reckon(now));
    }

    /// What several limits at once lock.
    pub(crate) fn gate(&self) -> &sync::Mutex<()> {
        &self.gate
    }

    #[inline]
    pub(crate) fn count(&self, count: Count) {
        self.counts.count(count);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.counts()
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed)
    }
}

#[cfg(all(test, loom))]
#[path = "one/models.rs"]
mod models;
