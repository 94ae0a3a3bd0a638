//! Two of tower's own layers: they prove the laws, and the laws prove nothing new of them.

use std::time::Duration;

use ::tower::{limit::GlobalConcurrencyLimitLayer, timeout::TimeoutLayer};

use crate::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Readiness, Sharing, Timing},
    wire::Handle,
};

/// `GlobalConcurrencyLimitLayer`.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit;

impl ConcurrencyLimit {
    fn handle(limit: usize) -> Handle {
        let layer = GlobalConcurrencyLimitLayer::new(limit);
        Handle::new(move || layer.clone())
    }
}

impl Subject for ConcurrencyLimit {
    fn name(&self) -> String {
        "tower-concurrency-limit".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle(1024)
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![Sharing {
            what: "3 calls at once",
            handle: Self::handle(3),
            across: Across::Handle,
            then: Then::Hang,
            request: Dress::any(),
            reach: 3,
        }]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        match law {
            "refusal-gives-back" => Some("it never answers without the inner service"),
            "paused-time" => Some("it keeps no time"),
            "configuration" => Some("a limit of 0 is accepted, and then nothing ever passes"),
            "panics-poison-nothing" => Some("it takes no closure"),
            _ => None,
        }
    }
}

/// `TimeoutLayer`.
#[derive(Debug)]
pub(super) struct Timeout;

impl Subject for Timeout {
    fn name(&self) -> String {
        "tower-timeout".to_owned()
    }

    fn open(&self) -> Handle {
        Handle::new(|| TimeoutLayer::new(Duration::from_secs(2 * 24 * 3600)))
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn timings(&self) -> Vec<Timing> {
        vec![Timing {
            what: "30 s for a call that hangs",
            handle: Handle::new(|| TimeoutLayer::new(Duration::from_secs(30))),
            warm_up: 0,
            then: Then::Hang,
            request: Dress::any(),
            at: Duration::from_secs(30),
        }]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        match law {
            "refusal-gives-back" => Some("it never answers without having called the inner service"),
            "shared-state" | "served" => Some("it has no state"),
            "configuration" => {
                Some("a timeout of zero is accepted: it lets through what is complete at once")
            }
            "panics-poison-nothing" => Some("it takes no closure"),
            _ => None,
        }
    }
}
