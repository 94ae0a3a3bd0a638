//! The figures: medians over the rounds, ratios to the bare proxy within a round, and the goals.

use std::collections::HashMap;

use crate::load::{Mode, Sample};
use crate::wire::EVENTS;
use crate::{Missing, Options, Proxy};

/// The samples of every proxy, by round. Rounds pair up: what disturbs one proxy disturbs the others of its round.
pub(crate) struct Report {
    /// Key and title.
    proxies: Vec<(&'static str, &'static str)>,
    samples: HashMap<(Mode, usize), Vec<Sample>>,
}

impl Report {
    pub(crate) fn new(proxies: &[Proxy]) -> Self {
        let proxies = proxies.iter().map(|proxy| (proxy.key, proxy.title)).collect();
        Self { proxies, samples: HashMap::new() }
    }

    pub(crate) fn add(&mut self, mode: Mode, proxy: usize, sample: Sample) {
        self.samples.entry((mode, proxy)).or_default().push(sample);
    }

    pub(crate) fn print(&self, options: &Options, missing: &[Missing]) {
        println!(
            "\n{} rounds of {} s, {} connections, order rotated; medians of the rounds. Load average {}.\n\
             \"of bare\" is the ratio to the bare axum proxy (2 workers) in the same round; spread is (max - min) / \
             median.",
            options.rounds,
            options.seconds.as_secs_f64(),
            options.connections,
            std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
        );
        for missing in missing {
            println!("NOT MEASURED: {}: {}", missing.title, missing.reason.trim_end());
        }
        for &mode in &options.modes {
            match mode {
                Mode::Plain => {
                    println!("\nPlain, closed loop, 1 KiB there and 1 KiB back");
                    self.print_rates(mode, "requests/s", "CPU us/request", 1.0);
                }
                Mode::Streams => {
                    println!("\nStreams, closed loop, {EVENTS} events that the upstream writes at once");
                    self.print_rates(mode, "streams/s", "CPU us/event", EVENTS as f64);
                }
                Mode::Latency => {
                    println!(
                        "\nLatency, open loop, {} plain requests/s, from the intended start",
                        options.rate
                    );
                    self.print_delays(mode);
                }
                Mode::Paced => {
                    println!(
                        "\nPaced, {EVENTS} events 1 ms apart, from the upstream's write to the client's read"
                    );
                    self.print_delays(mode);
                }
            }
        }
        self.print_goals(options);
    }

    fn print_rates(&self, mode: Mode, rate: &str, cpu: &str, parts: f64) {
        println!("  {:<18}{rate:>12}{:>10}{cpu:>17}{:>10}{:>9}", "", "of bare", "of bare", "spread");
        for (index, (_, title)) in self.proxies.iter().enumerate() {
            let rates = self.rates(mode, index);
            println!(
                "  {title:<18}{:>12}{:>10}{:>17}{:>10}{:>9}",
                text(median(&rates), thousands),
                text(self.of_bare(index, |proxy| self.rates(mode, proxy)), two_digits),
                text(median(&self.cpus(mode, index)).map(|cpu| cpu / parts), two_digits),
                text(self.of_bare(index, |proxy| self.cpus(mode, proxy)), two_digits),
                text(spread(&rates), |spread| format!("{:.0} %", spread * 100.0)),
            );
        }
    }

    fn print_delays(&self, mode: Mode) {
        println!("  {:<18}{:>12}{:>10}{:>17}{:>10}", "", "p50 ms", "p99 ms", "added p50 ms", "of bare");
        for (index, (_, title)) in self.proxies.iter().enumerate() {
            println!(
                "  {title:<18}{:>12}{:>10}{:>17}{:>10}",
                text(median(&self.quantiles(mode, index, 0.5)), three_digits),
                text(median(&self.quantiles(mode, index, 0.99)), three_digits),
                text(median(&self.added(mode, index)), three_digits),
                text(self.of_bare(index, |proxy| self.added(mode, proxy)), two_digits),
            );
        }
    }

