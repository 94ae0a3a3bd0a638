//! The `[[rule]]` entries: what requests and answers must not have, or must be.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    path::Path,
    sync::Arc,
    time::Duration,
};

use bartizan_validate::{Pattern, Pii, Schema, Severity, Terms};
use http::Uri;
use serde_json::Value;
use toml::{Spanned, de::DeValue};

use super::{
    ApiKey, Origin,
    key::{Key, Kind, set},
    load::{Given, Loader},
    schema::{MILLISECONDS, base_url, variable_name},
    section::Section,
    validation::{none_of, size},
};

/// `[[rule]]`: one that is ready to be asked.
#[derive(Clone, Debug)]
pub struct Rule {
    /// What it is called in reports: visible ASCII letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// How much it weighs.
    pub severity: Severity,
    /// What it looks at.
    pub side: Side,
    /// The strings it looks at, by a JSON pointer in which `*` stands for every one; all of them if `None`.
    pub at: Option<String>,
    /// What it asks.
    pub check: Check,
    /// How many bytes the longest of its terms has.
    pub(super) longest: Option<usize>,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What clients send.
    Request,
    /// What they get.
    Answer,
    /// Both.
    Both,
}

/// What a rule asks. Clones share what was compiled.
#[derive(Clone, Debug)]
pub enum Check {
    /// These must not be there.
    Terms(Terms),
    /// This must match nowhere.
    Deny(Pattern),
    /// This must match.
    Require(Pattern),
    /// Personal data, which must not be there.
    Pii(Pii),
    /// The JSON must be like this. And the names of members that the schema knows, which are no secret.
    Schema(Schema, Arc<BTreeSet<String>>),
    /// The body must not be longer.
    MaxBytes(usize),
    /// A moderation endpoint must not flag it.
    Moderation(Arc<Moderation>),
}

/// A moderation endpoint, as OpenAI's `/v1/moderations` is one.
#[derive(Clone, Debug)]
pub struct Moderation {
    /// What stands before `/moderations`.
    pub url: Uri,
    /// The key to send, if any.
    pub api_key: Option<ApiKey>,
    /// The model that judges, if it is to be named.
    pub model: Option<String>,
    /// How long it has.
    pub within: Duration,
}

impl Check {
    /// Whether it is about the form of a message and not about what it says.
    pub(crate) const fn is_of_form(&self) -> bool {
        match self {
            Self::Schema(..) | Self::MaxBytes(_) | Self::Require(_) => true,
            Self::Terms(_) | Self::Deny(_) | Self::Pii(_) | Self::Moderation(_) => false,
        }
    }
}

/// A `[[rule]]` while it is read.
#[derive(Default)]
pub(super) struct RawRule {
    name: Option<String>,
    severity: Option<Severity>,
    side: Option<Side>,
    at: Option<String>,
    terms: Vec<String>,
    terms_file: String,
    inside_words: bool,
    deny: String,
    require: String,
    pii: Pii,
    schema: String,
    max_bytes: usize,
    moderation_url: Option<Uri>,
    moderation_key_env: Option<String>,
    moderation_model: Option<String>,
    deadline: Option<Duration>,
}

/// Names that reports have for what no `[[rule]]` says.
pub(crate) const OWN_NAMES: [&str; 4] = ["json", "body", "stream", "structured_output"];

/// The keys that say what a rule checks.
const CHECKS: [&str; 8] =
    ["terms", "terms_file", "deny", "require", "pii", "schema", "max_bytes", "moderation_url"];

/// The keys that only a moderation endpoint has.
const OF_MODERATION: [&str; 3] = ["moderation_key_env", "moderation_model", "deadline_ms"];

/// The classes of personal data.
const CLASSES: [&str; 4] = ["emails", "phones", "cards", "secrets"];

/// A longer file is nobody's list or schema.
const MAX_FILE: u64 = 16 << 20;

