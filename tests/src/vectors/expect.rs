use serde_json::Value;

use super::fields::integer;

/// Whether `seen` has all that `expect` asks for.
///
/// Scalars must be equal, `{"ge":..,"le":..}` is a range, `{"in":[..]}` one of several, a list must match whole and in
/// order, and an object must have the keys named, nested ones included. What is not named does not matter.
///
/// ```
/// use bartizan_tests::vectors::check;
/// use serde_json::json;
///
/// let seen = json!({"ok": false, "wait": 7, "who": [{"id": "a", "at": 1}], "hash": "9001505956411581352"});
/// for expect in [
///     json!({}),
///     json!({"ok": false, "wait": {"ge": 7, "le": 9}}),
///     json!({"who": [{"id": {"in": ["a", "b"]}}]}),
///     json!({"in": [{"ok": true}, {"wait": 7}]}),
///     json!({"hash": 9001505956411581352_u64}),
/// ] {
///     assert_eq!(check(&expect, &seen), Ok(()));
/// }
/// assert_eq!(check(&json!({"wait": 8}), &seen), Err("wait: expected 8, got 7".to_owned()));
/// assert_eq!(check(&json!({"who": []}), &seen).unwrap_err(), r#"who: expected [], got [{"at":1,"id":"a"}]"#);
/// assert_eq!(check(&json!({"late": 1}), &seen), Err("late: expected 1, got nothing".to_owned()));
/// ```
///
/// # Errors
///
/// The path of the first key that does not match, what was expected there and what was seen.
pub fn check(expect: &Value, seen: &Value) -> Result<(), String> {
    at(&mut Vec::new(), expect, Some(seen))
}

fn at(path: &mut Vec<String>, expect: &Value, seen: Option<&Value>) -> Result<(), String> {
    let wrong = |path: &[String]| {
        let key = if path.is_empty() { "all".to_owned() } else { path.join(".") };
        let seen = seen.map_or_else(|| "nothing".to_owned(), Value::to_string);
        Err(format!("{key}: expected {expect}, got {seen}"))
    };
    let Some(found) = seen else { return wrong(path) };
    let matches = match expect {
        Value::Object(keys) if is_range(expect) => {
            let (ge, le) = (keys.get("ge"), keys.get("le"));
            number(found).is_some_and(|n| {
                ge.and_then(number).is_none_or(|ge| n >= ge) && le.and_then(number).is_none_or(|le| n <= le)
            })
        }
        Value::Object(keys) if keys.len() == 1 && keys.contains_key("in") => {
            let choices = keys["in"].as_array();
            choices.is_some_and(|choices| choices.iter().any(|choice| check(choice, found).is_ok()))
        }
        Value::Object(keys) => {
            let Value::Object(found) = found else { return wrong(path) };
            for (key, expect) in keys {
                path.push(key.clone());
                at(path, expect, found.get(key))?;
                path.pop();
            }
            true
        }
        Value::Array(items) => {
            let Value::Array(found) = found else { return wrong(path) };
            if items.len() != found.len() {
                return wrong(path);
            }
            for (n, (expect, found)) in items.iter().zip(found).enumerate() {
                path.push(n.to_string());
                at(path, expect, Some(found))?;
                path.pop();
            }
            true
        }
        scalar => scalar == found || number(scalar).is_some_and(|n| number(found) == Some(n)),
    };
    if matches { Ok(()) } else { wrong(path) }
}

fn is_range(expect: &Value) -> bool {
    let Value::Object(keys) = expect else { return false };
    !keys.is_empty()
        && keys.iter().all(|(key, bound)| (key == "ge" || key == "le") && number(bound).is_some())
}

/// Numbers compare as integers where they are some, so that nothing is lost above 2^53.
fn number(value: &Value) -> Option<Number> {
    integer(value).map(Number::Integer).or_else(|| value.as_f64().map(Number::Float))
}

#[derive(Clone, Copy)]
enum Number {
    Integer(i128),
    Float(f64),
}

impl Number {
    #[expect(
        clippy::cast_precision_loss,
        reason = "compared with a float, an integer is as exact as that is"
    )]
    fn as_f64(self) -> f64 {
        match self {
            Self::Integer(n) => n as f64,
            Self::Float(n) => n,
        }
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(std::cmp::Ordering::Equal)
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => Some(a.cmp(b)),
            _ => self.as_f64().partial_cmp(&other.as_f64()),
        }
    }
}
