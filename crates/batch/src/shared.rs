use std::{
    fmt,
    hash::Hash,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::time::Instant;

use crate::{
    clock,
    control::Control,
    flight::Flight,
    future::Member,
    layer::Sorting,
    queue::{Departure, Next, Place, Queue, Rules},
    settings::Settings,
    stats::Totals,
    sync::{Mutex, lock},
};

/// What the members of a batch share.
pub(crate) type FlightOf<Req, T, E, K> = Arc<Flight<Req, T, E, K>>;

type QueueOf<Req, T, E, K> = Queue<K, Req, FlightOf<Req, T, E, K>>;

/// A queue, as its services, its members and its worker share it.
pub(crate) struct Shared<Req, T, E, K> {
    queue: Mutex<QueueOf<Req, T, E, K>>,
    pub(crate) control: Arc<Control>,
    pub(crate) sorting: Sorting<Req, K>,
    pub(crate) totals: Arc<Totals>,
}

impl<Req, T, E, K: Eq + Hash + Clone> Shared<Req, T, E, K> {
    pub(crate) fn new(
        settings: &Settings,
        sorting: Sorting<Req, K>,
        control: Arc<Control>,
        totals: Arc<Totals>,
    ) -> Self {
        let rules = Rules::new(settings, sorting.max_weight);
        Self { queue: Mutex::new(Queue::new(rules)), control, sorting, totals }
    }

    /// Puts an item in that has its place to wait. `None` if nothing is accepted any more.
    pub(crate) fn join(self: &Arc<Self>, key: K, weight: u64, item: Req) -> Option<Member<Req, T, E, K>> {
        let mut now = None;
        let now = || *now.get_or_insert_with(clock::now);
        let mut queue = lock(&self.queue);
        if queue.is_closed() || self.control.is_closed() {
            drop(queue);
            drop(item);
            return None;
        }
        let flight = |place, members| Arc::new(Flight::new(self.clone(), place, members));
        let joined = queue.join(key, weight, item, now, flight);
        self.control.waiting.store(queue.waiting(), Relaxed);
        drop(queue);
        if joined.hurry {
            self.control.ring();
        }
        Some(Member { flight: joined.flight, seat: joined.seat, weight })
    }

    /// Takes an item out, if its batch has not gone, and says whether.
    pub(crate) fn leave(&self, place: Place, seat: usize, weight: u64) -> bool {
        let mut queue = lock(&self.queue);
        let item = queue.leave(place, seat, weight);
        let waiting = queue.waiting();
        self.control.waiting.store(waiting, Relaxed);
        drop(queue);
        if item.is_none() {
            return false;
        }
        self.control.places.add_permits(1);
        if waiting == 0 {
            // What the worker waits for, to send it, is of no use any more; and it may have been the last one ever.
            self.control.ring();
        }
        true
    }

    /// When to look again, as of now.
    pub(crate) fn next(&self) -> Option<Next> {
        lock(&self.queue).next()
    }

    /// What has to go now. Its items' places are free.
    pub(crate) fn take(&self, now: Instant) -> Option<Departure<Req, FlightOf<Req, T, E, K>>> {
        let mut queue = lock(&self.queue);
        let departure = queue.take(now);
        self.control.waiting.store(queue.waiting(), Relaxed);
        drop(queue);
        let departure = departure?;
        self.control.places.add_permits(departure.items.len());
        Some(departure)
    }

    /// Accepts nothing more; what waits is due.
    pub(crate) fn close(&self) {
        lock(&self.queue).close();
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.queue).waiting() == 0
    }
}

impl<Req, T, E, K> fmt::Debug for Shared<Req, T, E, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("control", &self.control).finish_non_exhaustive()
    }
}
