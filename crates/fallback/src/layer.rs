use std::{error::Error, fmt, sync::Arc};

use tower_layer::Layer;

use crate::{
    Answer, CloneWith, Fallback, FallbackService, Listed, Nobody, One, Or, Transform,
    choice::MOST,
    service::{Link, Shared},
};

/// Asks the service below and, when it fails, others in order. [`Fallback::layer`] makes one.
///
/// A view of the fallback: it has no state of its own. It is a [`Layer`] once it has somebody to fall back to.
#[derive(Clone)]
pub struct FallbackLayer<R, C, K, F> {
    fallback: Fallback,
    /// Of all targets, the service below included.
    links: Vec<Link>,
    rest: R,
    classify: C,
    clone: K,
    form: F,
}

impl<C, F> FallbackLayer<Nobody, C, crate::Cloned, F> {
    pub(crate) fn new(fallback: Fallback, first: usize, classify: C, form: F) -> Self {
        let links = vec![Link::to(first)];
        Self { fallback, links, rest: Nobody, classify, clone: crate::Cloned, form }
    }
}

/// A chain with one target more at its end.
pub trait Append<T, F> {
    /// That chain.
    type Longer;

    /// Adds it.
    fn append(self, target: T) -> Self::Longer;
}

impl<T, F> Append<T, F> for Nobody {
    type Longer = T;

    fn append(self, target: T) -> T {
        target
    }
}

impl<S, T, F> Append<T, F> for One<S> {
    type Longer = Or<Self, T, F>;

    fn append(self, target: T) -> Self::Longer {
        Or::new(self, target)
    }
}

impl<S, T, F> Append<T, F> for Listed<S> {
    type Longer = Or<Self, T, F>;

    fn append(self, target: T) -> Self::Longer {
        Or::new(self, target)
    }
}

impl<A, B, T, F> Append<T, F> for Or<A, B, F> {
    type Longer = Or<Self, T, F>;

    fn append(self, target: T) -> Self::Longer {
        Or::new(self, target)
    }
}

/// Not [`Nobody`].
pub trait Somebody {}

impl<S> Somebody for One<S> {}
impl<S> Somebody for Listed<S> {}
impl<A, B, F> Somebody for Or<A, B, F> {}

impl<R, C, K, F> FallbackLayer<R, C, K, F> {
    /// Then asks `service`, the target of this name.
    ///
    /// # Panics
    ///
    /// If the fallback has no target of this name, this layer has it already, or 64 targets are there already.
    pub fn or<S>(self, name: &str, service: S) -> FallbackLayer<R::Longer, C, K, F>
    where
        R: Append<One<S>, F>,
    {
        self.add([name], One(service))
    }

    /// Then asks `service` for what `transform` makes of the request: another model, another URL.
    ///
    /// # Panics
    ///
    /// As [`or`](Self::or).
    pub fn or_with<S, X>(self, name: &str, service: S, transform: X) -> FallbackLayer<R::Longer, C, K, F>
    where
        R: Append<One<Transform<S, X>>, F>,
    {
        self.add([name], One(Transform { service, transform }))
    }

    /// Then answers with what `answer` makes of the request: a value of one's own.
    ///
    /// # Panics
    ///
    /// As [`or`](Self::or).
    pub fn or_value<X>(self, name: &str, answer: X) -> FallbackLayer<R::Longer, C, K, F>
    where
        R: Append<One<Answer<X>>, F>,
    {
        self.add([name], One(Answer(answer)))
    }

    /// Then asks any number of services of one type, each the target of its name: what a configuration says, be it nobody.
    ///
    /// # Panics
    ///
    /// As [`or`](Self::or).
    pub fn or_each<N: AsRef<str>, S>(
        self,
        targets: impl IntoIterator<Item = (N, S)>,
    ) -> FallbackLayer<R::Longer, C, K, F>
    where
        R: Append<Listed<S>, F>,
    {
        let (names, services): (Vec<_>, Vec<_>) = targets.into_iter().unzip();
        self.add(&names, Listed(services))
    }