pub(super) const RULE: &[Key<RawRule>] = &[
    Key {
        name: "name",
        kind: Kind::Text("a string", |rule, text| {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
            if text.is_empty() || text.len() > 64 || !text.bytes().all(fits) {
                return Err(format!(
                    "must have 1 to 64 ASCII letters, digits, \".\", \"_\" and \"-\", which {text:?} has not"
                ));
            }
            if OWN_NAMES.contains(&text) {
                return Err(format!(
                    "is {text:?}, which reports have for the gateway's own checks; choose another"
                ));
            }
            rule.name = Some(text.to_owned());
            Ok(())
        }),
        default: "",
        doc: "Required. What it is called in errors, reports and statistics.",
    },
    Key {
        name: "side",
        kind: Kind::Text("\"request\", \"answer\" or \"both\"", |rule, text| {
            rule.side = Some(match text {
                "request" => Side::Request,
                "answer" => Side::Answer,
                "both" => Side::Both,
                _ => {
                    let all = "\"request\", \"answer\" or \"both\"";
                    return Err(none_of(all, text, &["request", "answer", "both"]));
                }
            });
            Ok(())
        }),
        default: "",
        doc: "Required. What it looks at: \"request\", \"answer\" or \"both\". Answers to embedding requests are numbers, and\n\
              are not looked at.",
    },
    Key {
        name: "severity",
        kind: Kind::Text("\"warn\", \"error\" or \"safety\"", |rule, text| {
            rule.severity = Some(match text {
                "warn" => Severity::Warn,
                "error" => Severity::Error,
                "safety" => Severity::Safety,
                _ => {
                    let all = "\"warn\", \"error\" or \"safety\"";
                    return Err(none_of(all, text, &["warn", "error", "safety"]));
                }
            });
            Ok(())
        }),
        default: "\"error\"",
        doc: "How much it weighs: \"warn\" refuses at level strict, \"error\" at strict and moderate, \"safety\" always.",
    },
    Key {
        name: "terms",
        kind: Kind::Names("a list of terms", |rule, terms| {
            rule.terms = terms;
            Ok(())
        }),
        default: "",
        doc: "Words, or several in a row, that must not be there. The case of ASCII letters does not matter.",
    },
    Key {
        name: "terms_file",
        kind: Kind::Text("the path of a file", |rule, text| path(&mut rule.terms_file, text)),
        default: "",
        doc: "A file of them, one a line. Empty lines and those that begin with `#` do not count.",
    },
    Key {
        name: "inside_words",
        kind: Kind::Flag(|rule, flag| rule.inside_words = flag),
        default: "false",
        doc: "Whether a term counts inside of words, too.",
    },
    Key {
        name: "deny",
        kind: Kind::Text("a regular expression", |rule, text| {
            text.clone_into(&mut rule.deny);
            Ok(())
        }),
        default: "",
        doc: "A regular expression that must match nowhere, as '(?i)project[ -]?nightfall'. It has no look-around and no\n\
              back references, and is searched in linear time.",
    },
    Key {
        name: "require",
        kind: Kind::Text("a regular expression", |rule, text| {
            text.clone_into(&mut rule.require);
            Ok(())
        }),
        default: "",
        doc: "A regular expression that must match. It needs `at`.",
    },
    Key {
        name: "pii",
        kind: Kind::Names("a list of \"emails\", \"phones\", \"cards\" and \"secrets\"", |rule, classes| {
            for class in &classes {
                rule.pii = match class.as_str() {
                    "emails" => rule.pii.emails(),
                    "phones" => rule.pii.phones(),
                    "cards" => rule.pii.cards(),
                    "secrets" => rule.pii.secrets(),
                    _ => {
                        let all = "a list of \"emails\", \"phones\", \"cards\" and \"secrets\"";
                        return Err(none_of(all, class, &CLASSES));
                    }
                };
            }
            if classes.is_empty() { Err("is empty".to_owned()) } else { Ok(()) }
        }),
        default: "",
        doc: "Personal data, by its form, that must not be there: of \"emails\", \"phones\", \"cards\" and \"secrets\", which\n\
              are keys and tokens.",
    },
    Key {
        name: "schema",
        kind: Kind::Text("the path of a file", |rule, text| path(&mut rule.schema, text)),
        default: "",
        doc: "A file with the JSON schema that the whole request or answer must be valid against. Nothing is fetched that it\n\
              refers to.",
    },
    Key {
        name: "max_bytes",
        kind: Kind::Integer(1..=1 << 30, |rule, n| rule.max_bytes = size(n)),
        default: "",
        doc: "The body must not be longer.",
    },
    Key {
        name: "moderation_url",
        kind: Kind::Text("an http or https URL", |rule, text| {
            rule.moderation_url = Some(base_url(text)?);
            Ok(())
        }),
        default: "",
        doc: "An API that judges texts as OpenAI's does: what stands before `/moderations`, as \"https://api.openai.com/v1\".\n\
              What it flags breaks the rule. It is asked about all texts of a request, and about each window of a stream,\n\
              which waits for it, if no other rule refuses.",
    },
    Key {
        name: "moderation_key_env",
        kind: Kind::Text("the name of an environment variable", |rule, text| {
            rule.moderation_key_env = Some(variable_name(text)?);
            Ok(())
        }),
        default: "",
        doc: "The environment variable that holds that API's key; without it no key is sent.",
    },
    Key {
        name: "moderation_model",
        kind: Kind::Text("a string", |rule, text| {
            if text.is_empty() {
                return Err("is empty".to_owned());
            }
            rule.moderation_model = Some(text.to_owned());
            Ok(())
        }),
        default: "",
        doc: "The model that judges. Default: the API chooses.",
    },
    Key {
        name: "deadline_ms",
        kind: Kind::Integer(MILLISECONDS, |rule, ms| rule.deadline = Some(Duration::from_millis(ms))),
        default: "2_000",
        doc: "How long that API has to answer. If it does not, or fails, `on_error` of [validation] says what then.",
    },
    Key {
        name: "at",
        kind: Kind::Text("a JSON pointer", |rule, text| {
            if !text.starts_with('/') {
                return Err(format!(
                    "must be a JSON pointer, which begins with \"/\", as \"/messages/*/content\", not {text:?}"
                ));
            }
            rule.at = Some(text.to_owned());
            Ok(())
        }),
        default: "",
        doc: "The only strings to look at: a JSON pointer in which `*` stands for every item or member, as\n\
              \"/messages/*/content\". Default: all there are, and the names of members.",
    },
];

