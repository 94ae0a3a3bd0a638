use std::{cell::RefCell, collections::BTreeSet};

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// A JSON object that knows which of its keys nobody has read.
#[derive(Debug)]
pub struct Fields {
    fields: Map<String, Value>,
    read: RefCell<BTreeSet<String>>,
}

impl Fields {
    /// The fields of an object, unread.
    pub fn new(fields: Map<String, Value>) -> Self {
        Self { fields, read: RefCell::default() }
    }

    /// The value of `key`, if it is there.
    ///
    /// # Errors
    ///
    /// If it is not what the caller takes it for. Types that stand for objects should deny unknown fields.
    pub fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, String> {
        self.read.borrow_mut().insert(key.to_owned());
        let value = self.fields.get(key).cloned();
        value.map(serde_json::from_value).transpose().map_err(|error| format!("{key}: {error}"))
    }

    /// The value of `key`, which must be there.
    ///
    /// # Errors
    ///
    /// If it is not there, or not what the caller takes it for.
    pub fn need<T: DeserializeOwned>(&self, key: &str) -> Result<T, String> {
        self.get(key)?.ok_or_else(|| format!("{key} is missing"))
    }

    /// The integer of `key`, if it is there: a number, or above 2^53 a string of digits.
    ///
    /// # Errors
    ///
    /// If it is no integer.
    pub fn integer(&self, key: &str) -> Result<Option<i128>, String> {
        let value: Option<Value> = self.get(key)?;
        value.map(|value| integer(&value).ok_or_else(|| format!("{key}: {value} is no integer"))).transpose()
    }

    /// Every key that is there.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.fields.keys().map(String::as_str)
    }

    /// Whether every key was read: one that was not is one that the adapter does not know.
    pub(super) fn all_read(&self) -> Result<(), String> {
        let read = self.read.borrow();
        match self.keys().find(|key| !read.contains(*key)) {
            Some(key) => Err(format!("unknown key {key:?}")),
            None => Ok(()),
        }
    }
}

/// A number, or a string of digits where a number would not be exact.
pub(super) fn integer(value: &Value) -> Option<i128> {
    const EXACT: i128 = 1 << 53;
    match value {
        Value::Number(number) => number.as_i128(),
        Value::String(digits) => digits.parse().ok().filter(|n: &i128| n.abs() > EXACT),
        _ => None,
    }
}
