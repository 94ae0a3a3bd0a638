//! The generic cell rate algorithm, exact.
//!
//! A key's state is one number, the theoretical arrival time: when the key would be full again if nothing came any more.
//! It counts in parts of a nanosecond of which `q` make one, with `q = rate / gcd(rate, per)`, so that a permit is worth
//! a whole number `p = per / gcd` of them and nothing is ever rounded.

use std::sync::atomic::Ordering::{Relaxed, Release};

use crate::{
    policy::{Denied, Level, State},
    sync::AtomicU64,
};

/// A quota, in its own unit of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gcra {
    /// Units in a nanosecond.
    q: u64,
    /// Units that a permit is worth.
    p: u64,
    burst: u64,
    /// Units that a whole burst is worth.
    span: u128,
}

impl Gcra {
    /// `None` if a full key could not be counted at the end of time.
    pub(crate) const fn new(rate: u64, per: u64, burst: u64) -> Option<Self> {
        let common = gcd(rate, per);
        let (q, p) = (rate / common, per / common);
        let span = p as u128 * burst as u128;
        match span.checked_add(q as u128 * u64::MAX as u128) {
            Some(_) => Some(Self { q, p, burst, span }),
            None => None,
        }
    }

    /// Takes `n` permits at `now` from a key whose theoretical arrival time is `tat`: its new one.
    #[inline]
    pub(crate) fn take(&self, tat: u128, now: u64, n: u64) -> Result<u128, Denied> {
        if n > self.burst {
            return Err(Denied::Never);
        }
        let cost = self.worth(n);
        let clock = self.clock(now);
        let base = tat.max(clock);
        let (used, room) = (base - clock, self.span - cost);
        if used <= room {
            return Ok(base + cost);
        }
        Err(Denied::Wait(saturate((used - room).div_ceil(u128::from(self.q)))))
    }

    /// What is left at `now`.
    pub(crate) fn level(&self, tat: u128, now: u64) -> Level {
        let used = tat.saturating_sub(self.clock(now));
        let p = u128::from(self.p);
        let available = match self.span.checked_sub(used) {
            Some(left) => i64::try_from(left / p).unwrap_or(i64::MAX),
            None => i64::try_from((used - self.span).div_ceil(p)).map_or(i64::MIN, |owed| -owed),
        };
        let remaining = saturate(self.span.saturating_sub(used) / p);
        Level { available, remaining, reset_after: saturate(used.div_ceil(u128::from(self.q))) }
    }

    /// Charges `n` permits whether they are there or not: what is not is owed.
    pub(crate) fn charge(&self, tat: u128, now: u64, n: u64) -> u128 {
        if n == 0 {
            return tat;
        }
        tat.max(self.clock(now)).saturating_add(self.worth(n))
    }

    /// [`charge`](Self::charge) for a call that was admitted before: as of then, as long as the key remembers it.
    pub(crate) fn amend(&self, tat: u128, now: u64, n: u64) -> u128 {
        if tat == 0 { self.charge(tat, now, n) } else { tat.saturating_add(self.worth(n)) }
    }

    /// Gives `n` permits back. A key never gets fuller than full.
    pub(crate) fn refund(&self, tat: u128, now: u64, n: u64) -> u128 {
        let least = tat.min(self.clock(now));
        tat.saturating_sub(self.worth(n)).max(least)
    }

    /// Whether a key cannot be told from one that nobody has used.
    pub(crate) fn is_fresh(&self, tat: u128, now: u64) -> bool {
        tat <= self.clock(now)
    }

    /// The rate in its lowest terms: so many in so many nanoseconds.
    pub(crate) fn rate(&self) -> (u64, u64) {
        (self.q, self.p)
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.burst
    }

    /// The last instant of a [`Cell`] of this quota, if that is far enough.
    pub(crate) fn end_of_a_cell(&self) -> Option<u64> {
        const THIRTY_SIX_YEARS: u64 = 1 << 60;
        let span = u64::try_from(self.span).ok()?;
        let end = (u64::MAX - span) / self.q;
        (end >= THIRTY_SIX_YEARS).then_some(end)
    }

    #[inline]
    fn clock(&self, now: u64) -> u128 {
        u128::from(now) * u128::from(self.q)
    }

    #[inline]
    fn worth(&self, n: u64) -> u128 {
        u128::from(n) * u128::from(self.p)
    }
}

/// A key's theoretical arrival time, shared without a lock.
#[derive(Debug)]
pub(crate) struct Cell {
    tat: AtomicU64,
    q: u64,
    p: u64,
    burst: u64,
    span: u64,
    /// Until when 64 bits are enough. Time stands still then: too little is admitted, never too much.
    end: u64,
}

impl Cell {
    /// `None` if 64 bits are not enough for this quota.
    pub(crate) fn new(gcra: &Gcra) -> Option<Self> {
        let Gcra { q, p, burst, span } = *gcra;
        let (span, end) = (u64::try_from(span).ok()?, gcra.end_of_a_cell()?);
        Some(Self { tat: AtomicU64::new(0), q, p, burst, span, end })
    }

    /// [`Gcra::take`] in one step.
    #[inline]
    pub(crate) fn take(&self, now: u64, n: u64) -> Result<(), Denied> {
        let mut tat = self.tat.load(Relaxed);
        loop {
            match self.tat.compare_exchange_weak(tat, self.after(tat, now, n)?, Relaxed, Relaxed) {
                Ok(_) => return Ok(()),
                Err(seen) => tat = seen,
            }
        }
    }

    /// What [`take`](Self::take) would say.
    pub(crate) fn look(&self, now: u64, n: u64) -> Result<(), Denied> {
        self.after(self.tat.load(Relaxed), now, n).map(drop)
    }

    /// The theoretical arrival time after `n` permits are taken. No product or sum here is too great for 64 bits until
    /// `end`.
    #[inline]
    fn after(&self, tat: u64, now: u64, n: u64) -> Result<u64, Denied> {
        if n > self.burst {
            return Err(Denied::Never);
        }
        let cost = n * self.p;
        let (clock, room) = (now.min(self.end) * self.q, self.span - cost);
        let base = tat.max(clock);
        let used = base - clock;
        if used > room {
            return Err(Denied::Wait((used - room).div_ceil(self.q)));
        }
        Ok(base + cost)
    }

    /// Changes the state in one step: `change` sees it and the time, and may be asked again.
    #[inline]
    pub(crate) fn update<T>(
        &self,
        now: u64,
        mut change: impl FnMut(State, u64) -> Result<(State, T), Denied>,
    ) -> Result<T, Denied> {
        let now = now.min(self.end);
        // The number stands for itself: nothing else is published by it, so no order is needed.
        let mut tat = self.tat.load(Relaxed);
        loop {
            let ([low, high], told) = change([tat, 0], now)?;
            let next = if high == 0 { low } else { u64::MAX };
            match self.tat.compare_exchange_weak(tat, next, Relaxed, Relaxed) {
                Ok(_) => return Ok(told),
                Err(seen) => tat = seen,
            }
        }
    }

    pub(crate) fn state(&self) -> State {
        [self.tat.load(Relaxed), 0]
    }

    /// The state, which lives elsewhere from now on: here everything is denied. Whoever is sees what was stored before,
    /// after a fence.
    pub(crate) fn close(&self) -> State {
        [self.tat.swap(u64::MAX, Release), 0]
    }
}

fn saturate(n: u128) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b > 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(all(test, not(loom)))]
#[path = "gcra/tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "gcra/models.rs"]
mod models;
