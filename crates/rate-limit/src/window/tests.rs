use proptest::prelude::*;

use super::*;
use crate::policy::Policy;

fn policy(window: Window) -> Policy {
    window.policy(|| Duration::from_nanos(25))
}

#[test]
fn windows_begin_where_they_are_told_to() {
    let ten = Window::fixed(1, Duration::from_nanos(10));
    for (window, full_after) in
        [(ten, 10), (ten.anchored(Duration::from_nanos(13)), 3), (ten.on_the_clock(), 5)]
    {
        let policy = policy(window);
        let state = policy.take([0, 0], 0, 1).unwrap();
        assert_eq!(policy.take(state, 0, 1), Err(Denied::Wait(full_after)), "{window:?}");
        assert!(policy.take(state, full_after, 1).is_ok());
        assert!(policy.is_fresh(state, full_after) && !policy.is_fresh(state, full_after - 1));
    }
}

#[test]
fn a_clock_that_goes_back_wins_nothing() {
    for window in [Window::fixed(2, Duration::from_nanos(10)), Window::sliding(2, Duration::from_nanos(10))] {
        let policy = policy(window);
        let state = policy.take([0, 0], 25, 2).unwrap();
        assert!(policy.take(state, 3, 1).is_err());
        assert_eq!(policy.level(state, 3).remaining, 0);
    }
}

#[test]
fn the_last_window_fades() {
    let policy = policy(Window::sliding(10, Duration::from_nanos(100)));
    let state = policy.take([0, 0], 0, 10).unwrap();
    assert_eq!(policy.take(state, 0, 1), Err(Denied::Wait(110)));
    assert_eq!(policy.level(state, 150), Level { available: 5, remaining: 5, reset_after: 50 });
    assert!(policy.take(state, 109, 1).is_err());
    assert!(policy.take(state, 150, 5).is_ok());
    assert_eq!(policy.take(state, 150, 6), Err(Denied::Wait(10)));
    assert!(policy.is_fresh(state, 200));
}

/// The definition, in rational numbers; a window later everything is as the counters say.
fn admits(limit: u64, window: u64, last: u64, count: u64, elapsed: u64, n: u64) -> bool {
    u128::from(last) * u128::from(window - elapsed) + u128::from(count + n) * u128::from(window)
        <= u128::from(limit) * u128::from(window)
}

proptest! {
    #[test]
    fn sliding_agrees_with_the_definition(
        limit in 1..50_u64, window in 1..1_000_u64,
        calls in prop::collection::vec((0..400_u64, 1..60_u64), 1..80),
    ) {
        let policy = policy(Window::sliding(limit, Duration::from_nanos(window)));
        let (mut state, mut now) = ([0, 0], 0);
        let (mut number, mut last, mut count) = (0, 0, 0);
        for (gap, n) in calls {
            now += gap;
            (last, count) = match now / window - number {
                0 => (last, count),
                1 => (count, 0),
                _ => (0, 0),
            };
            number = now / window;
            let expected = n <= limit && admits(limit, window, last, count, now % window, n);
            match policy.take(state, now, n) {
                Ok(next) => {
                    prop_assert!(expected);
                    (state, count) = (next, count + n);
                }
                Err(Denied::Never) => prop_assert!(n > limit),
                Err(Denied::Wait(wait)) => {
                    prop_assert!(!expected && wait > 0);
                    prop_assert!(policy.take(state, now + wait, n).is_ok(), "after the wait it passes");
                    prop_assert!(policy.take(state, now + wait - 1, n).is_err(), "and not before");
                }
            }
        }
    }

    #[test]
    fn nothing_panics(
        limit in 1..=u64::from(u32::MAX), window in 1..=u64::MAX, sliding: bool,
        ops in prop::collection::vec((any::<u64>(), any::<u64>(), 0..3_u8), 1..20),
    ) {
        let window = Duration::from_nanos(window);
        let policy = policy(if sliding { Window::sliding(limit, window) } else { Window::fixed(limit, window) });
        let mut state = [0, 0];
        for (now, n, op) in ops {
            state = match op {
                0 => policy.take(state, now, n).unwrap_or(state),
                1 => policy.charge(state, now, n),
                _ => policy.refund(state, now, n, now),
            };
            let level = policy.level(state, now);
            prop_assert!(level.available <= i64::try_from(limit).unwrap());
        }
    }
}
