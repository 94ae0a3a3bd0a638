use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::RejectionKind;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    account::{Bounds, Denial},
    clock,
    error::Refusal,
    policy::Denied,
    queue::{Fate, LAST, Place},
    stake::{Stake, Stakes, gates, take_all},
    stats::Count,
};

/// A call's permits, or its place in a queue for them.
///
/// With several limits it waits for the one that makes it wait longest, and takes from all at once when its turn has come
/// there: nothing is held of one limit while another is waited for. If another one denies by then it waits there, where
/// its number puts it. Since only whoever came before keeps a call from taking, the first of all who wait is kept by time
/// alone, and then the next: they do not send each other in circles.
#[derive(Debug)]
pub(crate) struct Ticket {
    state: State,
    bounds: Bounds,
    /// `None` if it may wait for ever.
    deadline: Option<Instant>,
    /// How long it had to wait, as was known when it came.
    pub(crate) wait: u64,
}

#[derive(Debug)]
enum State {
    /// In the queue of the limit of this number.
    Waits(usize, Arc<Place>),
    /// All permits are its own, since then.
    Granted(Instant),
    /// It has none.
    Over,
}

impl Ticket {
    /// Takes what the call costs, or takes a place.
    pub(crate) fn new(stakes: &Stakes<'_>, bounds: Bounds) -> Result<Self, Refusal> {
        let now = clock::now();
        let deadline = now.checked_add(Duration::from_nanos(bounds.max_wait));
        let mut ticket = Self { state: State::Over, bounds, deadline, wait: 0 };
        match ticket.enter(stakes, now) {
            Ok(wait) => Ok(Self { wait, ..ticket }),
            Err((limit, denial)) => {
                let stake = of(stakes, limit);
                stake.count(Count::Refused);
                Err(refusal(stake, denial))
            }
        }
    }

    /// Waits for the permits. `sleep` is this ticket's timer.
    pub(crate) fn poll(
        &mut self,
        stakes: &Stakes<'_>,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Option<Sleep>>,
    ) -> Poll<Result<(), Refusal>> {
        while let State::Waits(limit, place) = &self.state {
            let (now, stake) = (clock::now(), of(stakes, *limit));
            match stake.attend(now, place, cx.waker()) {
                Err(at) => {
                    match sleep.as_mut().as_pin_mut() {
                        None => sleep.set(Some(sleep_until(at))),
                        Some(timer) if timer.deadline() != at => timer.reset(at),
                        Some(_) => {}
                    }
                    ready!(sleep.as_mut().as_pin_mut().expect("set just now").poll(cx));
                }
                Ok(Fate::Granted) => self.state = State::Granted(now),
                Ok(Fate::Turn) => self.turn(stakes, *limit, &place.clone(), now)?,
                Ok(Fate::Doomed(denied)) => {
                    self.state = State::Over;
                    return Poll::Ready(Err(in_vain(stake, Denial::Limited(denied))));
                }
                Ok(Fate::Waiting) => unreachable!("whoever is not in the queue has met his fate"),
            }
        }
        sleep.set(None);
        Poll::Ready(Ok(()))
    }

    /// The call is made: what was taken is spent.
    pub(crate) fn spend(&mut self, stakes: &Stakes<'_>) {
        if let State::Granted(_) = std::mem::replace(&mut self.state, State::Over) {
            stakes.iter().flatten().for_each(|stake| stake.count(Count::Admitted));
        }
    }

    /// Since when it has its permits.
    pub(crate) fn granted(&self) -> Option<Instant> {
        match self.state {
            State::Granted(since) => Some(since),
            State::Waits(..) | State::Over => None,
        }
    }

    /// Whether it has to be polled.
    pub(crate) fn waits(&self) -> bool {
        matches!(self.state, State::Waits(..))
    }

    /// Whether there is anything to give back.
    pub(crate) fn is_open(&self) -> bool {
        !matches!(self.state, State::Over)
    }

    /// The call is not made.
    pub(crate) fn leave(&mut self, stakes: &Stakes<'_>) {
        match std::mem::replace(&mut self.state, State::Over) {
            State::Waits(limit, place) => of(stakes, limit).withdraw(clock::now(), &place),
            State::Granted(since) => stakes.iter().flatten().for_each(|stake| stake.give_back(since)),
            State::Over => {}
        }
    }

    /// Its turn has come where it waits: it takes from all limits, or goes where it has to wait longer.
    fn turn(
        &mut self,
        stakes: &Stakes<'_>,
        limit: usize,
        place: &Arc<Place>,
        now: Instant,
    ) -> Result<(), Refusal> {
        let _gates = gates(stakes);
        let taken = take_all(stakes, now, place.number());
        of(stakes, limit).leave(now, place);
        let Err((limit, denied)) = taken else {
            self.state = State::Granted(now);
            return Ok(());
        };
        self.state = State::Over;
        let left = self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        let max_wait = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
        let stake = of(stakes, limit);
        let joined = match denied {
            Denied::Wait(_) => stake.join(now, Bounds { max_wait, ..self.bounds }, Some(place.number())),
            Denied::Never => Err(Denial::Limited(denied)),
        };
        let (place, _) = joined.map_err(|denial| in_vain(stake, denial))?;
        self.state = State::Waits(limit, place);
        Ok(())
    }

    /// Takes from all limits, or a place in the queue of the one that has to be waited for longest: and how long. Or says
    /// which limit denied.
    fn enter(&mut self, stakes: &Stakes<'_>, now: Instant) -> Result<u64, (usize, Denial)> {
        let mut each = stakes.iter().enumerate().filter_map(|(n, stake)| Some((n, stake.as_ref()?)));
        let (limit, place, wait) = match (each.next(), each.next()) {
            (None, _) => {
                self.state = State::Granted(now);
                return Ok(0);
            }
            (Some((limit, one)), None) => {
                let (place, wait) = one.enter(now, self.bounds).map_err(|denial| (limit, denial))?;
                (limit, place, wait)
            }
            (Some(_), Some(_)) => {
                let _gates = gates(stakes);
                match take_all(stakes, now, LAST) {
                    Ok(()) => (0, None, 0),
                    Err((limit, denied @ Denied::Never)) => return Err((limit, Denial::Limited(denied))),
                    Err((limit, Denied::Wait(_))) => {
                        let joined = of(stakes, limit).join(now, self.bounds, None);
                        let (place, wait) = joined.map_err(|denial| (limit, denial))?;
                        (limit, Some(place), wait)
                    }
                }
            }
        };
        self.state = place.map_or(State::Granted(now), |place| State::Waits(limit, place));
        Ok(wait)
    }
}

fn of<'a>(stakes: &'a Stakes<'_>, limit: usize) -> &'a dyn Stake {
    stakes[limit].expect("a key function says the same of a call whenever it is asked")
}

fn refusal(stake: &dyn Stake, denial: Denial) -> Refusal {
    match denial {
        Denial::Full(wait) => stake.refusal(Denied::Wait(wait)).of_kind(RejectionKind::QueueFull),
        Denial::Limited(denied) => stake.refusal(denied),
    }
}

/// The refusal of a call that has waited.
fn in_vain(stake: &dyn Stake, denial: Denial) -> Refusal {
    stake.count(Count::TimedOut);
    stake.count(Count::Refused);
    let refusal = refusal(stake, denial);
    match refusal.kind {
        RejectionKind::RateLimited => refusal.of_kind(RejectionKind::QueueTimeout),
        _ => refusal,
    }
}
