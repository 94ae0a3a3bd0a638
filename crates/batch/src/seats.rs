use std::{
    collections::BTreeSet,
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use tokio::time::Instant;

use crate::{
    control::Control,
    sync::{Mutex, lock},
};

/// The futures that are under way, each polled when it was woken and not otherwise.
///
/// `C` is whoever waits for one.
pub(crate) struct Seats<F, C> {
    seats: Vec<Seat<F, C>>,
    free: Vec<usize>,
    max: usize,
    deadlines: BTreeSet<(Instant, usize)>,
    woken: Arc<Woken>,
    /// What was woken, while it is polled.
    turns: Vec<usize>,
}

struct Seat<F, C> {
    /// Its place in memory is used again by the next one.
    future: Pin<Box<Option<F>>>,
    crew: Option<C>,
    deadline: Option<Instant>,
    waker: Waker,
}

/// Its future panicked.
#[derive(Debug)]
pub(crate) struct Panicked;

/// What became of a future, and who waited for it.
pub(crate) type Landing<F, C> = (C, Result<<F as Future>::Output, Panicked>);

impl<F, C> Seats<F, C> {
    pub(crate) fn new(max: usize, control: Arc<Control>) -> Self {
        Self {
            seats: Vec::new(),
            free: Vec::new(),
            max,
            deadlines: BTreeSet::new(),
            woken: Arc::new(Woken { control, list: Mutex::default() }),
            turns: Vec::new(),
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.taken() == 0
    }

    pub(crate) fn has_room(&self) -> bool {
        self.taken() < self.max
    }

    fn taken(&self) -> usize {
        self.seats.len() - self.free.len()
    }

    /// When the time of the next one is up.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// One whose time is up is dropped. Who waited for it, if there is one.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<C> {
        let (_, index) = self.deadlines.first().copied().filter(|(at, _)| *at <= now)?;
        Some(self.vacate(index))
    }

    fn vacate(&mut self, index: usize) -> C {
        let seat = &mut self.seats[index];
        // A future may panic when it is dropped.
        let _ = catch_unwind(AssertUnwindSafe(|| seat.future.set(None)));
        if let Some(at) = seat.deadline.take() {
            self.deadlines.remove(&(at, index));
        }
        self.free.push(index);
        seat.crew.take().expect("somebody waits for whatever is under way")
    }
}

impl<F: Future, C> Seats<F, C> {
    /// Takes a future in, and polls it. There must be room.
    pub(crate) fn board(&mut self, future: F, crew: C, deadline: Option<Instant>) -> Option<Landing<F, C>> {
        let index = self.free.pop().unwrap_or_else(|| {
            let waker = SeatWaker { woken: self.woken.clone(), index: self.seats.len() };
            let seat =
                Seat { future: Box::pin(None), crew: None, deadline: None, waker: Arc::new(waker).into() };
            self.seats.push(seat);
            self.seats.len() - 1
        });
        let seat = &mut self.seats[index];
        seat.future.set(Some(future));
        seat.crew = Some(crew);
        seat.deadline = deadline;
        self.deadlines.extend(deadline.map(|at| (at, index)));
        self.poll(index)
    }

    /// Polls what was woken until one is complete. `None` when nothing that was woken is.
    pub(crate) fn next_landing(&mut self) -> Option<Landing<F, C>> {
        if self.turns.is_empty() {
            self.turns = self.woken.take(mem::take(&mut self.turns));
        }
        while let Some(index) = self.turns.pop() {
            if let Some(landing) = self.poll(index) {
                return Some(landing);
            }
        }
        None
    }

    fn poll(&mut self, index: usize) -> Option<Landing<F, C>> {
        let seat = &mut self.seats[index];
        // Whoever was here before may still hold its waker.
        let future = seat.future.as_mut().as_pin_mut()?;
        let mut cx = Context::from_waker(&seat.waker);
        let result = match catch_unwind(AssertUnwindSafe(|| future.poll(&mut cx))) {
            Ok(Poll::Pending) => return None,
            Ok(Poll::Ready(output)) => Ok(output),
            Err(_) => Err(Panicked),
        };
        Some((self.vacate(index), result))
    }
}

/// Which seats were woken. Each stands here once, however often it was.
struct Woken {
    control: Arc<Control>,
    list: Mutex<Vec<usize>>,
}

impl Woken {
    /// What was woken, for an empty buffer.
    fn take(&self, mut empty: Vec<usize>) -> Vec<usize> {
        mem::swap(&mut *lock(&self.list), &mut empty);
        empty
    }
}

struct SeatWaker {
    woken: Arc<Woken>,
    index: usize,
}

impl Wake for SeatWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut list = lock(&self.woken.list);
        if !list.contains(&self.index) {
            list.push(self.index);
        }
        drop(list);
        self.woken.control.ring();
    }
}