fn path(place: &mut String, text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    text.clone_into(place);
    Ok(())
}

impl Loader<'_> {
    /// Those of the file that are right, and where all of them stand.
    pub(super) fn rules(&mut self, entries: &[Spanned<DeValue<'_>>]) -> (Vec<Rule>, Vec<Origin>) {
        let mut names: BTreeMap<String, Origin> = BTreeMap::new();
        let (mut rules, mut origins) = (Vec::new(), Vec::new());
        for entry in entries {
            let at = self.at(&entry.span());
            let Some(table) = self.table(Section::Rule, entry) else { continue };
            let mut raw = RawRule::default();
            let given = self.section(Section::Rule, table, |name, value| set(RULE, &mut raw, name, value));
            for (key, hint) in
                [("name", "what reports call it"), ("side", "\"request\", \"answer\" or \"both\"")]
            {
                if given.origin(key).is_none() {
                    self.problem(at.clone(), format!("missing key {key:?} in [[rule]]: {hint}"));
                }
            }
            if let (Some(name), Some(origin)) = (&raw.name, given.origin("name").cloned()) {
                if let Some(first) = names.get(name) {
                    let message = format!(
                        "\"name\" in [[rule]] is {name:?}, as at {first}; each needs a name of its own"
                    );
                    self.problem(origin, message);
                } else {
                    names.insert(name.clone(), origin);
                }
            }
            if let Some(rule) = self.rule(raw, &at, &given) {
                rules.push(rule);
                origins.push(at);
            }
        }
        (rules, origins)
    }

    fn rule(&mut self, raw: RawRule, at: &Origin, given: &Given) -> Option<Rule> {
        let mut checks = CHECKS.into_iter().filter(|key| given.origin(key).is_some());
        let Some(check) = checks.next() else {
            let message = format!("missing what it checks in [[rule]]: one of {}", CHECKS.join(", "));
            self.problem(at.clone(), message);
            return None;
        };
        let mut wrong: Vec<(&str, String)> =
            checks.map(|more| (more, format!("beside {check:?}: give it a [[rule]] of its own"))).collect();
        let is_text = !matches!(check, "schema" | "max_bytes" | "moderation_url");
        if given.origin("at").is_some() && !is_text {
            wrong.push(("at", format!("beside {check:?}, which looks at all of it: remove it")));
        }
        if given.origin("inside_words").is_some() && !check.starts_with("terms") {
            wrong.push(("inside_words", format!("beside {check:?}: remove it")));
        }
        for key in OF_MODERATION.into_iter().filter(|_| check != "moderation_url") {
            if given.origin(key).is_some() {
                wrong.push((key, "without \"moderation_url\": remove it".to_owned()));
            }
        }
        for (key, wrong) in wrong {
            if let Some(origin) = given.origin(key).cloned() {
                self.problem(origin, format!("{key:?} in [[rule]] has no effect {wrong}"));
            }
        }
        let origin = given.origin_of_valid(check)?.clone();
        if check == "require" && given.origin("at").is_none() {
            let message = "\"require\" in [[rule]] needs \"at\": in which strings it must match";
            self.problem(origin.clone(), message.to_owned());
        }
        if raw.side == Some(Side::Both) && (check == "schema" || given.origin("at").is_some()) {
            let message = "\"side\" in [[rule]] is \"both\", but what it looks at is in requests or in answers; make two \
                           rules of it";
            self.problem(given.origin("side")?.clone(), message.to_owned());
        }
        let compiled = match raw.moderation_url.clone() {
            Some(url) if check == "moderation_url" => {
                let of_variable =
                    |variable| self.api_key(variable, Section::Rule, "moderation_key_env", given);
                let api_key = raw.moderation_key_env.clone().and_then(of_variable);
                let within = raw.deadline.unwrap_or(Duration::from_secs(2));
                let model = raw.moderation_model.clone();
                Ok((Check::Moderation(Arc::new(Moderation { url, api_key, model, within })), None))
            }
            _ => self.compile(check, &raw),
        };
        let (compiled, longest) =
            compiled.map_err(|wrong| self.problem(origin, format!("{check:?} in [[rule]] {wrong}"))).ok()?;
        Some(Rule {
            name: raw.name?,
            severity: raw.severity.unwrap_or(Severity::Error),
            side: raw.side?,
            at: raw.at,
            check: compiled,
            longest,
        })
    }

    /// Compiles the check of that key. An error goes on after `"key" in [[rule]]`.
    fn compile(&self, check: &str, raw: &RawRule) -> Result<(Check, Option<usize>), String> {
        let check = match check {
            "terms" => return terms(&raw.terms, raw.inside_words),
            "terms_file" => {
                let (name, text) = self.file(&raw.terms_file)?;
                let lines = text.lines().map(str::trim);
                let all: Vec<_> =
                    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(Into::into).collect();
                return terms(&all, raw.inside_words).map_err(|wrong| format!("names {name}, which {wrong}"));
            }
            "deny" => Check::Deny(Pattern::deny(&raw.deny).map_err(pattern)?),
            "require" => Check::Require(Pattern::require(&raw.require).map_err(pattern)?),
            "pii" => Check::Pii(raw.pii),
            "schema" => {
                let (name, text) = self.file(&raw.schema)?;
                let schema: Value = serde_json::from_str(&text)
                    .map_err(|error| format!("names {name}, which is not JSON: {error}"))?;
                let compiled = Schema::new(&schema).map_err(|error| {
                    format!("names {name}, which cannot be used: {}", one_line(&error.to_string()))
                })?;
                let mut names = BTreeSet::new();
                members(&schema, &mut names);
                Check::Schema(compiled, Arc::new(names))
            }
            _ => Check::MaxBytes(raw.max_bytes),
        };
        Ok((check, None))
    }

    /// What stands in a file, which is looked for beside the configuration, and how to call it.
    fn file(&self, path: &str) -> Result<(String, String), String> {
        let beside = Path::new(self.path).parent().unwrap_or(Path::new("")).join(path);
        let name = beside.display().to_string();
        let read = || {
            let mut bytes = Vec::new();
            File::open(&beside)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes =
            read().map_err(|error: std::io::Error| format!("names {name}, which cannot be read: {error}"))?;
        if bytes.len() as u64 > MAX_FILE {
            return Err(format!("names {name}, which is longer than {MAX_FILE} bytes"));
        }
        match String::from_utf8(bytes) {
            Ok(text) => Ok((name, text)),
            Err(error) => {
                let line = super::load::line_of(error.as_bytes(), error.utf8_error().valid_up_to());
                Err(format!("names {name}, which is not UTF-8 text (line {line})"))
            }
        }
    }
}

fn terms(all: &[String], inside_words: bool) -> Result<(Check, Option<usize>), String> {
    if all.is_empty() {
        return Err("has no terms".to_owned());
    }
    let terms =
        Terms::new(all).map_err(|error| format!("cannot be used: {}", one_line(&error.to_string())))?;
    let terms = if inside_words { terms.inside_words() } else { terms };
    Ok((Check::Terms(terms), all.iter().map(String::len).max()))
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn pattern(error: bartizan_validate::InvalidPattern) -> String {
    format!("is no regular expression that can be used: {}", one_line(&error.to_string()))
}

/// Of an error that draws a picture first, what it says.
fn one_line(error: &str) -> String {
    let last = error.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// The names of members that a schema knows.
pub(crate) fn members(schema: &Value, names: &mut BTreeSet<String>) {
    match schema {
        Value::Object(all) => {
            for (key, value) in all {
                if let ("properties", Value::Object(properties)) = (key.as_str(), value) {
                    names.extend(properties.keys().cloned());
                }
                members(value, names);
            }
        }
        Value::Array(all) => all.iter().for_each(|value| members(value, names)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
