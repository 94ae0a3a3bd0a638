use std::{fmt, time::Duration};

/// What the components of a [`Health`](crate::Health) are judged by.
///
/// ```
/// use std::time::Duration;
/// use bartizan_health::{Active, Ejection, Passive, Settings};
///
/// let settings = Settings::new()
///     .passive(Passive::new().window(Duration::from_secs(30)).unhealthy(60).unhealthy_exit(40))
///     .active(Active::new().unhealthy_after(2).timeout(Duration::from_secs(2)))
///     .ejection(Ejection::after(5).at_most(30));
/// assert!(settings.check().is_ok());
/// assert!(Settings::new().passive(Passive::new().degraded(0)).check().is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub(crate) passive: Passive,
    pub(crate) active: Active,
    pub(crate) ejection: Option<Ejection>,
}

impl Settings {
    /// The defaults of [`Passive`] and [`Active`], and no ejection.
    pub fn new() -> Self {
        Self::default()
    }

    /// How traffic is judged.
    #[must_use]
    pub fn passive(self, passive: Passive) -> Self {
        Self { passive, ..self }
    }

    /// How probes are judged.
    #[must_use]
    pub fn active(self, active: Active) -> Self {
        Self { active, ..self }
    }

    /// When components are ejected. By default none is.
    #[must_use]
    pub fn ejection(self, ejection: Ejection) -> Self {
        Self { ejection: Some(ejection), ..self }
    }

    /// Whether they can work.
    ///
    /// # Errors
    ///
    /// What cannot.
    pub fn check(&self) -> Result<(), InvalidSettings> {
        self.passive.check()?;
        self.active.check()?;
        self.ejection.as_ref().map_or(Ok(()), Ejection::check)
    }
}

/// How traffic is judged: the share of failures among the outcomes of a window.
///
/// After each outcome, once there are enough of them, the share decides. A worse state is left only when the share is
/// below that state's exit. An empty window is healthy, and one with too few outcomes leaves the verdict as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passive {
    pub(crate) window: Duration,
    pub(crate) min_requests: u32,
    pub(crate) degraded: Option<Threshold>,
    pub(crate) unhealthy: Option<Threshold>,
}

/// Entered at so many percent of failures, left below so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Threshold {
    pub(crate) at: u8,
    pub(crate) below: u8,
}

impl Threshold {
    const fn new(percent: u8) -> Self {
        Self { at: percent, below: percent }
    }
}

impl Default for Passive {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            min_requests: 10,
            degraded: Some(Threshold { at: 10, below: 5 }),
            unhealthy: Some(Threshold { at: 50, below: 30 }),
        }
    }
}

impl Passive {
    /// A window of a minute in which at least 10 outcomes count: degraded from 10 % of failures until there are fewer than
    /// 5, unhealthy from 50 until there are fewer than 30.
    pub fn new() -> Self {
        Self::default()
    }

    /// Traffic decides nothing. It is counted all the same.
    pub fn none() -> Self {
        Self { degraded: None, unhealthy: None, ..Self::default() }
    }

    /// How long an outcome counts: at least 1 ms. It leaves between fifteen sixteenths of this and the whole of it.
    /// Percentiles cover one to two of it.
    #[must_use]
    pub fn window(self, window: Duration) -> Self {
        Self { window, ..self }
    }

    /// With fewer outcomes in the window the share does not count: from 1 to 100,000.
    #[must_use]
    pub fn min_requests(self, min_requests: u32) -> Self {
        Self { min_requests, ..self }
    }

    /// Degraded from so many percent of failures, and until there are fewer: from 1 to 100.
    #[must_use]
    pub fn degraded(self, percent: u8) -> Self {
        Self { degraded: Some(Threshold::new(percent)), ..self }
    }

    /// Degraded until there are fewer percent than this. To be set after [`degraded`](Self::degraded), and not above it.
    #[must_use]
    pub fn degraded_exit(mut self, percent: u8) -> Self {
        if let Some(degraded) = &mut self.degraded {
            degraded.below = percent;
        }
        self
    }

    /// Unhealthy from so many percent of failures, and until there are fewer: from 1 to 100.
    #[must_use]
    pub fn unhealthy(self, percent: u8) -> Self {
        Self { unhealthy: Some(Threshold::new(percent)), ..self }
    }

    /// Unhealthy until there are fewer percent than this. To be set after [`unhealthy`](Self::unhealthy), and not above
    /// it.
    #[must_use]
    pub fn unhealthy_exit(mut self, percent: u8) -> Self {
        if let Some(unhealthy) = &mut self.unhealthy {
            unhealthy.below = percent;
        }
        self
    }

    fn check(&self) -> Result<(), InvalidSettings> {
        let wrong = |threshold: &Threshold| {
            !(1..=100).contains(&threshold.at) || !(1..=threshold.at).contains(&threshold.below)
        };
        if self.window < Duration::from_millis(1) {
            return Err(InvalidSettings::Window);
        }
        if !(1..=100_000).contains(&self.min_requests) {
            return Err(InvalidSettings::MinRequests);
        }
        match self.degraded.iter().chain(&self.unhealthy).any(wrong) {
            true => Err(InvalidSettings::Percent),
            false => Ok(()),
        }
    }
}

