//! Every interleaving of a few threads on one circuit.

use loom::{
    sync::{Arc as LoomArc, atomic::AtomicUsize},
    thread,
};

use super::*;
use crate::{
    Permit,
    permit::{Admitted, Armed, Call},
    settings::Window,
    state::State,
};
use bartizan_core::{Class, RetryAfter};

const SECOND: Duration = Duration::from_secs(1);
const FAILED: Outcome = Outcome::Failure(RetryAfter::Unknown);

/// A circuit of its own: the pool would outlive the model.
fn circuit(settings: Settings) -> &'static Circuit {
    Box::leak(Box::new(Circuit::first(Arc::new(settings), 1)))
}

/// One that was opened by a failure, and the time from which on it is half-open.
fn opened(settings: Settings) -> (&'static Circuit, Instant) {
    let circuit = circuit(settings.open_for(SECOND));
    let now = Instant::now();
    let Ok(pass) = circuit.admit(|| now) else { panic!("it is closed") };
    pass.settle(FAILED, Started::UNKNOWN, || now);
    (circuit, now + SECOND)
}

fn word(circuit: &Circuit) -> Word {
    Word(circuit.word.load(Relaxed))
}

/// Three callers at a half-open circuit for two probes, one of whose probes is dropped: never more than two are under
/// way, and it closes once. At most three preemptions: with all that there can be this takes hours.
#[test]
fn probes_are_never_above_the_cap() {
    let mut models = loom::model::Builder::new();
    models.preemption_bound = Some(3);
    models.check(|| {
        let (circuit, then) = opened(Settings::consecutive(1).probes(2).successes(2));
        let under_way = LoomArc::new(AtomicUsize::new(0));
        let call = move |under_way: &AtomicUsize, outcome| {
            let Ok(pass) = circuit.admit(|| then) else { return 0 };
            assert!(under_way.fetch_add(1, Relaxed) < 2);
            under_way.fetch_sub(1, Relaxed);
            pass.settle(outcome, Started::UNKNOWN, || then);
            1
        };
        let others: Vec<_> = [Outcome::Success, Outcome::Cancelled]
            .map(|outcome| {
                let under_way = under_way.clone();
                thread::spawn(move || call(&under_way, outcome))
            })
            .into();
        let mut passed = call(&under_way, Outcome::Success);
        passed += others.into_iter().map(|other| other.join().unwrap()).sum::<i32>();
        let word = word(circuit);
        assert_eq!(word.probes(), 0, "every probe was given back");
        assert!((1..=3).contains(&passed));
        // Closed, open, half-open, and closed again at most.
        assert!(matches!(word.state(), State::HalfOpen | State::Closed));
        let generations = if word.state() == State::Closed { 3 } else { 2 };
        assert_eq!(word.age(generations), 0);
    });
}

/// Three failures at once of calls that the closed circuit let pass: it opens once, and the two others are late.
#[test]
fn a_generation_ends_once() {
    loom::model(|| {
        let circuit = circuit(Settings::consecutive(1));
        let fail = move || {
            let Ok(pass) = circuit.admit(Instant::now) else { return 0 };
            pass.settle(FAILED, Started::UNKNOWN, Instant::now);
            1
        };
        let others = [thread::spawn(fail), thread::spawn(fail)];
        let passed = fail() + others.map(|other| other.join().unwrap()).iter().sum::<u64>();
        let (word, tallied) = (word(circuit), circuit.with(Instant::now(), Machine::counted).tallied);
        assert_eq!((word.state(), word.age(1)), (State::Open, 0));
        assert_eq!((tallied.opens, tallied.late, circuit.refused()), (1, passed - 1, 3 - passed));
    });
}

/// Probes that end in every way there is: each is settled once.
#[test]
fn every_permit_is_settled_once() {
    loom::model(|| {
        let (circuit, then) = opened(Settings::consecutive(1).probes(3).successes(3));
        let [a, b, c] = [(); 3].map(|()| {
            let Ok(pass) = circuit.admit(|| then) else { panic!("there is room") };
            Permit::from(Admitted { call: Call { pass, started: Started::UNKNOWN }, owner: None })
        });
        let finishes = thread::spawn(move || a.settle(Class::Success));
        let panics = thread::spawn(move || {
            let mut permit = b;
            // What a panic drops. Loom's threads share the flag that says that one of them panics.
            drop(Armed(&mut permit));
        });
        drop(c);
        finishes.join().unwrap();
        panics.join().unwrap();
        let counted = circuit.with(then, Machine::counted);
        assert_eq!((word(circuit).state(), counted.probes), (State::Open, 0));
        assert_eq!(counted.tallied.opens, 2);
        assert!(counted.tallied.late <= 1, "a success after the panic is late");
    });
}

