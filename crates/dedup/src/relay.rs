//! Work that is driven by whoever waits for it.
//!
//! Many wait for the results of one piece of work, and it belongs to none of them: whoever is polled takes it out, polls
//! it without a lock and puts it back, so it goes on as long as any of them is polled.
//!
//! The first who comes is alone with it, as if there were nothing between: the work has his waker, and a wake costs what it
//! would cost him anyway. When a second one comes a bell is hung up, and the work is polled once more to have it. From then
//! on a wake of the work wakes all that wait, since nobody knows which of them will be polled; the first to come drives, and
//! those who come after it find that nothing is left to do. So each of them is polled once for a wake, once at first and
//! once at last.

use std::{
    mem,
    sync::{Arc, OnceLock},
    task::{Context, Poll, Wake, Waker},
};

use crate::sync::{Mutex, MutexGuard, lock};

#[cfg(all(test, loom))]
mod models;
#[cfg(all(test, not(loom)))]
mod tests;

/// The work, what has come of it, and who waits.
pub(crate) struct Relay<W, R> {
    state: Mutex<State<W, R>>,
    /// Hung up under the lock of the state, when a second one comes.
    bell: OnceLock<Rope>,
}

struct State<W, R> {
    /// `None` while somebody polls it, and when it is over.
    work: Option<W>,
    results: R,
    /// Somebody was the first to come: whoever comes now is not alone with the work.
    has_first: bool,
    /// The waker of the first one, while he waits and there is no bell.
    first: Option<Waker>,
}

/// What has come of the work so far.
pub(crate) trait Results {
    type Item;

    /// Takes the next result in; whether there are more to come.
    fn add(&mut self, item: Self::Item) -> bool;

    /// The work panicked: nothing more will come.
    fn panicked(&mut self);
}

/// What comes of a poll of the work.
pub(crate) enum Yield<I, T> {
    /// A result for all.
    Shared(I),
    /// The work is over, and this is for who has driven it: nobody else is there, nor will be.
    Own(T),
}

/// A place among those who wait. It is to be left when its owner goes.
#[derive(Debug, Default)]
pub(crate) struct Place {
    /// Where its waker is. It has none before it waits, unless it is the first one.
    index: Option<usize>,
}

/// The place of whoever comes first.
const FIRST: usize = 0;

impl<W, R: Results> Relay<W, R> {
    /// With no work, all that is to come is there.
    pub(crate) fn new(work: Option<W>, results: R) -> Self {
        let state = State { work, results, has_first: false, first: None };
        Self { state: Mutex::new(state), bell: OnceLock::new() }
    }

    /// What `take` finds among the results. While it finds nothing the work is polled with `step`, outside of all locks.
    ///
    /// `take` runs under a lock.
    pub(crate) fn poll<T>(
        &self,
        place: &mut Place,
        cx: &mut Context<'_>,
        mut take: impl FnMut(&mut R) -> Option<T>,
        mut step: impl FnMut(&mut W, &mut Context<'_>) -> Poll<Yield<R::Item, T>>,
    ) -> Poll<T> {
        loop {
            let mut outing = match self.turn(place, cx.waker(), &mut take) {
                Turn::Found(found) => return Poll::Ready(found),
                Turn::Waits => return Poll::Pending,
                Turn::Drives(outing) => outing,
            };
            let waker = outing.rope.map_or(cx.waker(), |rope| &rope.waker);
            let work = outing.work.as_mut().expect("it comes with the work");
            match step(work, &mut Context::from_waker(waker)) {
                Poll::Pending => {
                    if outing.back(place, cx.waker()) {
                        return Poll::Pending;
                    }
                }
                Poll::Ready(Yield::Own(own)) => {
                    outing.ends(place);
                    return Poll::Ready(own);
                }
                Poll::Ready(Yield::Shared(item)) => {
                    if let Some(found) = outing.result(item, place, &mut take) {
                        return Poll::Ready(found);
                    }
                }
            }
        }
    }

    /// Looks for a result, and takes the work out if there is none and it has something to do.
    fn turn<T>(
        &self,
        place: &mut Place,
        waker: &Waker,
        take: impl FnOnce(&mut R) -> Option<T>,
    ) -> Turn<'_, T, W, R> {
        let mut state = lock(&self.state);
        if let Some(found) = take(&mut state.results) {
            return Turn::Found(found);
        }
        let rope = match self.bell.get() {
            Some(rope) => rope,
            None if state.is_alone(place) => {
                return Turn::Drives(Outing { relay: self, work: state.work.take(), rope: None });
            }
            None => {
                let (is_out, first) = (state.work.is_none(), state.first.take());
                self.bell.get_or_init(|| Rope::new(is_out, first))
            }
        };
        let mut waiting = rope.bell.waiting();
        if waiting.rung
            && let Some(work) = state.work.take()
        {
            waiting.rung = false;
            waiting.out = true;
            return Turn::Drives(Outing { relay: self, work: Some(work), rope: Some(rope) });
        }
        let displaced = waiting.register(place, waker);
        drop((waiting, state));
        // It may be the last trace of a task, and what goes with that is not ours to know.
        drop(displaced);
        Turn::Waits
    }

