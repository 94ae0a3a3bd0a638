//! Errors as responses: statuses, shapes, waits, and what must not leak.
#![cfg(feature = "tonic")]

use std::{convert::Infallible, future::ready, task::Poll, time::Duration};

use bartizan_core::{
    BoxError, Rejected, RejectionKind, RejectionLayer, RetryAfter, grpc, openai_json, problem_json,
};
use bytes::Bytes;
use futures_util::FutureExt;
use http::Response;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::{Layer, Service, service_fn};

const KINDS: [(RejectionKind, u16, tonic::Code); 15] = [
    (RejectionKind::RateLimited, 429, tonic::Code::ResourceExhausted),
    (RejectionKind::ExceedsCapacity, 413, tonic::Code::ResourceExhausted),
    (RejectionKind::QueueFull, 429, tonic::Code::ResourceExhausted),
    (RejectionKind::QueueTimeout, 429, tonic::Code::ResourceExhausted),
    (RejectionKind::CircuitOpen, 503, tonic::Code::Unavailable),
    (RejectionKind::Invalid, 400, tonic::Code::InvalidArgument),
    (RejectionKind::InvalidAnswer, 502, tonic::Code::Internal),
    (RejectionKind::Unhealthy, 503, tonic::Code::Unavailable),
    (RejectionKind::Exhausted, 502, tonic::Code::Unavailable),
    (RejectionKind::Deadline, 504, tonic::Code::DeadlineExceeded),
    (RejectionKind::Conflict, 409, tonic::Code::Aborted),
    (RejectionKind::Panicked, 500, tonic::Code::Internal),
    (RejectionKind::Protocol, 502, tonic::Code::Internal),
    (RejectionKind::Lagged, 503, tonic::Code::Unavailable),
    (RejectionKind::Closed, 503, tonic::Code::Unavailable),
];

fn body<B>(response: Response<B>) -> Value
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    let bytes = response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes();
    serde_json::from_slice(&bytes).unwrap()
}

fn refused(kind: RejectionKind, retry_after: RetryAfter) -> BoxError {
    Rejected::new(kind, "some-layer").with_retry_after(retry_after).into()
}

#[test]
fn every_kind_has_its_status_and_code() {
    for (kind, status, code) in KINDS {
        let wait = RetryAfter::After(Duration::from_millis(2100));
        for respond in [problem_json, openai_json] {
            let response = respond(refused(kind, wait));
            assert_eq!(response.status(), status, "{kind:?}");
            assert_eq!(response.headers()["retry-after"], "3", "{kind:?}");
        }
        assert_eq!(grpc::status(&*refused(kind, wait)).code(), code, "{kind:?}");
    }
}

#[test]
fn the_bodies_have_the_shapes_that_clients_read() {
    let error = || refused(RejectionKind::RateLimited, RetryAfter::Unknown);
    let response = problem_json(error());
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(!response.headers().contains_key("retry-after"));
    let expected = json!({
        "type": "about:blank", "title": "Too Many Requests", "status": 429, "detail": "some-layer: rate limited",
    });
    assert_eq!(body(response), expected);

    let response = openai_json(error());
    assert_eq!(response.headers()["content-type"], "application/json");
    let expected = json!({"error": {
        "message": "some-layer: rate limited", "type": "rate_limit_error", "param": null, "code": "rate_limited",
    }});
    assert_eq!(body(response), expected);
}

#[test]
fn clients_are_told_not_to_retry_what_can_never_pass() {
    let response = openai_json(refused(RejectionKind::ExceedsCapacity, RetryAfter::Never));
    assert_eq!(response.headers()["x-should-retry"], "false");
    assert!(!response.headers().contains_key("retry-after"));
    let response = openai_json(refused(RejectionKind::RateLimited, RetryAfter::Unknown));
    assert!(!response.headers().contains_key("x-should-retry"));
}

#[test]
fn other_errors_keep_their_text_to_themselves() {
    for (error, status) in [
        (BoxError::from("password is hunter2"), 500),
        (Box::new(std::io::Error::other("10.0.0.7 refused hunter2")) as BoxError, 502),
    ] {
        let response = openai_json(error);
        assert_eq!(response.status(), status);
        assert!(!body(response).to_string().contains("hunter2"));
    }
    let status = grpc::status(&std::io::Error::other("hunter2"));
    assert_eq!((status.code(), status.message()), (tonic::Code::Internal, "internal error"));
}

#[test]
fn a_grpc_status_passes_as_it_is() {
    let error = std::io::Error::other(tonic::Status::not_found("no such model"));
    let status = grpc::status(&error);
    assert_eq!((status.code(), status.message()), (tonic::Code::NotFound, "no such model"));

    let response = RejectionLayer::grpc()
        .layer(service_fn(|()| ready(Err::<Response<Full<Bytes>>, _>(tonic::Status::not_found("gone")))))
        .call(())
        .now_or_never()
        .unwrap()
        .unwrap();
    assert_eq!(response.headers()["grpc-status"], "5");
    assert_eq!(response.headers()["content-type"], "application/grpc");
}

/// Fails in `poll_ready`, and must not be called after that.
#[derive(Clone)]
struct Broken;

impl Service<()> for Broken {
    type Response = Response<Full<Bytes>>;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Err(refused(RejectionKind::Closed, RetryAfter::Unknown)))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        panic!("called although it was never ready");
    }
}

#[test]
fn an_error_of_poll_ready_becomes_the_next_response() {
    let mut service = RejectionLayer::openai_json().layer(Broken);
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    for _ in 0..2 {
        assert_eq!(service.poll_ready(&mut cx), Poll::Ready(Ok::<(), Infallible>(())));
    }
    let response = service.call(()).now_or_never().unwrap().unwrap();
    assert_eq!(response.status(), 503);
}

#[test]
fn responses_pass_untouched() {
    let mut service = RejectionLayer::openai_json().layer(service_fn(|()| {
        let response = Response::builder()
            .status(418)
            .header("x-tea", "green")
            .body(Full::new(Bytes::from_static(b"pot")));
        ready(Ok::<_, BoxError>(response.unwrap()))
    }));
    let response = service.call(()).now_or_never().unwrap().unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["x-tea"]), (418, &"green".parse().unwrap()));
    assert_eq!(response.into_body().collect().now_or_never().unwrap().unwrap().to_bytes(), "pot");
}
