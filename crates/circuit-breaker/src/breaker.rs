use std::{fmt, sync::Arc};

use bartizan_core::{Errors, Rejected, RejectionKind, RetryAfter, UntilResponse, errors};
use tokio::{sync::watch, time::Instant};

use crate::{
    CircuitBreakerLayer, InvalidSettings, Permit, Settings, State, Transition,
    circuit::Circuit,
    clock,
    machine::{Counted, Machine},
    permit::{Admitted, Call},
    select::One,
    started::Started,
    wait::Wait,
};

/// A breaker's state: made once, shared by every layer, service and clone that is made from it.
///
/// Layers are views of it. It can be asked and commanded by hand, and can guard what is no service.
///
/// ```
/// use std::time::Duration;
/// use bartizan_circuit_breaker::{CircuitBreaker, Settings, State};
/// use bartizan_core::RetryAfter;
///
/// let breaker = CircuitBreaker::new(Settings::consecutive(1).open_for(Duration::from_secs(5)));
/// breaker.try_acquire()?.failure();
/// assert_eq!(breaker.state(), State::Open);
/// let refusal = breaker.try_acquire().unwrap_err();
/// assert!(matches!(refusal.retry_after(), RetryAfter::After(wait) if wait <= Duration::from_secs(5)));
///
/// breaker.reset();
/// breaker.try_acquire()?.success();
/// # Ok::<(), bartizan_core::Rejected>(())
/// ```
#[derive(Clone)]
pub struct CircuitBreaker {
    pub(crate) circuit: &'static Circuit,
    timed: bool,
    of_many: bool,
    owner: Arc<Owner>,
}

/// Whoever is the last to drop this gives the circuit to the next breaker.
#[derive(Debug)]
pub(crate) struct Owner(&'static Circuit);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.retire();
    }
}

impl CircuitBreaker {
    /// A closed breaker.
    ///
    /// # Panics
    ///
    /// If it could never work: see [`InvalidSettings`].
    pub fn new(settings: Settings) -> Self {
        match Self::try_new(settings) {
            Ok(breaker) => breaker,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// A closed breaker, of settings that come from a file.
    ///
    /// # Errors
    ///
    /// If it could never work.
    pub fn try_new(settings: Settings) -> Result<Self, InvalidSettings> {
        settings.check()?;
        Ok(Self::checked(Arc::new(settings), false))
    }

    /// One that a key has, of settings that were checked.
    pub(crate) fn of_many(settings: Arc<Settings>) -> Self {
        Self::checked(settings, true)
    }

    fn checked(settings: Arc<Settings>, of_many: bool) -> Self {
        let timed = settings.times_calls();
        let circuit = Circuit::new(settings);
        Self { circuit, timed, of_many, owner: Arc::new(Owner(circuit)) }
    }

    /// A layer that refuses calls while this breaker is open. Every error is a failure and every response a success, until
    /// [`CircuitBreakerLayer::classify`] says otherwise.
    pub fn layer(&self) -> CircuitBreakerLayer<One, Errors, UntilResponse> {
        CircuitBreakerLayer::new(One(self.clone()), errors())
    }

    /// Lets a call pass, by hand. Tell the permit what became of it.
    ///
    /// # Errors
    ///
    /// A refusal that says how long the breaker is still open.
    pub fn try_acquire(&self) -> Result<Permit, Rejected> {
        self.admit_by_hand(clock::now)
    }

    /// [`try_acquire`](Self::try_acquire) at a given time. One that has passed reads as now.
    ///
    /// # Errors
    ///
    /// A refusal that says how long the breaker is still open.
    pub fn try_acquire_at(&self, now: Instant) -> Result<Permit, Rejected> {
        self.admit_by_hand(|| now.max(clock::now()))
    }

    fn admit_by_hand(&self, now: impl Fn() -> Instant) -> Result<Permit, Rejected> {
        let owner = self.of_many.then(|| self.owner.clone());
        admit(self.circuit, self.timed, owner, now).map(Permit::from).map_err(refusal)
    }

    #[inline(always)]
    pub(crate) fn admit(&self) -> Result<Admitted, Wait> {
        admit(self.circuit, self.timed, None, clock::now)
    }

    /// [`admit`](Self::admit) for a breaker of many, whose key is kept while the call is under way.
    pub(crate) fn admit_and_keep(self) -> Result<Admitted, Wait> {
        admit(self.circuit, self.timed, Some(self.owner), clock::now)
    }

    /// Whether nobody but the caller has this breaker, calls under way included.
    pub(crate) fn is_unused(&self) -> bool {
        Arc::strong_count(&self.owner) == 1
    }

    /// What a call would find now: a breaker whose open period is over is half-open, whether a call has come or not.
    pub fn state(&self) -> State {
        self.with(Machine::look).state
    }

    /// What is counted now.
    pub fn stats(&self) -> Stats {
        let (look, Counted { counts, in_a_row, probes, tallied }) =
            self.with(|machine, now| (machine.look(now), machine.counted(now)));
        Stats {
            state: look.state,
            retry_after: look.retry_after,
            calls: counts.calls,
            successes: counts.calls - counts.failures,
            failures: counts.failures,
            slow: counts.slow,
            consecutive_failures: in_a_row.into(),
            probes: probes as usize,
            opens: tallied.opens,
            refused: self.circuit.refused(),
            late: tallied.late,
            last_failure: tallied.last_failure.map(|at| self.circuit.instant(at)),
        }
    }

    /// Closes the breaker, whatever its state is, and forgets everything: what is still under way counts no more.
    pub fn reset(&self) {
        self.circuit.reset(clock::now());
    }

    /// Refuses all calls from now on, until [`reset`](Self::reset).
    pub fn force_open(&self) {
        self.with(|machine, _| machine.force_open());
    }

    /// Lets all calls pass from now on and counts nothing, until [`reset`](Self::reset).
    pub fn disable(&self) {
        self.with(|machine, _| machine.disable());
    }

    /// The last change of the state, and every one to come, when a call or a hand makes it. Of several at once, the last.
    ///
    /// Time alone makes none: a breaker becomes half-open with the first call after its open period. The channel is closed
    /// when the breaker and all that was made from it are gone.
    pub fn subscribe(&self) -> watch::Receiver<Transition> {
        self.circuit.subscribe()
    }

    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Machine, u64) -> T) -> T {
        self.circuit.with(clock::now(), change)
    }
}

