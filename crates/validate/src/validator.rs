use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
};

use crate::{
    Part, Policy, Report, Rules, ValidateLayer,
    answers::{Asked, Expected, Unchecked, Values},
    rule::Findings,
};

/// The rules of a service, for its requests and for its answers. Layers are views of it.
///
/// Clones share what is switched and counted.
pub struct Validator<Req, A = Unchecked> {
    pub(crate) shared: Arc<Shared<Req>>,
    pub(crate) answers: A,
    pub(crate) tally: Arc<Tally>,
}

pub(crate) struct Shared<Req> {
    pub(crate) requests: Rules<Req>,
    /// What finds the form in which a request wants its answer.
    #[cfg(feature = "json")]
    pub(crate) expects: Option<Box<Expects<Req>>>,
    /// Responses made from refusals have the report in a header.
    pub(crate) headers: bool,
    disabled: AtomicBool,
}

#[cfg(feature = "json")]
pub(crate) type Expects<Req> = dyn Fn(&Req, &mut Findings) -> Option<Expected> + Send + Sync;

impl<Req> Shared<Req> {
    #[inline]
    pub(crate) fn is_enabled(&self) -> bool {
        !self.disabled.load(Relaxed)
    }

    /// Whether any rule is a service, so that a call has to wait for what it says.
    #[inline]
    pub(crate) fn waits(&self) -> bool {
        self.requests.waits()
    }

    /// Asks every rule about a request that can say at once.
    #[inline]
    pub(crate) fn look(&self, request: &Req, findings: &mut Findings) -> Option<Expected> {
        self.requests.run(request, findings);
        #[cfg(feature = "json")]
        let expected = match &self.expects {
            Some(expects) if !findings.refuses() => expects(request, findings),
            _ => None,
        };
        #[cfg(not(feature = "json"))]
        let expected = None;
        expected
    }

    /// What is known of the request once all have said what they say.
    #[inline]
    pub(crate) fn conclude(
        &self,
        request: &mut Req,
        findings: Findings,
        expected: Option<Expected>,
        tally: &Tally,
    ) -> Asked {
        let report = findings.into_report(Part::Request);
        self.requests.tell(request, &report);
        tally.count(&report);
        Asked { report, expected }
    }
}

impl<Req> Validator<Req> {
    /// Checks requests by `rules`, and no answers.
    pub fn new(rules: Rules<Req>) -> Self {
        let shared = Shared {
            requests: rules,
            #[cfg(feature = "json")]
            expects: None,
            headers: false,
            disabled: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared), answers: Unchecked, tally: Arc::default() }
    }

    /// Checks answers that are values by `rules`, too. An inner error is no answer and passes.
    #[must_use]
    pub fn answers<Res>(self, rules: Rules<Res>) -> Validator<Req, Values<Res>> {
        let answers = Values::new(rules, self.tally.clone());
        Validator { shared: self.shared, answers, tally: self.tally }
    }
}

impl<Req, A: Clone> Validator<Req, A> {
    /// A layer that does as `policy`, or just a [`Level`](crate::Level), says.
    pub fn layer(&self, policy: impl Into<Policy>) -> ValidateLayer<Req, A> {
        ValidateLayer::new(self.clone(), policy.into())
    }
}

impl<Req, A> Validator<Req, A> {
    /// Lets everything pass unchecked, until [`enable`](Self::enable). Calls whose request was checked before have their
    /// answers checked.
    pub fn disable(&self) {
        self.shared.disabled.store(true, Relaxed);
    }

    /// Checks again.
    pub fn enable(&self) {
        self.shared.disabled.store(false, Relaxed);
    }

    /// Whether calls are checked.
    pub fn is_enabled(&self) -> bool {
        self.shared.is_enabled()
    }

    /// What was refused and reported so far.
    pub fn stats(&self) -> Stats {
        self.tally.stats()
    }
}

impl<Req, A: Clone> Clone for Validator<Req, A> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), answers: self.answers.clone(), tally: self.tally.clone() }
    }
}

impl<Req, A> fmt::Debug for Validator<Req, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Validator")
            .field("requests", &self.shared.requests)
            .field("enabled", &self.is_enabled())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

/// What a [`Validator`] refused and reported. A call about which there is nothing to tell is not counted: it writes
/// nothing that others read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests that were refused.
    pub refused_requests: u64,
    /// Answers that were refused; a stream that was cut counts once.
    pub refused_responses: u64,
    /// Requests and answers that passed although something was found; of a stream, every window counts.
    pub reported: u64,
    /// Rules that failed, and did not just find something.
    pub failures: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    refused_requests: AtomicU64,
    refused_responses: AtomicU64,
    reported: AtomicU64,
    failures: AtomicU64,
}

impl Tally {
    #[inline]
    pub(crate) fn count(&self, report: &Report) {
        if !report.is_clean() {
            self.count_found(report);
        }
    }

    #[cold]
    fn count_found(&self, report: &Report) {
        let counter = match (report.refuses(), report.part()) {
            (true, Part::Request) => &self.refused_requests,
            (true, Part::Response) => &self.refused_responses,
            (false, _) => &self.reported,
        };
        counter.fetch_add(1, Relaxed);
        let failures = report.violations().iter().filter(|violation| violation.is_failure()).count();
        if failures > 0 {
            self.failures.fetch_add(failures as u64, Relaxed);
        }
    }

    fn stats(&self) -> Stats {
        Stats {
            refused_requests: self.refused_requests.load(Relaxed),
            refused_responses: self.refused_responses.load(Relaxed),
            reported: self.reported.load(Relaxed),
            failures: self.failures.load(Relaxed),
        }
    }
}
