use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    Found, Part, Policy, Report, Rule, Severity,
    pending::{Inquiring, Pending},
    rule::Findings,
};

/// Rules with names and severities, asked in the order in which they were added.
pub struct Rules<T: ?Sized> {
    checks: Vec<Box<dyn Check<T> + Send + Sync>>,
    max: usize,
    waits: bool,
    on_report: Option<Tell<T>>,
}

type Tell<T> = Box<dyn Fn(&mut T, &Report) + Send + Sync>;

/// One rule, or several that look at the same part.
pub(crate) trait Check<T: ?Sized> {
    fn run(&self, subject: &T, findings: &mut Findings);

    /// Whether there is something to ask that takes its time.
    fn waits(&self) -> bool {
        false
    }

    /// Asks it, of a subject that is not refused so far.
    fn inquire(&self, subject: &T, findings: &mut Findings, pending: &mut Vec<Pending>) {
        let _ = (subject, findings, pending);
    }
}

struct Named<R> {
    name: Arc<str>,
    severity: Severity,
    rule: R,
}

impl<T: ?Sized, R: Rule<T>> Check<T> for Named<R> {
    fn run(&self, subject: &T, findings: &mut Findings) {
        ask(findings, &self.name, self.severity, |found| self.rule.check(subject, found));
    }
}

/// Asks a rule of this name, which may panic.
pub(crate) fn ask(
    findings: &mut Findings,
    name: &Arc<str>,
    severity: Severity,
    check: impl FnOnce(&mut Found<'_>),
) {
    let found = &mut Found::new(findings, name, severity);
    // What a rule leaves half done is the rule's own: nothing of ours can be seen broken.
    if catch_unwind(AssertUnwindSafe(|| check(found))).is_err() {
        findings.failed(name);
    }
}

impl<T: ?Sized> Rules<T> {
    /// No rules: everything passes.
    pub const fn new() -> Self {
        Self { checks: Vec::new(), max: 64, waits: false, on_report: None }
    }

    /// A rule of severity [`Severity::Warn`].
    ///
    /// # Panics
    ///
    /// If the name is empty.
    #[must_use]
    pub fn warn(self, name: &str, rule: impl Rule<T> + Send + Sync + 'static) -> Self {
        self.rule(name, Severity::Warn, rule)
    }

    /// A rule of severity [`Severity::Error`].
    ///
    /// # Panics
    ///
    /// If the name is empty.
    #[must_use]
    pub fn error(self, name: &str, rule: impl Rule<T> + Send + Sync + 'static) -> Self {
        self.rule(name, Severity::Error, rule)
    }

    /// A rule of severity [`Severity::Safety`].
    ///
    /// # Panics
    ///
    /// If the name is empty.
    #[must_use]
    pub fn safety(self, name: &str, rule: impl Rule<T> + Send + Sync + 'static) -> Self {
        self.rule(name, Severity::Safety, rule)
    }

    /// A rule whose severity is known when the program runs: from a file, say.
    ///
    /// # Panics
    ///
    /// If the name is empty.
    #[must_use]
    pub fn rule(self, name: &str, severity: Severity, rule: impl Rule<T> + Send + Sync + 'static) -> Self {
        assert!(!name.is_empty(), "a rule needs a name: reports are of no use without");
        self.add(Named { name: name.into(), severity, rule })
    }

    pub(crate) fn add(mut self, check: impl Check<T> + Send + Sync + 'static) -> Self {
        self.waits |= check.waits();
        self.checks.push(Box::new(check));
        self
    }

    /// A rule that is a service. It is asked behind all others, and tells behind all others.
    ///
    /// A layer with such a rule for requests is always ready: it makes a clone of the service below ready once the answers are
    /// there, and holds none while it waits.
    ///
    /// # Panics
    ///
    /// If the name is empty.
    #[cfg(feature = "service")]
    #[must_use]
    pub fn inquire(self, name: &str, severity: Severity, inquiry: crate::Inquiry<T>) -> Self
    where
        T: 'static,
    {
        assert!(!name.is_empty(), "a rule needs a name: reports are of no use without");
        self.add(crate::inquiry::Inquirer { name: name.into(), severity, inquiry })
    }

    /// How many violations a report has at most; of the others it has the number. 64 by default.
    ///
    /// # Panics
    ///
    /// If it is 0: a refusal that tells nothing is of no use.
    #[must_use]
    pub fn max_violations(mut self, max: usize) -> Self {
        assert!(max > 0, "a report needs room for a violation");
        self.max = max;
        self
    }

    /// What is done with the report of a subject that passes although something was found.
    ///
    /// With feature `http` the report is among a request's and a response's extensions without this.
    #[must_use]
    pub fn on_report(mut self, tell: impl Fn(&mut T, &Report) + Send + Sync + 'static) -> Self {
        self.on_report = Some(Box::new(tell));
        self
    }

    /// How many rules there are; several that look at one part count as one.
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// Asks every rule, by hand: what the layer does with requests. Rules that are services are not asked.
    pub fn check(&self, subject: &T, policy: impl Into<Policy>) -> Report {
        self.report(subject, policy.into(), Part::Request)
    }

    pub(crate) fn report(&self, subject: &T, policy: Policy, part: Part) -> Report {
        if self.checks.is_empty() {
            return Report::clean(part);
        }
        let mut findings = self.findings(policy);
        self.run(subject, &mut findings);
        findings.into_report(part)
    }

    pub(crate) const fn findings(&self, policy: Policy) -> Findings {
        Findings::new(policy, self.max)
    }

    pub(crate) fn run(&self, subject: &T, findings: &mut Findings) {
        for check in &self.checks {
            if findings.decided {
                return;
            }
            check.run(subject, findings);
        }
    }

    /// Whether any rule is a service.
    pub(crate) const fn waits(&self) -> bool {
        self.waits
    }

    /// Asks the rules that are services, unless what was found refuses already.
    pub(crate) fn inquire_all(&self, subject: &T, mut findings: Findings) -> Inquiring {
        let mut pending = Vec::new();
        if self.waits && !findings.refuses() {
            self.inquire_each(subject, &mut findings, &mut pending);
        }
        Inquiring::new(findings, pending)
    }

    pub(crate) fn inquire_each(&self, subject: &T, findings: &mut Findings, pending: &mut Vec<Pending>) {
        for check in &self.checks {
            check.inquire(subject, findings, pending);
        }
    }

    #[inline]
    pub(crate) fn tell(&self, subject: &mut T, report: &Report) {
        if !report.is_clean()
            && !report.refuses()
            && let Some(tell) = &self.on_report
        {
            tell(subject, report);
        }
    }

    #[cfg(feature = "http")]
    pub(crate) fn tells(&self) -> bool {
        self.on_report.is_some()
    }
}

impl<T: ?Sized> Default for Rules<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: ?Sized> fmt::Debug for Rules<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rules").field("len", &self.len()).finish_non_exhaustive()
    }
}
