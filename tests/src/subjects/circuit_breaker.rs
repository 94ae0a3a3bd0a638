//! `bartizan-circuit-breaker`, in each of its modes.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_circuit_breaker::{CircuitBreaker, CircuitBreakers, Settings, Window};
use bartizan_core::{Class, Classify, RetryAfter, server_errors};

use tokio::time::Instant;

use crate::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing, Timing},
    wire::{Handle, Req, Res},
};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "x-key";

/// The user's classifier, which has a bug: it panics at the first three results.
#[derive(Clone, Default)]
struct Judge(Arc<AtomicUsize>);

impl Classify<Res> for Judge {
    fn classify(&self, result: Result<&Res, &(dyn Error + 'static)>) -> Class {
        assert!(self.0.fetch_add(1, Relaxed) >= 3, "the classifier panics");
        server_errors().classify(result)
    }
}

/// The key of a request. The user's function has a bug.
fn key(request: &Req) -> Option<&str> {
    assert!(!request.headers().contains_key("x-panic"), "the key function panics");
    request.headers().get(KEY)?.to_str().ok()
}

fn with(name: &'static str, value: &'static str) -> Dress {
    Dress::new(move |_, mut request| {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
        request
    })
}

/// Open for a minute once three calls in a row, or half of the last twenty, have failed.
fn strict() -> Settings {
    Settings::consecutive(3).or_window(Window::of_calls(20).failures(50)).open_for(MINUTE)
}

/// So roomy that it does not trip, and yet counts everything.
fn roomy() -> Settings {
    let window = |window: Window| window.failures(100).slow(60 * MINUTE, 100);
    Settings::consecutive(u32::MAX)
        .or_window(window(Window::of_calls(100_000)))
        .or_window(window(Window::of_time(24 * 60 * MINUTE).min_calls(u32::MAX)))
}

fn unkeyed(breaker: CircuitBreaker) -> Handle {
    Handle::new(move || breaker.layer().server_errors().until_body_end())
}

fn tripped() -> CircuitBreaker {
    let breaker = CircuitBreaker::new(Settings::consecutive(1).open_for(MINUTE));
    breaker.try_acquire().expect("it is closed").failure();
    breaker
}

fn impossible() -> Vec<Impossible> {
    let build =
        |what, settings: fn() -> Settings| Impossible::new(what, move || CircuitBreaker::new(settings()));
    vec![
        build("no failures", || Settings::consecutive(0)),
        build("a window of no calls", || Settings::window(Window::of_calls(0).failures(50))),
        build("a window of no time", || Settings::window(Window::of_time(Duration::ZERO).failures(50))),
        build("a window without a share", || Settings::window(Window::of_calls(9))),
        build("no share", || Settings::window(Window::of_calls(9).failures(0))),
        build("more than all", || Settings::window(Window::of_calls(9).slow(MINUTE, 101))),
        build("more than the window holds", || {
            Settings::window(Window::of_calls(9).min_calls(10).failures(50))
        }),
        build("no calls are enough", || Settings::window(Window::of_calls(9).min_calls(0).failures(50))),
        build("open for no time", || Settings::consecutive(1).open_for(Duration::ZERO)),
        build("periods that shrink", || Settings::consecutive(1).growing(0.5, MINUTE)),
        build("a longest period below the first", || Settings::consecutive(1).growing(2.0, Duration::ZERO)),
        build("jitter that is no number", || Settings::consecutive(1).jitter(f64::NAN)),
        build("no probes", || Settings::consecutive(1).probes(0)),
        build("no successes", || Settings::consecutive(1).successes(0)),
        build("no time for probes", || Settings::consecutive(1).probe_timeout(Duration::ZERO)),
        Impossible::new("no keys", || CircuitBreakers::<u8>::new(strict()).max_keys(0)),
    ]
}

fn refusal(what: &'static str, handle: Handle, warm_up: usize, lifts: Option<Duration>) -> Refusal {
    let readiness = Readiness::AtOnce;
    Refusal { what, handle, warm_up, then: Then::Fail, request: Dress::any(), readiness, lifts }
}

fn three_failures(what: &'static str, handle: Handle, request: Dress) -> Sharing {
    Sharing { what, handle, across: Across::Handle, then: Then::Fail, request, reach: 3 }
}

/// Calls are refused.
#[derive(Debug)]
pub(super) struct Refusing;

impl Subject for Refusing {
    fn name(&self) -> String {
        "circuit-breaker".to_owned()
    }

