use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::{
    error::Failure,
    queue::Crew,
    shared::Shared,
    sync::{Mutex, lock},
};

/// What the members of a batch wait at: a seat for each, and no allocation.
pub(crate) struct Flight<Req, T, E, K> {
    /// Of the queue, which the members leave if they do before the batch goes.
    pub(crate) shared: Arc<Shared<Req, T, E, K>>,
    seats: Mutex<Vec<Seat<T, E>>>,
}

enum Seat<T, E> {
    /// Nobody has asked yet.
    Empty,
    Waiting(Waker),
    Done(Outcome<T, E>),
    /// Its result was taken, or nobody wants it.
    Left,
}

/// What a member gets.
pub(crate) enum Outcome<T, E> {
    Result(Result<T, E>),
    Failed(Failure),
}

impl<Req, T, E, K> Flight<Req, T, E, K> {
    /// For about so many members.
    pub(crate) fn new(shared: Arc<Shared<Req, T, E, K>>, members: usize) -> Self {
        Self { shared, seats: Mutex::new(Vec::with_capacity(members)) }
    }

    pub(crate) fn poll(&self, seat: usize, cx: &mut Context<'_>) -> Poll<Outcome<T, E>> {
        let mut seats = lock(&self.seats);
        let seat = at(&mut seats, seat);
        let waker = match seat {
            Seat::Waiting(known) if known.will_wake(cx.waker()) => return Poll::Pending,
            Seat::Empty | Seat::Waiting(_) => Seat::Waiting(cx.waker().clone()),
            Seat::Done(_) | Seat::Left => Seat::Left,
        };
        let was = mem::replace(seat, waker);
        drop(seats);
        match was {
            Seat::Done(outcome) => Poll::Ready(outcome),
            Seat::Left => panic!("polled after completion"),
            Seat::Empty | Seat::Waiting(_) => Poll::Pending,
        }
    }

    /// Its member is gone.
    pub(crate) fn leave(&self, seat: usize) {
        let mut seats = lock(&self.seats);
        let was = mem::replace(at(&mut seats, seat), Seat::Left);
        drop(seats);
        drop(was);
    }

    /// Gives each of `crew` its outcome, and wakes it. `woken` is an empty buffer.
    pub(crate) fn land<F>(
        &self,
        crew: &Crew<F>,
        outcomes: impl Iterator<Item = Outcome<T, E>>,
        woken: &mut Vec<Waker>,
    ) {
        let mut unwanted = Vec::new();
        let mut seats = lock(&self.seats);
        if seats.len() < crew.seats() {
            seats.resize_with(crew.seats(), || Seat::Empty);
        }
        for (seat, outcome) in crew.taken().zip(outcomes) {
            match &mut seats[seat] {
                Seat::Left => unwanted.push(outcome),
                seat => {
                    // Who waits for many is woken once.
                    if let Seat::Waiting(waker) = mem::replace(seat, Seat::Done(outcome))
                        && !woken.last().is_some_and(|last: &Waker| last.will_wake(&waker))
                    {
                        woken.push(waker);
                    }
                }
            }
        }
        drop(seats);
        woken.drain(..).for_each(Waker::wake);
        drop(unwanted);
    }
}

/// The seats are made when somebody asks for the last of them.
#[inline]
fn at<T, E>(seats: &mut Vec<Seat<T, E>>, seat: usize) -> &mut Seat<T, E> {
    if seats.len() <= seat {
        seats.resize_with(seat + 1, || Seat::Empty);
    }
    &mut seats[seat]
}

impl<Req, T, E, K> fmt::Debug for Flight<Req, T, E, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("seats", &lock(&self.seats).len()).finish_non_exhaustive()
    }
}
