use std::time::Duration;

use crate::{
    InvalidQuota,
    policy::{Denied, Level, State},
};

/// So many in a window of time, for contracts that count by the hour or the day.
///
/// ```
/// use std::time::Duration;
/// use bartizan_rate_limit::Window;
///
/// let hourly = Window::fixed(100, Duration::from_secs(3600)).on_the_clock();
/// let smooth = Window::sliding(100, Duration::from_secs(3600));
/// assert!(Window::try_fixed(0, Duration::from_secs(1)).is_err());
/// # let _ = (hourly, smooth);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    limit: u64,
    window: u64,
    sliding: bool,
    pub(crate) anchor: Anchor,
}

/// Where windows begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Anchor {
    /// With the limiter.
    Birth,
    /// So long after the limiter.
    After(u64),
    /// At multiples of the window since 1970, in UTC.
    Clock,
}

impl Window {
    /// `limit` in each window, counted from 0 at the start of each.
    ///
    /// Around the border between two windows twice as many can pass: that is what such contracts allow.
    ///
    /// # Panics
    ///
    /// If `limit` or `window` is zero or `window` is longer than 584 years.
    pub const fn fixed(limit: u64, window: Duration) -> Self {
        match Self::try_fixed(limit, window) {
            Ok(window) => window,
            Err(invalid) => panic!("{}", invalid.what()),
        }
    }

    /// [`fixed`](Self::fixed) for values that come from a file.
    ///
    /// # Errors
    ///
    /// If `limit` or `window` is zero or `window` is longer than 584 years.
    pub const fn try_fixed(limit: u64, window: Duration) -> Result<Self, InvalidQuota> {
        Self::try_new(limit, window, false)
    }

    /// `limit` in any window's length, estimated from two counters: this window's, and the last one's as far as it still
    /// reaches into the past `window`.
    ///
    /// # Panics
    ///
    /// If `limit` or `window` is zero, `limit` is above `u32::MAX`, or `window` is longer than 584 years.
    pub const fn sliding(limit: u64, window: Duration) -> Self {
        match Self::try_sliding(limit, window) {
            Ok(window) => window,
            Err(invalid) => panic!("{}", invalid.what()),
        }
    }

    /// [`sliding`](Self::sliding) for values that come from a file.
    ///
    /// # Errors
    ///
    /// If `limit` or `window` is zero, `limit` is above `u32::MAX`, or `window` is longer than 584 years.
    pub const fn try_sliding(limit: u64, window: Duration) -> Result<Self, InvalidQuota> {
        if limit > u32::MAX as u64 {
            return Err(InvalidQuota::Range);
        }
        Self::try_new(limit, window, true)
    }

    /// Windows begin with the wall clock's: hours on the hour, days at midnight UTC. Otherwise they begin when the
    /// limiter is made. The wall clock is read once, then.
    #[must_use]
    pub const fn on_the_clock(self) -> Self {
        Self { anchor: Anchor::Clock, ..self }
    }

    /// The first window begins `delay` after the limiter is made; those before it have the same length.
    #[must_use]
    pub const fn anchored(self, delay: Duration) -> Self {
        let window = self.window as u128;
        Self { anchor: Anchor::After((delay.as_nanos() % window) as u64), ..self }
    }

    const fn try_new(limit: u64, window: Duration, sliding: bool) -> Result<Self, InvalidQuota> {
        let nanos = window.as_nanos();
        if limit == 0 {
            return Err(InvalidQuota::Rate);
        }
        if nanos == 0 || nanos > u64::MAX as u128 {
            return Err(InvalidQuota::Period);
        }
        Ok(Self { limit, window: nanos as u64, sliding, anchor: Anchor::Birth })
    }

    /// The most that one call can cost.
    pub const fn capacity(&self) -> u64 {
        self.limit
    }

    /// The length of the window.
    pub const fn length(&self) -> Duration {
        Duration::from_nanos(self.window)
    }

    pub(crate) fn of(frame: &Frame, sliding: bool) -> Self {
        let Frame { limit, window, lead } = *frame;
        Self { limit, window, sliding, anchor: Anchor::After((window - lead) % window) }
    }

    /// Whether the window slides.
    pub const fn slides(&self) -> bool {
        self.sliding
    }

    /// `since_1970` is the wall clock when the limiter is made.
    pub(crate) fn policy(self, since_1970: impl FnOnce() -> Duration) -> crate::policy::Policy {
        let lead = match self.anchor {
            Anchor::Birth => 0,
            Anchor::After(delay) => (self.window - delay) % self.window,
            Anchor::Clock => {
                let past = since_1970().as_nanos() % u128::from(self.window);
                u64::try_from(past).expect("less than the window")
            }
        };
        let frame = Frame { limit: self.limit, window: self.window, lead };
        match self.sliding {
            true => crate::policy::Policy::Sliding(Sliding(frame)),
            false => crate::policy::Policy::Fixed(frame),
        }
    }
}

/// Windows, and what may pass in one. The state is the window's number and its count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    limit: u64,
    window: u64,
    /// How much of a window had passed when the limiter began.
    lead: u64,
}

impl Frame {
    #[cfg(feature = "http")]
    pub(crate) fn window(&self) -> u64 {
        self.window
    }

