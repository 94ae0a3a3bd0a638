//! For every law, layers that break it: the law says so, by its name.

use std::{fs, io::Write as _, sync::Arc};

use bartizan_tests::{
    Law, Subject,
    laws::{LAWS, sources},
    pair::Pair,
    subject::Readiness,
    wire::Handle,
};
use specimen::{
    desk::{Flaw, Specimen},
    pacer::{self, Pacing},
    turnstile::Turning,
};

mod specimen;

#[global_allocator]
static ALLOCATOR: bartizan_tests::alloc::Counting = bartizan_tests::alloc::Counting;

/// The law, who breaks it, and what the message must say besides the law's name.
fn broken() -> Vec<(&'static str, Box<dyn Subject>, &'static str)> {
    let desk = |flaw| Box::new(Specimen(Some(flaw))) as Box<dyn Subject>;
    let pacer = |flaw| Box::new(Pacing(Some(flaw))) as Box<dyn Subject>;
    let over_a_pacer = |flaw| {
        Box::new(Pair::new(Arc::new(Specimen(Some(flaw))), Arc::new(Pacing(None)))) as Box<dyn Subject>
    };
    vec![
        ("ready-before-call", desk(Flaw::CallsAClone), "called without its own poll_ready"),
        ("ready-before-call", desk(Flaw::IgnoresTheInner), "called without its own poll_ready"),
        // What is below hides it from the innermost service, not from the seam.
        ("ready-before-call", over_a_pacer(Flaw::CallsAClone), "called without its own poll_ready"),
        ("refusal-gives-back", desk(Flaw::KeepsTheGrant), "keeps 1 grant(s)"),
        ("refusal-gives-back", over_a_pacer(Flaw::KeepsTheGrant), "keeps 1 grant(s)"),
        ("refusal-gives-back", pacer(pacer::Flaw::SleepsHoldingAGrant), "keeps 1 grant(s)"),
        ("readiness", desk(Flaw::RefusesInPollReady), "poll_ready refuses"),
        ("readiness", desk(Flaw::HoardsGrants), "holds 2 permits"),
        ("readiness", pacer(pacer::Flaw::SleepsHoldingAGrant), "may not need"),
        ("cancel-safety", desk(Flaw::LosesTheSeatOnDrop), "3 seats"),
        ("cancel-safety", desk(Flaw::Spawns), "still in flight"),
        ("cancel-safety", Box::new(Turning), "was not woken"),
        ("wakes", desk(Flaw::WakesItself), "woke itself"),
        ("wakes", desk(Flaw::LosesTheWaker), "nobody holds its waker"),
        ("wakes", desk(Flaw::KeepsTheFirstWaker), "nobody holds its waker"),
        ("wakes", desk(Flaw::PollsTwice), "polls of the inner future"),
        ("wakes", pacer(pacer::Flaw::SleepsAndRetries), "polls"),
        ("shared-state", desk(Flaw::StatePerClone), "over clones"),
        ("shared-state", desk(Flaw::StatePerService), "over services of one layer"),
        ("shared-state", desk(Flaw::StatePerLayer), "over layers of one handle"),
        ("served", desk(Flaw::StatePerService), "over 2 routes"),
        ("served", desk(Flaw::StatePerLayer), "over 2 routes"),
        ("paused-time", desk(Flaw::RealClock), "had not lifted"),
        ("paused-time", pacer(pacer::Flaw::EndsLate), "ended after"),
        ("configuration", desk(Flaw::AcceptsZero), "can never work"),
        ("configuration", desk(Flaw::DividesByZero), "by accident"),
        ("no-hidden-spawn", desk(Flaw::Spawns), "tasks"),
        ("panics-poison-nothing", desk(Flaw::LockedInTheClosure), "Poison"),
        ("bounded-memory", desk(Flaw::RemembersEveryCall), "bytes more are live"),
    ]
}

#[test]
fn every_broken_layer_is_caught() {
    let broken = broken();
    let all = broken.len();
    for (name, subject, says) in broken {
        let law = Law::named(name).expect("there is a law of this name");
        let violation = law.check(&*subject).expect_err(&format!("{name} does not see {}", subject.name()));
        assert_eq!(violation.law, name, "{violation}");
        let message = violation.to_string();
        assert!(message.contains(name) && message.contains(says), "{message:?} does not say {says:?}");
        caught(name, &subject.name(), &violation.saw);
    }
    caught("(all)", &format!("{all} of {all} broken layers"), "");
}

/// Prints a line where libtest does not capture it: the list is what people look at.
fn caught(law: &str, who: &str, saw: &str) {
    let line = format!("caught {law:<21} {who:<40} {saw}\n");
    std::io::stdout().write_all(line.as_bytes()).expect("stdout is open");
}

/// The compiler keeps law `bounds`: its broken layers are the `compile_fail` examples of [`Handle`].
#[test]
fn no_law_goes_without_a_broken_layer() {
    let broken = broken();
    for law in LAWS.iter().filter(|law| law.name != "bounds") {
        assert!(broken.iter().any(|(name, ..)| *name == law.name), "nothing breaks {}", law.name);
    }
}

/// A subject that declares nothing does not thereby pass.
#[test]
fn silence_passes_nothing() {
    struct Silent;

    impl Subject for Silent {
        fn name(&self) -> String {
            "silent".to_owned()
        }

        fn open(&self) -> Handle {
            Handle::new(tower::layer::util::Identity::new)
        }

        fn readiness(&self) -> Readiness {
            Readiness::PassThrough
        }
    }

    for law in [
        "refusal-gives-back",
        "shared-state",
        "served",
        "paused-time",
        "configuration",
        "panics-poison-nothing",
    ] {
        let violation = Law::named(law).unwrap().check(&Silent).unwrap_err();
        assert!(violation.saw.contains("declare them, or exempt it"), "{violation}");
    }
}

#[test]
fn sources_without_their_lints_are_caught() {
    let workspace = std::env::temp_dir().join(format!("bartizan-sources-{}", std::process::id()));
    let package = workspace.join("crates/layer");
    fs::create_dir_all(package.join("src")).unwrap();
    let good = [
        ("Cargo.toml", "[workspace.lints.rust]\nmissing_docs = \"deny\"\n"),
        ("crates/layer/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
        ("crates/layer/src/lib.rs", "//! A layer.\n#![forbid(unsafe_code)]\n"),
    ];
    for (file, text) in good {
        fs::write(workspace.join(file), text).unwrap();
    }
    assert_eq!(sources(&workspace), Ok(1));
    for (file, text) in good {
        fs::write(workspace.join(file), "// #![forbid(unsafe_code)]\n").unwrap();
        let violation = sources(&workspace).unwrap_err();
        assert_eq!(violation.law, "sources");
        assert!(violation.subject.ends_with(file), "{violation}");
        caught("sources", file, &violation.saw);
        fs::write(workspace.join(file), text).unwrap();
    }
    fs::remove_dir_all(workspace).unwrap();
}
