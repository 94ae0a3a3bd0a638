//! Every law that composes, on every ordered pair of the registered layers and the specimens.

use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    thread,
};

use bartizan_tests::{Subject, Verdict, Violation, laws::LAWS, pair::Pair};

mod specimen;

#[global_allocator]
static ALLOCATOR: bartizan_tests::alloc::Counting = bartizan_tests::alloc::Counting;

#[test]
fn every_ordered_pair_obeys_every_law_that_composes() {
    let subjects = specimen::all();
    let pairs: Vec<_> = Pair::all(&subjects).collect();
    assert_eq!(pairs.len(), subjects.len() * (subjects.len() - 1));

    let next = AtomicUsize::new(0);
    let violations = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(pair) = pairs.get(next.fetch_add(1, Relaxed)) {
                    violations.lock().unwrap().extend(examine(pair));
                }
            });
        }
    });
    let violations = violations.into_inner().unwrap();
    assert!(violations.is_empty(), "{violations:#?}");
}

/// Prints a line where libtest does not capture it: the list is what people look at.
fn examine(pair: &Pair) -> Vec<Violation> {
    let mut violations = Vec::new();
    let (mut holds, mut exempt) = (0, String::new());
    for law in LAWS.iter().filter(|law| law.composes) {
        match law.check(pair) {
            Ok(Verdict::Holds) => holds += 1,
            Ok(Verdict::Exempt(_)) => exempt = format!("{exempt}, exempt from {}", law.name),
            Err(violation) => violations.push(violation),
        }
    }
    let broken = violations.len();
    let line = format!("order {:<52} {holds} laws ok, {broken} broken{exempt}\n", pair.name());
    std::io::stdout().write_all(line.as_bytes()).expect("stdout is open");
    violations
}
