use std::{fmt, sync::Arc, time::Duration};

use bartizan_core::{Class, Errors, RetryAfter, UntilResponse, errors};
use tokio::time::Instant;

use crate::{
    Causes, Counts, Fault, Health, HealthLayer, Probe, Probed, State, Stats, causes,
    prober::{Ask, ask, probe},
    sync::lock,
    watched::{Took, Watched},
};

/// One of the components of a [`Health`], by its name: [`Health::component`] gives it.
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::{Class, RetryAfter};
/// use bartizan_health::{Fault, Health, State};
///
/// let database = Health::new().component("database");
/// for _ in 0..10 {
///     let fault = Fault::new("timeout").text("no answer within a second");
///     database.record(Class::Failure(RetryAfter::Unknown), Duration::from_secs(1), Some(fault));
/// }
/// assert_eq!(database.state(), State::Unhealthy);
/// let stats = database.stats();
/// assert_eq!(stats.last_error.unwrap().message, "no answer within a second");
/// assert_eq!(stats.errors, [("timeout", 10)]);
///
/// database.reset();
/// assert_eq!(database.state(), State::Healthy);
/// ```
#[derive(Clone)]
pub struct Component {
    pub(crate) health: Health,
    pub(crate) watched: Arc<Watched>,
}

impl Component {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.watched.name
    }

    /// A layer that watches what passes it. Every error is a failure and every response a success, until
    /// [`HealthLayer::classify`] says otherwise.
    pub fn layer(&self) -> HealthLayer<Errors, Causes, UntilResponse> {
        HealthLayer::new(self.clone(), errors(), causes())
    }

    /// Counts a call that is over, for what is no service: what it was, how long it took, and what went wrong.
    pub fn record(&self, class: Class, took: Duration, fault: Option<Fault<'_>>) {
        self.watched.record(class, Took::Time(took), fault, crate::clock::now());
    }

    /// The worse of what traffic and probes say now.
    pub fn state(&self) -> State {
        self.watched.look(self.watched.now())
    }

    /// Whether it can be asked: it is not going away, not ejected and not unhealthy; or so few components are up that all
    /// may be asked.
    pub fn is_eligible(&self) -> bool {
        self.admit(self.watched.now()).is_ok()
    }

    /// As [`is_eligible`](Self::is_eligible), with when to come back if not.
    #[inline]
    pub(crate) fn admit(&self, now: u64) -> Result<(), RetryAfter> {
        if self.watched.is_up(now) { Ok(()) } else { self.admit_in_panic(now) }
    }

    #[cold]
    fn admit_in_panic(&self, now: u64) -> Result<(), RetryAfter> {
        if !self.watched.is_draining() && self.health.panics(now) {
            return Ok(());
        }
        let wait = |at: u64| RetryAfter::After(Duration::from_nanos(at - now));
        Err(self.watched.up_again(now).map_or(RetryAfter::Unknown, wait))
    }

    /// What there is to know of it now.
    pub fn stats(&self) -> Stats {
        self.watched.stats(self.watched.now())
    }

    /// How long all calls took since the beginning.
    pub fn latencies(&self) -> Counts {
        self.watched.latency.all.counts()
    }

    /// How long it took until the first bytes of a body came, of all calls since the beginning that last until their body
    /// ends.
    pub fn first_frames(&self) -> Counts {
        self.watched.first_frame.all.counts()
    }

    /// Forgets what traffic and probes say, and an ejection. What is counted since the beginning stays.
    pub fn reset(&self) {
        self.watched.reset();
    }

    /// From now on it is going away: it is not to be asked any more, though what is under way goes on.
    pub fn drain(&self) {
        self.watched.drain(true);
    }

    /// It is back from [`drain`](Self::drain).
    pub fn undrain(&self) {
        self.watched.drain(false);
    }

    /// Without it the whole does not work: when it is unhealthy the whole is.
    #[must_use]
    pub fn required(self) -> Self {
        self.watched.require();
        self
    }

    /// Begins a probe by hand, unless one is under way. Tell it what came of it.
    pub fn start_probe(&self) -> Option<Probe> {
        Probe::start(&self.watched)
    }

    /// Makes a probe now: the one that [`Health::probe`] or [`Health::prober`] was given. `None` if neither was called.
    pub async fn probe_now(&self) -> Option<Probed> {
        let ask: Option<Ask> = lock(&self.watched.ask).0.clone();
        Some(probe(&self.watched, &ask?).await)
    }

    pub(crate) fn set_probe<F, Fut, E>(&self, f: F)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<bartizan_core::BoxError>,
    {
        let f = ask(f);
        let (old, task) = {
            let mut slot = lock(&self.watched.ask);
            (slot.0.replace(f), slot.1.take())
        };
        // A stranger's destructor runs where nothing is locked.
        drop(old);
        if let Some(task) = task {
            task.abort();
        }
    }

    /// [`record`](Self::record) of a call that ended at a given time. One before the last that was counted reads as that.
    pub fn record_at(&self, class: Class, took: Duration, fault: Option<Fault<'_>>, at: Instant) {
        self.watched.record(class, Took::Time(took), fault, at);
    }
}

impl fmt::Debug for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let now = self.watched.now();
        f.debug_struct("Component")
            .field("name", &self.name())
            .field("state", &self.watched.state(now))
            .finish_non_exhaustive()
    }
}
