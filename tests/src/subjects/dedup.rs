//! `bartizan-dedup`, with values under keys and with bodies that are shared.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::BoxError;
use bartizan_dedup::{Dedup, Frames, Identity, Recording, Replay};
use tower::{Layer, ServiceExt, service_fn};

use crate::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing},
    wire::{Handle, Req},
};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "x-dedup-key";
const PAYLOAD: &str = "x-dedup-payload";

type Bodies = Dedup<String, Recording, Frames>;

/// What a request is known by. The user's function has a bug.
fn key(request: &Req) -> Option<Identity<String>> {
    assert!(!request.headers().contains_key("x-panic"), "the key function panics");
    let header = |name| Some(request.headers().get(name)?.to_str().expect("tests write ASCII"));
    let identity = Identity::new(header(KEY)?.to_owned());
    Some(match header(PAYLOAD) {
        Some(payload) => identity.fingerprint([payload.as_bytes()[0]; 32]),
        None => identity,
    })
}

fn handle(dedup: Bodies) -> Handle {
    Handle::new(move || dedup.layer(key))
}

fn known_as(key: &'static str) -> Dress {
    Dress::new(move |_, mut request| {
        request.headers_mut().insert(KEY, http::HeaderValue::from_static(key));
        request
    })
}

fn numbered(n: usize, mut request: Req) -> Req {
    request.headers_mut().insert(KEY, n.into());
    request
}

fn kept() -> Bodies {
    Dedup::http(Replay::ttl(MINUTE).max_entries(64))
}

/// A handle to which a call was made already, for an answer that is kept.
fn warm(dedup: &Bodies, request: Req) {
    let answers =
        service_fn(async |_: Req| Ok::<_, BoxError>(http::Response::new(axum::body::Body::empty())));
    let answer = dedup.layer(key).layer(answers).oneshot(request);
    futures_util::FutureExt::now_or_never(answer).expect("it answers at once").expect("and well");
}

fn impossible() -> Vec<Impossible> {
    let build = |what, replay: fn() -> Replay<Recording>| {
        Impossible::new(what, move || Dedup::<u8, Recording, Frames>::http(replay()))
    };
    vec![
        build("kept for no time", || Replay::ttl(Duration::ZERO)),
        build("errors kept for no time", || Replay::ttl(MINUTE).negative_ttl(Duration::ZERO)),
        build("stale where nothing is kept", || Replay::none().stale_if_error(MINUTE)),
        build("revalidated where nothing is kept", || Replay::none().stale_while_revalidate(MINUTE)),
        build("no entries", || Replay::ttl(MINUTE).max_entries(0)),
        build("no bytes", || Replay::ttl(MINUTE).max_bytes(0)),
    ]
}

fn panicking(what: &'static str, handle: Handle) -> Panicking {
    let request = Dress::new(|n, request| {
        let mut request = numbered(n, request);
        request.headers_mut().insert("x-panic", http::HeaderValue::from_static("1"));
        request
    });
    Panicking { what, handle, request }
}

/// Calls that are known by a key, and whose answers are kept.
#[derive(Debug)]
pub(super) struct Keeping;

impl Subject for Keeping {
    fn name(&self) -> String {
        "dedup".to_owned()
    }

    fn open(&self) -> Handle {
        handle(kept())
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn dress(&self, n: usize, request: Req) -> Req {
        numbered(n, request)
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, handle, warm_up, request, lifts| Refusal {
            what,
            handle,
            warm_up,
            then: Then::Resolve,
            request,
            readiness: Readiness::AtOnce,
            lifts,
        };
        let stale = kept();
        warm(&stale, known_as("a").request(0));
        let payload = |n: usize, request: Req| {
            let mut request = known_as("a").dress(n, request);
            let payload = if n == 0 { "x" } else { "y" };
            request.headers_mut().insert(PAYLOAD, http::HeaderValue::from_static(payload));
            request
        };
        let errors = Dedup::http(Replay::ttl(MINUTE).negative_ttl(MINUTE));
        let failed = Refusal {
            then: Then::Fail,
            ..refusal("an error that is kept", handle(errors), 1, known_as("a"), Some(MINUTE))
        };
        vec![
            refusal("a hit", handle(kept()), 1, known_as("a"), Some(MINUTE)),
            refusal("a hit from another layer", handle(stale), 0, known_as("a"), Some(MINUTE)),
            refusal("another payload", handle(kept()), 1, Dress::new(payload), None),
            failed,
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        let sharing = |what, then| Sharing {
            what,
            handle: handle(kept()),
            across: Across::Handle,
            then,
            request: known_as("a"),
            reach: 1,
        };
        vec![sharing("answers that are kept", Then::Resolve)]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let judge = Arc::new(AtomicUsize::new(0));
        let replay = Replay::ttl(MINUTE).cache_when(move |_: &Recording| {
            assert!(judge.fetch_add(1, Relaxed) >= 3, "the predicate panics");
            true
        });
        let judged = handle(Dedup::http(replay));
        vec![
            panicking("the key function", handle(kept())),
            Panicking { what: "the predicate", handle: judged, request: Dress::new(numbered) },
        ]
    }
}

/// Nothing is kept.
#[derive(Debug)]
pub(super) struct Joining;

impl Subject for Joining {
    fn name(&self) -> String {
        "dedup-single-flight".to_owned()
    }

    fn open(&self) -> Handle {
        handle(Dedup::http(Replay::none()))
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn dress(&self, n: usize, request: Req) -> Req {
        numbered(n, request)
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        vec![panicking("the key function", handle(Dedup::http(Replay::none())))]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        // Its own tests show how calls join; `dedup` shares the same state and shows these laws.
        ["refusal-gives-back", "shared-state", "served", "paused-time"]
            .contains(&law)
            .then_some("it remembers nothing, and shares only what is under way")
    }
}
