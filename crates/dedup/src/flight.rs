//! A call that is under way for all who have asked for the same.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use bartizan_core::BoxError;

use crate::{
    Fingerprint, SharedError, Verdict,
    relay::{Place, Relay, Results, Yield},
    share::{Landing, Served, Ticket},
    table::{Hashed, Table},
};

#[cfg(all(test, loom))]
mod models;

/// One call for many. It ends with the last of its seats and tickets.
pub(crate) struct Flight<K, T> {
    relay: Relay<Execution<T>, Option<Box<Flown<T>>>>,
    home: Home<K, T>,
    pub(crate) key: Hashed<K>,
    /// Most have none.
    pub(crate) fingerprint: Option<Box<Fingerprint>>,
    /// Whether it is to be looked for in the table still. The table says so, under its lock.
    pub(crate) aloft: AtomicBool,
    /// [`Table::leave`], for where nothing is known of keys.
    leave: fn(&Table<K, T>, &Self, bool),
}

/// The table that a flight belongs to.
pub(crate) enum Home<K, T> {
    Held(Arc<Table<K, T>>),
    /// It is the table that holds the flight.
    Holds(Weak<Table<K, T>>),
}

impl<K, T> Home<K, T> {
    fn with<R>(&self, with: impl FnOnce(&Table<K, T>) -> R) -> Option<R> {
        match self {
            Self::Held(table) => Some(with(table)),
            Self::Holds(table) => table.upgrade().map(|table| with(&table)),
        }
    }
}

/// The call itself.
pub(crate) type Execution<T> = Pin<Box<dyn Future<Output = Result<Recorded<T>, BoxError>> + Send>>;

/// A response that was taken in.
pub(crate) struct Recorded<T> {
    pub(crate) tape: T,
    pub(crate) verdict: Verdict,
    /// How many bytes it has, if all of it is there.
    pub(crate) size: Option<usize>,
}

/// What is kept of a call: its answer, or its error.
pub(crate) type Value<T> = Result<Arc<T>, SharedError>;

/// What a caller gets of a call.
pub(crate) enum Arrival<T> {
    /// An answer that nobody else has, or will.
    Own(T),
    Shared(Outcome<T>),
}

/// What has come of a call.
pub(crate) enum Outcome<T> {
    /// For all.
    Done(Value<T>),
    /// An answer that is as good as an error, for all.
    Failure(Arc<T>),
    /// It failed, and this stands in. Apart, since it is large and rare.
    StandIn(Box<(Arc<T>, Served)>),
    /// For the one whose request was sent.
    Private(Arc<T>),
    Panicked,
}

impl<T> Clone for Outcome<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Done(value) => Self::Done(value.clone()),
            Self::Failure(tape) => Self::Failure(tape.clone()),
            Self::StandIn(stand_in) => Self::StandIn(stand_in.clone()),
            Self::Private(tape) => Self::Private(tape.clone()),
            Self::Panicked => Self::Panicked,
        }
    }
}

/// What has come of a call that has others than the one who drives it.
struct Flown<T> {
    outcome: Outcome<T>,
    /// It failed, and this is for those who may be answered with what was kept.
    stand_in: Option<Box<(Arc<T>, Served)>>,
    /// Of a response of which some is still to come.
    verdict: Verdict,
}

impl<T> Results for Option<Box<Flown<T>>> {
    type Item = Box<Flown<T>>;

    fn add(&mut self, flown: Box<Flown<T>>) -> bool {
        *self = Some(flown);
        false
    }

    fn panicked(&mut self) {
        let (outcome, verdict) = (Outcome::Panicked, Verdict::Failure);
        *self = Some(Box::new(Flown { outcome, stand_in: None, verdict }));
    }
}

impl<T> Flown<T> {
    fn outcome(&self, no_cache: bool) -> Outcome<T> {
        match &self.stand_in {
            Some(stand_in) if !no_cache => Outcome::StandIn(stand_in.clone()),
            _ => self.outcome.clone(),
        }
    }
}

/// A call's result, as it is where all know what has become of it.
struct Landed<T> {
    arrival: Arrival<T>,
    stand_in: Option<Box<(Arc<T>, Served)>>,
}

impl<T> Landed<T> {
    fn own(self, no_cache: bool) -> Arrival<T> {
        match self.stand_in {
            Some(stand_in) if !no_cache => Arrival::Shared(Outcome::StandIn(stand_in)),
            _ => self.arrival,
        }
    }

