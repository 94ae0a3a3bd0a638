//! Work that is driven by whoever waits for it.
//!
//! Many wait for the results of one piece of work, and it belongs to none of them: whoever is polled takes it out, polls
//! it without a lock and puts it back, so it goes on as long as any of them is polled. A wake of the work wakes all that
//! wait, since nobody knows which of them will be polled; the first to come drives, and those who come after it find
//! that nothing is left to do. So each of them is polled once for a wake, once at first and once at last.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use crate::sync::{Mutex, MutexGuard, lock};

#[cfg(all(test, loom))]
mod models;

/// The work, what has come of it, and who waits.
pub(crate) struct Relay<W, R> {
    state: Mutex<State<W, R>>,
    bell: Arc<Bell>,
    /// Rings the bell.
    waker: Waker,
}

struct State<W, R> {
    /// `None` while somebody polls it, before it is here, and when it is over.
    work: Option<W>,
    results: R,
}

/// What has come of the work so far.
pub(crate) trait Results {
    type Item;

    /// Takes the next result in; whether there are more to come.
    fn add(&mut self, item: Self::Item) -> bool;

    /// The work panicked: nothing more will come.
    fn panicked(&mut self);
}

/// A place among those who wait. It is to be left when its owner goes.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Where its waker is. It has none before it waits.
    index: Option<usize>,
    waits: bool,
}

impl<W, R: Results> Relay<W, R> {
    /// Work that is not here yet: it is polled from [`start`](Self::start) on.
    pub(crate) fn new(results: R) -> Self {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(bell.clone());
        Self { state: Mutex::new(State { work: None, results }), bell, waker }
    }

    /// Here it is, from `make`. If that panics, the work has.
    pub(crate) fn start(&self, make: impl FnOnce() -> W) {
        let mut outing = Outing { relay: self, work: None };
        outing.work = Some(make());
        outing.back(None);
    }

    /// What `take` finds among the results. While it finds nothing the work is polled with `step`, outside of all locks.
    ///
    /// `take` runs under a lock.
    pub(crate) fn poll<T>(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut R) -> Option<T>,
        mut step: impl FnMut(&mut W, &mut Context<'_>) -> Poll<R::Item>,
    ) -> Poll<T> {
        loop {
            let mut outing = match self.turn(place, cx, &mut take) {
                Turn::Found(found) => return Poll::Ready(found),
                Turn::Waits => return Poll::Pending,
                Turn::Drives(outing) => outing,
            };
            let work = outing.work.as_mut().expect("it comes with the work");
            match step(work, &mut Context::from_waker(&self.waker)) {
                Poll::Pending => {
                    outing.back(Some((place, cx.waker())));
                    return Poll::Pending;
                }
                Poll::Ready(item) => outing.result(item, place),
            }
        }
    }

    /// Looks for a result, and takes the work out if there is none and it has something to do.
    fn turn<T>(
        &self,
        place: &mut Place,
        cx: &Context<'_>,
        take: impl FnOnce(&mut R) -> Option<T>,
    ) -> Turn<'_, T, W, R> {
        let mut state = lock(&self.state);
        if let Some(found) = take(&mut state.results) {
            drop(state);
            self.rest(place);
            return Turn::Found(found);
        }
        let mut waiting = self.bell.waiting();
        if waiting.rung
            && let Some(work) = state.work.take()
        {
            waiting.rung = false;
            waiting.out = true;
            return Turn::Drives(Outing { relay: self, work: Some(work) });
        }
        let displaced = waiting.register(place, cx.waker());
        drop((waiting, state));
        // It may be the last trace of a task, and what goes with that is not ours to know.
        drop(displaced);
        Turn::Waits
    }

    /// Looks at the results.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&R) -> T) -> T {
        look(&lock(&self.state).results)
    }

    /// Whoever has this place waits no more.
    pub(crate) fn rest(&self, place: &mut Place) {
        if mem::take(&mut place.waits) {
            let index = place.index.expect("who waits has a place");
            let waker = self.bell.waiting().wakers[index].take();
            drop(waker);
        }
    }

    /// Whoever has this place goes.
    pub(crate) fn leave(&self, place: &mut Place) {
        if let Some(index) = place.index.take() {
            let mut waiting = self.bell.waiting();
            let waker = waiting.wakers[index].take();
            waiting.free.push(index);
            drop(waiting);
            drop(waker);
        }
    }
}

