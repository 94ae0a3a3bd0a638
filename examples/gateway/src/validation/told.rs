//! What clients are told of what was found.
//!
//! The words of rules quote nothing, but pointers have names of members, and those can be anything that a client, or a
//! model, has written. So a name is told only if it is one of OpenAI's, or stands in one of the schemas.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

use bartizan_core::RetryAfter;
use bartizan_provider::{Class, Error};
use bartizan_validate::{Level, Part, Report, Severity, Violation};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde::Deserialize;
use serde_json::Value;

use super::rules::STRUCTURED_OUTPUT;
use crate::config::{Check, Config, Model, members};

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
    /// Every rule's severity, and whether it is about what is said and not about its form.
    rules: BTreeMap<String, (Severity, bool)>,
    level: Level,
}

impl Told {
    pub(super) fn new(config: &Config, model: &Model, level: Level) -> Self {
        let rules = || config.validation.rules_of(&model.guard);
        let names = rules().filter_map(|rule| match &rule.check {
            Check::Schema(_, names) => Some(names.clone()),
            _ => None,
        });
        let weights = rules().map(|rule| (rule.name.clone(), (rule.severity, !rule.check.is_of_form())));
        Self { names: names.collect(), rules: weights.collect(), level }
    }

    /// A request whose form is wrong is a 400, one that says what it must not is a 422. For an answer nobody can do
    /// anything but ask anew, which costs as much again: clients are told not to by themselves.
    pub(super) fn error(&self, report: &Report, asked: Option<&Bytes>) -> Error {
        let names = Names::of(self, report, asked);
        let is_policy = |violation: &Violation| {
            !violation.is_malformed() && self.rules.get(violation.rule()).is_some_and(|(_, policy)| *policy)
        };
        // Those that only report do not decide.
        let refuses =
            |violation: &&Violation| violation.severity().is_none_or(|severity| self.level.refuses(severity));
        let decisive = || report.violations().iter().filter(refuses);
        let of_policy = decisive().all(is_policy);
        if decisive().all(Violation::is_failure) {
            // Nobody knows whether it is good: that may be otherwise in a moment.
            return Error::new(Class::Overloaded, message(report, &names))
                .with_code("validation_unavailable");
        }
        let message = message(report, &names);
        let at = |error: Error| match decisive().next().map(|first| names.param(first.pointer())) {
            Some(param) if !param.is_empty() => error.with_param(param),
            _ => error,
        };
        match (report.part(), of_policy) {
            (Part::Request, false) => {
                at(Error::new(Class::BadRequest, message).with_code("validation_failed"))
            }
            (Part::Request, true) => {
                let error = Error::new(Class::ContentPolicy, message);
                at(error.with_status(StatusCode::UNPROCESSABLE_ENTITY))
            }
            (Part::Response, of_policy) => Error::new(Class::Malformed, message)
                .with_code(if of_policy { "content_filter" } else { "invalid_answer" })
                .with_retry_after(RetryAfter::Never),
        }
    }

    /// As a structured field: a list of rules, each with the place where it is broken and how much it weighs. It is written as
    /// the crate's own header is.
    pub(super) fn header(&self, report: &Report, asked: Option<&Bytes>) -> Option<HeaderValue> {
        let names = Names::of(self, report, asked);
        let item = |violation: &Violation| {
            let mut item = format!("\"{}\"", violation.rule());
            if !violation.pointer().is_empty() {
                _ = write!(item, ";at=\"{}\"", escaped(&names.pointer(violation.pointer())));
            }
            let weight = match self.rules.get(violation.rule()) {
                _ if violation.is_malformed() => "malformed",
                _ if violation.is_failure() => "failed",
                // That of the configuration: those that only report are made lighter.
                Some((Severity::Warn, _)) => "warn",
                Some((Severity::Safety, _)) => "safety",
                Some((Severity::Error, _)) | None => "error",
            };
            item + ";is=" + weight
        };
        let mut told: Vec<_> = report.violations().iter().take(MOST_TOLD).map(item).collect();
        match left_out(report) {
            0 => {}
            more => told.push(format!("more;n={more}")),
        }
        HeaderValue::from_str(&told.join(", ")).ok().filter(|value| !value.is_empty())
    }
}

fn message(report: &Report, names: &Names<'_>) -> String {
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
            _ = write!(message, " at {}", names.pointer(violation.pointer()));
        }
        _ = write!(message, ": {}", violation.message());
    }
    match left_out(report) {
        0 => {}
        more => _ = write!(message, "; and {more} more"),
    }
    message
}

/// The names that are told of one report.
struct Names<'a> {
    told: &'a Told,
    /// Those of the schema that the request has in it, if its form is what it is about.
    asked: BTreeSet<String>,
}

