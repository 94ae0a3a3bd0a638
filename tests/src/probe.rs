//! A middleware that sees what the service above does with the one below.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

/// What a [`Probe`] panics with when it is called unready.
pub const UNREADY: &str = "called without its own poll_ready having said Ready";

/// Passes everything through, counts it, and panics when `call` is made on an instance that is not ready.
///
/// Readiness belongs to the instance: a clone starts unready, and one grant is good for one call.
#[derive(Debug)]
pub struct Probe<S> {
    inner: S,
    counts: Counts,
    grant: Option<Held>,
}

impl<S> Probe<S> {
    /// Watches over `inner` and counts in `counts`.
    pub fn new(inner: S, counts: Counts) -> Self {
        Self { inner, counts, grant: None }
    }
}

impl<S: Clone> Clone for Probe<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), self.counts.clone())
    }
}

impl<S, Req> Service<Req> for Probe<S>
where
    S: Service<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Probed<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let result = ready!(self.inner.poll_ready(cx));
        match &result {
            Ok(()) => {
                self.grant.get_or_insert_with(|| Held::new(&self.counts, |seen| &seen.granted));
            }
            Err(_) => self.grant = None,
        }
        Poll::Ready(result)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        if self.grant.take().is_none() {
            // Counted as well: whoever catches the panic does not hide it.
            self.counts.0.unready.fetch_add(1, SeqCst);
            panic!("{UNREADY}");
        }
        self.counts.0.calls.fetch_add(1, SeqCst);
        let inner = self.inner.call(request);
        let flight = Held::new(&self.counts, |seen| &seen.in_flight);
        self.counts.0.peak.fetch_max(self.counts.in_flight(), SeqCst);
        Probed { inner, counts: self.counts.clone(), flight: Some(flight) }
    }
}

pin_project! {
    /// The response future of [`Probe`].
    pub struct Probed<F> {
        #[pin]
        inner: F,
        counts: Counts,
        flight: Option<Held>,
    }

    impl<F> PinnedDrop for Probed<F> {
        fn drop(this: Pin<&mut Self>) {
            if this.flight.is_some() {
                this.counts.0.dropped.fetch_add(1, SeqCst);
            }
        }
    }
}

impl<F: Future> Future for Probed<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.counts.0.polls.fetch_add(1, SeqCst);
        let output = ready!(this.inner.poll(cx));
        *this.flight = None;
        Poll::Ready(output)
    }
}

impl<F> std::fmt::Debug for Probed<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probed").field("counts", &self.counts).finish_non_exhaustive()
    }
}

/// What all clones of a [`Probe`] have seen together.
#[derive(Clone, Debug, Default)]
pub struct Counts(Arc<Seen>);

#[derive(Debug, Default)]
struct Seen {
    granted: AtomicUsize,
    unready: AtomicUsize,
    calls: AtomicUsize,
    in_flight: AtomicUsize,
    peak: AtomicUsize,
    polls: AtomicUsize,
    dropped: AtomicUsize,
}

impl Counts {
    /// Instances that said `Ready` and were neither called nor dropped since.
    pub fn granted(&self) -> usize {
        self.0.granted.load(SeqCst)
    }

    /// Calls on instances that were not ready.
    pub fn unready(&self) -> usize {
        self.0.unready.load(SeqCst)
    }

    /// Calls on instances that were ready.
    pub fn calls(&self) -> usize {
        self.0.calls.load(SeqCst)
    }

    /// Futures neither complete nor dropped.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(SeqCst)
    }

    /// The most futures that were ever in flight at once.
    pub fn peak(&self) -> usize {
        self.0.peak.load(SeqCst)
    }

    /// Polls of all futures.
    pub fn polls(&self) -> usize {
        self.0.polls.load(SeqCst)
    }

    /// Futures dropped before they were complete.
    pub fn dropped(&self) -> usize {
        self.0.dropped.load(SeqCst)
    }
}

/// One more in a gauge for as long as it lives.
#[derive(Debug)]
struct Held {
    counts: Counts,
    gauge: fn(&Seen) -> &AtomicUsize,
}

impl Held {
    fn new(counts: &Counts, gauge: fn(&Seen) -> &AtomicUsize) -> Self {
        gauge(&counts.0).fetch_add(1, SeqCst);
        Self { counts: counts.clone(), gauge }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        (self.gauge)(&self.counts.0).fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tower::{ServiceExt, service_fn};

    use super::*;

    fn probe() -> (Probe<impl Service<bool, Response = (), Error = ()> + Clone>, Counts) {
        let counts = Counts::default();
        let inner = service_fn(|hangs: bool| async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok(())
        });
        (Probe::new(inner, counts.clone()), counts)
    }

    #[test]
    #[should_panic(expected = "without its own poll_ready")]
    fn an_unready_call_panics() {
        let _future = probe().0.call(false);
    }

    #[test]
    fn readiness_belongs_to_the_instance_and_to_one_call() {
        let (mut ready, counts) = probe();
        for _ in 0..2 {
            ready.ready().now_or_never().unwrap().unwrap();
        }
        assert_eq!(counts.granted(), 1, "asking twice grants once");
        let clone = ready.clone();
        let unready = |mut service: Probe<_>| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(service.call(false)))).unwrap_err();
        };
        unready(clone);
        assert_eq!((counts.granted(), counts.unready()), (1, 1));

        ready.call(false).now_or_never().unwrap().unwrap();
        assert_eq!(counts.granted(), 0);
        unready(ready);
        assert_eq!((counts.unready(), counts.calls()), (2, 1));
    }

    #[test]
    fn a_ready_instance_that_is_dropped_gives_back() {
        let (mut ready, counts) = probe();
        ready.ready().now_or_never().unwrap().unwrap();
        drop(ready);
        assert_eq!(counts.granted(), 0);
    }

    #[test]
    fn counts_what_is_in_flight() {
        let (probe, counts) = probe();
        let mut calls: Vec<_> = (0..3).map(|_| Box::pin(probe.clone().oneshot(true))).collect();
        for call in &mut calls {
            assert!(call.now_or_never().is_none());
        }
        calls.pop();
        probe.clone().oneshot(false).now_or_never().unwrap().unwrap();
        assert_eq!((counts.in_flight(), counts.peak(), counts.dropped()), (2, 3, 1));
        assert_eq!((counts.calls(), counts.polls()), (4, 4));
    }
}
