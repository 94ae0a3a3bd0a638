use std::{fmt, time::Duration};

use crate::state::MOST;

/// When a breaker opens, for how long, and what closes it again.
///
/// It begins with what trips, [`consecutive`](Self::consecutive) or [`window`](Self::window); more of either can be added.
/// Nothing is checked before [`CircuitBreaker::new`](crate::CircuitBreaker::new), which panics at what can never work, or
/// [`CircuitBreaker::try_new`](crate::CircuitBreaker::try_new), which says so.
///
/// ```
/// use std::time::Duration;
/// use bartizan_circuit_breaker::{CircuitBreaker, Settings, Window};
///
/// let second = Duration::from_secs(1);
/// let settings = Settings::consecutive(5)
///     .or_window(Window::of_time(60 * second).min_calls(20).failures(50).slow(2 * second, 80))
///     .open_for(10 * second)
///     .growing(2.0, 300 * second)
///     .jitter(0.1)
///     .probes(3)
///     .successes(2);
/// let breaker = CircuitBreaker::new(settings);
///
/// let error = CircuitBreaker::try_new(Settings::consecutive(0)).unwrap_err();
/// assert_eq!(error.to_string(), "a breaker that trips after 0 failures is never closed");
/// ```
#[derive(Clone, Debug)]
pub struct Settings {
    pub(crate) consecutive: Option<u32>,
    pub(crate) windows: Vec<Window>,
    pub(crate) open_for: Duration,
    pub(crate) growth: Option<(f64, Duration)>,
    pub(crate) jitter: f64,
    pub(crate) longest_retry_after: Duration,
    pub(crate) probes: u32,
    pub(crate) successes: u32,
    pub(crate) probe_timeout: Option<Duration>,
    pub(crate) cancelled_after: Option<Duration>,
}

impl Settings {
    /// Trips when `failures` calls in a row have failed.
    pub const fn consecutive(failures: u32) -> Self {
        Self::with(Some(failures), Vec::new())
    }

    /// Trips when a window says so.
    pub fn window(window: Window) -> Self {
        Self::with(None, vec![window])
    }

    const fn with(consecutive: Option<u32>, windows: Vec<Window>) -> Self {
        Self {
            consecutive,
            windows,
            open_for: Duration::from_secs(30),
            growth: None,
            jitter: 0.0,
            longest_retry_after: Duration::from_secs(3600),
            probes: 1,
            successes: 1,
            probe_timeout: Some(Duration::from_secs(60)),
            cancelled_after: None,
        }
    }

    /// Trips also when `failures` calls in a row have failed.
    #[must_use]
    pub const fn or_consecutive(mut self, failures: u32) -> Self {
        self.consecutive = Some(failures);
        self
    }

    /// Trips also when this window says so.
    #[must_use]
    pub fn or_window(mut self, window: Window) -> Self {
        self.windows.push(window);
        self
    }

    /// How long it stays open. 30 seconds by default.
    #[must_use]
    pub const fn open_for(mut self, period: Duration) -> Self {
        self.open_for = period;
        self
    }

    /// Whenever a probe fails the next open period is `factor` times as long, up to `longest`. Closing starts again.
    ///
    /// By default all periods are the same.
    #[must_use]
    pub const fn growing(mut self, factor: f64, longest: Duration) -> Self {
        self.growth = Some((factor, longest));
        self
    }

    /// Lengthens each open period by a random part of it, `share` at most (1.0 is the whole of it again), so that many
    /// clients do not probe at the same time. 0 by default. It comes on top of the longest period.
    #[must_use]
    pub const fn jitter(mut self, share: f64) -> Self {
        self.jitter = share;
        self
    }

    /// How much of an upstream's `Retry-After` is believed. An hour by default; zero ignores it.
    ///
    /// When the breaker opens it stays open as long as the failures before said, if that is longer than its own period.
    #[must_use]
    pub const fn longest_retry_after(mut self, longest: Duration) -> Self {
        self.longest_retry_after = longest;
        self
    }

    /// How many probes may be under way at once when half-open. 1 by default, 4,095 at most.
    ///
    /// There are never more of them than successes are still needed.
    #[must_use]
    pub const fn probes(mut self, at_once: u32) -> Self {
        self.probes = at_once;
        self
    }

    /// How many probes must succeed to close it. 1 by default, 4,095 at most.
    #[must_use]
    pub const fn successes(mut self, needed: u32) -> Self {
        self.successes = needed;
        self
    }

    /// How long there may be probes under way. After that it is open again. It counts from the first of those that are out
    /// at once, so however seldom calls come, each has its time. 60 seconds by default.
    ///
    /// `None` waits for ever, for a probe that never ends too.
    #[must_use]
    pub fn probe_timeout(mut self, timeout: impl Into<Option<Duration>>) -> Self {
        self.probe_timeout = timeout.into();
        self
    }

    /// A call that is dropped unanswered after this time or later counts as a failure. By default a dropped call decides
    /// nothing, and a timeout outside of the breaker stays unseen.
    ///
    /// A response whose body is dropped was answered, and never counts as dropped.
    #[must_use]
    pub const fn count_cancelled_after(mut self, time: Duration) -> Self {
        self.cancelled_after = Some(time);
        self
    }

    /// Whether a call's start must be known.
    pub(crate) fn times_calls(&self) -> bool {
        self.cancelled_after.is_some() || self.slow().is_some()
    }

    /// What is slow for the strictest of the windows.
    pub(crate) fn slow(&self) -> Option<Duration> {
        self.windows.iter().filter_map(|window| Some(window.slow?.over)).min()
    }

