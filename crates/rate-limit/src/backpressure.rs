use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bartizan_core::{BoxError, Extent};
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use crate::{
    RateLimit, RateLimiter, ResponseFuture, Rule,
    account::Bounds,
    after::After,
    key::{CostOf, Unkeyed},
    policy::Denied,
    service::Held,
    stake::{Asking, Stakes},
    stats::Count,
    ticket::Ticket,
};

/// The service is not ready before there is a permit. [`RateLimitLayer::backpressure`] makes one.
///
/// [`RateLimitLayer::backpressure`]: crate::RateLimitLayer::backpressure
#[derive(Default)]
pub struct Backpressure {
    permit: Option<Permit>,
    /// Made when there is something to wait for, and used again.
    sleep: Pin<Box<Option<Sleep>>>,
}

/// A clone is not ready, so what the original has reserved stays with the original.
impl Clone for Backpressure {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// A place in the queue is kept by whoever polls, and there is one for each service: they bound themselves.
const NO_BOUNDS: Bounds = Bounds { max_queue: usize::MAX, max_wait: u64::MAX };

/// The permit of a call that is to come, or a place in the queue for it. Dropped it is given back.
struct Permit {
    limiter: RateLimiter,
    ticket: Ticket,
}

impl Permit {
    fn reserve(limiter: &RateLimiter) -> Self {
        let ticket = claim(limiter, |stakes| Ticket::new(stakes, NO_BOUNDS));
        let ticket = ticket.expect("one permit is there sooner or later, and nobody is too many");
        Self { limiter: limiter.clone(), ticket }
    }

    /// Charges a call of this cost, of which one permit was taken before.
    fn spend(mut self, cost: u64) -> Result<(), Denied> {
        let Self { limiter, ticket } = &mut self;
        if cost != 1 {
            let now = limiter.nanos(Instant::now());
            limiter.with(&limiter.ask(&()), now, |account| account.charge_rest(now, cost))??;
        }
        claim(limiter, |stakes| ticket.spend(stakes));
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Self { limiter, ticket } = self;
        claim(limiter, |stakes| ticket.leave(stakes));
    }
}

fn claim<T>(limiter: &RateLimiter, f: impl FnOnce(&Stakes<'_>) -> T) -> T {
    f(&[Some(&Asking { limiter, asked: limiter.ask(&()), cost: 1 })])
}

impl<S, Cost, Then, E, Req> Service<Req> for RateLimit<S, Rule<(), Unkeyed, Cost, Then>, Backpressure, E>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Cost: CostOf<Req>,
    Then: After<S::Response>,
    E: Extent<S::Response>,
{
    type Response = Held<Req, S::Response, Rule<(), Unkeyed, Cost, Then>, E>;
    type Error = BoxError;
    type Future = ResponseFuture<S::Future, Option<Then::Charge<()>>, E>;

    /// The permit comes first: nobody waits for it holding the service below.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let Backpressure { permit, sleep } = &mut self.mode;
        let Permit { limiter, ticket } = permit.get_or_insert_with(|| Permit::reserve(&self.rules.limiter));
        let taken = ready!(claim(limiter, |stakes| ticket.poll(stakes, cx, sleep.as_mut())));
        taken.expect("whoever waits for ever is not refused");
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let permit = self.mode.permit.take().expect("called before it was ready");
        let cost = self.rules.cost.cost_of(&request);
        match permit.spend(cost) {
            Ok(()) => {
                let charge = self.rules.after.charge(&self.rules.limiter, &(), cost);
                ResponseFuture::admitted(self.inner.call(request), Some(charge), self.extent.clone())
            }
            Err(denied) => {
                self.inner = self.inner.clone();
                self.rules.limiter.count(&self.rules.limiter.ask(&()), Count::Refused);
                ResponseFuture::refused(self.rules.limiter.refusal(denied))
            }
        }
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backpressure").field("reserved", &self.permit.is_some()).finish_non_exhaustive()
    }
}
