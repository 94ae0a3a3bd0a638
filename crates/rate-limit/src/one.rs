use std::sync::{
    Mutex,
    atomic::{
        AtomicBool, AtomicU64, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use crate::{
    account::{Account, Home, lock, wake_all},
    gcra::Cell,
    policy::{Denied, Policy, State, Terms},
    queue::Queue,
    stats::{Count, Counts},
};

/// The state of a limiter without keys: one atomic number, and a lock only for what that cannot hold.
#[derive(Debug)]
pub(crate) struct One {
    /// As long as nothing is `slow`.
    cell: Option<Cell>,
    policy: Policy,
    /// Whether calls have to lock: somebody waits, nothing passes, or the state does not fit the cell.
    slow: AtomicBool,
    slowly: Mutex<Slowly>,
    gate: Mutex<()>,
    counts: [AtomicU64; 3],
    queued: AtomicUsize,
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
            slow: AtomicBool::new(cell.is_none()),
            cell,
            policy,
            slowly: Mutex::new(Slowly { terms: Terms { policy, hold: 0 }, state, queue: Queue::default() }),
            gate: Mutex::new(()),
            counts: Default::default(),
            queued: AtomicUsize::new(0),
        }
    }

    #[inline]
    pub(crate) fn take(&self, now: u64, n: u64) -> Result<(), Denied> {
        let Some(cell) = &self.cell else { return self.with(now, |account| account.take(now, n)) };
        if self.slow.load(Acquire) {
            return self.with(now, |account| account.take(now, n));
        }
        let policy = self.policy;
        let taken = cell.update(now, |state, now| Ok((policy.take(state, now, n)?, ())));
        // The cell may have been closed meanwhile: then it denies, whatever the truth is.
        if taken.is_err() && self.slow.load(Acquire) {
            return self.with(now, |account| account.take(now, n));
        }
        taken
    }

    pub(crate) fn with<T>(&self, now: u64, look: impl FnOnce(&mut Account<'_>) -> T) -> T {
        let mut slowly = lock(&self.slowly);
        let Slowly { terms, state, queue } = &mut *slowly;
        let home = match (state, &self.cell) {
            (Some(state), _) => Home::Plain(state),
            (None, Some(cell)) => Home::Shared(cell),
            (None, None) => unreachable!("a limiter without a cell has its state under the lock"),
        };
        let mut account = Account { terms: *terms, state: home, queue, wake: Vec::new() };
        let told = look(&mut account);
        let wake = std::mem::take(&mut account.wake);
        *terms = account.terms;
        self.slow.store(slowly.is_needed(now), Release);
        self.queued.store(slowly.queue.len(), Relaxed);
        drop(slowly);
        wake_all(wake);
        told
    }

    /// From now on another policy holds, and calls lock.
    pub(crate) fn set_policy(&self, policy: Policy, now: u64) {
        let mut slowly = lock(&self.slowly);
        let state = match (slowly.state, &self.cell) {
            (Some(state), _) => state,
            (None, Some(cell)) => {
                self.slow.store(true, Release);
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
    pub(crate) fn gate(&self) -> &Mutex<()> {
        &self.gate
    }

    #[inline]
    pub(crate) fn count(&self, count: Count) {
        self.counts[count as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn counts(&self) -> Counts {
        self.counts.each_ref().map(|count| count.load(Relaxed))
    }

    pub(crate) fn queued(&self) -> usize {
        self.queued.load(Relaxed)
    }
}
