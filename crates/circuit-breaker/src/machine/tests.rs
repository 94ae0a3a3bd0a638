use proptest::prelude::*;

use super::*;
use crate::settings::Window;

const SECOND: Duration = Duration::from_secs(1);
const NS: u64 = 1_000_000_000;
const FAILED: Outcome = Outcome::Failure(RetryAfter::Unknown);

fn machine(settings: Settings) -> Machine {
    Machine::new(Arc::new(settings), 7, 99)
}

fn call(machine: &mut Machine, outcome: Outcome, now: u64) -> bool {
    let admitted = machine.admit(now);
    if let Ok(word) = admitted {
        machine.settle(word, outcome, Duration::ZERO, now);
    }
    admitted.is_ok()
}

fn wait(retry_after: RetryAfter) -> u64 {
    match retry_after {
        RetryAfter::After(wait) => nanos(wait),
        other => panic!("{other:?}"),
    }
}

/// Pitfall 23: a window whose counters only grow needs as many failures as there were successes.
#[test]
fn a_thousand_good_calls_do_not_hide_what_comes_after() {
    let mut machine = machine(Settings::window(Window::of_calls(10).failures(50)));
    assert!((0..1_000).all(|_| call(&mut machine, Outcome::Success, 0)));
    let failures = (0..1_000).take_while(|_| call(&mut machine, FAILED, 0)).count();
    assert_eq!(failures, 5);
}

/// Pitfall 24.
#[test]
fn a_late_result_neither_closes_nor_opens() {
    let mut machine = machine(Settings::consecutive(1).open_for(SECOND));
    let late = [machine.admit(0).unwrap(), machine.admit(0).unwrap(), machine.admit(0).unwrap()];
    assert!(call(&mut machine, FAILED, 0));
    machine.settle(late[0], Outcome::Success, SECOND, 1);
    assert_eq!(machine.look(1).state, State::Open);
    let probe = machine.admit(NS).unwrap();
    machine.settle(late[1], Outcome::Success, SECOND, NS);
    machine.settle(late[2], FAILED, SECOND, NS);
    assert_eq!((machine.look(NS).state, machine.counted(NS).probes), (State::HalfOpen, 1));
    assert_eq!(machine.counted(NS).tallied.late, 3);
    machine.settle(probe, Outcome::Success, SECOND, NS);
    assert_eq!(machine.look(NS).state, State::Closed);
}

/// Pitfall 26.
#[test]
fn a_dropped_probe_frees_its_place_and_decides_nothing() {
    for outcome in [Outcome::Cancelled, Outcome::Ignored] {
        let mut machine = machine(Settings::consecutive(1).open_for(SECOND).successes(2).probes(9));
        call(&mut machine, FAILED, 0);
        for _ in 0..100 {
            let probes = [machine.admit(NS), machine.admit(NS)];
            assert!(machine.admit(NS).is_err(), "two successes are needed");
            for probe in probes {
                machine.settle(probe.unwrap(), outcome, SECOND, NS);
            }
            assert_eq!(machine.look(NS).state, State::HalfOpen);
        }
        assert!(call(&mut machine, Outcome::Success, NS) && call(&mut machine, Outcome::Success, NS));
        assert_eq!(machine.look(NS).state, State::Closed);
    }
}

/// Pitfall 26.
#[test]
fn a_slow_probe_does_not_close_what_opened_for_slowness() {
    let mut machine = machine(Settings::window(Window::of_calls(1).slow(SECOND, 100)).open_for(SECOND));
    let slow = machine.admit(0).unwrap();
    machine.settle(slow, Outcome::Success, 2 * SECOND, 2 * NS);
    assert_eq!(machine.look(2 * NS).state, State::Open);
    let probe = machine.admit(3 * NS).unwrap();
    machine.settle(probe, Outcome::Success, 2 * SECOND, 5 * NS);
    assert_eq!(machine.look(5 * NS).state, State::Open);
}

