//! How the cases of `validation.json` drive the layer.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};

use bartizan_core::BoxError;
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step};
use bartizan_validate::{
    Bodies, Found, Json, Level, Message, OnRuleError, Part, Pattern, Policy, Report, Rule, Rules, Schema,
    Severity, Validator, Window, at, max_bytes, tail,
};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use tower::{Layer, ServiceExt, service_fn};

type Error = String;

/// A rule of a case, of which every key must be known.
struct Config(Map<String, Value>);

impl Config {
    fn get<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, Error> {
        let value = self.0.remove(key).map(serde_json::from_value).transpose();
        value.map_err(|error| format!("{key}: {error}"))
    }

    fn need<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, Error> {
        self.get(key)?.ok_or_else(|| format!("{key} is missing"))
    }

    /// Adds the rule to others for messages whose body is JSON.
    fn add<M: Message>(mut self, rules: Rules<M>) -> Result<Rules<M>, Error> {
        let id: String = self.need("id")?;
        let kind: String = self.need("kind")?;
        let severity = match self.need::<String>("severity")?.as_str() {
            "warn" => Severity::Warn,
            "error" => Severity::Error,
            "safety" => Severity::Safety,
            other => return Err(format!("unknown severity {other:?}")),
        };
        let path = self.get::<String>("path")?.unwrap_or_default();
        let path: Vec<_> =
            path.split(['.', '/']).filter(|step| !step.is_empty()).map(str::to_owned).collect();
        let with =
            |rules: Rules<M>, rule: Boxed| rules.json(json_limits(), Rules::new().rule(&id, severity, rule));
        let schema = |schema| -> Result<Boxed, Error> {
            Ok(Boxed(Box::new(Schema::new(&schema).map_err(|error| error.to_string())?)))
        };
        let pointer: String = path.iter().map(|step| format!("/{step}")).collect();
        let pattern = |pattern: Result<Pattern, _>| {
            let pattern = pattern.map_err(|error: bartizan_validate::InvalidPattern| error.to_string())?;
            Ok::<_, Error>(Boxed(Box::new(at(&pointer, pattern))))
        };
        let rules = match kind.as_str() {
            "type" => with(rules, schema(below(&path, json!({"type": self.need::<Value>("type")?})))?),
            "required" => with(rules, schema(required(&path))?),
            "range" => {
                let mut bounds = Map::new();
                for (key, keyword) in [
                    ("gt", "exclusiveMinimum"),
                    ("ge", "minimum"),
                    ("lt", "exclusiveMaximum"),
                    ("le", "maximum"),
                ] {
                    bounds.extend(self.get::<Value>(key)?.map(|bound| (keyword.to_owned(), bound)));
                }
                with(rules, schema(below(&path, Value::Object(bounds)))?)
            }
            "enum" => with(rules, schema(below(&path, json!({"enum": self.need::<Value>("values")?})))?),
            "max_len" => with(rules, schema(below(&path, json!({"maxLength": self.need::<u64>("max")?})))?),
            "max_bytes" => rules.rule(&id, severity, max_bytes(self.need("max")?)),
            "max_depth" => {
                let max: usize = self.need("max")?;
                let rule = move |value: &Value, found: &mut Found<'_>| {
                    if value.pointer(&pointer).is_some_and(|value| depth(value) > max) {
                        found.violation(&pointer, "nested too deep");
                    }
                };
                with(rules, Boxed(Box::new(rule)))
            }
            "regex" => with(rules, pattern(Pattern::require(&self.need::<String>("pattern")?))?),
            "deny_regex" => with(rules, pattern(Pattern::deny(&self.need::<String>("pattern")?))?),
            "unknown_fields" => {
                let known: Vec<String> = self.need("known")?;
                let known: Map<_, _> = known.into_iter().map(|name| (name, json!(true))).collect();
                let closed = json!({"properties": known, "additionalProperties": false});
                with(rules, schema(below(&path, closed))?)
            }
            "custom_panic" => {
                with(rules, Boxed(Box::new(|_: &Value, _: &mut Found<'_>| panic!("the rule panics"))))
            }
            other => return Err(format!("unknown kind of rule {other:?}")),
        };
        match self.0.keys().next() {
            Some(key) => Err(format!("rule {id}: unknown key {key:?}")),
            None => Ok(rules),
        }
    }
}

/// Any rule for JSON.
struct Boxed(Box<dyn Rule<Value> + Send + Sync>);

impl Rule<Value> for Boxed {
    fn check(&self, value: &Value, found: &mut Found<'_>) {
        self.0.check(value, found);
    }
}

/// The vectors bound what they want bounded by rules of their own.
fn json_limits() -> Json {
    Json::new().max_bytes(usize::MAX).max_depth(127)
}

/// `schema` for what is at `path`, if it is there.
fn below(path: &[String], schema: Value) -> Value {
    path.iter().rev().fold(schema, |schema, name| json!({"properties": {name: schema}}))
}

fn required(path: &[String]) -> Value {
    path.iter().rev().fold(
        json!(true),
        |schema, name| json!({"type": "object", "required": [name], "properties": {name: schema}}),
    )
}

/// How many arrays and objects are inside each other.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn rules<M: Message>(configs: Option<Vec<Map<String, Value>>>) -> Result<Rules<M>, Error> {
    // Whatever the rules, the body must be JSON.
    let begin = Rules::new().json(json_limits(), Rules::new());
    configs.unwrap_or_default().into_iter().try_fold(begin, |rules, config| Config(config).add(rules))
}

fn level(name: &str) -> Result<Level, Error> {
    match name {
        "strict" => Ok(Level::Strict),
        "moderate" => Ok(Level::Moderate),
        "lenient" => Ok(Level::Lenient),
        other => Err(format!("unknown level {other:?}")),
    }
}

/// What the inner service does.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Inner {
    Ok(Value),
    Err(String),
}

