//! Circuit breakers: ours, two written by hand, tower-resilience's, and failsafe and recloser in a small layer.

use std::{
    convert::Infallible,
    fmt,
    future::Ready,
    hint::black_box,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_circuit_breaker::{CircuitBreaker, CircuitBreakers, Settings, Window};
use bartizan_core::{BoxError, Class, Rejected, RejectionKind};
use failsafe::{
    Any, backoff, failure_policy,
    futures::{CircuitBreaker as Failsafe, ResponseFuture as FailsafeFuture},
};
use futures_util::FutureExt;
use pin_project_lite::pin_project;
use recloser::{AnyError, AsyncRecloser, Recloser, RecloserFuture};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceExt};
use tower_resilience_circuitbreaker::{CircuitBreakerConfigBuilder, CircuitBreakerLayer, SlidingWindowType};

use crate::{
    inner::{Call, Failing, Inner, calls_of, outcomes_of, refusals_of},
    measure::{Contender, Plan, drive, drive_waiting},
    report::Table,
};

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    vec![closed(plan), above_a_box(plan), failing(plan), open(plan), windows(plan)]
}

const BASELINE: &str = "hand-written, one load";

const SECOND: Duration = Duration::from_secs(1);
const AN_HOUR: Duration = Duration::from_secs(3600);

fn closed(plan: Plan) -> Table {
    let ours = CircuitBreaker::new(Settings::consecutive(5));
    let [calls, millisecond, minute, slow] = [
        Window::of_calls(100).failures(50),
        Window::of_time(Duration::from_millis(1)).failures(50),
        Window::of_time(60 * SECOND).failures(50),
        Window::of_calls(100).slow(SECOND, 50),
    ]
    .map(|window| CircuitBreaker::new(Settings::window(window)));
    let hosts: CircuitBreakers<u64> = CircuitBreakers::new(Settings::consecutive(5));
    let by_host = hosts.by_ref(|call: &Call| Some(call)).layer(Inner);
    let one_load = Watched::new(OneLoad::default());
    let hand_written = Watched::new(HandWritten::default());
    let of_resilience = |builder: CircuitBreakerConfigBuilder<_>| {
        builder.build().expect("a valid configuration").layer(Inner)
    };
    let resilience = of_resilience(CircuitBreakerLayer::builder().consecutive_failures(5));
    let resilience_window = of_resilience(
        CircuitBreakerLayer::builder()
            .sliding_window_type(SlidingWindowType::TimeBased)
            .sliding_window_duration(Duration::from_millis(1)),
    );
    let failsafe = Wrapped::new(Inner, failsafe());
    let recloser = Wrapped::new(Inner, AsyncRecloser::from(Recloser::custom().closed_len(100).build()));

    let figures = plan.on_two_threads(&[
        Contender::new("no layer", |_| calls_of(Inner)),
        Contender::new(BASELINE, |_| calls_of(one_load.clone())),
        Contender::new("hand-written, load, add, Arc clone", |_| calls_of(hand_written.clone())),
        Contender::new("ours, failures in a row", |_| calls_of(ours.layer().layer(Inner))),
        Contender::new("ours, 64 keys, by_ref", |thread| {
            let mut service = by_host.clone();
            move |calls| drive(&mut service, (0..calls).map(|call| (call + 32 * thread) % 64))
        }),
        Contender::new("ours, window of 100 calls", |_| calls_of(calls.layer().layer(Inner))),
        Contender::new("ours, window of 1 ms", |_| calls_of(millisecond.layer().layer(Inner))),
        Contender::new("ours, window of 1 min", |_| calls_of(minute.layer().layer(Inner))),
        Contender::new("ours, slow of 100 calls", |_| calls_of(slow.layer().layer(Inner))),
        Contender::new("recloser, window of 100 calls (1)", |_| calls_of(recloser.clone())),
        Contender::new("failsafe, failures in a row (1)", |_| calls_of(failsafe.clone())),
        Contender::new("tower-resilience, failures in a row (2)", |_| waiting_calls_of(resilience.clone())),
        Contender::new("tower-resilience, window of 1 ms (3)", |_| {
            waiting_calls_of(resilience_window.clone())
        }),
    ]);
    Table::new("Closed, every call succeeds", BASELINE, figures)
        .note("(1) in a layer that does nothing but to wrap the future of the service below in the crate's own.")
        .note("(2) has an asynchronous lock: whoever waits for it yields the processor here, and asks again.")
        .note("(3) as (2), and looks at every call of the window in each: with a longer one it would not end.")
}

/// What the cheapest layers are in a stack, where nobody sees through all of it at once.
fn above_a_box(plan: Plan) -> Table {
    let ours = CircuitBreaker::new(Settings::consecutive(5));
    let one_load = Watched { inner: Boxing, breaker: OneLoad::default() };
    let hand_written = Watched { inner: Boxing, breaker: HandWritten::default() };
    let figures = plan.on_two_threads(&[
        Contender::new("no layer", |_| calls_of(Boxing)),
        Contender::new(BASELINE, |_| calls_of(one_load.clone())),
        Contender::new("hand-written, load, add, Arc clone", |_| calls_of(hand_written.clone())),
        Contender::new("ours, failures in a row", |_| calls_of(ours.layer().layer(Boxing))),
    ]);
    Table::new("Closed, above a service that boxes its futures", BASELINE, figures)
}

