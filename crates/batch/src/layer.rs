use std::{fmt, hash::Hash, sync::Arc};

use bartizan_core::BoxError;
use tower_layer::Layer;
use tower_service::Service;

use crate::{Batch, Batched, InvalidSettings, Worker, shared::Shared};

/// Gathers calls of `Req` into calls of `Vec<Req>`. [`Batch::layer`] makes one.
///
/// Each service that it makes has a worker of its own, which owns the service below.
pub struct BatchLayer<Req, K = ()> {
    batch: Batch,
    sorting: Sorting<Req, K>,
}

/// The user's function of an item.
type Of<Req, T> = Arc<dyn Fn(&Req) -> T + Send + Sync>;

/// Which items belong together, and how many at most.
pub(crate) struct Sorting<Req, K> {
    key: Of<Req, K>,
    weigh: Option<Of<Req, u64>>,
    pub(crate) max_weight: u64,
}

impl<Req, K> Sorting<Req, K> {
    #[inline]
    pub(crate) fn sort(&self, item: &Req) -> (K, u64) {
        ((self.key)(item), self.weigh.as_ref().map_or(0, |weigh| weigh(item)))
    }
}

impl<Req> BatchLayer<Req> {
    pub(crate) fn new(batch: Batch) -> Self {
        Self { batch, sorting: Sorting { key: Arc::new(|_| ()), weigh: None, max_weight: u64::MAX } }
    }
}

impl<Req, K> BatchLayer<Req, K> {
    /// Only items of one key travel together: of one table, one model, one tenant.
    #[must_use]
    pub fn by<L>(self, key: impl Fn(&Req) -> L + Send + Sync + 'static) -> BatchLayer<Req, L> {
        let Self { batch, sorting: Sorting { weigh, max_weight, .. } } = self;
        BatchLayer { batch, sorting: Sorting { key: Arc::new(key), weigh, max_weight } }
    }

    /// The items of a batch weigh at most `max` together, in bytes or whatever `weigh` counts. Without it they weigh
    /// nothing.
    ///
    /// One that would be too much for the batch that waits sends it, and opens the next one. One that alone weighs `max` or
    /// more travels alone.
    ///
    /// # Panics
    ///
    /// If `max` is 0: nothing would ever travel together.
    #[must_use]
    pub fn max_weight(self, max: u64, weigh: impl Fn(&Req) -> u64 + Send + Sync + 'static) -> Self {
        assert!(max > 0, "{}", InvalidSettings::MaxWeight);
        let Self { batch, sorting: Sorting { key, .. } } = self;
        Self { batch, sorting: Sorting { key, weigh: Some(Arc::new(weigh)), max_weight: max } }
    }

    /// A service, and the worker that [`layer`](Layer::layer) would have spawned: for whoever drives it otherwise.
    ///
    /// Nothing is sent but by the worker. When it is dropped, all that waits is refused.
    #[expect(clippy::type_complexity, reason = "there are two things, and each has a name")]
    pub fn pair<S, T, E>(&self, inner: S) -> (Batched<Req, T, E, K>, Worker<S, Req, T, E, K>)
    where
        S: Service<Vec<Req>, Response = Vec<Result<T, E>>>,
        K: Eq + Hash + Clone,
    {
        let (control, totals) = self.batch.join();
        let settings = self.batch.settings();
        let shared = Arc::new(Shared::new(settings, self.sorting.clone(), control, totals));
        (Batched::new(shared.clone()), Worker::new(inner, shared, settings))
    }
}

impl<S, Req, T, E, K> Layer<S> for BatchLayer<Req, K>
where
    S: Service<Vec<Req>, Response = Vec<Result<T, E>>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    Req: Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
    K: Eq + Hash + Clone + Send + 'static,
{
    type Service = Batched<Req, T, E, K>;

    /// # Panics
    ///
    /// Outside of a tokio runtime: the worker is spawned on it.
    fn layer(&self, inner: S) -> Self::Service {
        let (service, worker) = self.pair(inner);
        tokio::spawn(worker);
        service
    }
}

impl<Req, K> Clone for BatchLayer<Req, K> {
    fn clone(&self) -> Self {
        Self { batch: self.batch.clone(), sorting: self.sorting.clone() }
    }
}

impl<Req, K> Clone for Sorting<Req, K> {
    fn clone(&self) -> Self {
        let Self { key, weigh, max_weight } = self;
        Self { key: key.clone(), weigh: weigh.clone(), max_weight: *max_weight }
    }
}

impl<Req, K> fmt::Debug for BatchLayer<Req, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchLayer").field("batch", &self.batch).finish_non_exhaustive()
    }
}
