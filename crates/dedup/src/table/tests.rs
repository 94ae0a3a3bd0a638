use std::{collections::HashMap, sync::Weak, time::Duration};

use proptest::prelude::*;

use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn table<K: Eq>(entries: usize, bytes: u64) -> Arc<Table<K, usize>> {
    Arc::new(Table::new(Replay::ttl(MINUTE).max_entries(entries).max_bytes(bytes)))
}

fn terms() -> Terms {
    Terms { ttl: MINUTE, stale: true }
}

/// A call that is not over as long as nobody says so.
fn never<T: Send + 'static>() -> impl Future<Output = Result<Recorded<T>, BoxError>> + Send {
    std::future::pending()
}

/// Asks, and lands the call if there is none yet.
fn put(table: &Arc<Table<u64, usize>>, key: u64, size: usize) {
    if let Found::Leads(flight) = table.find(Identity::new(key), never) {
        table.land(&flight, Ok(Arc::new(size)), size, terms());
    }
}

#[test]
fn as_many_entries_fit_as_there_may_be() {
    for entries in [1, 2, 3, 10, 63, 64, 100] {
        let table = table(entries, 1 << 20);
        (0..10 * entries as u64).for_each(|key| put(&table, key, 1));
        assert_eq!(table.stats().entries, entries);
    }
    // Parts that are not all as full as each other leave some room.
    let table = table(10_000, 64 << 20);
    (0..50_000).for_each(|key| put(&table, key, 1));
    let kept = table.stats().entries;
    assert!((9_000..=10_000).contains(&kept), "{kept} are kept");
}

#[test]
fn a_call_that_all_have_left_takes_no_room() {
    let table = table(1, 1);
    (0..10).for_each(|key| drop(table.find(Identity::new(key), never)));
    assert!(table.parts.iter().all(|part| lock(&part.busy.0).aloft.is_empty()));
}

#[test]
fn what_is_too_large_is_not_kept_and_drives_nothing_out() {
    let table = table(10, 1_000);
    put(&table, 1, 100);
    put(&table, 2, 1_001);
    let stats = table.stats();
    assert_eq!((stats.entries, stats.bytes), (1, 100));
}

/// Values are dropped where they may take the lock.
#[test]
fn nothing_is_dropped_under_a_lock() {
    struct Nosy(Option<Arc<Table<u64, Self>>>);

    impl Drop for Nosy {
        fn drop(&mut self) {
            if let Some(table) = self.0.take() {
                table.stats();
                let (home, key) = (Home::Holds(Weak::new()), Hashed::new(&table.hasher, 1));
                table.leave(&Flight::new(home, key, None, Box::pin(never())), false);
            }
        }
    }

    let table: Arc<Table<u64, Nosy>> = Arc::new(Table::new(Replay::ttl(MINUTE).max_entries(1)));
    let put = |key| {
        let Found::Leads(flight) = table.find(Identity::new(key).no_cache(), never) else {
            panic!("nobody asks")
        };
        table.land(&flight, Ok(Arc::new(Nosy(Some(table.clone())))), 1, terms());
    };
    put(1);
    put(1); // in its place
    put(2); // it is evicted
    table.invalidate(&2);
    put(3);
    table.clear();
    put(4);
    let Found::Leads(flight) = table.find(Identity::new(4).no_cache(), never) else { panic!("nobody asks") };
    table.leave(&flight, true);
    assert_eq!(table.stats().entries, 0);
}

/// Keys whose hashes may be the same.
#[derive(Clone, Debug)]
struct Word {
    key: u64,
    hash: u64,
}

impl PartialEq for Word {
    fn eq(&self, other: &Self) -> bool {
        COMPARED.take();
        assert!(self.key != PANICS && other.key != PANICS, "keys panic when they are compared");
        self.key == other.key
    }
}

impl Eq for Word {}

