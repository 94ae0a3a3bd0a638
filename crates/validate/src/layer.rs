use tower_layer::Layer;

use crate::{Policy, Validate, Validator, answers::Unchecked};

/// Checks requests and answers. [`Validator::layer`] makes one.
///
/// A view of the validator with a policy of its own.
#[derive(Debug)]
pub struct ValidateLayer<Req, A = Unchecked> {
    validator: Validator<Req, A>,
    policy: Policy,
}

impl<Req, A> ValidateLayer<Req, A> {
    pub(crate) const fn new(validator: Validator<Req, A>, policy: Policy) -> Self {
        Self { validator, policy }
    }
}

impl<S, Req, A: Clone> Layer<S> for ValidateLayer<Req, A> {
    type Service = Validate<S, Req, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Validate::new(inner, self.validator.clone(), self.policy)
    }
}

impl<Req, A: Clone> Clone for ValidateLayer<Req, A> {
    fn clone(&self) -> Self {
        Self { validator: self.validator.clone(), policy: self.policy }
    }
}
