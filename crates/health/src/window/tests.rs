use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;

/// Ten seconds, and a share of the failures among at least ten outcomes.
fn window() -> Window {
    let passive = Passive::new()
        .window(Duration::from_secs(10))
        .min_requests(10)
        .degraded(10)
        .degraded_exit(5)
        .unhealthy(50)
        .unhealthy_exit(30);
    Window::new(&passive)
}

/// The same with every outcome remembered.
struct Model {
    rule: Rule,
    width: u64,
    outcomes: Vec<(u64, bool)>,
    triggers: Triggers,
}

impl Model {
    fn of(window: &Window) -> Self {
        Self { rule: window.rule, width: window.width, outcomes: Vec::new(), triggers: 0 }
    }

    fn age(&mut self, now: u64) {
        let bucket = now / self.width;
        self.outcomes.retain(|(at, _)| at / self.width + BUCKETS > bucket);
        if self.outcomes.is_empty() {
            self.triggers = 0;
        }
    }

    fn counts(&self) -> Counts {
        let failures = self.outcomes.iter().filter(|(_, failed)| *failed).count();
        Counts { total: self.outcomes.len() as u64, failures: failures as u64 }
    }

    fn record(&mut self, failed: bool, now: u64) {
        self.age(now);
        self.outcomes.push((now, failed));
        self.triggers = self.rule.judge(self.triggers, self.counts());
    }
}

proptest! {
    #[test]
    fn counts_and_judges_as_if_it_remembered_all(
        steps in prop::collection::vec((0_u64..3_000, 0_u8..20, 0_u8..100), 1..60),
        share in 0_u8..100,
    ) {
        let window = window();
        let mut model = Model::of(&window);
        let mut now = 0;
        for (later, n, what) in steps {
            now += later * MS * if what == 99 { 10 } else { 1 };
            if what == 98 {
                window.reset();
                (model.outcomes, model.triggers) = (Vec::new(), 0);
            }
            for i in 0..n {
                let failed = i * 5 < what && what < share;
                let before = { model.age(now); verdict(model.triggers) };
                model.record(failed, now);
                let (turn, _) = window.record(failed, now);
                let after = verdict(model.triggers);
                prop_assert_eq!(window.verdict(now), after);
                // A verdict that had lapsed before is a turn as well.
                prop_assert!(turn.is_some_and(|turn| turn.to == after) || before == after);
            }
            model.age(now);
            let look = window.look(now);
            prop_assert_eq!((look.counts, look.verdict), (model.counts(), verdict(model.triggers)));
        }
    }
}

#[test]
fn an_outcome_counts_for_nine_tenths_of_the_window_and_no_longer_than_it() {
    for begin in [0, 1, 624 * MS, 625 * MS, 3_333 * MS] {
        let window = window();
        window.record(true, begin);
        assert_eq!(window.look(begin + 9_000 * MS).counts.total, 1);
        assert_eq!(window.look(begin + 10_000 * MS).counts.total, 0);
    }
}

/// Whoever succeeds need not add the window up if nothing in it has failed; and what is the oldest there still has.
#[test]
fn a_success_may_complete_what_a_share_needs() {
    let passive = Passive::none().window(Duration::from_millis(1_600)).min_requests(2).unhealthy(50);
    for (at, state) in [(1_599, State::Unhealthy), (1_600, State::Healthy)] {
        let window = Window::new(&passive);
        window.record(true, 0);
        window.record(false, at * MS);
        assert_eq!(window.verdict(at * MS), state, "after {at} ms");
    }
}

/// A failure that came while the verdict was bad counts when it is good again.
#[test]
fn a_failure_is_remembered_whatever_the_verdict_was() {
    let window = window();
    let record = |at: u64, outcomes: &[bool]| {
        outcomes.iter().for_each(|failed| _ = window.record(*failed, at * MS));
        window.verdict(at * MS)
    };
    assert_eq!(record(0, &[true]), State::Healthy);
    assert_eq!(record(1_988, &[false; 12]), State::Degraded);
    assert_eq!(record(7_333, &[true, false]), State::Degraded);
    assert_eq!(record(10_000, &[false; 7]), State::Healthy, "1 of 21");
    assert_eq!(record(11_875, &[false]), State::Degraded, "1 of 10");
}

#[test]
fn a_lapse_has_its_time() {
    let window = window();
    (0..10).for_each(|_| _ = window.record(true, 5_000 * MS));
    let lapse = 15_000 * MS;
    assert_eq!(window.look(6_000 * MS).lapses, Some(lapse));
    assert_eq!((window.verdict(lapse - 1), window.verdict(lapse)), (State::Unhealthy, State::Healthy));
    let (turn, _) = window.record(false, 60_000 * MS);
    assert_eq!(turn, Some(Turn { lapsed: Some(lapse), to: State::Healthy }));
}

/// However long it was quiet, nothing of the past comes back: not even when the numbers in a word are those again.
#[test]
fn nothing_comes_back_when_numbers_do() {
    for laps in [1, 2, 3, 1_000] {
        let window = window();
        (0..10).for_each(|_| _ = window.record(true, 7 * window.width));
        let now = (7 + laps * 2 * HALF) * window.width;
        assert_eq!(window.look(now).counts, Counts::NONE, "{laps}");
        assert_eq!(window.verdict(now), State::Healthy);
        window.record(false, now);
        assert_eq!(window.look(now).counts, Counts { total: 1, failures: 0 });
        assert_eq!(window.verdict(now), State::Healthy);
    }
}

#[test]
fn a_bucket_that_is_full_keeps_its_share() {
    let window = window();
    let most = COUNT;
    for n in 0..most + 9 {
        window.record(n % 4 == 0, 0);
    }
    let Counts { total, failures } = window.look(0).counts;
    assert!((most / 2..most).contains(&total), "{total}");
    assert!((total / 4..=total / 4 + 3).contains(&failures), "{failures} of {total}");
}

#[test]
fn an_older_time_counts_where_the_others_do() {
    let window = window();
    window.record(false, 5_000 * MS);
    window.record(true, 0);
    assert_eq!(window.look(14_374 * MS).counts, Counts { total: 2, failures: 1 });
    assert_eq!(window.look(0).counts, Counts { total: 2, failures: 1 });
}

#[test]
fn threads_lose_nothing() {
    let window = window();
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let window = &window;
            scope.spawn(move || {
                for n in 0..10_000 {
                    window.record(n % 2 == 0, (n + thread) * MS / 2);
                }
            });
        }
    });
    assert_eq!(window.look(5_001 * MS).counts, Counts { total: 40_000, failures: 20_000 });
}
