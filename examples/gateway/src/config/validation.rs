//! The keys of what requests and answers are checked by: `[validation]`, and what a `[[model]]` says of it for itself.

use std::{ops::RangeInclusive, time::Duration};

use bartizan_validate::{Level, OnRuleError};

use super::{
    Config, Origin,
    key::{Key, Kind, nearest},
    load::{Given, Loader},
    rule::{Check, Rule, Side},
    section::Section,
};

/// `[validation]`: by what requests and answers are checked, and what becomes of those that break a rule.
#[derive(Clone, Debug)]
pub struct Validation {
    /// Of models that do not say so themselves.
    pub usual: Guard,
    /// How many bytes of a stream's text are looked at together.
    pub window_bytes: usize,
    /// How many bytes of what has passed are looked at again with those that follow.
    pub overlap_bytes: usize,
    /// How long text of a stream is held that is no full window.
    pub window: Duration,
    /// A longer answer, which is no stream, cannot be checked.
    pub max_answer_bytes: usize,
    /// JSON that is nested deeper cannot be checked.
    pub max_json_depth: usize,
    /// What becomes of what a rule cannot judge because it fails itself. `None`: what the level says.
    pub on_error: Option<OnRuleError>,
    /// `[[rule]]`, in the order of the file, each name once.
    pub rules: Vec<Rule>,
}

/// How a model is guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guard {
    /// Whether it is.
    pub enabled: bool,
    /// Which broken rules matter.
    pub level: Level,
    /// What becomes of whoever breaks one that does.
    pub action: Action,
    /// The rules by name; all there are if `None`.
    pub rules: Option<Vec<String>>,
    /// Whether answers must have the form that their request asks for.
    pub structured_output: bool,
}

/// What becomes of a request or an answer that breaks a rule that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is refused.
    Reject,
    /// It passes, and is told of.
    Report,
}

impl Default for Validation {
    fn default() -> Self {
        Self {
            usual: Guard {
                enabled: true,
                level: Level::Moderate,
                action: Action::Reject,
                rules: None,
                structured_output: false,
            },
            window_bytes: 1024,
            overlap_bytes: 256,
            window: Duration::from_millis(200),
            max_answer_bytes: 10 << 20,
            max_json_depth: 64,
            on_error: None,
            rules: Vec::new(),
        }
    }
}

impl Validation {
    /// The rules of this model, in the order of the file.
    pub(crate) fn rules_of<'a>(&'a self, guard: &'a Guard) -> impl Iterator<Item = &'a Rule> {
        let names = guard.rules.as_deref();
        self.rules.iter().filter(move |rule| names.is_none_or(|names| names.contains(&rule.name)))
    }

    /// Whether there is anything to check this model by.
    pub(crate) fn guards(&self, guard: &Guard) -> bool {
        guard.enabled && (guard.structured_output || self.rules_of(guard).next().is_some())
    }
}

/// What a stream's window may be. More would be read before anything is seen of it.
const WINDOW: RangeInclusive<u64> = 1..=1 << 20;
/// A window waits for no longer than a client does.
const WITHIN: RangeInclusive<u64> = 1..=10_000;
/// As deep as the parser bears.
const DEPTH: RangeInclusive<u64> = 1..=127;
/// As much as is read of an answer.
const ANSWER: RangeInclusive<u64> = 1..=1 << 26;

const LEVELS: &str = "\"strict\", \"moderate\" or \"lenient\"";
const ON_ERROR: &str = "\"auto\", \"refuse\" or \"pass\"";
const ACTIONS: &str = "\"reject\" or \"report\"";
pub(super) const RULES: &str = "a list of rules' names";

