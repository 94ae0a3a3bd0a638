use std::{
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::RejectionKind;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    RateLimiter,
    account::{Bounds, Denial},
    error::Refusal,
    limiter::Count,
    policy::Denied,
    queue::{Fate, Place},
};

/// A call's permits, or its place in the queue for them. Dropped unused it gives back what it has.
pub(crate) struct Ticket<K: Hash + Eq + Clone> {
    limiter: RateLimiter<K>,
    key: K,
    cost: u64,
    /// Where it waits, or has waited.
    place: Option<Arc<Place>>,
    /// How long it had to wait, as was known when it came.
    pub(crate) wait: u64,
    /// Whether there is nothing to give back.
    settled: bool,
}

impl<K: Hash + Eq + Clone> Ticket<K> {
    pub(crate) fn new(limiter: RateLimiter<K>, key: K, cost: u64, bounds: Bounds) -> Result<Self, Refusal> {
        let now = limiter.nanos(Instant::now());
        let asked = limiter.ask(&key);
        let entered = limiter.with(&asked, now, |it| it.enter(now, cost, bounds));
        let refused = match entered {
            Ok(Ok((place, wait))) => {
                return Ok(Self { limiter, key, cost, place, wait, settled: false });
            }
            Ok(Err(Denial::Full(wait))) => {
                limiter.refusal(Denied::Wait(wait)).of_kind(RejectionKind::QueueFull)
            }
            Ok(Err(Denial::Limited(denied))) | Err(denied) => limiter.refusal(denied),
        };
        limiter.count(asked.hash, Count::Refused);
        Err(refused)
    }

    /// Waits for the permits. `sleep` is this ticket's timer.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Option<Sleep>>,
    ) -> Poll<Result<(), Refusal>> {
        let Self { limiter, key, place, .. } = self;
        let Some(place) = place else { return Poll::Ready(Ok(())) };
        loop {
            let now = limiter.nanos(Instant::now());
            let asked = limiter.ask(key);
            let attended = limiter.with(&asked, now, |it| it.attend(now, place, cx.waker()));
            let at = match attended.unwrap_or_else(|_| Ok(place.fate())) {
                Ok(Fate::Granted) => {
                    sleep.set(None);
                    return Poll::Ready(Ok(()));
                }
                Ok(Fate::Doomed(wait)) => {
                    self.settled = true;
                    limiter.count(asked.hash, Count::TimedOut);
                    limiter.count(asked.hash, Count::Refused);
                    let refusal = limiter.refusal(Denied::Wait(wait));
                    return Poll::Ready(Err(refusal.of_kind(RejectionKind::QueueTimeout)));
                }
                Ok(Fate::Waiting) => unreachable!("whoever is not in the queue has met his fate"),
                Err(at) => limiter.instant(at),
            };
            match sleep.as_mut().as_pin_mut() {
                None => sleep.set(Some(sleep_until(at))),
                Some(timer) if timer.deadline() != at => timer.reset(at),
                Some(_) => {}
            }
            ready!(sleep.as_mut().as_pin_mut().expect("set just now").poll(cx));
        }
    }

    /// The call is made: what was taken is spent.
    pub(crate) fn spend(mut self) {
        self.settled = true;
        self.limiter.count(self.limiter.ask(&self.key).hash, Count::Admitted);
    }
}

impl<K: Hash + Eq + Clone> Drop for Ticket<K> {
    fn drop(&mut self) {
        if !self.settled {
            let Self { limiter, key, cost, place, .. } = self;
            let now = limiter.nanos(Instant::now());
            let _ = limiter.with(&limiter.ask(key), now, |it| it.withdraw(now, *cost, place.as_ref()));
        }
    }
}
