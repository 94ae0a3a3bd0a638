//! The health layer: what it costs to record an outcome, and to look at a thousand components.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::{Class, RetryAfter};
use bartizan_health::{Ejection, Fault, Health, Histogram, Passive, Settings};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower::{Layer, Service};

use crate::{
    inner::{Call, Inner, calls_of},
    measure::{Contender, Plan},
    report::Table,
};

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    vec![calls(plan), outcomes(plan), scrapes(plan)]
}

const BASELINE: &str = "hand-written, two clock readings, three adds";

fn calls(plan: Plan) -> Table {
    let health = Health::new();
    let ejecting = Health::with(Settings::new().ejection(Ejection::after(5)));
    let hand_written = Timed { inner: Inner, counts: Arc::default() };
    let figures = plan.on_two_threads(&[
        Contender::new("no layer", |_| calls_of(Inner)),
        Contender::new(BASELINE, |_| calls_of(hand_written.clone())),
        Contender::new("ours", |_| calls_of(health.layer("a").layer(Inner))),
        Contender::new("ours, shedding", |_| calls_of(health.layer("b").shed().layer(Inner))),
        Contender::new("ours, with ejection, shedding", |_| {
            calls_of(ejecting.layer("a").shed().layer(Inner))
        }),
        Contender::new("ours, a component for each thread", |thread| {
            calls_of(health.layer(&format!("c{thread}")).layer(Inner))
        }),
    ]);
    Table::new("Every call succeeds", BASELINE, figures)
}

/// By hand: no clock at the beginning of a call, and none of a layer.
fn outcomes(plan: Plan) -> Table {
    const SUCCESS: &str = "a success";
    let health = || Health::with(Settings::new().passive(Passive::new().unhealthy(100)));
    let (good, bad, mixed) = (health(), health(), health());
    let fault = || Some(Fault::new("timeout").text("no answer within a second"));
    let took = Duration::from_millis(7);
    let figures = plan.on_two_threads(&[
        Contender::new(SUCCESS, |_| {
            let component = good.component("it");
            move |calls| (0..calls).for_each(|_| component.record(Class::Success, took, None))
        }),
        Contender::new("a failure", |_| {
            let component = bad.component("it");
            let failure = Class::Failure(RetryAfter::Unknown);
            move |calls| (0..calls).for_each(|_| component.record(failure, took, fault()))
        }),
        Contender::new("a success among failures", |_| {
            let component = mixed.component("it");
            component.record(Class::Failure(RetryAfter::Unknown), took, fault());
            move |calls| (0..calls).for_each(|_| component.record(Class::Success, took, None))
        }),
    ]);
    Table::new("Recording an outcome by hand", SUCCESS, figures)
        .note("A failure keeps its words; a success among failures adds the window up.")
}

/// How many scrapes of a thousand components are one "call" of the table: one.
fn scrapes(plan: Plan) -> Table {
    const STATS: &str = "the statistics of 1,000 components";
    let health = Health::new();
    for n in 0..1_000 {
        let component = health.component(&format!("component {n}"));
        for ms in 0..20 {
            component.record(Class::Success, Duration::from_millis(ms * n % 977), None);
        }
        let fault = Fault::new("timeout").text("no answer within a second");
        component.record(Class::Failure(RetryAfter::Unknown), Duration::from_secs(1), Some(fault));
    }
    // Long enough without fifty thousand of them.
    let plan = Plan { batch: Some(20), ..plan };
    let figures = plan.on_one_thread(&[
        Contender::new(STATS, |_| {
            let health = health.clone();
            move |scrapes| (0..scrapes).for_each(|_| assert_eq!(health.summary().components.len(), 1_000))
        }),
        Contender::new("... as application/health+json", |_| {
            let health = health.clone();
            move |scrapes| (0..scrapes).for_each(|_| assert!(health.to_json().len() > 100_000))
        }),
        Contender::new("... and histograms of 20 bounds each", |_| {
            let health = health.clone();
            move |scrapes| {
                for _ in 0..scrapes {
                    let below: u64 = health
                        .components()
                        .iter()
                        .map(|component| {
                            let counts = component.latencies();
                            (10..30).map(|bit| counts.below(Duration::from_micros(1 << bit))).sum::<u64>()
                        })
                        .sum();
                    assert!(below > 0);
                }
            }
        }),
    ]);
    Table::new("A scrape of 1,000 components (10 ms are 10,000,000 ns)", STATS, figures)
}

/// What one writes in an hour: two clock readings, a histogram and a count.
#[derive(Clone, Debug)]
struct Timed {
    inner: Inner,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    successes: AtomicU64,
    failures: AtomicU64,
    latencies: Histogram,
}

impl Service<Call> for Timed {
    type Response = Call;
    type Error = Infallible;
    type Future = TimedFuture<<Inner as Service<Call>>::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, call: Call) -> Self::Future {
        TimedFuture { started: Instant::now(), inner: self.inner.call(call), counts: self.counts.clone() }
    }
}

pin_project! {
    struct TimedFuture<F> {
        #[pin]
        inner: F,
        started: Instant,
        counts: Arc<Counts>,
    }
}

impl<F, T, E> Future for TimedFuture<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    #[inline]
    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let result = ready!(this.inner.poll(cx));
        let count = if result.is_ok() { &this.counts.successes } else { &this.counts.failures };
        count.fetch_add(1, Relaxed);
        this.counts.latencies.record(this.started.elapsed());
        Poll::Ready(result)
    }
}