    fn print_goals(&self, options: &Options) {
        println!(
            "\nGoals of the gateway{}",
            if options.quick { " (--quick is too short to judge)" } else { "" }
        );
        let gateway = self.index_of("gateway");
        let ratio = |of: &dyn Fn(usize) -> Vec<f64>| gateway.and_then(|index| self.of_bare(index, of));
        goal(
            "plain requests/s, of the bare proxy's",
            ratio(&|p| self.rates(Mode::Plain, p)),
            &Wanted::AtLeast(0.85),
            two_digits,
        );
        goal(
            "added median, of the bare proxy's",
            ratio(&|p| self.added(Mode::Latency, p)),
            &Wanted::AtMost(1.3),
            two_digits,
        );
        goal(
            "streams/s, of the bare proxy's",
            ratio(&|p| self.rates(Mode::Streams, p)),
            &Wanted::AtLeast(2.0),
            two_digits,
        );
        // Held back until the next, an event would be a whole millisecond late.
        let held = gateway.and_then(|index| median(&self.added(Mode::Paced, index)));
        goal("an event alone is not held back, added ms", held, &Wanted::AtMost(0.5), three_digits);
    }

    fn index_of(&self, key: &str) -> Option<usize> {
        self.proxies.iter().position(|proxy| proxy.0 == key)
    }

    fn of(&self, mode: Mode, proxy: usize) -> &[Sample] {
        self.samples.get(&(mode, proxy)).map_or(&[], Vec::as_slice)
    }

    fn rates(&self, mode: Mode, proxy: usize) -> Vec<f64> {
        let rate = |sample: &Sample| match sample {
            Sample::Rate { per_second, .. } => Some(*per_second),
            Sample::Delays(_) => None,
        };
        self.of(mode, proxy).iter().filter_map(rate).collect()
    }

    fn cpus(&self, mode: Mode, proxy: usize) -> Vec<f64> {
        let cpu = |sample: &Sample| match sample {
            Sample::Rate { cpu, .. } => *cpu,
            Sample::Delays(_) => None,
        };
        self.of(mode, proxy).iter().filter_map(cpu).collect()
    }

    /// Milliseconds, by round.
    fn quantiles(&self, mode: Mode, proxy: usize, q: f64) -> Vec<f64> {
        let quantile = |sample: &Sample| match sample {
            Sample::Rate { .. } => None,
            Sample::Delays(sorted) => sorted
                .get((sorted.len().saturating_sub(1) as f64 * q).round() as usize)
                .map(|&ns| ns as f64 / 1e6),
        };
        self.of(mode, proxy).iter().filter_map(quantile).collect()
    }

    /// What a proxy's median has over the direct way's, in milliseconds, by round.
    fn added(&self, mode: Mode, proxy: usize) -> Vec<f64> {
        match self.index_of("direct") {
            Some(direct) if direct != proxy => {
                let direct = self.quantiles(mode, direct, 0.5);
                self.quantiles(mode, proxy, 0.5)
                    .iter()
                    .zip(direct)
                    .map(|(p50, direct)| p50 - direct)
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    /// The median over the rounds of the ratio within a round.
    fn of_bare(&self, proxy: usize, of: impl Fn(usize) -> Vec<f64>) -> Option<f64> {
        let bare = of(self.index_of("bare")?);
        let ratios: Vec<f64> = of(proxy).iter().zip(bare).map(|(figure, bare)| figure / bare).collect();
        median(&ratios)
    }
}

enum Wanted {
    AtLeast(f64),
    AtMost(f64),
}

fn goal(what: &str, figure: Option<f64>, wanted: &Wanted, form: fn(f64) -> String) {
    let (wanted, met) = match *wanted {
        Wanted::AtLeast(limit) => (format!("at least {limit}"), figure.map(|figure| figure >= limit)),
        Wanted::AtMost(limit) => (format!("at most {limit}"), figure.map(|figure| figure <= limit)),
    };
    let verdict = match met {
        None => "not measured",
        Some(true) => "met",
        Some(false) => "NOT MET",
    };
    println!("  {what:<44}{:>8}   wanted {wanted:<15}{verdict}", text(figure, form));
}

fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
        _ => Some(sorted[middle]),
    }
}

fn spread(figures: &[f64]) -> Option<f64> {
    let (min, max) = figures.iter().fold((f64::MAX, f64::MIN), |(min, max), &f| (min.min(f), max.max(f)));
    median(figures).map(|median| (max - min) / median)
}

fn text(figure: Option<f64>, form: impl Fn(f64) -> String) -> String {
    figure.map_or_else(|| "-".to_owned(), form)
}

fn two_digits(figure: f64) -> String {
    format!("{figure:.2}")
}

fn three_digits(figure: f64) -> String {
    format!("{figure:.3}")
}

fn thousands(figure: f64) -> String {
    let digits = format!("{figure:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
