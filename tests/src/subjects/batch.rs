//! `bartizan-batch`. It takes one request and gives a list of them, so below it stands [`Each`], which takes the list apart
//! again: a call of the service below is an item, and what the laws count are those.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_batch::{Batch, BatchLayer, Settings};
use bartizan_core::BoxError;
use futures_util::future::{join_all, try_join};
use tower::{Layer, Service, ServiceExt, layer::layer_fn};

use crate::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing, Timing},
    wire::{Handle, Req, Res, Wire},
};

const MINUTE: Duration = Duration::from_secs(60);

/// A service of lists over one of requests.
///
/// What it does with the service below is what the laws see the batch layer do: it is ready when that is; the first item
/// is called on the instance that was asked, and each of the others on a clone that is made ready inside of the future. An
/// item that fails has its error to itself; a readiness that fails, and a panic, are the whole batch's.
#[derive(Clone)]
struct Each(Wire);

impl Service<Vec<Req>> for Each {
    type Response = Vec<Result<Res, BoxError>>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, requests: Vec<Req>) -> Self::Future {
        let others = self.0.clone();
        let mut requests = requests.into_iter();
        let first = self.0.call(requests.next().expect("no batch is empty"));
        Box::pin(async move {
            let others = requests.map(|request| {
                let mut other = others.clone();
                async move {
                    let ready = other.ready().await?;
                    Ok::<_, BoxError>(ready.call(request).await)
                }
            });
            let others = async { join_all(others).await.into_iter().collect::<Result<Vec<_>, _>>() };
            let (first, mut all) = try_join(async { Ok(first.await) }, others).await?;
            all.insert(0, first);
            Ok(all)
        })
    }
}

fn handle<K>(layer: impl Fn() -> BatchLayer<Req, K> + Send + Sync + 'static) -> Handle
where
    K: Clone + Eq + std::hash::Hash + Send + 'static,
{
    Handle::new(move || {
        let layer = layer();
        layer_fn(move |inner: Wire| layer.layer(Each(inner)))
    })
}

fn of(settings: Settings) -> Handle {
    let batch = Batch::new(settings);
    handle(move || batch.layer())
}

fn key(request: &Req) -> Option<Vec<u8>> {
    assert!(!request.headers().contains_key("x-panic"), "the key function panics");
    Some(request.headers().get("x-key")?.as_bytes().to_vec())
}

fn weight(request: &Req) -> u64 {
    assert!(!request.headers().contains_key("x-panic"), "the weight function panics");
    1
}

fn marked() -> Dress {
    Dress::new(|_, mut request| {
        request.headers_mut().insert("x-panic", http::HeaderValue::from_static("1"));
        request
    })
}

/// Batches form while others are under way.
#[derive(Debug)]
pub(super) struct Batching;

impl Subject for Batching {
    fn name(&self) -> String {
        "batch".to_owned()
    }

    fn open(&self) -> Handle {
        let batch = Batch::new(Settings::max_size(4).max_pending(256));
        handle(move || batch.layer().by(key).max_weight(3, weight))
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn dress(&self, n: usize, mut request: Req) -> Req {
        request.headers_mut().insert("x-key", (n % 64).into());
        request
    }

    fn refusals(&self) -> Vec<Refusal> {
        let batch = Batch::new(Settings::max_size(4));
        batch.shutdown();
        vec![Refusal {
            what: "shut down",
            handle: handle(move || batch.layer()),
            warm_up: 0,
            then: Then::Resolve,
            request: Dress::any(),
            readiness: Readiness::AtOnce,
            lifts: None,
        }]
    }

    fn sharings(&self) -> Vec<Sharing> {
        let batch = Batch::new(Settings::max_size(4));
        batch.shutdown();
        let sharing = |what, handle, across, reach| {
            let (then, request) = (Then::Resolve, Dress::any());
            Sharing { what, handle, across, then, request, reach }
        };
        vec![
            // Four of six go; the other two wait for more.
            sharing("a batch of 4", of(Settings::max_size(4).linger(60 * MINUTE)), Across::Clones, 4),
            sharing("shut down", handle(move || batch.layer()), Across::Handle, 0),
        ]
    }

    fn timings(&self) -> Vec<Timing> {
        let timing = |what, settings, then| Timing {
            what,
            handle: of(settings),
            warm_up: 0,
            then,
            request: Dress::any(),
            at: MINUTE,
        };
        vec![
            timing("a minute's linger", Settings::max_size(4).linger(MINUTE), Then::Resolve),
            timing("a minute's deadline", Settings::max_size(4).deadline(MINUTE), Then::Hang),
            timing(
                "half a minute of each",
                Settings::max_size(4).linger(MINUTE / 2).deadline(MINUTE / 2),
                Then::Hang,
            ),
        ]
    }

    fn impossible(&self) -> Vec<Impossible> {
        let build = |what, settings: Settings| Impossible::new(what, move || Batch::new(settings));
        vec![
            build("batches of nothing", Settings::max_size(0)),
            build("no batches at once", Settings::max_size(1).max_concurrent(0)),
            build("nobody may wait", Settings::max_size(1).max_pending(0)),
            build("no time", Settings::max_size(1).deadline(Duration::ZERO)),
            Impossible::new("a weight of nothing", || {
                Batch::new(Settings::max_size(1)).layer().max_weight(0, weight)
            }),
        ]
    }

    fn panicking(&self) -> Vec<Panicking> {
        let batch = Batch::new(Settings::max_size(4));
        let other = batch.clone();
        let panicking = |what, handle| Panicking { what, handle, request: marked() };
        vec![
            panicking("the key function", handle(move || batch.layer().by(key))),
            panicking("the weight function", handle(move || other.layer().max_weight(9, weight))),
        ]
    }

    fn tasks(&self) -> usize {
        1
    }
}
