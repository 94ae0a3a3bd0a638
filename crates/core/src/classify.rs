use std::error::Error;

use crate::{Rejected, RetryAfter};

/// Judges the result of a call for the layers that count: breaker, fallback, health.
///
/// Users rarely implement it: [`errors`], [`failure_if`] and, with the feature `http`, `server_errors` and
/// `failure_status` build one.
///
/// The error is seen as `dyn Error`, not as the inner service's type, because layers box errors: the same classifier
/// then works at any depth of a stack. Downcast it to look closer.
pub trait Classify<Res> {
    /// Judges one result. It is called once a call and holds nothing, so it may be called from any thread.
    fn classify(&self, result: Result<&Res, &(dyn Error + 'static)>) -> Class;
}

/// What a call's result means for whoever counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The service did its work.
    Success,
    /// The service failed, and may have said when to come back.
    Failure(RetryAfter),
    /// The result says nothing about the service: the caller's mistake, or another layer's refusal.
    Ignore,
}

/// Every error is a failure and every response a success.
///
/// A [`Rejected`] counts as it says itself ([`Rejected::class`]): mostly it is ignored, since another layer refused and the
/// service was not even asked.
///
/// ```
/// use bartizan_core::{Class, Classify, Rejected, RejectionKind, RetryAfter, errors};
///
/// let judge = errors();
/// let refused = Rejected::new(RejectionKind::RateLimited, "rate-limit");
/// assert_eq!(judge.classify(Ok(&200)), Class::Success);
/// assert_eq!(Classify::<u16>::classify(&judge, Err(&std::io::Error::other("cut"))), Class::Failure(RetryAfter::Unknown));
/// assert_eq!(Classify::<u16>::classify(&judge, Err(&refused)), Class::Ignore);
/// ```
pub const fn errors() -> Errors {
    Errors
}

/// Every error is a failure, as with [`errors`], and so is every response for which `predicate` holds.
///
/// ```
/// use bartizan_core::{Class, Classify, RetryAfter, failure_if};
///
/// let judge = failure_if(|reply: &String| reply.is_empty());
/// assert_eq!(judge.classify(Ok(&"pong".to_owned())), Class::Success);
/// assert_eq!(judge.classify(Ok(&String::new())), Class::Failure(RetryAfter::Unknown));
/// ```
pub const fn failure_if<Res, F>(predicate: F) -> FailureIf<F>
where
    F: Fn(&Res) -> bool,
{
    FailureIf(predicate)
}

/// The classifier made by [`errors`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Errors;

impl<Res> Classify<Res> for Errors {
    #[inline]
    fn classify(&self, result: Result<&Res, &(dyn Error + 'static)>) -> Class {
        match result {
            Ok(_) => Class::Success,
            Err(error) => of_error(error),
        }
    }
}

/// The classifier made by [`failure_if`].
#[derive(Clone, Copy, Debug)]
pub struct FailureIf<F>(F);

impl<Res, F> Classify<Res> for FailureIf<F>
where
    F: Fn(&Res) -> bool,
{
    #[inline]
    fn classify(&self, result: Result<&Res, &(dyn Error + 'static)>) -> Class {
        match result {
            Ok(response) if (self.0)(response) => Class::Failure(RetryAfter::Unknown),
            Ok(_) => Class::Success,
            Err(error) => of_error(error),
        }
    }
}

pub(crate) fn of_error(error: &(dyn Error + 'static)) -> Class {
    match Rejected::find(error) {
        Some(rejected) => rejected.class(),
        None => Class::Failure(RetryAfter::Unknown),
    }
}
