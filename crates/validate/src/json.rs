//! What bodies say as JSON.

mod bounds;
mod document;
mod format;
mod schema;
mod strings;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use document::{Flaw, read};
pub(crate) use format::{Expected, Formats, Listener};
pub use format::{ResponseFormat, Wanted};
pub use schema::{InvalidSchema, Schema};
pub(crate) use strings::lines;
pub use strings::{at, strings};

use crate::{
    Found, Message, Rules, Severity, http::uncheckable, pending::Pending, rule::Findings, rules::Check,
};

/// How a body is read as JSON: bounds that are kept while it is read.
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

    fn read<M: Message>(self, message: &M) -> Result<Value, Flaw> {
        let flaw = |message: String| Err(Flaw { pointer: String::new(), message });
        if let Some(why) = uncheckable(message.headers()) {
            return flaw(why.to_owned());
        }
        if message.body().len() > self.max_bytes {
            return flaw(format!("it is longer than {} bytes", self.max_bytes));
        }
        read(message.body(), self.max_depth)
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
    /// not asked. So is one in which an object has two members of one name, however they are written: whoever reads it
    /// next may take the other one.
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
            Ok(value) => findings.about(&value, |findings| self.rules.run(&value, findings)),
            Err(Flaw { pointer, message }) => {
                Found::new(findings, &self.name, Severity::Safety).at(&pointer).malformed(message);
            }
        }
    }

    fn waits(&self) -> bool {
        self.rules.waits()
    }

    fn inquire(&self, message: &M, findings: &mut Findings, pending: &mut Vec<Pending>) {
        // Read again, which costs nothing beside a service, and only if there is one.
        if self.rules.waits()
            && let Ok(value) = self.json.read(message)
        {
            self.rules.inquire_each(&value, findings, pending);
        }
    }
}

/// Adds a step to a pointer.
pub(crate) fn push(pointer: &mut String, step: &str) {
    pointer.push('/');
    for c in step.chars() {
        match c {
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            c => pointer.push(c),
        }
    }
}
