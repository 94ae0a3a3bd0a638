//! What a layer asks before it lets a call pass.

use std::{borrow::Borrow, hash::Hash, sync::Arc};

use tokio::time::Instant;

use crate::{
    Rule, StoredKey,
    after::{After, Charge, Every},
    error::Refusal,
    key::{CostOf, KeyOf},
    stake::{Asking, MOST, Stake, Stakes, admit_all},
    store::Sink,
};

/// What a layer asks before it lets a call pass: a [`Rule`], or [`All`] of several.
pub trait Rules<Req> {
    /// What is kept of a call's keys and costs while it waits.
    #[doc(hidden)]
    type Kept;

    /// The user's functions run.
    #[doc(hidden)]
    fn keep(&self, request: &Req) -> Self::Kept;

    /// Shows a call's claims.
    #[doc(hidden)]
    fn claims(&self, kept: &Self::Kept, request: &Req, show: &mut dyn FnMut(Claims<'_>));

    /// Adds what a refusal tells the outside.
    #[doc(hidden)]
    fn tell(&self, refused: Refused, _: &Self::Kept, _: &Req) -> Refused {
        refused
    }
}

/// [`Rules`] for calls with such a response.
pub trait RulesFor<Req, Res>: Rules<Req> {
    #[doc(hidden)]
    type Charge: Charge<Res>;

    /// Takes what the call costs, or nothing.
    #[doc(hidden)]
    fn admit(&self, request: &Req) -> Result<Self::Charge, Refused>;

    /// What a call was charged that has been admitted.
    #[doc(hidden)]
    fn charge(&self, kept: &Self::Kept, request: &Req) -> Self::Charge;
}

/// What a [`Rules`] says no with.
#[doc(hidden)]
#[derive(Debug)]
pub struct Refused(pub(crate) Refusal);

/// A call's claims on all limits of a [`Rules`].
#[doc(hidden)]
pub struct Claims<'a>(pub(crate) &'a Stakes<'a>);

/// A call's claims, seen by `f`.
pub(crate) fn with_claims<R, Req, T>(
    rules: &R,
    kept: &R::Kept,
    request: &Req,
    f: impl FnOnce(&Stakes<'_>) -> T,
) -> T
where
    R: Rules<Req>,
{
    let (mut f, mut told) = (Some(f), None);
    rules.claims(kept, request, &mut |Claims(stakes)| told = f.take().map(|f| f(stakes)));
    told.expect("the claims are shown")
}

/// What is kept of a call's claim on one limit.
#[doc(hidden)]
pub struct Kept<T> {
    key: T,
    cost: u64,
}

impl<K, Key, Cost, Then> Rule<K, Key, Cost, Then> {
    fn keep_one<Req>(&self, request: &Req) -> Option<Kept<Key::Kept>>
    where
        Key: KeyOf<Req, K>,
        Cost: CostOf<Req>,
    {
        let key = self.key.keep(request)?;
        self.key.key(&key, request)?;
        Some(Kept { key, cost: self.cost.cost_of(request) })
    }

    fn ask<'r, Req>(
        &'r self,
        kept: Option<&'r Kept<Key::Kept>>,
        request: &'r Req,
    ) -> Option<Asking<'r, K, Key::Asked>>
    where
        K: Hash + Eq,
        Key: KeyOf<Req, K>,
    {
        let Kept { key, cost } = kept?;
        let asked = self.limiter.ask(self.key.key(key, request)?);
        Some(Asking { limiter: &self.limiter, asked, cost: *cost })
    }

    fn charge_one<Req, Res>(&self, kept: Option<&Kept<Key::Kept>>, request: &Req) -> Option<Then::Charge<K>>
    where
        K: Hash + Eq + Clone + Borrow<Key::Asked>,
        Key: KeyOf<Req, K>,
        Then: After<Res>,
    {
        let Kept { key, cost } = kept?;
        Some(self.after.charge(&self.limiter, self.key.key(key, request)?, *cost))
    }
}

impl<Req, K, Key, Cost, Then> Rules<Req> for Rule<K, Key, Cost, Then>
where
    K: Hash + Eq + Clone + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
{
    type Kept = Option<Kept<Key::Kept>>;

    fn keep(&self, request: &Req) -> Self::Kept {
        self.keep_one(request)
    }

    fn claims(&self, kept: &Self::Kept, request: &Req, show: &mut dyn FnMut(Claims<'_>)) {
        let asking = self.ask(kept.as_ref(), request);
        show(Claims(&[asking.as_ref().map(|stake| stake as &dyn Stake)]));
    }
}

impl<Req, Res, K, Key, Cost, Then> RulesFor<Req, Res> for Rule<K, Key, Cost, Then>
where
    K: Hash + Eq + Clone + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
    Then: After<Res>,
{
    type Charge = Option<Then::Charge<K>>;

    #[inline]
    fn admit(&self, request: &Req) -> Result<Self::Charge, Refused> {
        let Some(kept) = self.key.keep(request) else { return Ok(None) };
        let Some(key) = self.key.key(&kept, request) else { return Ok(None) };
        let cost = self.cost.cost_of(request);
        let asked = self.limiter.ask(key);
        let now = self.limiter.nanos(Instant::now());
        match self.limiter.take(&asked, now, cost) {
            Ok(()) => Ok(Some(self.after.charge(&self.limiter, key, cost))),
            Err(denied) => Err(Refused(self.limiter.refusal(denied))),
        }
    }

    fn charge(&self, kept: &Self::Kept, request: &Req) -> Self::Charge {
        self.charge_one(kept.as_ref(), request)
    }
}

/// Several rules at once, up to eight: all let a call pass, or none is charged. [`RateLimitLayer::all`] makes one.
///
/// [`RateLimitLayer::all`]: crate::RateLimitLayer::all
#[derive(Clone, Debug)]
pub struct All<T>(pub(crate) T);

/// Rules that can be asked together: tuples of [`Rule`].
pub trait Together {
    #[doc(hidden)]
    fn gate_from_now_on(&self);
}

/// Rules whose calls a store can count: all but those that tell what is left, which a store knows and this process does
/// not.
pub trait Attach {
    #[doc(hidden)]
    fn attach(&self, settle: &Sink);
}

impl<K: StoredKey, Key, Cost, Then> Attach for Rule<K, Key, Cost, Then> {
    fn attach(&self, settle: &Sink) {
        self.limiter.attach(settle);
    }
}

impl<K: StoredKey, Key, Cost, Then> Attach for All<Arc<[Rule<K, Key, Cost, Then>]>> {
    fn attach(&self, settle: &Sink) {
        self.0.iter().for_each(|rule| rule.attach(settle));
    }
}

impl<T> All<T> {
    fn admit_together<Req, Res>(&self, request: &Req) -> Result<<Self as RulesFor<Req, Res>>::Charge, Refused>
    where
        Self: RulesFor<Req, Res>,
    {
        let kept = self.keep(request);
        with_claims(self, &kept, request, admit_all).map_err(Refused)?;
        Ok(self.charge(&kept, request))
    }
}

impl<Req, K, Key, Cost, Then> Rules<Req> for All<Arc<[Rule<K, Key, Cost, Then>]>>
where
    K: Hash + Eq + Clone + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
{
    type Kept = [Option<Kept<Key::Kept>>; MOST];

    fn keep(&self, request: &Req) -> Self::Kept {
        std::array::from_fn(|n| self.0.get(n)?.keep_one(request))
    }

    fn claims(&self, kept: &Self::Kept, request: &Req, show: &mut dyn FnMut(Claims<'_>)) {
        let asking: [_; MOST] = std::array::from_fn(|n| self.0.get(n)?.ask(kept[n].as_ref(), request));
        let stakes: [_; MOST] = std::array::from_fn(|n| asking[n].as_ref().map(|stake| stake as &dyn Stake));
        show(Claims(&stakes));
    }
}

impl<Req, Res, K, Key, Cost, Then> RulesFor<Req, Res> for All<Arc<[Rule<K, Key, Cost, Then>]>>
where
    K: Hash + Eq + Clone + Borrow<Key::Asked>,
    Key: KeyOf<Req, K>,
    Cost: CostOf<Req>,
    Then: After<Res>,
{
    type Charge = Every<[Option<Then::Charge<K>>; MOST]>;

    fn admit(&self, request: &Req) -> Result<Self::Charge, Refused> {
        self.admit_together(request)
    }

    fn charge(&self, kept: &Self::Kept, request: &Req) -> Self::Charge {
        Every(std::array::from_fn(|n| self.0.get(n)?.charge_one(kept[n].as_ref(), request)))
    }
}

macro_rules! together {
    ($($($m:tt $k:ident $key:ident $cost:ident $then:ident),+;)+) => {$(
        impl<$($k, $key, $cost, $then),+> Together for ($(Rule<$k, $key, $cost, $then>,)+) {
            fn gate_from_now_on(&self) {
                $(self.$m.limiter.gate_from_now_on();)+
            }
        }

        impl<$($k: StoredKey, $key, $cost, $then),+> Attach for All<Arc<($(Rule<$k, $key, $cost, $then>,)+)>> {
            fn attach(&self, settle: &Sink) {
                $(self.0.$m.attach(settle);)+
            }
        }

        impl<Req, $($k, $key, $cost, $then),+> Rules<Req> for All<Arc<($(Rule<$k, $key, $cost, $then>,)+)>>
        where
            $($k: Hash + Eq + Clone + Borrow<$key::Asked>, $key: KeyOf<Req, $k>, $cost: CostOf<Req>,)+
        {
            type Kept = ($(Option<Kept<$key::Kept>>,)+);

            fn keep(&self, request: &Req) -> Self::Kept {
                ($(self.0.$m.keep_one(request),)+)
            }

            fn claims(&self, kept: &Self::Kept, request: &Req, show: &mut dyn FnMut(Claims<'_>)) {
                let asking = ($(self.0.$m.ask(kept.$m.as_ref(), request),)+);
                show(Claims(&[$(asking.$m.as_ref().map(|stake| stake as &dyn Stake)),+]));
            }
        }

        impl<Req, Res, $($k, $key, $cost, $then),+> RulesFor<Req, Res>
            for All<Arc<($(Rule<$k, $key, $cost, $then>,)+)>>
        where
            $($k: Hash + Eq + Clone + Borrow<$key::Asked>, $key: KeyOf<Req, $k>, $cost: CostOf<Req>,
            $then: After<Res>,)+
        {
            type Charge = Every<($(Option<$then::Charge<$k>>,)+)>;

            fn admit(&self, request: &Req) -> Result<Self::Charge, Refused> {
                self.admit_together(request)
            }

            fn charge(&self, kept: &Self::Kept, request: &Req) -> Self::Charge {
                Every(($(self.0.$m.charge_one(kept.$m.as_ref(), request),)+))
            }
        }
    )+};
}
together! {
    0 Ka Fa Ca Aa;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab, 2 Kc Fc Cc Ac;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab, 2 Kc Fc Cc Ac, 3 Kd Fd Cd Ad;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab, 2 Kc Fc Cc Ac, 3 Kd Fd Cd Ad, 4 Ke Fe Ce Ae;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab, 2 Kc Fc Cc Ac, 3 Kd Fd Cd Ad, 4 Ke Fe Ce Ae, 5 Kf Ff Cf Af;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab, 2 Kc Fc Cc Ac, 3 Kd Fd Cd Ad, 4 Ke Fe Ce Ae, 5 Kf Ff Cf Af, 6 Kg Fg Cg Ag;
    0 Ka Fa Ca Aa, 1 Kb Fb Cb Ab, 2 Kc Fc Cc Ac, 3 Kd Fd Cd Ad, 4 Ke Fe Ce Ae, 5 Kf Ff Cf Af, 6 Kg Fg Cg Ag,
       7 Kh Fh Ch Ah;
}

opaque!(Claims<'a>, Kept<T>,);
