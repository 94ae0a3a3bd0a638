use std::{borrow::Borrow, fmt, hash::Hash, marker::PhantomData};

use crate::{CircuitBreaker, CircuitBreakers, permit::Admitted, wait::Wait};

/// Which breaker a call meets: [`One`] for all, [`By`] or [`ByRef`] a key.
pub trait Select<Req> {
    /// A permit, or none for a call that no breaker watches.
    #[doc(hidden)]
    fn admit(&self, request: &Req) -> Result<Option<Admitted>, Wait>;

    /// The breaker of every call, if that is one.
    #[doc(hidden)]
    fn one(&self) -> Option<&CircuitBreaker>;
}

/// One breaker for all calls. [`CircuitBreaker::layer`] makes one.
#[derive(Clone, Debug)]
pub struct One(pub(crate) CircuitBreaker);

impl<Req> Select<Req> for One {
    #[inline(always)]
    fn admit(&self, _: &Req) -> Result<Option<Admitted>, Wait> {
        self.0.admit().map(Some)
    }

    #[inline]
    fn one(&self) -> Option<&CircuitBreaker> {
        Some(&self.0)
    }
}

/// Made by [`CircuitBreakers::by`].
pub struct By<K, F> {
    breakers: CircuitBreakers<K>,
    key: F,
}

impl<K, F> By<K, F> {
    pub(crate) const fn new(breakers: CircuitBreakers<K>, key: F) -> Self {
        Self { breakers, key }
    }
}

impl<Req, K, F> Select<Req> for By<K, F>
where
    F: Fn(&Req) -> Option<K>,
    K: Hash + Eq + Clone,
{
    fn admit(&self, request: &Req) -> Result<Option<Admitted>, Wait> {
        match (self.key)(request) {
            Some(key) => self.breakers.admit(&key),
            None => Ok(None),
        }
    }

    fn one(&self) -> Option<&CircuitBreaker> {
        None
    }
}

/// Made by [`CircuitBreakers::by_ref`].
pub struct ByRef<K, F, Q: ?Sized> {
    breakers: CircuitBreakers<K>,
    key: F,
    asked: PhantomData<fn(&Q)>,
}

impl<K, F, Q: ?Sized> ByRef<K, F, Q> {
    pub(crate) const fn new(breakers: CircuitBreakers<K>, key: F) -> Self {
        Self { breakers, key, asked: PhantomData }
    }
}

impl<Req, K, F, Q> Select<Req> for ByRef<K, F, Q>
where
    F: for<'r> Fn(&'r Req) -> Option<&'r Q>,
    K: Borrow<Q> + Hash + Eq,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    fn admit(&self, request: &Req) -> Result<Option<Admitted>, Wait> {
        match (self.key)(request) {
            Some(key) => self.breakers.admit(key),
            None => Ok(None),
        }
    }

    fn one(&self) -> Option<&CircuitBreaker> {
        None
    }
}

impl<K, F: Clone> Clone for By<K, F> {
    fn clone(&self) -> Self {
        Self::new(self.breakers.clone(), self.key.clone())
    }
}

impl<K, F: Clone, Q: ?Sized> Clone for ByRef<K, F, Q> {
    fn clone(&self) -> Self {
        Self::new(self.breakers.clone(), self.key.clone())
    }
}

impl<K, F> fmt::Debug for By<K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("By")
    }
}

impl<K, F, Q: ?Sized> fmt::Debug for ByRef<K, F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ByRef")
    }
}
