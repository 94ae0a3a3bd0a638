use std::{error::Error, fmt, sync::Arc};

use jsonschema::{PatternOptions, Retrieve, Uri};
use serde_json::Value;

use crate::{
    Found, Message, Rule, Rules, Severity,
    http::{is_encoded, scan},
    rule::Findings,
    rules::Check,
};

/// How a body is read as JSON: bounds that are kept before anything is built of it.
#[derive(Clone, Copy, Debug)]
pub struct Json {
    max_bytes: usize,
    max_depth: usize,
}

impl Json {
    /// At most 1 MiB, and at most 64 arrays and objects inside each other.
    pub const fn new() -> Self {
        Self { max_bytes: 1 << 20, max_depth: 64 }
    }

    /// A longer body is malformed. In bytes; 1 MiB by default.
    #[must_use]
    pub const fn max_bytes(mut self, bytes: usize) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// A body that is nested deeper is malformed. 64 by default.
    ///
    /// # Panics
    ///
    /// Unless it is from 1 to 127, which is what the parser bears.
    #[must_use]
    pub const fn max_depth(mut self, depth: usize) -> Self {
        assert!(depth > 0 && depth < 128, "JSON is read 1 to 127 deep");
        self.max_depth = depth;
        self
    }

    fn read<M: Message>(self, message: &M) -> Result<Value, String> {
        if is_encoded(message.headers()) {
            return Err("a body with a content coding cannot be checked".to_owned());
        }
        if message.body().len() > self.max_bytes {
            return Err(format!("it is longer than {} bytes", self.max_bytes));
        }
        scan(message.body(), self.max_depth).map_err(|flaw| flaw.to_string())?;
        // What is JSON and yet cannot be read: a number beyond all measure.
        serde_json::from_slice(message.body()).map_err(|_| "it has a number that cannot be read".to_owned())
    }
}

impl Default for Json {
    fn default() -> Self {
        Self::new()
    }
}

impl<M: Message> Rules<M> {
    /// Rules for what the body says as JSON. It is read once for all of them.
    ///
    /// A body that is not JSON within the bounds of `json` is malformed, which refuses at every level, and the rules are
    /// not asked.
    #[must_use]
    pub fn json(self, json: Json, rules: Rules<Value>) -> Self {
        self.add(Parsed { name: "json".into(), json, rules })
    }
}

struct Parsed {
    name: Arc<str>,
    json: Json,
    rules: Rules<Value>,
}

impl<M: Message> Check<M> for Parsed {
    fn run(&self, message: &M, findings: &mut Findings) {
        match self.json.read(message) {
            Ok(value) => self.rules.run(&value, findings),
            Err(flaw) => Found::new(findings, &self.name, Severity::Safety).malformed(flaw),
        }
    }
}

/// Has a rule for text look at every string of a JSON value, the names of members included.
pub fn strings<R: Rule<str> + Send + Sync + 'static>(rule: R) -> impl Rule<Value> + Send + Sync + 'static {
    move |value: &Value, found: &mut Found<'_>| walk(value, &mut String::new(), &rule, found)
}

fn walk<R: Rule<str>>(value: &Value, pointer: &mut String, rule: &R, found: &mut Found<'_>) {
    let length = pointer.len();
    match value {
        Value::String(text) => rule.check(text, &mut found.at(pointer)),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                push(pointer, &index.to_string());
                walk(item, pointer, rule, found);
                pointer.truncate(length);
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                push(pointer, name);
                rule.check(name, &mut found.at(pointer));
                walk(member, pointer, rule, found);
                pointer.truncate(length);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Has a rule for text look at the strings at `pointer`, a JSON pointer in which `*` stands for every item or member.
///
/// What is not there, or is no string, is not looked at.
///
/// ```
/// use bartizan_validate::{Json, Level, Rules, Terms, at};
/// use http::Request;
///
/// let rules = Rules::new()
///     .json(Json::new(), Rules::new().error("terms", at("/messages/*/content", Terms::new(["nightfall"])?)));
/// let body = r#"{"messages":[{"content":"hello"},{"content":"night\u0066all"}]}"#;
/// let report = rules.check(&Request::new(body), Level::Moderate);
/// assert_eq!(report.violations()[0].pointer(), "/messages/1/content");
/// # Ok::<(), bartizan_validate::InvalidPattern>(())
/// ```
///
/// # Panics
///
/// If `pointer` is neither empty nor begins with `/`.
pub fn at<R: Rule<str> + Send + Sync + 'static>(
    pointer: &str,
    rule: R,
) -> impl Rule<Value> + Send + Sync + 'static {
    assert!(pointer.is_empty() || pointer.starts_with('/'), "{pointer:?} is no JSON pointer");
    let steps: Vec<String> =
        pointer.split('/').skip(1).map(|step| step.replace("~1", "/").replace("~0", "~")).collect();
    move |value: &Value, found: &mut Found<'_>| descend(value, &steps, &mut String::new(), &rule, found)
}

