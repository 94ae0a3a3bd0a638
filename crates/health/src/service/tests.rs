use std::{
    future::{Ready, ready},
    pin::pin,
    task::Waker,
    time::Duration,
};

use bartizan_core::{Errors, UntilResponse};
use tower_layer::Layer;

use super::*;
use crate::{Causes, Health, Passive, Settings, State, clock::readings, watched::lock};

type Layered = crate::HealthLayer<Errors, Causes, UntilResponse>;

#[derive(Clone)]
struct Inner;

impl Service<bool> for Inner {
    type Response = ();
    type Error = std::io::Error;
    type Future = Ready<Result<(), std::io::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, good: bool) -> Self::Future {
        ready(if good { Ok(()) } else { Err(std::io::ErrorKind::ConnectionReset.into()) })
    }
}

fn call(layer: &Layered, good: bool) -> Result<(), BoxError> {
    let mut service = layer.layer(Inner);
    let cx = &mut Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(cx), Poll::Ready(Ok(()))));
    match pin!(service.call(good)).poll(cx) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("nobody waits here"),
    }
}

/// Whatever becomes of a call: the clock is read when it begins and when it is over, and for its latency and its place in
/// the window once.
#[test]
fn a_call_reads_the_clock_twice() {
    let health = Health::with(Settings::new().passive(Passive::new().min_requests(1).unhealthy(50)));
    for layer in [health.layer("watched"), health.layer("shed").shed()] {
        for good in [true, false, true, true] {
            layer.component().reset();
            let (result, read) = readings::during(|| call(&layer, good));
            assert_eq!((result.is_ok(), read), (good, 2));
        }
    }
    let shed = health.layer("shed").shed();
    call(&shed, false).unwrap_err();
    let (refused, read) = readings::during(|| call(&shed, true));
    assert!(refused.is_err() && read == 1, "{read}");
}

/// While others hold every lock that there is, calls pass, fail and are counted.
#[test]
fn a_call_takes_no_lock() {
    let health = Health::new();
    let layer = health.layer("it");
    // The first failure of a class enters it into the table.
    call(&layer, false).unwrap_err();
    let watched = &layer.component().watched;
    let held = (lock(&watched.ask), watched.hold_probes());
    for good in [true, false, true] {
        assert_eq!(call(&layer, good).is_ok(), good);
    }
    drop(held);
    let stats = layer.component().stats();
    assert_eq!((stats.totals.successes, stats.totals.failures), (2, 2));
    assert_eq!(stats.errors, [("io", 2)]);
    assert_eq!(stats.latency.count, 4);
}

/// One instant for all that is counted of a call: its latency ends where its outcome stands in the window.
#[tokio::test(start_paused = true)]
async fn a_latency_ends_where_its_outcome_stands() {
    let health = Health::with(Settings::new().passive(Passive::new().window(Duration::from_secs(16))));
    let component = health.component("it");
    component.record(bartizan_core::Class::Success, Duration::from_secs(3), None);
    let stats = component.stats();
    assert_eq!((stats.requests, stats.state), (1, State::Healthy));
    assert_eq!(stats.latency.mean, Some(Duration::from_secs(3)));
}
