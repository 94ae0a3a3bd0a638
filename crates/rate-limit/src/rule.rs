use std::{
    borrow::{Borrow, Cow},
    fmt,
    hash::Hash,
    marker::PhantomData,
    sync::{Arc, Mutex},
};

use tokio::time::Instant;

use crate::{RateLimiter, account::lock, error::Refusal, keyed::Asked, limiter::Count, policy::Denied};

/// A limit, what a call's key is there, and what it costs.
///
/// ```
/// use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
///
/// struct Call { tenant: String, tokens: u64 }
///
/// let requests: RateLimiter<String> = RateLimiter::keyed(Limit::new("requests", Quota::per_minute(60)));
/// let tokens = RateLimiter::new(Limit::new("tokens", Quota::per_minute(90_000)));
/// // Both must let a call pass, or neither is charged.
/// let layer = RateLimitLayer::all((
///     requests.rule().by_ref(|call: &Call| Some(call.tenant.as_str())),
///     tokens.rule().cost(|call: &Call| call.tokens),
/// ));
/// # let _ = layer;
/// ```
pub struct Rule<K, Key, Cost> {
    pub(crate) limiter: RateLimiter<K>,
    key: Key,
    cost: Cost,
}

impl<K> Rule<K, Unkeyed, Each> {
    pub(crate) fn new(limiter: RateLimiter<K>) -> Self {
        Self { limiter, key: Unkeyed, cost: Each }
    }
}

impl<K, Cost> Rule<K, Unkeyed, Cost> {
    /// The key of a call. One without a key is not limited by this limit.
    pub fn by<Req, F>(self, key: F) -> Rule<K, By<F>, Cost>
    where
        F: Fn(&Req) -> Option<K>,
    {
        Rule { limiter: self.limiter, key: By(key), cost: self.cost }
    }

    /// The key of a call, borrowed from it: nothing is allocated for a key that is known.
    pub fn by_ref<Req, Q, F>(self, key: F) -> Rule<K, ByRef<F, Q>, Cost>
    where
        F: for<'r> Fn(&'r Req) -> Option<&'r Q>,
        K: Borrow<Q>,
        Q: ?Sized,
    {
        Rule { limiter: self.limiter, key: ByRef(key, PhantomData), cost: self.cost }
    }
}

impl<K, Key> Rule<K, Key, Each> {
    /// What a call costs. Otherwise it costs 1.
    pub fn cost<Req, F>(self, cost: F) -> Rule<K, Key, Costs<F>>
    where
        F: Fn(&Req) -> u64,
    {
        Rule { limiter: self.limiter, key: self.key, cost: Costs(cost) }
    }
}

impl<K, Key: Clone, Cost: Clone> Clone for Rule<K, Key, Cost> {
    fn clone(&self) -> Self {
        Self { limiter: self.limiter.clone(), key: self.key.clone(), cost: self.cost.clone() }
    }
}

impl<K, Key, Cost> fmt::Debug for Rule<K, Key, Cost> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rule").field("limit", &self.limiter.name()).finish_non_exhaustive()
    }
}

/// How a rule comes by a call's key. [`Rule::by`] and [`Rule::by_ref`] make one.
pub trait KeyOf<Req, K> {
    /// What keys are compared with.
    type Asked: Hash + Eq + ToOwned<Owned = K> + ?Sized;

    /// The key of a call, if it has one.
    fn key_of<'r>(&self, request: &'r Req) -> Option<Cow<'r, Self::Asked>>;
}

/// Everything together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unkeyed;

impl<Req> KeyOf<Req, ()> for Unkeyed {
    type Asked = ();

    #[inline]
    fn key_of<'r>(&self, _: &'r Req) -> Option<Cow<'r, ()>> {
        Some(Cow::Owned(()))
    }
}

/// Made by [`Rule::by`].
#[derive(Clone, Copy)]
pub struct By<F>(F);

impl<Req, K, F> KeyOf<Req, K> for By<F>
where
    F: Fn(&Req) -> Option<K>,
    K: Hash + Eq + Clone,
{
    type Asked = K;

    #[inline]
    fn key_of<'r>(&self, request: &'r Req) -> Option<Cow<'r, K>> {
        (self.0)(request).map(Cow::Owned)
    }
}

/// Made by [`Rule::by_ref`].
pub struct ByRef<F, Q: ?Sized>(F, PhantomData<fn(&Q)>);

impl<F: Clone, Q: ?Sized> Clone for ByRef<F, Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<Req, K, Q, F> KeyOf<Req, K> for ByRef<F, Q>
where
    F: for<'r> Fn(&'r Req) -> Option<&'r Q>,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    type Asked = Q;

    #[inline]
    fn key_of<'r>(&self, request: &'r Req) -> Option<Cow<'r, Q>> {
        (self.0)(request).map(Cow::Borrowed)
    }
}

