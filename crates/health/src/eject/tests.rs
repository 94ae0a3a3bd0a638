use proptest::prelude::*;
use std::time::Duration;

use super::*;

const S: u64 = 1_000_000_000;

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
        let roster = Roster::new(&ejection);
        (0..members).for_each(|_| _ = roster.join());
        let (mut now, mut refused) = (0, 0);
        let mut model = vec![(0_u64, 0_u64); members];
        for (place, later) in steps {
            now += later * S;
            let place = place % members;
            if roster.until(place, now).is_some() {
                continue;
            }
            let out = model.iter().filter(|(_, until)| now < *until).count();
            let allowed = 100 * (out + 1) <= usize::from(at_most) * members;
            match roster.eject(place, now) {
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
    let roster = Roster::new(&Ejection::after(1).panic_below(50));
    (0..10).for_each(|_| _ = roster.join());
    assert_eq!([0, 4, 5, 10].map(|up| roster.panics(up)), [true, true, false, false]);
    let never = Roster::new(&Ejection::after(1).panic_below(0));
    never.join();
    assert!(!never.panics(0));
}