fn descend<R: Rule<str>>(
    value: &Value,
    steps: &[String],
    pointer: &mut String,
    rule: &R,
    found: &mut Found<'_>,
) {
    let Some((step, rest)) = steps.split_first() else {
        if let Value::String(text) = value {
            rule.check(text, &mut found.at(pointer));
        }
        return;
    };
    let length = pointer.len();
    let mut go = |name: &str, part: &Value| {
        push(pointer, name);
        descend(part, rest, pointer, rule, found);
        pointer.truncate(length);
    };
    match value {
        Value::Array(items) if step == "*" => {
            items.iter().enumerate().for_each(|(index, item)| go(&index.to_string(), item));
        }
        Value::Array(items) => {
            if let Some(item) = step.parse().ok().and_then(|index: usize| items.get(index)) {
                go(step, item);
            }
        }
        Value::Object(members) if step == "*" => members.iter().for_each(|(name, member)| go(name, member)),
        Value::Object(members) => {
            if let Some(member) = members.get(step) {
                go(step, member);
            }
        }
        _ => {}
    }
}

fn push(pointer: &mut String, step: &str) {
    pointer.push('/');
    for c in step.chars() {
        match c {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            c => pointer.push(c),
        }
    }
}

/// A JSON Schema (drafts 4, 6, 7, 2019-09 and 2020-12), compiled once.
///
/// Nothing is ever fetched: a `$ref` that leaves the schema is refused when it is compiled. Patterns are searched in linear
/// time, so those with look-around or back references are refused, too. `format` is checked where the draft says so.
///
/// ```
/// use bartizan_validate::{Json, Level, Rules, Schema};
/// use http::Request;
/// use serde_json::json;
///
/// let schema = Schema::new(&json!({"required": ["model"], "properties": {"n": {"type": "integer"}}}))?;
/// let rules = Rules::new().json(Json::new(), Rules::new().error("schema", schema));
/// let report = rules.check(&Request::new(r#"{"n":"x"}"#), Level::Moderate);
/// let pointers: Vec<_> = report.violations().iter().map(|violation| violation.pointer()).collect();
/// assert_eq!(pointers, ["", "/n"]);
///
/// let remote = Schema::new(&json!({"properties": {"a": {"$ref": "https://example.org/a.json"}}}));
/// assert!(remote.unwrap_err().to_string().contains("/properties/a/$ref"));
/// # Ok::<(), bartizan_validate::InvalidSchema>(())
/// ```
#[derive(Clone)]
pub struct Schema(Arc<jsonschema::Validator>);

impl Schema {
    /// Compiles a schema.
    ///
    /// # Errors
    ///
    /// If it is no schema, if it refers to what is outside of it, or if one of its patterns cannot be searched in linear
    /// time or takes more than 1 MiB.
    pub fn new(schema: &Value) -> Result<Self, InvalidSchema> {
        let compiled = jsonschema::options()
            .with_retriever(Nowhere)
            .with_pattern_options(PatternOptions::regex().size_limit(1 << 20))
            .build(schema);
        match compiled {
            Ok(validator) => Ok(Self(Arc::new(validator))),
            Err(error) => {
                let mut outside = Vec::new();
                references(schema, &mut String::new(), &mut outside);
                Err(InvalidSchema {
                    at: error.schema_path().as_str().to_owned(),
                    message: error.to_string(),
                    outside,
                })
            }
        }
    }
}

impl Rule<Value> for Schema {
    fn check(&self, value: &Value, found: &mut Found<'_>) {
        if self.0.is_valid(value) {
            return;
        }
        for error in self.0.iter_errors(value) {
            let message = match error.kind().keyword() {
                // These would quote the value's own names.
                "additionalProperties" | "unevaluatedProperties" | "propertyNames" => {
                    "there are members that the schema does not allow".to_owned()
                }
                _ => error.masked_with("the value").to_string(),
            };
            found.violation(error.instance_path().as_str(), message);
            if found.is_decided() {
                return;
            }
        }
    }
}

impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Schema").finish_non_exhaustive()
    }
}

/// Whatever is not in the schema itself is not there.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn Error + Send + Sync>> {
        Err(format!("{uri} is outside of the schema, and nothing is fetched").into())
    }
}

/// The pointers to all references that do not stay in the document.
fn references(value: &Value, pointer: &mut String, outside: &mut Vec<String>) {
    let length = pointer.len();
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                push(pointer, name);
                let refers = matches!(name.as_str(), "$ref" | "$dynamicRef" | "$recursiveRef" | "$schema");
                match member {
                    Value::String(uri)
                        if refers && !uri.starts_with('#') && !uri.contains("json-schema.org/") =>
                    {
                        outside.push(pointer.clone());
                    }
                    _ => references(member, pointer, outside),
                }
                pointer.truncate(length);
            }
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                push(pointer, &index.to_string());
                references(item, pointer, outside);
                pointer.truncate(length);
            }
        }
        _ => {}
    }
}

/// Why a schema cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidSchema {
    at: String,
    message: String,
    outside: Vec<String>,
}

impl InvalidSchema {
    /// JSON pointers to the references in the schema that leave it.
    pub fn outside(&self) -> &[String] {
        &self.outside
    }
}

impl fmt::Display for InvalidSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.at.is_empty() {
            write!(f, "at {}: ", self.at)?;
        }
        f.write_str(&self.message)?;
        if !self.outside.is_empty() {
            write!(f, " (references that leave the schema: {})", self.outside.join(", "))?;
        }
        Ok(())
    }
}

impl Error for InvalidSchema {}
