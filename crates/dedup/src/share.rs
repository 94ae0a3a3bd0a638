use std::{
    fmt,
    future::{Ready, ready},
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

/// How a response is made good for many.
///
/// [`Whole`] is for responses that are values: each caller gets a clone. `Frames` (feature `http`) is for responses with a
/// body, which is shared while it runs.
pub trait Share<Res>: Clone {
    /// What is kept of a response.
    type Tape: Send + Sync + 'static;

    /// What a caller gets.
    type Response;

    /// Reads what of a response is still to come, for nobody.
    type Rest: Future<Output = ()> + Send + 'static;

    /// Takes a response in. Called once for each response, while no lock is held.
    fn record(&self, response: Res) -> Self::Tape;

    /// How many bytes the response has once all of it is there; `None` while some is to come.
    ///
    /// Whoever gives a response out in parts calls [`Ticket::complete`] when the last one is there.
    fn complete(&self, tape: &Self::Tape) -> Option<usize>;

    /// What may be done with the response. Asked as soon as it is recorded.
    fn verdict(&self, tape: &Self::Tape) -> Verdict {
        let _ = tape;
        Verdict::Keep(Limits::none())
    }

    /// Whether it can still be given from its beginning. Where it cannot, whoever has joined makes a call of its own.
    fn is_whole(&self, tape: &Self::Tape) -> bool {
        let _ = tape;
        true
    }

    /// The response for one caller.
    ///
    /// A response that is not complete holds the ticket until its caller has all of it: what is under way ends when nobody
    /// has a ticket any more.
    fn play(&self, tape: &Self::Tape, ticket: Ticket<Self::Tape>) -> Self::Response;

    /// The response of a call that is shared with nobody.
    fn pass(&self, response: Res) -> Self::Response;

    /// Reads what nobody reads, the answer to a refresh in the background: to its end, or as far as it may be kept.
    fn rest(&self, tape: &Self::Tape, ticket: Ticket<Self::Tape>) -> Self::Rest;
}

/// What may be done with a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// It may be kept, for as long as the handle and these limits say.
    Keep(Limits),
    /// All who wait for it get it. It is kept only if [`Replay::cache_when`](crate::Replay::cache_when) says so, for as
    /// long as the handle and these limits say.
    Share(Limits),
    /// It belongs to the caller whose request was sent. The others who waited for it make calls of their own.
    Private,
    /// It is as good as an error: a stale answer is served instead if there is one that may.
    Failure,
    /// A [`Failure`](Self::Failure) that is [`Private`](Self::Private) if no stale answer is served instead.
    PrivateFailure,
}

/// What a response itself says of how long it may be served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    fresh: Option<Duration>,
    /// When the response came, if some of it came later.
    came: Option<Instant>,
    pub(crate) stale: bool,
}

impl Limits {
    /// Nothing: that is for the handle to say.
    pub const fn none() -> Self {
        Self { fresh: None, came: None, stale: true }
    }

    /// It is fresh for no longer than this from when it was recorded, and not kept if that is no time at all.
    #[must_use]
    pub const fn fresh_for(mut self, most: Duration) -> Self {
        self.fresh = Some(most);
        self
    }

    /// It is not served once it is fresh no more, not even in place of an error.
    #[must_use]
    pub const fn never_stale(mut self) -> Self {
        self.stale = false;
        self
    }

    /// How long it is fresh from now on, at the most.
    pub(crate) fn fresh(self) -> Option<Duration> {
        let since = self.came.map(|came| came.elapsed()).unwrap_or_default();
        self.fresh.map(|longest| longest.saturating_sub(since))
    }

    fn since_now(self) -> Self {
        Self { came: self.fresh.map(|_| Instant::now()), ..self }
    }
}

impl Verdict {
    /// Some of the response is still to come, and its limits count from now on.
    pub(crate) fn since_now(self) -> Self {
        match self {
            Self::Keep(limits) => Self::Keep(limits.since_now()),
            Self::Share(limits) => Self::Share(limits.since_now()),
            other => other,
        }
    }
}

/// Responses are values, and each caller gets a clone.
///
/// A kept one counts as many bytes as its type has; [`Replay::size_of`](crate::Replay::size_of) knows better.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whole;

impl<Res: Clone + Send + Sync + 'static> Share<Res> for Whole {
    type Tape = Res;
    type Response = Res;
    type Rest = Ready<()>;

    fn record(&self, response: Res) -> Res {
        response
    }

    fn complete(&self, tape: &Res) -> Option<usize> {
        Some(mem::size_of_val(tape))
    }

    fn play(&self, tape: &Res, _: Ticket<Res>) -> Res {
        tape.clone()
    }

    fn pass(&self, response: Res) -> Res {
        response
    }

    fn rest(&self, _: &Res, _: Ticket<Res>) -> Ready<()> {
        ready(())
    }
}

/// A caller's part in the call that was made for it. What is under way goes on as long as somebody has one.
pub struct Ticket<T> {
    served: Served,
    flight: Option<Arc<dyn Landing<T>>>,
}

/// A call that is under way until all of its response is there.
pub(crate) trait Landing<T>: Send + Sync {
    fn complete(&self, size: usize);
    fn detach(&self);
}

impl<T> Ticket<T> {
    /// For an answer of which all is there, or that nobody joins any more.
    pub(crate) const fn kept(served: Served) -> Self {
        Self { served, flight: None }
    }

    pub(crate) fn of(flight: Arc<dyn Landing<T>>, served: Served) -> Self {
        Self { served, flight: Some(flight) }
    }

    /// Where the answer comes from.
    pub const fn served(&self) -> Served {
        self.served
    }

    /// All of the response is there, this many bytes: now it can be kept.
    pub fn complete(self, size: usize) {
        if let Some(flight) = self.flight {
            flight.complete(size);
        }
    }

    /// Nobody joins it any more, and it is not kept: it broke off, or it is too long. Who has it, has it still.
    pub fn detach(&self) {
        if let Some(flight) = &self.flight {
            flight.detach();
        }
    }
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("served", &self.served)
            .field("under_way", &self.flight.is_some())
            .finish()
    }
}

/// Where an answer comes from. With feature `http` it can be an extension of the response: see `Frames::served`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Served {
    /// From a call of its own.
    Miss,
    /// From the call that another caller had begun.
    Collapsed,
    /// From what was kept.
    Hit {
        /// How long ago all of it was there.
        age: Duration,
        /// How long it stays fresh.
        fresh_for: Duration,
    },
    /// From what was kept, though it is not fresh any more: a new one is fetched, or could not be had.
    Stale {
        /// How long ago all of it was there.
        age: Duration,
        /// How long ago it ceased to be fresh.
        stale_for: Duration,
    },
    /// From a call of its own that was shared with nobody and is not kept: it had no key, or what had been answered to another
    /// caller was for that one alone.
    Bypassed,
}

impl Served {
    /// Whether no call was made for it alone: it was kept, or another caller had begun it.
    pub const fn is_shared(self) -> bool {
        !matches!(self, Self::Miss | Self::Bypassed)
    }
}
