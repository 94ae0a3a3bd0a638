//! Deduplication: ours, moka's `try_get_with`, and tower-resilience's cache and coalesce; and what a key costs.

use std::{convert::Infallible, hint::black_box, pin::pin, time::Duration};

use bartizan_core::BoxError;
use bartizan_dedup::{Dedup, Frames, Key, Recording, Replay, RequestKey};
use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_resilience_cache::SharedCacheLayer;
use tower_resilience_coalesce::CoalesceLayer;

use crate::{
    inner::{Call, Inner},
    measure::{Contender, Plan, drive, drive_waiting},
    report::Table,
};

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    vec![hits(plan), misses(plan), kept(plan), responses(plan), digests(plan)]
}

const HOUR: Duration = Duration::from_secs(3600);

/// As many answers as are kept, and how many of them a thread asks for.
const KEPT: u64 = 10_000;
const A_THREADS: u64 = KEPT / 2;

/// 64 bytes, as a name or a digest in text has.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Name([u64; 8]);

fn name(call: &Call) -> Name {
    Name([*call; 8])
}

/// Calls for one thread's share of the keys.
fn share(thread: u64, calls: u64) -> impl Iterator<Item = Call> {
    (0..calls).map(move |n| thread * A_THREADS + n % A_THREADS)
}

fn hits(plan: Plan) -> Table {
    let ours: Dedup<Name, Call> = Dedup::new(Replay::ttl(HOUR).max_entries(2 * KEPT as usize));
    let bare = quick_cache::sync::Cache::<Name, Call>::new(2 * KEPT as usize);
    let moka = moka::future::Cache::<Name, Call>::builder().max_capacity(2 * KEPT).time_to_live(HOUR).build();
    let resilience = SharedCacheLayer::<Call, Name, Call>::builder()
        .max_size(2 * KEPT as usize)
        .ttl(HOUR)
        .key_extractor(name)
        .build()
        .expect("a valid configuration");
    (0..KEPT).for_each(|call| bare.insert(name(&call), call));

    let with_moka = || {
        let moka = moka.clone();
        service_fn(move |call| {
            let moka = moka.clone();
            async move { moka.try_get_with(name(&call), async move { Ok::<_, Infallible>(call) }).await }
        })
    };
    // All that is asked for is there.
    drive(&mut ours.layer(|call: &Call| Some(name(call))).layer(Inner), 0..KEPT);
    drive(&mut resilience.layer(Inner), 0..KEPT);
    drive_waiting(&mut with_moka(), 0..KEPT);

    let figures = plan.on_two_threads(&[
        Contender::new(HITS, |thread| {
            let bare = &bare;
            move |calls| {
                share(thread, calls).for_each(|call| assert!(bare.get(&name(&black_box(call))).is_some()));
            }
        }),
        Contender::new("ours", |thread| {
            let mut service = ours.layer(|call: &Call| Some(name(call))).layer(Inner);
            move |calls| drive(&mut service, share(thread, calls))
        }),
        Contender::new("moka, try_get_with", |thread| {
            let mut service = with_moka();
            move |calls| drive_waiting(&mut service, share(thread, calls))
        }),
        Contender::new("tower-resilience, cache", |thread| {
            let mut service = resilience.layer(Inner);
            move |calls| drive_waiting(&mut service, share(thread, calls))
        }),
    ]);
    Table::new("A hit, 64 B keys of 10,000, a half of them for each thread", HITS, figures)
        .note("quick_cache is asked as it is: no layer, no time to live, no count of hits.")
}

const HITS: &str = "quick_cache, bare";

fn misses(plan: Plan) -> Table {
    let ours: Dedup<Name, Call> = Dedup::new(Replay::none());
    let coalesce = CoalesceLayer::new(name);
    let boxed = service_fn(|call: Call| async move { Ok::<_, Infallible>(call) }.boxed());
    let figures = plan.on_two_threads(&[
        Contender::new(MISSES, |thread| {
            let mut service = boxed;
            move |calls| drive(&mut service, share(thread, calls))
        }),
        Contender::new("ours, nothing kept", |thread| {
            let mut service = ours.layer(|call: &Call| Some(name(call))).layer(Inner);
            move |calls| drive(&mut service, share(thread, calls))
        }),
        Contender::new("tower-resilience, coalesce (1)", |thread| {
            let mut service = coalesce.layer(Cloned);
            move |calls| drive_waiting(&mut service, share(thread, calls))
        }),
    ]);
    Table::new("A call that nobody shares", MISSES, figures)
        .note("(1) each service has a state of its own, so its two threads share nothing.")
}

const MISSES: &str = "a boxed future";

/// tower-resilience wants errors that are `Clone`.
#[derive(Clone)]
struct Cloned;

impl Service<Call> for Cloned {
    type Response = Call;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Call, Infallible>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        std::future::ready(Ok(call))
    }
}

