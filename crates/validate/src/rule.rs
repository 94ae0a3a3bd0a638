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

    /// For rules for text: whether certainly none of many texts breaks the rule. `lines` has all of them, each with a line
    /// feed behind it.
    ///
    /// A rule is asked this first where it looks at many short texts (`strings`), and about each one only if it says no.
    /// `false`, the default, is always right; `true` must be.
    fn clears(&self, lines: &str) -> bool {
        let _ = lines;
        false
    }
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
    place: Place<'a>,
}

/// The way to a part of a subject: written down only where there is something to tell of it.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    above: Option<&'a Place<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
pub(crate) enum Step<'a> {
    /// As much of a pointer as there is.
    Pointer(&'a str),
    #[cfg(feature = "json")]
    Name(&'a str),
    #[cfg(feature = "json")]
    Index(usize),
}

impl<'a> Place<'a> {
    const fn whole() -> Self {
        Self { above: None, step: Step::Pointer("") }
    }

    const fn under(above: &'a Place<'a>, step: Step<'a>) -> Self {
        Self { above: Some(above), step }
    }

    fn write(&self, pointer: &mut String) {
        if let Some(above) = self.above {
            above.write(pointer);
        }
        match self.step {
            Step::Pointer(more) => pointer.push_str(more),
            #[cfg(feature = "json")]
            Step::Name(name) => crate::json::push(pointer, name),
            #[cfg(feature = "json")]
            Step::Index(index) => crate::json::push(pointer, &index.to_string()),
        }
    }
}

impl<'a> Found<'a> {
    pub(crate) const fn new(findings: &'a mut Findings, rule: &'a Arc<str>, severity: Severity) -> Self {
        Self { findings, rule, severity, place: Place::whole() }
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

    /// For a rule that passes on a part of its subject: pointers then begin at `base`, which is a JSON pointer within that
    /// subject.
    pub fn at<'b>(&'b mut self, base: &'b str) -> Found<'b> {
        self.below(Step::Pointer(base))
    }

    pub(crate) fn below<'b>(&'b mut self, step: Step<'b>) -> Found<'b> {
        let place = Place::under(&self.place, step);
        Found { findings: self.findings, rule: self.rule, severity: self.severity, place }
    }

    /// Whether no string of `value` breaks `rule`, as far as a look at all of them at once can tell.
    #[cfg(feature = "json")]
    pub(crate) fn clears<R: Rule<str>>(&mut self, value: &serde_json::Value, rule: &R) -> bool {
        match &mut self.findings.about {
            Some(about) if about.address == std::ptr::from_ref(value).addr() => {
                rule.clears(about.lines.get_or_insert_with(|| crate::json::lines(value)))
            }
            _ => false,
        }
    }

    fn tell(&mut self, kind: Kind, pointer: &str, message: Cow<'static, str>) {
        let (rule, place) = (self.rule, self.place);
        self.findings.add(kind, || {
            let mut whole = String::new();
            place.write(&mut whole);
            whole.push_str(pointer);
            Violation { rule: rule.clone(), kind, pointer: whole, message }
        });
    }
}

impl fmt::Debug for Found<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut base = String::new();
        self.place.write(&mut base);
        f.debug_struct("Found").field("rule", &self.rule).field("base", &base).finish_non_exhaustive()
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
    #[cfg(feature = "json")]
    about: Option<About>,
}

/// The value that rules look at: what several of them need of it is made once.
#[cfg(feature = "json")]
struct About {
    address: usize,
    lines: Option<String>,
}

impl Findings {
    pub(crate) const fn new(policy: Policy, max: usize) -> Self {
        Self {
            policy,
            max,
            violations: Vec::new(),
            left_out: 0,
            refuses: false,
            decided: false,
            #[cfg(feature = "json")]
            about: None,
        }
    }

    #[cfg(feature = "json")]
    pub(crate) fn about(&mut self, value: &serde_json::Value, run: impl FnOnce(&mut Self)) {
        self.about = Some(About { address: std::ptr::from_ref(value).addr(), lines: None });
        run(self);
        self.about = None;
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

    /// Nothing yet, under the same policy.
    pub(crate) const fn alike(&self) -> Self {
        Self::new(self.policy, self.max)
    }

    pub(crate) const fn refuses(&self) -> bool {
        self.refuses
    }

    /// Adds what was found elsewhere under the same policy.
    pub(crate) fn add_all(&mut self, others: Self) {
        if self.decided {
            return;
        }
        for violation in others.violations {
            self.add(violation.kind, || violation);
        }
        self.left_out = self.left_out.saturating_add(others.left_out);
        self.refuses |= others.refuses;
    }

    pub(crate) fn into_report(self, part: Part) -> Report {
        Report::new(part, self.refuses, self.violations, self.left_out)
    }
}
