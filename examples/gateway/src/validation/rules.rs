//! From the rules of the configuration to those that are asked.

use std::sync::Arc;

use bartizan_provider::{Facts, HttpTransport};
use bartizan_validate::{
    Bodies, Found, Json, Message, Pattern, Pii, Report, ResponseFormat, Rule, Rules, Severity, Terms,
    Validator, Window, at, max_bytes, strings,
};
use bytes::Bytes;
use http::{Request, Response};
use serde_json::Value;

use super::{
    counts::{Counts, OfModel as Own},
    moderation,
};
use crate::config::{self, Action, Check, Config, Model, Side};

/// What of an answer is the provider's own and no text: it may look like anything.
const OF_PROVIDERS: [&str; 6] = ["created", "id", "model", "object", "service_tier", "system_fingerprint"];

/// What reports call the form that a request asks for.
pub(super) const STRUCTURED_OUTPUT: &str = "structured_output";

/// The rules of one model.
pub(super) struct OfModel<'a> {
    config: &'a Config,
    model: &'a Model,
    own: &'a Arc<Own>,
    counts: &'a Arc<Counts>,
    transport: &'a HttpTransport,
}

impl<'a> OfModel<'a> {
    pub(super) fn new(
        config: &'a Config,
        model: &'a Model,
        own: &'a Arc<Own>,
        counts: &'a Arc<Counts>,
        transport: &'a HttpTransport,
    ) -> Self {
        Self { config, model, own, counts, transport }
    }

    /// Checks requests, whatever they ask.
    pub(super) fn of_requests(&self) -> Validator<Request<Bytes>, Bodies> {
        Validator::http(self.requests(Rules::new()))
    }

    /// Checks requests of chats, and answers to them.
    pub(super) fn of_chat(&self) -> Validator<Request<Bytes>, Bodies> {
        let mut requests = Rules::new();
        for rule in self.answers().filter(|rule| needs_all(rule)) {
            requests = requests.rule(&rule.name, self.severity(rule.severity), no_stream);
        }
        let mut validator = Validator::http(self.requests(requests));
        let structured = self.model.guard.structured_output;
        if self.answers().next().is_none() && !structured {
            return validator;
        }
        let most = self.config.validation.max_answer_bytes;
        validator = validator.whole(most, self.whole());
        if structured {
            let format = ResponseFormat::chat().max_bytes(most);
            validator = validator.structured(STRUCTURED_OUTPUT, self.severity(Severity::Error), format);
        }
        // Where a stream would get around a rule that refuses, there are none.
        if self.answers().all(|rule| !needs_all(rule) || !self.refuses(rule)) {
            validator = validator.events(self.window(), self.streams());
        }
        validator
    }