/// What the inner service has seen.
#[derive(Default)]
struct Log {
    calls: u64,
    forwarded: Option<String>,
    report: Option<Report>,
}

pub(crate) struct Validation {
    validator: Validator<Request<Bytes>, Bodies>,
    stream: Option<Validator<Request<Bytes>, Bodies>>,
    level: Level,
    on_rule_error: Option<OnRuleError>,
    first: bool,
    log: Arc<Mutex<Log>>,
}

impl Validation {
    fn policy(&self, step: &Step) -> Result<Policy, Error> {
        let level = step.args.get::<String>("level")?.map_or(Ok(self.level), |name| level(&name))?;
        let mut policy = Policy::new(level);
        if let Some(choice) = self.on_rule_error {
            policy = policy.on_rule_error(choice);
        }
        Ok(if self.first { policy.first() } else { policy })
    }

    async fn request(&self, step: &Step) -> Result<Value, Error> {
        let policy = self.policy(step)?;
        let input: Option<Value> = step.args.get("input")?;
        let raw: Option<String> = step.args.get("raw")?;
        let body = match (raw, input) {
            (Some(raw), None) => raw,
            (None, Some(input)) => input.to_string(),
            _ => return Err("a request has either input or raw".to_owned()),
        };
        let inner = step.args.get("inner")?.unwrap_or(Inner::Ok(json!({})));
        let log = self.log.clone();
        let service = service_fn(move |request: Request<Bytes>| {
            let mut log = log.lock().unwrap();
            log.calls += 1;
            log.report = request.extensions().get().cloned();
            log.forwarded = Some(String::from_utf8(request.into_body().to_vec()).unwrap());
            std::future::ready(match &inner {
                Inner::Ok(value) => Ok(Response::new(Full::<Bytes>::from(value.to_string()))),
                Inner::Err(error) => Err(BoxError::from(error.clone())),
            })
        });
        {
            let mut log = self.log.lock().unwrap();
            *log = Log { calls: log.calls, ..Log::default() };
        }
        let result =
            self.validator.layer(policy).layer(service).oneshot(Request::new(Bytes::from(body))).await;
        let log = self.log.lock().unwrap();
        let mut seen = json!({"inner_calls": log.calls, "forwarded": log.forwarded});
        let (decision, reports) = match &result {
            Ok(response) => ("pass", vec![response.extensions().get::<Report>()]),
            Err(error) => match Report::find(&**error) {
                None => {
                    seen["err"] = json!(error.to_string());
                    ("inner_error", vec![log.report.as_ref()])
                }
                Some(report) => {
                    seen["kind"] = json!(match report.part() {
                        _ if report.is_malformed() => "malformed",
                        Part::Request => "invalid_input",
                        Part::Response => "invalid_output",
                    });
                    ("reject", vec![log.report.as_ref(), Some(report)])
                }
            },
        };
        // Which rules are broken, each once; that the body must be JSON is none of the case's.
        let malformed = reports.iter().flatten().any(|report| report.is_malformed());
        let mut broken: Vec<&str> = Vec::new();
        for violation in reports.into_iter().flatten().flat_map(Report::violations) {
            if !malformed && !broken.contains(&violation.rule()) {
                broken.push(violation.rule());
            }
        }
        seen["violations"] = json!(broken);
        seen["decision"] = json!(decision);
        Ok(seen)
    }

