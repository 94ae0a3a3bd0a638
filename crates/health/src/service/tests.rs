use std::{
    future::{Ready, ready},
    pin::pin,
    task::Waker,
    time::Duration,
};

use bartizan_core::{Class, Errors, RetryAfter, UntilResponse};
use tower_layer::Layer;

use super::*;
use crate::{
    Causes, Ejection, Fault, Health, Passive, Settings, State,
    clock::readings,
    sync::{lock, locks},
};

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

/// Whatever becomes of calls: the first failure of a class, a verdict and the way back, ejections and one that the cap
/// forbids take no lock. It would be counted, and others hold those of the components.
#[test]
fn a_call_takes_no_lock() {
    let passive = Passive::new().min_requests(2).degraded(20).unhealthy(50);
    let ejection = Ejection::after(2).at_most(50);
    let health = Health::with(Settings::new().passive(passive).ejection(ejection));
    let layers = ["one", "other"].map(|name| health.layer(name).shed());
    let held: Vec<_> = layers
        .iter()
        .map(|layer| {
            let watched = &layer.component().watched;
            (lock(&watched.ask), watched.hold_probes())
        })
        .collect();
    for (layer, good) in layers.iter().zip([true, true]) {
        assert_eq!(locks::during(|| call(layer, good).is_ok()), (good, 0));
    }
    let recorded = |layer: &Layered, class, fault| {
        let took = Duration::from_millis(1);
        let ((), taken) = locks::during(|| layer.component().record(class, took, fault));
        assert_eq!(taken, 0, "{class:?}, {fault:?}");
    };
    let failure = Class::Failure(RetryAfter::Unknown);
    for layer in &layers {
        for class in ["timeout", "io", "timeout"] {
            recorded(layer, failure, Some(Fault::new(class)));
        }
        recorded(layer, Class::Ignore, Some(Fault::new("refused")));
        recorded(layer, Class::Success, None);
    }
    // More than there are places for.
    for n in 0..WORDS.len() {
        recorded(&layers[0], Class::Ignore, Some(Fault::new(&WORDS[n..=n])));
    }
    drop(held);

    let [one, other] = layers.map(|layer| layer.component().stats());
    assert_eq!([one.state, other.state], [State::Unhealthy; 2]);
    assert_eq!((one.ejections, other.ejections, health.ejections_refused()), (1, 0, 1));
    assert_eq!(other.errors, [("timeout", 2), ("io", 1), ("refused", 1)]);
    assert_eq!(one.errors.last(), Some(&("other", 36 - 28)));
}

const WORDS: &str = "0123456789abcdefghijklmnopqrstuvwxyz";

/// Whoever watches is told of changes, which takes a lock, and of nothing else.
#[test]
fn only_a_change_that_somebody_watches_takes_a_lock() {
    let health = Health::with(Settings::new().passive(Passive::new().min_requests(2).unhealthy(50)));
    let component = health.component("it");
    let watch = health.watch(Some("it"));
    let record = |class| locks::during(|| component.record(class, Duration::ZERO, None)).1;
    let failure = Class::Failure(RetryAfter::Unknown);
    assert_eq!([failure, failure, failure].map(record), [0, 1, 0]);
    drop(watch);
    assert_eq!(component.state(), State::Unhealthy);
    assert_eq!((0..9).map(|_| record(Class::Success)).sum::<u64>(), 0);
    assert_ne!(component.state(), State::Unhealthy);
}

/// One instant for all that is counted of a call: its latency ends where its outcome stands in the window.
#[tokio::test(start_paused = true)]
async fn a_latency_ends_where_its_outcome_stands() {
    let health = Health::with(Settings::new().passive(Passive::new().window(Duration::from_secs(16))));
    let component = health.component("it");
    component.record(Class::Success, Duration::from_secs(3), None);
    let stats = component.stats();
    assert_eq!((stats.requests, stats.state), (1, State::Healthy));
    assert_eq!(stats.latency.mean, Some(Duration::from_secs(3)));
}