impl<'a> Names<'a> {
    fn of(told: &'a Told, report: &Report, asked: Option<&Bytes>) -> Self {
        let of_form = |violation: &Violation| violation.rule() == STRUCTURED_OUTPUT;
        let mut names = BTreeSet::new();
        if let Some(body) = asked.filter(|_| report.violations().iter().any(of_form))
            && let Ok(Asked { response_format }) = serde_json::from_slice(body)
        {
            members(&response_format, &mut names);
        }
        Self { told, asked: names }
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

    fn steps<'p>(&'p self, pointer: &'p str) -> impl Iterator<Item = &'p str> {
        pointer.split('/').skip(1).map(|step| if self.may_tell(step) { step } else { HIDDEN })
    }

    fn may_tell(&self, step: &str) -> bool {
        // One with `~` in it is escaped, and nobody's.
        is_index(step)
            || NAMES.contains(&step)
            || self.asked.contains(step)
            || self.told.names.iter().any(|names| names.contains(step))
    }
}

/// As much of a request as says in what form its answer is wanted.
#[derive(Deserialize)]
struct Asked {
    response_format: Value,
}

/// As many as a list can have; a longer number may be anything.
fn is_index(step: &str) -> bool {
    (1..=6).contains(&step.len()) && step.bytes().all(|byte| byte.is_ascii_digit())
}

/// Names of schemas may have what a header, or a string in it, cannot.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' | b'%' | ..0x20 | 0x7f.. => _ = write!(escaped, "%{byte:02X}"),
            byte => escaped.push(char::from(byte)),
        }
    }
    escaped
}

fn left_out(report: &Report) -> usize {
    report.left_out() + report.violations().len().saturating_sub(MOST_TOLD)
}

#[cfg(test)]
mod tests {
    use bartizan_validate::{Found, Rules};

    use super::*;

    fn told(level: Level) -> Told {
        let rule = |name: &str, severity, of_policy| (name.to_owned(), (severity, of_policy));
        Told {
            names: vec![Arc::new(BTreeSet::from(["größe\"%".to_owned(), "known".to_owned()]))],
            rules: BTreeMap::from([
                rule("form", Severity::Warn, false),
                rule("cards", Severity::Error, true),
                rule("terms", Severity::Safety, true),
            ]),
            level,
        }
    }

    /// What is found by rules of these names, at these places.
    fn report(found: &[(&'static str, &'static str)], level: Level) -> Report {
        let add = |rules: Rules<()>, (name, pointer): &(&str, &'static str)| {
            let severity = told(level).rules.get(*name).map_or(Severity::Error, |(severity, _)| *severity);
            let pointer = *pointer;
            rules
                .rule(name, severity, move |(): &(), found: &mut Found<'_>| found.violation(pointer, "wrong"))
        };
        found.iter().fold(Rules::new(), add).check(&(), level)
    }

    #[test]
    fn names_that_anybody_may_have_chosen_are_not_told() {
        let report = report(&[("cards", "")], Level::Strict);
        let told = told(Level::Strict);
        let names = Names::of(&told, &report, None);
        for (pointer, shown, param) in [
            ("", "", ""),
            ("/messages/0/content", "/messages/0/content", "messages[0].content"),
            ("/metadata/ann@example.org", "/metadata/*", "metadata.*"),
            ("/metadata/a~1b/known", "/metadata/*/known", "metadata.*.known"),
            ("/messages/999999/4111111111111111", "/messages/999999/*", "messages[999999].*"),
            ("//content", "/*/content", "*.content"),
        ] {
            assert_eq!((names.pointer(pointer).as_str(), names.param(pointer).as_str()), (shown, param));
        }
    }

    #[test]
    fn names_of_the_schema_that_was_asked_for_are_told_of_its_form_alone() {
        let told = told(Level::Strict);
        let body = r#"{"response_format":{"json_schema":{"schema":{"properties":{"age":{}}}}}}"#;
        let body = Bytes::from_static(body.as_bytes());
        let shown = |rule, body: &Bytes| {
            told.error(&report(&[(rule, "/content/age")], Level::Strict), Some(body)).message().to_owned()
        };
        assert!(shown(STRUCTURED_OUTPUT, &body).contains("/content/age: "));
        assert!(shown("cards", &body).contains("/content/*: "));
        assert!(shown(STRUCTURED_OUTPUT, &Bytes::from_static(b"no JSON")).contains("/content/*: "));
    }

    /// Only what refuses decides how.
    #[test]
    fn statuses() {
        let error = |found: &[(&'static str, &'static str)], level| {
            let error = told(level).error(&report(found, level), None);
            (error.status().as_u16(), error.code().unwrap().to_owned(), error.param().map(ToOwned::to_owned))
        };
        let both = [("form", "/n"), ("cards", "/user")];
        let at = |param: &str| Some(param.to_owned());
        assert_eq!(error(&both, Level::Strict), (400, "validation_failed".to_owned(), at("n")));
        assert_eq!(error(&both, Level::Moderate), (422, "content_policy_violation".to_owned(), at("user")));
        assert_eq!(
            error(&[("terms", "")], Level::Lenient),
            (422, "content_policy_violation".to_owned(), None)
        );
    }

    #[test]
    fn a_header_can_hold_it() {
        let found = [("form", "/größe\"%/x"), ("terms", "")];
        let header = told(Level::Strict).header(&report(&found, Level::Lenient), None).unwrap();
        assert_eq!(header, r#""form";at="/gr%C3%B6%C3%9Fe%22%25/*";is=warn, "terms";is=safety"#);
        assert_eq!(told(Level::Strict).header(&report(&[], Level::Strict), None), None);
        let many = [("cards", "/known"); 40];
        let header = told(Level::Strict).header(&report(&many, Level::Lenient), None).unwrap();
        let header = header.to_str().unwrap();
        assert!(header.ends_with(r#""cards";at="/known";is=error, more;n=24"#), "{header}");
    }
}
