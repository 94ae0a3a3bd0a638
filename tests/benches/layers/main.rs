//! Compares layers with what else there is for the same job: time as ratios to a baseline of the same run.
//!
//! `cargo bench -p bartizan-tests --bench layers [-- OPTIONS]`, with `--help` for the options. Linux only, since it reads
//! the CPU time of a thread. Exact counts are asserted by tests; here they are only shown.
//!
//! A layer is a file with a `compare` that returns tables, and a line in [`LAYERS`].

#![allow(clippy::disallowed_methods, reason = "measures real time")]

mod batch;
mod circuit_breaker;
mod dedup;
mod fallback;
mod health;
mod inner;
mod measure;
mod rate_limit;
mod report;
mod validate;

use std::process::ExitCode;

use bartizan_tests::alloc::Counting;
use measure::Plan;
use report::Table;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The layers by the names that `--only` takes.
const LAYERS: &[(&str, Compare)] = &[
    ("rate-limit", rate_limit::compare),
    ("circuit-breaker", circuit_breaker::compare),
    ("batch", batch::compare),
    ("dedup", dedup::compare),
    ("fallback", fallback::compare),
    ("health", health::compare),
    ("validate", validate::compare),
];

type Compare = fn(Plan) -> Vec<Table>;

const HELP: &str = "\
cargo bench -p bartizan-tests --bench layers [-- OPTIONS]

  --quick        one short round: does everything work? (the figures are not to be believed)
  --rounds N     rounds, each of every contender in rotated order, default 40
  --only A,B     of rate-limit, circuit-breaker, dedup, fallback, health, batch, validate";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() || args.iter().any(|arg| arg == "--help") {
        // `cargo test --all-targets` comes here with no arguments at all; cargo bench passes `--bench`.
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match run(args.into_iter()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("layers: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut args: impl Iterator<Item = String>) -> Result<(), BoxError> {
    let mut plan = Plan { quick: false, rounds: 40, batch: None };
    let mut only: Vec<String> = LAYERS.iter().map(|(name, _)| (*name).to_owned()).collect();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} needs a value"));
        match arg.as_str() {
            "--bench" => {}
            "--quick" => plan = Plan { quick: true, rounds: 1, batch: None },
            "--rounds" => plan.rounds = value()?.parse()?,
            "--only" => only = value()?.split(',').map(String::from).collect(),
            _ => return Err(format!("unknown argument {arg}\n\n{HELP}").into()),
        }
    }
    if !(1..=10_000).contains(&plan.rounds) {
        return Err("out of range: rounds 1..=10000".into());
    }
    if let Some(name) = only.iter().find(|name| LAYERS.iter().all(|(layer, _)| layer != name)) {
        let names: Vec<_> = LAYERS.iter().map(|(name, _)| *name).collect();
        return Err(format!("unknown layer {name}: one of {}", names.join(", ")).into());
    }

    // For services that make timers. Nothing here waits for one.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let _entered = runtime.enter();
    report::head(plan);
    for (name, compare) in LAYERS.iter().filter(|(name, _)| only.iter().any(|only| only == name)) {
        println!("\n# {name}");
        compare(plan).iter().for_each(Table::print);
    }
    Ok(())
}
