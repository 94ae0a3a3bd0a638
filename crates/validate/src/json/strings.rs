use serde_json::Value;

use crate::{Found, Rule, rule::Step};

/// Has a rule for text look at every string of a JSON value, the names of members included.
///
/// Each string is a text of its own: nothing is found that lies in two of them. All of them are looked through at once
/// first ([`Rule::clears`]), and one by one only if there may be something.
pub fn strings<R: Rule<str> + Send + Sync + 'static>(rule: R) -> impl Rule<Value> + Send + Sync + 'static {
    move |value: &Value, found: &mut Found<'_>| {
        if !found.clears(value, &rule) {
            walk(value, &rule, found);
        }
    }
}

fn walk<R: Rule<str>>(value: &Value, rule: &R, found: &mut Found<'_>) {
    match value {
        Value::String(text) => rule.check(text, found),
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                walk(item, rule, &mut found.below(Step::Index(index)));
            }
        }
        Value::Object(members) => {
            for (name, member) in members {
                let found = &mut found.below(Step::Name(name));
                rule.check(name, found);
                walk(member, rule, found);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// All strings of a value, the names of members included, each with a line feed behind it.
pub(crate) fn lines(value: &Value) -> String {
    fn add(value: &Value, lines: &mut String) {
        let mut line = |text: &str| {
            lines.push_str(text);
            lines.push('\n');
        };
        match value {
            Value::String(text) => line(text),
            Value::Array(items) => items.iter().for_each(|item| add(item, lines)),
            Value::Object(members) => {
                for (name, member) in members {
                    lines.push_str(name);
                    lines.push('\n');
                    add(member, lines);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut all = String::new();
    add(value, &mut all);
    all
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
    move |value: &Value, found: &mut Found<'_>| descend(value, &steps, &rule, found)
}

fn descend<R: Rule<str>>(value: &Value, steps: &[String], rule: &R, found: &mut Found<'_>) {
    let Some((step, rest)) = steps.split_first() else {
        if let Value::String(text) = value {
            rule.check(text, found);
        }
        return;
    };
    match value {
        Value::Array(items) if step == "*" => {
            for (index, item) in items.iter().enumerate() {
                descend(item, rest, rule, &mut found.below(Step::Index(index)));
            }
        }
        Value::Array(items) => {
            if let Some(item) = step.parse().ok().and_then(|index: usize| items.get(index)) {
                descend(item, rest, rule, &mut found.below(Step::Name(step)));
            }
        }
        Value::Object(members) if step == "*" => {
            for (name, member) in members {
                descend(member, rest, rule, &mut found.below(Step::Name(name)));
            }
        }
        Value::Object(members) => {
            if let Some(member) = members.get(step) {
                descend(member, rest, rule, &mut found.below(Step::Name(step)));
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