    fn answers(&self) -> impl Iterator<Item = &'a config::Rule> {
        self.config.validation.rules_of(&self.model.guard).filter(|rule| rule.side != Side::Request)
    }

    /// Those that only report never refuse.
    fn severity(&self, severity: Severity) -> Severity {
        match self.model.guard.action {
            Action::Reject => severity,
            Action::Report => Severity::Warn,
        }
    }

    fn refuses(&self, rule: &config::Rule) -> bool {
        let guard = &self.model.guard;
        guard.action == Action::Reject && guard.level.refuses(rule.severity)
    }

    fn json(&self, max_bytes: usize) -> Json {
        Json::new().max_bytes(max_bytes).max_depth(self.config.validation.max_json_depth)
    }

    fn window(&self) -> Window {
        let validation = &self.config.validation;
        Window::new(validation.window_bytes).overlap(validation.overlap_bytes).within(validation.window)
    }

    /// Counts what passes nevertheless.
    fn counted(&self) -> impl Fn(&Report) + Send + Sync + 'static {
        let (own, counts) = (self.own.clone(), self.counts.clone());
        move |report| counts.reported(&own, report)
    }

    fn requests(&self, mut rules: Rules<Request<Bytes>>) -> Rules<Request<Bytes>> {
        let all = self.config.validation.rules_of(&self.model.guard);
        let mut values = Rules::new();
        for rule in all.filter(|rule| rule.side != Side::Answer) {
            (rules, values) = self.add(rule, rules, values, Side::Request);
        }
        if !values.is_empty() {
            rules = rules.json(self.json(self.config.server.max_body_bytes), values);
        }
        let counted = self.counted();
        rules.on_report(move |request, report| {
            counted(report);
            request.extensions_mut().insert(report.clone());
        })
    }

    fn whole(&self) -> Rules<Response<Bytes>> {
        let (mut rules, mut values) = (Rules::new(), Rules::new());
        for rule in self.answers() {
            (rules, values) = self.add(rule, rules, values, Side::Answer);
        }
        if !values.is_empty() {
            rules = rules.json(self.json(self.config.validation.max_answer_bytes), values);
        }
        let counted = self.counted();
        rules.on_report(move |_, report| counted(report))
    }

    fn streams(&self) -> Rules<str> {
        let mut rules = Rules::new();
        for rule in self.answers().filter(|rule| !needs_all(rule)) {
            let (name, severity) = (&rule.name, self.severity(rule.severity));
            if let Check::Moderation(endpoint) = &rule.check {
                let inquiry = moderation::of_window(name, endpoint, self.transport);
                rules = rules.inquire(name, severity, inquiry);
            } else if let Some(text) = Text::of(&rule.check) {
                rules = rules.rule(name, severity, text);
            }
        }
        let counted = self.counted();
        rules.on_report(move |_, report| counted(report))
    }

    /// Adds a rule to those for messages or to those for what they say.
    fn add<M: Message>(
        &self,
        rule: &config::Rule,
        messages: Rules<M>,
        values: Rules<Value>,
        side: Side,
    ) -> (Rules<M>, Rules<Value>) {
        let (name, severity) = (&rule.name, self.severity(rule.severity));
        let values = match (&rule.check, Text::of(&rule.check), &rule.at) {
            (Check::MaxBytes(n), ..) => return (messages.rule(name, severity, max_bytes(*n)), values),
            (Check::Schema(schema, _), ..) => values.rule(name, severity, schema.clone()),
            (Check::Moderation(endpoint), ..) => {
                values.inquire(name, severity, moderation::of_whole(name, endpoint, self.transport))
            }
            (_, Some(text), Some(pointer)) => values.rule(name, severity, at(pointer, text)),
            (_, Some(text), None) if side == Side::Answer => values.rule(name, severity, texts(text)),
            (_, Some(text), None) => values.rule(name, severity, strings(text)),
            (_, None, _) => unreachable!("all other checks are of texts"),
        };
        (messages, values)
    }
}

/// Whether a rule for answers needs all of one, so that no stream can be checked by it.
fn needs_all(rule: &config::Rule) -> bool {
    rule.at.is_some() || rule.check.is_of_form()
}

fn no_stream(request: &Request<Bytes>, found: &mut Found<'_>) {
    if request.extensions().get().is_some_and(Facts::stream) {
        found.violation("/stream", "answers are checked by it as a whole, which streams are not");
    }
}

/// A rule for texts, whichever it is.
enum Text {
    Terms(Terms),
    Pattern(Pattern),
    Pii(Pii),
}

impl Text {
    fn of(check: &Check) -> Option<Self> {
        match check {
            Check::Terms(terms) => Some(Self::Terms(terms.clone())),
            Check::Deny(pattern) | Check::Require(pattern) => Some(Self::Pattern(pattern.clone())),
            Check::Pii(pii) => Some(Self::Pii(*pii)),
            Check::Schema(..) | Check::MaxBytes(_) | Check::Moderation(_) => None,
        }
    }
}

impl Rule<str> for Text {
    fn check(&self, text: &str, found: &mut Found<'_>) {
        match self {
            Self::Terms(terms) => terms.check(text, found),
            Self::Pattern(pattern) => pattern.check(text, found),
            Self::Pii(pii) => pii.check(text, found),
        }
    }

    fn clears(&self, lines: &str) -> bool {
        match self {
            Self::Terms(terms) => terms.clears(lines),
            Self::Pattern(pattern) => pattern.clears(lines),
            Self::Pii(pii) => pii.clears(lines),
        }
    }
}

/// Has a rule look at all strings of an answer that are no provider's own.
fn texts(rule: Text) -> impl Rule<Value> + Send + Sync + 'static {
    let all = strings(rule);
    move |answer: &Value, found: &mut Found<'_>| match answer {
        Value::Object(members) => {
            for (name, member) in members.iter().filter(|(name, _)| !OF_PROVIDERS.contains(&name.as_str())) {
                let pointer = format!("/{}", name.replace('~', "~0").replace('/', "~1"));
                all.check(member, &mut found.at(&pointer));
            }
        }
        other => all.check(other, found),
    }
}
