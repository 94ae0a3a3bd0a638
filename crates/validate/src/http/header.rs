//! A report in a header.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::{Report, Severity, Violation};

/// The header's name.
const NAME: HeaderName = HeaderName::from_static("validation-report");
/// The longest value, in bytes.
const MOST: usize = 1024;
/// Room for how many there are more: `, more;n=` and the longest number.
const MORE: usize = 32;
/// The longest name of a rule, and the longest pointer.
const MOST_PART: usize = 256;

/// Puts what was found into headers, in place of what somebody else said there. Nothing, if nothing was found.
pub(crate) fn set(headers: &mut HeaderMap, report: &Report) {
    headers.remove(NAME);
    if !report.is_clean() {
        headers.insert(NAME, value(report));
    }
}

fn value(report: &Report) -> HeaderValue {
    let mut value = String::new();
    let mut told = 0;
    for violation in report.violations() {
        let one = of(violation);
        if value.len() + 2 + one.len() > MOST - MORE {
            break;
        }
        if told > 0 {
            value.push_str(", ");
        }
        value.push_str(&one);
        told += 1;
    }
    let more = (report.violations().len() - told).saturating_add(report.left_out());
    if more > 0 {
        write!(value, ", more;n={more}").expect("a String takes everything");
    }
    HeaderValue::from_str(&value).expect("it has nothing but what headers may have")
}

fn of(violation: &Violation) -> String {
    let mut one = String::new();
    quote(&mut one, violation.rule());
    if !violation.pointer().is_empty() {
        let at = one.len();
        one.push_str(";at=");
        if !quote(&mut one, violation.pointer()) {
            // Half a pointer is another one.
            one.truncate(at);
        }
    }
    one.push_str(match violation.severity() {
        Some(Severity::Warn) => ";is=warn",
        Some(Severity::Error) => ";is=error",
        Some(Severity::Safety) => ";is=safety",
        None if violation.is_failure() => ";is=failed",
        None => ";is=malformed",
    });
    one
}

/// False if it had to be cut.
fn quote(value: &mut String, text: &str) -> bool {
    value.push('"');
    let begin = value.len();
    for byte in text.bytes() {
        if value.len() - begin > MOST_PART - 3 {
            value.push('"');
            return false;
        }
        match byte {
            b'"' | b'\\' | b'%' | ..0x20 | 0x7f.. => {
                write!(value, "%{byte:02X}").expect("a String takes everything");
            }
            byte => value.push(char::from(byte)),
        }
    }
    value.push('"');
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Found, Level, Rules};

    fn told(rules: Vec<(&str, String)>, max: usize) -> String {
        let all = Rules::<()>::new().max_violations(max);
        let all = rules.into_iter().fold(all, |all, (name, pointer)| {
            all.warn(name, move |_: &(), found: &mut Found<'_>| found.violation(&pointer, "something SECRET"))
        });
        let mut headers = HeaderMap::new();
        set(&mut headers, &all.check(&(), Level::Lenient));
        headers.get(NAME).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    }

    #[test]
    fn rules_and_pointers_and_nothing_else() {
        assert_eq!(told(vec![], 9), "");
        assert_eq!(told(vec![("pii", String::new())], 9), r#""pii";is=warn"#);
        let pointers =
            vec![("a rule", "/a\"b/é\r\n".to_owned()), ("b", "/x".to_owned()), ("c", String::new())];
        assert_eq!(
            told(pointers, 2),
            r#""a rule";at="/a%22b/%C3%A9%0D%0A";is=warn, "b";at="/x";is=warn, more;n=1"#
        );
        assert_eq!(told(vec![("a", format!("/{}", "x".repeat(300)))], 9), r#""a";is=warn"#);
    }

    #[test]
    fn what_others_said_there_goes() {
        let mut headers = HeaderMap::from_iter([(NAME, HeaderValue::from_static("\"all is well\""))]);
        set(&mut headers, &Rules::<()>::new().check(&(), Level::Strict));
        assert!(headers.is_empty());
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_safe(pointers in prop::collection::vec(any::<String>(), 0..40), name in ".{1,300}") {
            let count = pointers.len();
            let value = told(pointers.into_iter().map(|pointer| (name.as_str(), pointer)).collect(), 30);
            prop_assert!(value.len() <= MOST && value.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
            let told = value.matches(";is=").count();
            let more = value.rsplit_once("more;n=").map_or(0, |(_, more)| more.parse().unwrap());
            prop_assert_eq!(told + more, count);
            prop_assert!(count == 0 || told > 0);
        }
    }
}
