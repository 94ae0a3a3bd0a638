use std::{
    cell::Cell,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::{BoxError, Errors, UntilResponse};

use crate::{
    Causes, Component, HealthLayer, InvalidSettings, Probed, Prober, Report, Settings, State, Stats, Watch,
    changes::Changes,
    clock::Epoch,
    eject::Roster,
    place::Place,
    prober::panicked,
    settings::{Active, Passive},
    sync::{lock, read, write},
    watched::Watched,
};

/// How a service fares, by its components: made once, shared by every layer, service and clone that is made from it.
///
/// ```
/// use bartizan_health::{Health, Report, State};
///
/// let health = Health::new();
/// let _layer = health.layer("openai");
/// health.report("cache", || Report::new(State::Degraded).says("half of it is gone"));
///
/// let summary = health.summary();
/// assert_eq!(summary.state, State::Degraded);
/// assert_eq!((summary.components[0].name.as_str(), summary.components[0].state), ("openai", State::Healthy));
/// assert_eq!(summary.reports[0].1.message(), Some("half of it is gone"));
/// ```
#[derive(Clone)]
pub struct Health(Arc<Inner>);

struct Inner {
    epoch: Epoch,
    settings: Settings,
    /// In the order in which they came. One is never taken out, so its number stays.
    components: RwLock<Vec<Arc<Watched>>>,
    reports: RwLock<Vec<(String, Ask)>>,
    roster: Option<Arc<Roster>>,
    changes: Changes,
    draining: AtomicBool,
}

type Ask = Arc<dyn Fn() -> Report + Send + Sync>;

/// Tasks that probe end with the last handle.
impl Drop for Inner {
    fn drop(&mut self) {
        let components = self.components.get_mut().unwrap_or_else(PoisonError::into_inner);
        components.iter().filter_map(|watched| lock(&watched.ask).1.take()).for_each(|task| task.abort());
        // Whoever watches finds nothing any more, also where something of a component lives on.
        self.changes.tell();
    }
}

/// The most components and reports that one handle takes.
const MOST: usize = 10_000;

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// No components yet, and the default [`Settings`] for those to come.
    pub fn new() -> Self {
        Self::with(Settings::new())
    }

    /// No components yet, and these settings for those to come.
    ///
    /// # Panics
    ///
    /// If the settings could never work: see [`InvalidSettings`].
    pub fn with(settings: Settings) -> Self {
        match Self::try_with(settings) {
            Ok(health) => health,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// [`with`](Self::with), of settings that come from a file.
    ///
    /// # Errors
    ///
    /// If they could never work.
    pub fn try_with(settings: Settings) -> Result<Self, InvalidSettings> {
        settings.check()?;
        let roster = settings.ejection.as_ref().map(|ejection| Arc::new(Roster::new(ejection)));
        Ok(Self(Arc::new(Inner {
            epoch: Epoch::begin(),
            settings,
            components: RwLock::default(),
            reports: RwLock::default(),
            roster,
            changes: Changes::new(),
            draining: AtomicBool::new(false),
        })))
    }

    /// The component of this name, which is new if there was none.
    ///
    /// # Panics
    ///
    /// If it would be one of more than 10,000.
    pub fn component(&self, name: &str) -> Component {
        let Settings { passive, active, .. } = &self.0.settings;
        self.find_or_make(name, passive, active)
    }

    /// The component of this name, with settings of its own if it is new.
    ///
    /// # Panics
    ///
    /// If those could never work, or it would be one of more than 10,000.
    pub fn component_with(&self, name: &str, passive: &Passive, active: &Active) -> Component {
        let settings = Settings::new().passive(passive.clone()).active(active.clone());
        if let Err(invalid) = settings.check() {
            panic!("{invalid}");
        }
        self.find_or_make(name, passive, active)
    }

    fn find_or_make(&self, name: &str, passive: &Passive, active: &Active) -> Component {
        if let Some(component) = self.get(name) {
            return component;
        }
        let mut components = write(&self.0.components);
        let found = components.iter().find(|watched| *watched.name == *name).cloned();
        let watched = found.unwrap_or_else(|| {
            assert!(components.len() < MOST, "more than {MOST} components");
            let pool = self.0.roster.as_ref().map(Place::join);
            let watched =
                Arc::new(Watched::new(name, self.0.epoch, self.0.changes.clone(), passive, active, pool));
            components.push(watched.clone());
            watched
        });
        drop(components);
        self.0.changes.tell();
        Component { health: self.clone(), watched }
    }

    /// The component of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<Component> {
        let components = read(&self.0.components);
        let watched = components.iter().find(|watched| *watched.name == *name)?.clone();
        Some(Component { health: self.clone(), watched })
    }

    /// All components, in the order in which they came.
    pub fn components(&self) -> Vec<Component> {
        self.all().into_iter().map(|watched| Component { health: self.clone(), watched }).collect()
    }

    fn all(&self) -> Vec<Arc<Watched>> {
        read(&self.0.components).clone()
    }

    /// A layer that watches what passes it under this name: [`Component::layer`].
    pub fn layer(&self, name: &str) -> HealthLayer<Errors, Causes, UntilResponse> {
        self.component(name).layer()
    }

    /// Probes a component for as long as this handle lives: at once, and then as often as this. `probe` says what that is;
    /// an error, a panic, and no answer within [`Active::timeout`] are failures. Probes do not overlap: one that is late
    /// is followed by the next one at once.
    ///
    /// **Spawns a task**, which ends with the last clone of this handle, so `probe` must hold none; or with another call
    /// for the same name. [`prober`](Self::prober) spawns nothing.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, and with an `every` of zero.
    pub fn probe<F, Fut, E>(&self, name: &str, every: Duration, probe: F) -> Component
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        let (component, prober) = self.prober(name, every, probe);
        let task = tokio::spawn(prober).abort_handle();
        // Another one of the same name may have come meanwhile.
        if let Some(other) = lock(&component.watched.ask).1.replace(task) {
            other.abort();
        }
        component
    }

    /// [`probe`](Self::probe) without the task: the future probes for as long as somebody polls it, and never ends. It
    /// keeps the component, but not this handle, alive.
    ///
    /// # Panics
    ///
    /// With an `every` of zero.
    pub fn prober<F, Fut, E>(&self, name: &str, every: Duration, probe: F) -> (Component, Prober)
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: Into<BoxError>,
    {
        assert!(!every.is_zero(), "a component that is probed every 0 s does nothing else");
        let component = self.component(name);
        component.set_probe(probe);
        let watched = component.watched.clone();
        (component, Prober::new(watched, every))
    }

    /// Makes the probe of this component now: [`Component::probe_now`].
    pub async fn probe_now(&self, name: &str) -> Option<Probed> {
        self.get(name)?.probe_now().await
    }

    /// Asks `report` whenever somebody looks, under this name, in place of what had it before: so whatever has a state
    /// shows up here. A panic is unhealthy.
    ///
    /// # Panics
    ///
    /// If it would be one of more than 10,000.
    pub fn report<F, R>(&self, name: impl Into<String>, report: F)
    where
        F: Fn() -> R + Send + Sync + 'static,
        R: Into<Report>,
    {
        let (name, ask): (String, Ask) = (name.into(), Arc::new(move || report().into()));
        let mut reports = write(&self.0.reports);
        let old = match reports.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => Some(std::mem::replace(known, ask)),
            None => {
                assert!(reports.len() < MOST, "more than {MOST} reports");
                reports.push((name, ask));
                None
            }
        };
        // A stranger's destructor runs where nothing is locked.
        drop(reports);
        drop(old);
        self.0.changes.tell();
    }

    /// What all reports say. One that asks for them itself gets none.
    fn reports(&self) -> Vec<(String, Report)> {
        thread_local!(static ASKING: Cell<bool> = const { Cell::new(false) });
        /// Whatever happens, this thread asks no more afterwards.
        struct Asking;
        impl Drop for Asking {
            fn drop(&mut self) {
                ASKING.set(false);
            }
        }
        if ASKING.replace(true) {
            return Vec::new();
        }
        let _asking = Asking;
        let reports = read(&self.0.reports).clone();
        let ask = |(name, ask): (String, Ask)| {
            let report = catch_unwind(AssertUnwindSafe(|| ask()))
                .unwrap_or_else(|panic| Report::new(State::Unhealthy).says(panicked(&*panic)));
            (name, report)
        };
        reports.into_iter().map(ask).collect()
    }

    pub(crate) fn has_reports(&self) -> bool {
        !read(&self.0.reports).is_empty()
    }

    /// How the whole fares now: unhealthy if a [required](Component::required) component is or all components and reports
    /// are, else degraded if any of them is not healthy.
    pub fn state(&self) -> State {
        let now = self.0.epoch.now();
        let components = self.all();
        let components = components.iter().map(|watched| (watched.look(now), watched.is_required()));
        whole(components.chain(self.reports().into_iter().map(|(_, report)| (report.state(), false))))
    }

    /// Whether it should be sent work: it is not going away, and not unhealthy.
    pub fn is_ready(&self) -> bool {
        !self.is_draining() && self.state() != State::Unhealthy
    }

    /// Everything there is to know now.
    pub fn summary(&self) -> Summary {
        let now = self.0.epoch.now();
        let components: Vec<_> = self.all().iter().map(|watched| watched.stats(now)).collect();
        let reports = self.reports();
        let parts = components.iter().map(|stats| (stats.state, stats.required));
        let state = whole(parts.chain(reports.iter().map(|(_, report)| (report.state(), false))));
        Summary { state, draining: self.is_draining(), components, reports }
    }

    /// The names of the components that can be asked, and whether so few are up that these are all that are not going away.
    pub fn eligible(&self) -> Eligible {
        let now = self.0.epoch.now();
        let (components, panic) = (self.all(), self.panics(now));
        let can = |watched: &&Arc<Watched>| {
            if panic { !watched.is_draining() } else { watched.is_up(now) }
        };
        let names = components.iter().filter(can).map(|watched| watched.name.to_string()).collect();
        Eligible { names, panic }
    }

    /// How often a component was not ejected because too many were out.
    pub fn ejections_refused(&self) -> u64 {
        self.0.roster.as_ref().map_or(0, |roster| roster.overflow())
    }

    pub(crate) fn panics(&self, now: u64) -> bool {
        let Some(roster) = &self.0.roster else { return false };
        let up = read(&self.0.components).iter().filter(|watched| watched.is_up(now)).count();
        roster.panics(up)
    }

    /// From now on it is going away: not ready, though what is under way goes on.
    pub fn drain(&self) {
        self.0.draining.store(true, Relaxed);
        self.0.changes.tell();
    }

    /// Whether it is going away.
    pub fn is_draining(&self) -> bool {
        self.0.draining.load(Relaxed)
    }

    /// [`Component::reset`] of every component.
    pub fn reset(&self) {
        self.all().iter().for_each(|watched| watched.reset());
    }

    /// Tells of every change of the component of this name from now on, or of the whole without one.
    pub fn watch(&self, name: Option<&str>) -> Watch {
        Watch::new(self, name)
    }

    pub(crate) fn changes(&self) -> tokio::sync::watch::Receiver<()> {
        self.0.changes.subscribe()
    }

    pub(crate) fn downgrade(&self) -> WeakHealth {
        WeakHealth(Arc::downgrade(&self.0))
    }

    /// When time changes the state of anything next.
    pub(crate) fn next_change(&self) -> Option<tokio::time::Instant> {
        let now = self.0.epoch.now();
        let next = self.all().iter().filter_map(|watched| watched.next_change(now)).min();
        next.map(|at| self.0.epoch.instant(at))
    }
}

