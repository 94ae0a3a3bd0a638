use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::{BoxError, Extent, Rejected, RejectionKind, RetryAfter, UntilResponse};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service;

use crate::{
    Ask, OnStoreError, RateLimit, RateLimitLayer, Reject, ResponseFuture, Store, StoreError, Verdict,
    policy::Denied,
    rules::{Attach, Rules, RulesFor, with_claims},
    service::Held,
    stake::{Stakes, admit_all},
    stats::Count,
    store::{Cause, Sink},
};

/// Calls are counted in a store. [`RateLimitLayer::store`] makes one.
#[derive(Clone, Copy, Debug)]
pub struct Stored<St> {
    store: St,
    deadline: Duration,
    on_error: OnStoreError,
}

impl<R: Attach, E> RateLimitLayer<R, Reject, E> {
    /// Counts in `store`, which answers within `deadline` or counts as failed; then `on_error` says what to do.
    ///
    /// All limits are asked in one trip. From then on what their limiters settle goes to the store, by hand or not;
    /// a limiter has one store. What a limiter holds it holds in this process. Its statistics are of what passed here, and
    /// `stats_of` and `try_acquire` know only what was counted here.
    ///
    /// A call that is dropped while the store is asked may have been counted; one that is dropped between the store's
    /// answer and the call of the inner service is given back.
    #[must_use]
    pub fn store<St>(
        self,
        store: St,
        deadline: Duration,
        on_error: OnStoreError,
    ) -> RateLimitLayer<R, Stored<St>, E>
    where
        St: Store + Send + Sync + 'static,
    {
        let link = store.clone();
        self.rules.attach(&Sink(Arc::new(move |ask, actual| link.settle(ask, actual))));
        RateLimitLayer { rules: self.rules, mode: Stored { store, deadline, on_error }, extent: self.extent }
    }
}

impl<S, R, St, E, Req> Service<Req> for RateLimit<S, R, Stored<St>, E>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    R: RulesFor<Req, S::Response> + Clone,
    St: Store,
    E: Extent<S::Response>,
{
    type Response = Held<Req, S::Response, R, E>;
    type Error = BoxError;
    type Future = StoredFuture<S, Req, R, St, E>;

    /// The inner service is made ready when the store has answered.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let Stored { store, deadline, on_error } = self.mode.clone();
        let (rules, kept) = (self.rules.clone(), self.rules.keep(&request));
        let asked = with_claims(&rules, &kept, &request, asks);
        let mut permits =
            Permits { rules, kept, request: Some(request), store, asks: Arc::default(), from: From::Nowhere };
        let (taking, passed) = match asked {
            Err(refusal) => {
                let calling = Some(ResponseFuture::refused(refusal));
                return StoredFuture { waiting: None, taking: None, timer: None, calling };
            }
            Ok(asks) if asks.is_empty() => (None, true),
            Ok(asks) => {
                permits.asks = asks.into();
                (Some(permits.store.take(permits.asks.clone())), false)
            }
        };
        let timer = taking.as_ref().map(|_| sleep(deadline));
        let (service, extent) = (self.inner.clone(), self.extent.clone());
        let waiting = Some(Waiting { service, permits, extent, passed, deadline, on_error });
        StoredFuture { waiting, taking, timer, calling: None }
    }
}

/// What a call asks, unless one of its keys is held.
fn asks(stakes: &Stakes<'_>) -> Result<Vec<Ask>, crate::error::Refusal> {
    let now = Instant::now();
    for stake in stakes.iter().flatten() {
        if let Some(wait) = stake.held(now) {
            stake.count(Count::Refused);
            return Err(stake.refusal(Denied::Wait(wait)));
        }
    }
    Ok(stakes.iter().flatten().map(|stake| stake.ask()).collect())
}

pin_project! {
    /// The response future of a [`RateLimit`](crate::RateLimit) that counts in a store.
    pub struct StoredFuture<S, Req, R, St, E = UntilResponse>
    where
        S: Service<Req>,
        R: RulesFor<Req, S::Response>,
        St: Store,
    {
        waiting: Option<Waiting<S, Req, R, St, E>>,
        #[pin]
        taking: Option<St::Take>,
        #[pin]
        timer: Option<Sleep>,
        #[pin]
        calling: Option<ResponseFuture<S::Future, R::Charge, E>>,
    }
}

/// A call that has not been made.
struct Waiting<S, Req, R: Rules<Req>, St: Store, E> {
    service: S,
    permits: Permits<Req, R, St>,
    extent: E,
    /// Whether it may be made.
    passed: bool,
    deadline: Duration,
    on_error: OnStoreError,
}

