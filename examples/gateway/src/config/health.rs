//! The keys of what is known of upstreams, and who may see it.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Config, Health, ShowTo,
    breaker::{OFF, PERCENT, small},
    key::{Key, Kind, nearest},
    load::{Given, Loader},
    schema::MILLISECONDS,
    section::Section,
};

const OUTCOMES: RangeInclusive<u64> = 1..=100_000;
const PROBES: RangeInclusive<u64> = 1..=1_000;

pub(super) const HEALTH: &[Key<Health>] = &[
    Key {
        name: "window_ms",
        kind: Kind::Integer(MILLISECONDS, |health, ms| health.window = Duration::from_millis(ms)),
        default: "60_000",
        doc: "The calls that have ended within this time are what a model is judged by.",
    },
    Key {
        name: "min_requests",
        kind: Kind::Integer(OUTCOMES, |health, n| health.min_requests = small(n)),
        default: "10",
        doc: "With fewer calls in the window they decide nothing.",
    },
    Key {
        name: "degraded_percent",
        kind: Kind::IntegerOr(OFF, PERCENT, |health, n| {
            health.degraded_percent = n.map(small);
            Ok(())
        }),
        default: "10",
        doc: "So many failures in a hundred calls, and it is degraded.",
    },
    Key {
        name: "degraded_exit_percent",
        kind: Kind::Integer(PERCENT, |health, n| health.degraded_exit_percent = small(n)),
        default: "5",
        doc: "Below so many it is no more; below degraded_percent if that is less.",
    },
    Key {
        name: "unhealthy_percent",
        kind: Kind::IntegerOr(OFF, PERCENT, |health, n| {
            health.unhealthy_percent = n.map(small);
            Ok(())
        }),
        default: "50",
        doc: "So many failures in a hundred calls, and it is unhealthy.",
    },
    Key {
        name: "unhealthy_exit_percent",
        kind: Kind::Integer(PERCENT, |health, n| health.unhealthy_exit_percent = small(n)),
        default: "30",
        doc: "Below so many it is no more; below unhealthy_percent if that is less.",
    },
    Key {
        name: "shed",
        kind: Kind::Flag(|health, flag| health.shed = flag),
        default: "false",
        doc: "Whether requests for a model are refused while it is unhealthy: by its calls until the window is empty, by its\n\
              probes until those are good again.",
    },
    Key {
        name: "probe_every_ms",
        kind: Kind::IntegerOr(OFF, MILLISECONDS, |health, ms| {
            health.probe_every = ms.map(Duration::from_millis);
            Ok(())
        }),
        default: "\"off\"",
        doc: "How often to ask each model's upstream for the list of its models, to see whether it works. No answer, 5xx, and\n\
              a key that is refused are failures.",
    },
    Key {
        name: "probe_timeout_ms",
        kind: Kind::Integer(MILLISECONDS, |health, ms| health.probe_timeout = Duration::from_millis(ms)),
        default: "5_000",
        doc: "How long that may take.",
    },
    Key {
        name: "unhealthy_probes",
        kind: Kind::Integer(PROBES, |health, n| health.unhealthy_probes = small(n)),
        default: "3",
        doc: "So many failed probes in a row make a model unhealthy.",
    },
    Key {
        name: "healthy_probes",
        kind: Kind::Integer(PROBES, |health, n| health.healthy_probes = small(n)),
        default: "2",
        doc: "So many good ones in a row bring it back.",
    },
    Key {
        name: "show_to",
        kind: Kind::Text("\"auto\", \"all\" or \"admin\"", |health, text| {
            health.show_to = match text {
                "auto" => ShowTo::Auto,
                "all" => ShowTo::All,
                "admin" => ShowTo::Admin,
                _ => {
                    let hint = match nearest(text, ["auto", "all", "admin"]) {
                        Some(near) => format!("; did you mean {near:?}?"),
                        None => String::new(),
                    };
                    return Err(format!("must be \"auto\", \"all\" or \"admin\", not {text:?}{hint}"));
                }
            };
            Ok(())
        }),
        default: "\"auto\"",
        doc: "Who is answered at GET /health and GET /metrics, and so sees something at /: \"all\", or \"admin\" for whoever\n\
              shows the admin_token of [server]. \"auto\" is \"all\" while only this machine can reach the gateway.",
    },
];

impl Loader<'_> {
    /// What can never work or has no effect.
    pub(super) fn check_health(&mut self, config: &Config, given: &Given) {
        if HEALTH.iter().any(|key| given.is_wrong(key.name)) {
            return;
        }
        let (health, usual) = (&config.health, Health::default());
        let mut wrong = Vec::new();
        for (key, exit, enter, percent) in [
            (
                "degraded_exit_percent",
                health.degraded_exit_percent,
                "degraded_percent",
                health.degraded_percent,
            ),
            (
                "unhealthy_exit_percent",
                health.unhealthy_exit_percent,
                "unhealthy_percent",
                health.unhealthy_percent,
            ),
        ] {
            match percent {
                None => wrong
                    .push((key, format!("has no effect while {enter} is \"off\"; set that, or remove this"))),
                Some(percent) if exit > percent => wrong.push((
                    key,
                    format!("is {exit}, above {enter}, which is {percent}; lower the one or raise the other"),
                )),
                Some(_) => {}
            }
        }
        for (key, changed) in [
            ("probe_timeout_ms", health.probe_timeout != usual.probe_timeout),
            ("unhealthy_probes", health.unhealthy_probes != usual.unhealthy_probes),
            ("healthy_probes", health.healthy_probes != usual.healthy_probes),
        ] {
            if changed && health.probe_every.is_none() {
                wrong
                    .push((key, "has no effect without probe_every_ms; set that, or remove this".to_owned()));
            }
        }
        if health.show_to == ShowTo::Admin && config.server.admin_token.is_none() {
            let message =
                "is \"admin\", and nobody can be that without admin_token in [server]; set that too";
            wrong.push(("show_to", message.to_owned()));
        }
        // Only what was given is wrong, not what it leaves as it is.
        for (key, message) in wrong {
            if let Some(origin) = given.origin(key) {
                self.problem(origin.clone(), format!("{key:?} in {} {message}", Section::Health));
            }
        }
    }
}
