//! How a rule comes by a call's key, and by its cost.

use std::{borrow::Borrow, hash::Hash, marker::PhantomData};

/// How a rule comes by a call's key. [`Rule::by`](crate::Rule::by) and [`Rule::by_ref`](crate::Rule::by_ref) make one.
pub trait KeyOf<Req, K> {
    /// What keys are compared with.
    type Asked: Hash + Eq + ToOwned<Owned = K> + ?Sized;

    /// What is kept of the key beside the call: nothing, where it can be borrowed from the call again.
    type Kept;

    /// The key of a call, if it has one.
    fn keep(&self, request: &Req) -> Option<Self::Kept>;

    /// The key of a call of which this was kept.
    fn key<'r>(&self, kept: &'r Self::Kept, request: &'r Req) -> Option<&'r Self::Asked>;
}

/// Everything together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unkeyed;

impl<Req> KeyOf<Req, ()> for Unkeyed {
    type Asked = ();
    type Kept = ();

    #[inline]
    fn keep(&self, _: &Req) -> Option<()> {
        Some(())
    }

    #[inline]
    fn key<'r>(&self, kept: &'r (), _: &'r Req) -> Option<&'r ()> {
        Some(kept)
    }
}

/// Made by [`Rule::by`](crate::Rule::by).
#[derive(Clone, Copy)]
pub struct By<F>(pub(crate) F);

impl<Req, K, F> KeyOf<Req, K> for By<F>
where
    F: Fn(&Req) -> Option<K>,
    K: Hash + Eq + Clone,
{
    type Asked = K;
    type Kept = K;

    #[inline]
    fn keep(&self, request: &Req) -> Option<K> {
        (self.0)(request)
    }

    #[inline]
    fn key<'r>(&self, kept: &'r K, _: &'r Req) -> Option<&'r K> {
        Some(kept)
    }
}

/// Made by [`Rule::by_ref`](crate::Rule::by_ref).
pub struct ByRef<F, Q: ?Sized>(pub(crate) F, pub(crate) PhantomData<fn(&Q)>);

impl<F: Clone, Q: ?Sized> Clone for ByRef<F, Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<Req, K, Q, F> KeyOf<Req, K> for ByRef<F, Q>
where
    F: for<'r> Fn(&'r Req) -> Option<&'r Q>,
    K: Borrow<Q>,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    type Asked = Q;
    type Kept = ();

    #[inline]
    fn keep(&self, _: &Req) -> Option<()> {
        Some(())
    }

    #[inline]
    fn key<'r>(&self, (): &'r (), request: &'r Req) -> Option<&'r Q> {
        (self.0)(request)
    }
}

/// What a call costs. [`Rule::cost`](crate::Rule::cost) makes one.
pub trait CostOf<Req> {
    /// What it costs.
    fn cost_of(&self, request: &Req) -> u64;
}

/// Every call costs 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Each;

impl<Req> CostOf<Req> for Each {
    #[inline]
    fn cost_of(&self, _: &Req) -> u64 {
        1
    }
}

/// Made by [`Rule::cost`](crate::Rule::cost).
#[derive(Clone, Copy)]
pub struct Costs<F>(pub(crate) F);

impl<Req, F: Fn(&Req) -> u64> CostOf<Req> for Costs<F> {
    #[inline]
    fn cost_of(&self, request: &Req) -> u64 {
        (self.0)(request)
    }
}

opaque!(By<F>, ByRef<F, Q: ?Sized>, Costs<F>,);
