use std::{iter, sync::Arc, task::Waker, time::Duration};

use crate::{error::Failure, flight::Outcome, queue::Crew, shared::FlightOf, stats::Totals};

/// The members of a batch that has gone. They are told once what became of it: if by nobody else, then when this is
/// dropped.
pub(crate) struct Aboard<Req, T, E, K> {
    crew: Crew<FlightOf<Req, T, E, K>>,
    totals: Arc<Totals>,
    told: bool,
}

impl<Req, T, E, K> Aboard<Req, T, E, K> {
    pub(crate) fn new(crew: Crew<FlightOf<Req, T, E, K>>, totals: Arc<Totals>, waited: Duration) -> Self {
        totals.departed(crew.len(), waited);
        Self { crew, totals, told: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.crew.len()
    }

    /// Gives each its result. `woken` is an empty buffer.
    pub(crate) fn land(mut self, outcomes: impl Iterator<Item = Outcome<T, E>>, woken: &mut Vec<Waker>) {
        self.tell(false, outcomes, woken);
    }

    /// Tells all of them the same.
    pub(crate) fn fail(mut self, failure: &Failure, woken: &mut Vec<Waker>) {
        self.tell(true, iter::repeat_with(|| Outcome::Failed(failure.clone())), woken);
    }

    fn tell(&mut self, failed: bool, outcomes: impl Iterator<Item = Outcome<T, E>>, woken: &mut Vec<Waker>) {
        self.told = true;
        self.totals.landed(failed);
        self.crew.flight.land(&self.crew, outcomes, woken);
    }
}

impl<Req, T, E, K> Drop for Aboard<Req, T, E, K> {
    fn drop(&mut self) {
        if !self.told {
            let outcomes = iter::repeat_with(|| Outcome::Failed(Failure::Closed));
            self.tell(true, outcomes, &mut Vec::new());
        }
    }
}