/// How probes are judged.
///
/// The verdict is unknown before the first probe, and does not hold a component back then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Active {
    pub(crate) unhealthy_after: u32,
    pub(crate) healthy_after: u32,
    pub(crate) timeout: Duration,
}

impl Default for Active {
    fn default() -> Self {
        Self { unhealthy_after: 3, healthy_after: 2, timeout: Duration::from_secs(1) }
    }
}

impl Active {
    /// Unhealthy after 3 failed probes in a row, healthy after 2 good ones, each within a second.
    pub fn new() -> Self {
        Self::default()
    }

    /// So many failed probes in a row make a component unhealthy: at least 1.
    #[must_use]
    pub fn unhealthy_after(self, probes: u32) -> Self {
        Self { unhealthy_after: probes, ..self }
    }

    /// So many good probes in a row bring it back: at least 1. The very first probe, if it is good, is enough.
    #[must_use]
    pub fn healthy_after(self, probes: u32) -> Self {
        Self { healthy_after: probes, ..self }
    }

    /// A probe without an answer after this has failed. More than zero.
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    fn check(&self) -> Result<(), InvalidSettings> {
        if self.unhealthy_after == 0 || self.healthy_after == 0 {
            return Err(InvalidSettings::Probes);
        }
        if self.timeout.is_zero() {
            return Err(InvalidSettings::Timeout);
        }
        Ok(())
    }
}

/// When a component that fails again and again is left out, and for how long.
///
/// All components of a [`Health`](crate::Health) belong together here, as the members of a pool do: a cap on how many
/// are out, and a panic when too few are in. Who has several pools makes a `Health` for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ejection {
    pub(crate) consecutive: u32,
    pub(crate) base: Duration,
    pub(crate) max: Duration,
    pub(crate) at_most: u8,
    pub(crate) panic_below: u8,
    pub(crate) forget_after: Option<Duration>,
}

impl Ejection {
    /// After so many failures in a row, at least 1. For 30 seconds, then 60, 90 and so on up to five minutes; at most 10 %
    /// of the components at once; with fewer than 50 % up nobody is left out.
    pub const fn after(consecutive: u32) -> Self {
        Self {
            consecutive,
            base: Duration::from_secs(30),
            max: Duration::from_secs(300),
            at_most: 10,
            panic_below: 50,
            forget_after: Some(Duration::from_secs(300)),
        }
    }

    /// The first time for `base`, and each time for as much longer, up to `max`: until the next whole millisecond.
    #[must_use]
    pub const fn times(self, base: Duration, max: Duration) -> Self {
        Self { base, max, ..self }
    }

    /// At most so many percent of the components are out at once, from 0, which ejects nobody, to 100. It is rounded down: 10 %
    /// of nine components is none.
    #[must_use]
    pub const fn at_most(self, percent: u8) -> Self {
        Self { at_most: percent, ..self }
    }

    /// With fewer than so many percent of the components up, all may be asked: from 0, which means never, to 100.
    #[must_use]
    pub const fn panic_below(self, percent: u8) -> Self {
        Self { panic_below: percent, ..self }
    }

    /// One that has been in for this long begins again with `base`. Default: five minutes; never with `None`.
    #[must_use]
    pub const fn forget_after(self, time: Option<Duration>) -> Self {
        Self { forget_after: time, ..self }
    }

    fn check(&self) -> Result<(), InvalidSettings> {
        if self.consecutive == 0 {
            return Err(InvalidSettings::Consecutive);
        }
        if self.base.is_zero() || self.max < self.base {
            return Err(InvalidSettings::EjectionTime);
        }
        match self.at_most > 100 || self.panic_below > 100 {
            true => Err(InvalidSettings::EjectionPercent),
            false => Ok(()),
        }
    }
}

/// Settings that could never work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// A window below a millisecond.
    Window,
    /// Fewer outcomes than 1 or more than 100,000.
    MinRequests,
    /// A share that is not from 1 to 100 percent, or an exit that is not from 1 to its share.
    Percent,
    /// No probes are enough.
    Probes,
    /// No time for a probe.
    Timeout,
    /// No failures are too many.
    Consecutive,
    /// Ejection for no time, or for longer than the longest.
    EjectionTime,
    /// More than all components.
    EjectionPercent,
}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Window => "a window of outcomes must last at least 1 ms",
            Self::MinRequests => "from 1 to 100,000 outcomes can be needed for a share to count",
            Self::Percent => {
                "a share of failures must be from 1 to 100 percent, and its exit from 1 percent to the share"
            }
            Self::Probes => {
                "from 1 probe on can make a component unhealthy, or healthy; 0 would decide nothing"
            }
            Self::Timeout => "a probe that may take no time always fails",
            Self::Consecutive => "a component that is ejected after 0 failures is never in",
            Self::EjectionTime => "a component must be ejected for some time, and no longer than the longest",
            Self::EjectionPercent => "a share of components must be from 0 to 100 percent",
        })
    }
}

impl std::error::Error for InvalidSettings {}