    fn shared(self, verdict: Verdict) -> Flown<T> {
        let outcome = match self.arrival {
            Arrival::Own(tape) => Outcome::Done(Ok(Arc::new(tape))),
            Arrival::Shared(outcome) => outcome,
        };
        Flown { outcome, stand_in: self.stand_in, verdict }
    }
}

impl<K, T> Flight<K, T> {
    /// Whether the table holds it, so that it may be that nobody drives it.
    pub(crate) const fn is_held(&self) -> bool {
        matches!(self.home, Home::Holds(_))
    }
}

impl<K: Eq + Clone, T> Flight<K, T> {
    pub(crate) fn new(
        home: Home<K, T>,
        key: Hashed<K>,
        fingerprint: Option<Box<Fingerprint>>,
        execution: Execution<T>,
    ) -> Self {
        let (relay, aloft) = (Relay::new(Some(execution), None), AtomicBool::new(true));
        Self { relay, home, key, fingerprint, aloft, leave: Table::leave }
    }

    fn poll(self: &Arc<Self>, place: &mut Place, no_cache: bool, cx: &mut Context<'_>) -> Poll<Arrival<T>> {
        self.relay.poll(
            place,
            cx,
            |flown| Some(Arrival::Shared(flown.as_ref()?.outcome(no_cache))),
            |execution, cx| {
                // A call that panics leaves before it is known to have: nobody joins it then.
                let leaves = Leaves(self);
                let polled = execution.as_mut().poll(cx);
                let (landed, verdict) = match polled {
                    Poll::Pending => {
                        leaves.not();
                        return Poll::Pending;
                    }
                    // What is large stays where it is: to move what has just been written takes its time.
                    Poll::Ready(Ok(Recorded { tape, ref verdict, size })) => {
                        (self.answered(tape, verdict, size), verdict)
                    }
                    Poll::Ready(Err(error)) => (self.failed(error), &Verdict::Failure),
                };
                leaves.not();
                Poll::Ready(if self.is_alone() {
                    Yield::Own(landed.own(no_cache))
                } else {
                    Yield::Shared(Box::new(landed.shared(*verdict)))
                })
            },
        )
    }

    /// Whether nobody finds it in the table any more, and those who did have gone but for one.
    fn is_alone(self: &Arc<Self>) -> bool {
        !self.aloft.load(Relaxed) && Arc::strong_count(self) == 1
    }

    /// What becomes of the call's answer. If all of it is there the call leaves the table, and is kept if it may be.
    fn answered(&self, tape: T, verdict: &Verdict, size: Option<usize>) -> Landed<T> {
        let (arrival, stand_in) = match (verdict, size) {
            (Verdict::Keep(_) | Verdict::Share(_), Some(size)) => (self.keep(tape, verdict, size), None),
            (Verdict::Keep(_) | Verdict::Share(_), None) => (Arrival::Own(tape), None),
            (Verdict::Private, _) => {
                self.leave(true);
                (Arrival::Shared(Outcome::Private(Arc::new(tape))), None)
            }
            (Verdict::PrivateFailure, _) => {
                let stand_in = self.stand_in();
                self.leave(false);
                (Arrival::Shared(Outcome::Private(Arc::new(tape))), stand_in)
            }
            (Verdict::Failure, size) => {
                let stand_in = self.stand_in();
                // Of a refresh nobody reads on, so it would never be over.
                if size.is_some() || stand_in.is_some() || self.is_held() {
                    self.leave(false);
                }
                (Arrival::Shared(Outcome::Failure(Arc::new(tape))), stand_in)
            }
        };
        Landed { arrival, stand_in }
    }

    /// The same of its error.
    fn failed(&self, error: BoxError) -> Landed<T> {
        let (error, stand_in) = (SharedError::new(error), self.stand_in());
        self.home.with(|table| match table.replay.keep_error() {
            Some(terms) if stand_in.is_none() && !table.serves(self) => {
                table.land(self, Err(error.clone()), size_of::<SharedError>(), terms);
            }
            _ => table.leave(self, false),
        });
        let arrival = Arrival::Shared(Outcome::Done(Err(error)));
        Landed { arrival, stand_in }
    }

    /// What may be served in place of a failure.
    fn stand_in(&self) -> Option<Box<(Arc<T>, Served)>> {
        self.home.with(|table| table.stand_in(self)).flatten().map(Box::new)
    }