/// What a call costs. [`Rule::cost`] makes one.
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

/// Made by [`Rule::cost`].
#[derive(Clone, Copy)]
pub struct Costs<F>(F);

impl<Req, F: Fn(&Req) -> u64> CostOf<Req> for Costs<F> {
    #[inline]
    fn cost_of(&self, request: &Req) -> u64 {
        (self.0)(request)
    }
}

macro_rules! opaque {
    ($($name:ident<$($p:ident $(: $b:tt $c:ident)?),*>,)*) => {
        $(impl<$($p $(: $b $c)?),*> fmt::Debug for $name<$($p),*> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        })*
    };
}
opaque!(By<F>, ByRef<F, Q: ?Sized>, Costs<F>,);

/// A call's claim on one limit: the user's functions have run.
pub(crate) struct Claim<'r, K, Q: ToOwned<Owned = K> + ?Sized> {
    pub(crate) limiter: &'r RateLimiter<K>,
    pub(crate) key: Cow<'r, Q>,
    pub(crate) cost: u64,
}

impl<K: Hash + Eq, Q: Hash + ToOwned<Owned = K> + ?Sized> Claim<'_, K, Q> {
    fn ask(&self) -> Asking<'_, K, Q> {
        Asking { limiter: self.limiter, asked: self.limiter.ask(&*self.key), cost: self.cost }
    }
}

/// A claim whose key is hashed.
struct Asking<'r, K, Q: ?Sized> {
    limiter: &'r RateLimiter<K>,
    asked: Asked<'r, Q>,
    cost: u64,
}

impl<K, Key, Cost> Rule<K, Key, Cost> {
    #[inline]
    pub(crate) fn claim<'r, Req>(&'r self, request: &'r Req) -> Option<Claim<'r, K, Key::Asked>>
    where
        Key: KeyOf<Req, K>,
        Cost: CostOf<Req>,
    {
        let key = self.key.key_of(request)?;
        Some(Claim { limiter: &self.limiter, key, cost: self.cost.cost_of(request) })
    }
}

/// What a layer asks before it lets a call pass: a [`Rule`], or [`All`] of several.
pub trait Rules<Req> {
    #[doc(hidden)]
    fn admit(&self, request: &Req) -> Result<(), Refused>;
}

/// What a [`Rules`] says no with.
#[doc(hidden)]
#[derive(Debug)]
pub struct Refused(pub(crate) Refusal);

impl<Req, K, Key, Cost> Rules<Req> for Rule<K, Key, Cost>
where
    K: Hash + Eq + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
{
    #[inline]
    fn admit(&self, request: &Req) -> Result<(), Refused> {
        let Some(Claim { limiter, key, cost }) = self.claim(request) else { return Ok(()) };
        let asked = limiter.ask(&*key);
        let now = limiter.nanos(Instant::now());
        limiter.take(&asked, now, cost).map_err(|denied| Refused(limiter.refusal(denied)))
    }
}

/// Several rules at once, up to eight: all let a call pass, or none is charged. [`RateLimitLayer::all`] makes one.
///
/// [`RateLimitLayer::all`]: crate::RateLimitLayer::all
#[derive(Clone, Copy, Debug)]
pub struct All<T>(pub(crate) T);

/// Rules that can be asked together: tuples of [`Rule`].
pub trait Together {
    #[doc(hidden)]
    fn gate_from_now_on(&self);
}

/// A claim, whatever its key is.
trait Stake {
    fn gate(&self) -> &Mutex<()>;
    fn look(&self, now: Instant) -> Result<(), Denied>;
    fn take(&self, now: Instant) -> Result<(), Denied>;
    fn give_back(&self, now: Instant);
    fn refused(&self, denied: Denied) -> Refusal;
}

impl<K, Q> Stake for Asking<'_, K, Q>
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    fn gate(&self) -> &Mutex<()> {
        self.limiter.gate(self.asked.hash)
    }

    fn look(&self, now: Instant) -> Result<(), Denied> {
        let now = self.limiter.nanos(now);
        self.limiter.with(&self.asked, now, |it| it.look(now, self.cost)).and_then(|looked| looked)
    }

    fn take(&self, now: Instant) -> Result<(), Denied> {
        self.limiter.take_inside(&self.asked, self.limiter.nanos(now), self.cost)
    }

    fn give_back(&self, now: Instant) {
        let now = self.limiter.nanos(now);
        let _ = self.limiter.with(&self.asked, now, |it| it.settle(now, self.cost, 0));
    }

    fn refused(&self, denied: Denied) -> Refusal {
        self.limiter.count(self.asked.hash, Count::Refused);
        self.limiter.refusal(denied)
    }
}

