//! What the gateway counts of itself, and the text in which Prometheus reads all that is counted.
//!
//! The text is written from the layers' own statistics when it is asked for. A registry between them, as the crate
//! `metrics` has, would be a second copy of every number, and of a histogram it takes only single durations: ours are
//! counted where they happen, in buckets.

use std::{
    convert::Infallible,
    fmt::{Display, Write as _},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bartizan_health::{Counts, Histogram};
use http::{Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

/// What all workers count together.
#[derive(Debug)]
pub(crate) struct Metrics {
    /// By status, from 100.
    responses: Box<[AtomicU64; CODES]>,
    abandoned: AtomicU64,
    pub(crate) overhead: Histogram,
    pub(crate) started: SystemTime,
}

const FIRST: usize = 100;
const CODES: usize = 500;

impl Metrics {
    pub(crate) fn new() -> Self {
        Self {
            responses: Box::new(std::array::from_fn(|_| AtomicU64::new(0))),
            abandoned: AtomicU64::new(0),
            overhead: Histogram::new(),
            started: SystemTime::now(),
        }
    }

    /// Counts what `inner` answers, and who does not wait for it, and how long it is busy until then.
    pub(crate) fn around<S>(self: &Arc<Self>, inner: S) -> Measured<S> {
        Measured { inner, metrics: self.clone() }
    }

    fn record(&self, status: StatusCode, busy: Duration) {
        if let Some(count) = self.responses.get(usize::from(status.as_u16()).wrapping_sub(FIRST)) {
            count.fetch_add(1, Relaxed);
        }
        self.overhead.record(busy);
    }

    /// How many requests had no answer because their clients went before.
    pub(crate) fn abandoned(&self) -> u64 {
        self.abandoned.load(Relaxed)
    }

    /// How often each status was answered that ever was.
    pub(crate) fn responses(&self) -> impl Iterator<Item = (usize, u64)> {
        let all = self.responses.iter().enumerate();
        all.map(|(n, count)| (FIRST + n, count.load(Relaxed))).filter(|(_, count)| *count > 0)
    }
}

/// The service that [`Metrics::around`] makes.
#[derive(Clone, Debug)]
pub(crate) struct Measured<S> {
    inner: S,
    metrics: Arc<Metrics>,
}

impl<S, Req, B> Service<Req> for Measured<S>
where
    S: Service<Req, Response = Response<B>, Error = Infallible>,
{
    type Response = Response<B>;
    type Error = Infallible;
    type Future = MeasuredFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let begin = Instant::now();
        let inner = self.inner.call(request);
        MeasuredFuture { inner, busy: begin.elapsed(), waiting: true, metrics: self.metrics.clone() }
    }
}

pin_project! {
    /// Adds up how long its polls take. What lies between them is waiting, for a client, a limit or an upstream.
    pub(crate) struct MeasuredFuture<F> {
        #[pin]
        inner: F,
        busy: Duration,
        // For an answer. Not while a poll is under way: one that panics is no client that goes.
        waiting: bool,
        metrics: Arc<Metrics>,
    }

    impl<F> PinnedDrop for MeasuredFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if *this.waiting {
                this.metrics.abandoned.fetch_add(1, Relaxed);
                this.metrics.overhead.record(*this.busy);
            }
        }
    }
}

impl<F, B> Future for MeasuredFuture<F>
where
    F: Future<Output = Result<Response<B>, Infallible>>,
{
    type Output = Result<Response<B>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let begin = Instant::now();
        *this.waiting = false;
        let polled = this.inner.poll(cx);
        *this.busy += begin.elapsed();
        *this.waiting = polled.is_pending();
        if let Poll::Ready(Ok(response)) = &polled {
            this.metrics.record(response.status(), *this.busy);
        }
        polled
    }
}

/// Prometheus's text format, under way.
pub(crate) struct Exposition(String);

/// What stands in `# TYPE`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// Names and values of labels.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    pub(crate) fn new() -> Self {
        Self(String::with_capacity(16 * 1024))
    }

    /// Begins a metric: its samples follow.
    pub(crate) fn family(&mut self, name: &'static str, kind: Kind, help: &str) -> Family<'_> {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
        Family { out: self, name }
    }

    pub(crate) fn end(self) -> String {
        self.0
    }

    fn line(&mut self, line: impl Display) {
        writeln!(self.0, "{line}").expect("a String takes everything");
    }
}

