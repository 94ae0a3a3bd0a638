//! What a call does at a closed breaker: exact counts.

use std::{
    pin::pin,
    sync::mpsc,
    task::{Context, Poll},
    thread,
};

use tower::{Layer, Service, service_fn};

use crate::{CircuitBreaker, CircuitBreakers, Settings, State, Window, clock::readings};
use bartizan_core::BoxError;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn call<S: Service<bool, Error = BoxError>>(
    service: &mut S,
    succeeds: bool,
) -> Result<S::Response, BoxError> {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    match pin!(service.call(succeeds)).poll(&mut cx) {
        Poll::Ready(result) => result,
        Poll::Pending => panic!("it does not wait"),
    }
}

async fn inner(succeeds: bool) -> Result<(), BoxError> {
    if succeeds { Ok(()) } else { Err("it fails".into()) }
}

#[test]
fn the_clock_is_read_when_something_depends_on_it() {
    let of_calls = || Window::of_calls(10).failures(50);
    for (settings, successes, failures) in [
        (Settings::consecutive(9), 0, 1),
        (Settings::window(of_calls()), 0, 1),
        (Settings::window(of_calls()).or_consecutive(9), 0, 1),
        (Settings::window(Window::of_time(SECOND).failures(50)), 1, 1),
        (Settings::window(of_calls().slow(SECOND, 50)), 2, 2),
        (Settings::consecutive(9).count_cancelled_after(SECOND), 1, 2),
    ] {
        let what = format!("{settings:?}");
        let breaker = CircuitBreaker::new(settings.clone());
        let keyed = CircuitBreakers::new(settings).by(|_: &bool| Some(0)).layer(service_fn(inner));
        let (mut service, mut keyed) = (breaker.layer().layer(service_fn(inner)), keyed);
        // The first is not compared with any before it.
        assert!(call(&mut service, true).is_ok() && call(&mut keyed, true).is_ok());
        for (succeeds, expected) in [(true, successes), (false, failures)] {
            let (result, read) = readings::during(|| call(&mut service, succeeds));
            assert_eq!((result.is_ok(), read), (succeeds, expected), "{what}");
            let (result, read) = readings::during(|| call(&mut keyed, succeeds));
            assert_eq!((result.is_ok(), read), (succeeds, expected), "{what}");
        }
        // One that ends a run of failures needs none more.
        let (result, read) = readings::during(|| call(&mut service, true));
        assert_eq!((result.is_ok(), breaker.state()), (true, State::Closed), "{what}");
        assert!(read <= successes + 1, "{what}");
    }
}

/// Whether this call succeeds while somebody has the breaker's lock. One that waits for it would wait for ever.
fn while_locked(breaker: &CircuitBreaker) -> bool {
    let locked = breaker.circuit.lock();
    let (tell, told) = mpsc::channel();
    let mut service = breaker.layer().layer(service_fn(inner));
    let caller = thread::spawn(move || {
        let _ = tell.send(call(&mut service, true).is_ok());
    });
    let succeeds = told.recv_timeout(10 * SECOND);
    drop(locked);
    caller.join().expect("it does not panic");
    succeeds.expect("it waits for no lock")
}

#[test]
fn no_lock_is_taken_while_nothing_is_counted() {
    assert!(while_locked(&CircuitBreaker::new(Settings::consecutive(1))));
    // A window of calls that is full of successes stays as it is.
    let window = Window::of_calls(9).min_calls(1).failures(100);
    let breaker = CircuitBreaker::new(Settings::window(window).or_consecutive(9));
    let mut service = breaker.layer().layer(service_fn(inner));
    for _ in 0..2 {
        assert!((0..9).all(|_| call(&mut service, true).is_ok()));
        assert!(while_locked(&breaker));
        assert!(call(&mut service, false).is_err());
        assert_eq!((breaker.stats().calls, breaker.stats().failures), (9, 1), "the failure is seen");
        assert!((0..8).all(|_| call(&mut service, true).is_ok()));
        assert_eq!((breaker.stats().calls, breaker.stats().failures), (9, 1), "it is the last of nine");
    }
}

/// A service that is down is asked by everybody who would have asked it.
#[test]
fn no_lock_is_taken_to_refuse() {
    let breaker = CircuitBreaker::new(Settings::consecutive(1));
    breaker.try_acquire().expect("it is closed").failure();
    assert!(!while_locked(&breaker));
    assert_eq!(breaker.stats().refused, 1);
    breaker.reset();
    assert_eq!((breaker.stats().refused, while_locked(&breaker)), (0, true));
}

/// What the documentation says.
#[test]
fn a_circuit_takes_what_it_takes() {
    assert_eq!(size_of::<Circuit>(), 384);
}
