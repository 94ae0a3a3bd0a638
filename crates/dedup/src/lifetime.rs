//! For how long an answer serves.

use std::time::Duration;

use tokio::time::Instant;

/// Counts nanoseconds: these are sooner compared than instants, and need half the room.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

/// When, by a [`Clock`].
pub(crate) type Nanos = u64;

impl Clock {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    #[inline]
    pub(crate) fn now(&self) -> Nanos {
        nanos(Instant::now().saturating_duration_since(self.0))
    }
}

/// More than 584 years are 584 years.
#[inline]
fn nanos(time: Duration) -> Nanos {
    time.as_secs().saturating_mul(1_000_000_000).saturating_add(time.subsec_nanos().into())
}

/// How long answers are served though stale, from when they were fresh no more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Windows {
    /// While a new one is fetched.
    pub(crate) revalidate: Duration,
    /// In place of an error.
    pub(crate) if_error: Duration,
}

/// How long an answer serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    /// It is fresh, for so long from when it landed.
    pub(crate) ttl: Duration,
    /// It is served in the windows after that, too.
    pub(crate) stale: bool,
}

/// An answer's time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetime {
    landed: Nanos,
    ttl: Nanos,
}

/// What an answer is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Freshness {
    Fresh,
    /// It is served, and a new one is fetched.
    Revalidate,
    /// It is served if a new one cannot be had.
    IfError,
    Gone,
}

impl Lifetime {
    pub(crate) fn new(landed: Nanos, ttl: Duration) -> Self {
        Self { landed, ttl: nanos(ttl) }
    }

    /// What it is good for, and how old it is.
    #[inline]
    pub(crate) fn at(self, now: Nanos, windows: Windows) -> (Freshness, Age) {
        let Self { landed, ttl } = self;
        let age = Age { since: now.saturating_sub(landed), ttl };
        let within = |window| age.since < ttl.saturating_add(nanos(window));
        let freshness = if age.since < ttl {
            Freshness::Fresh
        } else if within(windows.revalidate) {
            Freshness::Revalidate
        } else if within(windows.if_error) {
            Freshness::IfError
        } else {
            Freshness::Gone
        };
        (freshness, age)
    }

    /// How old it is, if it may stand in for a new one that failed.
    pub(crate) fn stands_in(self, now: Nanos, windows: Windows) -> Option<Age> {
        let (freshness, age) = self.at(now, Windows { revalidate: Duration::ZERO, ..windows });
        (freshness != Freshness::Gone).then_some(age)
    }
}

/// How old an answer is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    since: Nanos,
    ttl: Nanos,
}

impl Age {
    /// For how long it has been there.
    #[inline]
    pub(crate) const fn since(self) -> Duration {
        Duration::from_nanos(self.since)
    }

    /// How long it stays fresh.
    #[inline]
    pub(crate) const fn fresh_for(self) -> Duration {
        Duration::from_nanos(self.ttl.saturating_sub(self.since))
    }

    /// How long it has been stale.
    #[inline]
    pub(crate) const fn stale_for(self) -> Duration {
        Duration::from_nanos(self.since.saturating_sub(self.ttl))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time() -> impl Strategy<Value = Nanos> {
        prop_oneof![0..20_u64, Just(Nanos::MAX / 2), Just(Nanos::MAX)]
    }

    proptest! {
        /// Against integers wide enough not to saturate.
        #[test]
        fn each_window_begins_where_the_one_before_ends(
            ttl in time(),
            revalidate in time(),
            if_error in time(),
            age in 0..60_u64,
        ) {
            let windows =
                Windows { revalidate: Duration::from_nanos(revalidate), if_error: Duration::from_nanos(if_error) };
            let landed = 7;
            let life = Lifetime::new(landed, Duration::from_nanos(ttl));
            let now = landed + age;
            let [ttl, revalidate, if_error, age] = [ttl, revalidate, if_error, age].map(u128::from);
            let expected = match age {
                age if age < ttl => Freshness::Fresh,
                age if age < ttl + revalidate => Freshness::Revalidate,
                age if age < ttl + if_error => Freshness::IfError,
                _ => Freshness::Gone,
            };
            let (freshness, old) = life.at(now, windows);
            prop_assert_eq!(freshness, expected);
            prop_assert_eq!(life.stands_in(now, windows).is_some(), age < ttl + if_error);
            prop_assert_eq!(old.since().as_nanos(), age);
            prop_assert_eq!(old.fresh_for().as_nanos(), ttl.saturating_sub(age));
            prop_assert_eq!(old.stale_for().as_nanos(), age.saturating_sub(ttl));
            // A clock that goes back makes nothing older.
            prop_assert_eq!(life.at(landed - 1, windows).1.since(), Duration::ZERO);
        }
    }

    #[test]
    fn what_is_longer_than_all_times_is_all_time() {
        let life = Lifetime::new(0, Duration::MAX);
        let windows = Windows { revalidate: Duration::MAX, if_error: Duration::MAX };
        assert_eq!(life.at(Nanos::MAX - 1, windows).0, Freshness::Fresh);
    }
}