/// Pitfall 27, and what a hostile upstream may do.
#[test]
fn retry_after_lengthens_within_its_bound_and_shortens_nothing() {
    let after = |seconds| Outcome::Failure(RetryAfter::After(seconds * SECOND));
    let open_after = |failures: &[Outcome]| {
        let settings = Settings::consecutive(u32::try_from(failures.len()).unwrap()).open_for(10 * SECOND);
        let mut machine = machine(settings.longest_retry_after(100 * SECOND));
        failures.iter().for_each(|outcome| assert!(call(&mut machine, *outcome, 0)));
        wait(machine.admit(0).unwrap_err()) / NS
    };
    assert_eq!(open_after(&[FAILED]), 10);
    assert_eq!(open_after(&[after(1)]), 10);
    assert_eq!(open_after(&[after(60)]), 60);
    assert_eq!(open_after(&[after(60), after(20)]), 60);
    assert_eq!(open_after(&[after(60), FAILED]), 60);
    assert_eq!(open_after(&[after(1_000_000)]), 100);
    assert_eq!(open_after(&[Outcome::Failure(RetryAfter::Never)]), 10);
}

/// Pitfall 25: nobody asks while it is half-open, and it is not for ever.
#[test]
fn half_open_ends_by_itself_and_says_so_after_an_idle_hour() {
    let mut machine = machine(Settings::consecutive(1).open_for(5 * SECOND).probe_timeout(2 * SECOND));
    call(&mut machine, FAILED, 0);
    assert_eq!(machine.look(3600 * NS).state, State::HalfOpen, "a call would be a probe");
    let stuck = machine.admit(3600 * NS).unwrap();
    assert_eq!(machine.look(3602 * NS - 1).state, State::HalfOpen);
    let look = machine.look(3604 * NS);
    assert_eq!((look.state, look.retry_after), (State::Open, RetryAfter::After(3 * SECOND)));
    assert!(machine.look(3607 * NS).passes);
    machine.settle(stuck, Outcome::Success, SECOND, 3608 * NS);
    assert_eq!(machine.counted(3608 * NS).tallied.late, 1);
    assert!(call(&mut machine, Outcome::Success, 3608 * NS));
    assert_eq!(machine.look(3608 * NS).state, State::Closed);
}

#[test]
fn periods_grow_and_vary_within_their_bounds() {
    let settings = Settings::consecutive(1).open_for(10 * SECOND).growing(2.0, 35 * SECOND).jitter(0.5);
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let mut machine = Machine::new(Arc::new(settings.clone()), 0, seed);
        let mut now = 0;
        for least in [10, 20, 35, 35] {
            assert!(call(&mut machine, FAILED, now));
            let wait = wait(machine.admit(now).unwrap_err());
            assert!((least * NS..=least * NS * 3 / 2).contains(&wait), "{wait} after {least}");
            assert_eq!(
                machine.look(now).retry_after,
                RetryAfter::After(Duration::from_nanos(wait)),
                "asked again"
            );
            seen.insert(wait);
            now += wait;
        }
        assert!(call(&mut machine, Outcome::Success, now) && call(&mut machine, FAILED, now));
        assert!(wait(machine.admit(now).unwrap_err()) <= 15 * NS, "closing starts again");
    }
    assert!(seen.len() > 150, "{} different periods of 200", seen.len());
    // Neither overflows.
    let endless = Settings::consecutive(1).open_for(Duration::MAX).growing(1e300, Duration::MAX).jitter(1.0);
    let mut machine = self::machine(endless);
    call(&mut machine, FAILED, u64::MAX / 2);
    assert!(machine.admit(u64::MAX - 1).is_err());
}

#[test]
fn a_retired_breakers_calls_belong_to_nobody() {
    let mut old = machine(Settings::consecutive(1));
    let call = old.admit(0).unwrap();
    let mut next = Machine::new(Arc::new(Settings::consecutive(1)), old.retire(), 0);
    old.settle(call, FAILED, SECOND, 0);
    next.settle(call, FAILED, SECOND, 0);
    assert_eq!((next.look(0).state, next.counted(0).tallied.late), (State::Closed, 0));
    assert_eq!(old.counted(0).tallied.late, 0);
}

/// The sentences of the vectors, with every outcome remembered and nothing packed.
struct Model {
    settings: Settings,
    state: State,
    generation: u64,
    now: u64,
    /// Open: until when. Half-open: since when there are probes.
    mark: u64,
    reopened: i32,
    not_before: u64,
    probes: u32,
    successes: u32,
    run: u32,
    /// As `run`, through all states.
    row: u32,
    log: Vec<(bool, bool)>,
    opens: u64,
    late: u64,
}

/// Limits of the one window that the model has, by number of calls.
const SIZE: usize = 6;
const LEAST: usize = 4;
const SHARE: usize = 50;

