//! For how long an answer serves.

use std::time::Duration;

use tokio::time::Instant;

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
    landed: Instant,
    terms: Terms,
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
    pub(crate) const fn new(landed: Instant, terms: Terms) -> Self {
        Self { landed, terms }
    }

    /// What it is good for, and how old it is.
    #[inline]
    pub(crate) fn at(self, now: Instant, windows: Windows) -> (Freshness, Age) {
        let Terms { ttl, stale } = self.terms;
        let age = Age { since: now.saturating_duration_since(self.landed), ttl };
        let within = |window: Duration| stale && age.since < ttl.saturating_add(window);
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
    pub(crate) fn stands_in(self, now: Instant, windows: Windows) -> Option<Age> {
        let (freshness, age) = self.at(now, Windows { revalidate: Duration::ZERO, ..windows });
        (freshness != Freshness::Gone).then_some(age)
    }
}

/// How old an answer is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Age {
    pub(crate) since: Duration,
    ttl: Duration,
}

impl Age {
    /// How long it stays fresh.
    #[inline]
    pub(crate) const fn fresh_for(self) -> Duration {
        self.ttl.saturating_sub(self.since)
    }

    /// How long it has been stale.
    #[inline]
    pub(crate) const fn stale_for(self) -> Duration {
        self.since.saturating_sub(self.ttl)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn millis() -> impl Strategy<Value = u64> {
        prop_oneof![0..20_u64, Just(u64::MAX / 2), Just(u64::MAX)]
    }

    proptest! {
        /// Against integers wide enough not to saturate.
        #[test]
        fn each_window_begins_where_the_one_before_ends(
            ttl in millis(),
            revalidate in millis(),
            if_error in millis(),
            age in 0..60_u64,
            stale in any::<bool>(),
        ) {
            let [ttl_, revalidate_, if_error_] = [ttl, revalidate, if_error].map(Duration::from_millis);
            let landed = Instant::now();
            let windows = Windows { revalidate: revalidate_, if_error: if_error_ };
            let life = Lifetime::new(landed, Terms { ttl: ttl_, stale });
            let now = landed + Duration::from_millis(age);
            let [ttl, revalidate, if_error, age] = [ttl, revalidate, if_error, age].map(u128::from);
            let expected = match age {
                age if age < ttl => Freshness::Fresh,
                age if stale && age < ttl + revalidate => Freshness::Revalidate,
                age if stale && age < ttl + if_error => Freshness::IfError,
                _ => Freshness::Gone,
            };
            let (freshness, old) = life.at(now, windows);
            prop_assert_eq!(freshness, expected);
            let until = if stale { ttl + if_error } else { ttl };
            prop_assert_eq!(life.stands_in(now, windows).is_some(), age < until);
            prop_assert_eq!(old.since.as_millis(), age);
            prop_assert_eq!(old.fresh_for().as_millis(), ttl.saturating_sub(age));
            prop_assert_eq!(old.stale_for().as_millis(), age.saturating_sub(ttl));
            // A clock that goes back makes nothing older.
            prop_assert_eq!(life.at(landed - Duration::from_millis(1), windows).1.since, Duration::ZERO);
        }
    }
}
