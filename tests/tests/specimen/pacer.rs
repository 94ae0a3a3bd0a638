//! A layer that lets one call through in a while; the others wait, or are refused if they would wait too long.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_tests::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Readiness, Refusal, Sharing, Timing},
    wire::{Handle, Req, Res},
};
use tokio::time::{Instant, sleep_until};
use tower::{Layer, Service, ServiceExt};

/// What is wrong with a pacer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// It makes the inner service ready before it is needed and sleeps holding that.
    SleepsHoldingAGrant,
    /// Its waiting calls sleep a little, look, and sleep again.
    SleepsAndRetries,
    /// It ends its waits by a clock of its own.
    EndsLate,
}

#[derive(Clone)]
pub(crate) struct Pacer {
    every: Duration,
    patience: Duration,
    next: Arc<Mutex<Option<Instant>>>,
    flaw: Option<Flaw>,
}

impl Pacer {
    fn new(every: Duration, patience: Duration, flaw: Option<Flaw>) -> Self {
        assert!(every < Duration::MAX, "a call that may pass after the end of time never does");
        Self { every, patience, next: Arc::default(), flaw }
    }

    /// When a call that comes now may pass, unless that is too late.
    fn reserve(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut next = self.next.lock().unwrap();
        let at = next.map_or(now, |at| at.max(now));
        if at - now > self.patience {
            return None;
        }
        *next = Some(at + self.every);
        Some(at)
    }
}

impl<S> Layer<S> for Pacer {
    type Service = Paced<S>;

    fn layer(&self, inner: S) -> Paced<S> {
        Paced { inner, pacer: self.clone() }
    }
}

#[derive(Clone)]
pub(crate) struct Paced<S> {
    inner: S,
    pacer: Pacer,
}

impl<S> Service<Req> for Paced<S>
where
    S: Service<Req, Response = Res, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Res;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Res, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.pacer.flaw {
            Some(Flaw::SleepsHoldingAGrant) => self.inner.poll_ready(cx),
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let Some(at) = self.pacer.reserve() else {
            return Box::pin(async { Err(Rejected::new(RejectionKind::QueueTimeout, "pacer").into()) });
        };
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let flaw = self.pacer.flaw;
        Box::pin(async move {
            match flaw {
                None => sleep_until(at).await,
                Some(Flaw::EndsLate) => sleep_until(at + (at - Instant::now()) / 2).await,
                Some(Flaw::SleepsAndRetries) => {
                    while Instant::now() < at {
                        sleep_until(Instant::now() + Duration::from_millis(100)).await;
                    }
                }
                Some(Flaw::SleepsHoldingAGrant) => {
                    sleep_until(at).await;
                    return inner.call(request).await;
                }
            }
            inner.oneshot(request).await
        })
    }
}

/// The pacer under examination.
pub(crate) struct Pacing(pub(crate) Option<Flaw>);

const MINUTE: Duration = Duration::from_secs(60);

impl Pacing {
    fn handle(&self, every: Duration, patience: Duration) -> Handle {
        let pacer = Pacer::new(every, patience, self.0);
        Handle::new(move || pacer.clone())
    }
}

impl Subject for Pacing {
    fn name(&self) -> String {
        self.0.map_or_else(|| "specimen-pacer".to_owned(), |flaw| format!("pacer that is wrong: {flaw:?}"))
    }

    fn open(&self) -> Handle {
        self.handle(Duration::ZERO, MINUTE)
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn refusals(&self) -> Vec<Refusal> {
        if self.0 == Some(Flaw::SleepsHoldingAGrant) {
            return Vec::new(); // Else it is caught before it sleeps.
        }
        vec![Refusal {
            what: "no patience",
            handle: self.handle(MINUTE, Duration::ZERO),
            warm_up: 1,
            then: Then::Resolve,
            request: Dress::any(),
            readiness: Readiness::AtOnce,
            lifts: Some(MINUTE),
        }]
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![Sharing {
            what: "one call at once",
            handle: self.handle(MINUTE, 9 * MINUTE),
            across: Across::Handle,
            then: Then::Resolve,
            request: Dress::any(),
            reach: 1,
        }]
    }

    fn timings(&self) -> Vec<Timing> {
        vec![Timing {
            what: "the second call waits a minute",
            handle: self.handle(MINUTE, 9 * MINUTE),
            warm_up: 1,
            then: Then::Resolve,
            request: Dress::any(),
            at: MINUTE,
        }]
    }

    fn impossible(&self) -> Vec<Impossible> {
        let flaw = self.0;
        vec![Impossible::new("never again", move || Pacer::new(Duration::MAX, MINUTE, flaw))]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        (law == "panics-poison-nothing").then_some("it takes no closure")
    }
}
