use std::{
    fmt,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, TryAcquireError};
use tower_service::Service;

use crate::{ResponseFuture, shared::Shared};

/// The service of a [`BatchLayer`](crate::BatchLayer): one call is one item of a batch.
///
/// When the last clone is gone nobody can join any more, so what waits is sent, and the worker ends.
pub struct Batched<Req, T, E, K = ()> {
    users: Arc<Users<Req, T, E, K>>,
    place: Place,
}

/// Whether this instance has a place for the item that it is called with.
enum Place {
    None,
    Awaited(Pin<Box<dyn Future<Output = Result<OwnedSemaphorePermit, AcquireError>> + Send + Sync>>),
    Reserved,
}

/// All clones of a service.
struct Users<Req, T, E, K>(Arc<Shared<Req, T, E, K>>);

impl<Req, T, E, K> Drop for Users<Req, T, E, K> {
    fn drop(&mut self) {
        self.0.control.close();
    }
}

impl<Req, T, E, K> Batched<Req, T, E, K> {
    pub(crate) fn new(shared: Arc<Shared<Req, T, E, K>>) -> Self {
        Self { users: Arc::new(Users(shared)), place: Place::None }
    }
}

impl<Req, T, E, K> Service<Req> for Batched<Req, T, E, K>
where
    E: Into<BoxError>,
    K: Eq + Hash + Clone,
{
    type Response = T;
    type Error = BoxError;
    type Future = ResponseFuture<Req, T, E, K>;

    /// Ready when there is a place to wait, which is reserved then. Once it is shut down it is ready always, and refuses.
    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let places = &self.users.0.control.places;
        loop {
            match &mut self.place {
                Place::Reserved => return Poll::Ready(Ok(())),
                Place::None => match places.try_acquire() {
                    Ok(permit) => {
                        permit.forget();
                        self.place = Place::Reserved;
                    }
                    Err(TryAcquireError::Closed) => return Poll::Ready(Ok(())),
                    Err(TryAcquireError::NoPermits) => {
                        self.place = Place::Awaited(Box::pin(places.clone().acquire_owned()));
                    }
                },
                Place::Awaited(permit) => {
                    let permit = ready!(permit.as_mut().poll(cx));
                    self.place = permit.map_or(Place::None, |permit| {
                        permit.forget();
                        Place::Reserved
                    });
                }
            }
        }
    }

    #[inline]
    fn call(&mut self, item: Req) -> Self::Future {
        let Users(shared) = &*self.users;
        // The user's functions may panic: the place is still this instance's then.
        let (key, weight) = shared.sorting.sort(&item);
        let reserved = matches!(self.place, Place::Reserved);
        assert!(
            reserved || shared.control.is_closed(),
            "called without its own poll_ready having said Ready"
        );
        let member = shared.join(key, weight, item);
        if member.is_some() {
            self.place = Place::None;
        }
        ResponseFuture::new(member)
    }
}

impl<Req, T, E, K> Clone for Batched<Req, T, E, K> {
    /// A place belongs to the instance: a clone has none.
    fn clone(&self) -> Self {
        Self { users: self.users.clone(), place: Place::None }
    }
}

impl<Req, T, E, K> Drop for Batched<Req, T, E, K> {
    fn drop(&mut self) {
        if let Place::Reserved = self.place {
            self.users.0.control.places.add_permits(1);
        }
    }
}

impl<Req, T, E, K> fmt::Debug for Batched<Req, T, E, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.place {
            Place::None => "none",
            Place::Awaited(_) => "awaited",
            Place::Reserved => "reserved",
        };
        f.debug_struct("Batched").field("place", &place).field("queue", &self.users.0).finish()
    }
}
