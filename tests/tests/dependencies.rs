//! The dependency budget: what a user takes on with a crate of ours, without its optional features.

use std::{collections::BTreeSet, process::Command};

/// Crates in all, the crate itself and `bartizan-core` included; procedural macros, which run at build time, are not.
const BUDGET: [(&str, usize); 9] = [
    ("bartizan-core", 4),
    ("bartizan-batch", 6),
    ("bartizan-circuit-breaker", 6),
    ("bartizan-dedup", 7),
    ("bartizan-fallback", 6),
    ("bartizan-health", 6),
    ("bartizan-rate-limit", 6),
    ("bartizan-validate", 5),
    ("bartizan-provider", 22),
];

#[test]
fn no_crate_brings_more_than_its_budget() {
    for (name, budget) in BUDGET {
        let brought = crates_of(name);
        println!("{name}: {} of {budget} crates", brought.len());
        assert!(brought.contains(name), "cargo tree does not know {name}: {brought:?}");
        assert!(
            brought.len() <= budget,
            "{name} brings {} crates, more than {budget}: {brought:?}",
            brought.len()
        );
    }
}

#[test]
fn layers_do_not_depend_on_each_other() {
    for (name, _) in BUDGET {
        let ours: Vec<_> =
            crates_of(name).into_iter().filter(|brought| brought.starts_with("bartizan-")).collect();
        assert!(
            ours.iter().all(|brought| brought == name || brought == "bartizan-core"),
            "{name} depends on {ours:?}"
        );
    }
}

fn crates_of(name: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--no-default-features", "--prefix", "none"])
        .args(["--edges", "normal,no-proc-macro", "--package", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree = String::from_utf8(output.stdout).expect("crates have names in UTF-8");
    tree.lines().filter_map(|line| Some(line.split_whitespace().next()?.to_owned())).collect()
}
