//! Who waits for a key, in what order, and until when. No clock and no tower in here.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use crate::policy::{Denied, State, Terms};

/// A waiter's end of its place in a queue. Only changed under the lock of the queue.
#[derive(Debug)]
pub(crate) struct Place {
    /// Later waiters of a queue have greater numbers.
    number: u64,
    fate: AtomicU64,
}

/// What has become of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Waiting,
    /// Its permits are taken and are its own.
    Granted,
    /// It would have to wait longer than it may: so many nanoseconds.
    Doomed(u64),
}

impl Place {
    pub(crate) fn fate(&self) -> Fate {
        match self.fate.load(Relaxed) {
            0 => Fate::Waiting,
            1 => Fate::Granted,
            wait => Fate::Doomed(wait - 1),
        }
    }

    fn decide(&self, fate: Fate) {
        let code = match fate {
            Fate::Waiting => 0,
            Fate::Granted => 1,
            Fate::Doomed(wait) => wait.clamp(1, u64::MAX - 1) + 1,
        };
        self.fate.store(code, Relaxed);
    }
}

#[derive(Debug)]
struct Waiter {
    place: Arc<Place>,
    cost: u64,
    /// The latest time it may be granted.
    deadline: u64,
    /// When it looks again by itself.
    armed: u64,
    waker: Option<Waker>,
}

/// The waiters of a key, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiters: VecDeque<Waiter>,
    next: u64,
    /// The key's state once the last waiter is served, and when that is. `None` if something changed since.
    tail: Option<(State, u64)>,
}

/// A timer may be late by so much, and whoever it wakes is served as of when he should have been.
pub(crate) const TICK: u64 = 1_000_000;

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiters.len()
    }

    /// How long a call that comes now has to wait behind all others, and the state thereafter.
    fn behind(&mut self, terms: &Terms, state: State, now: u64, cost: u64) -> Result<(State, u64), Denied> {
        let (state, free) = match self.tail {
            Some(tail) => tail,
            None => *self.tail.insert(self.waiters.iter().fold((state, now), |(state, at), waiter| {
                terms.serve(state, at, waiter.cost).unwrap_or((state, at))
            })),
        };
        terms.serve(state, free.max(now), cost)
    }

    /// How long a call that comes now would have to wait.
    pub(crate) fn wait(&mut self, terms: &Terms, state: State, now: u64, cost: u64) -> Denied {
        match self.behind(terms, state, now, cost) {
            Ok((_, at)) => Denied::Wait((at - now).max(1)),
            Err(denied) => denied,
        }
    }

    /// Puts a call at the end, and says when its turn comes.
    pub(crate) fn join(
        &mut self,
        terms: &Terms,
        state: State,
        now: u64,
        cost: u64,
        max_wait: u64,
    ) -> Result<(Arc<Place>, u64), Denied> {
        let (after, at) = self.behind(terms, state, now, cost)?;
        if at - now > max_wait {
            return Err(Denied::Wait(at - now));
        }
        self.tail = Some((after, at));
        let place = Arc::new(Place { number: self.next, fate: AtomicU64::new(0) });
        self.next += 1;
        let deadline = now.saturating_add(max_wait);
        self.waiters.push_back(Waiter { place: place.clone(), cost, deadline, armed: at, waker: None });
        Ok((place, at))
    }

    /// Serves all whose turn has come: `take` takes from the key. Whoever has to know is in `wake`.
    pub(crate) fn advance(
        &mut self,
        mut take: impl FnMut(u64, u64) -> Result<(), Denied>,
        now: u64,
        wake: &mut Vec<Waker>,
    ) {
        while let Some(head) = self.waiters.front_mut() {
            let due = head.armed.clamp(now.saturating_sub(TICK), now);
            let taken = take(due, head.cost).or_else(|_| {
                let late = take(now, head.cost);
                if late.is_ok() {
                    self.tail = None;
                }
                late
            });
            match taken {
                Ok(()) => {
                    head.place.decide(Fate::Granted);
                    self.pop(wake);
                }
                Err(Denied::Wait(wait)) => {
                    let at = now.saturating_add(wait);
                    // As long as it is served when it was to be, so are those behind it: nobody has to count again.
                    if at != head.armed {
                        self.tail = None;
                    }
                    if at.saturating_sub(TICK) > head.deadline {
                        head.place.decide(Fate::Doomed(wait));
                        self.tail = None;
                        self.pop(wake);
                        continue;
                    }
                    if at < head.armed {
                        // It sleeps too long, since somebody before it went away.
                        head.armed = at;
                        wake.extend(head.waker.take());
                    }
                    return;
                }
                Err(Denied::Never) => {
                    head.place.decide(Fate::Doomed(u64::MAX));
                    self.tail = None;
                    self.pop(wake);
                }
            }
        }
        self.tail = None;
    }

    fn pop(&mut self, wake: &mut Vec<Waker>) {
        if let Some(waiter) = self.waiters.pop_front() {
            wake.extend(waiter.waker);
        }
    }

    /// The key's state changed by other means: whoever would now wait too long is told.
    pub(crate) fn reckon(&mut self, terms: &Terms, state: State, now: u64, wake: &mut Vec<Waker>) {
        let (mut state, mut at) = (state, now);
        self.waiters.retain_mut(|waiter| match terms.serve(state, at, waiter.cost) {
            Ok((next, then)) if then.saturating_sub(TICK) <= waiter.deadline => {
                (state, at) = (next, then);
                // Its timer rings before and is set anew then. One that rings too late is the head's to notice.
                waiter.armed = waiter.armed.max(then);
                true
            }
            served => {
                let wait = served.map_or(u64::MAX, |(_, then)| then - now);
                waiter.place.decide(Fate::Doomed(wait));
                wake.extend(waiter.waker.take());
                false
            }
        });
        self.tail = None;
    }

    /// When a waiter has to look again, and by which waker it is told to look before. `None` if it does not wait.
    pub(crate) fn sleep(
        &mut self,
        place: &Arc<Place>,
        terms: &Terms,
        state: State,
        now: u64,
        waker: &Waker,
    ) -> Option<u64> {
        let index = self.index(place)?;
        let waiter = &mut self.waiters[index];
        match &mut waiter.waker {
            Some(known) => known.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        if index == 0 || waiter.armed <= now {
            // The head knows its time. Another one whose time has passed looks again with whoever is before it.
            let mut at = (state, now);
            for before in self.waiters.range(..=index) {
                at = terms.serve(at.0, at.1, before.cost).unwrap_or(at);
            }
            self.waiters[index].armed = at.1.max(now.saturating_add(1));
        }
        Some(self.waiters[index].armed)
    }

    /// Takes a waiter out. False if it does not wait any more.
    pub(crate) fn leave(&mut self, place: &Arc<Place>) -> bool {
        let Some(index) = self.index(place) else { return false };
        self.waiters.remove(index);
        self.tail = None;
        true
    }

    fn index(&self, place: &Arc<Place>) -> Option<usize> {
        let index = self.waiters.binary_search_by_key(&place.number, |waiter| waiter.place.number).ok()?;
        Arc::ptr_eq(&self.waiters[index].place, place).then_some(index)
    }
}

#[cfg(test)]
#[path = "queue/tests.rs"]
mod tests;
