//! What is done about a call's permits once it is answered.

use std::{borrow::Borrow, error::Error, hash::Hash, time::Duration};

use bartizan_core::{Ending, Guard};

use crate::RateLimiter;

/// What a rule does once a call is answered. [`Rule::settle`](crate::Rule::settle) and
/// [`Rule::hold_when`](crate::Rule::hold_when) make one.
pub trait After<Res> {
    #[doc(hidden)]
    type Charge<K: Hash + Eq + Clone>: Charge<Res>;

    #[doc(hidden)]
    fn charge<K, Q>(&self, limiter: &RateLimiter<K>, key: &Q, cost: u64) -> Self::Charge<K>
    where
        K: Hash + Eq + Clone + Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized;
}

/// What a call was charged, while it is under way. Dropped, it stays charged.
#[doc(hidden)]
pub trait Charge<Res> {
    type Guard: Guard;

    /// The response is there, and the guard is held until the call is over.
    fn answered(self, response: &mut Res) -> Self::Guard;

    /// The call failed.
    fn failed(self, error: &(dyn Error + 'static));
}

/// What was taken is spent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent;

impl<Res> After<Res> for Spent {
    type Charge<K: Hash + Eq + Clone> = ();

    #[inline]
    fn charge<K, Q>(&self, _: &RateLimiter<K>, _: &Q, _: u64)
    where
        K: Hash + Eq + Clone + Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
    }
}

impl<Res> Charge<Res> for () {
    type Guard = ();

    #[inline]
    fn answered(self, _: &mut Res) {}

