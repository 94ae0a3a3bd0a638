use std::{error::Error, fmt, marker::PhantomData, mem, sync::Arc, time::Duration};

use bartizan_core::{Class, Classify, Ending, Guard, RetryAfter};
use tokio::time::Instant;

use crate::{breaker::Owner, circuit::Pass, clock, machine::Outcome, started::Started};

/// A call that a breaker let pass, by hand: [`CircuitBreaker::try_acquire`](crate::CircuitBreaker::try_acquire) gives it.
///
/// Tell what became of the call. Dropped untold it was cancelled: that decides nothing, and a probe makes room for the next
/// one.
#[must_use = "dropped at once it says that the call was cancelled"]
pub struct Permit {
    /// Nothing any more once it is settled, and nothing ever for a call that no breaker watches.
    admitted: Option<Admitted>,
}

/// What a breaker lets a call pass with. Settled by hand, or by the [`Permit`] that is made of it.
#[doc(hidden)]
#[derive(Debug)]
pub struct Admitted {
    pub(crate) call: Call,
    /// A breaker of many keeps its key while a call is under way.
    pub(crate) owner: Option<Arc<Owner>>,
}

impl Admitted {
    #[inline]
    pub(crate) fn split(self) -> (Call, Option<Arc<Owner>>) {
        (self.call, self.owner)
    }
}

/// A call that passed. Settled once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    pub(crate) pass: Pass,
    /// Known only if something depends on it.
    pub(crate) started: Started,
}

impl Call {
    #[inline]
    fn settle(self, outcome: Outcome, now: impl FnOnce() -> Instant) {
        self.pass.settle(outcome, self.started, now);
    }

    /// While something of a stranger's runs: dropped by a panic this says that the call has failed. Forget it otherwise.
    #[inline]
    pub(crate) const fn arm(self) -> ArmedCall {
        ArmedCall(self)
    }
}

pub(crate) struct ArmedCall(Call);

impl Drop for ArmedCall {
    #[cold]
    fn drop(&mut self) {
        self.0.settle(Outcome::Failure(RetryAfter::Unknown), clock::now);
    }
}

impl From<Admitted> for Permit {
    #[inline]
    fn from(admitted: Admitted) -> Self {
        Self { admitted: Some(admitted) }
    }
}

impl From<Option<Admitted>> for Permit {
    #[inline]
    fn from(admitted: Option<Admitted>) -> Self {
        Self { admitted }
    }
}

impl Permit {
    /// The call succeeded.
    pub fn success(self) {
        self.settle(Class::Success);
    }

    /// The call failed.
    pub fn failure(self) {
        self.settle(Class::Failure(RetryAfter::Unknown));
    }

    /// What became of the call.
    pub fn settle(mut self, class: Class) {
        self.finish(class);
    }

    /// The call took this long, whatever the clock says: for one that was measured elsewhere.
    pub fn took(mut self, time: Duration) -> Self {
        if let Some(admitted) = &mut self.admitted
            && admitted.call.started.is_known()
        {
            admitted.call.started = Started::ago(clock::now(), time);
        }
        self
    }

    /// [`settle`](Self::settle) at a given time. One that has passed reads as now.
    pub fn settle_at(mut self, class: Class, now: Instant) {
        self.end(outcome(class), || now.max(clock::now()));
    }

    #[inline]
    pub(crate) fn finish(&mut self, class: Class) {
        self.end(outcome(class), clock::now);
    }

    #[inline]
    fn end(&mut self, outcome: Outcome, now: impl FnOnce() -> Instant) {
        if let Some(Admitted { call, owner }) = self.admitted.take() {
            call.settle(outcome, now);
            drop(owner);
        }
    }

    #[cold]
    fn cancel(&mut self) {
        self.end(Outcome::Cancelled, clock::now);
    }

    /// What has to be settled, and nothing is left here.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Self> {
        let admitted = self.admitted.take()?;
        Some(admitted.into())
    }

    /// Runs something of a stranger's, and tells it whether a breaker watches. If that panics the call has failed.
    #[inline]
    pub(crate) fn armed<T>(&mut self, run: impl FnOnce(bool) -> T) -> T {
        let watched = self.admitted.is_some();
        let armed = Armed(self);
        let result = run(watched);
        mem::forget(armed);
        result
    }
}

impl Drop for Permit {
    #[inline]
    fn drop(&mut self) {
        if self.admitted.is_some() {
            self.cancel();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let started = self.admitted.as_ref().map(|it| it.call.started);
        f.debug_struct("Permit").field("started", &started).finish_non_exhaustive()
    }
}

#[inline]
fn outcome(class: Class) -> Outcome {
    match class {
        Class::Success => Outcome::Success,
        Class::Failure(retry_after) => Outcome::Failure(retry_after),
        Class::Ignore => Outcome::Ignored,
    }
}

/// A permit while something of a stranger's runs.
pub(crate) struct Armed<'a>(pub(crate) &'a mut Permit);

impl Drop for Armed<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.finish(Class::Failure(RetryAfter::Unknown));
    }
}

/// A call that was answered well, until its extent is over.
pub struct Answered<C, Res> {
    permit: Permit,
    classify: C,
    response: PhantomData<fn(&Res)>,
}

impl<C, Res> Answered<C, Res> {
    pub(crate) const fn new(permit: Permit, classify: C) -> Self {
        Self { permit, classify, response: PhantomData }
    }
}

impl<C: Classify<Res>, Res> Guard for Answered<C, Res> {
    #[inline]
    fn settle(mut self, ending: Ending<'_>) {
        let Self { permit, classify, .. } = &mut self;
        let class = match ending {
            Ending::Complete => Class::Success,
            Ending::Failed(error) => {
                permit.armed(|_| classify.classify(Err::<&Res, &(dyn Error + 'static)>(error)))
            }
        };
        permit.finish(class);
    }

    #[cold]
    fn panicked(mut self) {
        self.permit.finish(Class::Failure(RetryAfter::Unknown));
    }
}

impl<C, Res> Drop for Answered<C, Res> {
    /// Whoever does not read a body to its end has had an answer: however long it took, that is no failure.
    #[inline]
    fn drop(&mut self) {
        self.permit.finish(Class::Ignore);
    }
}

impl<C, Res> fmt::Debug for Answered<C, Res> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answered").field("permit", &self.permit).finish_non_exhaustive()
    }
}