/// A result lands while somebody resets: it counts in the generation that is over, or not at all.
#[test]
fn a_late_result_changes_nothing() {
    loom::model(|| {
        let circuit = circuit(Settings::consecutive(1));
        let Ok(pass) = circuit.admit(Instant::now) else { panic!("it is closed") };
        let late = thread::spawn(move || pass.settle(FAILED, Started::UNKNOWN, Instant::now));
        circuit.with(Instant::now(), |machine, _| machine.reset());
        late.join().unwrap();
        let counted = circuit.with(Instant::now(), Machine::counted);
        assert_eq!((word(circuit).state(), counted.in_a_row, counted.tallied.opens), (State::Closed, 0, 0));
        assert!(counted.tallied.late <= 1);
    });
}

/// A success meets a failure: the run of failures is empty or one, as their order was, and never lost.
#[test]
fn a_success_that_writes_nothing_hides_no_failure() {
    loom::model(|| {
        let circuit = circuit(Settings::consecutive(2));
        let call = move |outcome| {
            let Ok(pass) = circuit.admit(Instant::now) else { panic!("one failure is not enough") };
            pass.settle(outcome, Started::UNKNOWN, Instant::now);
        };
        let other = thread::spawn(move || call(Outcome::Success));
        call(FAILED);
        other.join().unwrap();
        let run = circuit.with(Instant::now(), Machine::counted).in_a_row;
        assert_eq!(word(circuit).counts_successes(), run > 0);
        call(FAILED);
        assert_eq!(word(circuit).state() == State::Open, run == 1);
    });
}

/// The same in a window that was full of successes, of which none is written.
#[test]
fn a_success_that_a_full_window_needs_not_hides_no_failure() {
    loom::model(|| {
        let circuit = circuit(Settings::window(Window::of_calls(2).failures(100)));
        let call = move |outcome| {
            let Ok(pass) = circuit.admit(Instant::now) else { panic!("one failure is not enough") };
            pass.settle(outcome, Started::UNKNOWN, Instant::now);
        };
        call(Outcome::Success);
        call(Outcome::Success);
        assert!(!word(circuit).counts_successes());
        let other = thread::spawn(move || call(Outcome::Success));
        call(FAILED);
        other.join().unwrap();
        let counted = || circuit.with(Instant::now(), Machine::counted).counts;
        assert!(word(circuit).counts_successes());
        assert_eq!((counted().calls, counted().failures), (2, 1));
        call(FAILED);
        // It is open if the success came first; and if it came last it is not there any more.
        let open = word(circuit).state() == State::Open;
        assert_eq!(counted().failures, if open { 2 } else { 1 });
    });
}

/// Who is refused without the lock is told the time of the period that the word is of: of a first one that is nearly over,
/// or of a second one that begins meanwhile.
#[test]
fn a_refusal_tells_the_time_of_one_period() {
    loom::model(|| {
        let (circuit, then) = opened(Settings::consecutive(1));
        let early = SECOND / 4;
        let asks = thread::spawn(move || {
            let refused = circuit.admit(|| then - early).err().expect("the probe is out, or it is open");
            (RetryAfter::from(refused), word(circuit))
        });
        let Ok(probe) = circuit.admit(|| then) else { panic!("its time is over") };
        probe.settle(FAILED, Started::UNKNOWN, || then);
        match asks.join().unwrap() {
            (RetryAfter::After(wait), _) if wait == early => {}
            (RetryAfter::After(wait), word) if wait == early + SECOND => assert_eq!(word.age(3), 0),
            // Who has the lock knows that it is later.
            (RetryAfter::After(wait), _) if wait == SECOND => {}
            (told, _) => assert_eq!(told, RetryAfter::Unknown),
        }
        assert_eq!(circuit.refused(), 1);
    });
}

/// The breaker goes while a call is under way, and the circuit serves the next one.
#[test]
fn a_call_of_a_breaker_that_is_gone_meets_nobody() {
    loom::model(|| {
        let circuit = circuit(Settings::consecutive(1));
        let Ok(pass) = circuit.admit(Instant::now) else { panic!("it is closed") };
        let straggler = thread::spawn(move || pass.settle(FAILED, Started::UNKNOWN, Instant::now));
        let first = circuit.end();
        circuit.begin(Machine::new(Arc::new(Settings::consecutive(1)), first, 1));
        straggler.join().unwrap();
        let tallied = circuit.with(Instant::now(), Machine::counted).tallied;
        assert_eq!((word(circuit).state(), tallied.opens, tallied.late), (State::Closed, 0, 0));
    });
}