    fn add<N: AsRef<str>, T>(
        self,
        names: impl IntoIterator<Item = N>,
        target: T,
    ) -> FallbackLayer<R::Longer, C, K, F>
    where
        R: Append<T, F>,
    {
        let Self { fallback, mut links, rest, classify, clone, form, .. } = self;
        for name in names {
            let name = name.as_ref();
            let place = fallback.place(name);
            assert!(
                links.iter().all(|link| link.place != place),
                "the target {name:?} is in this layer twice"
            );
            links.push(Link::to(place));
        }
        assert!(links.len() <= MOST, "a fallback has at most {MOST} targets in a layer");
        FallbackLayer { fallback, links, rest: rest.append(target), classify, clone, form }
    }

    /// The target of this name is asked only if this holds: a larger model after a context that was too long. It is given
    /// the cause of the failure before, or `None` as long as nobody was asked, because others are left alone or not ready.
    ///
    /// # Panics
    ///
    /// If this layer has no target of this name but the first one.
    #[must_use]
    pub fn when(
        mut self,
        name: &str,
        takes: impl Fn(Option<&(dyn Error + 'static)>) -> bool + Send + Sync + 'static,
    ) -> Self {
        let place = self.fallback.place(name);
        let link = self.links[1..].iter_mut().find(|link| link.place == place);
        let link = link.unwrap_or_else(|| panic!("this layer does not fall back to {name:?}"));
        link.takes = Some(Arc::new(takes));
        self
    }

    /// What is a failure that moves on to the next target, and what is an answer: a
    /// [`Classify`](bartizan_core::Classify), such as [`failure_if`](bartizan_core::failure_if).
    ///
    /// Failures move on; everything else is given to the caller. An ignored refusal by another layer
    /// ([`Rejected`](bartizan_core::Rejected)) moves on, too, unless it says that the request is wrong (`Invalid`,
    /// `Conflict`).
    #[must_use]
    pub fn classify<D>(self, classify: D) -> FallbackLayer<R, D, K, F> {
        let Self { fallback, links, rest, clone, form, .. } = self;
        FallbackLayer { fallback, links, rest, classify, clone, form }
    }

    /// How requests are copied, where they are not `Clone`, or not always. Of `None` the request is sent once.
    #[must_use]
    pub fn clone_request<Req, X>(self, clone: X) -> FallbackLayer<R, C, CloneWith<X>, F>
    where
        X: Fn(&Req) -> Option<Req>,
    {
        let Self { fallback, links, rest, classify, form, .. } = self;
        FallbackLayer { fallback, links, rest, classify, clone: CloneWith(clone), form }
    }
}

#[cfg(feature = "http")]
#[cfg_attr(docsrs, doc(cfg(feature = "http")))]
impl<R, C, K> FallbackLayer<R, C, K, crate::Http> {
    /// Says in each response's extensions who has answered: [`ServedBy`](crate::ServedBy). By default nothing is said,
    /// which allocates nothing.
    #[must_use]
    pub fn served_by(mut self) -> Self {
        self.form.marks = true;
        self
    }

    /// Puts a [`Budget`](bartizan_core::Budget) of the settings' attempts and time into the extensions of requests that
    /// have none, so that retries within targets draw from it, too.
    ///
    /// A budget that a request has already is obeyed in any case.
    #[must_use]
    pub fn shared_budget(mut self) -> Self {
        self.form.lends = true;
        self
    }
}

impl<S, R, C, K, F> Layer<S> for FallbackLayer<R, C, K, F>
where
    R: Somebody + Clone,
    C: Clone,
    K: Clone,
    F: Clone,
{
    type Service = FallbackService<Or<One<S>, R, F>, C, K, F>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { fallback, links, rest, classify, clone, form, .. } = self.clone();
        let targets = Or::new(One(inner), rest);
        let links = links.into_boxed_slice();
        FallbackService::new(Shared { fallback, links, targets, classify, clone, form })
    }
}

impl<R: fmt::Debug, C, K, F> fmt::Debug for FallbackLayer<R, C, K, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackLayer")
            .field("fallback", &self.fallback)
            .field("rest", &self.rest)
            .finish_non_exhaustive()
    }
}
