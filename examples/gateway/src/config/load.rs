//! From text to a [`Config`], or to all that is wrong with it.

use std::{collections::BTreeMap, ops::Range};

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::{
    Config, ConfigError, Environment, Limits, Origin, Problem, ServerConfig,
    key::{Value, nearest},
    section::{Section, variable},
};

/// Where the keys of a section were given, and whether their values are right.
#[derive(Default)]
pub(super) struct Given(BTreeMap<String, (Origin, bool)>);

impl Given {
    pub(super) fn origin(&self, key: &str) -> Option<&Origin> {
        self.0.get(key).map(|(origin, _)| origin)
    }

    /// Only of a value that was taken, so that one mistake is not told twice.
    pub(super) fn origin_of_valid(&self, key: &str) -> Option<&Origin> {
        self.0.get(key).filter(|(_, valid)| *valid).map(|(origin, _)| origin)
    }

    pub(super) fn is_wrong(&self, key: &str) -> bool {
        self.0.get(key).is_some_and(|(_, valid)| !valid)
    }
}

/// Loads the file, given by its name and its text, with the environment and `--listen` over it.
pub(super) fn load(
    file: Option<(&str, &str)>,
    environment: &Environment,
    listen: Option<&str>,
) -> Result<Config, ConfigError> {
    let (path, text) = file.unwrap_or_default();
    let mut loader = Loader { path, text, environment, problems: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let origin = loader.at(&error.span().unwrap_or_default());
        // The later ones of a line come of the first.
        if loader.problems.last().is_none_or(|last| last.origin.as_ref() != Some(&origin)) {
            // Not the whole error, which shows the line and whatever secret stands in it.
            loader.problem(origin, error.message().to_owned());
        }
    }
    // What else is wrong with a file that is not TOML is guesswork.
    if errors.is_empty() {
        let config = loader.document(document.get_ref(), file.is_some(), listen);
        if loader.problems.is_empty() {
            return Ok(config);
        }
    }
    // Stable, so that one line's problems stay in order.
    loader.problems.sort_by_key(|problem| match problem.origin {
        Some(Origin::File { line, .. }) => line,
        _ => usize::MAX,
    });
    Err(ConfigError { problems: loader.problems })
}

