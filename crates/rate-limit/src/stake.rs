//! A call's claim on a limit, whatever its key is; and claims on several limits at once.

use std::{
    borrow::Borrow,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
};

use tokio::time::Instant;

use crate::{
    Ask, RateLimiter,
    account::{Bounds, Denial, lock},
    error::Refusal,
    keyed::Asked,
    policy::Denied,
    queue::{Fate, Place},
    stats::Count,
};

/// The most limits that can be asked together.
pub(crate) const MOST: usize = 8;

/// A call's claims: one for each limit, but those where it has no key.
pub(crate) type Stakes<'a> = [Option<&'a dyn Stake>];

pub(crate) trait Stake {
    fn gate(&self) -> &Mutex<()>;

    /// What [`take`](Self::take) would say.
    fn look(&self, now: Instant) -> Result<(), Denied>;

    fn take(&self, now: Instant) -> Result<(), Denied>;

    fn give_back(&self, now: Instant);

    /// Takes the permits, or a place in the queue for them: and how long it has to wait. For whoever has no gate, as the
    /// next two.
    fn enter(&self, now: Instant, bounds: Bounds) -> Result<(Option<Arc<Place>>, u64), Denial>;

    /// Looks after a place: what has become of it, or when to look again.
    fn attend(&self, now: Instant, place: &Arc<Place>, waker: &Waker) -> Result<Fate, Instant>;

    /// Leaves the queue, or gives back what was granted there.
    fn withdraw(&self, now: Instant, place: &Arc<Place>);

    fn count(&self, count: Count);

    fn refusal(&self, denied: Denied) -> Refusal;

    /// For how many nanoseconds the key is held.
    fn held(&self, now: Instant) -> Option<u64>;

    /// What a store is asked.
    fn ask(&self) -> Ask;

    fn count_store_failure(&self);

    #[cfg(feature = "http")]
    fn report(&self, now: Instant) -> crate::http::Report;
}

/// A claim whose key is hashed.
pub(crate) struct Asking<'r, K, Q: ?Sized> {
    pub(crate) limiter: &'r RateLimiter<K>,
    pub(crate) asked: Asked<'r, Q>,
    pub(crate) cost: u64,
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
        self.limiter.look(&self.asked, self.limiter.nanos(now), self.cost)
    }

    fn take(&self, now: Instant) -> Result<(), Denied> {
        self.limiter.take_uncounted(&self.asked, self.limiter.nanos(now), self.cost)
    }

    fn give_back(&self, now: Instant) {
        let now = self.limiter.nanos(now);
        let _ = self.limiter.with(&self.asked, now, |it| it.settle(now, self.cost, 0));
    }

    fn enter(&self, now: Instant, bounds: Bounds) -> Result<(Option<Arc<Place>>, u64), Denial> {
        let now = self.limiter.nanos(now);
        let enter = || self.limiter.with(&self.asked, now, |it| it.enter(now, self.cost, bounds));
        let entered = self.limiter.gated(self.asked.hash, enter);
        entered.unwrap_or_else(|denied| Err(Denial::Limited(denied)))
    }

    fn attend(&self, now: Instant, place: &Arc<Place>, waker: &Waker) -> Result<Fate, Instant> {
        let now = self.limiter.nanos(now);
        let attend = || self.limiter.with(&self.asked, now, |it| it.attend(now, place, waker));
        let attended = self.limiter.gated(self.asked.hash, attend);
        attended.unwrap_or_else(|_| Ok(place.fate())).map_err(|at| self.limiter.instant(at))
    }

    fn withdraw(&self, now: Instant, place: &Arc<Place>) {
        let now = self.limiter.nanos(now);
        let withdraw = || self.limiter.with(&self.asked, now, |it| it.withdraw(now, self.cost, place));
        let _ = self.limiter.gated(self.asked.hash, withdraw);
    }

    fn count(&self, count: Count) {
        self.limiter.count(&self.asked, count);
    }

    fn refusal(&self, denied: Denied) -> Refusal {
        self.limiter.refusal(denied)
    }

    fn held(&self, now: Instant) -> Option<u64> {
        let now = self.limiter.nanos(now);
        let hold = self.limiter.see(&self.asked, now).terms.hold;
        hold.checked_sub(now).filter(|held| *held > 0)
    }

    fn ask(&self) -> Ask {
        self.limiter.store_ask(&self.asked, self.cost)
    }

    fn count_store_failure(&self) {
        self.limiter.count_store_failure();
    }

    #[cfg(feature = "http")]
    fn report(&self, now: Instant) -> crate::http::Report {
        crate::http::Report::of(self, now)
    }
}

/// Whoever holds these is alone with the limits that are asked together: all lock in the same order.
pub(crate) type Gates<'a> = [Option<MutexGuard<'a, ()>>; MOST];

pub(crate) fn gates<'a>(stakes: &'a Stakes<'_>) -> Gates<'a> {
    let mut gates = stakes.iter().flatten().map(|stake| stake.gate());
    let mut gates: [Option<&Mutex<()>>; MOST] = std::array::from_fn(|_| gates.next());
    gates.sort_unstable_by_key(|gate| gate.map(std::ptr::from_ref));
    let mut before = None;
    gates.map(|gate| {
        let gate = gate?;
        // A limit may stand here twice, or two keys in one part of it.
        let again = before.replace(std::ptr::from_ref(gate)) == Some(std::ptr::from_ref(gate));
        (!again).then(|| lock(gate))
    })
}

/// Takes of every limit or of none, for whoever has their gates. If several deny, the one that has to be waited for
/// longest counts.
pub(crate) fn take_all(stakes: &Stakes<'_>, now: Instant) -> Result<(), (usize, Denied)> {
    let each = || stakes.iter().enumerate().filter_map(|(n, stake)| Some((n, stake.as_ref()?)));
    let denials = each().filter_map(|(n, stake)| Some((n, stake.look(now).err()?)));
    // Of those that are equally long the first counts.
    if let Some(worst) = denials.reduce(|worst, next| if next.1 > worst.1 { next } else { worst }) {
        return Err(worst);
    }
    for (taken, (n, stake)) in each().enumerate() {
        // What was just there is not there any more only if one limit stands here twice for one key.
        if let Err(denied) = stake.take(now) {
            each().take(taken).for_each(|(_, stake)| stake.give_back(now));
            return Err((n, denied));
        }
    }
    Ok(())
}

/// Lets a call pass all limits, or refuses it.
pub(crate) fn admit_all(stakes: &Stakes<'_>) -> Result<(), Refusal> {
    let gates = gates(stakes);
    let now = Instant::now();
    let taken = take_all(stakes, now);
    drop(gates);
    let each = stakes.iter().flatten();
    match taken {
        Ok(()) => {
            each.for_each(|stake| stake.count(Count::Admitted));
            Ok(())
        }
        Err((n, denied)) => {
            let stake = stakes[n].expect("it denied");
            stake.count(Count::Refused);
            Err(stake.refusal(denied))
        }
    }
}
