use std::mem;

use proptest::prelude::*;

use super::*;

type Both = (Kept<u64, u64>, Ledger);

fn kept(most: usize, bytes: u64) -> Both {
    (Kept::new(most, bytes), Ledger::new())
}

/// Few hashes for many keys, so that they meet.
fn hashed(key: u64, hashes: u64) -> Hashed<u64> {
    Hashed { hash: (key % hashes).wrapping_mul(0x9e37_79b9_7f4a_7c15), key }
}

#[test]
fn one_hash_for_all_is_slow_and_right() {
    let (kept, mut ledger) = kept(300, 1_000);
    for key in 0..300 {
        assert!(kept.insert(&mut ledger, hashed(key, 1), key, 1).is_empty());
    }
    for key in (0..300).step_by(3) {
        assert_eq!(kept.remove(&mut ledger, &hashed(key, 1)).map(|(_, value)| value), Some(key));
    }
    for key in 0..310 {
        let found = kept.look(&hashed(key, 1), |value, _| *value);
        assert_eq!(found, (key < 300 && key % 3 > 0).then_some(key));
    }
}

#[test]
fn a_place_is_used_again_and_what_was_made_once_suffices() {
    let (kept, mut ledger) = kept(70, 1_000);
    for key in 0..10_000 {
        kept.insert(&mut ledger, hashed(key, u64::MAX), key, 1);
    }
    assert_eq!((ledger.links.len(), ledger.entries, ledger.bytes), (70, 70, 70));
    let made: usize = kept.shelves.iter().filter_map(OnceLock::get).map(|shelf| shelf.len()).sum();
    assert_eq!(made, 70, "no place is made that nobody may have");
}

/// More room than there is memory costs nothing before it is used.
#[test]
fn room_is_made_when_it_is_needed() {
    let (kept, mut ledger) = kept(usize::MAX, u64::MAX);
    for key in 0..1_000 {
        kept.insert(&mut ledger, hashed(key, u64::MAX), key, u64::MAX / 2_000);
    }
    assert!((0..1_000).all(|key| kept.look(&hashed(key, u64::MAX), |_, _| ()).is_some()));
    assert!(kept.index().0.len() <= 4 * 1_024);
}

#[cfg(target_pointer_width = "64")]
#[test]
fn an_answer_under_a_key_of_64_bytes_takes_two_cache_lines() {
    type Key = [u64; 8];
    assert_eq!(size_of::<Place<Key, crate::entry::Entry<Key, ()>>>(), 128);
}

#[derive(Clone, Debug)]
enum Op {
    Insert { key: u64, size: u64 },
    Ask { key: u64 },
    Peek { key: u64 },
    Remove { key: u64 },
    Retain { below: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..40_u64;
    prop_oneof![
        8 => (key(), 0..12_u64).prop_map(|(key, size)| Op::Insert { key, size }),
        6 => key().prop_map(|key| Op::Ask { key }),
        1 => key().prop_map(|key| Op::Peek { key }),
        2 => key().prop_map(|key| Op::Remove { key }),
        1 => key().prop_map(|below| Op::Retain { below }),
    ]
}

/// SIEVE as it is told: a list from the oldest to the newest, and a hand. Of each: key, value, size, asked.
#[derive(Default)]
struct Model {
    list: Vec<(u64, u64, u64, bool)>,
    hand: usize,
    hits: u64,
}

impl Model {
    fn position(&self, key: u64) -> Option<usize> {
        self.list.iter().position(|it| it.0 == key)
    }

    fn remove(&mut self, at: usize) -> (u64, u64) {
        let (key, value, ..) = self.list.remove(at);
        // The hand stays where it is; what was behind it moves up.
        if at < self.hand {
            self.hand -= 1;
        }
        (key, value)
    }

    fn evict(&mut self) -> (u64, u64) {
        loop {
            let at = if self.hand < self.list.len() { self.hand } else { 0 };
            self.hand = at;
            if !mem::take(&mut self.list[at].3) {
                return self.remove(at);
            }
            self.hand = at + 1;
        }
    }

    fn insert(&mut self, key: u64, value: u64, size: u64, most: usize, bytes: u64) -> Vec<(u64, u64)> {
        let mut left: Vec<_> = self.position(key).map(|at| self.remove(at)).into_iter().collect();
        if size > bytes || most == 0 {
            left.push((key, value));
            return left;
        }
        while self.list.len() == most || self.list.iter().map(|it| it.2).sum::<u64>() + size > bytes {
            left.push(self.evict());
        }
        // A hand that came to the end begins anew, even if something has come there since.
        if self.hand == self.list.len() {
            self.hand = 0;
        }
        self.list.push((key, value, size, false));
        left
    }
}

fn plain(left: Left<u64, u64>) -> Vec<(u64, u64)> {
    left.into_iter().map(|(key, value)| (key.key, value)).collect()
}

proptest! {
    #[test]
    fn it_keeps_what_a_list_and_a_hand_keep(
        most in 0..20_usize,
        bytes in 1..60_u64,
        hashes in prop_oneof![Just(1), Just(5), Just(u64::MAX)],
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let (kept, mut ledger) = kept(most, bytes);
        let mut model = Model::default();
        for (value, op) in (0..).zip(ops) {
            match op {
                Op::Insert { key, size } => {
                    let left = kept.insert(&mut ledger, hashed(key, hashes), value, size);
                    prop_assert_eq!(plain(left), model.insert(key, value, size, most, bytes));
                }
                Op::Ask { key } => {
                    let look = |value: &u64, asked: &mut Asked| {
                        asked.hit();
                        *value
                    };
                    let found = kept.look(&hashed(key, hashes), look);
                    let at = model.position(key);
                    prop_assert_eq!(found, at.map(|at| model.list[at].1));
                    if let Some(at) = at {
                        model.list[at].3 = true;
                        model.hits += 1;
                    }
                }
                Op::Peek { key } => {
                    let changed = kept.change(&hashed(key, hashes), |value| mem::replace(value, *value + 1_000));
                    let at = model.position(key);
                    prop_assert_eq!(changed, at.map(|at| model.list[at].1));
                    if let Some(at) = at {
                        model.list[at].1 += 1_000;
                    }
                }
                Op::Remove { key } => {
                    let removed = kept.remove(&mut ledger, &hashed(key, hashes));
                    let expected = model.position(key).map(|at| model.remove(at));
                    prop_assert_eq!(removed.map(|(key, value)| (key.key, value)), expected);
                }
                Op::Retain { below } => {
                    let left = kept.retain(&mut ledger, |value| *value >= below);
                    let mut expected = Vec::new();
                    while let Some(at) = model.list.iter().position(|it| it.1 < below) {
                        expected.push(model.remove(at));
                    }
                    prop_assert_eq!(plain(left), expected);
                }
            }
            prop_assert_eq!(ledger.entries(), model.list.len());
            prop_assert_eq!(ledger.bytes(), model.list.iter().map(|it| it.2).sum::<u64>());
            prop_assert!(ledger.entries() <= most && ledger.bytes() <= bytes);
            prop_assert_eq!(kept.hits(&ledger), model.hits);
            for key in 0..40 {
                let found = kept.look(&hashed(key, hashes), |value, _| *value);
                prop_assert_eq!(found, model.position(key).map(|at| model.list[at].1));
            }
        }
    }
}