impl Hash for Word {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

const PANICS: u64 = u64::MAX;

thread_local! {
    /// Whoever is here goes when the next keys are compared.
    static COMPARED: std::cell::Cell<Option<Arc<Flight<Word, usize>>>> = const { std::cell::Cell::new(None) };
}

#[test]
fn a_call_that_is_left_while_it_is_looked_at_ends_outside_of_the_lock() {
    for asked in [2, PANICS] {
        let table = table::<Word>(1, 1);
        let word = |key| Word { key, hash: 0 };
        let Found::Leads(other) = table.find(Identity::new(word(1)), never) else { panic!("nobody asks") };
        let (done, is_done) = std::sync::mpsc::channel();
        let asks = {
            let table = table.clone();
            move || {
                COMPARED.set(Some(other));
                let asks = || drop(table.find(Identity::new(word(asked)), never));
                let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(asks)).is_err();
                done.send(panics).expect("somebody waits");
            }
        };
        std::thread::spawn(asks);
        let panics = is_done.recv_timeout(Duration::from_secs(10)).expect("it waits for itself");
        assert_eq!(panics, asked == PANICS);
        assert!(table.parts.iter().all(|part| lock(&part.busy.0).aloft.is_empty()));
    }
}

/// A key that looks at the table when it ends.
#[test]
fn keys_are_dropped_where_no_lock_is_held() {
    type Known = Arc<Mutex<Option<Arc<Table<Nosy, usize>>>>>;
    #[derive(Clone)]
    struct Nosy(Known);

    impl PartialEq for Nosy {
        fn eq(&self, _: &Self) -> bool {
            true
        }
    }

    impl Eq for Nosy {}

    impl Hash for Nosy {
        fn hash<H: std::hash::Hasher>(&self, _: &mut H) {}
    }

    impl Drop for Nosy {
        fn drop(&mut self) {
            let known = lock(&self.0).clone();
            known.inspect(|table| _ = table.stats());
        }
    }

    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let (table, known) = (table::<Nosy>(1, 1), Known::default());
        let Found::Leads(flight) = table.find(Identity::new(Nosy(known.clone())), never) else {
            panic!("nobody asks")
        };
        *lock(&known) = Some(table.clone());
        assert!(matches!(table.find(Identity::new(Nosy(known.clone())), never), Found::Joined(..)));
        let other = Identity::new(Nosy(known.clone())).fingerprint([1; 32]);
        assert!(matches!(table.find(other, never), Found::Conflict));
        *lock(&known) = None;
        drop(flight);
        done.send(()).expect("somebody waits");
    });
    is_done.recv_timeout(Duration::from_secs(10)).expect("it waits for itself");
}

#[derive(Clone, Debug)]
enum Op {
    Ask { key: u64, fingerprint: Option<u8>, no_cache: bool },
    Land { nth: usize, size: usize },
    Leave { nth: usize, supersedes: bool },
    Drop { nth: usize },
    Invalidate { key: u64 },
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0..3_u64;
    let nth = || any::<prop::sample::Index>().prop_map(|index| index.index(1 << 16));
    prop_oneof![
        6 => (key(), prop::option::of(0..2_u8), prop::bool::weighted(0.2))
            .prop_map(|(key, fingerprint, no_cache)| Op::Ask { key, fingerprint, no_cache }),
        3 => (nth(), 0..9_usize).prop_map(|(nth, size)| Op::Land { nth, size }),
        1 => (nth(), any::<bool>()).prop_map(|(nth, supersedes)| Op::Leave { nth, supersedes }),
        1 => nth().prop_map(|nth| Op::Drop { nth }),
        1 => key().prop_map(|key| Op::Invalidate { key }),
        1 => Just(Op::Clear),
    ]
}

/// A call, in the model: its key and fingerprint.
type Known = (u64, Option<u8>);

/// Which one it was.
type Begun = (usize, Known, Arc<Flight<Word, usize>>);

