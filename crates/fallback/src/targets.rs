//! Services of any types, in order, of which one at a time is asked.

use std::{
    fmt,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::Unite;

/// Targets in order: [`One`], [`Or`] of two, or [`Listed`].
pub trait Targets<Req> {
    /// What whoever answers answers.
    type Response;
    /// One of them being asked.
    type Trial: Trial<Req, Response = Self::Response>;

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Begins to ask one of them, with a clone of its service. The others are not touched.
    ///
    /// # Panics
    ///
    /// If there is no such target.
    fn begin(&self, target: usize) -> Self::Trial;
}

/// A service being asked: made ready, called, answering.
pub trait Trial<Req> {
    /// What it answers.
    type Response;

    /// Makes it ready.
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>>;

    /// Calls it, once it is ready.
    fn call(self: Pin<&mut Self>, request: Req);

    /// Its answer, once it was called.
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Self::Response, BoxError>>;
}

/// No target yet.
#[derive(Clone, Copy, Debug, Default)]
pub struct Nobody;

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct One<S>(pub(crate) S);

impl<Req, S> Targets<Req> for One<S>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Trial = TrialOf<S, S::Future>;

    fn len(&self) -> usize {
        1
    }

    #[inline]
    fn begin(&self, _: usize) -> Self::Trial {
        TrialOf::new(self.0.clone())
    }
}

/// Any number of targets of one type, as a configuration has them.
#[derive(Clone, Debug)]
pub struct Listed<S>(pub(crate) Vec<S>);

impl<Req, S> Targets<Req> for Listed<S>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;
    type Trial = TrialOf<S, S::Future>;

    fn len(&self) -> usize {
        self.0.len()
    }

    fn begin(&self, target: usize) -> Self::Trial {
        TrialOf::new(self.0[target].clone())
    }
}

pin_project! {
    /// The [`Trial`] of one service.
    pub struct TrialOf<S, F> {
        #[pin]
        stage: Stage<S, F>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<S, F> {
        Readying { service: S },
        Calling { #[pin] future: F },
    }
}

impl<S, F> TrialOf<S, F> {
    #[inline]
    fn new(service: S) -> Self {
        Self { stage: Stage::Readying { service } }
    }
}

impl<Req, S> Trial<Req> for TrialOf<S, S::Future>
where
    S: Service<Req>,
    S::Error: Into<BoxError>,
{
    type Response = S::Response;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.project().stage.project() {
            StageProjection::Readying { service } => service.poll_ready(cx).map_err(Into::into),
            StageProjection::Calling { .. } => panic!("it was called already"),
        }
    }

    #[inline]
    fn call(self: Pin<&mut Self>, request: Req) {
        let mut stage = self.project().stage;
        let StageProjection::Readying { service } = stage.as_mut().project() else {
            panic!("it was called already")
        };
        let future = service.call(request);
        stage.set(Stage::Calling { future });
    }

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<S::Response, BoxError>> {
        match self.project().stage.project() {
            StageProjection::Calling { future } => future.poll(cx).map_err(Into::into),
            StageProjection::Readying { .. } => panic!("it was not called"),
        }
    }
}

impl<S, F> fmt::Debug for TrialOf<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.stage {
            Stage::Readying { .. } => "Readying",
            Stage::Calling { .. } => "Calling",
        })
    }
}

/// The targets of `A`, then those of `B`. `F` says which response the two have together.
pub struct Or<A, B, F> {
    pub(crate) first: A,
    pub(crate) second: B,
    form: PhantomData<fn() -> F>,
}

impl<A, B, F> Or<A, B, F> {
    pub(crate) const fn new(first: A, second: B) -> Self {
        Self { first, second, form: PhantomData }
    }
}

impl<A: Clone, B: Clone, F> Clone for Or<A, B, F> {
    fn clone(&self) -> Self {
        Self::new(self.first.clone(), self.second.clone())
    }
}

impl<A: fmt::Debug, B: fmt::Debug, F> fmt::Debug for Or<A, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Or").field(&self.first).field(&self.second).finish()
    }
}

impl<Req, A, B, F> Targets<Req> for Or<A, B, F>
where
    A: Targets<Req>,
    B: Targets<Req>,
    F: Unite<A::Response, B::Response>,
{
    type Response = F::Response;
    type Trial = EitherTrial<A::Trial, B::Trial, F>;

    #[inline]
    fn len(&self) -> usize {
        self.first.len() + self.second.len()
    }

    #[inline]
    fn begin(&self, target: usize) -> Self::Trial {
        let half = match target.checked_sub(self.first.len()) {
            None => Half::First { trial: self.first.begin(target) },
            Some(target) => Half::Second { trial: self.second.begin(target) },
        };
        EitherTrial { half, form: PhantomData }
    }
}

pin_project! {
    /// The [`Trial`] of [`Or`].
    pub struct EitherTrial<A, B, F> {
        #[pin]
        half: Half<A, B>,
        form: PhantomData<fn() -> F>,
    }
}

pin_project! {
    #[project = HalfProjection]
    enum Half<A, B> {
        First { #[pin] trial: A },
        Second { #[pin] trial: B },
    }
}

impl<Req, A, B, F> Trial<Req> for EitherTrial<A, B, F>
where
    A: Trial<Req>,
    B: Trial<Req>,
    F: Unite<A::Response, B::Response>,
{
    type Response = F::Response;

    #[inline]
    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.project().half.project() {
            HalfProjection::First { trial } => trial.poll_ready(cx),
            HalfProjection::Second { trial } => trial.poll_ready(cx),
        }
    }

    #[inline]
    fn call(self: Pin<&mut Self>, request: Req) {
        match self.project().half.project() {
            HalfProjection::First { trial } => trial.call(request),
            HalfProjection::Second { trial } => trial.call(request),
        }
    }

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<F::Response, BoxError>> {
        match self.project().half.project() {
            HalfProjection::First { trial } => trial.poll(cx).map(|result| result.map(F::first)),
            HalfProjection::Second { trial } => trial.poll(cx).map(|result| result.map(F::second)),
        }
    }
}

impl<A: fmt::Debug, B: fmt::Debug, F> fmt::Debug for EitherTrial<A, B, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.half {
            Half::First { trial } => f.debug_tuple("First").field(trial).finish(),
            Half::Second { trial } => f.debug_tuple("Second").field(trial).finish(),
        }
    }
}