    /// Keeps an answer of which all is there, if it may be kept.
    fn keep(&self, tape: T, verdict: &Verdict, size: usize) -> Arrival<T> {
        let kept = self.home.with(|table| table.replay.keep(&tape, verdict, size));
        let Some((terms, size)) = kept.flatten() else {
            self.leave(true);
            return Arrival::Own(tape);
        };
        let tape = Arc::new(tape);
        self.home.with(|table| table.land(self, Ok(tape.clone()), size, terms));
        Arrival::Shared(Outcome::Done(Ok(tape)))
    }

    /// From now on nobody joins. `supersedes`: what was kept before is not to be served any more.
    fn leave(&self, supersedes: bool) {
        self.home.with(|table| table.leave(self, supersedes));
    }
}

impl<K: Eq + Clone + Send + Sync, T: Send + Sync> Landing<T> for Flight<K, T> {
    fn complete(&self, size: usize) {
        // One reader after the other comes to the end.
        if !self.aloft.load(Relaxed) {
            return;
        }
        let flown = self.relay.look(|flown| {
            let Flown { outcome, verdict, .. } = flown.as_deref()?;
            match outcome {
                Outcome::Done(Ok(tape)) | Outcome::Failure(tape) => Some((tape.clone(), *verdict)),
                _ => None,
            }
        });
        let Some((tape, verdict)) = flown else { return };
        let leaves = Leaves(self);
        self.home.with(|table| match table.replay.keep(&tape, &verdict, size) {
            Some((terms, size)) => table.land(self, Ok(tape), size, terms),
            None => table.leave(self, verdict != Verdict::Failure),
        });
        leaves.not();
    }

    fn detach(&self) {
        self.leave(false);
    }
}

impl<K, T> Drop for Flight<K, T> {
    fn drop(&mut self) {
        if *self.aloft.get_mut() {
            self.home.with(|table| (self.leave)(table, self, false));
        }
    }
}

/// The call leaves the table, unless it is told not to.
struct Leaves<'a, K: Eq + Clone, T>(&'a Flight<K, T>);

impl<K: Eq + Clone, T> Leaves<'_, K, T> {
    fn not(self) {
        std::mem::forget(self);
    }
}

impl<K: Eq + Clone, T> Drop for Leaves<'_, K, T> {
    fn drop(&mut self) {
        self.0.leave(false);
    }
}

/// A caller's part in a call that has not answered yet.
pub(crate) struct Seat<K, T> {
    flight: Arc<Flight<K, T>>,
    place: Place,
    leads: bool,
    /// The caller is not to be answered with what was kept.
    no_cache: bool,
}

impl<K: Eq + Clone, T> Seat<K, T> {
    pub(crate) fn new(flight: Arc<Flight<K, T>>, leads: bool) -> Self {
        Self { flight, place: Place::default(), leads, no_cache: false }
    }

    pub(crate) const fn no_cache(mut self, no_cache: bool) -> Self {
        self.no_cache = no_cache;
        self
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Arrival<T>> {
        self.flight.poll(&mut self.place, self.no_cache, cx)
    }

    /// The caller is answered with what stands in.
    pub(crate) fn stood_in(&self) {
        self.flight.home.with(|table| table.stood_in(&self.flight));
    }

    /// The caller, who has joined, makes a call of his own.
    pub(crate) fn parts(&self) {
        self.flight.home.with(|table| table.parted(&self.flight));
    }

    /// The caller, who was to be served what is stale, has got what is new.
    pub(crate) fn renewed(&self) {
        self.flight.home.with(|table| table.renewed(&self.flight, self.leads));
    }
}

impl<K: Eq + Clone + Send + Sync + 'static, T: Send + Sync + 'static> Seat<K, T> {
    /// The caller's part in what of the response is still to come.
    pub(crate) fn ticket(&self) -> Ticket<T> {
        let served = if self.leads { Served::Miss } else { Served::Collapsed };
        // Of a call that has left the table already, there is nothing to tell.
        if self.flight.aloft.load(Relaxed) {
            Ticket::of(self.flight.clone(), served)
        } else {
            Ticket::kept(served)
        }
    }
}

impl<K, T> Drop for Seat<K, T> {
    fn drop(&mut self) {
        self.flight.relay.leave(&mut self.place);
    }
}
