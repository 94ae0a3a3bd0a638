//! What a limiter knows of one key while it looks at it: policy, state, queue.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
};

use crate::{
    gcra::Cell,
    policy::{Denied, Level, Policy, State, Terms},
    queue::{Fate, LAST, Place, Queue, Wish},
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
    /// Takes `n` permits for a call that came as `number`, if nobody who came before waits. `at` is the time that the
    /// caller goes by: not later than `now`.
    pub(crate) fn take(&mut self, now: u64, at: u64, n: u64, number: u64) -> Result<(), Denied> {
        self.advance(now);
        if self.queue.has_before(number, now) {
            return Err(self.queue.wait(&self.terms, self.state.get(), now, n, number));
        }
        let terms = self.terms;
        self.state.update(at, |state, at| Ok((terms.take(state, at, n)?, ())))?;
        if !self.queue.is_empty() {
            self.reckon(now);
        }
        Ok(())
    }

    /// What [`take`](Self::take) would say.
    pub(crate) fn look(&mut self, now: u64, n: u64, number: u64) -> Result<(), Denied> {
        self.advance(now);
        if self.queue.has_before(number, now) {
            return Err(self.queue.wait(&self.terms, self.state.get(), now, n, number));
        }
        self.terms.take(self.state.get(), now, n).map(|_| ())
    }

    /// Takes `n` permits, or a place in the queue for them: and how long it has to wait.
    pub(crate) fn enter(
        &mut self,
        now: u64,
        n: u64,
        bounds: Bounds,
    ) -> Result<(Option<Arc<Place>>, u64), Denial> {
        match self.take(now, now, n, LAST) {
            Ok(()) => Ok((None, 0)),
            Err(_) => self.join(now, n, bounds, false, None).map(|(place, wait)| (Some(place), wait)),
        }
    }

    /// Takes a place in the queue: and how long it has to wait.
    pub(crate) fn join(
        &mut self,
        now: u64,
        cost: u64,
        bounds: Bounds,
        joint: bool,
        number: Option<u64>,
    ) -> Result<(Arc<Place>, u64), Denial> {
        let (waiting, state) = (self.queue.len(), self.state.get());
        if waiting >= bounds.max_queue {
            return Err(match self.queue.wait(&self.terms, state, now, cost, LAST) {
                Denied::Wait(wait) if waiting > 0 => Denial::Full(wait),
                denied => Denial::Limited(denied),
            });
        }
        let wish = Wish { cost, max_wait: bounds.max_wait, joint, number };
        let (place, at) = self.queue.join(&self.terms, state, now, wish).map_err(Denial::Limited)?;
        Ok((place, at - now))
    }

    /// Looks after a waiter: what has become of it, or when it has to look again.
    pub(crate) fn attend(&mut self, now: u64, place: &Arc<Place>, waker: &Waker) -> Result<Fate, u64> {
        // Whoever looks need not be woken to look: that would be one poll too many, if the service below is not ready.
        self.queue.hush(place);
        self.advance(now);
        if self.queue.has_turn(place) {
            return Ok(Fate::Turn);
        }
        match self.queue.sleep(place, &self.terms, self.state.get(), now, waker) {
            Some(at) => Err(at),
            None => Ok(place.fate()),
        }
    }

    /// A call of cost `n` that waits here for its permits, or was granted them at `since`, is not made.
    pub(crate) fn withdraw(&mut self, now: u64, n: u64, place: &Arc<Place>) {
        if !self.queue.leave(place) && place.fate() == Fate::Granted {
            self.give_back(now, n, now);
        }
        self.advance(now);
    }

    pub(crate) fn advance(&mut self, now: u64) {
        self.queue.advance(&self.terms, &mut self.state, now, &mut self.wake);
    }

    /// Gives back `n` permits that were taken at `since`.
    pub(crate) fn give_back(&mut self, now: u64, n: u64, since: u64) {
        let policy = self.terms.policy;
        self.change(now, |state, now| policy.refund(state, now, n, since));
    }

    /// What was reserved at `since` cost something else: the rest is charged, and owed if it is not there, or given back.
    pub(crate) fn settle(&mut self, now: u64, reserved: u64, actual: u64, since: u64) {
        let policy = self.terms.policy;
        match actual.checked_sub(reserved) {
            Some(more) => self.change(now, |state, now| policy.amend(state, now, more)),
            None => self.give_back(now, reserved - actual, since),
        }
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
            None => policy.refund(state, now, 1, now),
        });
        Ok(())
    }

    /// Nothing passes before `until`. A hold that lasts longer stays.
    pub(crate) fn hold(&mut self, now: u64, until: u64) {
        if until > now {
            self.terms.hold = self.terms.hold.max(until);
            self.reckon(now);
        }
    }

    /// Nothing is held any more.
    pub(crate) fn release(&mut self, now: u64) {
        self.terms.hold = 0;
        self.reckon(now);
    }

    /// From now on another policy holds.
    pub(crate) fn convert(&mut self, now: u64, to: Policy) {
        let from = std::mem::replace(&mut self.terms.policy, to);
        let converted = from.convert(self.state.get(), now, &to);
        self.change(now, |_, _| converted);
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
