//! When a call began, in one word: what a call carries is copied on its way.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock;

/// When a call began, if that is known: [`stamp`](clock::stamp)ed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Started(i64);

impl Started {
    /// Nothing depends on it.
    pub(crate) const UNKNOWN: Self = Self(i64::MIN);

    pub(crate) fn at(instant: Instant) -> Self {
        Self(clock::stamp(instant))
    }

    /// So long ago.
    pub(crate) fn ago(now: Instant, time: Duration) -> Self {
        let time = i64::try_from(time.as_nanos()).unwrap_or(i64::MAX);
        Self(Self::at(now).0.saturating_sub(time).max(i64::MIN + 1))
    }

    #[inline]
    pub(crate) fn is_known(self) -> bool {
        self != Self::UNKNOWN
    }

    /// How long it has lasted. Zero if that is not known.
    pub(crate) fn took(self, now: Instant) -> Duration {
        if !self.is_known() {
            return Duration::ZERO;
        }
        let took = Self::at(now).0.saturating_sub(self.0);
        Duration::from_nanos(u64::try_from(took).unwrap_or_default())
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn it_tells_how_long_before_and_after_the_first_of_all() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        for begin in [now - 9 * second, now, now + 9 * second] {
            assert_eq!(Started::at(begin).took(begin + second), second);
            assert_eq!(Started::at(begin).took(begin - second), Duration::ZERO);
            assert_eq!(Started::ago(begin, 3 * second).took(begin), 3 * second);
        }
        assert!(Started::ago(now, Duration::MAX).took(now) > 60 * 60 * 24 * 365 * second);
        assert_eq!(Started::UNKNOWN.took(now), Duration::ZERO);
    }
}
