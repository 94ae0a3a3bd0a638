use proptest::prelude::*;
use std::time::Duration;

use super::*;

const MS: u64 = 1_000_000;

fn probes(unhealthy_after: u32, healthy_after: u32) -> Probes {
    let active = Active::new()
        .unhealthy_after(unhealthy_after)
        .healthy_after(healthy_after)
        .timeout(Duration::from_millis(100));
    Probes::new(&active)
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Start,
    End(bool, bool),
    Cancel(bool),
    Reset,
}

fn step() -> impl Strategy<Value = (u64, Step)> {
    let step = prop_oneof![
        6 => Just(Step::Start),
        6 => (any::<bool>(), prop::bool::weighted(0.8)).prop_map(|(good, last)| Step::End(good, last)),
        1 => any::<bool>().prop_map(Step::Cancel),
        1 => Just(Step::Reset),
    ];
    (0_u64..80, step)
}

/// The verdict over answers, as one reads it.
fn verdict(answers: &[bool], unhealthy_after: usize, healthy_after: usize) -> Option<State> {
    let mut verdict = None;
    for n in 1..=answers.len() {
        let run = |good: bool| answers[..n].iter().rev().take_while(|answer| **answer == good).count();
        if run(true) >= healthy_after || (run(true) > 0 && verdict.is_none()) {
            verdict = Some(State::Healthy);
        }
        if run(false) >= unhealthy_after {
            verdict = Some(State::Unhealthy);
        }
    }
    verdict
}

proptest! {
    #[test]
    fn the_verdict_is_that_over_all_answers(
        steps in prop::collection::vec(step(), 1..80),
        (unhealthy, healthy) in (1_u32..4, 1_u32..4),
    ) {
        let mut probes = probes(unhealthy, healthy);
        let (mut now, mut answers, mut running, mut old) = (0, Vec::new(), None, None);
        for (later, step) in steps {
            now += later * MS;
            // Looked at before time is told to pass, it says the same as after.
            let seen = probes.glance().at(now);
            if let Some((number, deadline)) = running && deadline <= now {
                answers.push(false);
                (running, old) = (None, Some(number));
            }
            prop_assert_eq!(seen, verdict(&answers, unhealthy as usize, healthy as usize));
            match step {
                Step::Start => match probes.start(now) {
                    Some(number) => {
                        prop_assert!(running.is_none());
                        running = Some((number, now + 100 * MS));
                    }
                    None => prop_assert!(running.is_some()),
                },
                Step::End(good, last) => {
                    let current = running.filter(|_| last).map(|(number, _)| number);
                    if let Some(number) = current.or(old) {
                        let counts = probes.end(number, good, now);
                        prop_assert_eq!(counts, current.is_some());
                        if counts {
                            answers.push(good);
                            (running, old) = (None, Some(number));
                        }
                    }
                }
                Step::Cancel(last) => {
                    let current = running.filter(|_| last).map(|(number, _)| number);
                    if let Some(number) = current.or(old) {
                        probes.cancel(number, now);
                        if current.is_some() {
                            (running, old) = (None, Some(number));
                        }
                    }
                }
                Step::Reset => {
                    probes.reset();
                    answers.clear();
                    old = running.take().map(|(number, _)| number).or(old);
                }
            }
            probes.pass(now);
            let glance = probes.glance();
            prop_assert_eq!(Glance::of_bits(glance.to_bits()), glance);
            prop_assert_eq!(glance.verdict, verdict(&answers, unhealthy as usize, healthy as usize));
            let failed = answers.iter().rev().take_while(|answer| !**answer).count();
            prop_assert_eq!((probes.failures() as usize, probes.is_running()), (failed, running.is_some()));
        }
    }
}

/// Pitfall 50: nobody ever has to have been healthy to be unhealthy.
#[test]
fn dead_from_the_start() {
    let mut probes = probes(3, 2);
    for n in 0..3 {
        assert_eq!(probes.glance().verdict, None);
        let number = probes.start(n).unwrap();
        assert!(probes.end(number, false, n));
    }
    assert_eq!(probes.glance().verdict, Some(State::Unhealthy));
}
