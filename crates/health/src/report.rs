use std::fmt;

use crate::State;

/// What a component says of itself when it is asked: [`Health::report`](crate::Health::report) takes a closure that makes
/// one.
///
/// ```
/// use bartizan_health::{Report, State};
///
/// let report = Report::new(State::Degraded).says("half-open").with("opens", 3).with("probing", true);
/// assert_eq!(report.state(), State::Degraded);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    state: State,
    says: Option<String>,
    figures: Vec<(String, Figure)>,
}

impl Report {
    /// It fares like this.
    pub const fn new(state: State) -> Self {
        Self { state, says: None, figures: Vec::new() }
    }

    /// Why.
    #[must_use]
    pub fn says(mut self, says: impl Into<String>) -> Self {
        self.says = Some(says.into());
        self
    }

    /// Adds something to know: a number, a word, or whether. In the document of `/health` it has this name, with `_` at its
    /// end if there is something of this name already.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, figure: impl Into<Figure>) -> Self {
        self.figures.push((name.into(), figure.into()));
        self
    }

    /// How it fares.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Why, if it has said.
    pub fn message(&self) -> Option<&str> {
        self.says.as_deref()
    }

    /// What else there is to know.
    pub fn figures(&self) -> impl Iterator<Item = (&str, &Figure)> {
        self.figures.iter().map(|(name, figure)| (name.as_str(), figure))
    }
}

impl From<State> for Report {
    fn from(state: State) -> Self {
        Self::new(state)
    }
}

/// Something to know of a component.
#[derive(Clone, Debug, PartialEq)]
pub enum Figure {
    /// A whole number.
    Count(u64),
    /// Any number. One that is none, or infinite, is told as nothing in JSON.
    Number(f64),
    /// Words.
    Text(String),
    /// Whether.
    Flag(bool),
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => count.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
            Self::Flag(flag) => flag.fmt(f),
        }
    }
}

impl From<u64> for Figure {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<u32> for Figure {
    fn from(count: u32) -> Self {
        Self::Count(count.into())
    }
}

/// So that `with("opens", 3)` can be written. What is negative is told as a number that is not whole can be.
impl From<i32> for Figure {
    fn from(count: i32) -> Self {
        u64::try_from(count).map_or(Self::Number(count.into()), Self::Count)
    }
}

impl From<usize> for Figure {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Figure {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Figure {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl From<&str> for Figure {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Figure {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}
