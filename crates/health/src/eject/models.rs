//! Every interleaving of those who put members out, and of one that lets them in again.

use std::time::Duration;

use loom::{sync::Arc, thread};

use super::*;

const S: u64 = 1_000_000_000;

/// A second each time, and a cap of `cap` of `members`.
fn roster(members: u64, cap: u64) -> Arc<Roster> {
    let second = Duration::from_secs(1);
    let percent = u8::try_from((100 * cap).div_ceil(members)).unwrap();
    let roster = Arc::new(Roster::new(&Ejection::after(1).times(second, second).at_most(percent)));
    (0..members).for_each(|_| _ = roster.join());
    roster
}

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

fn ejects(roster: &Arc<Roster>, place: usize, now: u64) -> thread::JoinHandle<bool> {
    let roster = roster.clone();
    thread::spawn(move || roster.eject(place, now).is_some())
}

fn how_many(threads: impl IntoIterator<Item = thread::JoinHandle<bool>>) -> u64 {
    threads.into_iter().map(|thread| u64::from(thread.join().unwrap())).sum()
}

/// No ticket is lost, none is made up, and who is out has one.
fn tickets_are_where_they_belong(roster: &Roster, now: u64) {
    let members = roster.members.load(Relaxed) as usize;
    let words: Vec<_> = (0..members).map(|place| Word(roster.word(place).load(Relaxed))).collect();
    let held = words.iter().filter(|word| word.has_ticket()).count() as u64;
    assert_eq!(held, roster.tickets.load(Relaxed));
    assert!(100 * held <= roster.at_most * members as u64);
    assert!(words.iter().all(|word| word.0 & CLAIMED == 0 && (word.until() <= now || word.has_ticket())));
}

/// Of three who go at once as many go out as may, no fewer either.
#[test]
fn the_cap_holds_and_is_reached() {
    for cap in [1, 2] {
        model(move || {
            let roster = roster(3, cap);
            let threads = [0, 1].map(|place| ejects(&roster, place, S));
            let out = u64::from(roster.eject(2, S).is_some()) + how_many(threads);
            assert_eq!((out, roster.overflow()), (cap, 3 - cap));
            tickets_are_where_they_belong(&roster, S);
        });
    }
}

/// A ticket that is no longer needed goes to exactly one, and none is refused as long as there is one.
#[test]
fn what_is_over_makes_room() {
    for cap in [1, 2] {
        model(move || {
            let roster = roster(4, cap);
            (0..cap as usize).for_each(|place| assert!(roster.eject(place, 0).is_some()));
            let now = 2 * S;
            let threads = [2, 3].map(|place| ejects(&roster, place, now));
            let out = u64::from(roster.eject(0, now).is_some()) + how_many(threads);
            assert_eq!((out, roster.overflow()), (cap, 3 - cap));
            tickets_are_where_they_belong(&roster, now);
        });
    }
}

/// Who fails twice at once goes out once, and nobody was refused.
#[test]
fn one_member_goes_out_once() {
    model(|| {
        let roster = roster(2, 2);
        let other = ejects(&roster, 0, S);
        let mine = roster.eject(0, S).is_some();
        assert_eq!(how_many([other]) + u64::from(mine), 1);
        assert_eq!((roster.overflow(), roster.tickets.load(Relaxed)), (0, 1));
        assert!(roster.until(0, S).is_some());
    });
}

/// Whoever forgives while others are put out, the same one too.
#[test]
fn forgiven_while_it_goes_out() {
    for was_out in [false, true] {
        model(move || {
            let roster = roster(3, 1);
            if was_out {
                assert!(roster.eject(0, 0).is_some());
            }
            let now = 2 * S;
            let threads = [0, 1].map(|place| ejects(&roster, place, now));
            roster.forgive(0);
            let ejected = how_many(threads);
            tickets_are_where_they_belong(&roster, now);
            let out = (0..3).filter(|place| roster.until(*place, now).is_some()).count() as u64;
            assert!(out <= ejected && ejected <= 2);
        });
    }
}