fn kept(plan: Plan) -> Table {
    let ours: Dedup<Name, Call> = Dedup::new(Replay::ttl(HOUR).max_entries(KEPT as usize));
    let moka = moka::future::Cache::<Name, Call>::builder().max_capacity(KEPT).time_to_live(HOUR).build();
    let figures = plan.on_one_thread(&[
        Contender::new("moka, try_get_with", |_| {
            let (moka, mut next) = (moka.clone(), 0..);
            let mut service = service_fn(move |call| {
                let moka = moka.clone();
                async move { moka.try_get_with(name(&call), async move { Ok::<_, Infallible>(call) }).await }
            });
            move |calls| drive_waiting(&mut service, next.by_ref().take(calls as usize))
        }),
        Contender::new("ours", |_| {
            let mut next = 0..;
            let mut service = ours.layer(|call: &Call| Some(name(call))).layer(Inner);
            move |calls| drive(&mut service, next.by_ref().take(calls as usize))
        }),
    ]);
    Table::new("A call whose answer is kept, in the place of another one", "moka, try_get_with", figures)
}

fn responses(plan: Plan) -> Table {
    let dedup: Dedup<Key, Recording, Frames> = Dedup::http(Replay::ttl(HOUR));
    let inner = || {
        service_fn(async |_: Request<Bytes>| {
            let response = Response::builder()
                .header("content-type", "application/json")
                .header("content-length", "1024")
                .header("x-request-id", "7")
                .body(Full::new(Bytes::from_static(&[b'x'; 1024])));
            Ok::<_, BoxError>(response.expect("it is valid"))
        })
    };
    let key = RequestKey::scoped_by(|_: &Request<Bytes>| Some("acme"));
    let given = Key::scope("acme").finish();
    let figures = plan.on_one_thread(&[
        Contender::new(RESPONSES, |_| {
            let service = inner();
            move |calls| read(&service, calls)
        }),
        Contender::new("ours, a hit under a given key", |_| {
            let service = dedup.layer(move |_: &Request<Bytes>| Some(given)).layer(inner());
            move |calls| read(&service, calls)
        }),
        Contender::new("ours, a hit, 1 KiB of JSON as key", |_| {
            let key = key.clone();
            let service = dedup.layer(move |request: &Request<Bytes>| key.of(request)).layer(inner());
            move |calls| read(&service, calls)
        }),
    ]);
    Table::new("An HTTP response of 1 KiB, its body read", RESPONSES, figures)
        .note("The request is counted too: a clone of one.")
}

/// Calls whose responses are read to their end.
fn read<S, B>(service: &S, calls: u64)
where
    S: Service<Request<Bytes>, Response = Response<B>, Error: std::fmt::Debug> + Clone,
    B: http_body::Body<Error: std::fmt::Debug>,
{
    let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
    let request = request.body(Bytes::from(json(1024))).expect("it is valid");
    for _ in 0..calls {
        let read = async {
            let response = service.clone().oneshot(black_box(request.clone())).await.expect("it succeeds");
            response.into_body().collect().await.expect("it ends")
        };
        black_box(pin!(read).now_or_never().expect("all of it is there"));
    }
}

const RESPONSES: &str = "no layer";

fn digests(plan: Plan) -> Table {
    let body = Bytes::from(json(8192));
    let request = |kind: &str| {
        Request::post("/v1/chat/completions")
            .header("content-type", kind)
            .body(body.clone())
            .expect("it is valid")
    };
    let key = RequestKey::scoped_by(|_: &Request<Bytes>| Some("acme"));
    let (json, bytes) = (request("application/json"), request("text/plain"));
    let figures = plan.on_one_thread(&[
        Contender::new(DIGESTS, |_| {
            let body = &body;
            move |calls| (0..calls).for_each(|_| _ = black_box(blake3::hash(black_box(body))))
        }),
        Contender::new("ours, as bytes", |_| {
            let (key, bytes) = (&key, &bytes);
            move |calls| (0..calls).for_each(|_| _ = black_box(key.of(black_box(bytes))))
        }),
        Contender::new("ours, as JSON whatever its order", |_| {
            let (key, json) = (&key, &json);
            move |calls| (0..calls).for_each(|_| _ = black_box(key.of(black_box(json))))
        }),
        Contender::new("serde_json, to a Value, and blake3 of that", |_| {
            let body = &body;
            move |calls| {
                for _ in 0..calls {
                    let value: serde_json::Value =
                        serde_json::from_slice(black_box(body)).expect("it is JSON");
                    black_box(blake3::hash(value.to_string().as_bytes()));
                }
            }
        }),
    ]);
    Table::new("The key of a request with 8 KiB of JSON", DIGESTS, figures)
}

const DIGESTS: &str = "blake3 of the bytes";

/// A conversation of so many bytes.
fn json(bytes: usize) -> String {
    let line = "Could you say that again, slowly? I am afraid I did not hear all of it.\n";
    let mut messages: Vec<_> = ["user", "assistant"]
        .into_iter()
        .cycle()
        .take(bytes / 400)
        .map(|role| serde_json::json!({"role": role, "content": line.repeat(4)}))
        .collect();
    let mut request = serde_json::json!({
        "model": "gpt-4o", "messages": messages, "temperature": 0.7, "stream": true, "max_tokens": 256,
    });
    let rest = bytes - request.to_string().len() - r#"{"role":"user","content":""},"#.len();
    messages.push(serde_json::json!({"role": "user", "content": "x".repeat(rest)}));
    request["messages"] = messages.into();
    assert_eq!(request.to_string().len(), bytes);
    // The order in which clients write it, which is none.
    format!("{{\"stream\":true,{}", &request.to_string()[1..].replace(",\"stream\":true", ""))
}
