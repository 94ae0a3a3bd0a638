use std::{borrow::Cow, fmt, sync::Arc};

use crate::{
    Policy, Severity,
    report::{Kind, Part, Report, Violation},
};

/// A rule: looks at a subject, and says what is wrong with it.
///
/// Closures `|subject: &T, found: &mut Found<'_>|` are rules. A rule never changes what it looks at. It may panic: that
/// is a failure of the rule, and [`OnRuleError`](crate::OnRuleError) says what becomes of the call.
pub trait Rule<T: ?Sized> {
    /// Tells `found` everything that is wrong with `subject`.
    fn check(&self, subject: &T, found: &mut Found<'_>);
}

impl<T: ?Sized, F: Fn(&T, &mut Found<'_>)> Rule<T> for F {
    fn check(&self, subject: &T, found: &mut Found<'_>) {
        self(subject, found);
    }
}

/// A rule in one sentence: `predicate` must hold.
///
/// ```
/// use bartizan_validate::{Level, Rules, must};
///
/// struct Order { pieces: u32 }
///
/// let rules = Rules::new()
///     .error("pieces", must("at least one piece", |order: &Order| order.pieces > 0).at("/pieces"));
/// let report = rules.check(&Order { pieces: 0 }, Level::Moderate);
/// assert!(report.refuses());
/// assert_eq!(report.violations()[0].to_string(), "pieces at /pieces: at least one piece");
/// assert!(rules.check(&Order { pieces: 1 }, Level::Moderate).is_clean());
/// ```
pub const fn must<T: ?Sized, F: Fn(&T) -> bool>(message: &'static str, predicate: F) -> Must<F> {
    Must { message, pointer: "", predicate }
}

/// The rule made by [`must`].
#[derive(Clone, Copy)]
pub struct Must<F> {
    message: &'static str,
    pointer: &'static str,
    predicate: F,
}

impl<F> Must<F> {
    /// Where it looks: a JSON pointer.
    #[must_use]
    pub const fn at(mut self, pointer: &'static str) -> Self {
        self.pointer = pointer;
        self
    }
}

impl<T: ?Sized, F: Fn(&T) -> bool> Rule<T> for Must<F> {
    fn check(&self, subject: &T, found: &mut Found<'_>) {
        if !(self.predicate)(subject) {
            found.violation(self.pointer, self.message);
        }
    }
}

impl<F> fmt::Debug for Must<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Must").field("message", &self.message).finish_non_exhaustive()
    }
}

/// Where a rule tells what is wrong.
pub struct Found<'a> {
    findings: &'a mut Findings,
    rule: &'a Arc<str>,
    severity: Severity,
    /// Where the subject stands in the whole.
    base: &'a str,
}

impl<'a> Found<'a> {
    pub(crate) const fn new(findings: &'a mut Findings, rule: &'a Arc<str>, severity: Severity) -> Self {
        Self { findings, rule, severity, base: "" }
    }

    /// The rule is broken at `pointer` of the subject, a JSON pointer that is empty for the whole.
    pub fn violation(&mut self, pointer: &str, message: impl Into<Cow<'static, str>>) {
        self.tell(Kind::Broken(self.severity), pointer, message.into());
    }

    /// The subject cannot be read as what it says it is, or cannot be checked. That refuses at every level.
    pub fn malformed(&mut self, message: impl Into<Cow<'static, str>>) {
        self.tell(Kind::Malformed, "", message.into());
    }

    /// Whether the call is refused already and only one violation was asked for: a rule may stop looking.
    pub const fn is_decided(&self) -> bool {
        self.findings.decided
    }

    /// For a rule that passes on a part of its subject: pointers then begin at `base`.
    pub fn at<'b>(&'b mut self, base: &'b str) -> Found<'b> {
        Found { findings: self.findings, rule: self.rule, severity: self.severity, base }
    }

    fn tell(&mut self, kind: Kind, pointer: &str, message: Cow<'static, str>) {
        let (rule, pointer) = (self.rule, [self.base, pointer]);
        self.findings.add(kind, || Violation {
            rule: rule.clone(),
            kind,
            pointer: pointer.concat(),
            message,
        });
    }
}

impl fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Found").field("rule", &self.rule).field("base", &self.base).finish_non_exhaustive()
    }
}

/// What was found so far.
pub(crate) struct Findings {
    policy: Policy,
    max: usize,
    violations: Vec<Violation>,
    left_out: usize,
    refuses: bool,
    /// Nothing that comes can change the report.
    pub(crate) decided: bool,
}

impl Findings {
    pub(crate) const fn new(policy: Policy, max: usize) -> Self {
        Self { policy, max, violations: Vec::new(), left_out: 0, refuses: false, decided: false }
    }

    pub(crate) fn failed(&mut self, rule: &Arc<str>) {
        let (kind, message) = (Kind::Failed, Cow::Borrowed("the rule itself failed"));
        let pointer = String::new();
        self.add(kind, || Violation { rule: rule.clone(), kind, pointer, message });
    }

    fn add(&mut self, kind: Kind, violation: impl FnOnce() -> Violation) {
        if self.decided {
            return;
        }
        let refuses = match kind {
            Kind::Broken(severity) => self.policy.refuses(severity),
            Kind::Failed => self.policy.refuses_failures(),
            Kind::Malformed => true,
        };
        self.refuses |= refuses;
        if self.policy.wants_first() {
            self.decided = refuses;
            // What decides is what is told, so that a warning hides no error.
            if refuses {
                self.violations.clear();
            }
            if self.violations.is_empty() {
                self.violations.push(violation());
            }
        } else if self.violations.len() < self.max {
            self.violations.push(violation());
        } else {
            self.left_out = self.left_out.saturating_add(1);
        }
    }

    pub(crate) fn into_report(self, part: Part) -> Report {
        Report::new(part, self.refuses, self.violations, self.left_out)
    }
}