pub(super) const VALIDATION: &[Key<Validation>] = &[
    Key {
        name: "enabled",
        kind: Kind::Flag(|validation, flag| validation.usual.enabled = flag),
        default: "true",
        doc: "Whether anything is checked, but for models that say so themselves. There is nothing to check without a\n\
              [[rule]] or structured_output.",
    },
    Key {
        name: "level",
        kind: Kind::Text(LEVELS, |validation, text| level(&mut validation.usual, text)),
        default: "\"moderate\"",
        doc: "Which rules refuse, by their severity: \"strict\" all, \"moderate\" those of severity error and safety,\n\
              \"lenient\" those of severity safety. The others are reported. What cannot be read or not be checked is refused\n\
              at every level.",
    },
    Key {
        name: "action",
        kind: Kind::Text(ACTIONS, |validation, text| action(&mut validation.usual, text)),
        default: "\"reject\"",
        doc: "Whether what breaks rules is refused, or, to see what they would do, passes and is only reported.",
    },
    Key {
        name: "rules",
        kind: Kind::NamesOr("all", RULES, |validation, names| validation.usual.rules = names),
        default: "\"all\"",
        doc: "The rules of models that do not say so themselves.",
    },
    Key {
        name: "structured_output",
        kind: Kind::Flag(|validation, flag| validation.usual.structured_output = flag),
        default: "false",
        doc: "Whether an answer must have the form that its request asks for: that of the JSON schema in response_format.\n\
              A request whose schema cannot be checked is refused. It counts as a rule of severity error.",
    },
    Key {
        name: "on_error",
        kind: Kind::Text(ON_ERROR, |validation, text| {
            validation.on_error = match text {
                "auto" => None,
                "refuse" => Some(OnRuleError::Closed),
                "pass" => Some(OnRuleError::Open),
                _ => return Err(none_of(ON_ERROR, text, &["auto", "refuse", "pass"])),
            };
            Ok(())
        }),
        default: "\"auto\"",
        doc: "What becomes of a request or an answer when a moderation endpoint fails or is too slow: \"refuse\", with a 503,\n\
              or \"pass\", and it is reported. \"auto\" is to refuse, but at level lenient.",
    },
    Key {
        name: "window_bytes",
        kind: Kind::Integer(WINDOW, |validation, n| validation.window_bytes = size(n)),
        default: "1_024",
        doc: "A stream is let pass once so many bytes of text have come, and rules have looked at them. The window in which\n\
              something is found is not sent; those before it were.",
    },
    Key {
        name: "overlap_bytes",
        kind: Kind::Integer(WINDOW, |validation, n| validation.overlap_bytes = size(n)),
        default: "256",
        doc: "How many bytes of what has passed are looked at again together with what follows. In streams, what is longer\n\
              than this can be missed.",
    },
    Key {
        name: "window_ms",
        kind: Kind::Integer(WITHIN, |validation, ms| validation.window = Duration::from_millis(ms)),
        default: "200",
        doc: "How long the text of a stream is held at most until there is a window of it.",
    },
    Key {
        name: "max_answer_bytes",
        kind: Kind::Integer(ANSWER, |validation, n| validation.max_answer_bytes = size(n)),
        default: "10_485_760",
        doc: "A longer answer, which is no stream, cannot be checked and is refused.",
    },
    Key {
        name: "max_json_depth",
        kind: Kind::Integer(DEPTH, |validation, n| validation.max_json_depth = size(n)),
        default: "64",
        doc: "A request or an answer with more arrays and objects inside of each other cannot be checked and is refused.",
    },
];

/// The keys of `[validation]` that a `[[model]]` has for itself.
pub(super) const GUARD: &[Key<Guard>] = &[
    Key {
        name: "validation",
        kind: Kind::Flag(|guard, flag| guard.enabled = flag),
        default: "",
        doc: "Whether its requests and answers are checked. Default: as in [validation].",
    },
    Key {
        name: "validation_level",
        kind: Kind::Text(LEVELS, level),
        default: "",
        doc: "Which rules refuse. Default: as in [validation].",
    },
    Key {
        name: "validation_action",
        kind: Kind::Text(ACTIONS, action),
        default: "",
        doc: "Whether they do, or only report. Default: as in [validation].",
    },
    Key {
        name: "validation_rules",
        kind: Kind::NamesOr("all", RULES, |guard, names| guard.rules = names),
        default: "",
        doc: "Its rules. Default: as in [validation].",
    },
    Key {
        name: "structured_output",
        kind: Kind::Flag(|guard, flag| guard.structured_output = flag),
        default: "",
        doc: "Whether its answers must have the form that is asked for. Default: as in [validation].",
    },
];

fn level(guard: &mut Guard, text: &str) -> Result<(), String> {
    guard.level = match text {
        "strict" => Level::Strict,
        "moderate" => Level::Moderate,
        "lenient" => Level::Lenient,
        _ => return Err(none_of(LEVELS, text, &["strict", "moderate", "lenient"])),
    };
    Ok(())
}

fn action(guard: &mut Guard, text: &str) -> Result<(), String> {
    guard.action = match text {
        "reject" => Action::Reject,
        "report" => Action::Report,
        _ => return Err(none_of(ACTIONS, text, &["reject", "report"])),
    };
    Ok(())
}

/// For a word that is none of a few.
pub(super) fn none_of(all: &str, text: &str, words: &[&str]) -> String {
    match nearest(text, words.iter().copied()) {
        Some(near) => format!("must be {all}, not {text:?}; did you mean {near:?}?"),
        None => format!("must be {all}, not {text:?}"),
    }
}