    async fn stream(&self, step: &Step) -> Result<Value, Error> {
        let policy = self.policy(step)?;
        let fill: String = step.args.get("prefix_fill")?.unwrap_or_default();
        let prefix = fill.repeat(step.args.get("prefix_len")?.unwrap_or(0));
        let chunks = [prefix, step.args.get("tail")?.unwrap_or_default()];
        let validator = self.stream.as_ref().ok_or("there is nothing to deny")?;
        let service = service_fn(move |_: Request<Bytes>| {
            let frames = chunks.clone().map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::from(chunk))));
            std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(stream::iter(frames)))))
        });
        let response = validator.layer(policy).layer(service).oneshot(Request::new(Bytes::new())).await;
        let mut body = Box::pin(response.map_err(|error| error.to_string())?.into_body());
        let (mut forwarded, mut decision) = (0, "pass");
        while let Some(frame) = body.frame().await {
            match frame {
                Ok(frame) => forwarded += frame.data_ref().map_or(0, Bytes::len),
                Err(error) => {
                    Report::find(&*error).ok_or_else(|| error.to_string())?;
                    decision = "blocked";
                }
            }
        }
        Ok(json!({"decision": decision, "forwarded_bytes": forwarded}))
    }
}

impl Adapter for Validation {
    fn build(config: &Fields) -> Result<Self, String> {
        let validator = Validator::http(rules(config.get("input_rules")?)?)
            .whole(1 << 20, rules(config.get("output_rules")?)?);
        if config.get("enabled")? == Some(false) {
            validator.disable();
        }
        let mut window = Window::new(config.get("threshold")?.unwrap_or(1024));
        if let Some(overlap) = config.get("overlap")? {
            window = window.overlap(overlap);
        }
        let stream = match config.get::<String>("deny")? {
            None => None,
            Some(deny) => {
                let deny = Pattern::deny(&deny).map_err(|error| error.to_string())?;
                Some(Validator::http(Rules::new()).window(window, Rules::new().error("deny", deny)))
            }
        };
        let on_rule_error = match config.get::<String>("on_rule_error")?.as_deref() {
            None => None,
            Some("open") => Some(OnRuleError::Open),
            Some("closed") => Some(OnRuleError::Closed),
            Some(other) => return Err(format!("unknown on_rule_error {other:?}")),
        };
        let first = match config.get::<String>("report")?.as_deref() {
            None | Some("all") => false,
            Some("first") => true,
            Some(other) => return Err(format!("unknown report {other:?}")),
        };
        let level = level(&config.get::<String>("level")?.unwrap_or_else(|| "strict".to_owned()))?;
        Ok(Self { validator, stream, level, on_rule_error, first, log: Arc::default() })
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        let seen = match step.op.as_str() {
            "request" => self.request(step).await?,
            "stream" => self.stream(step).await?,
            "tail" => {
                let text: String = step.args.need("text")?;
                json!({"tail": tail(&text, step.args.need("max_bytes")?)})
            }
            _ => return step.unknown(),
        };
        Ok(Answer::Now(seen))
    }
}
