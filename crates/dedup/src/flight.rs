//! A call that is under way for all who have asked for the same.

use std::{
    pin::Pin,
    sync::{Arc, Weak, atomic::AtomicBool},
    task::{Context, Poll},
};

use bartizan_core::BoxError;

use crate::{
    SharedError, Verdict,
    relay::{Place, Relay, Results},
    share::{Landing, Served, Ticket},
    table::{Hashed, Table},
};

#[cfg(all(test, loom))]
mod models;

/// One call for many. It ends with the last of its seats and tickets.
pub(crate) struct Flight<K, T> {
    relay: Relay<Execution<T>, Flown<T>>,
    table: Weak<Table<K, T>>,
    pub(crate) key: Hashed<K>,
    /// Whether it is to be looked for in the table still. The table says so, under its lock.
    pub(crate) aloft: AtomicBool,
    /// [`Table::leave`], for where nothing is known of keys.
    leave: fn(&Table<K, T>, &Self, bool),
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

/// What has come of a call.
pub(crate) enum Outcome<T> {
    /// For all.
    Done(Value<T>),
    /// It failed, and this stands in.
    StandIn(Arc<T>, Served),
    /// For the one whose request was sent.
    Private(Arc<T>),
    Panicked,
}

impl<T> Clone for Outcome<T> {
    fn clone(&self) -> Self {
        match self {
            Self::Done(value) => Self::Done(value.clone()),
            Self::StandIn(tape, served) => Self::StandIn(tape.clone(), *served),
            Self::Private(tape) => Self::Private(tape.clone()),
            Self::Panicked => Self::Panicked,
        }
    }
}

struct Flown<T> {
    outcome: Option<Outcome<T>>,
    /// Of a response of which some is still to come.
    verdict: Verdict,
}

impl<T> Results for Flown<T> {
    type Item = Self;

    fn add(&mut self, flown: Self) -> bool {
        *self = flown;
        false
    }

    fn panicked(&mut self) {
        self.outcome = Some(Outcome::Panicked);
    }
}

impl<K: Eq, T> Flight<K, T> {
    /// A call that [`start`](Self::start)s later: whoever joins it waits until it has.
    pub(crate) fn new(table: Weak<Table<K, T>>, key: Hashed<K>) -> Self {
        let results = Flown { outcome: None, verdict: Verdict::Share };
        let aloft = AtomicBool::new(true);
        Self { relay: Relay::new(results), table, key, aloft, leave: Table::leave }
    }

    pub(crate) fn start(&self, make: impl FnOnce() -> Execution<T>) {
        let leaves = Leaves(self);
        self.relay.start(make);
        leaves.not();
    }

    fn poll(&self, place: &mut Place, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        self.relay.poll(
            place,
            cx,
            |flown| flown.outcome.clone(),
            |execution, cx| {
                // A call that panics leaves before it is known to have: nobody joins it then.
                let leaves = Leaves(self);
                let flown = execution.as_mut().poll(cx).map(|result| self.land(result));
                leaves.not();
                flown
            },
        )
    }