/// Locks the gates of all limits in an order that is the same for everyone, looks, and only then takes.
fn admit_all<const N: usize>(stakes: [Option<&dyn Stake>; N]) -> Result<(), Refused> {
    let stakes = || stakes.iter().flatten();
    let mut gates = stakes().map(|stake| stake.gate());
    let mut gates: [Option<&Mutex<()>>; N] = std::array::from_fn(|_| gates.next());
    gates.sort_unstable_by_key(|gate| gate.map(std::ptr::from_ref));
    let mut before = None;
    let _locked = gates.map(|gate| {
        let gate = gate?;
        // A limit may stand here twice, or two keys in one part of it.
        let again = before.replace(std::ptr::from_ref(gate)) == Some(std::ptr::from_ref(gate));
        (!again).then(|| lock(gate))
    });

    let now = Instant::now();
    let mut worst: Option<Refusal> = None;
    for stake in stakes() {
        if let Err(denied) = stake.look(now) {
            let refusal = stake.refused(denied);
            if worst.as_ref().is_none_or(|worst| refusal.outlasts(worst)) {
                worst = Some(refusal);
            }
        }
    }
    if let Some(refusal) = worst {
        return Err(Refused(refusal));
    }
    for (taken, stake) in stakes().enumerate() {
        // What was just there is not there any more only if one limit stands here twice for one key.
        if let Err(denied) = stake.take(now) {
            stakes().take(taken).for_each(|stake| stake.give_back(now));
            return Err(Refused(stake.refused(denied)));
        }
    }
    Ok(())
}

/// The most rules that can be asked together.
pub(crate) const MOST: usize = 8;

impl<Req, K, Key, Cost> Rules<Req> for All<Arc<[Rule<K, Key, Cost>]>>
where
    K: Hash + Eq + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
{
    fn admit(&self, request: &Req) -> Result<(), Refused> {
        let claims: [_; MOST] = std::array::from_fn(|n| self.0.get(n)?.claim(request));
        let stakes: [_; MOST] = std::array::from_fn(|n| claims[n].as_ref().map(Claim::ask));
        admit_all::<MOST>(std::array::from_fn(|n| stakes[n].as_ref().map(|stake| stake as &dyn Stake)))
    }
}

macro_rules! together {
    ($($n:literal: $($rule:ident $k:ident $key:ident $cost:ident),+;)+) => {$(
        impl<$($k, $key, $cost),+> Together for ($(Rule<$k, $key, $cost>,)+) {
            fn gate_from_now_on(&self) {
                let ($($rule,)+) = self;
                $($rule.limiter.gate_from_now_on();)+
            }
        }

        impl<Req, $($k, $key, $cost),+> Rules<Req> for All<($(Rule<$k, $key, $cost>,)+)>
        where
            $($k: Hash + Eq + Borrow<$key::Asked>, $key: KeyOf<Req, $k>, $cost: CostOf<Req>,)+
        {
            fn admit(&self, request: &Req) -> Result<(), Refused> {
                let ($($rule,)+) = &self.0;
                $(let $rule = $rule.claim(request);)+
                $(let $rule = $rule.as_ref().map(Claim::ask);)+
                admit_all::<$n>([$($rule.as_ref().map(|stake| stake as &dyn Stake)),+])
            }
        }
    )+};
}
together! {
    1: a Ka Fa Ca;
    2: a Ka Fa Ca, b Kb Fb Cb;
    3: a Ka Fa Ca, b Kb Fb Cb, c Kc Fc Cc;
    4: a Ka Fa Ca, b Kb Fb Cb, c Kc Fc Cc, d Kd Fd Cd;
    5: a Ka Fa Ca, b Kb Fb Cb, c Kc Fc Cc, d Kd Fd Cd, e Ke Fe Ce;
    6: a Ka Fa Ca, b Kb Fb Cb, c Kc Fc Cc, d Kd Fd Cd, e Ke Fe Ce, f Kf Ff Cf;
    7: a Ka Fa Ca, b Kb Fb Cb, c Kc Fc Cc, d Kd Fd Cd, e Ke Fe Ce, f Kf Ff Cf, g Kg Fg Cg;
    8: a Ka Fa Ca, b Kb Fb Cb, c Kc Fc Cc, d Kd Fd Cd, e Ke Fe Ce, f Kf Ff Cf, g Kg Fg Cg, h Kh Fh Ch;
}
