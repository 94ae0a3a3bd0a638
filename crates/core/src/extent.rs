use std::{error::Error, fmt};

/// When a call is over: with its response, or only when the response's body has ended.
///
/// A layer that holds something for the length of a call (a permit, a probe, a reservation) hands it over as a
/// [`Guard`] once the response is there. [`UntilResponse`] settles it at once and costs nothing; `UntilBodyEnd` (feature
/// `http`) moves it into the body.
pub trait Extent<Res>: Clone {
    /// Whether a call is over with its response. A layer may settle its guard itself then, and hold none.
    const ENDS_WITH_RESPONSE: bool = false;

    /// The response that leaves the layer while `G` is held.
    type Response<G: Guard>;

    /// Takes `guard` over for the rest of the call that `response` answers.
    fn hold<G: Guard>(&self, response: Res, guard: G) -> Self::Response<G>;
}

/// Something held for the length of a call. Dropping it unsettled means that the call was cancelled.
pub trait Guard {
    /// The call is over. Called once, and only if the call came to its end.
    fn settle(self, ending: Ending<'_>);

    /// The response panicked while it was asked for more, and unwinds through here. By default as a drop.
    fn panicked(self)
    where
        Self: Sized,
    {
    }
}

/// How a call ended after it was answered.
#[derive(Clone, Copy)]
pub enum Ending<'a> {
    /// All of the response arrived.
    Complete,
    /// The response broke off with this error.
    Failed(&'a (dyn Error + 'static)),
}

impl fmt::Debug for Ending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Complete => f.write_str("Complete"),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// A call is over when its response is there. The default of every layer.
#[derive(Clone, Copy, Debug, Default)]
pub struct UntilResponse;

impl<Res> Extent<Res> for UntilResponse {
    const ENDS_WITH_RESPONSE: bool = true;

    type Response<G: Guard> = Res;

    #[inline]
    fn hold<G: Guard>(&self, response: Res, guard: G) -> Res {
        guard.settle(Ending::Complete);
        response
    }
}

/// Nothing is held: for code paths where no guard was taken.
impl Guard for () {
    fn settle(self, _: Ending<'_>) {}
}

/// A guard that may be absent settles when it is there.
impl<G: Guard> Guard for Option<G> {
    #[inline]
    fn settle(self, ending: Ending<'_>) {
        if let Some(guard) = self {
            guard.settle(ending);
        }
    }

    #[inline]
    fn panicked(self) {
        if let Some(guard) = self {
            guard.panicked();
        }
    }
}