/// A metric under way.
pub(crate) struct Family<'a> {
    out: &'a mut Exposition,
    name: &'static str,
}

impl Family<'_> {
    pub(crate) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.write("", labels, None, value);
    }

    /// A histogram, with a bound for each power of two of microseconds from one to another: those are counted exactly.
    pub(crate) fn histogram(
        &mut self,
        labels: Labels<'_>,
        counts: &Counts,
        bits: std::ops::RangeInclusive<u32>,
    ) {
        for bit in bits {
            let bound = Duration::from_micros(1 << bit);
            let le = bound.as_secs_f64().to_string();
            self.write("_bucket", labels, Some(&le), counts.below(bound));
        }
        self.write("_bucket", labels, Some("+Inf"), counts.count());
        self.write("_sum", labels, None, counts.sum().as_secs_f64());
        self.write("_count", labels, None, counts.count());
    }

    fn write(&mut self, suffix: &str, labels: Labels<'_>, le: Option<&str>, value: impl Display) {
        let labels: Vec<_> = labels
            .iter()
            .copied()
            .chain(le.map(|le| ("le", le)))
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let name = self.name;
        self.out.line(format_args!("{name}{suffix}{labels} {value}"));
    }
}

/// The value of a label, in whose quotes three characters need to be written otherwise.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::{
        future::pending,
        panic::{AssertUnwindSafe, catch_unwind},
        pin::pin,
        task::Waker,
    };

    use tower::service_fn;

    use super::*;

    #[test]
    fn labels_hold_whatever_names_there_are() {
        let mut out = Exposition::new();
        out.family("it_total", Kind::Counter, "It.").sample(&[("model", "a\\b\"c\nd{}é")], 7);
        let expected =
            "# HELP it_total It.\n# TYPE it_total counter\nit_total{model=\"a\\\\b\\\"c\\nd{}é\"} 7\n";
        assert_eq!(out.end(), expected);
    }

    /// Answered, or dropped without a poll, after one, or by one that panics.
    #[test]
    fn a_request_is_counted_once_however_it_ends() {
        let metrics = Arc::new(Metrics::new());
        let counts = || {
            let answered: u64 = metrics.responses().map(|(_, count)| count).sum();
            (answered, metrics.abandoned(), metrics.overhead.counts().count())
        };
        let answered = service_fn(async |()| Ok::<_, Infallible>(Response::new(())));
        let mut answered = metrics.around(answered);
        let mut hangs = metrics.around(service_fn(|()| pending::<Result<Response<()>, Infallible>>()));
        let mut panics =
            metrics.around(service_fn(async |()| -> Result<Response<()>, Infallible> { panic!("a bug") }));
        let poll =
            |future: Pin<&mut dyn Future<Output = _>>| future.poll(&mut Context::from_waker(Waker::noop()));

        assert!(poll(pin!(answered.call(()))).is_ready());
        assert_eq!(counts(), (1, 0, 1));
        drop(answered.call(()));
        assert_eq!(counts(), (1, 1, 2));
        assert!(poll(pin!(hangs.call(()))).is_pending());
        assert_eq!(counts(), (1, 2, 3));
        assert!(catch_unwind(AssertUnwindSafe(|| poll(pin!(panics.call(()))))).is_err());
        assert_eq!(counts(), (1, 2, 3));
    }

    #[test]
    fn a_histogram_is_cumulative() {
        let histogram = Histogram::new();
        [900, 1_500, 3_000_000].iter().for_each(|us| histogram.record(Duration::from_micros(*us)));
        let mut out = Exposition::new();
        out.family("it_seconds", Kind::Histogram, "It.").histogram(
            &[("a", "b")],
            &histogram.counts(),
            10..=11,
        );
        let expected = "# HELP it_seconds It.\n# TYPE it_seconds histogram\n\
                        it_seconds_bucket{a=\"b\",le=\"0.001024\"} 1\n\
                        it_seconds_bucket{a=\"b\",le=\"0.002048\"} 2\n\
                        it_seconds_bucket{a=\"b\",le=\"+Inf\"} 3\n\
                        it_seconds_sum{a=\"b\"} 3.0024\n\
                        it_seconds_count{a=\"b\"} 3\n";
        assert_eq!(out.end(), expected);
    }
}
