//! `bartizan-fallback`: targets, and streams that commit.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::body::Body;
use bartizan_core::{BoxError, Class, Classify, RetryAfter};
use bartizan_fallback::{CommitLayer, Fallback, FirstChunk, Panicked, Settings, http_failures};
use http::{HeaderValue, Response};
use tower::{Layer, ServiceExt, layer::layer_fn, service_fn};

use crate::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing, Timing},
    wire::{Handle, Req, Res, Wire},
};

const MINUTE: Duration = Duration::from_secs(60);
const DAYS: Duration = Duration::from_secs(2 * 24 * 3600);

/// Bodies here are empty, so a request can be copied: all but its body.
fn copy(request: &Req) -> Option<Req> {
    assert!(!request.headers().contains_key("x-uncopied"), "the function that copies requests panics");
    let mut copy = Req::new(Body::empty());
    (*copy.method_mut(), *copy.uri_mut()) = (request.method().clone(), request.uri().clone());
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

/// Whoever fails is to be left alone for a minute.
#[derive(Clone, Copy)]
struct Patient;

impl<B> Classify<Response<B>> for Patient {
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        match http_failures().classify(result) {
            Class::Failure(_) => Class::Failure(RetryAfter::After(MINUTE)),
            class => class,
        }
    }
}

/// Only panics move on: an error below comes out as it is, for whatever layer is outside to judge.
#[derive(Clone, Copy)]
struct OnlyPanics;

impl<B> Classify<Response<B>> for OnlyPanics {
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        match result {
            Err(error) if error.is::<Panicked>() => Class::Failure(RetryAfter::Unknown),
            _ => Class::Success,
        }
    }
}

/// The user's classifier, which has a bug: it panics at the first three results.
#[derive(Clone, Default)]
struct Judge(Arc<AtomicUsize>);

impl<B> Classify<Response<B>> for Judge {
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        assert!(self.0.fetch_add(1, Relaxed) >= 3, "the classifier panics");
        http_failures().classify(result)
    }
}

fn fallback(settings: Settings) -> Fallback {
    Fallback::with(settings, ["below", "other"])
}

/// It waits for targets as long as it takes.
fn waiting() -> Settings {
    Settings::new().within(DAYS).ready_within(DAYS)
}

/// A target that is none.
fn down() -> Wire {
    Wire::new(service_fn(async |_: Req| Err::<Res, _>(BoxError::from("the other target is down"))))
}

/// A target that answers for all others.
fn spare() -> Wire {
    Wire::new(service_fn(async |_: Req| Ok::<_, BoxError>(Res::new(Body::empty()))))
}

fn with(name: &'static str) -> Dress {
    Dress::new(move |_, mut request| {
        request.headers_mut().insert(name, HeaderValue::from_static("1"));
        request
    })
}

fn impossible() -> Vec<Impossible> {
    let settings = |what, settings: fn() -> Settings| Impossible::new(what, move || fallback(settings()));
    vec![
        Impossible::new("no targets", || Fallback::new([""; 0])),
        Impossible::new("two of one name", || Fallback::new(["a", "a"])),
        Impossible::new("a target that is not there", || fallback(Settings::new()).layer("of nobody")),
        Impossible::new("a target that is there twice", || {
            fallback(Settings::new()).layer("below").or("below", down())
        }),
        settings("no attempts", || Settings::new().attempts(0)),
        settings("no time", || Settings::new().within(Duration::ZERO)),
        settings("less time than a call needs", || Settings::new().within(MINUTE).min_attempt(2 * MINUTE)),
    ]
}

/// The service below, and another one.
#[derive(Debug)]
pub(super) struct Targets;

impl Targets {
    fn handle(fallback: Fallback, other: fn() -> Wire) -> Handle {
        Handle::new(move || fallback.http_layer("below").or("other", other()).clone_request(copy).served_by())
    }

    fn patient() -> Handle {
        let fallback = fallback(waiting());
        Handle::new(move || {
            fallback.http_layer("below").or("other", spare()).clone_request(copy).classify(Patient)
        })
    }
}

impl Subject for Targets {
    fn name(&self) -> String {
        "fallback".to_owned()
    }