/// A success that comes after a failure has something to write.
fn failing(plan: Plan) -> Table {
    let in_a_row = CircuitBreaker::new(Settings::consecutive(5));
    let calls = CircuitBreaker::new(Settings::window(Window::of_calls(100).failures(50)));
    let one_load = Watched { inner: Failing, breaker: OneLoad::default() };
    let failsafe = Wrapped::new(Failing, failsafe());
    let recloser = Wrapped::new(Failing, AsyncRecloser::from(Recloser::custom().closed_len(100).build()));
    let resilience = CircuitBreakerLayer::builder()
        .consecutive_failures(5)
        .build()
        .expect("a valid configuration")
        .layer(Failing);
    let figures = plan.on_two_threads(&[
        Contender::new(BASELINE, |_| outcomes_of(one_load.clone())),
        Contender::new("ours, failures in a row", |_| outcomes_of(in_a_row.layer().layer(Failing))),
        Contender::new("ours, window of 100 calls", |_| outcomes_of(calls.layer().layer(Failing))),
        Contender::new("recloser, window of 100 calls (1)", |_| outcomes_of(recloser.clone())),
        Contender::new("failsafe, failures in a row (1)", |_| outcomes_of(failsafe.clone())),
        Contender::new("tower-resilience, failures in a row (2)", |_| outcomes_of(resilience.clone())),
    ]);
    Table::new("Closed, one call of fifty fails", BASELINE, figures)
}

fn open(plan: Plan) -> Table {
    let ours = CircuitBreaker::new(Settings::consecutive(1).open_for(AN_HOUR));
    let one_load = OneLoad::default();
    let failsafe = failsafe();
    let recloser = Recloser::custom().closed_len(1).error_rate(0.01).open_wait(AN_HOUR).build();
    let resilience = CircuitBreakerLayer::builder()
        .wait_duration_in_open(AN_HOUR)
        .build()
        .expect("a valid configuration")
        .layer(Inner);

    ours.try_acquire().expect("it is closed").failure();
    one_load.0.store(true, Relaxed);
    (0..5).for_each(|_| failsafe.on_error());
    (0..5).for_each(|_| assert!(recloser.call(|| Err::<(), _>(())).is_err()));
    resilience.force_open().now_or_never().expect("nobody else has its lock");
    let one_load = Watched::new(one_load);
    let (failsafe, recloser) =
        (Wrapped::new(Inner, failsafe), Wrapped::new(Inner, AsyncRecloser::from(recloser)));

    let figures = plan.on_one_thread(&[
        Contender::new(BASELINE, |_| refusals_of(one_load.clone())),
        Contender::new("ours", |_| refusals_of(ours.layer().layer(Inner))),
        Contender::new("recloser (4)", |_| refusals_of(recloser.clone())),
        Contender::new("failsafe (4)", |_| refusals_of(failsafe.clone())),
        Contender::new("recloser, with our error (4, 5)", |_| {
            refusals_of(recloser.clone().map_err(rejected))
        }),
        Contender::new("failsafe, with our error (4, 5)", |_| {
            refusals_of(failsafe.clone().map_err(rejected))
        }),
        Contender::new("tower-resilience", |_| refusals_of(resilience.clone())),
    ]);
    Table::new("Open, every call is refused", BASELINE, figures)
        .note("Ours says for how long, and counts; none of the others does.")
        .note("(4) as (1). The service below is called for a future that is dropped, and the error has no size.")
        .note("(5) made into the error of ours, which is in a box as all errors of a stack are.")
}

/// Calls come at given times, since no clock is fast enough, and no window short enough, for ten calls a window.
fn windows(plan: Plan) -> Table {
    const FEW: &str = "10 calls a window";
    let window = || CircuitBreaker::new(Settings::window(Window::of_time(SECOND).failures(50)));
    let (few, many) = (window(), window());
    let calls_every = |breaker: CircuitBreaker, step: Duration| {
        let mut now = Instant::now();
        move |calls| {
            for _ in 0..calls {
                now += step;
                let permit = breaker.try_acquire_at(now).expect("it is closed");
                permit.settle_at(Class::Success, now);
            }
        }
    };
    let figures = plan.on_one_thread(&[
        Contender::new(FEW, |_| calls_every(few.clone(), SECOND / 10)),
        Contender::new("100,000 calls a window", |_| calls_every(many.clone(), SECOND / 100_000)),
    ]);
    Table::new("Ours by hand, window of 1 s, no clock", FEW, figures)
}

fn rejected<E>(_: E) -> BoxError {
    Rejected::new(RejectionKind::CircuitOpen, "circuit-breaker").into()
}

fn failsafe() -> failsafe::StateMachine<impl failsafe::FailurePolicy + Send + Sync, ()> {
    let policy = failure_policy::consecutive_failures(5, backoff::constant(AN_HOUR));
    failsafe::Config::new().failure_policy(policy).build()
}

