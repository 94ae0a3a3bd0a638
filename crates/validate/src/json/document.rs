use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value, map::Entry};

use super::push;
use crate::http::scan;

/// Why bytes cannot be read as JSON, and where.
#[derive(Debug)]
pub(crate) struct Flaw {
    pub(crate) pointer: String,
    pub(crate) message: String,
}

/// Reads one JSON value in at most `max_depth` arrays and objects inside each other, of which no object has two members
/// of one name: which of them counts is a matter of taste, and what is checked here would not be what is read elsewhere.
pub(crate) fn read(bytes: &[u8], max_depth: usize) -> Result<Value, Flaw> {
    let mut twice = None;
    let mut parser = serde_json::Deserializer::from_slice(bytes);
    let read = Read { left: max_depth, twice: &mut twice };
    if let Ok(value) = read.deserialize(&mut parser)
        && parser.end().is_ok()
    {
        return Ok(value);
    }
    // Once more, to say what is wrong.
    let flaw = |pointer: String, message: &str| Flaw { pointer, message: message.to_owned() };
    Err(match (scan(bytes, max_depth), twice) {
        (Err(wrong), _) => flaw(String::new(), &wrong.to_string()),
        (Ok(()), Some(steps)) => flaw(
            steps.iter().rev().fold(String::new(), |mut pointer, step| {
                push(&mut pointer, step);
                pointer
            }),
            "two members of an object have one name",
        ),
        (Ok(()), None) => flaw(String::new(), "it has a number or a string that cannot be read"),
    })
}

/// Builds a value, so deep at most.
struct Read<'a> {
    left: usize,
    /// The way to the name that stands twice, its end first.
    twice: &'a mut Option<Vec<String>>,
}

impl Read<'_> {
    fn below<E: serde::de::Error>(&mut self) -> Result<Read<'_>, E> {
        let left = self.left.checked_sub(1).ok_or_else(|| E::custom("nested too deep"))?;
        Ok(Read { left, twice: self.twice })
    }

    fn failed<E>(&mut self, error: E, step: impl FnOnce() -> String) -> E {
        if let Some(steps) = self.twice {
            steps.push(step());
        }
        error
    }
}

impl<'de> DeserializeSeed<'de> for Read<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Read<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Value, A::Error> {
        self.below()?;
        let mut values = Vec::new();
        loop {
            match items.next_element_seed(self.below()?) {
                Ok(Some(value)) => values.push(value),
                Ok(None) => return Ok(Value::Array(values)),
                Err(error) => return Err(self.failed(error, || values.len().to_string())),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Value, A::Error> {
        self.below()?;
        let mut values = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            match values.entry(name) {
                Entry::Vacant(entry) => match members.next_value_seed(self.below()?) {
                    Ok(value) => drop(entry.insert(value)),
                    Err(error) => return Err(self.failed(error, || entry.key().clone())),
                },
                Entry::Occupied(entry) => {
                    *self.twice = Some(vec![entry.key().clone()]);
                    return Err(A::Error::custom("a name stands twice"));
                }
            }
        }
        Ok(Value::Object(values))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::value;

    fn twice(text: &str) -> Option<String> {
        read(text.as_bytes(), 9).err().map(|flaw| flaw.pointer)
    }

    #[test]
    fn a_name_that_stands_twice_is_told_where_it_stands() {
        let at = |pointer: &str| Some(pointer.to_owned());
        assert_eq!(twice(r#"{"a":1,"a":1}"#), at("/a"));
        assert_eq!(twice(r#"{"a":1,"\u0061":2}"#), at("/a"), "however it is written");
        assert_eq!(twice(r#"[{},{"x/y":[0,{"b":1,"c":{},"b":{}}]}]"#), at("/1/x~1y/1/b"));
        assert_eq!(twice(r#"{"a":{"b":1},"c":{"b":1},"A":1}"#), None, "in two objects, or two names");
        let flaw = read(br#"{"a":1,"a":1"#, 9).unwrap_err();
        assert_eq!((flaw.pointer.as_str(), flaw.message.contains("not JSON")), ("", true));
    }

    #[test]
    fn it_is_as_deep_as_it_may_be() {
        assert!(read(b"[[1]]", 2).is_ok() && read(b"[[]]", 2).is_ok() && read(b"1", 1).is_ok());
        for deep in ["[[[1]]]", "[[[]]]", r#"[{"a":{}}]"#] {
            assert!(read(deep.as_bytes(), 2).err().unwrap().message.contains("more than 2 deep"), "{deep}");
        }
        assert!(read("[".repeat(127).as_bytes(), 127).is_err());
        assert!(read(("[".repeat(127) + &"]".repeat(127)).as_bytes(), 127).is_ok());
    }

    /// The parser's own type gives this member's name a meaning.
    #[test]
    fn no_name_has_a_meaning_of_its_own() {
        let text = r#"{"$serde_json::private::RawValue":"{\"a\":1}"}"#;
        assert_eq!(read(text.as_bytes(), 9).ok().unwrap()["$serde_json::private::RawValue"], r#"{"a":1}"#);
        assert_eq!(twice(r#"["\ud800"]"#), Some(String::new()), "half a character");
    }

    proptest! {
        #[test]
        fn it_is_what_the_parsers_own_type_is(value in value(), cut in any::<prop::sample::Index>()) {
            let text = value.to_string();
            prop_assert_eq!(read(text.as_bytes(), 9).ok(), serde_json::from_str::<Value>(&text).ok());
            let cut = &text.as_bytes()[..cut.index(text.len())];
            prop_assert_eq!(read(cut, 9).ok(), serde_json::from_slice::<Value>(cut).ok());
        }
    }
}
