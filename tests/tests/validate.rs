//! What validation allocates: exact counts.

use std::{convert::Infallible, pin::pin, task::Context};

use bartizan_tests::alloc::{Counting, allocations};
use bartizan_validate::{
    Level, Pattern, Pii, Rules, Terms, Validator, content_type, max_bytes, must, text, well_formed,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(output) => output,
        std::task::Poll::Pending => panic!("ready at once"),
    }
}

#[test]
fn a_value_that_passes_allocates_nothing() {
    let rules = || {
        Rules::new()
            .error("positive", must("above zero", |n: &i64| *n > 0))
            .warn("small", must("below ten", |n: &i64| *n < 10))
    };
    let validator = Validator::new(rules()).answers(rules());
    let inner = service_fn(|n: i64| std::future::ready(Ok::<_, Infallible>(n)));
    let mut service = validator.layer(Level::Strict).layer(inner);
    let (answer, counted) = allocations(|| now(service.call(7)));
    assert_eq!((answer.unwrap(), counted.allocated), (7, 0));
}

/// Five rules over a body, with what they keep for themselves warm: only the list of open brackets is allocated.
#[test]
fn a_request_that_passes_allocates_once() {
    let rules = Rules::new()
        .error("type", content_type(["application/json"]))
        .error("size", max_bytes(1 << 16))
        .error("json", well_formed(64))
        .safety("terms", text(Terms::new(["nightfall", "red door"]).unwrap()))
        .safety("pii", text(Pii::all()))
        .error("codename", text(Pattern::deny("(?i)project x").unwrap()));
    let validator = Validator::http(rules);
    let inner = service_fn(|_: Request<Bytes>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    let mut service = validator.layer(Level::Strict).layer(inner);
    let request = || {
        let body = r#"{"messages":[{"role":"user","content":"write to me @ 12 o'clock"}]}"#;
        Request::builder()
            .header("content-type", "application/json")
            .body(Bytes::from_static(body.as_bytes()))
            .unwrap()
    };
    assert!(now(service.call(request())).is_ok());
    let request = request();
    let (answer, counted) = allocations(|| now(service.call(request)));
    assert!(answer.is_ok());
    assert_eq!(counted.allocated, 1);
}