    pub(crate) fn check(&self) -> Result<(), InvalidSettings> {
        let check = |good, or| if good { Ok(()) } else { Err(or) };
        check(self.consecutive != Some(0), InvalidSettings::Consecutive)?;
        check(!self.open_for.is_zero(), InvalidSettings::OpenFor)?;
        check(
            self.growth
                .is_none_or(|(factor, most)| factor >= 1.0 && factor.is_finite() && most >= self.open_for),
            InvalidSettings::Growth,
        )?;
        check((0.0..=1.0).contains(&self.jitter), InvalidSettings::Jitter)?;
        check((1..=MOST).contains(&self.probes), InvalidSettings::Probes)?;
        check((1..=MOST).contains(&self.successes), InvalidSettings::Successes)?;
        check(self.probe_timeout != Some(Duration::ZERO), InvalidSettings::ProbeTimeout)?;
        self.windows.iter().try_for_each(Window::check)
    }
}

/// The last outcomes, and what share of them is too much.
///
/// It trips when it holds at least [`min_calls`](Self::min_calls) outcomes and a share is reached. A window needs a share:
/// of [`failures`](Self::failures), of [`slow`](Self::slow) calls, or both.
#[derive(Clone, Debug)]
pub struct Window {
    pub(crate) span: Span,
    min_calls: Option<u32>,
    pub(crate) failures: Option<u8>,
    pub(crate) slow: Option<Slow>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Span {
    Calls(u32),
    Time(Duration),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slow {
    pub(crate) over: Duration,
    pub(crate) percent: u8,
}

/// The longest count window.
const MOST_CALLS: u32 = 1_000_000;

impl Window {
    /// The last `calls` outcomes, a million at most. It takes a byte for each.
    pub const fn of_calls(calls: u32) -> Self {
        Self { span: Span::Calls(calls), min_calls: None, failures: None, slow: None }
    }

    /// The outcomes of the last `length`, at least a millisecond.
    ///
    /// Time is counted in sixteenths of it: an outcome leaves at the latest when it is `length` old, and at the soonest
    /// a sixteenth before. The cost of a call and the size do not depend on how many calls there are.
    pub const fn of_time(length: Duration) -> Self {
        Self { span: Span::Time(length), min_calls: None, failures: None, slow: None }
    }

    /// Fewer outcomes than this decide nothing. By default all that a window of calls holds, and 10 in a window of time.
    #[must_use]
    pub const fn min_calls(mut self, calls: u32) -> Self {
        self.min_calls = Some(calls);
        self
    }

    /// Trips when at least `percent` in a hundred of the outcomes are failures.
    #[must_use]
    pub const fn failures(mut self, percent: u8) -> Self {
        self.failures = Some(percent);
        self
    }

    /// Trips when at least `percent` in a hundred of the calls took longer than `over`, failed or not. A probe that takes
    /// longer fails.
    #[must_use]
    pub const fn slow(mut self, over: Duration, percent: u8) -> Self {
        self.slow = Some(Slow { over, percent });
        self
    }

    pub(crate) fn least(&self) -> u32 {
        self.min_calls.unwrap_or(match self.span {
            Span::Calls(calls) => calls,
            Span::Time(_) => 10,
        })
    }

    fn check(&self) -> Result<(), InvalidSettings> {
        let percents = [self.failures, self.slow.map(|slow| slow.percent)];
        if percents == [None, None] || percents.iter().flatten().any(|percent| !(1..=100).contains(percent)) {
            return Err(InvalidSettings::Share);
        }
        let holds = match self.span {
            Span::Calls(calls) if (1..=MOST_CALLS).contains(&calls) => calls,
            Span::Time(length) if length >= Duration::from_millis(1) => u32::MAX,
            Span::Calls(_) | Span::Time(_) => return Err(InvalidSettings::Window),
        };
        if (1..=holds).contains(&self.least()) { Ok(()) } else { Err(InvalidSettings::MinCalls) }
    }
}

/// Why settings cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// 0 failures in a row.
    Consecutive,
    /// A window of no calls or no time, or of more than a million calls.
    Window,
    /// No outcomes are enough, or more than the window holds.
    MinCalls,
    /// A window without a share, or with one that is not from 1 to 100.
    Share,
    /// An open period of zero.
    OpenFor,
    /// Periods that shrink, or whose longest is shorter than the first.
    Growth,
    /// A share that is not from 0 to 1.
    Jitter,
    /// No probes, or more than 4,095.
    Probes,
    /// No successes needed, or more than 4,095.
    Successes,
    /// No time for probes.
    ProbeTimeout,
    /// No keys.
    Keys,
}

impl InvalidSettings {
    const fn what(self) -> &'static str {
        match self {
            Self::Consecutive => "a breaker that trips after 0 failures is never closed",
            Self::Window => "a window must hold from 1 to 1,000,000 calls, or at least 1 ms",
            Self::MinCalls => "min_calls must be at least 1 and at most what the window holds",
            Self::Share => "a window needs a share of failures or slow calls, from 1 to 100 percent",
            Self::OpenFor => "a breaker that opens for no time is never open",
            Self::Growth => {
                "the open period must grow by a factor of at least 1, to at least its first length"
            }
            Self::Jitter => "jitter must be a share from 0 to 1",
            Self::Probes => {
                "from 1 to 4,095 probes can be under way at once; with 0 it would never close again"
            }
            Self::Successes => "from 1 to 4,095 successes can be needed to close a breaker",
            Self::ProbeTimeout => "a probe that may take no time can never succeed",
            Self::Keys => "circuit breakers for 0 keys watch nothing",
        }
    }
}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl std::error::Error for InvalidSettings {}

#[cfg(all(test, not(loom)))]
#[path = "settings/tests.rs"]
mod tests;
