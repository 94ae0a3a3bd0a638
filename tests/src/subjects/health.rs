//! `bartizan-health`, watching and shedding.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::{Class, Classify, RetryAfter, server_errors};
use bartizan_health::{Active, Component, Ejection, Explain, Fault, Health, Passive, Settings, statuses};

use crate::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing},
    wire::{Handle, Res},
};

const MINUTE: Duration = Duration::from_secs(60);

/// The user's classifier, which has a bug: it panics at the first three results.
#[derive(Clone, Default)]
struct Judge(Arc<AtomicUsize>);

impl Classify<Res> for Judge {
    fn classify(&self, result: Result<&Res, &(dyn Error + 'static)>) -> Class {
        assert!(self.0.fetch_add(1, Relaxed) >= 3, "the classifier panics");
        server_errors().classify(result)
    }
}

/// The user's explanation, which has the same bug.
#[derive(Clone, Default)]
struct Words(Arc<AtomicUsize>);

impl Explain<Res> for Words {
    fn explain<'a>(&self, result: Result<&'a Res, &'a (dyn Error + 'static)>) -> Option<Fault<'a>> {
        assert!(self.0.fetch_add(1, Relaxed) >= 3, "the explanation panics");
        statuses().explain(result)
    }
}

/// Unhealthy for a minute once three calls in a row have failed.
fn strict() -> Health {
    let passive = Passive::new().window(MINUTE).min_requests(3).degraded(50).unhealthy(50);
    Health::with(Settings::new().passive(passive))
}

fn ejecting() -> Health {
    let ejection = Ejection::after(3).times(MINUTE, MINUTE).at_most(100).panic_below(0);
    Health::with(Settings::new().passive(Passive::none()).ejection(ejection))
}

fn watching(health: Health) -> Handle {
    Handle::new(move || health.layer("it").server_errors().until_body_end())
}

fn shedding(health: Health) -> Handle {
    Handle::new(move || health.layer("it").server_errors().until_body_end().shed())
}

/// What nobody is refused for.
fn calm() -> Health {
    Health::with(Settings::new().passive(Passive::none()))
}

fn impossible() -> Vec<Impossible> {
    let build = |what, settings: fn() -> Settings| Impossible::new(what, move || Health::with(settings()));
    vec![
        build("a window of no time", || Settings::new().passive(Passive::new().window(Duration::ZERO))),
        build("no outcomes are enough", || Settings::new().passive(Passive::new().min_requests(0))),
        build("no share", || Settings::new().passive(Passive::new().degraded(0))),
        build("more than all", || Settings::new().passive(Passive::new().unhealthy(101))),
        build("an exit above the share", || {
            Settings::new().passive(Passive::new().unhealthy(9).unhealthy_exit(10))
        }),
        build("an exit that is never left", || {
            Settings::new().passive(Passive::new().degraded(9).degraded_exit(0))
        }),
        build("no failed probes", || Settings::new().active(Active::new().unhealthy_after(0))),
        build("no good probes", || Settings::new().active(Active::new().healthy_after(0))),
        build("no time for a probe", || Settings::new().active(Active::new().timeout(Duration::ZERO))),
        build("ejected after no failures", || Settings::new().ejection(Ejection::after(0))),
        build("ejected for no time", || {
            Settings::new().ejection(Ejection::after(1).times(Duration::ZERO, MINUTE))
        }),
        build("a longest time below the first", || {
            Settings::new().ejection(Ejection::after(1).times(MINUTE, MINUTE / 2))
        }),
        build("more than all are ejected", || Settings::new().ejection(Ejection::after(1).at_most(101))),
        Impossible::new("a component with an impossible window", || {
            calm().component_with("it", &Passive::new().window(Duration::ZERO), &Active::new())
        }),
        Impossible::new("probed all the time", || {
            let prober = calm().prober("it", Duration::ZERO, async || Ok::<_, std::io::Error>(()));
            prober.0
        }),
    ]
}

fn panicking(shed: bool) -> Vec<Panicking> {
    let (health, judge, words) = (calm(), Judge::default(), Words::default());
    let layer = move || {
        let layer = health.layer("it");
        if shed { layer.shed() } else { layer }
    };
    let classifying = {
        let layer = layer.clone();
        Handle::new(move || layer().classify(judge.clone()))
    };
    // Asked for what failed, and for nothing else.
    let failing = || bartizan_core::failure_if(|_: &Res| true);
    let explaining = Handle::new(move || layer().classify(failing()).explain(words.clone()));
    vec![
        Panicking { what: "the classifier", handle: classifying, request: Dress::any() },
        Panicking { what: "the explanation", handle: explaining, request: Dress::any() },
    ]
}

/// It only watches.
#[derive(Debug)]
pub(super) struct Watching;

impl Subject for Watching {
    fn name(&self) -> String {
        "health".to_owned()
    }

    fn open(&self) -> Handle {
        watching(strict())
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        panicking(false)
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        match law {
            "refusal-gives-back" => Some("it never answers without the inner service"),
            "shared-state" | "served" => Some("what it shares changes no call"),
            "paused-time" => Some("no call of its ends at a time"),
            _ => None,
        }
    }
}

/// It refuses what cannot be asked.
#[derive(Debug)]
pub(super) struct Shedding;

impl Shedding {
    fn refusal(what: &'static str, health: Health, warm_up: usize, lifts: Option<Duration>) -> Refusal {
        let (handle, readiness) = (shedding(health), Readiness::PassThrough);
        Refusal { what, handle, warm_up, then: Then::Fail, request: Dress::any(), readiness, lifts }
    }
}

fn fails_three_times(component: &Component) {
    (0..3).for_each(|_| component.record(Class::Failure(RetryAfter::Unknown), Duration::ZERO, None));
}

impl Subject for Shedding {
    fn name(&self) -> String {
        "health-shedding".to_owned()
    }

    fn open(&self) -> Handle {
        shedding(calm())
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn refusals(&self) -> Vec<Refusal> {
        let draining = calm();
        draining.component("it").drain();
        let probed = calm();
        for _ in 0..3 {
            let probe = probed.component("it").start_probe().expect("none is under way");
            assert!(probe.failed(&"it is dead"));
        }
        let by_hand = strict();
        fails_three_times(&by_hand.component("it"));
        vec![
            Self::refusal("3 of 3 failures", strict(), 3, Some(MINUTE)),
            Self::refusal("3 of 3 failures by hand", by_hand, 0, Some(MINUTE)),
            Self::refusal("ejected", ejecting(), 3, Some(MINUTE)),
            Self::refusal("unhealthy by its probes", probed, 0, None),
            Self::refusal("draining", draining, 0, None),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        let sharing = |what, health: Health| Sharing {
            what,
            handle: shedding(health),
            across: Across::Handle,
            then: Then::Fail,
            request: Dress::any(),
            reach: 3,
        };
        vec![sharing("3 of 3 failures", strict()), sharing("ejected", ejecting())]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        panicking(true)
    }
}
