use std::time::Duration;

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};

use super::fields::integer;

/// A layer's file of cases.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The schema's version.
    pub schema: Schema,
    /// The layer, named as the file.
    pub layer: String,
    /// The unit of `t` and of all durations.
    pub unit: Unit,
    /// The normative sentences.
    pub semantics: Vec<String>,
    /// The cases.
    pub cases: Vec<Case>,
}

/// The one schema that there is.
#[derive(Clone, Copy, Debug, Deserialize)]
pub enum Schema {
    /// `rv/1`.
    #[serde(rename = "rv/1")]
    V1,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// Nanoseconds.
    Ns,
    /// Milliseconds.
    Ms,
    /// There is no time in this file.
    None,
}

impl Unit {
    /// So many of this unit.
    pub fn duration(self, n: u64) -> Duration {
        match self {
            Self::Ns => Duration::from_nanos(n),
            Self::Ms => Duration::from_millis(n),
            Self::None => Duration::ZERO,
        }
    }
}

/// A case.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name in messages.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// How much it counts.
    pub tier: Tier,
    /// How far well-known systems agree.
    pub agree: String,
    /// Where the behaviour comes from.
    pub src: Vec<String>,
    /// What else is to be known.
    pub note: Option<String>,
    /// What the layer is built with.
    pub config: Map<String, Value>,
    /// What happens.
    pub steps: Vec<RawStep>,
}

/// How much a case counts. Both count.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// It must hold.
    Must,
    /// It should hold.
    Should,
}

/// A step, as it stands in the file.
#[derive(Clone, Debug, Deserialize)]
pub struct RawStep {
    /// When.
    #[serde(default, deserialize_with = "time")]
    pub t: Option<u64>,
    /// What.
    pub op: String,
    /// How often, at once.
    #[serde(default = "once")]
    pub repeat: u64,
    /// What must be seen, of all that is.
    pub expect: Option<Value>,
    /// With what.
    #[serde(flatten)]
    pub args: Map<String, Value>,
}

fn once() -> u64 {
    1
}

fn time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let value = Value::deserialize(deserializer)?;
    let t = integer(&value).and_then(|t| u64::try_from(t).ok());
    t.map(Some).ok_or_else(|| D::Error::custom(format!("{value} is no time")))
}
