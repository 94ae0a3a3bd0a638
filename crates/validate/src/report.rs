use std::{borrow::Cow, error::Error, fmt, sync::Arc};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};

use crate::{NAME, Severity};

/// A rule that is broken, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub(crate) rule: Arc<str>,
    pub(crate) kind: Kind,
    pub(crate) pointer: String,
    pub(crate) message: Cow<'static, str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Broken(Severity),
    Failed,
    Malformed,
}

impl Violation {
    /// The rule's name.
    pub fn rule(&self) -> &str {
        &self.rule
    }

    /// The rule's severity. `None` where it does not matter: the rule itself failed, or the message is malformed.
    pub const fn severity(&self) -> Option<Severity> {
        match self.kind {
            Kind::Broken(severity) => Some(severity),
            Kind::Failed | Kind::Malformed => None,
        }
    }

    /// Whether the rule itself failed, so that nobody knows whether it is broken.
    pub const fn is_failure(&self) -> bool {
        matches!(self.kind, Kind::Failed)
    }

    /// Whether the message could not be read as what it says it is, or not be checked. That refuses at every level.
    pub const fn is_malformed(&self) -> bool {
        matches!(self.kind, Kind::Malformed)
    }

    /// Where: a JSON pointer (RFC 6901), empty for the whole. It has the names of members as the message has them.
    pub fn pointer(&self) -> &str {
        &self.pointer
    }

    /// What is wrong, in words. The rules of this crate never quote what they found.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rule)?;
        if !self.pointer.is_empty() {
            write!(f, " at {}", self.pointer)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Which half of a call a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The request.
    Request,
    /// The response.
    Response,
}

/// What rules found, in their order.
///
/// The source of a refusal ([`Report::find`]) and, with feature `http`, an extension of requests and responses that pass
/// although there is something to tell. Clones share one list; a report of nothing allocates nothing.
#[derive(Clone, Debug)]
pub struct Report {
    part: Part,
    refuses: bool,
    found: Option<Arc<Found>>,
}

#[derive(Debug)]
struct Found {
    violations: Vec<Violation>,
    left_out: usize,
}

impl Report {
    pub(crate) const fn clean(part: Part) -> Self {
        Self { part, refuses: false, found: None }
    }

    pub(crate) fn new(part: Part, refuses: bool, violations: Vec<Violation>, left_out: usize) -> Self {
        if violations.is_empty() {
            return Self::clean(part);
        }
        Self { part, refuses, found: Some(Arc::new(Found { violations, left_out })) }
    }

    /// For what is refused before a rule is asked, because none can be.
    #[cfg(feature = "http")]
    pub(crate) fn malformed(part: Part, rule: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        let (rule, message) = (rule.into(), message.into());
        let violation = Violation { rule, kind: Kind::Malformed, pointer: String::new(), message };
        Self::new(part, true, vec![violation], 0)
    }

    /// The report with which a call was refused, if `error` is such a refusal or has one among its sources.
    pub fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        bartizan_core::chain(error).find_map(|error| error.downcast_ref())
    }

    /// What was found, in the order of the rules.
    pub fn violations(&self) -> &[Violation] {
        self.found.as_ref().map_or(&[], |found| &found.violations)
    }

    /// How many violations more there were than [`Rules::max_violations`](crate::Rules::max_violations) allows.
    pub fn left_out(&self) -> usize {
        self.found.as_ref().map_or(0, |found| found.left_out)
    }

    /// Whether nothing was found.
    pub const fn is_clean(&self) -> bool {
        self.found.is_none()
    }

    /// Whether what was found refuses the call.
    pub const fn refuses(&self) -> bool {
        self.refuses
    }

    /// Whether the message could not be read or not be checked, which refuses at every level.
    pub fn is_malformed(&self) -> bool {
        self.violations().iter().any(Violation::is_malformed)
    }

    /// What the report is about.
    pub const fn part(&self) -> Part {
        self.part
    }

    /// What was found in this, and behind it what was found in `later`.
    #[cfg(feature = "http")]
    pub(crate) fn and(&self, later: &Self) -> Self {
        let violations = self.violations().iter().chain(later.violations()).cloned().collect();
        Self::new(later.part, later.refuses, violations, self.left_out().saturating_add(later.left_out()))
    }

    /// The refusal with this report as its source. The same request never passes, the same call may have a better answer.
    ///
    /// With `headers`, a response made from it says so, too.
    pub(crate) fn into_error(self, headers: bool) -> BoxError {
        let (kind, retry_after) = match self.part {
            Part::Request => (RejectionKind::Invalid, RetryAfter::Never),
            Part::Response => (RejectionKind::InvalidAnswer, RetryAfter::Unknown),
        };
        let refusal = Rejected::new(kind, NAME).with_retry_after(retry_after);
        #[cfg(feature = "http")]
        let refusal = if headers {
            let mut all = http::HeaderMap::new();
            crate::http::set_header(&mut all, &self);
            refusal.with_headers(all)
        } else {
            refusal
        };
        #[cfg(not(feature = "http"))]
        let _ = headers;
        refusal.with_source(self).into()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.part {
            Part::Request => "the request",
            Part::Response => "the response",
        })?;
        if self.is_clean() {
            return f.write_str(" breaks no rule");
        }
        for (n, violation) in self.violations().iter().enumerate() {
            f.write_str(if n == 0 { ": " } else { "; " })?;
            violation.fmt(f)?;
        }
        match self.left_out() {
            0 => Ok(()),
            more => write!(f, "; and {more} more"),
        }
    }
}

impl Error for Report {}