fn settings(
    consecutive: Option<u32>,
    window: bool,
    slow: bool,
    probes: u32,
    successes: u32,
    timeout: bool,
) -> Settings {
    let mut last = Window::of_calls(SIZE as u32).min_calls(LEAST as u32).failures(SHARE as u8);
    if slow {
        last = last.slow(SECOND, SHARE as u8);
    }
    let settings = match (consecutive, window) {
        (Some(n), true) => Settings::consecutive(n).or_window(last),
        (Some(n), false) => Settings::consecutive(n),
        (None, _) => Settings::window(last),
    };
    let settings =
        settings.open_for(4 * SECOND).growing(2.0, 10 * SECOND).probes(probes).successes(successes);
    settings.probe_timeout(timeout.then_some(3 * SECOND)).count_cancelled_after(2 * SECOND)
}

impl Model {
    fn new(settings: Settings) -> Self {
        Self {
            settings,
            state: State::Closed,
            generation: 0,
            now: 0,
            mark: 0,
            reopened: 0,
            not_before: 0,
            probes: 0,
            successes: 0,
            run: 0,
            row: 0,
            log: Vec::new(),
            opens: 0,
            late: 0,
        }
    }

    fn at(&mut self, now: u64) {
        self.now = self.now.max(now);
        if let (State::HalfOpen, Some(timeout)) = (self.state, self.settings.probe_timeout)
            && self.probes > 0
            && self.now >= self.mark + nanos(timeout)
        {
            self.row += 1;
            self.open(self.mark + nanos(timeout), true);
        }
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
        (self.probes, self.successes) = (0, 0);
    }

    fn open(&mut self, at: u64, again: bool) {
        self.reopened += i32::from(again);
        self.change(State::Open);
        self.opens += 1;
        let period = [4, 8, 10][usize::try_from(self.reopened.min(2)).unwrap()];
        self.mark = (at + period * NS).max(self.not_before);
    }

    fn close(&mut self) {
        self.change(State::Closed);
        (self.run, self.row, self.reopened, self.not_before) = (0, 0, 0, 0);
        self.log.clear();
    }

    fn admit(&mut self, now: u64) -> Result<u64, RetryAfter> {
        self.at(now);
        if self.state == State::Open && self.now >= self.mark {
            self.change(State::HalfOpen);
            self.mark = self.now;
        }
        let room =
            self.probes < self.settings.probes && self.probes + self.successes < self.settings.successes;
        match self.state {
            State::Closed | State::Disabled => Ok(self.generation),
            State::HalfOpen if room => {
                if self.probes == 0 {
                    self.mark = self.now;
                }
                self.probes += 1;
                Ok(self.generation)
            }
            State::Open => Err(RetryAfter::After(Duration::from_nanos(self.mark - self.now))),
            State::ForcedOpen => Err(RetryAfter::Never),
            State::HalfOpen => Err(RetryAfter::Unknown),
        }
    }

    fn settle(&mut self, generation: u64, outcome: Outcome, took: Duration, now: u64) {
        self.at(now);
        let long = outcome == Outcome::Cancelled && took >= 2 * SECOND;
        let failed = long || matches!(outcome, Outcome::Failure(_));
        let slow = self.settings.slow().is_some_and(|slow| took > slow);
        if generation != self.generation {
            self.late += u64::from(failed || outcome == Outcome::Success);
            return;
        }
        if self.state == State::HalfOpen {
            self.probes -= 1;
        }
        if self.state == State::Disabled || !(failed || outcome == Outcome::Success) {
            return;
        }
        if let Outcome::Failure(RetryAfter::After(wait)) = outcome {
            self.not_before = self.not_before.max(self.now + nanos(wait));
        }
        self.row = if failed { self.row + 1 } else { 0 };
        if self.state == State::HalfOpen {
            if failed || slow {
                self.open(self.now, true);
            } else {
                self.successes += 1;
                if self.successes == self.settings.successes {
                    self.close();
                }
            }
            return;
        }
        self.run = if failed { self.run + 1 } else { 0 };
        self.log.push((failed, slow));
        let Counts { calls, failures, slow } = self.counts();
        let too_many = |n| calls >= LEAST as u64 && n * 100 >= SHARE as u64 * calls;
        let window = !self.settings.windows.is_empty()
            && (too_many(failures) || self.settings.slow().is_some() && too_many(slow));
        if window || self.settings.consecutive.is_some_and(|most| self.run >= most) {
            self.open(self.now, false);
        }
    }