    #[inline]
    fn failed(self, _: &(dyn Error + 'static)) {}
}

/// A call without a key was not charged.
impl<Res, C: Charge<Res>> Charge<Res> for Option<C> {
    type Guard = Option<C::Guard>;

    #[inline]
    fn answered(self, response: &mut Res) -> Self::Guard {
        self.map(|charge| charge.answered(response))
    }

    #[inline]
    fn failed(self, error: &(dyn Error + 'static)) {
        if let Some(charge) = self {
            charge.failed(error);
        }
    }
}

/// Made by [`Rule::settle`](crate::Rule::settle).
#[derive(Clone, Copy)]
pub struct Settle<A, F> {
    pub(crate) first: A,
    pub(crate) meter: F,
}

impl<Res, A, F, M> After<Res> for Settle<A, F>
where
    A: After<Res>,
    F: Fn(&Res) -> M + Clone,
    M: FnOnce() -> Option<u64>,
{
    type Charge<K: Hash + Eq + Clone> = Settling<A::Charge<K>, K, F>;

    fn charge<K, Q>(&self, limiter: &RateLimiter<K>, key: &Q, cost: u64) -> Self::Charge<K>
    where
        K: Hash + Eq + Clone + Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        let first = self.first.charge(limiter, key, cost);
        let charged = Charged { limiter: limiter.clone(), key: key.to_owned(), cost };
        Settling { first, charged, meter: self.meter.clone() }
    }
}

#[doc(hidden)]
pub struct Settling<C, K, F> {
    first: C,
    charged: Charged<K>,
    meter: F,
}

struct Charged<K> {
    limiter: RateLimiter<K>,
    key: K,
    cost: u64,
}

impl<K: Hash + Eq + Clone> Charged<K> {
    fn settle(&self, actual: u64) {
        self.limiter.settle(&self.key, self.cost, actual);
    }
}

impl<Res, C, K, F, M> Charge<Res> for Settling<C, K, F>
where
    C: Charge<Res>,
    K: Hash + Eq + Clone,
    F: Fn(&Res) -> M,
    M: FnOnce() -> Option<u64>,
{
    type Guard = Metered<C::Guard, K, M>;

    fn answered(self, response: &mut Res) -> Self::Guard {
        let meter = Some((self.meter)(response));
        Metered { first: self.first.answered(response), due: Due { charged: self.charged, meter } }
    }

    fn failed(self, error: &(dyn Error + 'static)) {
        self.charged.settle(0);
        self.first.failed(error);
    }
}

#[doc(hidden)]
pub struct Metered<G, K: Hash + Eq + Clone, M: FnOnce() -> Option<u64>> {
    first: G,
    due: Due<K, M>,
}

/// Settled when it is dropped: a client may go as soon as it has what it wants, before the body has ended.
struct Due<K: Hash + Eq + Clone, M: FnOnce() -> Option<u64>> {
    charged: Charged<K>,
    meter: Option<M>,
}

impl<K: Hash + Eq + Clone, M: FnOnce() -> Option<u64>> Drop for Due<K, M> {
    fn drop(&mut self) {
        // A meter that panics while its thread does would end the process.
        if !std::thread::panicking()
            && let Some(actual) = self.meter.take().and_then(|meter| meter())
        {
            self.charged.settle(actual);
        }
    }
}

impl<G, K, M> Guard for Metered<G, K, M>
where
    G: Guard,
    K: Hash + Eq + Clone,
    M: FnOnce() -> Option<u64>,
{
    fn settle(self, ending: Ending<'_>) {
        drop(self.due);
        self.first.settle(ending);
    }
}

/// Made by [`Rule::hold_when`](crate::Rule::hold_when).
#[derive(Clone, Copy)]
pub struct Hold<A, F> {
    pub(crate) first: A,
    pub(crate) when: F,
}

impl<Res, A, F> After<Res> for Hold<A, F>
where
    A: After<Res>,
    F: Fn(Result<&Res, &(dyn Error + 'static)>) -> Option<Duration> + Clone,
{
    type Charge<K: Hash + Eq + Clone> = Holding<A::Charge<K>, K, F>;

    fn charge<K, Q>(&self, limiter: &RateLimiter<K>, key: &Q, cost: u64) -> Self::Charge<K>
    where
        K: Hash + Eq + Clone + Borrow<Q>,
        Q: ToOwned<Owned = K> + ?Sized,
    {
        let first = self.first.charge(limiter, key, cost);
        Holding { first, limiter: limiter.clone(), key: key.to_owned(), when: self.when.clone() }
    }
}

#[doc(hidden)]
pub struct Holding<C, K, F> {
    first: C,
    limiter: RateLimiter<K>,
    key: K,
    when: F,
}

impl<Res, C, K, F> Charge<Res> for Holding<C, K, F>
where
    C: Charge<Res>,
    K: Hash + Eq + Clone,
    F: Fn(Result<&Res, &(dyn Error + 'static)>) -> Option<Duration>,
{
    type Guard = C::Guard;

    fn answered(self, response: &mut Res) -> Self::Guard {
        if let Some(time) = (self.when)(Ok(response)) {
            self.limiter.hold(&self.key, time);
        }
        self.first.answered(response)
    }

    fn failed(self, error: &(dyn Error + 'static)) {
        if let Some(time) = (self.when)(Err(error)) {
            self.limiter.hold(&self.key, time);
        }
        self.first.failed(error);
    }
}

/// What several limits charged.
#[doc(hidden)]
pub struct Every<T>(pub(crate) T);

impl<Res, C: Charge<Res>, const N: usize> Charge<Res> for Every<[C; N]> {
    type Guard = Every<[C::Guard; N]>;

    fn answered(self, response: &mut Res) -> Self::Guard {
        Every(self.0.map(|charge| charge.answered(response)))
    }

    fn failed(self, error: &(dyn Error + 'static)) {
        self.0.into_iter().for_each(|charge| charge.failed(error));
    }
}

impl<G: Guard, const N: usize> Guard for Every<[G; N]> {
    fn settle(self, ending: Ending<'_>) {
        self.0.into_iter().for_each(|guard| guard.settle(ending));
    }
}

macro_rules! every {
    ($($one:ident)+) => {
        #[allow(non_snake_case, reason = "named as their types")]
        impl<Res, $($one: Charge<Res>),+> Charge<Res> for Every<($($one,)+)> {
            type Guard = Every<($($one::Guard,)+)>;

            #[inline]
            fn answered(self, response: &mut Res) -> Self::Guard {
                let ($($one,)+) = self.0;
                Every(($($one.answered(response),)+))
            }

            #[inline]
            fn failed(self, error: &(dyn Error + 'static)) {
                let ($($one,)+) = self.0;
                $($one.failed(error);)+
            }
        }

        #[allow(non_snake_case, reason = "named as their types")]
        impl<$($one: Guard),+> Guard for Every<($($one,)+)> {
            #[inline]
            fn settle(self, ending: Ending<'_>) {
                let ($($one,)+) = self.0;
                $($one.settle(ending);)+
            }
        }
    };
}
every!(A);
every!(A B);
every!(A B C);
every!(A B C D);
every!(A B C D E);
every!(A B C D E F);
every!(A B C D E F G);
every!(A B C D E F G H);

impl<G, K: Hash + Eq + Clone, M: FnOnce() -> Option<u64>> std::fmt::Debug for Metered<G, K, M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metered")
    }
}

opaque!(Settle<A, F>, Settling<C, K, F>, Hold<A, F>, Holding<C, K, F>, Every<T>,);
