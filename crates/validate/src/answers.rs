use std::{
    fmt,
    future::Ready,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;

use crate::{Part, Policy, Report, Rules, pending::Inquiring, validator::Tally};

/// What is known of a request that passed, when its answer is checked.
#[derive(Debug)]
pub struct Asked {
    pub(crate) report: Report,
    /// In what form the answer's text was asked for.
    #[cfg_attr(not(feature = "http"), expect(dead_code, reason = "no form is known without"))]
    pub(crate) expected: Option<Expected>,
}

#[cfg(feature = "json")]
pub(crate) use crate::json::Expected;

/// No form of answers is known.
#[cfg(not(feature = "json"))]
#[derive(Debug)]
pub(crate) enum Expected {}

impl Asked {
    pub(crate) const fn new(report: Report) -> Self {
        Self { report, expected: None }
    }

    /// What was found in the request.
    pub const fn report(&self) -> &Report {
        &self.report
    }
}

/// How a service's answers are checked.
///
/// [`Unchecked`] passes them, [`Values`] asks rules at once, and `Bodies` (feature `http`) reads bodies first, or guards
/// them while they run.
pub trait Answers<Res>: Clone {
    /// What leaves the layer.
    type Response;

    /// Gives the answer, or the refusal.
    type Checking: Future<Output = Result<Self::Response, BoxError>>;

    /// Checks an answer as `policy` says, or passes it unchecked if there is none.
    fn check(self, response: Res, policy: Option<Policy>, request: Asked) -> Self::Checking;
}

/// Answers pass unchecked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unchecked;

impl<Res> Answers<Res> for Unchecked {
    type Response = Res;
    type Checking = Ready<Result<Res, BoxError>>;

    #[inline]
    fn check(self, response: Res, _: Option<Policy>, _: Asked) -> Self::Checking {
        std::future::ready(Ok(response))
    }
}

/// Answers are values. [`Validator::answers`](crate::Validator::answers) makes one.
pub struct Values<Res>(Arc<(Rules<Res>, Arc<Tally>)>);

impl<Res> Values<Res> {
    pub(crate) fn new(rules: Rules<Res>, tally: Arc<Tally>) -> Self {
        Self(Arc::new((rules, tally)))
    }
}

impl<Res> Answers<Res> for Values<Res> {
    type Response = Res;
    type Checking = Judging<Res>;

    fn check(self, response: Res, policy: Option<Policy>, _: Asked) -> Judging<Res> {
        let inquiring = policy.map(|policy| {
            let (rules, _) = &*self.0;
            let mut findings = rules.findings(policy);
            rules.run(&response, &mut findings);
            rules.inquire_all(&response, findings)
        });
        Judging { response: Some(response), inquiring, by: self }
    }
}

/// Gives an answer that is a value, once all rules have said what they say.
pub struct Judging<Res> {
    response: Option<Res>,
    inquiring: Option<Inquiring>,
    by: Values<Res>,
}

/// It holds a value, and nothing that points to it.
impl<Res> Unpin for Judging<Res> {}

impl<Res> Future for Judging<Res> {
    type Output = Result<Res, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Self { response, inquiring, by } = &mut *self;
        if let Some(inquiring) = inquiring {
            ready!(inquiring.poll(cx));
        }
        let mut response = response.take().expect("polled after completion");
        if let Some(inquiring) = inquiring {
            let (rules, tally) = &*by.0;
            let report = inquiring.take().into_report(Part::Response);
            rules.tell(&mut response, &report);
            tally.count(&report);
            if report.refuses() {
                return Poll::Ready(Err(report.into_error(false)));
            }
        }
        Poll::Ready(Ok(response))
    }
}

impl<Res> fmt::Debug for Judging<Res> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judging").field("checked", &self.inquiring.is_some()).finish_non_exhaustive()
    }
}

impl<Res> Clone for Values<Res> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Res> fmt::Debug for Values<Res> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Values").field(&self.0.0).finish()
    }
}