impl<S, Req, R, St, E> Future for StoredFuture<S, Req, R, St, E>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
    R: RulesFor<Req, S::Response>,
    St: Store,
    E: Extent<S::Response>,
{
    type Output = <ResponseFuture<S::Future, R::Charge, E> as Future>::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(waiting) = this.waiting {
            if let Some(taking) = this.taking.as_mut().as_pin_mut() {
                let answer = match (taking.poll(cx), this.timer.as_mut().as_pin_mut()) {
                    (Poll::Ready(answer), _) => answer.map_err(Cause::Failed),
                    (Poll::Pending, Some(timer)) => {
                        ready!(timer.poll(cx));
                        Err(Cause::Late(waiting.deadline))
                    }
                    (Poll::Pending, None) => unreachable!("it was set with the question"),
                };
                this.taking.set(None);
                this.timer.set(None);
                waiting.passed = true;
                if let Err(refusal) = waiting.permits.decide(answer, waiting.on_error) {
                    *this.waiting = None;
                    return Poll::Ready(Err(refusal.into()));
                }
            }
            debug_assert!(waiting.passed, "whoever was asked has answered");
            let passed = ready!(waiting.service.poll_ready(cx));
            let Waiting { mut service, mut permits, extent, .. } = this.waiting.take().expect("it is there");
            passed.map_err(Into::into)?;
            let charge = permits.spend();
            let inner = service.call(permits.request.take().expect("it is taken once"));
            this.calling.set(Some(ResponseFuture::admitted(inner, charge, extent)));
        }
        this.calling.as_pin_mut().expect("polled after completion").poll(cx)
    }
}

/// A call's permits, wherever they are from. Dropped before they are spent they go back there.
struct Permits<Req, R: Rules<Req>, St: Store> {
    rules: R,
    kept: R::Kept,
    request: Option<Req>,
    store: St,
    asks: Arc<[Ask]>,
    from: From,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    /// There are none.
    Nowhere,
    Store,
    Here,
}

impl<Req, R: Rules<Req>, St: Store> Permits<Req, R, St> {
    /// What the store's answer, or its silence, means for the call.
    fn decide(&mut self, answer: Result<Verdict, Cause>, on_error: OnStoreError) -> Result<(), Rejected> {
        let cause = match answer {
            Ok(Verdict::Admitted) => {
                self.from = From::Store;
                return Ok(());
            }
            Ok(Verdict::Denied { ask, retry_after }) => {
                let nanos = |wait: Duration| u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
                let denied = retry_after.map_or(Denied::Never, |wait| Denied::Wait(nanos(wait)));
                return Err(self.with_stakes(|stakes| {
                    let mut stakes = stakes.iter().flatten();
                    let stake = stakes.nth(ask).expect("a store denies one of what it was asked");
                    stake.count(Count::Refused);
                    stake.refusal(denied).into()
                }));
            }
            Err(cause) => cause,
        };
        self.with_stakes(|stakes| stakes.iter().flatten().for_each(|stake| stake.count_store_failure()));
        match on_error {
            OnStoreError::Allow => Ok(()),
            OnStoreError::Local => {
                // Those are counted there.
                self.with_stakes(admit_all)?;
                self.from = From::Here;
                Ok(())
            }
            OnStoreError::Deny => {
                self.with_stakes(|stakes| {
                    stakes.iter().flatten().for_each(|stake| stake.count(Count::Refused));
                });
                Err(Rejected::new(RejectionKind::Unhealthy, crate::NAME)
                    .with_retry_after(RetryAfter::Unknown)
                    .with_source(StoreError(cause)))
            }
        }
    }

    fn spend<Res>(&mut self) -> R::Charge
    where
        R: RulesFor<Req, Res>,
    {
        if std::mem::replace(&mut self.from, From::Nowhere) == From::Store {
            self.with_stakes(|stakes| stakes.iter().flatten().for_each(|stake| stake.count(Count::Admitted)));
        }
        let request = self.request.as_ref().expect("it is taken after this");
        self.rules.charge(&self.kept, request)
    }

    fn with_stakes<T>(&self, f: impl FnOnce(&Stakes<'_>) -> T) -> T {
        let request = self.request.as_ref().expect("it is taken when the call is made");
        with_claims(&self.rules, &self.kept, request, f)
    }
}

impl<Req, R: Rules<Req>, St: Store> Drop for Permits<Req, R, St> {
    fn drop(&mut self) {
        // A key function may panic, here too; and this may run because it did.
        let _ = catch_unwind(AssertUnwindSafe(|| match self.from {
            From::Nowhere => {}
            From::Store => self.asks.iter().for_each(|ask| self.store.settle(ask, 0)),
            From::Here => {
                let now = Instant::now();
                self.with_stakes(|stakes| stakes.iter().flatten().for_each(|stake| stake.give_back(now)));
            }
        }));
    }
}

impl<S, Req, R, St, E> fmt::Debug for StoredFuture<S, Req, R, St, E>
where
    S: Service<Req>,
    R: RulesFor<Req, S::Response>,
    St: Store,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredFuture").field("asks", &self.taking.is_some()).finish_non_exhaustive()
    }
}