#[inline(always)]
fn admit(
    circuit: &'static Circuit,
    timed: bool,
    owner: Option<Arc<Owner>>,
    now: impl Fn() -> Instant,
) -> Result<Admitted, Wait> {
    let known = timed.then(&now);
    let pass = circuit.admit(|| known.unwrap_or_else(now))?;
    Ok(Admitted { call: Call { pass, started: known.map_or(Started::UNKNOWN, Started::at) }, owner })
}

#[inline]
pub(crate) fn refusal(wait: Wait) -> Rejected {
    Rejected::new(RejectionKind::CircuitOpen, crate::NAME).with_retry_after(wait.into())
}

impl fmt::Debug for CircuitBreaker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker").field("state", &self.state()).finish_non_exhaustive()
    }
}

/// What a breaker has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// What a call would find now.
    pub state: State,
    /// Open: what is left of that. [`RetryAfter::Never`] if it was opened by hand.
    pub retry_after: RetryAfter,
    /// The outcomes that count now: those in the (first) window, or without a window the failures in a row. One that has
    /// just opened still shows what opened it, until it is tried again. Half-open: the successful probes.
    pub calls: u64,
    /// The successes among them.
    pub successes: u64,
    /// The failures among them.
    pub failures: u64,
    /// The slow calls among them.
    pub slow: u64,
    /// Failures in a row, if that is what trips: those that opened it and every probe that has failed since, one whose time
    /// was over included. A success begins anew, one that is too slow included.
    pub consecutive_failures: u64,
    /// Probes under way.
    pub probes: usize,
    /// How often it opened by itself.
    pub opens: u64,
    /// Calls refused.
    pub refused: u64,
    /// Results that came after the state had changed, and were dropped.
    pub late: u64,
    /// When the last failure was counted, or a probe's time was over.
    pub last_failure: Option<Instant>,
}
