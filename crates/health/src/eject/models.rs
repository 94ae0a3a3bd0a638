//! Every interleaving of those who put members out, and of one that lets them in again.

use std::time::Duration;

use loom::{sync::Arc, thread};

use super::*;

const S: u64 = 1_000_000_000;

struct Pool {
    roster: Roster,
    seats: Vec<Seat>,
}

impl Pool {
    /// A second each time, and a cap of `cap` of `members`.
    fn new(members: u64, cap: u64) -> Arc<Self> {
        let second = Duration::from_secs(1);
        let percent = u8::try_from((100 * cap).div_ceil(members)).unwrap();
        let roster = Roster::new(&Ejection::after(1).times(second, second).at_most(percent));
        Arc::new(Self { seats: (0..members).map(|_| roster.join()).collect(), roster })
    }

    fn eject(&self, place: usize, now: u64) -> bool {
        self.roster.eject(&self.seats[place], now).is_some()
    }

    fn is_out(&self, place: usize, now: u64) -> bool {
        self.seats[place].until(now).is_some()
    }
}

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

fn ejects(pool: &Arc<Pool>, place: usize, now: u64) -> thread::JoinHandle<bool> {
    let pool = pool.clone();
    thread::spawn(move || pool.eject(place, now))
}

fn how_many(threads: impl IntoIterator<Item = thread::JoinHandle<bool>>) -> u64 {
    threads.into_iter().map(|thread| u64::from(thread.join().unwrap())).sum()
}

/// No ticket is lost, none is made up, and who is out has one.
fn tickets_are_where_they_belong(Pool { roster, seats }: &Pool, now: u64) {
    let words: Vec<_> = seats.iter().map(|seat| Word(seat.word().load(Relaxed))).collect();
    let held = words.iter().filter(|word| word.has_ticket()).count() as u64;
    assert_eq!(held, roster.tickets.load(Relaxed));
    assert!(100 * held <= roster.at_most * seats.len() as u64);
    assert!(words.iter().all(|word| word.0 & CLAIMED == 0 && (word.until() <= now || word.has_ticket())));
}

/// Of three who go at once as many go out as may, no fewer either.
#[test]
fn the_cap_holds_and_is_reached() {
    for cap in [1, 2] {
        model(move || {
            let pool = Pool::new(3, cap);
            let threads = [0, 1].map(|place| ejects(&pool, place, S));
            let out = u64::from(pool.eject(2, S)) + how_many(threads);
            assert_eq!((out, pool.roster.overflow()), (cap, 3 - cap));
            tickets_are_where_they_belong(&pool, S);
        });
    }
}

/// A ticket that is no longer needed goes to exactly one, and none is refused as long as there is one.
#[test]
fn what_is_over_makes_room() {
    for cap in [1, 2] {
        model(move || {
            let pool = Pool::new(4, cap);
            (0..cap as usize).for_each(|place| assert!(pool.eject(place, 0)));
            let now = 2 * S;
            let threads = [2, 3].map(|place| ejects(&pool, place, now));
            let out = u64::from(pool.eject(0, now)) + how_many(threads);
            assert_eq!((out, pool.roster.overflow()), (cap, 3 - cap));
            tickets_are_where_they_belong(&pool, now);
        });
    }
}

/// Who fails twice at once goes out once, and nobody was refused.
#[test]
fn one_member_goes_out_once() {
    model(|| {
        let pool = Pool::new(2, 2);
        let other = ejects(&pool, 0, S);
        let mine = pool.eject(0, S);
        assert_eq!(how_many([other]) + u64::from(mine), 1);
        assert_eq!((pool.roster.overflow(), pool.roster.tickets.load(Relaxed)), (0, 1));
        assert!(pool.is_out(0, S));
    });
}

/// Whoever forgives while others are put out, the same one too.
#[test]
fn forgiven_while_it_goes_out() {
    for was_out in [false, true] {
        model(move || {
            let pool = Pool::new(3, 1);
            if was_out {
                assert!(pool.eject(0, 0));
            }
            let now = 2 * S;
            let threads = [0, 1].map(|place| ejects(&pool, place, now));
            pool.roster.forgive(&pool.seats[0]);
            let ejected = how_many(threads);
            tickets_are_where_they_belong(&pool, now);
            let out = (0..3).filter(|place| pool.is_out(*place, now)).count() as u64;
            assert!(out <= ejected && ejected <= 2);
        });
    }
}
