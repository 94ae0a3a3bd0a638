//! Where a law puts a layer: over a probe over a controlled service, on a paused clock.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use bartizan_core::BoxError;
use futures_util::future::poll_fn;
use tokio::{runtime, task::unconstrained, time};
use tower::{Layer, Service, ServiceExt, util::Oneshot};

use crate::{
    Subject,
    controlled::{Controlled, Controls, Gate, Then},
    probe::{Counts, Probe},
    subject::Dress,
    watch::Watched,
    wire::{Handle, Req, Res, Wire, WireLayer},
};

/// A layer over a watched, controlled service.
pub(crate) struct Bench {
    pub(crate) controls: Controls,
    pub(crate) counts: Counts,
    pub(crate) layer: WireLayer,
    /// The layer's service. Calls go to clones of it; it itself is never polled.
    pub(crate) service: Wire,
    inner: Wire,
    handle: Handle,
}

/// A call under way, readiness included.
pub(crate) type Call = Watched<Oneshot<Wire, Req>>;

impl Bench {
    /// Over an inner service that takes `capacity` calls at once.
    pub(crate) fn new(handle: &Handle, capacity: usize) -> Self {
        let (inner, controls) = Controlled::new(capacity);
        let counts = Counts::default();
        let inner = Wire::new(Probe::new(inner, counts.clone()));
        let layer = handle.layer();
        let service = layer.layer(inner.clone());
        Self { controls, counts, layer, service, inner, handle: handle.clone() }
    }

    /// A clone of the service.
    pub(crate) fn clone_of_service(&self) -> Wire {
        self.service.clone()
    }

    /// A further service of the same layer.
    pub(crate) fn another_service(&self) -> Wire {
        self.layer.layer(self.inner.clone())
    }

    /// The service of a further layer of the same handle.
    pub(crate) fn another_layers_service(&self) -> Wire {
        self.handle.layer().layer(self.inner.clone())
    }

    /// A call through a clone of the service.
    pub(crate) fn call(&self, request: Req) -> Call {
        call(&self.service, request)
    }

    /// Calls that bring the layer into its state. Those that hang are given back.
    pub(crate) async fn warm_up(&self, calls: usize, then: Then, dress: &Dress) -> Vec<Call> {
        let mut held = Vec::new();
        self.controls.then(then);
        for n in 0..calls {
            let mut call = self.call(dress.request(n));
            if let Ran::Pending = run(&mut call).await {
                held.push(call);
            }
        }
        held
    }

    /// Ready instances that nobody called, in all seams.
    pub(crate) fn granted(&self) -> usize {
        self.seams().map(Counts::granted).sum()
    }

    /// Whether all that calls took is given back.
    pub(crate) fn given_back(&self) -> Result<(), String> {
        let in_flight: usize = self.seams().map(Counts::in_flight).sum();
        let (free, capacity) = (self.controls.free(), self.controls.capacity());
        match (self.granted(), in_flight) {
            (0, 0) if free == capacity => Ok(()),
            (0, 0) => Err(format!("{free} of the inner service's {capacity} permits are free")),
            (0, _) => Err(format!("{in_flight} inner call(s) are still in flight")),
            (granted, _) => Err(format!("{granted} grant(s) of the inner service are still held")),
        }
    }

    /// Whether a call passes now, as an ordinary one does, in whatever time the layer takes.
    pub(crate) async fn passes(&self, request: Req) -> Result<(), String> {
        self.controls.gate(Gate::Open);
        self.controls.then(Then::Resolve);
        let calls = self.counts.calls();
        match time::timeout(Duration::from_secs(3600), self.call(request)).await {
            Ok(Ok(_)) if self.counts.calls() > calls => Ok(()),
            Ok(Ok(_)) => Err("a later call did not reach the inner service".to_owned()),
            Ok(Err(error)) => Err(format!("a later call fails: {error}")),
            Err(_) => Err("a later call hangs".to_owned()),
        }
    }

    fn seams(&self) -> impl Iterator<Item = &Counts> {
        self.handle.seams().iter().chain([&self.counts])
    }
}

/// An ordinary request, unlike every other: nothing that earlier ones left can answer it.
pub(crate) fn ordinary(subject: &dyn Subject) -> Req {
    static NEXT: AtomicUsize = AtomicUsize::new(1_000_000);
    subject.dress(NEXT.fetch_add(1, Relaxed), Req::default())
}

/// A call through a clone of `service`.
pub(crate) fn call(service: &Wire, request: Req) -> Call {
    Watched::new(service.clone().oneshot(request))
}

/// Waits for `service` to be ready.
pub(crate) fn readiness(service: &mut Wire) -> Watched<impl Future<Output = Result<(), BoxError>>> {
    Watched::new(poll_fn(|cx| service.poll_ready(cx)))
}

/// How far a future came without time passing.
pub(crate) enum Ran<T> {
    Done(T),
    Pending,
    Panicked(String),
}

impl<T: Told> fmt::Display for Ran<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(output) => output.tell(f),
            Self::Pending => f.write_str("it is pending"),
            Self::Panicked(message) => write!(f, "it panicked: {message}"),
        }
    }
}

/// What messages say of an output.
pub(crate) trait Told {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

impl Told for Result<(), BoxError> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ok(()) => f.write_str("it is ready"),
            Err(error) => write!(f, "it fails: {error}"),
        }
    }
}

impl Told for Result<Res, BoxError> {
    fn tell(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ok(response) => write!(f, "it answers {}", response.status()),
            Err(error) => write!(f, "it fails: {error}"),
        }
    }
}

/// Polls a future now, and again whenever it is woken, until nothing happens any more without time passing.
pub(crate) async fn run<F: Future>(future: &mut Watched<F>) -> Ran<F::Output> {
    loop {
        match catch_unwind(AssertUnwindSafe(|| future.poll())) {
            Ok(Poll::Ready(output)) => return Ran::Done(output),
            Ok(Poll::Pending) => settle().await,
            Err(panic) => return Ran::Panicked(message(&*panic)),
        }
        if !future.is_woken() {
            return Ran::Pending;
        }
    }
}

/// Lets every task and every due timer have its turns, while the clock stands.
///
/// Tokio cannot say when a runtime is idle, so this is a number of turns: more than any chain of wake-ups here is long.
pub async fn settle() {
    for _ in 0..16 {
        time::advance(Duration::ZERO).await;
    }
}

/// Runs a check on a runtime of its own, whose clock is paused. A check that nothing wakes any more fails.
pub(crate) fn paused<T>(check: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    on_paused_clock(within_a_month(check))
}

/// Fails once nothing but this month is left to wait for.
pub(crate) async fn within_a_month<T>(check: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let month = Duration::from_secs(30 * 24 * 3600);
    time::timeout(month, check).await.unwrap_or_else(|_| Err("it waits, and nothing will wake it".to_owned()))
}

/// Runs a check on a runtime of its own, whose clock is paused.
///
/// The cooperative budget is off: a check that polls by hand would use it up and take the yield for a self-wake.
pub(crate) fn on_paused_clock<T>(check: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.map_err(|error| error.to_string())?.block_on(unconstrained(check))
}

/// What a panic said.
pub(crate) fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default()
}
