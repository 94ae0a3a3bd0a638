use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::{BoxError, Extent, Rejected, UntilResponse};
use pin_project_lite::pin_project;
use tokio::time::Sleep;
use tower_service::Service;

use crate::{
    ResponseFuture,
    account::Bounds,
    error::Refusal,
    rules::{Refused, Rules, RulesFor, with_claims},
    ticket::Ticket,
};

pin_project! {
    /// The response future of a queueing [`RateLimit`](crate::RateLimit).
    ///
    /// Dropped before its turn it leaves the queue; dropped before the inner service was called it gives its permits
    /// back.
    pub struct QueuedFuture<S, Req, R, E = UntilResponse>
    where
        S: Service<Req>,
        R: RulesFor<Req, S::Response>,
    {
        waiting: Option<Waiting<S, Req, R, E>>,
        #[pin]
        sleep: Option<Sleep>,
        #[pin]
        calling: Option<ResponseFuture<S::Future, R::Charge, E>>,
    }
}

/// A call that has not been made.
struct Waiting<S, Req, R: Rules<Req>, E> {
    service: S,
    turn: Turn<Req, R>,
    extent: E,
}

impl<S, Req, R, E> QueuedFuture<S, Req, R, E>
where
    S: Service<Req>,
    R: RulesFor<Req, S::Response>,
{
    /// Takes the call's permits, or its place.
    pub(crate) fn new(service: S, request: Req, rules: R, bounds: Bounds, extent: E) -> Self {
        match Turn::new(rules, request, bounds) {
            Ok(turn) => Self { waiting: Some(Waiting { service, turn, extent }), sleep: None, calling: None },
            Err(Refused(refusal)) => {
                Self { waiting: None, sleep: None, calling: Some(ResponseFuture::refused(refusal)) }
            }
        }
    }

    /// How long the call has to wait for its turn, as was known when it was made: zero if it had not to wait. `None` if
    /// it was refused or the inner service has been called.
    pub fn wait(&self) -> Option<Duration> {
        self.waiting.as_ref().map(|waiting| Duration::from_nanos(waiting.turn.ticket.wait))
    }
}

impl<S, Req, R, E> Future for QueuedFuture<S, Req, R, E>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    R: RulesFor<Req, S::Response>,
    E: Extent<S::Response>,
{
    type Output = <ResponseFuture<S::Future, R::Charge, E> as Future>::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(waiting) = this.waiting.as_mut() {
            let passed = match waiting.turn.poll(cx, this.sleep.as_mut()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(refusal)) => Err(Rejected::from(refusal).into()),
                Poll::Ready(Ok(())) => ready!(waiting.service.poll_ready(cx)).map_err(Into::into),
            };
            // Whatever panics from here on, what is not spent is given back.
            let Waiting { mut service, mut turn, extent } = this.waiting.take().expect("it is there");
            passed?;
            let charge = turn.spend();
            let inner = service.call(turn.request.take().expect("it is taken once"));
            this.calling.set(Some(ResponseFuture::admitted(inner, charge, extent)));
        }
        this.calling.as_pin_mut().expect("polled after completion").poll(cx)
    }
}

/// A call that has its permits or waits for them. Dropped before they are spent it gives back what it has.
struct Turn<Req, R: Rules<Req>> {
    rules: R,
    kept: R::Kept,
    request: Option<Req>,
    ticket: Ticket,
}

impl<Req, R: Rules<Req>> Turn<Req, R> {
    fn new(rules: R, request: Req, bounds: Bounds) -> Result<Self, Refused> {
        let kept = rules.keep(&request);
        match with_claims(&rules, &kept, &request, |stakes| Ticket::new(stakes, bounds)) {
            Ok(ticket) => Ok(Self { rules, kept, request: Some(request), ticket }),
            Err(refusal) => Err(rules.tell(Refused(refusal), &kept, &request)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, sleep: Pin<&mut Option<Sleep>>) -> Poll<Result<(), Refusal>> {
        if !self.ticket.waits() {
            return Poll::Ready(Ok(()));
        }
        let Self { rules, kept, request, ticket } = self;
        let request = request.as_ref().expect("it is taken when the turn is over");
        let passed = with_claims(rules, kept, request, |stakes| ticket.poll(stakes, cx, sleep));
        passed.map_err(|refusal| rules.tell(Refused(refusal), kept, request).0)
    }

    fn spend<Res>(&mut self) -> R::Charge
    where
        R: RulesFor<Req, Res>,
    {
        let Self { rules, kept, request, ticket } = self;
        let request = request.as_ref().expect("it is taken when the turn is over");
        with_claims(rules, kept, request, |stakes| ticket.spend(stakes));
        rules.charge(kept, request)
    }
}

impl<Req, R: Rules<Req>> Drop for Turn<Req, R> {
    fn drop(&mut self) {
        let Self { rules, kept, request, ticket } = self;
        if let (true, Some(request)) = (ticket.is_open(), request.as_ref()) {
            // A key function may panic, here too; and this may run because it did.
            let leave = || with_claims(rules, kept, request, |stakes| ticket.leave(stakes));
            let _ = catch_unwind(AssertUnwindSafe(leave));
        }
    }
}

impl<S, Req, R, E> fmt::Debug for QueuedFuture<S, Req, R, E>
where
    S: Service<Req>,
    R: RulesFor<Req, S::Response>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QueuedFuture").field("wait", &self.wait()).finish_non_exhaustive()
    }
}
