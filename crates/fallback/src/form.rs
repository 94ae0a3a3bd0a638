use std::sync::Arc;

use bartizan_core::{BoxError, Budget};

use crate::{Attempt, FailedResult, Skipped};

/// What a fallback knows of its requests and responses: nothing ([`Same`]), or that they are HTTP's (`Http`, feature
/// `http`).
pub trait Form<Req, Res> {
    /// What other layers may have bound this request by.
    fn budget(&self, request: &Req) -> Option<Budget>;

    /// Whether [`lend`](Self::lend) wants to be called.
    fn lends(&self) -> bool;

    /// Lets whoever is below draw from the same budget.
    fn lend(&self, request: &mut Req, budget: Budget);

    /// Whether [`mark`](Self::mark) wants to be called.
    fn marks(&self) -> bool;

    /// The response came from the target of this name, after these attempts.
    fn mark(&self, response: &mut Res, served_by: &Arc<str>, attempts: Vec<Attempt>, skipped: Vec<Skipped>);

    /// What is kept of a response that counts as a failure.
    fn failed(&self, response: Res) -> BoxError;
}

/// Which response a chain has whose halves have these.
pub trait Unite<A, B> {
    /// Either of them.
    type Response;

    /// The first half has answered.
    fn first(response: A) -> Self::Response;

    /// The second half has answered.
    fn second(response: B) -> Self::Response;
}

/// Any request, and the same response from all targets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Same;

impl<Res> Unite<Res, Res> for Same {
    type Response = Res;

    #[inline]
    fn first(response: Res) -> Res {
        response
    }

    #[inline]
    fn second(response: Res) -> Res {
        response
    }
}

impl<Req, Res> Form<Req, Res> for Same {
    #[inline]
    fn budget(&self, _: &Req) -> Option<Budget> {
        None
    }

    #[inline]
    fn lends(&self) -> bool {
        false
    }

    fn lend(&self, _: &mut Req, _: Budget) {}

    #[inline]
    fn marks(&self) -> bool {
        false
    }

    fn mark(&self, _: &mut Res, _: &Arc<str>, _: Vec<Attempt>, _: Vec<Skipped>) {}

    fn failed(&self, _: Res) -> BoxError {
        FailedResult.into()
    }
}
