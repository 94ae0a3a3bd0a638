//! How much was checked, refused and reported, by model and by rule.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bartizan_validate::{Level, Part, Report};
use serde_json::{Value, json};

use crate::config::{OWN_NAMES, Rule};

/// Which half of a call.
#[derive(Clone, Copy, Debug)]
pub(super) enum Side {
    Request,
    Answer,
}

impl Side {
    fn of(report: &Report) -> Self {
        match report.part() {
            Part::Request => Self::Request,
            Part::Response => Self::Answer,
        }
    }
}

/// One number for each side.
#[derive(Debug, Default)]
struct Both([AtomicU64; 2]);

impl Both {
    fn add(&self, side: Side) {
        self.0[side as usize].fetch_add(1, Relaxed);
    }

    fn get(&self, side: Side) -> u64 {
        self.0[side as usize].load(Relaxed)
    }
}

/// What became of a model's requests and answers.
#[derive(Debug, Default)]
pub(super) struct OfModel {
    checked: Both,
    refused: Both,
    reported: Both,
}

impl OfModel {
    pub(super) fn checked(&self, side: Side) {
        self.checked.add(side);
    }

    pub(super) fn describe(&self, model: &str) -> Value {
        let Self { checked, refused, reported } = self;
        json!({
            "name": model,
            "checked_requests": checked.get(Side::Request),
            "refused_requests": refused.get(Side::Request),
            "reported_requests": reported.get(Side::Request),
            "checked_answers": checked.get(Side::Answer),
            "refused_answers": refused.get(Side::Answer),
            "reported_answers": reported.get(Side::Answer),
        })
    }
}

/// How often each rule was broken: in how many requests and answers, of a stream in how many windows.
#[derive(Debug)]
pub(super) struct Counts(Vec<OfRule>);

#[derive(Debug)]
struct OfRule {
    name: String,
    refused: Both,
    reported: Both,
}

impl Counts {
    pub(super) fn new(rules: &[Rule]) -> Self {
        let names = rules.iter().map(|rule| rule.name.as_str()).chain(OWN_NAMES);
        let of = |name: &str| OfRule {
            name: name.to_owned(),
            refused: Both::default(),
            reported: Both::default(),
        };
        Self(names.map(of).collect())
    }

    /// Something was refused, or a stream was cut, by the rules that refuse at this level.
    pub(super) fn refused(&self, model: &OfModel, report: &Report, level: Level) {
        model.refused.add(Side::of(report));
        self.rules(report, Some(level));
    }

    /// Something passed nevertheless.
    pub(super) fn reported(&self, model: &OfModel, report: &Report) {
        model.reported.add(Side::of(report));
        self.rules(report, None);
    }

    fn rules(&self, report: &Report, level: Option<Level>) {
        for rule in &self.0 {
            // All of one rule weigh the same, but for what cannot be read.
            let broken = report.violations().iter().find(|violation| violation.rule() == rule.name);
            let Some(broken) = broken else { continue };
            let refuses = |level: Level| broken.severity().is_none_or(|severity| level.refuses(severity));
            let count = if level.is_some_and(refuses) { &rule.refused } else { &rule.reported };
            count.add(Side::of(report));
        }
    }

    pub(super) fn describe(&self) -> Value {
        let of = |OfRule { name, refused, reported }: &OfRule| {
            json!({
                "name": name,
                "refused_requests": refused.get(Side::Request),
                "reported_requests": reported.get(Side::Request),
                "refused_answers": refused.get(Side::Answer),
                "reported_answers": reported.get(Side::Answer),
            })
        };
        self.0.iter().map(of).collect()
    }
}
