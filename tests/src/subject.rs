//! What a layer tells the laws about itself.

use std::{fmt, time::Duration};

use crate::{
    controlled::Then,
    wire::{Handle, Req},
};

/// A layer under examination.
///
/// Most of it says how to bring the layer into the states that the laws ask about. A law that needs something a subject
/// does not give fails, unless the subject [`exempt`](Self::exempt)s itself and says why: silence passes nothing.
pub trait Subject: Send + Sync {
    /// The layer's name, in kebab case.
    fn name(&self) -> String;

    /// A handle with fresh state, so roomy that every ordinary call reaches the inner service, without any time limit
    /// under a day, and with room for at most 256 of what it remembers.
    fn open(&self) -> Handle;

    /// What the open layer's `poll_ready` does.
    fn readiness(&self) -> Readiness;

    /// Makes `request` the `n`th of many ordinary, different calls.
    fn dress(&self, n: usize, request: Req) -> Req {
        let _ = n;
        request
    }

    /// Every way in which the layer answers without its inner service: refusals, hits, followers.
    fn refusals(&self) -> Vec<Refusal> {
        Vec::new()
    }

    /// Every state that views of one handle share.
    fn sharings(&self) -> Vec<Sharing> {
        Vec::new()
    }

    /// Every wait or limit of the layer that ends a call at a known time.
    fn timings(&self) -> Vec<Timing> {
        Vec::new()
    }

    /// Configurations that can never work.
    fn impossible(&self) -> Vec<Impossible> {
        Vec::new()
    }

    /// Every closure of the user's, panicking.
    fn panicking(&self) -> Vec<Panicking> {
        Vec::new()
    }

    /// How many tasks one `layer()` may spawn. Calls handed to a task run on after their caller is gone.
    fn tasks(&self) -> usize {
        0
    }

    /// Why the law of this name does not apply, if it does not.
    fn exempt(&self, law: &str) -> Option<&'static str> {
        let _ = law;
        None
    }
}

/// What a layer's `poll_ready` does with its inner service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// It says what the inner service says.
    PassThrough,
    /// It is ready whatever the inner service says, and makes that one ready inside the call.
    AtOnce,
}

impl Readiness {
    /// What a layer like this says over another one.
    #[must_use]
    pub fn over(self, inner: Self) -> Self {
        if self == Self::AtOnce { self } else { inner }
    }
}

/// Makes a request the `n`th of its kind.
pub struct Dress(Box<dyn Fn(usize, Req) -> Req + Send + Sync>);

impl Dress {
    /// The requests that `dress` makes.
    pub fn new(dress: impl Fn(usize, Req) -> Req + Send + Sync + 'static) -> Self {
        Self(Box::new(dress))
    }

    /// Requests of which nothing is asked.
    pub fn any() -> Self {
        Self::new(|_, request| request)
    }

    /// The `n`th request.
    pub fn request(&self, n: usize) -> Req {
        self.dress(n, Req::default())
    }

    /// Makes `request` the `n`th.
    pub fn dress(&self, n: usize, request: Req) -> Req {
        (self.0)(n, request)
    }
}

impl fmt::Debug for Dress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Dress")
    }
}

/// After some calls the next one is answered without the inner service.
#[derive(Debug)]
pub struct Refusal {
    /// What it is, for the message.
    pub what: &'static str,
    /// The handle, fresh or brought into its state by hand.
    pub handle: Handle,
    /// How many calls come before.
    pub warm_up: usize,
    /// What the inner service does with those.
    pub then: Then,
    /// The requests, those before included.
    pub request: Dress,
    /// What `poll_ready` does in this state.
    pub readiness: Readiness,
    /// After what time calls reach the inner service again, if time brings that about.
    pub lifts: Option<Duration>,
}

/// However calls are spread over views of one handle, a known number of them reaches the inner service.
#[derive(Debug)]
pub struct Sharing {
    /// What it is, for the message.
    pub what: &'static str,
    /// The handle.
    pub handle: Handle,
    /// Which views share.
    pub across: Across,
    /// What the inner service does with calls. [`Then::Hang`] is for a limit on calls at once, where a call that is
    /// dropped leaves its place to the next. In the served router [`Then::Fail`] is a response with status 500.
    pub then: Then,
    /// The requests.
    pub request: Dress,
    /// How many calls reach the inner service when more are made, one after the other.
    pub reach: usize,
}

/// Which views of a handle share its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Across {
    /// The clones of a service.
    Clones,
    /// All layers of the handle, all their services and all clones of those.
    Handle,
}

/// A call that ends at a known time.
#[derive(Debug)]
pub struct Timing {
    /// What it is, for the message.
    pub what: &'static str,
    /// The handle.
    pub handle: Handle,
    /// How many calls, resolved by the inner service, come before.
    pub warm_up: usize,
    /// What the inner service does with the call itself.
    pub then: Then,
    /// The requests, those before included.
    pub request: Dress,
    /// How long after its start the call ends. At least ten seconds, so that real time would be noticed.
    pub at: Duration,
}

/// A constructor's call that must panic.
pub struct Impossible {
    /// What it is, for the message.
    pub what: &'static str,
    /// Tries it.
    pub build: Box<dyn Fn()>,
}

impl Impossible {
    /// `build` tries what can never work.
    pub fn new<T>(what: &'static str, build: impl Fn() -> T + 'static) -> Self {
        Self { what, build: Box::new(move || drop(build())) }
    }
}

impl fmt::Debug for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Impossible").field("what", &self.what).finish_non_exhaustive()
    }
}

/// A request for which a closure of the user's panics.
#[derive(Debug)]
pub struct Panicking {
    /// Which closure, for the message.
    pub what: &'static str,
    /// The handle; open but for that request.
    pub handle: Handle,
    /// The request.
    pub request: Dress,
}
