//! A call under way: what becomes of it is recorded once, whatever happens.

use std::{error::Error, fmt, marker::PhantomData, mem, sync::Arc};

use bartizan_core::{Class, Classify, Ending, Guard, RetryAfter};
use tokio::time::Instant;

use crate::{
    Explain, Fault, clock,
    watched::{Took, Watched, took},
};

/// A call that is watched. Dropped unsettled it was cancelled.
#[derive(Debug)]
pub(crate) struct Call {
    /// Nothing any more once it is settled.
    watched: Option<Arc<Watched>>,
    /// `None` if it was not even made.
    started: Option<Instant>,
}

impl Call {
    #[inline]
    pub(crate) fn begin(watched: &Arc<Watched>, started: Instant) -> Self {
        Self { watched: Some(watched.clone()), started: Some(started) }
    }

    pub(crate) fn unready(watched: &Arc<Watched>) -> Self {
        Self { watched: Some(watched.clone()), started: None }
    }

    pub(crate) const fn nothing() -> Self {
        Self { watched: None, started: None }
    }

    #[cfg(feature = "http")]
    pub(crate) fn first_frame(&self) -> Option<(Arc<Watched>, Instant)> {
        Some((self.watched.clone()?, self.started?))
    }

    /// What is left of it to settle is taken elsewhere.
    pub(crate) fn take(&mut self) -> Self {
        Self { watched: self.watched.take(), started: self.started }
    }

    /// The call was answered with this.
    #[inline]
    pub(crate) fn answered<Res>(
        &mut self,
        class: Class,
        explain: &impl Explain<Res>,
        result: Result<&Res, &(dyn Error + 'static)>,
    ) {
        let fault = match class {
            Class::Success => None,
            Class::Failure(_) | Class::Ignore => explain.explain(result),
        };
        self.finish(class, fault);
    }

    /// The call has come to an error.
    #[cold]
    pub(crate) fn fail<Res>(
        mut self,
        classify: &impl Classify<Res>,
        explain: &impl Explain<Res>,
        error: &(dyn Error + 'static),
    ) {
        self.armed(|call| {
            let class = classify.classify(Err(error));
            call.answered::<Res>(class, explain, Err(error));
        });
    }

    #[inline]
    fn finish(&mut self, class: Class, fault: Option<Fault<'_>>) {
        if let Some(watched) = &self.watched {
            let now = clock::now();
            let took = self.started.map_or(Took::None, |started| took(started, now));
            watched.record(class, took, fault, now);
            self.watched = None;
        }
    }

    #[inline]
    pub(crate) fn succeed(&mut self) {
        self.finish(Class::Success, None);
    }

    fn panicked(&mut self) {
        let fault = Fault::new("panic").text("it panicked");
        self.finish(Class::Failure(RetryAfter::Unknown), Some(fault));
    }

    /// Runs something of a stranger's. If that panics the call has failed.
    #[inline]
    pub(crate) fn armed<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> T {
        let armed = Armed(self);
        let result = run(armed.0);
        mem::forget(armed);
        result
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            watched.record_cancelled();
        }
    }
}

/// A call while something of a stranger's runs.
struct Armed<'a>(&'a mut Call);

impl Drop for Armed<'_> {
    #[cold]
    fn drop(&mut self) {
        self.0.panicked();
    }
}

/// A call that was answered well, until its extent is over. Whoever does not read a body to its end has cancelled it.
pub struct Answered<C, X, Res> {
    call: Call,
    classify: C,
    explain: X,
    response: PhantomData<fn(&Res)>,
}

impl<C, X, Res> Answered<C, X, Res> {
    pub(crate) const fn new(call: Call, classify: C, explain: X) -> Self {
        Self { call, classify, explain, response: PhantomData }
    }

    #[cfg(feature = "http")]
    pub(crate) const fn call(&self) -> &Call {
        &self.call
    }
}

impl<C: Classify<Res>, X: Explain<Res>, Res> Guard for Answered<C, X, Res> {
    fn settle(self, ending: Ending<'_>) {
        let Self { mut call, classify, explain, .. } = self;
        match ending {
            Ending::Complete => call.succeed(),
            Ending::Failed(error) => call.fail::<Res>(&classify, &explain, error),
        }
    }

    #[cold]
    fn panicked(mut self) {
        self.call.panicked();
    }
}

impl<C, X, Res> fmt::Debug for Answered<C, X, Res> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answered").field("call", &self.call).finish_non_exhaustive()
    }
}
