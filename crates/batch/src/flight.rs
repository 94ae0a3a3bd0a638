use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use crate::{
    error::Failure,
    queue::{Crew, Place},
    shared::Shared,
    sync::{Mutex, lock},
};

/// What the members of a batch wait at: a seat for each, and no allocation.
pub(crate) struct Flight<Req, T, E, K> {
    /// Of the queue, which the members leave if they do before the batch goes.
    pub(crate) shared: Arc<Shared<Req, T, E, K>>,
    /// Where it gathers.
    pub(crate) place: Place,
    cabin: Mutex<Cabin<T, E>>,
}

struct Cabin<T, E> {
    seats: Vec<Seat<T, E>>,
    /// Whom the first waits for who waited. One task often waits for all: it is known once then.
    first: Option<Waker>,
    /// What all get who have no result.
    failure: Option<Failure>,
}

enum Seat<T, E> {
    /// Nobody has asked yet.
    Empty,
    /// The task that waits is the flight's `first`.
    First,
    Waiting(Waker),
    Done(Result<T, E>),
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
    pub(crate) fn new(shared: Arc<Shared<Req, T, E, K>>, place: Place, members: usize) -> Self {
        let cabin = Cabin { seats: Vec::with_capacity(members), first: None, failure: None };
        Self { shared, place, cabin: Mutex::new(cabin) }
    }

    #[inline]
    pub(crate) fn poll(&self, seat: usize, cx: &mut Context<'_>) -> Poll<Outcome<T, E>> {
        let mut cabin = lock(&self.cabin);
        if let Some(failure) = &cabin.failure {
            return Poll::Ready(Outcome::Failed(failure.clone()));
        }
        let Cabin { seats, first, .. } = &mut *cabin;
        let seat = at(seats, seat);
        if let Seat::Done(_) = seat {
            let Seat::Done(result) = mem::replace(seat, Seat::Left) else { unreachable!("it is done") };
            return Poll::Ready(Outcome::Result(result));
        }
        let was = seat.wait(first, cx.waker());
        drop(cabin);
        drop(was);
        Poll::Pending
    }

    /// Its member is gone.
    pub(crate) fn leave(&self, seat: usize) {
        let mut cabin = lock(&self.cabin);
        let was = mem::replace(at(&mut cabin.seats, seat), Seat::Left);
        drop(cabin);
        drop(was);
    }

    /// Gives each of `crew` its result, and wakes it. `woken` is an empty buffer.
    pub(crate) fn land<F>(&self, crew: &Crew<F>, results: Vec<Result<T, E>>, woken: &mut Vec<Waker>) {
        let mut unwanted = Vec::new();
        let mut cabin = lock(&self.cabin);
        let Cabin { seats, first, .. } = &mut *cabin;
        if seats.len() < crew.seats() {
            seats.resize_with(crew.seats(), || Seat::Empty);
        }
        for (seat, result) in crew.taken().zip(results) {
            match &mut seats[seat] {
                Seat::Left => unwanted.push(result),
                seat => mem::replace(seat, Seat::Done(result)).wake_later(first, woken),
            }
        }
        let first = first.take();
        drop(cabin);
        woken.drain(..).for_each(Waker::wake);
        drop((first, unwanted));
    }

    /// Tells all members the same.
    pub(crate) fn fail(&self, failure: Failure, woken: &mut Vec<Waker>) {
        let mut cabin = lock(&self.cabin);
        let Cabin { seats, first, failure: told } = &mut *cabin;
        *told = Some(failure);
        seats.drain(..).for_each(|seat| seat.wake_later(first, woken));
        let first = first.take();
        drop(cabin);
        woken.drain(..).for_each(Waker::wake);
        drop(first);
    }
}

impl<T, E> Seat<T, E> {
    /// Has `waker` woken, which may be the one that is known already. What was here before.
    fn wait(&mut self, first: &mut Option<Waker>, waker: &Waker) -> Self {
        let known = match self {
            Self::First => first.as_ref(),
            Self::Waiting(known) => Some(&*known),
            _ => None,
        };
        if known.is_some_and(|known| known.will_wake(waker)) {
            return Self::Empty;
        }
        let by_first = first.get_or_insert_with(|| waker.clone()).will_wake(waker);
        mem::replace(self, if by_first { Self::First } else { Self::Waiting(waker.clone()) })
    }

    /// Adds who waits here to `woken`. Who waits for many is woken once.
    #[inline]
    fn wake_later(self, first: &mut Option<Waker>, woken: &mut Vec<Waker>) {
        match self {
            Self::First => woken.extend(first.take()),
            Self::Waiting(waker) => {
                if !woken.last().is_some_and(|last| last.will_wake(&waker)) {
                    woken.push(waker);
                }
            }
            Self::Empty | Self::Done(_) | Self::Left => {}
        }
    }
}

/// The seats are made when they are asked for.
#[inline]
fn at<T, E>(seats: &mut Vec<Seat<T, E>>, seat: usize) -> &mut Seat<T, E> {
    if seats.len() <= seat {
        grow(seats, seat);
    }
    &mut seats[seat]
}

#[cold]
fn grow<T, E>(seats: &mut Vec<Seat<T, E>>, seat: usize) {
    let as_many = (2 * seat).min(seats.capacity()).max(seat + 1);
    seats.resize_with(as_many, || Seat::Empty);
}

impl<Req, T, E, K> fmt::Debug for Flight<Req, T, E, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flight").field("place", &self.place).finish_non_exhaustive()
    }
}