/// What a poll begins with.
enum Turn<'a, T, W, R: Results> {
    Found(T),
    /// Its waker is where the work's wakes are.
    Waits,
    Drives(Outing<'a, W, R>),
}

/// Work on its way. However it ends, those who wait learn of it.
struct Outing<'a, W, R: Results> {
    relay: &'a Relay<W, R>,
    work: Option<W>,
}

impl<W, R: Results> Outing<'_, W, R> {
    /// The work is here, or nothing came of it so far and who has driven waits. If it was woken meanwhile, that is passed
    /// on now.
    fn back(mut self, waits: Option<(&mut Place, &Waker)>) {
        let mut state = lock(&self.relay.state);
        let mut waiting = self.relay.bell.waiting();
        let displaced = waits.and_then(|(place, waker)| waiting.register(place, waker));
        state.work = self.work.take();
        let wakers = waiting.back();
        drop((waiting, state));
        mem::forget(self);
        wake(wakers);
        drop(displaced);
    }

    /// Here is something for all.
    fn result(mut self, item: R::Item, place: &mut Place) {
        let mut state = lock(&self.relay.state);
        if state.results.add(item) {
            state.work = self.work.take();
        }
        let over = self.work.take();
        let mut waiting = self.relay.bell.waiting();
        // The one who drives has his turn now.
        let own = place.index.and_then(|index| waiting.wakers[index].take());
        place.waits = false;
        // It said that it is ready, so nobody has its waker.
        waiting.rung = true;
        let wakers = waiting.back();
        drop((waiting, state));
        mem::forget(self);
        wake(wakers);
        drop((over, own));
    }
}

impl<W, R: Results> Drop for Outing<'_, W, R> {
    /// The work panicked.
    fn drop(&mut self) {
        let mut state = lock(&self.relay.state);
        state.results.panicked();
        let mut waiting = self.relay.bell.waiting();
        waiting.rung = true;
        let wakers = waiting.back();
        drop((waiting, state));
        wake(wakers);
    }
}

/// Who waits. The work's wakers hold it, and not the work itself.
struct Bell(Mutex<Waiting>);

struct Waiting {
    /// The work has something to do.
    rung: bool,
    /// It is out: whoever has it passes a wake on.
    out: bool,
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Default for Bell {
    fn default() -> Self {
        Self(Mutex::new(Waiting { rung: true, out: true, wakers: Vec::new(), free: Vec::new() }))
    }
}

impl Bell {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        lock(&self.0)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut waiting = self.waiting();
        waiting.rung = true;
        let wakers = if waiting.out { Vec::new() } else { waiting.all() };
        drop(waiting);
        wake(wakers);
    }
}

impl Waiting {
    /// The waker that stood there, if it is another one.
    fn register(&mut self, place: &mut Place, waker: &Waker) -> Option<Waker> {
        place.waits = true;
        let index = *place.index.get_or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.wakers.push(None);
                self.wakers.len() - 1
            })
        });
        match &self.wakers[index] {
            Some(known) if known.will_wake(waker) => None,
            _ => self.wakers[index].replace(waker.clone()),
        }
    }

    /// The work is back: who is to be woken for what happened meanwhile.
    fn back(&mut self) -> Vec<Waker> {
        self.out = false;
        if self.rung { self.all() } else { Vec::new() }
    }

    fn all(&mut self) -> Vec<Waker> {
        self.wakers.iter_mut().filter_map(Option::take).collect()
    }
}

fn wake(wakers: Vec<Waker>) {
    wakers.into_iter().for_each(Waker::wake);
}
