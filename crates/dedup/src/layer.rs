use std::{fmt, sync::Arc};

use tower_layer::Layer;

use crate::{Deduplicate, table::Table};

/// Makes identical calls once. [`Dedup::layer`](crate::Dedup::layer) makes one.
///
/// A view of the handle: it has no state of its own.
pub struct DedupLayer<K, T, X, F> {
    table: Arc<Table<K, T>>,
    share: X,
    key: F,
}

impl<K, T, X, F> DedupLayer<K, T, X, F> {
    pub(crate) const fn new(table: Arc<Table<K, T>>, share: X, key: F) -> Self {
        Self { table, share, key }
    }
}

impl<S, K, T, X: Clone, F: Clone> Layer<S> for DedupLayer<K, T, X, F> {
    type Service = Deduplicate<S, K, T, X, F>;

    fn layer(&self, inner: S) -> Self::Service {
        Deduplicate::new(inner, self.table.clone(), self.share.clone(), self.key.clone())
    }
}

impl<K, T, X: Clone, F: Clone> Clone for DedupLayer<K, T, X, F> {
    fn clone(&self) -> Self {
        Self::new(self.table.clone(), self.share.clone(), self.key.clone())
    }
}

impl<K, T, X, F> fmt::Debug for DedupLayer<K, T, X, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DedupLayer").finish_non_exhaustive()
    }
}
