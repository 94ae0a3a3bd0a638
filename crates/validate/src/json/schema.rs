use std::{error::Error, fmt, sync::Arc};

use jsonschema::{PatternOptions, Retrieve, Uri};
use serde_json::Value;

use super::push;
use crate::{Found, Rule};

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
        Self::compile(schema, 1 << 20)
    }

    /// A schema that a stranger wrote: its patterns take less.
    pub(super) fn of_stranger(schema: &Value) -> Result<Self, InvalidSchema> {
        Self::compile(schema, 1 << 17)
    }

    fn compile(schema: &Value, pattern_bytes: usize) -> Result<Self, InvalidSchema> {
        let patterns = PatternOptions::regex().size_limit(pattern_bytes).dfa_size_limit(2 * pattern_bytes);
        let compiled =
            jsonschema::options().with_retriever(Nowhere).with_pattern_options(patterns).build(schema);
        match compiled {
            Ok(validator) => Ok(Self(Arc::new(validator))),
            Err(error) => {
                let mut outside = Vec::new();
                references(schema, &mut String::new(), &mut outside);
                Err(InvalidSchema {
                    // Its instance is the schema: that of a schema for schemas.
                    at: error.instance_path().as_str().to_owned(),
                    message: error.to_string(),
                    outside,
                })
            }
        }
    }
}

impl Schema {
    pub(super) fn is_valid(&self, value: &Value) -> bool {
        self.0.is_valid(value)
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
    /// Where in the schema the flaw is, as far as one place is known: a JSON pointer.
    pub(super) fn place(&self) -> &str {
        self.outside.first().unwrap_or(&self.at)
    }

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
