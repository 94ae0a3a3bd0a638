use std::{task::Waker, time::Duration};

use crate::{error::Failure, queue::Crew, shared::FlightOf};

/// The members of a batch that has gone. They are told once what became of it: if by nobody else, then when this is
/// dropped.
pub(crate) struct Aboard<Req, T, E, K> {
    crew: Crew<FlightOf<Req, T, E, K>>,
    told: bool,
}

impl<Req, T, E, K> Aboard<Req, T, E, K> {
    pub(crate) fn new(crew: Crew<FlightOf<Req, T, E, K>>, waited: Duration) -> Self {
        crew.flight.shared.totals.departed(crew.len(), waited);
        Self { crew, told: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.crew.len()
    }

    /// Gives each its result. `woken` is an empty buffer.
    pub(crate) fn land(mut self, results: Vec<Result<T, E>>, woken: &mut Vec<Waker>) {
        self.told(false);
        self.crew.flight.land(&self.crew, results, woken);
    }

    /// Tells all of them the same.
    pub(crate) fn fail(mut self, failure: Failure, woken: &mut Vec<Waker>) {
        self.told(true);
        self.crew.flight.fail(failure, woken);
    }

    fn told(&mut self, failed: bool) {
        self.told = true;
        self.crew.flight.shared.totals.landed(failed);
    }
}

impl<Req, T, E, K> Drop for Aboard<Req, T, E, K> {
    fn drop(&mut self) {
        if !self.told {
            self.told(true);
            self.crew.flight.fail(Failure::Closed, &mut Vec::new());
        }
    }
}