    /// The last outcomes.
    fn counts(&self) -> Counts {
        let last = &self.log[self.log.len().saturating_sub(SIZE)..];
        let of = |pick: fn(&(bool, bool)) -> bool| last.iter().filter(|outcome| pick(outcome)).count() as u64;
        Counts { calls: of(|_| true), failures: of(|it| it.0), slow: of(|it| it.1) }
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Start,
    End(prop::sample::Index, Outcome),
    ForceOpen,
    Disable,
    Reset,
}

fn ops() -> impl Strategy<Value = Vec<(i64, Op)>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Success),
        5 => Just(FAILED),
        1 => (0..20_u32).prop_map(|seconds| Outcome::Failure(RetryAfter::After(seconds * SECOND))),
        1 => Just(Outcome::Ignored),
        2 => Just(Outcome::Cancelled),
    ];
    let op = prop_oneof![
        30 => Just(Op::Start),
        30 => (any::<prop::sample::Index>(), outcome).prop_map(|(which, outcome)| Op::End(which, outcome)),
        1 => Just(Op::ForceOpen),
        1 => Just(Op::Disable),
        2 => Just(Op::Reset),
    ];
    // Now and then time makes a leap, or goes back.
    let gap = prop_oneof![20 => 0..500_i64, 3 => 1_000..6_000_i64, 1 => -3_000..0_i64];
    prop::collection::vec((gap, op), 1..150)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn the_machine_agrees_with_the_model(
        (consecutive, window, slow, probes, successes, timeout) in
            (prop::option::of(1..4_u32), any::<bool>(), any::<bool>(), 1..4_u32, 1..4_u32, any::<bool>()),
        ops in ops(),
    ) {
        let settings = settings(consecutive, window, slow, probes, successes, timeout);
        let (mut machine, mut model) = (machine(settings.clone()), Model::new(settings));
        let mut calls = Vec::new();
        let mut clock = 0_i64;
        for (gap, op) in ops {
            clock = (clock + gap).max(0);
            let now = u64::try_from(clock).unwrap() * 1_000_000;
            match op {
                Op::Start => match (machine.admit(now), model.admit(now)) {
                    (Ok(word), Ok(generation)) => calls.push((word, generation, now)),
                    (Err(told), Err(expected)) => prop_assert_eq!(told, expected),
                    (told, expected) => prop_assert!(false, "{:?} instead of {:?}", told, expected),
                },
                Op::End(which, outcome) if !calls.is_empty() => {
                    let (word, generation, began) = calls.swap_remove(which.index(calls.len()));
                    let took = Duration::from_nanos(now.saturating_sub(began));
                    // As the circuit does it.
                    let nothing_to_write = word == machine.word() && !word.counts_successes();
                    let is_done = outcome == Outcome::Success && (nothing_to_write || machine.succeed(word));
                    if !is_done {
                        machine.settle(word, outcome, took, now);
                    }
                    // A success for which no clock is read tells no time.
                    model.settle(generation, outcome, took, if is_done { model.now } else { now });
                }
                Op::End(..) => {}
                Op::ForceOpen => {
                    machine.force_open();
                    if model.state != State::ForcedOpen {
                        model.change(State::ForcedOpen);
                    }
                }
                Op::Disable => {
                    machine.disable();
                    if model.state != State::Disabled {
                        model.change(State::Disabled);
                    }
                }
                Op::Reset => {
                    machine.reset();
                    model.close();
                    (model.opens, model.late) = (0, 0);
                }
            }
            let (word, tallied) = (machine.word(), machine.tallied);
            prop_assert_eq!((word.state(), machine.generation), (model.state, model.generation + 7));
            prop_assert_eq!((word.probes(), word.successes()), (model.probes, model.successes));
            prop_assert_eq!((tallied.opens, tallied.late), (model.opens, model.late));
            let in_a_row = if consecutive.is_some() { model.row } else { 0 };
            prop_assert_eq!(machine.counted(model.now).in_a_row, in_a_row);
            if model.state == State::Closed && !model.settings.windows.is_empty() {
                prop_assert_eq!(machine.counted(model.now).counts, model.counts());
            }
            prop_assert!(word.probes() <= probes && word.probes() + word.successes() <= successes.max(word.successes()));
        }
    }
}
