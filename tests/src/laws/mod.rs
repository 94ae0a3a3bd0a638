//! The laws every layer obeys.
//!
//! Each is a check that takes a [`Subject`] and says what it saw if the subject breaks it. Nothing here sleeps: checks
//! run on a paused clock, but for `served`, which speaks through real sockets and waits for what happens there.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use crate::{
    Subject,
    bench::{message, paused},
    probe::UNREADY,
};

mod bounded_memory;
mod bounds;
mod cancel_safety;
mod configuration;
mod no_hidden_spawn;
mod panics;
mod paused_time;
mod readiness;
mod ready_before_call;
mod refusal;
mod served;
mod shared_state;
mod sources;
mod wakes;

pub use sources::sources;

/// A law of a layer.
#[derive(Clone, Copy)]
pub struct Law {
    /// Its name, in kebab case.
    pub name: &'static str,
    /// What it demands.
    pub says: &'static str,
    /// Whether a stack of layers that obey it obeys it.
    pub composes: bool,
    check: fn(&dyn Subject) -> Result<(), String>,
}

/// Every law of a layer, in the design's order. [`sources`] is the one of the source files.
pub const LAWS: &[Law] = &[
    Law {
        name: "ready-before-call",
        says: "call is only ever made on the instance that answered Ready",
        composes: true,
        check: ready_before_call::check,
    },
    Law {
        name: "refusal-gives-back",
        says: "whoever answers or waits without the inner service holds no grant of it",
        composes: true,
        check: refusal::check,
    },
    Law {
        name: "readiness",
        says: "poll_ready fails only if the inner one did, takes one grant however often it is asked, gives it back when \
               dropped, and does not wait for what the answer does not need",
        composes: true,
        check: readiness::check,
    },
    Law {
        name: "cancel-safety",
        says: "a future dropped at any await point, and a panic below, give everything back and wake who is next",
        composes: true,
        check: cancel_safety::check,
    },
    Law {
        name: "wakes",
        says: "every Pending has registered a waker; nobody wakes himself; polls are bounded",
        composes: true,
        check: wakes::check,
    },
    Law {
        name: "shared-state",
        says: "clones, services of one layer and layers of one handle share its state",
        composes: true,
        check: shared_state::check,
    },
    Law {
        name: "served",
        says: "two routes of a served axum router share the state of the handle whose layers they carry",
        composes: true,
        check: served::check,
    },
    Law {
        name: "paused-time",
        says: "time is tokio's: on a paused clock things happen at their time and no real time passes",
        composes: true,
        check: paused_time::check,
    },
    Law {
        name: "configuration",
        says: "a configuration that can never work panics in the constructor, with a message",
        composes: false,
        check: configuration::check,
    },
    Law {
        name: "bounds",
        says: "services are Clone + Send + Sync, futures Send; the compiler checks it",
        composes: true,
        check: bounds::check,
    },
    Law {
        name: "no-hidden-spawn",
        says: "no task is spawned but those declared, and they end with the layer",
        composes: true,
        check: no_hidden_spawn::check,
    },
    Law {
        name: "panics-poison-nothing",
        says: "a closure of the user's may panic, and the next call passes",
        composes: true,
        check: panics::check,
    },
    Law {
        name: "bounded-memory",
        says: "live bytes stay on a plateau however many calls are made",
        composes: true,
        check: bounded_memory::check,
    },
];

impl Law {
    /// The law of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        LAWS.iter().find(|law| law.name == name)
    }

    /// Examines `subject`, on runtimes of its own: not to be called inside one.
    ///
    /// # Errors
    ///
    /// The violation. It names this law, or `ready-before-call` if the check came to an end because a layer called an
    /// inner service that was not ready.
    pub fn check(&self, subject: &dyn Subject) -> Result<Verdict, Violation> {
        if let Some(why) = subject.exempt(self.name) {
            return Ok(Verdict::Exempt(why));
        }
        let violation = |law, saw| Violation { law, subject: subject.name(), saw };
        match catch_unwind(AssertUnwindSafe(|| (self.check)(subject))) {
            Ok(Ok(())) => Ok(Verdict::Holds),
            Ok(Err(saw)) if saw.contains(UNREADY) => Err(violation(LAWS[0].name, saw)),
            Ok(Err(saw)) => Err(violation(self.name, saw)),
            Err(panic) => {
                let message = message(&*panic);
                let law = if message.contains(UNREADY) { LAWS[0].name } else { self.name };
                Err(violation(law, format!("it panicked: {message}")))
            }
        }
    }
}

impl fmt::Debug for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Law").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a check found, if nothing is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The subject obeys the law.
    Holds,
    /// The law does not apply, and why.
    Exempt(&'static str),
}

/// A law, who breaks it, and what was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The law's name.
    pub law: &'static str,
    /// The subject's name.
    pub subject: String,
    /// What was seen.
    pub saw: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "law {} is broken by {}: {}", self.law, self.subject, self.saw)
    }
}

impl std::error::Error for Violation {}

/// Checks every item of a list that the subject gives, each on a paused clock of its own, and says how many there are.
///
/// The items are made inside their runtimes, since a handle may read the clock when it is made.
fn each<T>(
    list: impl Fn() -> Vec<T>,
    what: impl Fn(&T) -> &'static str,
    check: impl AsyncFn(T) -> Result<(), String>,
) -> Result<usize, String> {
    let items = paused(async { Ok(list().len()) })?;
    for n in 0..items {
        paused(async {
            let item = list().swap_remove(n);
            let what = what(&item);
            check(item).await.map_err(|saw| format!("{what}: {saw}"))
        })?;
    }
    Ok(items)
}

/// Refuses to let a subject pass that gave a law nothing to check.
fn some(list: &str, items: usize) -> Result<(), String> {
    match items {
        0 => Err(format!("it declares no {list}: declare them, or exempt it from this law and say why")),
        _ => Ok(()),
    }
}
