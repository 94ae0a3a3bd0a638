//! Two layers on top of each other.

use std::sync::Arc;

use crate::{
    subject::{Dress, Panicking, Readiness, Refusal, Sharing, Subject, Timing},
    wire::{Handle, Req},
};

/// The first layer over the second one, as a subject: whatever one of them does, it does with the other one open.
#[derive(Clone)]
pub struct Pair {
    outer: Arc<dyn Subject>,
    inner: Arc<dyn Subject>,
}

impl Pair {
    /// `outer` over `inner`.
    pub fn new(outer: Arc<dyn Subject>, inner: Arc<dyn Subject>) -> Self {
        Self { outer, inner }
    }

    /// Every ordered pair of different subjects.
    pub fn all(subjects: &[Arc<dyn Subject>]) -> impl Iterator<Item = Self> {
        subjects.iter().enumerate().flat_map(move |(n, outer)| {
            let others = subjects.iter().enumerate().filter(move |(m, _)| *m != n);
            others.map(move |(_, inner)| Self::new(outer.clone(), inner.clone()))
        })
    }

    /// The requests of `dress`, good for `other` too.
    fn dress_for(other: &Arc<dyn Subject>, dress: Dress) -> Dress {
        let other = other.clone();
        Dress::new(move |n, request| dress.dress(n, other.dress(n, request)))
    }

    /// Puts each of the outer layer's items over the open inner one, and each of the inner layer's under the open outer
    /// one: `rebuild` takes an item, what places its handle, and the other layer.
    fn both<T>(
        &self,
        of: impl Fn(&dyn Subject) -> Vec<T>,
        rebuild: impl Fn(T, &dyn Fn(Handle) -> Handle, &Arc<dyn Subject>) -> T,
    ) -> Vec<T> {
        let over = |handle: Handle| handle.over(self.inner.open());
        let under = |handle: Handle| self.outer.open().over(handle);
        let outer = of(&*self.outer).into_iter().map(|item| rebuild(item, &over, &self.inner));
        let inner = of(&*self.inner).into_iter().map(|item| rebuild(item, &under, &self.outer));
        outer.chain(inner).collect()
    }
}

impl Subject for Pair {
    fn name(&self) -> String {
        format!("{} over {}", self.outer.name(), self.inner.name())
    }

    fn open(&self) -> Handle {
        self.outer.open().over(self.inner.open())
    }

    fn readiness(&self) -> Readiness {
        self.outer.readiness().over(self.inner.readiness())
    }

    fn dress(&self, n: usize, request: Req) -> Req {
        self.outer.dress(n, self.inner.dress(n, request))
    }

    fn refusals(&self) -> Vec<Refusal> {
        // Ready at once is said of the whole pair, whichever of the two says it.
        self.both(
            |subject| subject.refusals(),
            |item, place, other| Refusal {
                handle: place(item.handle),
                request: Self::dress_for(other, item.request),
                readiness: item.readiness.over(other.readiness()),
                ..item
            },
        )
    }

    fn sharings(&self) -> Vec<Sharing> {
        self.both(
            |subject| subject.sharings(),
            |item, place, other| Sharing {
                handle: place(item.handle),
                request: Self::dress_for(other, item.request),
                ..item
            },
        )
    }

    fn timings(&self) -> Vec<Timing> {
        self.both(
            |subject| subject.timings(),
            |item, place, other| Timing {
                handle: place(item.handle),
                request: Self::dress_for(other, item.request),
                ..item
            },
        )
    }

    fn panicking(&self) -> Vec<Panicking> {
        self.both(
            |subject| subject.panicking(),
            |item, place, other| Panicking {
                handle: place(item.handle),
                request: Self::dress_for(other, item.request),
                ..item
            },
        )
    }

    fn tasks(&self) -> usize {
        self.outer.tasks() + self.inner.tasks()
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        self.outer.exempt(law).and(self.inner.exempt(law))
    }
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pair").field(&self.name()).finish()
    }
}
