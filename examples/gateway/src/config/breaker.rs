//! The keys of what stops asking a model that fails.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    CircuitBreaker, Config,
    key::{Key, Kind},
    load::{Given, Loader},
    schema::MILLISECONDS,
    section::Section,
};

/// What a threshold says that is none.
const OFF: &str = "off";

const CALLS: RangeInclusive<u64> = 1..=1_000_000;
const PERCENT: RangeInclusive<u64> = 1..=100;
/// As many as a breaker can count.
const PROBES: RangeInclusive<u64> = 1..=4_095;

pub(super) const BREAKER: &[Key<CircuitBreaker>] = &[
    Key {
        name: "enabled",
        kind: Kind::Flag(|breaker, flag| breaker.enabled = flag),
        default: "true",
        doc: "Whether models have circuit breakers, but for those that say so themselves. Without one a model is asked\n\
              whatever happens, until its breaker is reset by hand.",
    },
    Key {
        name: "failure_threshold",
        kind: Kind::IntegerOr(OFF, CALLS, |breaker, n| {
            breaker.failure_threshold = n.map(small);
            Ok(())
        }),
        default: "5",
        doc: "So many failures in a row open it.",
    },
    Key {
        name: "failure_percent",
        kind: Kind::IntegerOr(OFF, PERCENT, |breaker, n| {
            breaker.failure_percent = n.map(small);
            Ok(())
        }),
        default: "\"off\"",
        doc: "So many failures in a hundred calls of the window open it, too.",
    },
    Key {
        name: "slow_percent",
        kind: Kind::IntegerOr(OFF, PERCENT, |breaker, n| {
            breaker.slow_percent = n.map(small);
            Ok(())
        }),
        default: "\"off\"",
        doc: "So many slow calls in a hundred of the window open it, too; and a probe that is slow fails.",
    },
    Key {
        name: "slow_ms",
        kind: Kind::Integer(MILLISECONDS, |breaker, ms| breaker.slow = Duration::from_millis(ms)),
        default: "60_000",
        doc: "A call is slow that takes longer, to the end of its answer, streams included.",
    },
    Key {
        name: "window_ms",
        kind: Kind::Integer(MILLISECONDS, |breaker, ms| breaker.window = Duration::from_millis(ms)),
        default: "60_000",
        doc: "The window holds the calls that have ended within this time.",
    },
    Key {
        name: "min_calls",
        kind: Kind::Integer(CALLS, |breaker, n| breaker.min_calls = small(n)),
        default: "20",
        doc: "With fewer calls in the window their shares do not count.",
    },
    Key {
        name: "client_gone_ms",
        kind: Kind::IntegerOr(OFF, MILLISECONDS, |breaker, ms| {
            breaker.client_gone = ms.map(Duration::from_millis);
            Ok(())
        }),
        default: "\"off\"",
        doc: "A client that goes away after so long or longer without an answer counts as a failure, so that a model is\n\
              noticed that is slower than its clients wait. Off, clients that go decide nothing.",
    },
    Key {
        name: "open_ms",
        kind: Kind::Integer(MILLISECONDS, |breaker, ms| breaker.open = Duration::from_millis(ms)),
        default: "30_000",
        doc: "How long it stays open, or up to a tenth longer. Each time that it opens again because a probe has failed, it\n\
              stays open for twice as long.",
    },
    Key {
        name: "max_open_ms",
        kind: Kind::Integer(MILLISECONDS, |breaker, ms| breaker.max_open = Duration::from_millis(ms)),
        default: "300_000",
        doc: "The longest of these periods, without that tenth.",
    },
    Key {
        name: "success_threshold",
        kind: Kind::Integer(PROBES, |breaker, n| breaker.success_threshold = small(n)),
        default: "1",
        doc: "So many probes must succeed, streams to their end, before all requests pass again.",
    },
    Key {
        name: "probes",
        kind: Kind::Integer(PROBES, |breaker, n| breaker.probes = small(n)),
        default: "1",
        doc: "So many probes may be under way at once. No more are made than still have to succeed.",
    },
];

/// Of a number that its key's range keeps small enough.
fn small<N: TryFrom<u64>>(n: u64) -> N {
    N::try_from(n).ok().expect("the range of the key is within the type's")
}

impl Loader<'_> {
    /// What can never work or has no effect.
    pub(super) fn check_breaker(&mut self, config: &Config, given: &Given) {
        if BREAKER.iter().any(|key| given.is_wrong(key.name)) {
            return;
        }
        let (breaker, usual) = (&config.circuit_breaker, CircuitBreaker::default());
        let CircuitBreaker { failure_threshold, failure_percent, slow_percent, .. } = *breaker;
        let mut wrong = Vec::new();
        if (failure_threshold, failure_percent, slow_percent) == (None, None, None) {
            let message = "is \"off\" as are failure_percent and slow_percent, so it would never open; set one of \
                           them, or enabled = false";
            wrong.push(("failure_threshold", message.to_owned()));
        }
        let no_window = failure_percent.or(slow_percent).is_none();
        for (key, useless, without) in [
            ("slow_ms", slow_percent.is_none() && breaker.slow != usual.slow, "slow_percent"),
            ("window_ms", no_window && breaker.window != usual.window, "failure_percent or slow_percent"),
            (
                "min_calls",
                no_window && breaker.min_calls != usual.min_calls,
                "failure_percent or slow_percent",
            ),
        ] {
            if useless {
                wrong.push((key, format!("has no effect without {without}; set that, or remove this")));
            }
        }
        let (open, most) = (breaker.open.as_millis(), breaker.max_open.as_millis());
        if let Err(invalid) =
            bartizan_circuit_breaker::CircuitBreaker::try_new(breaker.settings(&config.limits))
        {
            // The ranges of the keys leave no other reason than these two.
            let key = if given.origin("max_open_ms").is_some() { "max_open_ms" } else { "open_ms" };
            wrong.push((key, format!("cannot be: {invalid} (open_ms is {open}, max_open_ms is {most})")));
        }
        let (probes, needed) = (breaker.probes, breaker.success_threshold);
        if probes > needed {
            let message = format!(
                "is {probes}, which is never reached: \"success_threshold\" is {needed}, and more probes are not needed; \
                 lower the one or raise the other"
            );
            wrong.push(("probes", message));
        }
        // Only what was given is wrong, not what it leaves as it is.
        for (key, message) in wrong {
            if let Some(origin) = given.origin(key) {
                self.problem(origin.clone(), format!("{key:?} in {} {message}", Section::CircuitBreaker));
            }
        }
    }
}
