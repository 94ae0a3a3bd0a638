//! Every law, on every registered layer and on the specimens that obey it.

use std::{io::Write as _, path::Path};

use bartizan_tests::{
    Law, Verdict,
    laws::{LAWS, sources},
};

mod specimen;

#[global_allocator]
static ALLOCATOR: bartizan_tests::alloc::Counting = bartizan_tests::alloc::Counting;

/// Examines every subject, and prints a line each where libtest does not capture it: the list is what people look at.
fn every_subject_obeys(law: &str) {
    let law = Law::named(law).expect("there is a law of this name");
    let mut violations = Vec::new();
    let mut lines = String::new();
    for subject in specimen::all() {
        let line = match law.check(&*subject) {
            Ok(Verdict::Holds) => "ok".to_owned(),
            Ok(Verdict::Exempt(why)) => format!("exempt: {why}"),
            Err(violation) => {
                violations.push(violation.to_string());
                format!("BROKEN: {}", violation.saw)
            }
        };
        lines += &format!("law {:<21} {:<24} {line}\n", law.name, subject.name());
    }
    std::io::stdout().write_all(lines.as_bytes()).expect("stdout is open");
    assert!(violations.is_empty(), "{violations:#?}");
}

macro_rules! laws {
    ($($test:ident = $law:literal,)*) => {
        $(#[test] fn $test() { every_subject_obeys($law); })*

        #[test]
        fn no_law_is_forgotten() {
            let tested = [$($law),*];
            let names: Vec<_> = LAWS.iter().map(|law| law.name).collect();
            assert_eq!(names, tested);
        }
    };
}

laws! {
    ready_before_call = "ready-before-call",
    refusal_gives_back = "refusal-gives-back",
    readiness = "readiness",
    cancel_safety = "cancel-safety",
    wakes = "wakes",
    shared_state = "shared-state",
    served = "served",
    paused_time = "paused-time",
    configuration = "configuration",
    bounds = "bounds",
    no_hidden_spawn = "no-hidden-spawn",
    panics_poison_nothing = "panics-poison-nothing",
    bounded_memory = "bounded-memory",
}

#[test]
fn sources_of_the_published_crates() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace is above");
    let crates = sources(workspace).unwrap_or_else(|violation| panic!("{violation}"));
    let line = format!("law {:<21} {crates} crates ok\n", "sources");
    std::io::stdout().write_all(line.as_bytes()).expect("stdout is open");
}
