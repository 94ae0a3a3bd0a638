/// How much a broken rule weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth telling. Refuses at [`Level::Strict`] only.
    Warn,
    /// Wrong. Refuses at [`Level::Strict`] and [`Level::Moderate`].
    Error,
    /// Must never pass. Refuses at every level.
    Safety,
}

/// Which broken rules refuse a call. What does not refuse is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// Every one.
    Strict,
    /// Those of severity error and safety.
    Moderate,
    /// Those of severity safety.
    Lenient,
}

impl Level {
    /// Whether a broken rule of this severity refuses.
    pub const fn refuses(self, severity: Severity) -> bool {
        match self {
            Self::Strict => true,
            Self::Moderate => !matches!(severity, Severity::Warn),
            Self::Lenient => matches!(severity, Severity::Safety),
        }
    }
}

/// What becomes of a call when a rule itself fails: when it panics, or is a service that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnRuleError {
    /// It is refused: nobody knows whether it is good.
    Closed,
    /// It passes, and the failure is in the report.
    Open,
}

/// What a layer does with what its rules find: a level, and what departs from its defaults.
///
/// ```
/// use bartizan_validate::{Level, OnRuleError, Policy};
///
/// let policy = Policy::new(Level::Strict).on_rule_error(OnRuleError::Open).first();
/// assert_eq!(policy.level(), Level::Strict);
/// assert_eq!(Policy::from(Level::Lenient), Policy::new(Level::Lenient));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    level: Level,
    on_rule_error: OnRuleError,
    first: bool,
}

impl Policy {
    /// A rule that fails refuses at [`Level::Strict`] and [`Level::Moderate`], and is only reported at
    /// [`Level::Lenient`]. All violations are collected.
    pub const fn new(level: Level) -> Self {
        let on_rule_error = match level {
            Level::Strict | Level::Moderate => OnRuleError::Closed,
            Level::Lenient => OnRuleError::Open,
        };
        Self { level, on_rule_error, first: false }
    }

    /// What becomes of a call when a rule itself fails, whatever the level.
    #[must_use]
    pub const fn on_rule_error(mut self, choice: OnRuleError) -> Self {
        self.on_rule_error = choice;
        self
    }

    /// Reports one violation instead of all: the first that refuses, and then no rule is asked any more, or if none does
    /// the first of all.
    #[must_use]
    pub const fn first(mut self) -> Self {
        self.first = true;
        self
    }

    /// The level.
    pub const fn level(self) -> Level {
        self.level
    }

    pub(crate) const fn wants_first(self) -> bool {
        self.first
    }

    pub(crate) const fn refuses(self, severity: Severity) -> bool {
        self.level.refuses(severity)
    }

    pub(crate) const fn refuses_failures(self) -> bool {
        matches!(self.on_rule_error, OnRuleError::Closed)
    }
}

impl From<Level> for Policy {
    fn from(level: Level) -> Self {
        Self::new(level)
    }
}
