//! What the health layer allocates, exactly; and what components take.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_health::{Ejection, Health, Passive, Settings, State};
use bartizan_tests::alloc::{Counted, Counting, allocations, counted};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, service_fn};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

type Inner = tower::util::ServiceFn<fn(u16) -> Ready<Result<Response<Full<Bytes>>, std::io::Error>>>;

/// Answers with this status, or with 0 not at all. Neither allocates.
fn inner(status: u16) -> Ready<Result<Response<Full<Bytes>>, std::io::Error>> {
    ready(match status {
        0 => Err(std::io::ErrorKind::ConnectionRefused.into()),
        status => {
            let mut response = Response::new(Full::new(Bytes::from_static(b"a body")));
            *response.status_mut() = http::StatusCode::from_u16(status).expect("a status");
            Ok(response)
        }
    })
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nobody waits here"),
    }
}

/// The allocations of a call, the body to its end included. Its error is boxed, and that is one.
fn call<L, B>(layer: &L, status: u16) -> (Result<u16, BoxError>, Counted)
where
    L: Layer<Inner>,
    L::Service: Service<u16, Response = Response<B>, Error = BoxError>,
    B: http_body::Body + Unpin,
{
    let mut service = layer.layer(service_fn(inner as fn(_) -> _));
    let mut cx = Context::from_waker(Waker::noop());
    allocations(|| {
        assert!(service.poll_ready(&mut cx).is_ready());
        let response = now(service.call(status))?;
        let status = response.status().as_u16();
        assert!(now(response.into_body().frame()).is_some_and(|frame| frame.is_ok()));
        Ok(status)
    })
}

#[test]
fn recording_an_outcome_allocates_nothing() {
    let passive = Passive::new().min_requests(2).degraded(1).unhealthy(50);
    let ejection = Ejection::after(2).at_most(100);
    for settings in [Settings::new(), Settings::new().passive(passive).ejection(ejection)] {
        let health = Health::with(settings);
        // A success, a client's mistake, failures to the point of a verdict and an ejection, and the way back.
        for status in [200, 404, 500, 503, 500, 200, 429, 200] {
            for (what, (result, counted)) in [
                ("watched", call(&health.layer("a").server_errors(), status)),
                ("until the body ends", call(&health.layer("b").server_errors().until_body_end(), status)),
                ("explained by default", call(&health.layer("c"), status)),
            ] {
                assert_eq!((result.unwrap(), counted.allocated), (status, 0), "{what}");
            }
        }
        assert_eq!(health.component("a").stats().totals.failures, 4);
        let (result, counted) = call(&health.layer("d"), 0);
        assert!(result.is_err());
        assert_eq!(counted.allocated, 1, "the error is boxed, and nothing is kept of it but its words");
        assert_eq!(health.component("d").stats().last_error.unwrap().message, "connection refused");
    }
}

#[test]
fn shedding_allocates_only_for_the_refusal() {
    let health = Health::with(Settings::new().passive(Passive::new().min_requests(1).unhealthy(50)));
    let layer = health.layer("it").server_errors().shed();
    assert_eq!(call(&layer, 200).1.allocated, 0);
    assert_eq!(call(&layer, 500).1.allocated, 0);
    assert_eq!(health.component("it").state(), State::Unhealthy);
    let (result, counted) = call(&layer, 200);
    let error = result.unwrap_err();
    assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::Unhealthy));
    assert_eq!(counted.allocated, 1);
}

/// Constant memory, whatever the traffic, and what the documentation says it is.
#[test]
fn a_component_takes_what_it_takes() {
    let health = Health::new();
    health.component("the first");
    let before = counted().live;
    for n in 0..100 {
        health.component(&format!("component {n}"));
    }
    let each = (counted().live - before) / 100;
    assert!((10_000..16_000).contains(&each), "{each} bytes");

    let component = health.component("busy");
    let layer = component.layer().server_errors();
    let before = counted().live;
    for n in 0..50_000_u32 {
        let status = [200, 500, 503, 429, 404][n as usize % 5];
        let _ = call(&layer, status);
        component.record(bartizan_core::Class::Success, Duration::from_micros(n.into()), None);
    }
    assert_eq!(counted().live, before);
}

/// What is not an answer is one as well.
#[test]
fn a_service_that_cannot_fail() {
    let health = Health::new();
    let layer = health.layer("it");
    let mut service = layer.layer(service_fn(|n: u8| ready(Ok::<_, Infallible>(Request::new(n)))));
    let (answer, counted) = allocations(|| now(service.call(7)));
    assert_eq!((*answer.unwrap().body(), counted.allocated), (7, 0));
}