fn waiting_calls_of<S: Service<Call>>(mut service: S) -> impl FnMut(u64) {
    move |calls| drive_waiting(&mut service, 0..calls)
}

/// A breaker in a layer that one writes in an hour: refuses or passes on, with a future that has a name.
#[derive(Clone, Debug)]
struct Watched<B, S = Inner> {
    inner: S,
    breaker: B,
}

impl<B> Watched<B> {
    fn new(breaker: B) -> Self {
        Self { inner: Inner, breaker }
    }
}

/// What a [`Watched`] asks.
trait Admit {
    type Pass: Settle;

    fn admit(&self) -> Option<Self::Pass>;
}

/// What is told what became of a call.
trait Settle {
    fn settle(&self, failed: bool);
}

impl<B, S> Service<Call> for Watched<B, S>
where
    B: Admit,
    S: Service<Call, Error: Into<BoxError>>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = WatchedFuture<S::Future, B::Pass>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        match self.breaker.admit() {
            Some(pass) => WatchedFuture::Passed { inner: self.inner.call(call), pass },
            None => WatchedFuture::Refused,
        }
    }
}

pin_project! {
    #[project = WatchedProjection]
    enum WatchedFuture<F, P> {
        Passed { #[pin] inner: F, pass: P },
        Refused,
    }
}

impl<F, P, T, E> Future for WatchedFuture<F, P>
where
    F: Future<Output = Result<T, E>>,
    P: Settle,
    E: Into<BoxError>,
{
    type Output = Result<T, BoxError>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            WatchedProjection::Passed { inner, pass } => {
                let result = ready!(inner.poll(cx));
                pass.settle(result.is_err());
                Poll::Ready(result.map_err(Into::into))
            }
            WatchedProjection::Refused => Poll::Ready(Err(Open.into())),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Open;

impl fmt::Display for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("open")
    }
}

impl std::error::Error for Open {}

/// The least that a breaker can do: it looks whether it is open.
#[derive(Clone, Debug, Default)]
struct OneLoad(Arc<AtomicBool>);

impl Admit for OneLoad {
    type Pass = ();

    #[inline]
    fn admit(&self) -> Option<()> {
        (!self.0.load(Relaxed)).then_some(())
    }
}

impl Settle for () {
    #[inline]
    fn settle(&self, _: bool) {}
}

/// Looks whether it is open, and counts, with a future that has what it counts in.
#[derive(Clone, Debug, Default)]
struct HandWritten(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    open: AtomicBool,
    successes: AtomicU64,
    failures: AtomicU64,
}

impl Admit for HandWritten {
    type Pass = Arc<Counts>;

    #[inline]
    fn admit(&self) -> Option<Arc<Counts>> {
        (!self.0.open.load(Relaxed)).then(|| self.0.clone())
    }
}

impl Settle for Arc<Counts> {
    #[inline]
    fn settle(&self, failed: bool) {
        let counter = if failed { &self.failures } else { &self.successes };
        counter.fetch_add(1, Relaxed);
    }
}

/// [`Inner`], as it is below a `BoxService`.
#[derive(Clone, Copy, Debug)]
struct Boxing;

impl Service<Call> for Boxing {
    type Response = Call;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Call, Infallible>> + Send>>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        // Or else the optimiser sees what is in the box, and makes none.
        black_box(Box::pin(Inner.call(call)))
    }
}

/// A breaker that wraps futures, in a layer.
#[derive(Clone, Debug)]
struct Wrapped<B, S> {
    inner: S,
    breaker: B,
}

impl<B, S> Wrapped<B, S> {
    fn new(inner: S, breaker: B) -> Self {
        Self { inner, breaker }
    }
}

/// What a [`Wrapped`] wraps with.
trait Wrap<F> {
    type Error;
    type Future: Future<Output = Result<Call, Self::Error>>;

    fn wrap(&self, future: F) -> Self::Future;
}

impl<B: Wrap<S::Future>, S: Service<Call>> Service<Call> for Wrapped<B, S> {
    type Response = Call;
    type Error = B::Error;
    type Future = B::Future;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), B::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        self.breaker.wrap(self.inner.call(call))
    }
}

impl<P, E> Wrap<Ready<Result<Call, E>>> for failsafe::StateMachine<P, ()>
where
    P: failsafe::FailurePolicy + Send + Sync,
    E: std::error::Error,
{
    type Error = failsafe::Error<E>;
    type Future = FailsafeFuture<Ready<Result<Call, E>>, P, (), Any>;

    #[inline]
    fn wrap(&self, future: Ready<Result<Call, E>>) -> Self::Future {
        Failsafe::call(self, future)
    }
}

impl<E: std::error::Error> Wrap<Ready<Result<Call, E>>> for AsyncRecloser {
    type Error = recloser::Error<E>;
    type Future = RecloserFuture<Ready<Result<Call, E>>, AnyError>;

    #[inline]
    fn wrap(&self, future: Ready<Result<Call, E>>) -> Self::Future {
        self.call(future)
    }
}
