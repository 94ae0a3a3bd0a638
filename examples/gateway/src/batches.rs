//! Which embedding requests share a call to their upstream.
//!
//! Each worker gathers its own: a request never leaves the thread that its client is connected to, nor does the connection
//! to the upstream. So with few clients on many workers batches are smaller than they could be; `workers` says how many.
//! What stands in them is counted for all workers together.
//!
//! Rate limits stand outside: each request asks and settles for itself, by the usage in its own answer. Circuit breakers
//! stand inside: they judge what the upstream was asked.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_batch::{Batch, Settings};
use bartizan_provider::{Embedding, EmbeddingBatches, Facts, Operation, Tenant};
use bytes::Bytes;
use futures_util::future;
use http::Request;
use serde_json::{Value, json};
use tower::{Layer, Service, ServiceExt, util::Oneshot};

use crate::{
    ask::{Ask, erased},
    config::Config,
};

/// The batches of a gateway, in the order of its models.
#[derive(Debug)]
pub(crate) struct Batches {
    of_models: Vec<(String, Batch)>,
    max_inputs: u64,
    across_tenants: bool,
}

impl Batches {
    /// `None` if they are not switched on.
    pub(crate) fn new(config: &Config) -> Option<Arc<Self>> {
        let wanted = &config.embedding_batches;
        let settings =
            Settings::max_size(wanted.max_size).linger(wanted.linger).max_concurrent(wanted.max_concurrent);
        let batches = || Self {
            of_models: config.models.iter().map(|it| (it.name.clone(), Batch::new(settings))).collect(),
            max_inputs: wanted.max_inputs,
            across_tenants: wanted.across_tenants,
        };
        wanted.enabled.then(|| Arc::new(batches()))
    }

    /// Gathers embedding requests for `inner`, the upstream of this model. Others pass.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(crate) fn around(&self, model: &str, inner: Ask) -> Ask {
        let (_, batch) = self.of_models.iter().find(|(name, _)| name == model).expect("every model has one");
        let across_tenants = self.across_tenants;
        let gathering = batch
            .layer()
            .by(move |request: &Request<Bytes>| {
                let tenant = || request.extensions().get::<Facts>()?.tenant().cloned();
                let tenant: Option<Tenant> = if across_tenants { None } else { tenant() };
                (tenant, taken_apart(request).like().clone())
            })
            .max_weight(self.max_inputs, |request| taken_apart(request).inputs() as u64)
            .layer(EmbeddingBatches::new(inner.clone()));
        Ask::new(Gather { passing: inner, gathering: erased(gathering) })
    }

    /// What there is to tell of every model's.
    pub(crate) fn describe(&self) -> Value {
        self.of_models.iter().map(|(model, batch)| describe(model, batch)).collect()
    }
}

fn taken_apart(request: &Request<Bytes>) -> &Embedding {
    request.extensions().get().expect("nothing else is sent here")
}

fn describe(model: &str, batch: &Batch) -> Value {
    let stats = batch.stats();
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    json!({
        "name": model,
        "batches": stats.batches,
        "requests": stats.items,
        "mean_size": stats.mean_size(),
        "mean_wait_ms": millis(stats.mean_wait()),
        "longest_wait_ms": millis(stats.longest_wait),
        "failed": stats.failed,
        "waiting": stats.waiting,
        "in_flight": stats.in_flight,
    })
}

/// Sends embedding requests where they are gathered, and the others on.
#[derive(Clone)]
struct Gather<P, G> {
    passing: P,
    gathering: G,
}

impl<P, G> Service<Request<Bytes>> for Gather<P, G>
where
    P: Service<Request<Bytes>> + Clone,
    G: Service<Request<Bytes>, Response = P::Response, Error = P::Error> + Clone,
{
    type Response = P::Response;
    type Error = P::Error;
    type Future = future::Either<Oneshot<P, Request<Bytes>>, Oneshot<G, Request<Bytes>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), P::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Bytes>) -> Self::Future {
        let asked = request.extensions().get::<Facts>().map(Facts::operation);
        let embeds = asked == Some(Operation::Embeddings);
        match embeds.then(|| Embedding::read(&request)).flatten() {
            Some(embedding) => {
                request.extensions_mut().insert(embedding);
                future::Either::Right(self.gathering.clone().oneshot(request))
            }
            None => future::Either::Left(self.passing.clone().oneshot(request)),
        }
    }
}
