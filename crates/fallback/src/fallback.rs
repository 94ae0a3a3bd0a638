use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::Errors;
use tokio::time::Instant;

use crate::{Cloned, FallbackLayer, Nobody, Same, Settings, aside::Aside};

/// Who can be asked, and what is known of them: the state that all layers made from it share.
///
/// Targets are known by name. One that says when to come back ([`RetryAfter`](bartizan_core::RetryAfter)) is left alone
/// until then, whichever layer has asked it.
///
/// ```
/// use std::time::Duration;
/// use bartizan_fallback::{Fallback, Settings, Target};
///
/// let fallback = Fallback::with(Settings::new().attempts(2), [
///     // Two models of one account, which have its quota together: one that is told to wait makes the other one wait.
///     Target::new("large").quota("account"),
///     Target::new("small").quota("account"),
///     Target::new("elsewhere"),
/// ]);
/// fallback.put_aside("large", Duration::from_secs(60));
/// let aside: Vec<_> = fallback.stats().targets.into_iter().map(|target| target.aside_for.is_some()).collect();
/// assert_eq!(aside, [true, true, false]);
/// ```
#[derive(Clone)]
pub struct Fallback(Arc<State>);

struct State {
    settings: Settings,
    epoch: Instant,
    targets: Box<[Known]>,
    asides: Box<[Aside]>,
    unanswered: Counters,
}

pub(crate) struct Known {
    pub(crate) name: Arc<str>,
    /// Which of the asides is its own, or its quota's.
    aside: usize,
    pub(crate) took_over: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) skipped: AtomicU64,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) exhausted: AtomicU64,
    pub(crate) out_of_time: AtomicU64,
    pub(crate) no_target: AtomicU64,
}

impl Fallback {
    /// These targets, with the default [`Settings`].
    ///
    /// # Panics
    ///
    /// If there are none, or two of one name.
    pub fn new<T: Into<Target>>(targets: impl IntoIterator<Item = T>) -> Self {
        Self::with(Settings::new(), targets)
    }

    /// These targets.
    ///
    /// # Panics
    ///
    /// If there are no targets, or two of one name; or with settings with which nobody is ever asked: no attempts, no time,
    /// less time than a call needs.
    pub fn with<T: Into<Target>>(settings: Settings, targets: impl IntoIterator<Item = T>) -> Self {
        settings.check();
        let targets: Vec<Target> = targets.into_iter().map(Into::into).collect();
        assert!(!targets.is_empty(), "a fallback needs targets");
        let mut names = HashSet::new();
        let mut quotas: Vec<Option<&str>> = Vec::new();
        let known = targets.iter().map(|target| {
            assert!(names.insert(&target.name), "two targets of a fallback are named {:?}", target.name);
            let own = target.quota.as_deref();
            let place = quotas.iter().position(|quota| own.is_some() && *quota == own);
            let aside = place.unwrap_or_else(|| {
                quotas.push(own);
                quotas.len() - 1
            });
            Known {
                name: target.name.clone(),
                aside,
                took_over: AtomicU64::new(0),
                failed: AtomicU64::new(0),
                skipped: AtomicU64::new(0),
            }
        });
        let known: Box<[_]> = known.collect();
        let asides = quotas.iter().map(|_| Aside::new()).collect();
        let epoch = Instant::now();
        Self(Arc::new(State { settings, epoch, targets: known, asides, unanswered: Counters::default() }))
    }

    /// A layer that asks the service below, under this name, and then others: [`FallbackLayer::or`] adds them.
    ///
    /// It knows nothing of requests and responses, but that all targets have the same. `http_layer` (feature `http`) makes
    /// one that knows HTTP.
    ///
    /// # Panics
    ///
    /// If there is no target of this name.
    pub fn layer(&self, first: &str) -> FallbackLayer<Nobody, Errors, Cloned, Same> {
        FallbackLayer::new(self.clone(), self.place(first), bartizan_core::errors(), Same)
    }

    /// Leaves a target alone for so long, or longer if that was said before: by hand.
    ///
    /// # Panics
    ///
    /// If there is no target of this name.
    pub fn put_aside(&self, name: &str, time: Duration) {
        self.leave_alone(self.place(name), Instant::now(), time);
    }

