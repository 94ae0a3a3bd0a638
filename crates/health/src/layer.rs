use std::fmt;

use bartizan_core::{Errors, UntilResponse};
use tower_layer::Layer;

use crate::{Causes, Component, HealthService};

/// Watches calls under the name of a component. [`Health::layer`](crate::Health::layer) makes one.
///
/// A view of the component: it has no state of its own.
#[derive(Clone)]
pub struct HealthLayer<C = Errors, X = Causes, E = UntilResponse> {
    component: Component,
    classify: C,
    explain: X,
    until: E,
    shed: bool,
}

impl<C, X> HealthLayer<C, X> {
    pub(crate) const fn new(component: Component, classify: C, explain: X) -> Self {
        Self { component, classify, explain, until: UntilResponse, shed: false }
    }
}

impl<C, X, E> HealthLayer<C, X, E> {
    /// The component that it watches.
    pub const fn component(&self) -> &Component {
        &self.component
    }

    /// What a success, a failure and neither is: a [`Classify`](bartizan_core::Classify), such as
    /// [`failure_if`](bartizan_core::failure_if).
    #[must_use]
    pub fn classify<D>(self, classify: D) -> HealthLayer<D, X, E> {
        let Self { component, explain, until, shed, .. } = self;
        HealthLayer { component, classify, explain, until, shed }
    }

    /// What statistics tell of what goes wrong: an [`Explain`](crate::Explain).
    #[must_use]
    pub fn explain<Y>(self, explain: Y) -> HealthLayer<C, Y, E> {
        let Self { component, classify, until, shed, .. } = self;
        HealthLayer { component, classify, explain, until, shed }
    }

    /// Refuses calls while the component [cannot be asked](Component::is_eligible).
    ///
    /// Whoever judges by traffic alone lets it come back when the window is empty.
    #[must_use]
    pub fn shed(self) -> Self {
        Self { shed: true, ..self }
    }

    #[cfg(feature = "http")]
    pub(crate) fn until<F>(self, until: F) -> HealthLayer<C, X, F> {
        let Self { component, classify, explain, shed, .. } = self;
        HealthLayer { component, classify, explain, until, shed }
    }
}

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
impl<C, X, E> HealthLayer<C, X, E> {
    /// A call is over when the body of its response has ended: a stream that breaks off is a failure, and the time to its
    /// first bytes is measured.
    #[must_use]
    pub fn until_body_end(self) -> HealthLayer<C, X, bartizan_core::UntilBodyEnd> {
        self.until(bartizan_core::UntilBodyEnd)
    }

    /// Responses with a transient status (408, 425, 429, 500, 502, 503, 504) are failures too, and have their status as
    /// class: [`server_errors`](bartizan_core::server_errors) and [`statuses`](crate::statuses).
    #[must_use]
    pub fn server_errors(self) -> HealthLayer<bartizan_core::ServerErrors, crate::Statuses, E> {
        self.classify(bartizan_core::server_errors()).explain(crate::statuses())
    }
}

impl<S, C: Clone, X: Clone, E: Clone> Layer<S> for HealthLayer<C, X, E> {
    type Service = HealthService<S, C, X, E>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { component, classify, explain, until, shed } = self.clone();
        HealthService::new(inner, component, classify, explain, until, shed)
    }
}

impl<C, X, E> fmt::Debug for HealthLayer<C, X, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HealthLayer").field("component", &self.component).finish_non_exhaustive()
    }
}