/// A handle that keeps nothing alive.
#[derive(Clone)]
pub(crate) struct WeakHealth(std::sync::Weak<Inner>);

impl WeakHealth {
    pub(crate) fn upgrade(&self) -> Option<Health> {
        self.0.upgrade().map(Health)
    }
}

fn whole(parts: impl Iterator<Item = (State, bool)>) -> State {
    let (mut worst, mut best, mut required) = (State::Healthy, None, State::Healthy);
    for (state, is_required) in parts {
        worst = worst.max(state);
        best = Some(best.map_or(state, |best: State| best.min(state)));
        if is_required {
            required = required.max(state);
        }
    }
    required.max(worst.min(State::Degraded)).max(best.unwrap_or_default())
}

/// Everything there is to know of a [`Health`].
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// How the whole fares.
    pub state: State,
    /// Whether it is going away.
    pub draining: bool,
    /// Its components, in the order in which they came.
    pub components: Vec<Stats>,
    /// What was reported, by name, in the order in which the reports came.
    pub reports: Vec<(String, Report)>,
}

/// Which components can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Eligible {
    /// Their names, in the order in which they came.
    pub names: Vec<String>,
    /// Whether so few are up that all can be asked that are not going away.
    pub panic: bool,
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("components", &self.all()).finish_non_exhaustive()
    }
}
