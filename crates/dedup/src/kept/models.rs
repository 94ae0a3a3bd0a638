//! Every interleaving of one who changes what is kept and others who look without the ledger.

use std::sync::Arc;

use loom::{model::Builder, thread};

use super::*;

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// All at home in the same place.
fn hashed(key: u64) -> Hashed<u64> {
    Hashed { hash: 7, key }
}

fn find(kept: &Kept<u64, u64>, key: u64) -> Option<u64> {
    let look = |value: &u64, asked: &mut Asked| {
        asked.hit();
        *value
    };
    kept.look(&hashed(key), look)
}

/// What is moved in the index, or comes into a place that another one had, is found under no key but its own.
#[test]
fn nobody_finds_what_is_not_his() {
    model(|| {
        let kept = Arc::new(Kept::new(2, 100));
        let mut ledger = Ledger::new();
        kept.insert(&mut ledger, hashed(1), 1, 1);
        kept.insert(&mut ledger, hashed(2), 2, 1);
        let looks = [2, 3].map(|key| {
            let kept = kept.clone();
            thread::spawn(move || find(&kept, key))
        });
        // The second one moves up, and the third takes the place of the first.
        kept.remove(&mut ledger, &hashed(1));
        kept.insert(&mut ledger, hashed(3), 3, 1);
        let [second, third] = looks.map(|look| look.join().unwrap());
        assert!(matches!(second, None | Some(2)), "it may be missed while it is moved");
        assert!(matches!(third, None | Some(3)));
        assert_eq!([1, 2, 3].map(|key| find(&kept, key)), [None, Some(2), Some(3)], "nothing is lost");
        let hits = [second, third].iter().flatten().count() + 2;
        assert_eq!(kept.hits(&ledger), hits as u64, "every hit is counted");
    });
}

#[test]
fn what_was_removed_is_found_by_nobody_who_looks_later() {
    model(|| {
        let kept = Arc::new(Kept::new(1, 100));
        let mut ledger = Ledger::new();
        kept.insert(&mut ledger, hashed(1), 1, 1);
        let looks = {
            let kept = kept.clone();
            thread::spawn(move || [find(&kept, 1), find(&kept, 1)])
        };
        let removed = kept.remove(&mut ledger, &hashed(1));
        assert_eq!(removed.map(|(_, value)| value), Some(1));
        assert_eq!(find(&kept, 1), None);
        let [before, after] = looks.join().unwrap();
        assert!(before.is_some() || after.is_none());
    });
}

/// The index that is read may be one that was replaced since.
#[test]
fn whoever_looks_while_it_grows_misses_at_most() {
    model(|| {
        let kept = Arc::new(Kept::new(SHELF, 100));
        let mut ledger = Ledger::new();
        for key in 1..=LEAST as u64 {
            kept.insert(&mut ledger, hashed(key), key, 1);
        }
        let looks = {
            let kept = kept.clone();
            thread::spawn(move || find(&kept, 1))
        };
        let new = LEAST as u64 + 1;
        kept.insert(&mut ledger, hashed(new), new, 1);
        kept.remove(&mut ledger, &hashed(1));
        assert!(matches!(looks.join().unwrap(), None | Some(1)));
        assert_eq!([1, 2, new].map(|key| find(&kept, key)), [None, Some(2), Some(new)]);
    });
}
