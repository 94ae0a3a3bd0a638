use std::fmt;

use bartizan_core::UntilResponse;
use tower_layer::Layer;

use crate::{
    Break, One,
    mode::{Backpressure, Refuse},
};

/// Refuses calls while a breaker is open. [`CircuitBreaker::layer`](crate::CircuitBreaker::layer) makes one, and
/// [`CircuitBreakers::by`](crate::CircuitBreakers::by) one that meets a breaker for each key.
///
/// A view of the breaker: it has no state of its own.
#[derive(Clone, Copy)]
pub struct CircuitBreakerLayer<B, C, E = UntilResponse, M = Refuse> {
    breaker: B,
    classify: C,
    extent: E,
    mode: M,
}

impl<B, C> CircuitBreakerLayer<B, C> {
    pub(crate) const fn new(breaker: B, classify: C) -> Self {
        Self { breaker, classify, extent: UntilResponse, mode: Refuse }
    }
}

impl<B, C, E, M> CircuitBreakerLayer<B, C, E, M> {
    /// What a success, a failure and neither is: a [`Classify`](bartizan_core::Classify), such as
    /// [`failure_if`](bartizan_core::failure_if).
    #[must_use]
    pub fn classify<D>(self, classify: D) -> CircuitBreakerLayer<B, D, E, M> {
        let Self { breaker, extent, mode, .. } = self;
        CircuitBreakerLayer { breaker, classify, extent, mode }
    }

    /// When a call is over: an [`Extent`](bartizan_core::Extent). With its response by default.
    ///
    /// A failure that the response shows is counted at once.
    #[must_use]
    pub fn until<F>(self, extent: F) -> CircuitBreakerLayer<B, C, F, M> {
        let Self { breaker, classify, mode, .. } = self;
        CircuitBreakerLayer { breaker, classify, extent, mode }
    }
}

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
impl<B, C, E, M> CircuitBreakerLayer<B, C, E, M> {
    /// A call is over when the body of its response has ended: a stream that breaks off is a failure.
    #[must_use]
    pub fn until_body_end(self) -> CircuitBreakerLayer<B, C, bartizan_core::UntilBodyEnd, M> {
        self.until(bartizan_core::UntilBodyEnd)
    }

    /// Responses with a transient status (408, 425, 429, 500, 502, 503, 504) are failures too, and say when to come back:
    /// [`server_errors`](bartizan_core::server_errors).
    #[must_use]
    pub fn server_errors(self) -> CircuitBreakerLayer<B, bartizan_core::ServerErrors, E, M> {
        self.classify(bartizan_core::server_errors())
    }
}

impl<C, E> CircuitBreakerLayer<One, C, E> {
    /// While the breaker would refuse, `poll_ready` waits instead: for balancers, which call whoever is ready.
    ///
    /// A call that comes nevertheless, when another one has taken the last probe, is refused.
    #[must_use]
    pub fn backpressure(self) -> CircuitBreakerLayer<One, C, E, Backpressure> {
        let Self { breaker, classify, extent, .. } = self;
        CircuitBreakerLayer { breaker, classify, extent, mode: Backpressure::default() }
    }
}

impl<S, B: Clone, C: Clone, E: Clone, M: Clone> Layer<S> for CircuitBreakerLayer<B, C, E, M> {
    type Service = Break<S, B, C, E, M>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { breaker, classify, extent, mode } = self.clone();
        Break::new(inner, breaker, classify, extent, mode)
    }
}

impl<B: fmt::Debug, C, E, M> fmt::Debug for CircuitBreakerLayer<B, C, E, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerLayer").field("breaker", &self.breaker).finish_non_exhaustive()
    }
}
