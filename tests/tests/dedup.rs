//! What deduplication allocates, and how often it looks: exact counts.

use std::{pin::pin, task::Context, time::Duration};

use bartizan_core::BoxError;
use bartizan_dedup::{Dedup, Frames, Key, Recording, Replay, RequestKey};
use bartizan_tests::alloc::{Counting, allocations};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const MINUTE: Duration = Duration::from_secs(60);

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("ready at once"),
    }
}

#[test]
fn a_hit_of_a_value_allocates_nothing() {
    let dedup: Dedup<u64, u64> = Dedup::new(Replay::ttl(MINUTE));
    let mut service = dedup
        .layer(|call: &u64| Some(*call))
        .layer(service_fn(|call: u64| std::future::ready(Ok::<_, BoxError>(call))));
    now(service.call(7)).unwrap();
    let (answer, counted) = allocations(|| now(service.call(7)));
    assert_eq!((answer.unwrap(), counted.allocated), (7, 0));
    assert_eq!(dedup.stats().hits, 1);
}

/// The flight and the call: who alone waits for what is there at once has the answer as it is.
#[test]
fn a_call_that_is_made_allocates_a_fixed_number_of_times() {
    // One part of the table, which has its room after the first call.
    let dedup: Dedup<u64, u64> = Dedup::new(Replay::none().max_entries(1));
    let mut service = dedup
        .layer(|call: &u64| Some(*call))
        .layer(service_fn(|call: u64| std::future::ready(Ok::<_, BoxError>(call))));
    now(service.call(0)).unwrap();
    for call in 1..100 {
        let (answer, counted) = allocations(|| now(service.call(call)));
        assert_eq!((answer.unwrap(), counted.allocated), (call, 2));
    }
}

/// What `http` needs for a clone of the headers, and three times for an extension where that is wanted. Neither the key nor
/// the body needs any.
#[test]
fn a_hit_of_a_response_allocates_its_head() {
    for (frames, allocated) in [(Frames::new(), 2), (Frames::new().served(), 5)] {
        a_hit_allocates(frames, allocated);
    }
}

fn a_hit_allocates(frames: Frames, allocated: u64) {
    let dedup: Dedup<Key, Recording, Frames> = Dedup::sharing(frames, Replay::ttl(60 * MINUTE));
    let key = RequestKey::scoped_by(|_: &Request<Bytes>| Some("acme"));
    let service = dedup.layer(move |request: &Request<Bytes>| key.of(request)).layer(service_fn(
        async |_: Request<Bytes>| {
            let response = Response::builder()
                .header("content-type", "application/json")
                .header("content-length", "9")
                .header("x-request-id", "7")
                .body(Full::new(Bytes::from_static(b"an answer")))
                .unwrap();
            Ok::<_, BoxError>(response)
        },
    ));
    let request = || {
        let request = Request::post("/v1/chat/completions").header("content-type", "application/json");
        request.body(Bytes::from_static(br#"{"stream": false, "model": "m"}"#)).unwrap()
    };
    let read = |response: Response<_>| now(BodyExt::collect(response.into_body())).unwrap().to_bytes();
    for _ in 0..2 {
        assert_eq!(read(now(service.clone().oneshot(request())).unwrap()), "an answer");
    }
    let (request, mut service) = (request(), service);
    let (response, counted) = allocations(|| now(service.call(request)).unwrap());
    assert_eq!(counted.allocated, allocated);
    assert_eq!(read(response), "an answer");
    assert_eq!(dedup.stats().hits, 2);
}