    /// Looks at the results.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&R) -> T) -> T {
        look(&lock(&self.state).results)
    }

    /// Whoever has this place goes.
    pub(crate) fn leave(&self, place: &mut Place) {
        if let Some(index) = place.index.take() {
            let mut state = lock(&self.state);
            let waker = match self.bell.get() {
                Some(rope) => rope.bell.waiting().leave(index),
                None => state.first.take(),
            };
            drop(state);
            drop(waker);
        }
    }
}

impl<W, R> State<W, R> {
    /// Whether this is the first one to come, and the work is there for him.
    fn is_alone(&mut self, place: &mut Place) -> bool {
        let is_first = place.index.is_some() || !self.has_first;
        let is_alone = is_first && self.work.is_some();
        if is_alone {
            self.has_first = true;
            place.index = Some(FIRST);
        }
        is_alone
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
    /// What the work is to ring. Where there is none yet it has the waker of the first one.
    rope: Option<&'a Rope>,
}

impl<W, R: Results> Outing<'_, W, R> {
    /// Nothing came of it so far; whether who has driven can wait now. If it was woken meanwhile, that is passed on.
    fn back(mut self, place: &mut Place, waker: &Waker) -> bool {
        let mut state = lock(&self.relay.state);
        state.work = self.work.take();
        let (waits, wakers, displaced) = match (self.relay.bell.get(), self.rope) {
            (None, _) => {
                let displaced = replace(&mut state.first, waker);
                (true, None, displaced)
            }
            // Somebody came meanwhile and has hung it up: it is rung, and the work is to be polled with it.
            (Some(_), None) => (false, None, None),
            (Some(rope), Some(_)) => {
                let mut waiting = rope.bell.waiting();
                let displaced = waiting.register(place, waker);
                (true, Some(waiting.back()), displaced)
            }
        };
        drop(state);
        mem::forget(self);
        wake(wakers);
        drop(displaced);
        waits
    }

    /// Here is something for all, and perhaps for who has driven.
    fn result<T>(
        mut self,
        item: R::Item,
        place: &mut Place,
        take: impl FnOnce(&mut R) -> Option<T>,
    ) -> Option<T> {
        let mut state = lock(&self.relay.state);
        let goes_on = state.results.add(item);
        if goes_on {
            state.work = self.work.take();
        }
        let over = self.work.take();
        let found = take(&mut state.results);
        let (own, wakers) = match self.relay.bell.get() {
            None => {
                if !goes_on {
                    // Nobody will ever wait again, so there is nothing to leave.
                    place.index = None;
                }
                // He has his turn now.
                (state.first.take(), None)
            }
            Some(rope) => {
                let mut waiting = rope.bell.waiting();
                // It said that it is ready, so nobody has its waker.
                waiting.rung = true;
                (None, Some(waiting.back()))
            }
        };
        drop(state);
        mem::forget(self);
        wake(wakers);
        drop((over, own));
        found
    }

    /// It is over, and nobody else is there to learn of it.
    fn ends(mut self, place: &mut Place) {
        if self.relay.bell.get().is_none() {
            // His waker goes with the relay.
            place.index = None;
        }
        let over = self.work.take();
        mem::forget(self);
        drop(over);
    }
}

impl<W, R: Results> Drop for Outing<'_, W, R> {
    /// The work panicked.
    fn drop(&mut self) {
        let mut state = lock(&self.relay.state);
        state.results.panicked();
        let wakers = self.relay.bell.get().map(|rope| {
            let mut waiting = rope.bell.waiting();
            waiting.rung = true;
            waiting.back()
        });
        drop(state);
        wake(wakers);
    }
}

/// What the work has to ring the bell with.
struct Rope {
    bell: Arc<Bell>,
    waker: Waker,
}

impl Rope {
    fn new(is_out: bool, first: Option<Waker>) -> Self {
        // It does not have the work yet, so the work is to be polled.
        let waiting = Waiting { rung: true, out: is_out, wakers: vec![first], free: Vec::new() };
        let bell = Arc::new(Bell(Mutex::new(waiting)));
        let waker = Waker::from(bell.clone());
        Self { bell, waker }
    }
}

/// Who waits. The work's wakers hold it, and not the work itself.
struct Bell(Mutex<Waiting>);

struct Waiting {
    /// The work has something to do.
    rung: bool,
    /// It is out: whoever has it passes a wake on.
    out: bool,
    /// At [`FIRST`] there is always a place.
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
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
        wake(Some(wakers));
    }
}

impl Waiting {
    /// The waker that stood there, if it is another one.
    fn register(&mut self, place: &mut Place, waker: &Waker) -> Option<Waker> {
        let index = *place.index.get_or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.wakers.push(None);
                self.wakers.len() - 1
            })
        });
        replace(&mut self.wakers[index], waker)
    }

    /// The waker that stood there.
    fn leave(&mut self, index: usize) -> Option<Waker> {
        self.free.push(index);
        self.wakers[index].take()
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

/// The waker that stood there, if it is another one.
fn replace(known: &mut Option<Waker>, waker: &Waker) -> Option<Waker> {
    match known {
        Some(known) if known.will_wake(waker) => None,
        _ => known.replace(waker.clone()),
    }
}

fn wake(wakers: Option<Vec<Waker>>) {
    wakers.into_iter().flatten().for_each(Waker::wake);
}
