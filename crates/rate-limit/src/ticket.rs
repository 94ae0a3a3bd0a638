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
    error::Refusal,
    policy::Denied,
    queue::{Fate, Place},
    stake::{Stakes, gates, take_all},
    stats::Count,
};

/// A call's permits, or its place in a queue for them.
///
/// With several limits it waits for the one that makes it wait longest, and takes from the others when its turn has
/// come there: nothing is held of one limit while another is waited for. If one of the others denies by then, it gives
/// back and waits there.
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
    /// All permits are its own.
    Granted,
    /// It has none.
    Over,
}

impl Ticket {
    /// Takes what the call costs, or takes a place.
    pub(crate) fn new(stakes: &Stakes<'_>, bounds: Bounds) -> Result<Self, Refusal> {
        let now = Instant::now();
        let deadline = now.checked_add(Duration::from_nanos(bounds.max_wait));
        let mut ticket = Self { state: State::Over, bounds, deadline, wait: 0 };
        match ticket.enter(stakes, now, bounds) {
            Ok(wait) => Ok(Self { wait, ..ticket }),
            Err((limit, refusal)) => {
                stakes[limit].expect("it denied").count(Count::Refused);
                Err(refusal)
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
            let (now, stake) = (Instant::now(), stakes[*limit].expect("it waits there"));
            match stake.attend(now, place, cx.waker()) {
                Err(at) => {
                    match sleep.as_mut().as_pin_mut() {
                        None => sleep.set(Some(sleep_until(at))),
                        Some(timer) if timer.deadline() != at => timer.reset(at),
                        Some(_) => {}
                    }
                    ready!(sleep.as_mut().as_pin_mut().expect("set just now").poll(cx));
                }
                Ok(Fate::Granted) => self.turn(stakes, now)?,
                Ok(Fate::Doomed(wait)) => {
                    self.state = State::Over;
                    stake.count(Count::TimedOut);
                    stake.count(Count::Refused);
                    let refusal = stake.refusal(Denied::Wait(wait));
                    return Poll::Ready(Err(refusal.of_kind(RejectionKind::QueueTimeout)));
                }
                Ok(Fate::Waiting) => unreachable!("whoever is not in the queue has met his fate"),
            }
        }
        sleep.set(None);
        Poll::Ready(Ok(()))
    }

    /// The call is made: what was taken is spent.
    pub(crate) fn spend(&mut self, stakes: &Stakes<'_>) {
        if let State::Granted = std::mem::replace(&mut self.state, State::Over) {
            stakes.iter().flatten().for_each(|stake| stake.count(Count::Admitted));
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
        let now = Instant::now();
        match std::mem::replace(&mut self.state, State::Over) {
            State::Waits(limit, place) => stakes[limit].expect("it waits there").withdraw(now, &place),
            State::Granted => stakes.iter().flatten().for_each(|stake| stake.give_back(now)),
            State::Over => {}
        }
    }

    /// Its turn has come where it waited, and it has its permits there.
    fn turn(&mut self, stakes: &Stakes<'_>, now: Instant) -> Result<(), Refusal> {
        let State::Waits(limit, _) = self.state else { return Ok(()) };
        if stakes.len() == 1 {
            self.state = State::Granted;
            return Ok(());
        }
        if self.take_others(stakes, limit, now).is_ok() {
            return Ok(());
        }
        let left = self.deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(now));
        let max_wait = u64::try_from(left.as_nanos()).unwrap_or(u64::MAX);
        match self.enter(stakes, now, Bounds { max_wait, ..self.bounds }) {
            Ok(_) => Ok(()),
            Err((limit, refusal)) => {
                // It has waited, so it is refused for that.
                let stake = stakes[limit].expect("it denied");
                stake.count(Count::TimedOut);
                stake.count(Count::Refused);
                Err(refusal.of_kind(RejectionKind::QueueTimeout))
            }
        }
    }

    /// Takes from all limits but this one, where it has its permits; or has nothing.
    fn take_others(&mut self, stakes: &Stakes<'_>, limit: usize, now: Instant) -> Result<(), ()> {
        let gates = gates(stakes);
        let mut others: [_; crate::stake::MOST] = std::array::from_fn(|n| stakes.get(n).copied().flatten());
        others[limit] = None;
        if take_all(&others, now).is_ok() {
            self.state = State::Granted;
            return Ok(());
        }
        self.state = State::Over;
        stakes[limit].expect("it waited there").give_back(now);
        drop(gates);
        Err(())
    }

    /// Takes from all limits, or a place in the queue of the one that has to be waited for longest: and how long. Or says
    /// which limit refused.
    fn enter(&mut self, stakes: &Stakes<'_>, now: Instant, bounds: Bounds) -> Result<u64, (usize, Refusal)> {
        let limit = if stakes.len() == 1 {
            if stakes[0].is_none() {
                self.state = State::Granted;
                return Ok(0);
            }
            0
        } else {
            let _gates = gates(stakes);
            match take_all(stakes, now) {
                Ok(()) => {
                    self.state = State::Granted;
                    return Ok(0);
                }
                Err((limit, _)) => limit,
            }
        };
        let stake = stakes[limit].expect("it denied");
        let refusal = match stake.enter(now, bounds) {
            Ok((Some(place), wait)) => {
                self.state = State::Waits(limit, place);
                return Ok(wait);
            }
            Ok((None, _)) if stakes.len() == 1 || self.take_others(stakes, limit, now).is_ok() => {
                self.state = State::Granted;
                return Ok(0);
            }
            // Somebody gave back or took by hand in between: it comes too late for both.
            Ok((None, _)) => stake.refusal(Denied::Wait(1)),
            Err(Denial::Full(wait)) => stake.refusal(Denied::Wait(wait)).of_kind(RejectionKind::QueueFull),
            Err(Denial::Limited(denied)) => stake.refusal(denied),
        };
        Err((limit, refusal))
    }
}
