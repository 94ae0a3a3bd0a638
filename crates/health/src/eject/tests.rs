use proptest::prelude::*;
use std::time::Duration;

use super::*;

const S: u64 = 1_000_000_000;

/// A roster with its members.
struct Pool {
    roster: Roster,
    seats: Vec<Seat>,
}

impl Pool {
    fn new(ejection: &Ejection, members: usize) -> Self {
        let roster = Roster::new(ejection);
        Self { seats: (0..members).map(|_| roster.join()).collect(), roster }
    }
}

proptest! {
    /// Never more are out than the cap allows, nobody is out for longer than the longest, and whoever is ejected is out
    /// for a base longer than the last time.
    #[test]
    fn the_cap_and_the_times_hold(
        steps in prop::collection::vec((0_usize..10, 0_u64..60), 1..100),
        at_most in 0_u8..=100,
        members in 1_usize..=10,
        forgets in any::<bool>(),
    ) {
        let forget_after = forgets.then_some(Duration::from_secs(120));
        let ejection = Ejection::after(5)
            .at_most(at_most)
            .times(Duration::from_secs(30), Duration::from_secs(100))
            .forget_after(forget_after);
        let Pool { roster, seats } = Pool::new(&ejection, members);
        let (mut now, mut refused) = (0, 0);
        let mut model = vec![(0_u64, 0_u64); members];
        for (place, later) in steps {
            now += later * S;
            let place = place % members;
            if seats[place].until(now).is_some() {
                continue;
            }
            let out = model.iter().filter(|(_, until)| now < *until).count();
            let allowed = 100 * (out + 1) <= usize::from(at_most) * members;
            match roster.eject(&seats[place], now) {
                Some(until) => {
                    prop_assert!(allowed);
                    let (times, last) = model[place];
                    let times = if forgets && now >= last + 120 * S { 1 } else { times + 1 };
                    prop_assert_eq!(until, now + (30 * S * times).min(100 * S));
                    model[place] = (times, until);
                }
                None => {
                    prop_assert!(!allowed);
                    refused += 1;
                }
            }
            prop_assert_eq!(roster.overflow(), refused);
        }
    }
}

#[test]
fn fewer_than_half_are_up() {
    let Pool { roster, .. } = Pool::new(&Ejection::after(1).panic_below(50), 10);
    assert_eq!([0, 4, 5, 10].map(|up| roster.panics(up)), [true, true, false, false]);
    assert!(!Pool::new(&Ejection::after(1).panic_below(0), 1).roster.panics(0));
}

/// However many come, each has a word of its own, and all are looked at in the order in which they came.
#[test]
fn everybody_has_a_seat() {
    let Pool { roster, seats } = Pool::new(&Ejection::after(1).at_most(100), 10_000);
    let mut words = roster.words(10_000);
    assert!(seats.iter().all(|seat| words.next().is_some_and(|word| std::ptr::eq(word, seat.word()))));
    assert!(words.next().is_none());
    for place in [0, 1, 2, 6, 7, 9_999] {
        assert!(roster.eject(&seats[place], S).is_some() && seats[place].until(S).is_some());
    }
    assert_eq!(seats.iter().filter(|seat| seat.until(S).is_some()).count(), 6);
}

/// The longest times, and more ejections than can be remembered.
#[test]
fn any_time_will_do() {
    let ejection = Ejection::after(1).at_most(100).times(Duration::from_nanos(1), Duration::MAX);
    let Pool { roster, seats } = Pool::new(&ejection.forget_after(None), 1);
    let mut now = 0;
    for _ in 0..3 {
        let until = roster.eject(&seats[0], now).unwrap();
        assert_eq!(until, now + 1_000_000, "the next whole millisecond");
        now = until;
    }
    seats[0].word().store(Word::new(MOST_TIMES, now).0, Relaxed);
    let until = roster.eject(&seats[0], now).unwrap();
    assert_eq!((until - now, Word(seats[0].word().load(Relaxed)).times()), (2_000_000, MOST_TIMES));
    let Pool { roster, seats } =
        Pool::new(&Ejection::after(1).at_most(100).times(Duration::MAX, Duration::MAX), 1);
    assert_eq!(roster.eject(&seats[0], S), Some(LATEST * MILLISECOND));
}
