//! What a key is: a name, a type and a place for the value.

use std::{fmt, ops::RangeInclusive};

use toml::de::DeValue;

/// A key of a section that is read into a `T`.
pub(super) struct Key<T> {
    pub(super) name: &'static str,
    pub(super) kind: Kind<T>,
    /// As it would be written in the file; empty when there is none.
    pub(super) default: &'static str,
    pub(super) doc: &'static str,
}

pub(super) enum Kind<T> {
    Integer(RangeInclusive<u64>, fn(&mut T, u64)),
    /// `None` is this word. An error goes on after `"key" in [section]`.
    IntegerOr(&'static str, RangeInclusive<u64>, fn(&mut T, Option<u64>) -> Result<(), String>),
    Flag(fn(&mut T, bool)),
    /// What it is a list of, and how to take it; an error goes on after `"key" in [section]`. In text with commas between.
    Names(&'static str, fn(&mut T, Vec<String>) -> Result<(), String>),
    /// `None` is this word.
    NamesOr(&'static str, &'static str, fn(&mut T, Option<Vec<String>>)),
    /// What it is, and how to take it; an error goes on after `"key" in [section]`.
    Text(&'static str, fn(&mut T, &str) -> Result<(), String>),
    /// As `Text`, and no error shows what was given.
    Secret(&'static str, fn(&mut T, &str) -> Result<(), String>),
}

/// A value on its way in.
pub(super) enum Value<'a> {
    /// From the file, with a type of its own.
    Toml(&'a DeValue<'a>),
    /// From a variable or an option, which know only text.
    Text(&'a str),
}

/// The candidate that `text` was most likely meant to be. The measure favours a common beginning, as a name cut short
/// has.
pub(super) fn nearest<'a>(text: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let scored = candidates.into_iter().map(|candidate| (strsim::jaro_winkler(text, candidate), candidate));
    scored
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Sets the key of that name, if there is one. An error goes on after `"key" in [section]`.
pub(super) fn set<T>(
    keys: &[Key<T>],
    target: &mut T,
    name: &str,
    value: &Value<'_>,
) -> Option<Result<(), String>> {
    Some(keys.iter().find(|key| key.name == name)?.kind.set(target, value))
}

impl<T> Kind<T> {
    fn set(&self, target: &mut T, value: &Value<'_>) -> Result<(), String> {
        let wrong = || format!("must be {self}, not {value}");
        match self {
            Self::Integer(range, set) => set(target, value.integer(range).ok_or_else(wrong)?),
            Self::IntegerOr(word, _, set) if value.text() == Some(word) => return set(target, None),
            Self::IntegerOr(_, range, set) => {
                return set(target, Some(value.integer(range).ok_or_else(wrong)?));
            }
            Self::Flag(set) => set(target, value.flag().ok_or_else(wrong)?),
            Self::Names(_, set) => return set(target, value.names().ok_or_else(wrong)?),
            Self::NamesOr(word, _, set) if value.text() == Some(word) => set(target, None),
            Self::NamesOr(_, _, set) => set(target, Some(value.names().ok_or_else(wrong)?)),
            Self::Text(_, set) => return set(target, value.text().ok_or_else(wrong)?),
            Self::Secret(what, set) => {
                return set(target, value.text().ok_or_else(|| format!("must be {what}"))?);
            }
        }
        Ok(())
    }
}

/// The type, in words.
impl<T> fmt::Display for Kind<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(range, _) => write!(f, "an integer from {} to {}", range.start(), range.end()),
            Self::IntegerOr(word, range, _) => {
                write!(f, "{word:?} or an integer from {} to {}", range.start(), range.end())
            }
            Self::Flag(_) => f.write_str("true or false"),
            Self::NamesOr(word, what, _) => write!(f, "{word:?} or {what}"),
            Self::Names(what, _) | Self::Text(what, _) | Self::Secret(what, _) => f.write_str(what),
        }
    }
}

impl Value<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Toml(value) => value.as_str(),
            Self::Text(text) => Some(text),
        }
    }

    fn flag(&self) -> Option<bool> {
        match self {
            Self::Toml(value) => value.as_bool(),
            Self::Text(text) => text.parse().ok(),
        }
    }

    fn names(&self) -> Option<Vec<String>> {
        match self {
            Self::Toml(value) => {
                let name = |item: &toml::Spanned<DeValue<'_>>| item.get_ref().as_str().map(ToOwned::to_owned);
                value.as_array()?.iter().map(name).collect()
            }
            Self::Text(text) => {
                let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
                Some(names.map(ToOwned::to_owned).collect())
            }
        }
    }

    fn integer(&self, range: &RangeInclusive<u64>) -> Option<u64> {
        let integer = match self {
            Self::Toml(value) => {
                value.as_integer().and_then(|i| u64::from_str_radix(i.as_str(), i.radix()).ok())
            }
            // As in TOML, underscores may part the digits.
            Self::Text(text) => text.replace('_', "").parse().ok(),
        };
        integer.filter(|integer| range.contains(integer))
    }
}

/// For the end of `must be .., not ..`.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toml(DeValue::String(text)) => write!(f, "{text:?}"),
            Self::Toml(DeValue::Integer(integer)) => write!(f, "{integer}"),
            Self::Toml(DeValue::Float(float)) => write!(f, "{float}"),
            Self::Toml(DeValue::Boolean(flag)) => write!(f, "{flag}"),
            Self::Toml(DeValue::Datetime(_)) => f.write_str("a date"),
            Self::Toml(DeValue::Array(_)) => f.write_str("an array"),
            Self::Toml(DeValue::Table(_)) => f.write_str("a table"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}
