//! Who waits for a key, in what order, and until when. No clock and no tower in here.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
};

use crate::{
    account::Home,
    policy::{Denied, State, Terms},
};

/// A waiter's end of its place in a queue. Only changed under the lock of the queue.
#[derive(Debug)]
pub(crate) struct Place {
    /// Later waiters have greater numbers, in whatever queue they are.
    number: u64,
    fate: AtomicU64,
}

/// What has become of a waiter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Waiting,
    /// Its permits are taken and are its own.
    Granted,
    /// Its permits are there, and it has to take them together with others elsewhere.
    Turn,
    /// It would have to wait longer than it may.
    Doomed(Denied),
}

/// How many calls have ever waited.
static ARRIVALS: AtomicU64 = AtomicU64::new(0);

/// The number of whoever comes now, as far as it does not wait.
pub(crate) const LAST: u64 = u64::MAX;

impl Place {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn fate(&self) -> Fate {
        match self.fate.load(Relaxed) {
            0 => Fate::Waiting,
            1 => Fate::Granted,
            2 => Fate::Doomed(Denied::Never),
            wait => Fate::Doomed(Denied::Wait(wait - 2)),
        }
    }

    fn grant(&self) {
        self.fate.store(1, Relaxed);
    }

    fn doom(&self, denied: Denied) {
        let code = match denied {
            Denied::Never => 2,
            Denied::Wait(wait) => wait.clamp(1, u64::MAX - 2) + 2,
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
    /// Whether it takes by itself, and of other limits as well, when its turn has come.
    joint: bool,
    /// Since when it could.
    turn: Option<u64>,
}

impl Waiter {
    /// Whether it does not take what it could: nobody polls it, and others need not wait for that.
    fn is_away(&self, now: u64) -> bool {
        self.turn.is_some_and(|since| now.saturating_sub(since) > 2 * TICK)
    }
}

/// The waiters of a key, first come first served.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiters: VecDeque<Waiter>,
    /// The key's state once the last waiter is served, and when that is. `None` if something changed since.
    tail: Option<(State, u64)>,
}

/// A timer may be late by so much, and whoever it wakes is served as of when he should have been.
pub(crate) const TICK: u64 = 1_000_000;

/// What a call wants that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) cost: u64,
    pub(crate) max_wait: u64,
    /// For a call of several limits, which has waited elsewhere before if it has a number.
    pub(crate) joint: bool,
    pub(crate) number: Option<u64>,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.waiters.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.waiters.len()
    }

    /// Whether somebody waits who came before `number`.
    pub(crate) fn has_before(&self, number: u64, now: u64) -> bool {
        self.waiters
            .iter()
            .take_while(|waiter| waiter.place.number < number)
            .any(|waiter| !waiter.is_away(now))
    }

    /// When a call is served that comes behind `number`, and the key's state then.
    fn behind(
        &mut self,
        terms: &Terms,
        state: State,
        now: u64,
        cost: u64,
        number: u64,
    ) -> Result<(State, u64), Denied> {
        let count = |queue: &VecDeque<Waiter>| {
            let before = queue.iter().take_while(|waiter| waiter.place.number < number);
            before.fold((state, now), |(state, at), waiter| {
                terms.serve(state, at, waiter.cost).unwrap_or((state, at))
            })
        };
        let (state, free) = match self.tail {
            _ if number < LAST => count(&self.waiters),
            Some(tail) => tail,
            None => *self.tail.insert(count(&self.waiters)),
        };
        terms.serve(state, free.max(now), cost)
    }

    /// How long a call would have to wait that came behind `number`.
    pub(crate) fn wait(&mut self, terms: &Terms, state: State, now: u64, cost: u64, number: u64) -> Denied {
        match self.behind(terms, state, now, cost, number) {
            Ok((_, at)) => Denied::Wait((at - now).max(1)),
            Err(denied) => denied,
        }
    }

    /// Puts a call at the end, or where it belongs by its number, and says when its turn comes.
    pub(crate) fn join(
        &mut self,
        terms: &Terms,
        state: State,
        now: u64,
        wish: Wish,
    ) -> Result<(Arc<Place>, u64), Denied> {
        let Wish { cost, max_wait, joint, number } = wish;
        let (after, at) = self.behind(terms, state, now, cost, number.unwrap_or(LAST))?;
        if at - now > max_wait {
            return Err(Denied::Wait(at - now));
        }
        self.tail = number.is_none().then_some((after, at));
        let number = number.unwrap_or_else(|| ARRIVALS.fetch_add(1, Relaxed));
        let place = Arc::new(Place { number, fate: AtomicU64::new(0) });
        let deadline = now.saturating_add(max_wait);
        let waiter =
            Waiter { place: place.clone(), cost, deadline, armed: at, waker: None, joint, turn: None };
        let index = self.waiters.partition_point(|waiter| waiter.place.number < number);
        self.waiters.insert(index, waiter);
        Ok((place, at))
    }

    /// Serves all whose turn has come. Whoever has to know is in `wake`.
    pub(crate) fn advance(&mut self, terms: &Terms, state: &mut Home<'_>, now: u64, wake: &mut Vec<Waker>) {
        // Those before it have their turn, and nobody polls them.
        let mut index = 0;
        while let Some(waiter) = self.waiters.get_mut(index) {
            let (joint, cost) = (waiter.joint, waiter.cost);
            let mut ask = |at| match joint {
                true => terms.take(state.get(), at, cost).map(drop),
                false => state.update(at, |state, at| Ok((terms.take(state, at, cost)?, ()))),
            };
            let due = waiter.armed.clamp(now.saturating_sub(TICK), now);
            let mut late = false;
            let asked = ask(due).or_else(|_| {
                late = true;
                ask(now)
            });
            match asked {
                Ok(()) => {
                    if late {
                        self.tail = None;
                    }
                    if !joint {
                        waiter.place.grant();
                        self.take_out(index, wake);
                    } else if waiter.turn.is_none() {
                        waiter.turn = Some(now);
                        wake.extend(waiter.waker.take());
                        return;
                    } else if waiter.is_away(now) {
                        self.tail = None;
                        index += 1;
                    } else {
                        return;
                    }
                }
                Err(denied @ Denied::Wait(wait)) => {
                    waiter.turn = None;
                    let at = now.saturating_add(wait);
                    // As long as it is served when it was to be, so are those behind it: nobody has to count again.
                    if at != waiter.armed {
                        self.tail = None;
                    }
                    if at.saturating_sub(TICK) > waiter.deadline {
                        waiter.place.doom(denied);
                        self.tail = None;
                        self.take_out(index, wake);
                        continue;
                    }
                    if at < waiter.armed {
                        // It sleeps too long, since somebody before it went away.
                        waiter.armed = at;
                        wake.extend(waiter.waker.take());
                    }
                    return;
                }
                Err(Denied::Never) => {
                    waiter.place.doom(Denied::Never);
                    self.tail = None;
                    self.take_out(index, wake);
                }
            }
        }
        if self.waiters.is_empty() {
            self.tail = None;
        }
    }

    fn take_out(&mut self, index: usize, wake: &mut Vec<Waker>) {
        if let Some(waiter) = self.waiters.remove(index) {
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
                waiter.place.doom(served.map_or_else(|never| never, |(_, then)| Denied::Wait(then - now)));
                wake.extend(waiter.waker.take());
                false
            }
        });
        self.tail = None;
    }

    /// A waiter looks by itself now: it is not woken before it sleeps again.
    pub(crate) fn hush(&mut self, place: &Arc<Place>) {
        if let Some(index) = self.index(place) {
            self.waiters[index].waker = None;
        }
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

    /// Whether a waiter is to take now.
    pub(crate) fn has_turn(&self, place: &Arc<Place>) -> bool {
        self.index(place).is_some_and(|index| self.waiters[index].turn.is_some())
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
