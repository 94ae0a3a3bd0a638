use std::time::Duration;

use crate::{LastError, State, histogram::Counts};

/// What there is to know of a component now.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Stats {
    /// Its name.
    pub name: String,
    /// The worse of what traffic and probes say.
    pub state: State,
    /// For how long it has been in that state.
    pub in_state: Duration,
    /// What traffic says.
    pub passive: State,
    /// What probes say, if any has been made.
    pub active: Option<State>,
    /// Whether it is going away.
    pub draining: bool,
    /// Whether the whole is unhealthy when this is.
    pub required: bool,
    /// For how long it is still ejected, if it is.
    pub ejected_for: Option<Duration>,
    /// How often it was ejected.
    pub ejections: u64,
    /// How long an outcome counts.
    pub window: Duration,
    /// Outcomes in the window.
    pub requests: u64,
    /// Those of them that are failures.
    pub failures: u64,
    /// Failures since the last success.
    pub consecutive_failures: u32,
    /// Failed probes since the last good one.
    pub failed_probes: u32,
    /// Whether a probe is under way.
    pub probing: bool,
    /// What was counted since the beginning, resets or not.
    pub totals: Totals,
    /// How long calls took, to the end of their extent, in the last one to two windows.
    pub latency: Latency,
    /// How long it took until the first bytes of a body came, in the last one to two windows. Only calls that last until
    /// their body ends have one.
    pub first_frame: Latency,
    /// How often each class of errors has come, since the beginning.
    pub errors: Vec<(&'static str, u64)>,
    /// What went wrong last.
    pub last_error: Option<LastError>,
}

impl Stats {
    /// The share of failures among the outcomes in the window, from 0 to 1: 0 if there is none.
    pub fn error_rate(&self) -> f64 {
        if self.requests == 0 { 0.0 } else { self.failures as f64 / self.requests as f64 }
    }
}

/// What was counted since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Totals {
    /// Calls that did well.
    pub successes: u64,
    /// Calls that failed.
    pub failures: u64,
    /// Calls that said nothing about the component.
    pub ignored: u64,
    /// Calls that were dropped before their end.
    pub cancelled: u64,
    /// Calls that were refused because it is not up.
    pub refused: u64,
}

/// How long calls took. `None` if there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Latency {
    /// How many there were.
    pub count: u64,
    /// All together, divided by how many.
    pub mean: Option<Duration>,
    /// Half of them took no longer.
    pub p50: Option<Duration>,
    /// Nine of ten took no longer.
    pub p90: Option<Duration>,
    /// 99 of a hundred took no longer.
    pub p99: Option<Duration>,
}

impl Latency {
    pub(crate) fn of(counts: &Counts) -> Self {
        let count = counts.count();
        Self {
            count,
            mean: counts
                .sum()
                .as_micros()
                .checked_div(count.into())
                .map(|mean| Duration::from_micros(u64::try_from(mean).unwrap_or(u64::MAX))),
            p50: counts.quantile(0.5),
            p90: counts.quantile(0.9),
            p99: counts.quantile(0.99),
        }
    }
}