    pub(crate) fn limit(&self) -> u64 {
        self.limit
    }

    /// The number of the window, and how much of it has passed. One before that of the state counts as that.
    fn place(&self, now: u64, last: u64) -> (u64, u64) {
        let now = u128::from(now) + u128::from(self.lead);
        let window = u128::from(self.window);
        let (number, elapsed) = (narrow(now / window), narrow(now % window));
        if number < last { (last, 0) } else { (number, elapsed) }
    }

    fn roll(&self, [last, count]: State, now: u64) -> (State, u64) {
        let (number, elapsed) = self.place(now, last);
        ([number, if number == last { count } else { 0 }], elapsed)
    }

    pub(crate) fn take(&self, state: State, now: u64, n: u64) -> Result<State, Denied> {
        if n > self.limit {
            return Err(Denied::Never);
        }
        let ([number, count], elapsed) = self.roll(state, now);
        match count.checked_add(n) {
            Some(sum) if sum <= self.limit => Ok([number, sum]),
            _ => Err(Denied::Wait(self.window - elapsed)),
        }
    }

    pub(crate) fn level(&self, state: State, now: u64) -> Level {
        let ([_, count], elapsed) = self.roll(state, now);
        let reset_after = if count == 0 { 0 } else { self.window - elapsed };
        level(self.limit, count.into(), reset_after)
    }

    pub(crate) fn charge(&self, state: State, now: u64, n: u64) -> State {
        let ([number, count], _) = self.roll(state, now);
        [number, count.saturating_add(n)]
    }

    pub(crate) fn refund(&self, state: State, now: u64, n: u64) -> State {
        let ([number, count], _) = self.roll(state, now);
        [number, count.saturating_sub(n)]
    }
}

/// The window before counts as far as it still reaches in. The state is the number, and two counts of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sliding(pub(crate) Frame);

/// A window's number, its count, the last one's, and how much of the window has passed.
struct At {
    number: u64,
    last: u64,
    count: u64,
    elapsed: u64,
}

impl At {
    fn state(&self, count: u64) -> State {
        [self.number, self.last << 32 | count.min(u32::MAX.into())]
    }
}

impl Sliding {
    pub(crate) fn limit(&self) -> u64 {
        self.0.limit
    }

    #[cfg(feature = "http")]
    pub(crate) fn window(&self) -> u64 {
        self.0.window
    }

    fn roll(&self, [before, counts]: State, now: u64) -> At {
        let (number, elapsed) = self.0.place(now, before);
        let (last, count) = (counts >> 32, counts & u64::from(u32::MAX));
        let (last, count) = match number - before {
            0 => (last, count),
            1 => (count, 0),
            _ => (0, 0),
        };
        At { number, last, count, elapsed }
    }

    /// What the last window still weighs, times the window's length.
    fn weight(&self, at: &At) -> u128 {
        u128::from(at.last) * u128::from(self.0.window - at.elapsed)
    }

    /// How much of a window must have passed for `last` of the one before to weigh at most `room`.
    fn elapsed_for(&self, last: u64, room: u64) -> u64 {
        let window = u128::from(self.0.window);
        let may_remain = (u128::from(room) * window).checked_div(last.into()).unwrap_or(window);
        narrow(window.saturating_sub(may_remain))
    }

    pub(crate) fn take(&self, state: State, now: u64, n: u64) -> Result<State, Denied> {
        let Frame { limit, window, .. } = self.0;
        if n > limit {
            return Err(Denied::Never);
        }
        let at = self.roll(state, now);
        let Some(room) = limit.checked_sub(at.count + n) else {
            let next = self.elapsed_for(at.count, limit - n);
            return Err(Denied::Wait((window - at.elapsed).saturating_add(next)));
        };
        if self.weight(&at) <= u128::from(room) * u128::from(window) {
            return Ok(at.state(at.count + n));
        }
        Err(Denied::Wait(self.elapsed_for(at.last, room) - at.elapsed))
    }

    pub(crate) fn level(&self, state: State, now: u64) -> Level {
        let at = self.roll(state, now);
        let rest = self.0.window - at.elapsed;
        let reset_after = match (at.count, at.last) {
            (0, 0) => 0,
            (0, _) => rest,
            _ => rest.saturating_add(self.0.window),
        };
        let used = u128::from(at.count) + self.weight(&at).div_ceil(u128::from(self.0.window));
        level(self.0.limit, used, reset_after)
    }

    pub(crate) fn charge(&self, state: State, now: u64, n: u64) -> State {
        let at = self.roll(state, now);
        at.state(at.count.saturating_add(n))
    }

    pub(crate) fn refund(&self, state: State, now: u64, n: u64) -> State {
        let at = self.roll(state, now);
        at.state(at.count.saturating_sub(n))
    }
}

fn level(limit: u64, used: u128, reset_after: u64) -> Level {
    let available = i128::from(limit) - i128::try_from(used).unwrap_or(i128::MAX);
    Level {
        available: i64::try_from(available).unwrap_or(if available < 0 { i64::MIN } else { i64::MAX }),
        remaining: u64::try_from(available).unwrap_or(0),
        reset_after,
    }
}

fn narrow(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "window/tests.rs"]
mod tests;
