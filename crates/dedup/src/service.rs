use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::BoxError;
use tokio::time::timeout;
use tower_service::Service;

use crate::{
    Identity, ResponseFuture, Share,
    execution::Record,
    flight::{Arrival, Outcome, Seat},
    table::{Found, Refresh, Table},
};

/// The service of a [`DedupLayer`](crate::DedupLayer).
pub struct Deduplicate<S, K, T, X, F> {
    inner: S,
    table: Arc<Table<K, T>>,
    share: X,
    key: F,
}

impl<S, K, T, X, F> Deduplicate<S, K, T, X, F> {
    pub(crate) const fn new(inner: S, table: Arc<Table<K, T>>, share: X, key: F) -> Self {
        Self { inner, table, share, key }
    }

    /// The service below.
    pub const fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The service below. What is called there directly is shared with nobody.
    pub const fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The service below, for good.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, K, T, X, F, Req, I> Service<Req> for Deduplicate<S, K, T, X, F>
where
    S: Service<Req> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send + 'static,
    Req: Send + 'static,
    K: std::hash::Hash + Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    X: Share<S::Response, Tape = T> + Send + 'static,
    F: Fn(&Req) -> Option<I>,
    I: Into<Identity<K>>,
{
    type Response = X::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req, K, T, X>;

    /// Ready at once: the answer may be there already, and if it is not, the call makes an instance of its own ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let share = self.share.clone();
        let Some(identity) = (self.key)(&request) else {
            self.table.bypass();
            return ResponseFuture::alone(self.inner.clone(), request, share);
        };
        let identity = identity.into();
        let no_cache = identity.no_cache;
        let record = || Record::new(self.inner.clone(), request, self.share.clone());
        match self.table.find(identity, record) {
            Found::Kept(value, served) => ResponseFuture::kept(value, served, share),
            Found::Joined(flight, instead) => {
                ResponseFuture::waiting(Seat::new(flight, false).no_cache(no_cache), Some(instead), share)
            }
            Found::Leads(flight) => {
                ResponseFuture::waiting(Seat::new(flight, true).no_cache(no_cache), None, share)
            }
            Found::Conflict => ResponseFuture::conflict(share),
            Found::Stale(tape, served, refresh) => match refresh {
                Refresh::Runs => ResponseFuture::kept(Ok(tape), served, share),
                Refresh::Passes { flight, leads } => {
                    ResponseFuture::passing(Seat::new(flight, leads), tape, served, share)
                }
                Refresh::Spawns(flight, runtime, left) => {
                    runtime.spawn(fetch(Seat::new(flight, true), share.clone(), left));
                    ResponseFuture::kept(Ok(tape), served, share)
                }
            },
        }
    }
}

/// Drives a call that nobody waits for, as long as there is a stale answer to serve. From then on callers wait for it, and if
/// there are none it is over: nobody would ever end a call that hangs.
async fn fetch<Res, K, T, X>(mut seat: Seat<K, T>, share: X, left: Duration)
where
    K: Eq + Clone + Send + Sync + 'static,
    T: Send + Sync + 'static,
    X: Share<Res, Tape = T>,
{
    let drive = async move {
        // Whoever is alone with a stream is not alone with its answer: it is in the table until all of it is there.
        if let Arrival::Shared(Outcome::Done(Ok(tape))) = poll_fn(|cx| seat.poll(cx)).await {
            let ticket = seat.ticket();
            drop(seat);
            share.rest(&tape, ticket).await;
        }
    };
    let _ = timeout(left, drive).await;
}

impl<S: Clone, K, T, X: Clone, F: Clone> Clone for Deduplicate<S, K, T, X, F> {
    fn clone(&self) -> Self {
        let Self { inner, table, share, key } = self;
        Self::new(inner.clone(), table.clone(), share.clone(), key.clone())
    }
}

impl<S: fmt::Debug, K, T, X, F> fmt::Debug for Deduplicate<S, K, T, X, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deduplicate").field("inner", &self.inner).finish_non_exhaustive()
    }
}
