//! For how long an answer serves.

use std::time::Duration;

use tokio::time::Instant;

/// How long an answer serves, from when it landed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// It is fresh, for so long.
    pub(crate) ttl: Duration,
    /// It is served though stale while a new one is fetched, for so long after that.
    pub(crate) revalidate: Duration,
    /// It is served in place of an error, for so long after it was fresh.
    pub(crate) if_error: Duration,
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

    pub(crate) fn at(self, now: Instant) -> Freshness {
        let Terms { ttl, revalidate, if_error } = self.terms;
        let age = self.age(now);
        if age < ttl {
            Freshness::Fresh
        } else if age < ttl.saturating_add(revalidate) {
            Freshness::Revalidate
        } else if age < ttl.saturating_add(if_error) {
            Freshness::IfError
        } else {
            Freshness::Gone
        }
    }

    /// Whether it may stand in for a new one that failed.
    pub(crate) fn stands_in(self, now: Instant) -> bool {
        self.age(now) < self.terms.ttl.saturating_add(self.terms.if_error)
    }

    pub(crate) fn age(self, now: Instant) -> Duration {
        now.saturating_duration_since(self.landed)
    }

    /// How long it stays fresh.
    pub(crate) fn fresh_for(self, now: Instant) -> Duration {
        self.terms.ttl.saturating_sub(self.age(now))
    }

    /// How long it has been stale.
    pub(crate) fn stale_for(self, now: Instant) -> Duration {
        self.age(now).saturating_sub(self.terms.ttl)
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
            ttl in millis(), revalidate in millis(), if_error in millis(), age in 0..60_u64,
        ) {
            let [ttl_, revalidate_, if_error_] = [ttl, revalidate, if_error].map(Duration::from_millis);
            let landed = Instant::now();
            let life = Lifetime::new(landed, Terms { ttl: ttl_, revalidate: revalidate_, if_error: if_error_ });
            let now = landed + Duration::from_millis(age);
            let [ttl, revalidate, if_error, age] = [ttl, revalidate, if_error, age].map(u128::from);
            let expected = match age {
                age if age < ttl => Freshness::Fresh,
                age if age < ttl + revalidate => Freshness::Revalidate,
                age if age < ttl + if_error => Freshness::IfError,
                _ => Freshness::Gone,
            };
            prop_assert_eq!(life.at(now), expected);
            prop_assert_eq!(life.stands_in(now), age < ttl + if_error);
            prop_assert_eq!(life.age(now).as_millis(), age);
            prop_assert_eq!(life.fresh_for(now).as_millis(), ttl.saturating_sub(age));
            prop_assert_eq!(life.stale_for(now).as_millis(), age.saturating_sub(ttl));
            // A clock that goes back makes nothing older.
            prop_assert_eq!(life.age(landed - Duration::from_millis(1)), Duration::ZERO);
        }
    }
}