    fn open(&self) -> Handle {
        let fallback = fallback(waiting());
        Handle::new(move || {
            let layer = fallback.http_layer("below").or("other", down()).clone_request(copy);
            layer.classify(OnlyPanics).served_by()
        })
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn refusals(&self) -> Vec<Refusal> {
        let by_hand = fallback(Settings::new());
        by_hand.put_aside("below", MINUTE);
        let refusal = |what, handle, warm_up| Refusal {
            what,
            handle,
            warm_up,
            then: Then::Fail,
            request: Dress::any(),
            readiness: Readiness::AtOnce,
            lifts: Some(MINUTE),
        };
        vec![
            refusal("it has said when to come back", Self::patient(), 1),
            refusal("it was put aside by hand", Self::handle(by_hand, spare), 0),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![Sharing {
            what: "it has said when to come back",
            handle: Self::patient(),
            across: Across::Handle,
            then: Then::Fail,
            request: Dress::any(),
            reach: 1,
        }]
    }

    fn timings(&self) -> Vec<Timing> {
        let timing = |what, settings| Timing {
            what,
            handle: Self::handle(fallback(settings), down),
            warm_up: 0,
            then: Then::Hang,
            request: Dress::any(),
            at: MINUTE,
        };
        vec![timing("a minute for a request", Settings::new().within(MINUTE).ready_within(DAYS))]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let (of_judge, of_filter, of_transform) =
            (fallback(waiting()), fallback(waiting()), fallback(waiting()));
        let judge = Judge::default();
        let judging = Handle::new(move || {
            of_judge.http_layer("below").or("other", down()).clone_request(copy).classify(judge.clone())
        });
        let filtering = Handle::new(move || {
            let layer = of_filter.http_layer("below").or("other", down()).clone_request(copy);
            layer.when("other", |_| panic!("the filter panics"))
        });
        let transforming = Handle::new(move || {
            let panics = |_: Req| -> Req { panic!("the transform panics") };
            of_transform.http_layer("below").or_with("other", down(), panics).clone_request(copy)
        });
        vec![
            Panicking { what: "the classifier", handle: judging, request: Dress::any() },
            Panicking { what: "the function that copies", handle: self.open(), request: with("x-uncopied") },
            Panicking { what: "the filter of a target", handle: filtering, request: Dress::any() },
            Panicking { what: "the transform", handle: transforming, request: Dress::any() },
        ]
    }
}

/// As a configuration has them: the service below, and a list.
#[derive(Debug)]
pub(super) struct Listed;

impl Listed {
    fn handle(fallback: Fallback, other: fn() -> Wire) -> Handle {
        Handle::new(move || fallback.layer("below").or_each([("other", other())]).clone_request(copy))
    }
}

impl Subject for Listed {
    fn name(&self) -> String {
        "fallback-listed".to_owned()
    }

    fn open(&self) -> Handle {
        let fallback = fallback(waiting());
        Handle::new(move || {
            let layer = fallback.layer("below").or_each([("other", down())]).clone_request(copy);
            layer.classify(OnlyPanics)
        })
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn refusals(&self) -> Vec<Refusal> {
        let by_hand = fallback(Settings::new());
        by_hand.put_aside("below", MINUTE);
        vec![Refusal {
            what: "it was put aside by hand",
            handle: Self::handle(by_hand, spare),
            warm_up: 0,
            then: Then::Resolve,
            request: Dress::any(),
            readiness: Readiness::AtOnce,
            lifts: Some(MINUTE),
        }]
    }

    fn sharings(&self) -> Vec<Sharing> {
        Targets.sharings()
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        vec![Panicking { what: "the function that copies", handle: self.open(), request: with("x-uncopied") }]
    }
}

/// Streams that commit.
#[derive(Debug)]
pub(super) struct Committing;

impl Committing {
    fn handle(within: Duration) -> Handle {
        Handle::new(move || {
            let commit = CommitLayer::new(FirstChunk).within(within);
            // Of the service below the kit knows only the head: in time its body is given something to wait for.
            let stalls = within < DAYS;
            layer_fn(move |inner: Wire| {
                let stalling =
                    move |response: Res| if stalls { response.map(|_| stalled()) } else { response };
                commit.clone().layer(inner.map_response(stalling))
            })
        })
    }
}

fn stalled() -> Body {
    Body::from_stream(futures_util::stream::pending::<Result<Vec<u8>, BoxError>>())
}

impl Subject for Committing {
    fn name(&self) -> String {
        "fallback-commit".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle(DAYS)
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn timings(&self) -> Vec<Timing> {
        vec![Timing {
            what: "a minute for a stream to begin",
            handle: Self::handle(MINUTE),
            warm_up: 0,
            then: Then::Resolve,
            request: Dress::any(),
            at: MINUTE,
        }]
    }

    fn impossible(&self) -> Vec<Impossible> {
        vec![
            Impossible::new("within no time", || CommitLayer::new(FirstChunk).within(Duration::ZERO)),
            Impossible::new("within no bytes", || CommitLayer::new(FirstChunk).max_start(0)),
        ]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        match law {
            "shared-state" | "served" => Some("it has no state"),
            "panics-poison-nothing" => Some("it has nothing that a panic could poison"),
            _ => None,
        }
    }
}
