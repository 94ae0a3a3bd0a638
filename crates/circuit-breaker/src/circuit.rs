//! What the calls of a breaker share: the published word, and behind a lock everything else.
//!
//! A call must own what it settles. A reference count would do, and would be written to twice a call by every thread: two
//! threads would then be half as fast as one. So a circuit is never freed. When its breaker is gone it waits for the next
//! one, which begins a generation; whatever calls of the old one are still under way find that they are of no generation
//! that counts.
//!
//! While it is open a call is refused without the lock as well: what a dead service is asked most is how long still.

#[cfg(loom)]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, fence},
};
#[cfg(not(loom))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, fence},
};
use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    mem,
    sync::{
        Arc, PoisonError,
        atomic::Ordering::{Acquire, Relaxed, Release},
    },
    task::Waker,
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use crate::{
    clock,
    machine::{Look, Machine, Outcome, Transition},
    settings::Settings,
    started::Started,
    state::{State, Word},
    tally::Tally,
    wait::Wait,
    window::nanos,
};

/// It has its cache lines to itself: what its neighbours write must not slow down who only looks at the word.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Circuit {
    word: AtomicU64,
    /// When the open period of the last generation that was open is over: a [`stamp`](clock::stamp), published before the
    /// word is, and only if that is open.
    open_until: AtomicU64,
    refused: Tally,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    machine: Machine,
    birth: Instant,
    /// Who waits in `poll_ready` for this to change.
    waiting: Vec<(u64, Waker)>,
    watched: watch::Sender<Transition>,
}

/// A call that passed. Settled once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pass {
    circuit: &'static Circuit,
    word: Word,
}