proptest! {
    /// Against two maps that say it as it is meant: what is aloft under a key, and what is kept.
    #[test]
    fn it_does_what_two_maps_do(hashes in 1..4_u64, ops in prop::collection::vec(op(), 0..60)) {
        let table = table(100, 1 << 20);
        let word = |key| Word { key, hash: key % hashes };
        let mut aloft: HashMap<u64, (usize, Option<u8>)> = HashMap::new();
        let mut kept: HashMap<u64, (usize, Option<u8>)> = HashMap::new();
        let mut flights: Vec<Begun> = Vec::new();
        let mut begun = 0;
        for op in ops {
            match op {
                Op::Ask { key, fingerprint, no_cache } => {
                    let identity = Identity { key: word(key), fingerprint: fingerprint.map(|byte| [byte; 32]), no_cache };
                    let found = table.find(identity, never);
                    let conflicts = |known: &(usize, Option<u8>)| known.1 != fingerprint;
                    let (kept, known) = (kept.get(&key), aloft.get(&key));
                    if kept.is_some_and(conflicts) {
                        prop_assert!(matches!(found, Found::Conflict));
                    } else if let (Some((size, _)), false) = (kept, no_cache) {
                        let Found::Kept(Ok(tape), Served::Hit { .. }) = found else { panic!("it is kept") };
                        prop_assert_eq!(*tape, *size);
                    } else if known.is_some_and(conflicts) {
                        prop_assert!(matches!(found, Found::Conflict));
                    } else if let Some((n, _)) = known {
                        let Found::Joined(flight, _) = found else { panic!("it is aloft") };
                        prop_assert!(flights.iter().any(|(m, _, known)| m == n && Arc::ptr_eq(known, &flight)));
                    } else {
                        let Found::Leads(flight) = found else { panic!("it is not known") };
                        aloft.insert(key, (begun, fingerprint));
                        flights.push((begun, (key, fingerprint), flight));
                        begun += 1;
                    }
                }
                Op::Land { nth, size } if !flights.is_empty() => {
                    let (n, (key, fingerprint), flight) = &flights[nth % flights.len()];
                    table.land(flight, Ok(Arc::new(size)), size, terms());
                    if aloft.get(key).is_some_and(|(m, _)| m == n) {
                        aloft.remove(key);
                        kept.insert(*key, (size, *fingerprint));
                    }
                }
                Op::Leave { nth, supersedes } if !flights.is_empty() => {
                    let (n, (key, _), flight) = &flights[nth % flights.len()];
                    table.leave(flight, supersedes);
                    if aloft.get(key).is_some_and(|(m, _)| m == n) {
                        aloft.remove(key);
                        if supersedes {
                            kept.remove(key);
                        }
                    }
                }
                Op::Drop { nth } if !flights.is_empty() => {
                    let nth = nth % flights.len();
                    let (n, (key, _), flight) = flights.swap_remove(nth);
                    drop(flight);
                    if aloft.get(&key).is_some_and(|(m, _)| *m == n) {
                        aloft.remove(&key);
                    }
                }
                Op::Invalidate { key } => {
                    table.invalidate(&word(key));
                    aloft.remove(&key);
                    kept.remove(&key);
                }
                Op::Clear => {
                    table.clear();
                    aloft.clear();
                    kept.clear();
                }
                Op::Land { .. } | Op::Leave { .. } | Op::Drop { .. } => {}
            }
            let stats = table.stats();
            let bytes = kept.values().map(|(size, _)| *size as u64).sum::<u64>();
            prop_assert_eq!((stats.in_flight, stats.entries, stats.bytes), (aloft.len(), kept.len(), bytes));
        }
    }

    #[test]
    fn neither_bound_is_ever_passed(
        entries in 1..300_usize,
        bytes in 1..10_000_u64,
        sizes in prop::collection::vec(0..2_000_usize, 0..300),
    ) {
        let table = table(entries, bytes);
        for (key, size) in sizes.into_iter().enumerate() {
            put(&table, key as u64, size);
            let stats = table.stats();
            prop_assert!(stats.entries <= entries && stats.bytes <= bytes, "{:?}", stats);
        }
    }
}