    /// What becomes of the call's result. If all of it is there the call leaves the table, and is kept if it may be.
    fn land(&self, result: Result<Recorded<T>, BoxError>) -> Flown<T> {
        let table = self.table.upgrade();
        let stand_in = || table.as_ref().and_then(|table| table.stand_in(&self.key));
        let (outcome, verdict) = match result {
            Ok(Recorded { tape, verdict, size }) => {
                let tape = Arc::new(tape);
                match (verdict, size) {
                    (Verdict::Private, _) => {
                        self.leave(true);
                        (Outcome::Private(tape), verdict)
                    }
                    (Verdict::Failure, size) => {
                        let outcome = match stand_in() {
                            Some((tape, served)) => Outcome::StandIn(tape, served),
                            None => Outcome::Done(Ok(tape)),
                        };
                        if size.is_some() || matches!(outcome, Outcome::StandIn(..)) {
                            self.leave(false);
                        }
                        (outcome, verdict)
                    }
                    (_, Some(size)) => {
                        self.keep(&tape, verdict, size);
                        (Outcome::Done(Ok(tape)), verdict)
                    }
                    (_, None) => (Outcome::Done(Ok(tape)), verdict),
                }
            }
            Err(error) => {
                let outcome = match stand_in() {
                    Some((tape, served)) => {
                        self.leave(false);
                        Outcome::StandIn(tape, served)
                    }
                    None => {
                        let error = SharedError::new(error);
                        let terms = table.as_ref().and_then(|table| table.replay.keep_error());
                        match (&table, terms) {
                            (Some(table), Some(terms)) => {
                                table.land(self, Err(error.clone()), size_of::<SharedError>(), terms);
                            }
                            _ => self.leave(false),
                        }
                        Outcome::Done(Err(error))
                    }
                };
                (outcome, Verdict::Failure)
            }
        };
        Flown { outcome: Some(outcome), verdict }
    }

    /// Keeps an answer of which all is there, if it may be kept.
    fn keep(&self, tape: &Arc<T>, verdict: Verdict, size: usize) {
        let Some(table) = self.table.upgrade() else { return };
        match table.replay.keep(tape, verdict, size) {
            Some((terms, size)) => table.land(self, Ok(tape.clone()), size, terms),
            None => table.leave(self, verdict != Verdict::Failure),
        }
    }

    /// From now on nobody joins. `supersedes`: what was kept before is not to be served any more.
    fn leave(&self, supersedes: bool) {
        if let Some(table) = self.table.upgrade() {
            table.leave(self, supersedes);
        }
    }
}

impl<K: Eq + Send + Sync, T: Send + Sync> Landing<T> for Flight<K, T> {
    fn complete(&self, size: usize) {
        let (outcome, verdict) = self.relay.look(|flown| (flown.outcome.clone(), flown.verdict));
        if let Some(Outcome::Done(Ok(tape))) = outcome {
            self.keep(&tape, verdict, size);
        }
    }

    fn detach(&self) {
        self.leave(false);
    }
}

impl<K, T> Drop for Flight<K, T> {
    fn drop(&mut self) {
        if *self.aloft.get_mut()
            && let Some(table) = self.table.upgrade()
        {
            (self.leave)(&table, self, false);
        }
    }
}

/// The call leaves the table, unless it is told not to.
struct Leaves<'a, K: Eq, T>(&'a Flight<K, T>);

impl<K: Eq, T> Leaves<'_, K, T> {
    fn not(self) {
        std::mem::forget(self);
    }
}

impl<K: Eq, T> Drop for Leaves<'_, K, T> {
    fn drop(&mut self) {
        self.0.leave(false);
    }
}

/// A caller's part in a call that has not answered yet.
pub(crate) struct Seat<K, T> {
    flight: Arc<Flight<K, T>>,
    place: Place,
    leads: bool,
}

impl<K: Eq, T> Seat<K, T> {
    pub(crate) fn new(flight: Arc<Flight<K, T>>, leads: bool) -> Self {
        Self { flight, place: Place::default(), leads }
    }

    /// Whether the call was made with this caller's request.
    pub(crate) const fn leads(&self) -> bool {
        self.leads
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome<T>> {
        self.flight.poll(&mut self.place, cx)
    }
}

impl<K: Eq + Send + Sync + 'static, T: Send + Sync + 'static> Seat<K, T> {
    /// The caller's part in what of the response is still to come.
    pub(crate) fn ticket(&self) -> Ticket<T> {
        let served = if self.leads { Served::Miss } else { Served::Collapsed };
        Ticket::of(self.flight.clone(), served)
    }
}

impl<K, T> Drop for Seat<K, T> {
    fn drop(&mut self) {
        self.flight.relay.leave(&mut self.place);
    }
}
