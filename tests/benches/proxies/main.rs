//! Compares proxies in one run against one mock upstream: direct, nginx, a bare axum proxy, the gateway.
//!
//! `cargo bench -p bartizan-tests --bench proxies [-- OPTIONS]`, with `--help` for the options. Every proxy and the
//! upstream are child processes, so the CPU time of each is read from `/proc`; the load is this process. Linux only.

#![allow(
    clippy::disallowed_methods,
    reason = "measures real time, and its blocking clients sleep on threads of their own"
)]

mod bare;
mod gateway;
mod load;
mod nginx;
mod process;
mod report;
mod upstream;
mod wire;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use load::Mode;
use process::{Child, Scratch};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const HELP: &str = "\
cargo bench -p bartizan-tests --bench proxies [-- OPTIONS]

  --quick            one short round: does everything work? (the figures are not to be believed)
  --seconds S        length of one measurement, default 2
  --rounds N         rounds, each of every proxy in rotated order, default 3
  --connections N    connections of the closed loops, default 32
  --rate N           requests a second of the open loop, default 200
  --only A,B         of direct, nginx, bare, bare1, gateway
  --modes A,B        of plain, streams, latency, paced

  BENCH_GATEWAY        the gateway to start, instead of the one built by `cargo build --release -p gateway`";

/// What to measure, and for how long.
#[derive(Clone)]
struct Options {
    quick: bool,
    seconds: Duration,
    rounds: usize,
    connections: usize,
    rate: u32,
    only: Vec<String>,
    modes: Vec<Mode>,
}

/// One way from the load to the upstream.
struct Proxy {
    key: &'static str,
    title: &'static str,
    address: SocketAddr,
    /// None for the direct way, which has no process in between.
    child: Option<Child>,
}

/// The proxies in the order of the report. The first and the bare one are what the others are compared with.
const PROXIES: [&str; 5] = ["direct", "nginx", "bare", "bare1", "gateway"];

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, BoxError> {
        let mut options = Options {
            quick: false,
            seconds: Duration::from_secs(2),
            rounds: 3,
            connections: 32,
            rate: 200,
            only: PROXIES.map(String::from).to_vec(),
            modes: Mode::ALL.to_vec(),
        };
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or(format!("{arg} needs a value"));
            match arg.as_str() {
                "--bench" => {}
                "--quick" => {
                    options.quick = true;
                    options.seconds = Duration::from_millis(500);
                    options.rounds = 1;
                }
                "--seconds" => options.seconds = Duration::try_from_secs_f64(value()?.parse()?)?,
                "--rounds" => options.rounds = value()?.parse()?,
                "--connections" => options.connections = value()?.parse()?,
                "--rate" => options.rate = value()?.parse()?,
                "--only" => options.only = value()?.split(',').map(String::from).collect(),
                "--modes" => {
                    options.modes = value()?.split(',').map(Mode::from_name).collect::<Result<_, _>>()?;
                }
                _ => return Err(format!("unknown argument {arg}\n\n{HELP}").into()),
            }
        }
        if let Some(name) = options.only.iter().find(|name| !PROXIES.contains(&name.as_str())) {
            return Err(format!("unknown proxy {name}: one of {}", PROXIES.join(", ")).into());
        }
        let sane = (1..=1_000).contains(&options.connections)
            && (1..=1_000).contains(&options.rounds)
            && (1..=10_000).contains(&options.rate)
            && (0.05..=600.0).contains(&options.seconds.as_secs_f64());
        if !sane {
            return Err(
                "out of range: connections, rounds 1..=1000, rate 1..=10000, seconds 0.05..=600".into()
            );
        }
        Ok(options)
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.is_empty() || args.iter().any(|arg| arg == "--help") {
        // `cargo test --all-targets` comes here with no arguments at all; cargo bench passes `--bench`.
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let outcome = match process::Role::parse(&args) {
        Some(role) => role.and_then(process::Role::play),
        None => Options::parse(args.into_iter()).and_then(|options| compare(&options)),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("proxies: {error}");
        ExitCode::FAILURE
    })
}

fn compare(options: &Options) -> Result<ExitCode, BoxError> {
    // Dropped in reverse order: the proxies stop before the upstream, and the directory goes last.
    let scratch = Scratch::new()?;
    let upstream = Child::of_role("upstream")?;
    let mut missing = Vec::new();
    let proxies = start(options, upstream.address, &scratch, &mut missing)?;

    for proxy in &proxies {
        load::verify(proxy).map_err(|error| format!("{} fails its first requests: {error}", proxy.title))?;
    }
    let mut report = report::Report::new(&proxies);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for round in 0..options.rounds {
        for &mode in &options.modes {
            for turn in 0..proxies.len() {
                let index = (turn + round) % proxies.len();
                let proxy = &proxies[index];
                let sample = load::measure(&runtime, proxy, mode, options)
                    .map_err(|error| format!("{}, {}: {error}", proxy.title, mode.name()))?;
                report.add(mode, index, sample);
            }
        }
        eprintln!("round {} of {} done", round + 1, options.rounds);
    }
    report.print(options, &missing);
    // What is missing because it is not installed is only said; what is ours and does not start is a failure.
    Ok(if missing.iter().any(|missing| missing.ours) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A proxy that is not in the comparison, and why.
struct Missing {
    title: &'static str,
    reason: String,
    ours: bool,
}

fn start(
    options: &Options,
    upstream: SocketAddr,
    scratch: &Scratch,
    missing: &mut Vec<Missing>,
) -> Result<Vec<Proxy>, BoxError> {
    let mut proxies = Vec::new();
    for key in PROXIES.into_iter().filter(|&key| options.only.iter().any(|name| name == key)) {
        match key {
            "direct" => proxies.push(Proxy { key, title: "direct", address: upstream, child: None }),
            "nginx" => match nginx::find() {
                Some(nginx) => proxies.push(nginx::start(&nginx, upstream, scratch)?),
                None => missing.push(Missing {
                    title: "nginx",
                    reason: "not installed: apt-get install nginx-light".into(),
                    ours: false,
                }),
            },
            "bare" => proxies.push(bare::start(key, "bare axum proxy", bare::Shape::TwoWorkers, upstream)?),
            "bare1" => proxies.push(bare::start(key, "bare, 1 thread", bare::Shape::OneThread, upstream)?),
            _ => match gateway::start(upstream, scratch) {
                Ok(proxy) => proxies.push(proxy),
                Err(error) => {
                    missing.push(Missing { title: "gateway", reason: error.to_string(), ours: true });
                }
            },
        }
    }
    if proxies.is_empty() {
        return Err("nothing to measure".into());
    }
    Ok(proxies)
}