    /// Asks a target again, whatever it has said: by hand.
    ///
    /// # Panics
    ///
    /// If there is no target of this name.
    pub fn release(&self, name: &str) {
        self.aside(self.place(name)).release();
    }

    /// What has been counted, and who is left alone now.
    pub fn stats(&self) -> Stats {
        let mut now = None;
        let mut now = || *now.get_or_insert_with(Instant::now);
        let targets = self.0.targets.iter().enumerate().map(|(n, known)| TargetStats {
            name: known.name.clone(),
            took_over: known.took_over.load(Relaxed),
            failed: known.failed.load(Relaxed),
            skipped: known.skipped.load(Relaxed),
            aside_for: self.until(n, &mut now).map(|until| until - now()),
        });
        let Counters { exhausted, out_of_time, no_target } = &self.0.unanswered;
        Stats {
            targets: targets.collect(),
            exhausted: exhausted.load(Relaxed),
            out_of_time: out_of_time.load(Relaxed),
            no_target: no_target.load(Relaxed),
        }
    }

    pub(crate) fn place(&self, name: &str) -> usize {
        let place = self.0.targets.iter().position(|known| *known.name == *name);
        place.unwrap_or_else(|| panic!("this fallback has no target that is named {name:?}"))
    }

    pub(crate) fn known(&self, place: usize) -> &Known {
        &self.0.targets[place]
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    pub(crate) fn unanswered(&self) -> &Counters {
        &self.0.unanswered
    }

    fn aside(&self, place: usize) -> &Aside {
        &self.0.asides[self.0.targets[place].aside]
    }

    /// Whether this one is asked whatever the time is.
    #[inline]
    pub(crate) fn is_free(&self, place: usize) -> bool {
        self.aside(place).is_free()
    }

    #[inline]
    pub(crate) fn until(&self, place: usize, now: impl FnOnce() -> Instant) -> Option<Instant> {
        self.aside(place).until(self.0.epoch, now)
    }

    pub(crate) fn leave_alone(&self, place: usize, now: Instant, time: Duration) {
        if !time.is_zero() {
            // Further than tokio's clock reaches is for ever.
            let far = Duration::from_secs(30 * 365 * 24 * 3600);
            self.aside(place).put(self.0.epoch, now + time.min(far));
        }
    }
}

impl fmt::Debug for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.targets.iter().map(|known| &*known.name).collect();
        f.debug_struct("Fallback").field("targets", &names).finish_non_exhaustive()
    }
}

/// Somebody who can be asked.
#[derive(Clone, Debug)]
pub struct Target {
    name: Arc<str>,
    quota: Option<Arc<str>>,
}

impl Target {
    /// A target of this name.
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), quota: None }
    }

    /// It shares this quota with all that name the same: when one of them says when to come back, all are left alone. By
    /// default it shares nothing.
    #[must_use]
    pub fn quota(mut self, quota: impl Into<Arc<str>>) -> Self {
        self.quota = Some(quota.into());
        self
    }
}

impl<N: Into<Arc<str>>> From<N> for Target {
    fn from(name: N) -> Self {
        Self::new(name)
    }
}

/// What a fallback has counted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Stats {
    /// Of each target, in order.
    pub targets: Vec<TargetStats>,
    /// Requests for which everybody failed who could be asked, or as many as may be.
    pub exhausted: u64,
    /// Requests whose time was over.
    pub out_of_time: u64,
    /// Requests for which nobody was ready.
    pub no_target: u64,
}

/// What a fallback has counted of a target. A call that was dropped counts nowhere.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TargetStats {
    /// Its name.
    pub name: Arc<str>,
    /// Requests that it has answered after another one had failed or was skipped.
    pub took_over: u64,
    /// Calls that it has failed.
    pub failed: u64,
    /// Requests that were not sent to it although it was its turn: it was not ready, or to be left alone.
    pub skipped: u64,
    /// For how long it is left alone from now on.
    pub aside_for: Option<Duration>,
}
