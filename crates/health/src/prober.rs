//! Active probes: one after the other, each with its time, whatever they do.

use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::BoxError;
use tokio::time::{Instant, sleep_until, timeout};

use crate::{clock, sync::lock, watched::Watched};

type Answer = Pin<Box<dyn Future<Output = Result<(), BoxError>> + Send>>;

/// What a probe does.
pub(crate) type Ask = Arc<dyn Fn() -> Answer + Send + Sync>;

pub(crate) fn ask<F, Fut, E>(probe: F) -> Ask
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), E>> + Send + 'static,
    E: Into<BoxError>,
{
    Arc::new(move || {
        let answer = probe();
        Box::pin(async { answer.await.map_err(Into::into) })
    })
}

/// What came of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probed {
    /// It was good.
    Good,
    /// It failed, with these words: an error's, or that it took too long, or panicked.
    Failed(String),
    /// Another one is under way, and so none was made.
    UnderWay,
}

/// A probe that somebody makes by hand: [`Component::start_probe`](crate::Component::start_probe).
///
/// Dropped without an answer it decides nothing, and makes room for the next one.
#[derive(Debug)]
#[must_use = "dropped at once it decides nothing"]
pub struct Probe {
    watched: Arc<Watched>,
    number: u64,
    over: bool,
}

impl Probe {
    pub(crate) fn start(watched: &Arc<Watched>) -> Option<Self> {
        let number = watched.probes(super::active::Probes::start)?;
        Some(Self { watched: watched.clone(), number, over: false })
    }

    /// It was good. Whether that counts: not if it comes too late, or after a reset.
    pub fn good(self) -> bool {
        self.end(true)
    }

    /// It failed, and why. Whether that counts.
    pub fn failed(self, why: &dyn fmt::Display) -> bool {
        self.watched.blame_probe(why);
        self.end(false)
    }

    fn end(mut self, good: bool) -> bool {
        self.over = true;
        self.watched.probes(|probes, now| probes.end(self.number, good, now))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        if !self.over {
            self.watched.probes(|probes, now| probes.cancel(self.number, now));
        }
    }
}

/// Makes one probe.
pub(crate) async fn probe(watched: &Arc<Watched>, ask: &Ask) -> Probed {
    let Some(probe) = Probe::start(watched) else { return Probed::UnderWay };
    let answer = match catch_unwind(AssertUnwindSafe(|| ask())) {
        Ok(answer) => timeout(watched.timeout, Caught(answer)).await,
        Err(panic) => Ok(Err(panicked(&*panic).into())),
    };
    let why = match answer {
        Ok(Ok(())) => {
            let good = probe.good();
            return if good { Probed::Good } else { Probed::Failed(too_late(watched.timeout)) };
        }
        // Its words are a stranger's as well.
        Ok(Err(error)) => {
            catch_unwind(AssertUnwindSafe(|| error.to_string())).unwrap_or_else(|panic| panicked(&*panic))
        }
        Err(_) => too_late(watched.timeout),
    };
    probe.failed(&why);
    Probed::Failed(why)
}

fn too_late(limit: Duration) -> String {
    format!("no answer within {limit:?}")
}

/// Probes a component for as long as it is polled: [`Health::prober`](crate::Health::prober) makes one.
#[must_use = "futures do nothing unless they are polled"]
pub struct Prober(Pin<Box<dyn Future<Output = ()> + Send>>);

impl Prober {
    pub(crate) fn new(watched: Arc<Watched>, every: Duration) -> Self {
        Self(Box::pin(run(watched, every)))
    }
}

impl Future for Prober {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for Prober {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prober")
    }
}

/// Probes for ever: as often as it should, and one at a time.
async fn run(watched: Arc<Watched>, every: Duration) {
    loop {
        let start = clock::now();
        let ask = lock(&watched.ask).0.clone();
        if let Some(ask) = ask {
            probe(&watched, &ask).await;
        }
        // One that took longer is followed at once, though not without a breath.
        let next = start.checked_add(every).unwrap_or_else(|| far(start));
        sleep_until(next.max(clock::now())).await;
    }
}

fn far(now: Instant) -> Instant {
    now + Duration::from_secs(365 * 24 * 3600)
}

/// A future whose panic is an error.
struct Caught(Answer);

impl Future for Caught {
    type Output = Result<(), BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx)))
            .unwrap_or_else(|panic| Poll::Ready(Err(panicked(&*panic).into())))
    }
}

pub(crate) fn panicked(panic: &(dyn Any + Send)) -> String {
    let words =
        panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    words.map_or_else(|| "it panicked".to_owned(), |words| format!("it panicked: {words}"))
}
