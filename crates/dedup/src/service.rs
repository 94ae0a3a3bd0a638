use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use tokio::runtime::Handle;
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
            Found::Stale(tape, served, refresh) => {
                let seat = match refresh {
                    Refresh::Runs => None,
                    Refresh::Joined(flight) => Some(Seat::new(flight, false)),
                    Refresh::Leads(flight) => self.refresh(Seat::new(flight, true)),
                };
                match seat {
                    None => ResponseFuture::kept(Ok(tape), served, share),
                    Some(seat) => ResponseFuture::passing(seat, tape, served, share),
                }
            }
        }
    }
}

impl<S, K: Eq + Clone, T, X: Clone, F> Deduplicate<S, K, T, X, F> {
    /// Has a task drive a call that nobody waits for. Gives the seat back if callers are to do it.
    fn refresh<Res>(&self, mut seat: Seat<K, T>) -> Option<Seat<K, T>>
    where
        K: Send + Sync + 'static,
        T: Send + Sync + 'static,
        X: Share<Res, Tape = T> + Send + 'static,
    {
        let runtime = if self.table.replay.spawns { Handle::try_current().ok() } else { None };
        let Some(runtime) = runtime else { return Some(seat) };
        let share = self.share.clone();
        runtime.spawn(async move {
            // Whoever is alone with a stream is not alone with its answer: it is in the table until all of it is there.
            if let Arrival::Shared(Outcome::Done(Ok(tape))) = poll_fn(|cx| seat.poll(cx)).await {
                let ticket = seat.ticket();
                drop(seat);
                share.rest(&tape, ticket).await;
            }
        });
        None
    }
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