    fn open(&self) -> Handle {
        unkeyed(CircuitBreaker::new(roomy()))
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn refusals(&self) -> Vec<Refusal> {
        let forced = CircuitBreaker::new(strict());
        forced.force_open();
        let probed = tripped();
        let probe = probed.try_acquire_at(Instant::now() + MINUTE).expect("the open period is over");
        let half_open = Handle::new(move || {
            let _under_way = &probe;
            probed.layer()
        });
        vec![
            refusal("3 failures in a row", unkeyed(CircuitBreaker::new(strict())), 3, Some(MINUTE)),
            refusal("refused once already", unkeyed(CircuitBreaker::new(strict())), 4, Some(MINUTE)),
            refusal("opened by a permit", unkeyed(tripped()), 0, Some(MINUTE)),
            refusal("opened by hand", unkeyed(forced), 0, None),
            refusal("a probe is under way", half_open, 0, None),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![three_failures("3 failures in a row", unkeyed(CircuitBreaker::new(strict())), Dress::any())]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let (breaker, judge) = (CircuitBreaker::new(Settings::consecutive(9)), Judge::default());
        let handle = Handle::new(move || breaker.layer().classify(judge.clone()));
        vec![Panicking { what: "the classifier", handle, request: Dress::any() }]
    }
}

/// Each key has its breaker.
#[derive(Debug)]
pub(super) struct Keyed;

impl Keyed {
    fn by_ref(settings: Settings) -> Handle {
        let breakers: CircuitBreakers<String> = CircuitBreakers::new(settings).max_keys(64);
        Handle::new(move || breakers.by_ref(key).server_errors())
    }

    fn by(settings: Settings) -> Handle {
        let breakers = CircuitBreakers::new(settings).max_keys(64);
        Handle::new(move || {
            breakers.by(|request: &Req| key(request).map(ToOwned::to_owned)).server_errors().until_body_end()
        })
    }
}

impl Subject for Keyed {
    fn name(&self) -> String {
        "circuit-breaker-keyed".to_owned()
    }

    fn open(&self) -> Handle {
        Self::by_ref(Settings::consecutive(u32::MAX))
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn dress(&self, n: usize, mut request: Req) -> Req {
        request.headers_mut().insert(KEY, n.into());
        request
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, handle| Refusal {
            request: with(KEY, "a.example"),
            readiness: Readiness::PassThrough,
            ..refusal(what, handle, 3, Some(MINUTE))
        };
        vec![
            refusal("3 failures of a key", Self::by_ref(strict())),
            refusal("3 failures of an owned key", Self::by(strict())),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![three_failures("3 failures of a key", Self::by(strict()), with(KEY, "a.example"))]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let panicking = |what, handle| Panicking { what, handle, request: with("x-panic", "1") };
        vec![
            panicking("the key function", Self::by(strict())),
            panicking("the key function that borrows", Self::by_ref(strict())),
        ]
    }
}

/// Callers wait in `poll_ready` while the breaker is open.
#[derive(Debug)]
pub(super) struct Waiting;

impl Waiting {
    fn handle(breaker: CircuitBreaker) -> Handle {
        Handle::new(move || breaker.layer().backpressure().server_errors())
    }
}

impl Subject for Waiting {
    fn name(&self) -> String {
        "circuit-breaker-waiting".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle(CircuitBreaker::new(roomy()))
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn sharings(&self) -> Vec<Sharing> {
        let breaker = CircuitBreaker::new(strict());
        vec![three_failures("3 failures in a row", Self::handle(breaker), Dress::any())]
    }

    fn timings(&self) -> Vec<Timing> {
        let timing = |what, breaker: CircuitBreaker| Timing {
            what,
            handle: Self::handle(breaker),
            warm_up: 0,
            then: Then::Resolve,
            request: Dress::any(),
            at: MINUTE,
        };
        let probed = CircuitBreaker::new(Settings::consecutive(1).open_for(MINUTE / 2));
        probed.try_acquire().expect("it is closed").failure();
        let later = Instant::now() + MINUTE / 2;
        probed
            .try_acquire_at(later)
            .expect("its open period is over")
            .settle_at(Class::Failure(RetryAfter::Unknown), later);
        vec![timing("open for a minute", tripped()), timing("opened again by a probe", probed)]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let (breaker, judge) = (CircuitBreaker::new(Settings::consecutive(9)), Judge::default());
        let handle = Handle::new(move || breaker.layer().backpressure().classify(judge.clone()));
        vec![Panicking { what: "the classifier", handle, request: Dress::any() }]
    }
}
