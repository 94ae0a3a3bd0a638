//! From text to a [`Config`], or to all that is wrong with it.

use std::{collections::BTreeMap, ops::Range};

use toml::de::{DeTable, DeValue};

use super::{
    Config, ConfigError, Environment, Limits, Origin, Problem, ServerConfig,
    key::{Value, nearest, set},
    schema::{LIMITS, SERVER, Section, variable},
};

/// Where the keys of a section were given, and whether their values are right.
#[derive(Default)]
pub(super) struct Given(BTreeMap<String, (Origin, bool)>);

impl Given {
    pub(super) fn origin(&self, key: &str) -> Option<&Origin> {
        self.0.get(key).map(|(origin, _)| origin)
    }

    /// Only of a value that was taken, so that one mistake is not told twice.
    fn origin_of_valid(&self, key: &str) -> Option<&Origin> {
        self.0.get(key).filter(|(_, valid)| *valid).map(|(origin, _)| origin)
    }

    fn is_wrong(&self, key: &str) -> bool {
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
        let Config { server, limits, models } = &mut config;
        let (mut server_given, mut limits_given) = (Given::default(), Given::default());
        // `None` when there is something of that name, but not this.
        let mut entries = Some(&[][..]);
        for (key, value) in document {
            let name = key.get_ref().as_ref();
            let section = Section::ALL.into_iter().find(|section| section.name() == name);
            match (section, value.get_ref()) {
                (Some(section @ Section::Server), DeValue::Table(table)) => {
                    server_given =
                        self.section(section, table, |name, value| set(SERVER, server, name, value));
                }
                (Some(section @ Section::Limits), DeValue::Table(table)) => {
                    limits_given =
                        self.section(section, table, |name, value| set(LIMITS, limits, name, value));
                }
                (Some(Section::Model), DeValue::Array(array)) => entries = Some(array),
                (Some(section), _) => {
                    if section == Section::Model {
                        entries = None;
                    }
                    self.problem(self.at(&key.span()), format!("{name:?} must be written as {section}"));
                }
                (None, value) => {
                    let message = unknown_at_top(name, value.is_table() || value.is_array());
                    self.problem(self.at(&key.span()), message);
                }
            }
        }
        for (section, key, origin, text) in self.variables() {
            let value = Value::Text(&text);
            if section == Section::Server {
                self.record(section, key, origin, &mut server_given, set(SERVER, server, key, &value));
            } else {
                self.record(section, key, origin, &mut limits_given, set(LIMITS, limits, key, &value));
            }
        }
        if let Some(listen) = listen {
            let (key, origin) = ("listen", Origin::Option("--listen"));
            let outcome = set(SERVER, server, key, &Value::Text(listen));
            self.record(Section::Server, key, origin, &mut server_given, outcome);
        }
        self.check_listen(server, &server_given);
        self.check_limits(Section::Limits, limits, &limits_given);
        match entries {
            Some(entries) if has_file => *models = self.models(entries, limits),
            // The mocks of a gateway without a file obey the environment too.
            _ => models.iter_mut().for_each(|model| model.limits = *limits),
        }
        config
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
        let known: BTreeMap<_, _> = keys_of(Section::Server).chain(keys_of(Section::Limits)).collect();
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

    fn check_listen(&mut self, server: &ServerConfig, given: &Given) {
        if let Some(origin) = given.origin_of_valid("listen")
            && !server.allow_remote
            && !given.is_wrong("allow_remote")
            && !server.listen.ip().to_canonical().is_loopback()
        {
            let message = format!(
                "\"listen\" in [server] is {}, which other machines can reach, and the gateway asks nobody for a key; \
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
        let Limits { connect, head, first_frame, idle, total } = *limits;
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

fn unknown_at_top(name: &str, is_section: bool) -> String {
    let near = nearest(name, Section::ALL.map(Section::name));
    let advice = if let Some(section) = Section::ALL.iter().find(|section| section.has(name)) {
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
