use std::{error::Error, fmt};

use regex::{Regex, RegexBuilder};

use crate::{Found, Rule};

/// A regular expression that text must have, or must not have, somewhere in it.
///
/// Compiled once and searched in time linear in the text, whatever the expression: there is no backtracking, and so no
/// back reference and no look-around.
///
/// ```
/// use bartizan_validate::{Level, Pattern, Rules};
///
/// let rules = Rules::<str>::new()
///     .safety("codename", Pattern::deny("(?i)project[ -]?nightfall")?)
///     .warn("ticket", Pattern::require(r"^[A-Z]+-\d+")?);
/// let report = rules.check("Tell me about Project Nightfall", Level::Lenient);
/// assert!(report.refuses());
/// assert_eq!(report.violations().len(), 2);
/// assert!(rules.check("OPS-12 restart it", Level::Strict).is_clean());
/// assert!(Pattern::deny("(").is_err());
/// # Ok::<(), bartizan_validate::InvalidPattern>(())
/// ```
#[derive(Clone, Debug)]
pub struct Pattern {
    regex: Regex,
    denies: bool,
    /// Whether it asks where a text or a line begins or ends. May say so of one that does not.
    anchored: bool,
}

/// How many bytes a compiled expression may take.
const MOST: usize = 1 << 20;

impl Pattern {
    /// Text must not match.
    ///
    /// # Errors
    ///
    /// If the expression is none, or takes more than 1 MiB when it is compiled.
    pub fn deny(pattern: &str) -> Result<Self, InvalidPattern> {
        Self::new(pattern, true)
    }

    /// Text must match.
    ///
    /// # Errors
    ///
    /// If the expression is none, or takes more than 1 MiB when it is compiled.
    pub fn require(pattern: &str) -> Result<Self, InvalidPattern> {
        Self::new(pattern, false)
    }

    fn new(pattern: &str, denies: bool) -> Result<Self, InvalidPattern> {
        let regex = RegexBuilder::new(pattern).size_limit(MOST).build();
        let regex = regex.map_err(|error| InvalidPattern(error.to_string()))?;
        let anchored = ["^", "$", r"\A", r"\z"].iter().any(|anchor| pattern.contains(anchor));
        Ok(Self { regex, denies, anchored })
    }
}

impl Rule<str> for Pattern {
    fn check(&self, text: &str, found: &mut Found<'_>) {
        match (self.denies, self.regex.is_match(text)) {
            (true, true) => found.violation("", "a pattern that must not be there is there"),
            (false, false) => found.violation("", "a pattern that must be there is not there"),
            (true, false) | (false, true) => {}
        }
    }

    /// A text's ends look like line feeds to all that an expression can ask of them but for anchors: no word goes on there.
    fn clears(&self, lines: &str) -> bool {
        self.denies && !self.anchored && !self.regex.is_match(lines)
    }
}

/// An expression that cannot be compiled, or is too large.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPattern(String);

impl InvalidPattern {
    pub(super) const fn new(message: String) -> Self {
        Self(message)
    }
}

impl fmt::Display for InvalidPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for InvalidPattern {}
