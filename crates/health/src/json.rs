//! The document of `/health`, written by hand: a serializer for one document is not worth a dependency.

use std::{fmt::Write as _, time::Duration};

use crate::{Figure, Latency, Report, State, Stats, Summary};

/// The words of `application/health+json`.
const fn status(state: State) -> &'static str {
    match state {
        State::Healthy => "pass",
        State::Degraded => "warn",
        State::Unhealthy => "fail",
    }
}

/// Of names that stand more than once, and those of components and reports may, each has its entries in one list.
pub(crate) fn document(summary: &Summary) -> String {
    let mut out = Object::new();
    out.text("status", if summary.draining { "fail" } else { status(summary.state) });
    if summary.draining {
        out.text("output", "draining");
    }
    let mut checks = Object::new();
    let is_reported = |name: &str| summary.reports.iter().find(|(reported, _)| reported == name);
    for stats in &summary.components {
        let also = is_reported(&stats.name).map(|(_, told)| format!(",{}", report(told))).unwrap_or_default();
        checks.raw(&stats.name, &format!("[{}{also}]", component(stats)));
    }
    for (name, told) in &summary.reports {
        if summary.components.iter().all(|stats| stats.name != *name) {
            checks.raw(name, &format!("[{}]", report(told)));
        }
    }
    out.raw("checks", &checks.end());
    out.end()
}

fn component(stats: &Stats) -> String {
    let mut out = Object::new();
    out.text("componentType", "component");
    out.text("status", status(stats.state));
    out.text("state", stats.state.as_str());
    out.number("secondsInState", stats.in_state.as_secs_f64());
    if let Some(active) = stats.active {
        out.text("probes", active.as_str());
    }
    out.raw("draining", &stats.draining.to_string());
    out.raw("required", &stats.required.to_string());
    if let Some(left) = stats.ejected_for {
        out.number("ejectedForSeconds", left.as_secs_f64());
    }
    out.raw("requests", &stats.requests.to_string());
    out.number("errorRate", stats.error_rate());
    out.raw("consecutiveFailures", &stats.consecutive_failures.to_string());
    out.raw("failedProbes", &stats.failed_probes.to_string());
    out.latency("latencySeconds", &stats.latency);
    out.latency("firstFrameSeconds", &stats.first_frame);
    let mut errors = Object::new();
    for (class, count) in &stats.errors {
        errors.raw(class, &count.to_string());
    }
    out.raw("errors", &errors.end());
    if let Some(last) = &stats.last_error {
        out.text("output", &last.message);
        out.number("lastErrorSecondsAgo", last.ago.as_secs_f64());
    }
    out.end()
}

fn report(report: &Report) -> String {
    let mut out = Object::new();
    out.text("componentType", "report");
    out.text("status", status(report.state()));
    out.text("state", report.state().as_str());
    if let Some(says) = report.message() {
        out.text("output", says);
    }
    // Names that are taken must not be said twice.
    let mut taken: Vec<String> = ["componentType", "status", "state", "output"].map(str::to_owned).into();
    for (name, figure) in report.figures() {
        let mut name = name.to_owned();
        while taken.contains(&name) {
            name.push('_');
        }
        match figure {
            Figure::Count(count) => out.raw(&name, &count.to_string()),
            Figure::Number(number) => out.number(&name, *number),
            Figure::Text(text) => out.text(&name, text),
            Figure::Flag(flag) => out.raw(&name, &flag.to_string()),
        }
        taken.push(name);
    }
    out.end()
}

/// An object under way.
struct Object(String);

impl Object {
    fn new() -> Self {
        Self("{".to_owned())
    }

    fn raw(&mut self, name: &str, json: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        string(&mut self.0, name);
        self.0.push(':');
        self.0 += json;
    }

    fn text(&mut self, name: &str, text: &str) {
        let mut quoted = String::with_capacity(text.len() + 2);
        string(&mut quoted, text);
        self.raw(name, &quoted);
    }

    fn number(&mut self, name: &str, number: f64) {
        // There is no other way to say it.
        let json = if number.is_finite() { number.to_string() } else { "null".to_owned() };
        self.raw(name, &json);
    }

    fn latency(&mut self, name: &str, latency: &Latency) {
        let mut out = Self::new();
        let all = [("mean", latency.mean), ("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99)];
        for (name, duration) in all {
            if let Some(duration) = duration {
                out.number(name, Duration::as_secs_f64(&duration));
            }
        }
        self.raw(name, &out.end());
    }

    fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

fn string(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if c < ' ' => write!(out, "\\u{:04x}", u32::from(c)).expect("a String takes everything"),
            c => out.push(c),
        }
    }
    out.push('"');
}
