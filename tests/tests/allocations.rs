//! What the shared words and the provider allocate: exact counts.

use std::{convert::Infallible, future::Future, pin::pin, task::Context};

use bartizan_core::{
    BoxError, Ending, Extent, Guard, Rejected, RejectionKind, RejectionLayer, RetryAfter, UntilBodyEnd,
    UntilResponse, headers,
    sse::{Aligner, Decoder},
};
use bartizan_provider::Provider;
use bartizan_tests::alloc::{Counting, allocations};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The output of a future that is ready at once, without a runtime that allocates on its own account.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("ready at once"),
    }
}

#[test]
fn a_refusal_allocates_once() {
    let (error, counted) = allocations(|| -> BoxError {
        let wait = RetryAfter::After(std::time::Duration::from_secs(1));
        Rejected::new(RejectionKind::RateLimited, "rate-limit").with_retry_after(wait).into()
    });
    assert_eq!(counted.allocated, 1);
    let (found, counted) = allocations(|| Rejected::find(&*error).is_some());
    assert!(found);
    assert_eq!(counted.allocated, 0);
}

#[test]
fn responses_pass_the_rejection_layer_for_nothing() {
    let inner =
        service_fn(|()| std::future::ready(Ok::<_, BoxError>(Response::new(Full::<Bytes>::default()))));
    let mut service = RejectionLayer::openai_json().layer(inner);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    let (response, counted) = allocations(|| {
        assert!(service.poll_ready(&mut cx).is_ready());
        now(service.call(()))
    });
    assert!(response.is_ok());
    assert_eq!(counted.allocated, 0);
}

struct Free;

impl Guard for Free {
    fn settle(self, _: Ending<'_>) {}
}

#[test]
fn neither_extent_allocates() {
    let body = Full::new(Bytes::from_static(b"x"));
    let (_, counted) = allocations(|| {
        UntilResponse.hold(Response::new(()), Free);
        let mut response = UntilBodyEnd.hold(Response::new(body), Free);
        assert!(now(response.body_mut().frame()).is_some());
    });
    assert_eq!(counted.allocated, 0);
}

#[test]
fn reading_a_wait_from_headers_allocates_nothing() {
    let response = Response::builder().header("retry-after", "7").body(()).unwrap();
    let (wait, counted) = allocations(|| headers::retry_after(response.headers()));
    assert_ne!(wait, RetryAfter::Unknown);
    assert_eq!(counted.allocated, 0);
}

#[test]
fn events_that_came_in_one_piece_are_passed_on_in_it() {
    let chunk = Bytes::from_static(b"data: 1\n\ndata: 2\n\n");
    let (_, counted) = allocations(|| {
        let mut aligner = Aligner::new(1024);
        assert_eq!(aligner.push(chunk.clone()).unwrap(), chunk);
        let mut decoder = Decoder::new(1024);
        decoder.push(chunk.clone());
        while let Some(event) = decoder.next_event().unwrap() {
            assert!(event.data().is_some());
        }
    });
    assert_eq!(counted.allocated, 0);
}

/// The timer, and the URL's path: base and rest put together.
#[tokio::test(start_paused = true)]
async fn a_plain_call_through_the_provider_allocates_twice() {
    assert_eq!(of_a_call("{}"), 2);
}

/// And what serde_json notes of the level that it is on.
#[tokio::test(start_paused = true)]
async fn one_whose_answer_is_nested_allocates_once_more() {
    assert_eq!(of_a_call(r#"{"choices":[{"index":0}]}"#), 2 + 1);
}

/// And the report of the usage, in its box, in the extensions and their table.
#[tokio::test(start_paused = true)]
async fn one_that_tells_its_usage_allocates_four_times_more() {
    assert_eq!(of_a_call(r#"{"usage":{"prompt_tokens":1,"total_tokens":1}}"#), 2 + 1 + 4);
}

/// How often a call allocates that is answered with this JSON.
fn of_a_call(answer: &'static str) -> u64 {
    let transport = service_fn(move |_: Request<Full<Bytes>>| {
        let mut response = Response::new(Full::new(Bytes::from_static(answer.as_bytes())));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap().api_key("sk-1".into());
    let request = || {
        Request::post("/v1/chat/completions")
            .header(CONTENT_TYPE, "application/json")
            .body(Bytes::from_static(br#"{"model":"m"}"#))
            .unwrap()
    };
    let (_, of_the_upstream) = allocations(|| {
        let mut response = Response::new(());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        drop(response);
    });
    // The first call shares the bytes of URL and key, which takes an allocation each.
    assert!(now(provider.call(request())).is_ok());
    let request = request();
    let (response, counted) = allocations(|| now(provider.call(request)));
    assert!(response.is_ok());
    counted.allocated - of_the_upstream.allocated
}

/// A batch, however large, takes the list of its items, that of their seats, and what its members share. Its list of
/// results is the service's below, which makes it in place here. Items take nothing.
#[test]
fn a_batch_allocates_and_its_items_do_not() {
    use bartizan_batch::{Batch, Settings};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    for size in [10, 100, 1000] {
        let hour = std::time::Duration::from_secs(3600);
        for linger in [std::time::Duration::ZERO, hour] {
            let below = service_fn(|items: Vec<u64>| {
                std::future::ready(Ok::<_, Infallible>(
                    items.into_iter().map(Ok::<u64, Infallible>).collect(),
                ))
            });
            let batch = Batch::new(Settings::max_size(size).linger(linger));
            let (mut service, worker) = batch.layer().pair(below);
            let mut worker = pin!(worker);
            let mut cx = Context::from_waker(std::task::Waker::noop());
            let mut calls = Vec::with_capacity(size);
            let mut run = || {
                assert!(worker.as_mut().poll(&mut cx).is_pending());
                for n in 0..size {
                    assert!(service.poll_ready(&mut cx).is_ready());
                    calls.push(service.call(n as u64));
                    assert!(pin!(calls.last_mut().unwrap()).poll(&mut cx).is_pending());
                }
                assert!(worker.as_mut().poll(&mut cx).is_pending());
                assert!(calls.drain(..).all(|call| pin!(call).poll(&mut cx).is_ready()));
            };
            // What is there once is not counted: the seat of the future below, its waker, the timer.
            run();
            let ((), counted) = allocations(run);
            assert_eq!((counted.allocated, counted.live), (3, 0), "batches of {size}, {linger:?}");
        }
    }
}
