//! A call's claim on a limit, whatever its key is; and claims on several limits at once.

use std::{
    borrow::Borrow,
    hash::Hash,
    num::NonZeroU64,
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
};

use tokio::time::Instant;

use crate::{
    Ask, RateLimiter,
    account::{Account, Bounds, Denial, lock},
    error::Refusal,
    keyed::Asked,
    policy::Denied,
    queue::{Fate, LAST, Place},
    stats::Count,
};

/// The most limits that can be asked together.
pub(crate) const MOST: usize = 8;

/// A call's claims: one for each limit, but those where it has no key.
pub(crate) type Stakes<'a> = [Option<&'a dyn Stake>];

pub(crate) trait Stake {
    /// The same for claims on the same key of the same limit.
    fn id(&self) -> (usize, NonZeroU64);

    fn cost(&self) -> u64;

    fn gate(&self) -> &Mutex<()>;

    /// Whether `cost` could be taken for a call that came as `number`.
    fn look(&self, now: Instant, cost: u64, number: u64) -> Result<(), Denied>;

    fn take(&self, now: Instant, number: u64) -> Result<(), Denied>;

    /// Gives back what was taken at `since`.
    fn give_back(&self, since: Instant);

    /// Takes the permits, or a place in the queue for them: and how long it has to wait. For whoever has no gate, as
    /// [`attend`](Self::attend) and [`withdraw`](Self::withdraw).
    fn enter(&self, now: Instant, bounds: Bounds) -> Result<(Option<Arc<Place>>, u64), Denial>;

    /// Takes a place in the queue, where it is to take when its turn has come.
    fn join(&self, now: Instant, bounds: Bounds, number: Option<u64>) -> Result<(Arc<Place>, u64), Denial>;

    /// Leaves the queue.
    fn leave(&self, now: Instant, place: &Arc<Place>);

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

impl<K, Q> Asking<'_, K, Q>
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    fn with<T>(&self, now: Instant, look: impl FnOnce(&mut Account<'_>, u64) -> T) -> Result<T, Denied> {
        let now = self.limiter.nanos(now);
        self.limiter.with(&self.asked, now, |account| look(account, now))
    }
}

impl<K, Q> Stake for Asking<'_, K, Q>
where
    K: Hash + Eq + Borrow<Q>,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    fn id(&self) -> (usize, NonZeroU64) {
        (Arc::as_ptr(&self.limiter.0).addr(), self.asked.hash)
    }

    fn cost(&self) -> u64 {
        self.cost
    }

    fn gate(&self) -> &Mutex<()> {
        self.limiter.gate(self.asked.hash)
    }

    fn look(&self, now: Instant, cost: u64, number: u64) -> Result<(), Denied> {
        self.limiter.look(&self.asked, self.limiter.nanos(now), cost, number)
    }

    fn take(&self, now: Instant, number: u64) -> Result<(), Denied> {
        self.limiter.take_as(&self.asked, self.limiter.nanos(now), self.cost, number)
    }

    fn give_back(&self, since: Instant) {
        self.limiter.settle_here(&self.asked, self.cost, 0, Some(self.limiter.nanos(since)));
    }

    fn enter(&self, now: Instant, bounds: Bounds) -> Result<(Option<Arc<Place>>, u64), Denial> {
        let enter = || self.with(now, |it, now| it.enter(now, self.cost, bounds));
        let entered = self.limiter.gated(self.asked.hash, enter);
        entered.unwrap_or_else(|denied| Err(Denial::Limited(denied)))
    }

    fn join(&self, now: Instant, bounds: Bounds, number: Option<u64>) -> Result<(Arc<Place>, u64), Denial> {
        let joined = self.with(now, |it, now| it.join(now, self.cost, bounds, true, number));
        joined.unwrap_or_else(|denied| Err(Denial::Limited(denied)))
    }

    fn leave(&self, now: Instant, place: &Arc<Place>) {
        let _ = self.with(now, |it, now| it.withdraw(now, self.cost, place));
    }

    fn attend(&self, now: Instant, place: &Arc<Place>, waker: &Waker) -> Result<Fate, Instant> {
        let attend = || self.with(now, |it, now| it.attend(now, place, waker));
        let attended = self.limiter.gated(self.asked.hash, attend);
        attended.unwrap_or_else(|_| Ok(place.fate())).map_err(|at| self.limiter.instant(at))
    }

    fn withdraw(&self, now: Instant, place: &Arc<Place>) {
        self.limiter.gated(self.asked.hash, || self.leave(now, place));
        self.limiter.gave_back();
    }

    fn count(&self, count: Count) {
        self.limiter.count(&self.asked, count);
    }

    fn refusal(&self, denied: Denied) -> Refusal {
        self.limiter.refusal(&self.asked, denied)
    }

    fn held(&self, now: Instant) -> Option<u64> {
        let now = self.limiter.nanos(now);
        let hold = self.limiter.see(&self.asked, now, now).terms.hold;
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

/// Takes of every limit or of none for a call that came as `number`, for whoever has the gates. If several deny, the one
/// that has to be waited for longest counts.
pub(crate) fn take_all(stakes: &Stakes<'_>, now: Instant, number: u64) -> Result<(), (usize, Denied)> {
    let each = || stakes.iter().enumerate().filter_map(|(n, stake)| Some((n, stake.as_ref()?)));
    let look = |n: usize, stake: &dyn Stake| {
        // A limit may stand here twice for one key: it is asked for both.
        let before = each().take_while(|(m, _)| *m < n).filter(|(_, other)| other.id() == stake.id());
        let before = before.fold(0, |sum: u64, (_, other)| sum.saturating_add(other.cost()));
        stake.look(now, stake.cost().saturating_add(before), number)
    };
    let denials = each().filter_map(|(n, stake)| Some((n, look(n, *stake).err()?)));
    // Of those that are equally long the first counts.
    if let Some(worst) = denials.reduce(|worst, next| if next.1 > worst.1 { next } else { worst }) {
        return Err(worst);
    }
    for (taken, (n, stake)) in each().enumerate() {
        // What was just there is not there any more only if somebody took or charged by hand.
        if let Err(denied) = stake.take(now, number) {
            each().take(taken).for_each(|(_, stake)| stake.give_back(now));
            return Err((n, denied));
        }
    }
    Ok(())
}

/// Lets a call pass all limits, or refuses it.
pub(crate) fn admit_all(stakes: &Stakes<'_>, now: Instant) -> Result<(), Refusal> {
    let gates = gates(stakes);
    let taken = take_all(stakes, now, LAST);
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
