use std::{
    fmt,
    future::{Ready, ready},
    sync::Arc,
};

use bartizan_core::BoxError;

use crate::{Part, Policy, Report, Rules, validator::Tally};

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
        ready(Ok(response))
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
    type Checking = Ready<Result<Res, BoxError>>;

    fn check(self, mut response: Res, policy: Option<Policy>, _: Asked) -> Self::Checking {
        let (rules, tally) = &*self.0;
        if let Some(policy) = policy {
            let report = rules.judge(&mut response, policy, Part::Response);
            tally.count(&report);
            if report.refuses() {
                return ready(Err(report.into_error(false)));
            }
        }
        ready(Ok(response))
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
