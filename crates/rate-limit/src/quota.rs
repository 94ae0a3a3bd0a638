use std::{fmt, time::Duration};

use crate::gcra::Gcra;

/// So many calls in so much time, spread evenly, with a burst.
///
/// `Quota::per_minute(60)` lets a permit pass every second. A key that was idle may take its whole burst at once: `n`
/// unless [`burst`](Self::burst) says otherwise. The arithmetic is exact: no permit is lost or won by rounding, whatever
/// the rate.
///
/// ```
/// use std::time::Duration;
/// use bartizan_rate_limit::Quota;
///
/// let quota = Quota::per_minute(90_000).burst(10_000);
/// assert_eq!(quota.rate(), (90_000, Duration::from_secs(60)));
/// assert!(Quota::try_new(0, Duration::from_secs(1)).is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Quota {
    rate: u64,
    per: u64,
    burst: u64,
}

impl Quota {
    /// `n` a second.
    ///
    /// # Panics
    ///
    /// If `n` is 0, as all constructors here. [`try_new`](Self::try_new) does not panic.
    pub const fn per_second(n: u64) -> Self {
        Self::per_nanos(n, SECOND)
    }

    /// `n` a minute.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    pub const fn per_minute(n: u64) -> Self {
        Self::per_nanos(n, 60 * SECOND)
    }

    /// `n` an hour.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    pub const fn per_hour(n: u64) -> Self {
        Self::per_nanos(n, 3_600 * SECOND)
    }

    /// `n` a day.
    ///
    /// # Panics
    ///
    /// If `n` is 0.
    pub const fn per_day(n: u64) -> Self {
        Self::per_nanos(n, 86_400 * SECOND)
    }

    /// One every `interval`, and never two at once: the burst is 1.
    ///
    /// # Panics
    ///
    /// If `interval` is zero or longer than 584 years.
    pub const fn one_every(interval: Duration) -> Self {
        match Self::try_new(1, interval) {
            Ok(quota) => quota,
            Err(invalid) => panic!("{}", invalid.what()),
        }
    }

    /// `n` in every `per`, with a burst of `n`.
    ///
    /// # Errors
    ///
    /// If `n` or `per` is zero, or `per` is longer than 584 years.
    pub const fn try_new(n: u64, per: Duration) -> Result<Self, InvalidQuota> {
        let nanos = per.as_nanos();
        if n == 0 {
            return Err(InvalidQuota::Rate);
        }
        if nanos == 0 || nanos > u64::MAX as u128 {
            return Err(InvalidQuota::Period);
        }
        Self { rate: n, per: nanos as u64, burst: n }.checked()
    }

    /// At most `burst` at once, instead of what the period allows in all.
    ///
    /// # Panics
    ///
    /// If `burst` is 0, or out of range: with the rate and the period both near `u64::MAX` it could not be counted.
    #[must_use]
    pub const fn burst(self, burst: u64) -> Self {
        match self.try_burst(burst) {
            Ok(quota) => quota,
            Err(invalid) => panic!("{}", invalid.what()),
        }
    }

    /// [`burst`](Self::burst) for a value that comes from a file.
    ///
    /// # Errors
    ///
    /// If `burst` is 0 or out of range.
    pub const fn try_burst(self, burst: u64) -> Result<Self, InvalidQuota> {
        if burst == 0 {
            return Err(InvalidQuota::Burst);
        }
        Self { burst, ..self }.checked()
    }

    /// How many in what time.
    pub const fn rate(&self) -> (u64, Duration) {
        (self.rate, Duration::from_nanos(self.per))
    }

    /// How many at once, which is also the most that one call can cost.
    pub const fn capacity(&self) -> u64 {
        self.burst
    }

    const fn per_nanos(n: u64, per: u64) -> Self {
        match Self::try_new(n, Duration::from_nanos(per)) {
            Ok(quota) => quota,
            Err(invalid) => panic!("{}", invalid.what()),
        }
    }

    const fn checked(self) -> Result<Self, InvalidQuota> {
        match Gcra::new(self.rate, self.per, self.burst) {
            Some(_) => Ok(self),
            None => Err(InvalidQuota::Range),
        }
    }

    pub(crate) fn of(gcra: &Gcra) -> Self {
        let (rate, per) = gcra.rate();
        Self { rate, per, burst: gcra.capacity() }
    }

    pub(crate) const fn gcra(self) -> Gcra {
        Gcra::new(self.rate, self.per, self.burst).expect("checked when the quota was made")
    }
}

const SECOND: u64 = 1_000_000_000;

/// Why a quota or a window cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidQuota {
    /// The rate, or a window's limit, is 0: nothing would ever pass.
    Rate,
    /// The period is zero or longer than 584 years.
    Period,
    /// The burst is 0: nothing would ever pass.
    Burst,
    /// The numbers are so large that they could not be counted exactly.
    Range,
}

impl InvalidQuota {
    pub(crate) const fn what(self) -> &'static str {
        match self {
            Self::Rate => "a rate limit of 0 lets nothing pass",
            Self::Period => "the period of a rate limit must be longer than zero and at most 584 years",
            Self::Burst => "a burst of 0 lets nothing pass",
            Self::Range => "this rate limit is too large to be counted exactly",
        }
    }
}

impl fmt::Display for InvalidQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

impl std::error::Error for InvalidQuota {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_never_work_is_refused() {
        let second = Duration::from_secs(1);
        assert_eq!(Quota::try_new(0, second), Err(InvalidQuota::Rate));
        assert_eq!(Quota::try_new(1, Duration::ZERO), Err(InvalidQuota::Period));
        assert_eq!(Quota::try_new(1, Duration::MAX), Err(InvalidQuota::Period));
        assert_eq!(Quota::per_second(1).try_burst(0), Err(InvalidQuota::Burst));
        let longest = Duration::from_nanos(u64::MAX);
        assert_eq!(Quota::try_new(u64::MAX - 1, longest), Err(InvalidQuota::Range));
        assert!(Quota::try_new(1, longest).unwrap().try_burst(u64::MAX).is_ok());
        assert!(Quota::try_new(u64::MAX, Duration::from_nanos(1)).is_ok());
    }

    #[test]
    fn n_a_second_is_not_one_every_n_seconds() {
        assert_eq!(Quota::per_second(100).rate(), (100, Duration::from_secs(1)));
        assert_eq!(Quota::one_every(Duration::from_secs(3)).capacity(), 1);
    }
}
