use std::{
    fmt,
    hash::Hash,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::{error::Refusal, ticket::Ticket};

pin_project! {
    /// The response future of a queueing [`RateLimit`](crate::RateLimit).
    ///
    /// Dropped before its turn it leaves the queue; dropped before the inner service was called it gives its permits
    /// back.
    pub struct QueuedFuture<S, Req, K>
    where
        S: Service<Req>,
        K: Hash,
        K: Eq,
        K: Clone,
    {
        refusal: Option<Refusal>,
        ticket: Option<Ticket<K>>,
        #[pin]
        sleep: Option<Sleep>,
        waits: bool,
        next: Option<(S, Req)>,
        #[pin]
        calling: Option<S::Future>,
    }
}

impl<S, Req, K> QueuedFuture<S, Req, K>
where
    S: Service<Req>,
    K: Hash + Eq + Clone,
{
    pub(crate) fn passing(service: S, request: Req, ticket: Option<Ticket<K>>) -> Self {
        let (waits, next) = (ticket.is_some(), Some((service, request)));
        Self { refusal: None, ticket, sleep: None, waits, next, calling: None }
    }

    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self { refusal: Some(refusal), ticket: None, sleep: None, waits: false, next: None, calling: None }
    }

    /// How long the call has to wait for its turn, as was known when it was made: zero if it had not to wait. `None` if
    /// it was refused or the inner service has been called.
    pub fn wait(&self) -> Option<Duration> {
        self.next.as_ref()?;
        Some(Duration::from_nanos(self.ticket.as_ref().map_or(0, |ticket| ticket.wait)))
    }
}

impl<S, Req, K> Future for QueuedFuture<S, Req, K>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    K: Hash + Eq + Clone,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(refusal) = this.refusal.take() {
            return Poll::Ready(Err(Rejected::from(refusal).into()));
        }
        if *this.waits
            && let Some(ticket) = this.ticket
        {
            if let Err(refusal) = ready!(ticket.poll(cx, this.sleep.as_mut())) {
                *this.ticket = None;
                *this.next = None;
                return Poll::Ready(Err(Rejected::from(refusal).into()));
            }
            *this.waits = false;
        }
        if let Some((service, _)) = this.next {
            if let Err(error) = ready!(service.poll_ready(cx)) {
                *this.ticket = None;
                *this.next = None;
                return Poll::Ready(Err(error.into()));
            }
            let (mut service, request) = this.next.take().expect("it is there");
            if let Some(ticket) = this.ticket.take() {
                ticket.spend();
            }
            this.calling.set(Some(service.call(request)));
        }
        this.calling.as_pin_mut().expect("polled after completion").poll(cx).map_err(Into::into)
    }
}

impl<S, Req, K> fmt::Debug for QueuedFuture<S, Req, K>
where
    S: Service<Req>,
    K: Hash + Eq + Clone,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedFuture").field("waits", &self.waits).finish_non_exhaustive()
    }
}
