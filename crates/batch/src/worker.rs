use std::{
    fmt,
    hash::Hash,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::BoxError;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_service::Service;

use crate::{
    Settings,
    aboard::Aboard,
    clock::{self, after},
    error::{BatchFailed, Failure, WrongCount},
    queue::{Departure, Next},
    seats::{Panicked, Seats},
    shared::Shared,
};

/// What sends the batches of one service: a future that is complete when all of them are answered and no more can come,
/// because the last clone of the service is gone or the handle was shut down.
///
/// [`BatchLayer::pair`](crate::BatchLayer::pair) gives one. If it is dropped earlier, it refuses all that waits, and drops
/// what is under way.
pub struct Worker<S, Req, T, E, K = ()>
where
    S: Service<Vec<Req>>,
    K: Eq + Hash + Clone,
{
    inner: S,
    asked: Asked,
    shared: Arc<Shared<Req, T, E, K>>,
    seats: Seats<S::Future, Aboard<Req, T, E, K>>,
    deadline: Option<Duration>,
    timer: Option<Pin<Box<Sleep>>>,
    /// A buffer for who has to know.
    woken: Vec<Waker>,
}

/// How far the inner service is, this instance of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    No,
    /// It may hold a place in a queue for a readiness.
    Pending,
    /// It is ready, or broken.
    Answered,
}

/// Nothing of the inner service's is pinned but its futures, which are in boxes.
impl<S, Req, T, E, K> Unpin for Worker<S, Req, T, E, K>
where
    S: Service<Vec<Req>>,
    K: Eq + Hash + Clone,
{
}

impl<S, Req, T, E, K> Worker<S, Req, T, E, K>
where
    S: Service<Vec<Req>>,
    K: Eq + Hash + Clone,
{
    pub(crate) fn new(inner: S, shared: Arc<Shared<Req, T, E, K>>, settings: &Settings) -> Self {
        let seats = Seats::new(settings.max_concurrent, shared.control.clone());
        let (deadline, timer, woken) = (settings.deadline, None, Vec::new());
        Self { inner, asked: Asked::No, shared, seats, deadline, timer, woken }
    }

    /// Waits until then, or for ever.
    fn sleep(&mut self, until: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(until) = until else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if timer.deadline() != until {
            timer.as_mut().reset(until);
        }
        timer.as_mut().poll(cx)
    }
}

impl<S, Req, T, E, K> Future for Worker<S, Req, T, E, K>
where
    S: Service<Vec<Req>, Response = Vec<Result<T, E>>> + Clone,
    S::Error: Into<BoxError>,
    K: Eq + Hash + Clone,
{
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        this.shared.control.listen(cx.waker());
        loop {
            let now = clock::now();
            while let Some((aboard, result)) = this.seats.next_landing() {
                this.land(aboard, result);
            }
            while let Some(aboard) = this.seats.expire(now) {
                aboard.fail(Failure::Deadline, &mut this.woken);
            }
            let closed = this.shared.control.is_closed();
            if closed {
                this.shared.close();
            }
            let due = this.send(now, cx);
            if closed && this.shared.is_empty() && this.seats.is_empty() {
                return Poll::Ready(());
            }
            let next = due.into_iter().chain(this.seats.next_deadline()).min();
            if this.sleep(next, cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl<S, Req, T, E, K> Worker<S, Req, T, E, K>
where
    S: Service<Vec<Req>, Response = Vec<Result<T, E>>> + Clone,
    S::Error: Into<BoxError>,
    K: Eq + Hash + Clone,
{
    /// Sends what is due, as far as there is room and the inner service is ready. When the next will be due, if that is
    /// what it waits for.
    fn send(&mut self, now: Instant, cx: &mut Context<'_>) -> Option<Instant> {
        let mut next = self.shared.next();
        while let Some(due) = next
            && self.seats.has_room()
        {
            if !due.is_due(now) {
                break;
            }
            let ready = catch_unwind(AssertUnwindSafe(|| self.inner.poll_ready(cx)));
            if let Ok(Poll::Pending) = ready {
                self.asked = Asked::Pending;
                return None;
            }
            self.asked = Asked::Answered;
            let Some(departure) = self.shared.take(now) else {
                // Whoever was due has left since.
                next = self.shared.next();
                continue;
            };
            let Departure { items, crew, opened, next: then } = departure;
            next = then;
            let aboard = Aboard::new(crew, now.saturating_duration_since(opened));
            let failure = match ready {
                Ok(Poll::Ready(Ok(()))) => {
                    self.depart(items, aboard, now);
                    continue;
                }
                Ok(Poll::Ready(Err(error))) => service_failed(error),
                _ => Failure::Panicked,
            };
            drop_quietly(items);
            self.give_back();
            aboard.fail(failure, &mut self.woken);
        }
        self.give_back();
        match next {
            Some(Next::At(at)) if self.seats.has_room() => Some(at),
            _ => None,
        }
    }

    fn depart(&mut self, items: Vec<Req>, aboard: Aboard<Req, T, E, K>, now: Instant) {
        let Ok(future) = catch_unwind(AssertUnwindSafe(|| self.inner.call(items))) else {
            self.give_back();
            aboard.fail(Failure::Panicked, &mut self.woken);
            return;
        };
        self.asked = Asked::No;
        let deadline = self.deadline.map(|deadline| after(now, deadline));
        if let Some((aboard, result)) = self.seats.board(future, aboard, deadline) {
            self.land(aboard, result);
        }
    }

    /// The instance that was asked goes, and with it what it holds for a call that is not made, or what a panic left.
    fn give_back(&mut self) {
        if self.asked != Asked::No {
            self.asked = Asked::No;
            self.inner = self.inner.clone();
        }
    }

    /// Gives everybody his result. Whatever of the user's panics here, the next batch goes.
    fn land(&mut self, aboard: Aboard<Req, T, E, K>, result: Landed<Vec<Result<T, E>>, S::Error>) {
        let woken = &mut self.woken;
        let _ = catch_unwind(AssertUnwindSafe(|| match result {
            Ok(Ok(results)) if results.len() == aboard.len() => {
                aboard.land(results, woken);
            }
            Ok(Ok(results)) => {
                let count = WrongCount { items: aboard.len(), results: results.len() };
                aboard.fail(Failure::WrongCount(count), woken);
            }
            Ok(Err(error)) => aboard.fail(service_failed(error), woken),
            Err(Panicked) => aboard.fail(Failure::Panicked, woken),
        }));
    }
}

/// What became of a batch.
type Landed<T, E> = Result<Result<T, E>, Panicked>;

/// An item may panic when it is dropped.
fn drop_quietly<T>(items: Vec<T>) {
    let _ = catch_unwind(AssertUnwindSafe(|| drop(items)));
}

fn service_failed(error: impl Into<BoxError>) -> Failure {
    Failure::Service(BatchFailed::new(error.into()))
}

impl<S, Req, T, E, K> Drop for Worker<S, Req, T, E, K>
where
    S: Service<Vec<Req>>,
    K: Eq + Hash + Clone,
{
    fn drop(&mut self) {
        self.shared.control.close();
        self.shared.close();
        while let Some(Departure { items, crew, .. }) = self.shared.take(clock::now()) {
            crew.flight.fail(Failure::Closed, &mut self.woken);
            drop_quietly(items);
        }
    }
}

impl<S, Req, T, E, K> fmt::Debug for Worker<S, Req, T, E, K>
where
    S: Service<Vec<Req>> + fmt::Debug,
    K: Eq + Hash + Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("inner", &self.inner)
            .field("asked", &self.asked)
            .field("queue", &self.shared)
            .finish_non_exhaustive()
    }
}