/// Of a number that its key's range keeps small enough.
pub(super) fn size(n: u64) -> usize {
    usize::try_from(n).expect("the range of the key is within the type's")
}

impl Loader<'_> {
    /// Rules that there are not, or that nobody has; and what has no effect. `entries` says where each rule stands.
    pub(super) fn check_validation(
        &mut self,
        config: &Config,
        given: &Given,
        of_models: &[(usize, Given)],
        entries: &[Origin],
    ) {
        let validation = &config.validation;
        self.check_names(Section::Validation, "rules", validation, &validation.usual, given);
        for (index, given) in of_models {
            let guard = &config.models[*index].guard;
            self.check_names(Section::Model, "validation_rules", validation, guard, given);
            let checks = guard.structured_output || validation.rules_of(guard).next().is_some();
            for key in ["validation_level", "validation_action"] {
                let Some(origin) = given.origin_of_valid(key).filter(|_| !checks) else { continue };
                self.useless(origin, key, Section::Model);
            }
        }
        let guards: Vec<_> = config.models.iter().map(|model| &model.guard).collect();
        for (rule, origin) in validation.rules.iter().zip(entries) {
            if !guards.iter().any(|guard| validation.rules_of(guard).any(|own| own.name == rule.name)) {
                let message = format!(
                    "the [[rule]] {:?} has no effect: no model has it; name it in \"rules\" or \"validation_rules\", or \
                     remove it",
                    rule.name
                );
                self.problem(origin.clone(), message);
            }
            if let (Some(length), Side::Answer | Side::Both, None) = (rule.longest, rule.side, &rule.at)
                && length > validation.overlap_bytes
            {
                let message = format!(
                    "the [[rule]] {:?} has a term of {length} bytes, which would be missed in streams: \"overlap_bytes\" in \
                     [validation] is {}; raise that, or shorten the term",
                    rule.name, validation.overlap_bytes
                );
                self.problem(origin.clone(), message);
            }
        }
        let asks = |rule: &Rule| matches!(rule.check, Check::Moderation(_));
        if let Some(origin) = given.origin_of_valid("on_error")
            && validation.on_error.is_some()
            && validation.usual.enabled
            && !validation.rules.iter().any(asks)
        {
            let message = "\"on_error\" in [validation] has no effect without a [[rule]] with moderation_url; add one, or \
                           remove this";
            self.problem(origin.clone(), message.to_owned());
        }
        let is_off = given.origin_of_valid("enabled").is_some() && !validation.usual.enabled;
        let checks =
            !validation.rules.is_empty() || guards.iter().any(|guard| guard.structured_output) || is_off;
        // A rule that is wrong is told of already.
        if checks || !entries.is_empty() {
            return;
        }
        let (now, usual) = (validation, Validation::default());
        for (key, is_set) in [
            ("level", now.usual.level != usual.usual.level),
            ("action", now.usual.action != usual.usual.action),
            ("window_bytes", now.window_bytes != usual.window_bytes),
            ("overlap_bytes", now.overlap_bytes != usual.overlap_bytes),
            ("window_ms", now.window != usual.window),
            ("max_answer_bytes", now.max_answer_bytes != usual.max_answer_bytes),
            ("max_json_depth", now.max_json_depth != usual.max_json_depth),
        ] {
            let Some(origin) = given.origin_of_valid(key).filter(|_| is_set) else { continue };
            self.useless(origin, key, Section::Validation);
        }
    }

    fn useless(&mut self, origin: &Origin, key: &str, section: Section) {
        let message = format!(
            "{key:?} in {section} has no effect without a [[rule]], or structured_output = true; add one, or remove this"
        );
        self.problem(origin.clone(), message);
    }

    fn check_names(
        &mut self,
        section: Section,
        key: &str,
        validation: &Validation,
        guard: &Guard,
        given: &Given,
    ) {
        let (Some(origin), Some(names)) = (given.origin_of_valid(key).cloned(), &guard.rules) else { return };
        let known: Vec<_> = validation.rules.iter().map(|rule| rule.name.as_str()).collect();
        for (n, name) in names.iter().enumerate() {
            let wrong = if names[..n].contains(name) {
                "and does so twice".to_owned()
            } else if !known.contains(&name.as_str()) {
                match nearest(name, known.iter().copied()) {
                    Some(near) => format!("which is no [[rule]]; did you mean {near:?}?"),
                    None if known.is_empty() => "which is no [[rule]]; there is none".to_owned(),
                    None => format!("which is no [[rule]]; there are {}", known.join(", ")),
                }
            } else {
                continue;
            };
            self.problem(origin.clone(), format!("{key:?} in {section} names {name:?}, {wrong}"));
        }
    }
}
