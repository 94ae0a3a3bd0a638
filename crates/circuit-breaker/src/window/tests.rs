use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn tally(window: &Window) -> Tally {
    Tally::new(&window.clone().failures(50).slow(Duration::from_secs(1), 50))
}

/// Every outcome by itself: when, failed, slow.
type Log = VecDeque<(u64, bool, bool)>;

fn count<'a>(log: impl Iterator<Item = &'a (u64, bool, bool)>) -> Counts {
    let mut counts = Counts::default();
    log.for_each(|(_, failed, slow)| counts.add(Counts::one(*failed, *slow)));
    counts
}

fn took(slow: bool) -> Duration {
    Duration::from_secs(1) + Duration::from_nanos(slow.into())
}

proptest! {
    #[test]
    fn a_window_of_calls_holds_the_last_ones(size in 1..20_u32, outcomes: Vec<(bool, bool)>) {
        let mut tally = tally(&Window::of_calls(size));
        let mut log = Log::new();
        for (failed, slow) in outcomes {
            tally.push(failed, took(slow), 0);
            log.push_back((0, failed, slow));
            if log.len() > size as usize {
                log.pop_front();
            }
            prop_assert_eq!(tally.counts(0), count(log.iter()));
        }
        tally.clear();
        prop_assert_eq!(tally.counts(0), Counts::default());
    }

    /// It holds what is younger than nine tenths, and nothing that has the full age.
    #[test]
    fn a_window_of_time_holds_the_young_ones(
        millis in 1..5_000_u64,
        steps in prop::collection::vec((0..1_000_u64, any::<bool>(), any::<bool>()), 1..200),
    ) {
        let length = millis * 1_000_000;
        let mut tally = tally(&Window::of_time(Duration::from_millis(millis)));
        let (mut log, mut now) = (Log::new(), 0);
        for (gap, failed, slow) in steps {
            now += gap * length / 300;
            if gap % 3 > 0 {
                tally.push(failed, took(slow), now);
                log.push_back((now, failed, slow));
            }
            let least = count(log.iter().filter(|(at, ..)| now - at < length - length / 10));
            let most = count(log.iter().filter(|(at, ..)| now - at < length));
            let seen = tally.counts(now);
            prop_assert!(least.calls <= seen.calls && seen.calls <= most.calls, "{:?} {:?} {:?}", least, seen, most);
            prop_assert!(least.failures <= seen.failures && seen.failures <= most.failures);
            prop_assert!(least.slow <= seen.slow && seen.slow <= most.slow);
        }
    }
}

#[test]
fn shares_are_reached_exactly() {
    let window = Window::of_calls(10).min_calls(4).failures(50);
    let trips = |failures, successes| {
        let mut tally = Tally::new(&window);
        for n in 0..failures + successes {
            tally.push(n < failures, Duration::ZERO, 0);
        }
        tally.trips()
    };
    assert!(trips(2, 2) && trips(4, 0) && trips(5, 5));
    assert!(!trips(3, 0) && !trips(1, 3) && !trips(2, 3) && !trips(4, 5));
}

/// Time goes on a thousand windows, and back.
#[test]
fn an_idle_window_is_empty_and_time_does_not_go_back() {
    let mut tally = tally(&Window::of_time(Duration::from_secs(1)));
    tally.push(true, Duration::ZERO, 0);
    assert_eq!(tally.counts(1_000_000_000_000).calls, 0);
    tally.push(true, Duration::ZERO, 5);
    assert_eq!(tally.counts(1_000_000_000_000).calls, 1);
    tally.push(true, Duration::ZERO, u64::MAX);
    assert_eq!(tally.counts(u64::MAX).calls, 1);
}