/// The line of the byte at that index, from 1.
pub(super) fn line_of(text: &[u8], index: usize) -> usize {
    1 + text[..index.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

pub(super) struct Loader<'a> {
    pub(super) path: &'a str,
    text: &'a str,
    pub(super) environment: &'a Environment,
    problems: Vec<Problem>,
}

impl Loader<'_> {
    pub(super) fn problem(&mut self, origin: Origin, message: String) {
        self.problems.push(Problem { origin: Some(origin), message });
    }

    pub(super) fn at(&self, span: &Range<usize>) -> Origin {
        Origin::File { path: self.path.to_owned(), line: line_of(self.text.as_bytes(), span.start) }
    }

    fn document(&mut self, document: &DeTable<'_>, has_file: bool, listen: Option<&str>) -> Config {
        let mut config = Config::default();
        let mut given: BTreeMap<Section, Given> = BTreeMap::new();
        let mut lists: BTreeMap<Section, &[Spanned<DeValue<'_>>]> = BTreeMap::new();
        let mut has_models = has_file;
        for (key, value) in document {
            let name = key.get_ref().as_ref();
            let section = Section::ALL.into_iter().find(|section| section.name() == name);
            match (section, value.get_ref()) {
                (Some(section), DeValue::Table(table)) if !section.is_list() => {
                    let keys =
                        self.section(section, table, |name, value| section.set(&mut config, name, value));
                    given.insert(section, keys);
                }
                (Some(section), DeValue::Array(array)) if section.is_list() => {
                    lists.insert(section, array);
                }
                (Some(section), _) => {
                    // There is something of that name, but not this.
                    has_models &= section != Section::Model;
                    self.problem(self.at(&key.span()), format!("{name:?} must be written as {section}"));
                }
                (None, value) => {
                    let message = unknown_at_top(name, is_section(value));
                    self.problem(self.at(&key.span()), message);
                }
            }
        }
        for (section, key, origin, text) in self.variables() {
            let outcome = section.set(&mut config, key, &Value::Text(&text));
            self.record(section, key, origin, given.entry(section).or_default(), outcome);
        }
        if let Some(listen) = listen {
            let (section, key, origin) = (Section::Server, "listen", Origin::Option("--listen"));
            let outcome = section.set(&mut config, key, &Value::Text(listen));
            self.record(section, key, origin, given.entry(section).or_default(), outcome);
        }
        let mut given = |section| given.remove(&section).unwrap_or_default();
        let list = |section| lists.get(&section).copied().unwrap_or_default();
        let (rules, entries) = self.rules(list(Section::Rule));
        config.validation.rules = rules;
        self.check_limits(Section::Limits, &config.limits, &given(Section::Limits));
        self.check_breaker(&config, &given(Section::CircuitBreaker));
        self.check_health(&config, &given(Section::Health));
        self.check_batches(&config, &given(Section::EmbeddingBatches));
        self.check_burst(Section::RateLimits, &config.rate_limits.tenant, &given(Section::RateLimits));
        config.keys = self.keys(list(Section::Key));
        self.check_listen(&config.server, list(Section::Key).is_empty(), &given(Section::Server));
        config.tenants = self.tenants(list(Section::Tenant), &config.keys, &config.rate_limits);
        if has_models {
            let (models, of_models) = self.models(list(Section::Model), &config);
            config.models = models;
            self.check_fallbacks(&config, &given(Section::Fallback), &of_models);
            self.check_validation(&config, &given(Section::Validation), &of_models, &entries);
        } else {
            // The mocks of a gateway without a file obey the environment too.
            for model in &mut config.models {
                (model.limits, model.circuit_breaker) = (config.limits, config.circuit_breaker.enabled);
                model.fallbacks = config.fallback.usual.of(&model.name);
                model.dedup = config.dedup.enabled;
                model.guard = config.validation.usual.clone();
            }
            self.check_fallbacks(&config, &given(Section::Fallback), &[]);
            self.check_validation(&config, &given(Section::Validation), &[], &entries);
        }
        self.check_dedup(&config, &given(Section::Dedup));
        config
    }

    /// An entry of a list, which must be a table.
    pub(super) fn table<'e>(
        &mut self,
        section: Section,
        entry: &'e Spanned<DeValue<'e>>,
    ) -> Option<&'e DeTable<'e>> {
        let table = entry.get_ref().as_table();
        if table.is_none() {
            let message = format!("{:?} must be written as {section}", section.name());
            self.problem(self.at(&entry.span()), message);
        }
        table
    }

    /// Sets the keys of one table, and says which there were.
    pub(super) fn section(
        &mut self,
        section: Section,
        table: &DeTable<'_>,
        mut set: impl FnMut(&str, &Value<'_>) -> Option<Result<(), String>>,
    ) -> Given {
        let mut given = Given::default();
        for (key, value) in table {
            let outcome = set(key.get_ref(), &Value::Toml(value.get_ref()));
            self.record(section, key.get_ref(), self.at(&key.span()), &mut given, outcome);
        }
        given
    }

    /// Remembers that a key was given, and what was wrong with it.
    fn record(
        &mut self,
        section: Section,
        name: &str,
        origin: Origin,
        given: &mut Given,
        outcome: Option<Result<(), String>>,
    ) {
        let valid = matches!(outcome, Some(Ok(())));
        match outcome {
            Some(Ok(())) => {}
            Some(Err(wrong)) => self.problem(origin.clone(), format!("{name:?} in {section} {wrong}")),
            None => {
                let advice = section.advice(name);
                self.problem(origin.clone(), format!("unknown key {name:?} in {section}; {advice}"));
            }
        }
        given.0.insert(name.to_owned(), (origin, valid));
    }

    /// The variables that override keys. Others of the same prefix are problems.
    fn variables(&mut self) -> Vec<(Section, &'static str, Origin, String)> {
        let keys_of = |section: Section| {
            section.keys().into_iter().map(move |key| (variable(section, key), (section, key)))
        };
        let single = Section::ALL.into_iter().filter(|section| !section.is_list());
        let known: BTreeMap<_, _> = single.flat_map(keys_of).collect();
        let environment = self.environment;
        let mut variables = Vec::new();
        for (name, value) in &environment.0 {
            if !name.starts_with("GATEWAY_") || is_service_link(name, &value.to_string_lossy()) {
                continue;
            }
            let origin = Origin::Variable(name.clone());
            match (known.get(name), value.to_str()) {
                (Some(&(section, key)), Some(text)) => {
                    variables.push((section, key, origin, text.to_owned()));
                }
                (Some(_), None) => self.problem(origin, "is not UTF-8 text".to_owned()),
                (None, _) => {
                    let advice = match nearest(name, known.keys().map(String::as_str)) {
                        Some(near) => format!("did you mean {near}?"),
                        None => {
                            let known: Vec<_> = known.keys().map(String::as_str).collect();
                            format!("those that are known are {}", known.join(", "))
                        }
                    };
                    self.problem(origin, format!("unknown environment variable; {advice}"));
                }
            }
        }
        variables
    }

    fn check_listen(&mut self, server: &ServerConfig, open: bool, given: &Given) {
        if let Some(origin) = given.origin_of_valid("listen")
            && !server.allow_remote
            && !given.is_wrong("allow_remote")
            && !server.listen.ip().to_canonical().is_loopback()
        {
            let danger = if open { "asks nobody for a key" } else { "has no TLS to keep keys secret" };
            let message = format!(
                "\"listen\" in [server] is {}, which other machines can reach, and the gateway {danger}; \
                 set allow_remote = true in [server] if that is meant, else listen on 127.0.0.1",
                server.listen
            );
            self.problem(origin.clone(), message);
        }
    }

    /// A limit above the total is never reached. Only what was given here is wrong: whoever lowers the total need not
    /// lower all the others.
    pub(super) fn check_limits(&mut self, section: Section, limits: &Limits, given: &Given) {
        if given.is_wrong("total_ms") {
            return;
        }
        let Limits { connect, head, first_frame, idle, total, keep_idle: _ } = *limits;
        let parts =
            [("connect_ms", connect), ("head_ms", head), ("first_frame_ms", first_frame), ("idle_ms", idle)];
        for (name, limit) in parts {
            if let Some(origin) = given.origin_of_valid(name)
                && limit > total
            {
                let (limit, total) = (limit.as_millis(), total.as_millis());
                let message = format!(
                    "{name:?} in {section} is {limit}, which is never reached: \"total_ms\" is {total}; lower the one \
                     or raise the other"
                );
                self.problem(origin.clone(), message);
            }
        }
    }
}

/// Whether it is written as `[name]` or as `[[name]]`, and not as `name = ..`.
fn is_section(value: &DeValue<'_>) -> bool {
    let is_list =
        |items: &DeArray<'_>| !items.is_empty() && items.iter().all(|item| item.get_ref().is_table());
    value.is_table() || value.as_array().is_some_and(is_list)
}

fn unknown_at_top(name: &str, is_section: bool) -> String {
    let near = nearest(name, Section::ALL.map(Section::name));
    let has = |section: &&Section| !is_section && section.has(name);
    let advice = if let Some(section) = Section::ALL.iter().find(has) {
        format!("it belongs in {section}")
    } else if let Some(section) = Section::ALL.iter().find(|section| Some(section.name()) == near) {
        format!("did you mean {section}?")
    } else {
        format!("there are {}", Section::ALL.map(|section| section.to_string()).join(", "))
    };
    let what = if is_section { "section" } else { "key" };
    format!("unknown {what} {name:?}; {advice}")
}

/// Kubernetes sets such variables in every pod that can see a service named `gateway` or `gateway-server`: nobody meant
/// them for us.
fn is_service_link(name: &str, value: &str) -> bool {
    let protocol = ["_TCP", "_UDP", "_SCTP"].iter().any(|protocol| name.contains(protocol));
    name.ends_with("_SERVICE_HOST")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_") && protocol
        || name.ends_with("_PORT") && value.contains("://")
}
