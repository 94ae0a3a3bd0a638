//! What a limiter knows of one key while it looks at it: policy, state, queue.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use crate::{
    gcra::Cell,
    policy::{Denied, Level, State, Terms},
    queue::{Fate, Place, Queue},
};

/// A key, locked.
pub(crate) struct Account<'a> {
    pub(crate) terms: Terms,
    pub(crate) state: Home<'a>,
    pub(crate) queue: &'a mut Queue,
    /// Whoever is to be woken once the lock is gone.
    pub(crate) wake: Vec<Waker>,
}

/// How many may wait for a key, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) max_queue: usize,
    pub(crate) max_wait: u64,
}

/// Why a call is neither let through nor queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// It would have to wait too long.
    Limited(Denied),
    /// No place is left: so many nanoseconds it would have had to wait.
    Full(u64),
}

/// Where a key's state lives.
pub(crate) enum Home<'a> {
    Plain(&'a mut State),
    /// Others may change it meanwhile.
    Shared(&'a Cell),
}

impl Home<'_> {
    pub(crate) fn get(&self) -> State {
        match self {
            Self::Plain(state) => **state,
            Self::Shared(cell) => cell.state(),
        }
    }

    pub(crate) fn update<T>(
        &mut self,
        now: u64,
        mut change: impl FnMut(State, u64) -> Result<(State, T), Denied>,
    ) -> Result<T, Denied> {
        match self {
            Self::Plain(state) => {
                let (next, told) = change(**state, now)?;
                **state = next;
                Ok(told)
            }
            Self::Shared(cell) => cell.update(now, change),
        }
    }
}

impl Account<'_> {
    pub(crate) fn take(&mut self, now: u64, n: u64) -> Result<(), Denied> {
        self.advance(now);
        if self.queue.is_empty() {
            let terms = self.terms;
            return self.state.update(now, |state, now| Ok((terms.take(state, now, n)?, ())));
        }
        Err(self.queue.wait(&self.terms, self.state.get(), now, n))
    }

    /// What [`take`](Self::take) would say.
    pub(crate) fn look(&mut self, now: u64, n: u64) -> Result<(), Denied> {
        self.advance(now);
        if self.queue.is_empty() {
            return self.terms.take(self.state.get(), now, n).map(|_| ());
        }
        Err(self.queue.wait(&self.terms, self.state.get(), now, n))
    }

    /// Takes `n` permits, or a place in the queue for them: and how long it has to wait.
    pub(crate) fn enter(
        &mut self,
        now: u64,
        n: u64,
        bounds: Bounds,
    ) -> Result<(Option<Arc<Place>>, u64), Denial> {
        self.advance(now);
        let free = self.queue.is_empty();
        match self.take(now, n) {
            Ok(()) => return Ok((None, 0)),
            Err(Denied::Wait(wait)) if self.queue.len() >= bounds.max_queue => {
                let full = free && bounds.max_queue == 0;
                return Err(if full { Denial::Limited(Denied::Wait(wait)) } else { Denial::Full(wait) });
            }
            Err(Denied::Wait(_)) => {}
            Err(Denied::Never) => return Err(Denial::Limited(Denied::Never)),
        }
        let state = self.state.get();
        let joined = self.queue.join(&self.terms, state, now, n, bounds.max_wait);
        joined.map(|(place, at)| (Some(place), at - now)).map_err(Denial::Limited)
    }

    /// Looks after a waiter: what has become of it, or when it has to look again.
    pub(crate) fn attend(&mut self, now: u64, place: &Arc<Place>, waker: &Waker) -> Result<Fate, u64> {
        self.advance(now);
        match self.queue.sleep(place, &self.terms, self.state.get(), now, waker) {
            Some(at) => Err(at),
            None => Ok(place.fate()),
        }
    }

    /// A call that waits here for its permits, or was granted them, is not made.
    pub(crate) fn withdraw(&mut self, now: u64, n: u64, place: &Arc<Place>) {
        if !self.queue.leave(place) && place.fate() == Fate::Granted {
            self.settle(now, n, 0);
        }
        self.advance(now);
    }

    pub(crate) fn advance(&mut self, now: u64) {
        let (terms, state) = (self.terms, &mut self.state);
        let take = |at, n| state.update(at, |state, now| Ok((terms.take(state, now, n)?, ())));
        self.queue.advance(take, now, &mut self.wake);
    }

    /// What was reserved cost something else: the rest is charged, and owed if it is not there, or given back.
    pub(crate) fn settle(&mut self, now: u64, reserved: u64, actual: u64) {
        let policy = self.terms.policy;
        self.change(now, |state, now| match actual.checked_sub(reserved) {
            Some(more) => policy.amend(state, now, more),
            None => policy.refund(state, now, reserved - actual),
        });
    }

    /// Charges what a call costs beyond the one permit that was taken for it a while ago, or gives that back. Denied if
    /// it can never cost so much.
    pub(crate) fn charge_rest(&mut self, now: u64, cost: u64) -> Result<(), Denied> {
        let policy = self.terms.policy;
        if cost > policy.capacity() {
            return Err(Denied::Never);
        }
        self.change(now, |state, now| match cost.checked_sub(1) {
            Some(more) => policy.charge(state, now, more),
            None => policy.refund(state, now, 1),
        });
        Ok(())
    }

    /// Nothing passes before `until`. A hold that lasts longer stays.
    pub(crate) fn hold(&mut self, now: u64, until: u64) {
        self.terms.hold = self.terms.hold.max(until);
        self.reckon(now);
    }

    fn change(&mut self, now: u64, change: impl Fn(State, u64) -> State) {
        let changed = self.state.update(now, |state, now| Ok((change(state, now), ())));
        debug_assert!(changed.is_ok(), "nothing is asked that could be denied");
        self.reckon(now);
    }

    /// The state changed by other means than a take.
    pub(crate) fn reckon(&mut self, now: u64) {
        self.queue.reckon(&self.terms, self.state.get(), now, &mut self.wake);
        self.advance(now);
    }

    pub(crate) fn level(&self, now: u64) -> Level {
        self.terms.level(self.state.get(), now)
    }
}

/// Nothing of a user's runs under these locks but `Eq`, `Clone` and `Drop` of keys, and what those leave is whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn wake_all(wake: Vec<Waker>) {
    wake.into_iter().for_each(Waker::wake);
}
