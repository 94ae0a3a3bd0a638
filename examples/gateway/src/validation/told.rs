//! What clients are told of what was found.
//!
//! The words of rules quote nothing, but pointers have names of members, and those can be anything that a client, or a
//! model, has written. So a name is told only if it is one of OpenAI's, or stands in one of the schemas.

use std::{collections::BTreeSet, fmt::Write, sync::Arc};

use bartizan_core::RetryAfter;
use bartizan_provider::{Class, Error};
use bartizan_validate::{Part, Report, Violation};
use http::{HeaderValue, StatusCode};

use crate::config::{Check, Config, Model};

/// Violations beyond these are only counted, so that errors and heads stay short.
const MOST_TOLD: usize = 16;

/// In place of a name that is not told.
const HIDDEN: &str = "*";

/// The names that OpenAI's requests and answers have, as far as there are strings in them.
#[rustfmt::skip]
const NAMES: &[&str] = &[
    "annotations", "arguments", "audio", "bytes", "choices", "content", "custom", "data", "delta", "description",
    "detail", "enum", "error", "file", "file_data", "file_id", "filename", "finish_reason", "format", "function",
    "function_call", "functions", "id", "image_url", "index", "input", "input_audio", "items", "json_schema",
    "logit_bias", "logprobs", "max_completion_tokens", "max_tokens", "message", "messages", "metadata", "modalities",
    "model", "n", "name", "object", "output", "parameters", "prediction", "prompt", "prompt_cache_key", "properties",
    "reasoning", "reasoning_content", "reasoning_effort", "refusal", "required", "response_format", "role",
    "safety_identifier", "schema", "seed", "service_tier", "stop", "store", "stream", "stream_options", "strict",
    "suffix", "temperature", "text", "token", "tool_call_id", "tool_calls", "tool_choice", "tools", "top_logprobs",
    "top_p", "type", "url", "usage", "user", "verbosity", "voice", "web_search_options",
];

/// How what a model's rules find is told.
#[derive(Debug)]
pub(super) struct Told {
    /// Those of the schemas.
    names: Vec<Arc<BTreeSet<String>>>,
    /// The rules that are about what is said and not about its form.
    policies: BTreeSet<String>,
}

impl Told {
    pub(super) fn new(config: &Config, model: &Model) -> Self {
        let rules = || config.validation.rules_of(&model.guard);
        let names = rules().filter_map(|rule| match &rule.check {
            Check::Schema(_, names) => Some(names.clone()),
            _ => None,
        });
        let policies = rules().filter(|rule| !rule.check.is_of_form()).map(|rule| rule.name.clone());
        Self { names: names.collect(), policies: policies.collect() }
    }

    /// A request whose form is wrong is a 400, one that says what it must not is a 422. For an answer nobody can do
    /// anything but ask anew, which costs as much again: clients are told not to by themselves.
    pub(super) fn error(&self, report: &Report) -> Error {
        let is_policy =
            |violation: &Violation| !violation.is_malformed() && self.policies.contains(violation.rule());
        let of_policy = report.violations().iter().all(is_policy);
        let message = self.message(report);
        match (report.part(), of_policy) {
            (Part::Request, false) => {
                self.at(Error::new(Class::BadRequest, message).with_code("validation_failed"), report)
            }
            (Part::Request, true) => {
                let error = Error::new(Class::ContentPolicy, message);
                self.at(error.with_status(StatusCode::UNPROCESSABLE_ENTITY), report)
            }
            (Part::Response, of_policy) => Error::new(Class::Malformed, message)
                .with_code(if of_policy { "content_filter" } else { "invalid_answer" })
                .with_retry_after(RetryAfter::Never),
        }
    }

    fn at(&self, error: Error, report: &Report) -> Error {
        match report.violations().first().map(|first| self.param(first.pointer())) {
            Some(param) if !param.is_empty() => error.with_param(param),
            _ => error,
        }
    }

    fn message(&self, report: &Report) -> String {
        let what = match report.part() {
            Part::Request => "the request",
            Part::Response => "the answer",
        };
        let mut message = format!("{what} cannot pass");
        let told = report.violations().iter().take(MOST_TOLD);
        for (n, violation) in told.enumerate() {
            let (sign, rule) = (if n == 0 { ":" } else { ";" }, violation.rule());
            _ = write!(message, "{sign} rule {rule:?}");
            if !violation.pointer().is_empty() {
                _ = write!(message, " at {}", self.pointer(violation.pointer()));
            }
            _ = write!(message, ": {}", violation.message());
        }
        match left_out(report) {
            0 => {}
            more => _ = write!(message, "; and {more} more"),
        }
        message
    }

    /// As a structured field: a list of rules, each with the place where it is broken.
    pub(super) fn header(&self, report: &Report) -> Option<HeaderValue> {
        let mut told = Vec::new();
        for violation in report.violations().iter().take(MOST_TOLD) {
            let mut item = format!("\"{}\"", violation.rule());
            if !violation.pointer().is_empty() {
                _ = write!(item, ";at=\"{}\"", self.pointer(violation.pointer()));
            }
            told.push(item);
        }
        match left_out(report) {
            0 => {}
            more => told.push(format!("\"...\";more={more}")),
        }
        // Names of schemas may hold what a header cannot.
        let text: String = told.join(", ");
        let plain = text.chars().map(|c| if matches!(c, ' '..='~') { c } else { '?' }).collect::<String>();
        HeaderValue::from_str(&plain).ok().filter(|value| !value.is_empty())
    }

    /// A JSON pointer without the names that are not told.
    fn pointer(&self, pointer: &str) -> String {
        self.steps(pointer).fold(String::new(), |pointer, step| pointer + "/" + step)
    }

    /// As OpenAI names parts of requests: `messages[0].content`.
    fn param(&self, pointer: &str) -> String {
        let mut param = String::new();
        for step in self.steps(pointer) {
            match step {
                index if is_index(index) => _ = write!(param, "[{index}]"),
                name if param.is_empty() => param.push_str(name),
                name => _ = write!(param, ".{name}"),
            }
        }
        param
    }

    fn steps<'a>(&'a self, pointer: &'a str) -> impl Iterator<Item = &'a str> {
        pointer.split('/').skip(1).map(|step| if self.may_tell(step) { step } else { HIDDEN })
    }

    fn may_tell(&self, step: &str) -> bool {
        // One with `~` in it is escaped, and nobody's.
        is_index(step) || NAMES.contains(&step) || self.names.iter().any(|names| names.contains(step))
    }
}

/// As many as a list can have; a longer number may be anything.
fn is_index(step: &str) -> bool {
    (1..=6).contains(&step.len()) && step.bytes().all(|byte| byte.is_ascii_digit())
}

fn left_out(report: &Report) -> usize {
    report.left_out() + report.violations().len().saturating_sub(MOST_TOLD)
}
