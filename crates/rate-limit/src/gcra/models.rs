//! Every interleaving of a few threads on one cell.

use loom::{sync::Arc, thread};

use super::*;
use crate::policy::Policy;

fn take(cell: &Cell, gcra: &Gcra, now: u64, n: u64) -> u64 {
    let policy = Policy::Gcra(*gcra);
    let taken = cell.update(now, |state, now| Ok((policy.take(state, now, n)?, ())));
    if taken.is_ok() { n } else { 0 }
}

/// Three callers, one of whom reads the clock a permit later: burst + rate x time, and not one less than fits.
#[test]
fn no_interleaving_admits_too_much() {
    loom::model(|| {
        let gcra = Gcra::new(1, 10, 2).unwrap();
        let cell = Arc::new(Cell::new(&gcra).unwrap());
        let others: Vec<_> = [0, 10]
            .map(|now| {
                let cell = cell.clone();
                thread::spawn(move || take(&cell, &gcra, now, 1) + take(&cell, &gcra, now, 1))
            })
            .into();
        let mine = take(&cell, &gcra, 0, 1);
        let admitted = mine + others.into_iter().map(|other| other.join().unwrap()).sum::<u64>();
        // Until 10 there is the burst of 2 and 1 earned.
        assert!((2..=3).contains(&admitted), "{admitted}");
    });
}

/// One gives back while two take: what was given back is granted once.
#[test]
fn a_refund_is_granted_once() {
    loom::model(|| {
        let gcra = Gcra::new(1, 10, 1).unwrap();
        let cell = Arc::new(Cell::new(&gcra).unwrap());
        let policy = Policy::Gcra(gcra);
        assert_eq!(take(&cell, &gcra, 0, 1), 1);
        let refund = {
            let cell = cell.clone();
            thread::spawn(move || {
                for _ in 0..2 {
                    cell.update(0, |state, now| Ok((policy.refund(state, now, 1, 0), ()))).unwrap();
                }
            })
        };
        let other = {
            let cell = cell.clone();
            thread::spawn(move || take(&cell, &gcra, 0, 1))
        };
        let admitted = take(&cell, &gcra, 0, 1) + other.join().unwrap();
        refund.join().unwrap();
        // Two refunds of one permit: each can free the place once, and none more than there is.
        assert!(admitted <= 2, "{admitted}");
        let left = policy.level(cell.state(), 0).available;
        assert!(
            i64::try_from(admitted).unwrap() + left <= 2 && left <= 1,
            "{admitted} admitted, {left} left"
        );
    });
}