impl Circuit {
    /// A circuit for a new breaker: one that was used before, or a further one.
    pub(crate) fn new(settings: Arc<Settings>) -> &'static Self {
        let seed = RandomState::new().hash_one(0);
        let used = lock_pool().pop();
        match used {
            Some((circuit, first)) => {
                circuit.begin(Machine::new(settings, first, seed));
                circuit
            }
            None => Box::leak(Box::new(Self::first(settings, seed))),
        }
    }

    fn first(settings: Arc<Settings>, seed: u64) -> Self {
        let machine = Machine::new(settings, 0, seed);
        Self {
            word: AtomicU64::new(machine.word().0),
            open_until: AtomicU64::new(0),
            refused: Tally::new(),
            inner: Mutex::new(Inner::new(machine)),
        }
    }

    /// Serves the next breaker.
    fn begin(&self, machine: Machine) {
        let word = machine.word();
        let mut inner = self.lock();
        let old = mem::replace(&mut *inner, Inner::new(machine));
        self.refused.begin_anew();
        self.word.store(word.0, Relaxed);
        drop(inner);
        drop(old);
    }

    /// The breaker is gone. Nobody but calls under way knows this circuit any more.
    pub(crate) fn retire(&'static self) {
        let next = self.end();
        lock_pool().push((self, next));
    }

    fn end(&self) -> u64 {
        let mut inner = self.lock();
        let next = inner.machine.retire();
        self.word.store(inner.machine.word().0, Relaxed);
        // Who watches learns that nothing will come any more.
        let watched = mem::take(&mut inner.watched);
        drop(inner);
        drop(watched);
        next
    }

    /// Lets a call pass. The clock is read only if the answer depends on it.
    #[inline(always)]
    pub(crate) fn admit(&'static self, now: impl FnOnce() -> Instant) -> Result<Pass, Wait> {
        // The word stands for itself: whatever else there is stands behind the lock.
        let word = Word(self.word.load(Relaxed));
        let word = if word.passes() { word } else { self.admit_or_refuse(word, now())? };
        Ok(Pass { circuit: self, word })
    }

    /// What it gives fits in registers: see [`Wait`].
    #[cold]
    fn admit_or_refuse(&self, word: Word, now: Instant) -> Result<Word, Wait> {
        let admitted = match self.left(word, now) {
            Some(wait) => Err(wait),
            None => self.admit_behind_the_lock(now),
        };
        if admitted.is_err() {
            self.refused.add_one();
        }
        admitted
    }

    /// On its own, so that whoever does without the lock does without all that this one keeps at hand.
    #[inline(never)]
    fn admit_behind_the_lock(&self, now: Instant) -> Result<Word, Wait> {
        self.with(now, Machine::admit).map_err(Wait::from)
    }

    /// What is left of the open period that `word` is of, if that can be told without the lock.
    fn left(&self, word: Word, now: Instant) -> Option<Wait> {
        if word.state() != State::Open {
            return None;
        }
        // The time was published before the word.
        fence(Acquire);
        let until = self.open_until.load(Acquire).cast_signed();
        let left = u64::try_from(until.saturating_sub(clock::stamp(now))).ok().filter(|left| *left > 0)?;
        // Between two generations that are open there is one that is not: if the time is of a later one, the word is none
        // of ours any more.
        (self.word.load(Relaxed) == word.0).then(|| Wait::of(left))
    }

    /// Counts a success, if nothing depends on the time. Nobody is told or woken by that.
    fn succeed(&self, word: Word) -> bool {
        let mut inner = self.lock();
        let counted = inner.machine.succeed(word);
        self.word.store(inner.machine.word().0, Relaxed);
        counted
    }

    /// Does something to the machine, publishes what came of it, and wakes whoever waits for that.
    pub(crate) fn with<T>(&self, now: Instant, change: impl FnOnce(&mut Machine, u64) -> T) -> T {
        self.update(now, |inner, now| change(&mut inner.machine, now))
    }

    fn update<T>(&self, now: Instant, change: impl FnOnce(&mut Inner, u64) -> T) -> T {
        let mut inner = self.lock();
        let now = nanos(now.saturating_duration_since(inner.birth));
        let (before, probes) = (inner.machine.generation(), inner.machine.word().probes());
        let result = change(&mut inner, now);
        let word = inner.machine.word();
        let news = inner.machine.generation() != before;
        if news && word.state() == State::Open {
            let until = clock::stamp(inner.birth).saturating_add_unsigned(inner.machine.until());
            self.open_until.store(until.cast_unsigned(), Release);
        }
        self.word.store(word.0, Release);
        let woken = if news || word.probes() < probes { mem::take(&mut inner.waiting) } else { Vec::new() };
        let news = news.then(|| (inner.machine.changed, inner.watched.clone()));
        drop(inner);
        // Strangers' wakers run without the lock. Whoever comes later with older news tells nothing.
        if let Some((changed, watched)) = news {
            watched.send_if_modified(|last| {
                let newer = changed.generation > last.generation;
                if newer {
                    *last = changed;
                }
                newer
            });
        }
        woken.into_iter().for_each(|(_, waker)| waker.wake());
        result
    }

    /// What a call would find. If it would be refused, `waker` is woken when that changes by other means than time; and
    /// when time changes it.
    pub(crate) fn look_or_wait(&self, now: Instant, id: u64, waker: &Waker) -> (Look, Option<Instant>) {
        let look = self.with(now, Machine::look);
        if look.passes {
            return (look, None);
        }
        // What time has brought about has been told by now: nobody who comes to wait here is woken for it.
        let waker = waker.clone();
        let (look, at, replaced) = self.update(now, |inner, now| {
            let look = inner.machine.look(now);
            let at = look.changes_at.map(|at| inner.birth + Duration::from_nanos(at));
            let replaced = (!look.passes).then(|| inner.wait(id, waker));
            (look, at, replaced)
        });
        drop(replaced);
        (look, at)
    }

    /// Whoever waited as `id` does so no more.
    pub(crate) fn leave(&self, id: u64) {
        let mut inner = self.lock();
        let place = inner.waiting.iter().position(|(waiting, _)| *waiting == id);
        let left = place.map(|place| inner.waiting.swap_remove(place));
        drop(inner);
        drop(left);
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Transition> {
        self.lock().watched.subscribe()
    }

    /// When so many nanoseconds had passed.
    pub(crate) fn instant(&self, nanos: u64) -> Instant {
        self.lock().birth + Duration::from_nanos(nanos)
    }

    /// Whether every call passes now.
    #[inline]
    pub(crate) fn passes(&self) -> bool {
        Word(self.word.load(Relaxed)).passes()
    }

    /// Closes it, and forgets everything.
    pub(crate) fn reset(&self, now: Instant) {
        self.with(now, |machine, _| machine.reset());
        self.refused.begin_anew();
    }

    /// Calls refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.count()
    }

    /// Nothing of a user's runs under this lock.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn new(machine: Machine) -> Self {
        let watched = watch::Sender::new(machine.changed);
        Self { machine, birth: clock::now(), waiting: Vec::new(), watched }
    }

    fn wait(&mut self, id: u64, waker: Waker) -> Option<Waker> {
        match self.waiting.iter_mut().find(|(waiting, _)| *waiting == id) {
            Some((_, old)) => Some(mem::replace(old, waker)),
            None => {
                self.waiting.push((id, waker));
                None
            }
        }
    }
}

impl Pass {
    /// Tells what became of the call. The clock is read only if something depends on it.
    #[inline]
    pub(crate) fn settle(self, outcome: Outcome, started: Started, now: impl FnOnce() -> Instant) {
        let word = Word(self.circuit.word.load(Relaxed));
        let is_done = match outcome {
            Outcome::Success => {
                let nothing_to_write = word == self.word && !word.counts_successes();
                nothing_to_write || word.is_timeless() && self.circuit.succeed(self.word)
            }
            // Only a probe has something to give back, and only a call with a known start can have lasted too long.
            Outcome::Ignored => self.word.passes(),
            Outcome::Cancelled => self.word.passes() && !started.is_known(),
            Outcome::Failure(_) => false,
        };
        if !is_done {
            self.settle_behind_the_lock(outcome, started, now());
        }
    }

    fn settle_behind_the_lock(self, outcome: Outcome, started: Started, now: Instant) {
        let took = started.took(now);
        self.circuit.with(now, |machine, now| machine.settle(self.word, outcome, took, now));
    }
}

/// Circuits whose breakers are gone, and the generations that they begin with next.
static POOL: std::sync::Mutex<Vec<(&'static Circuit, u64)>> = std::sync::Mutex::new(Vec::new());

fn lock_pool() -> std::sync::MutexGuard<'static, Vec<(&'static Circuit, u64)>> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(all(test, not(loom)))]
#[path = "circuit/tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "circuit/models.rs"]
mod models;
