//! `bartizan-rate-limit`, in each of its modes.

use std::time::Duration;

use bartizan_rate_limit::{Limit, OnStoreError, Quota, RateLimitLayer, RateLimiter, Window};

use crate::{
    Subject,
    controlled::Then,
    store::Remote,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing, Timing},
    wire::{Handle, Req},
};

const MINUTE: Duration = Duration::from_secs(60);
const KEY: &str = "x-key";

/// The key of a request. The user's function has a bug.
fn key(request: &Req) -> Option<&str> {
    assert!(!request.headers().contains_key("x-panic"), "the key function panics");
    request.headers().get(KEY)?.to_str().ok()
}

/// What a request costs. The user's function has a bug.
fn cost(request: &Req) -> u64 {
    let Some(cost) = request.headers().get("x-cost") else { return 1 };
    cost.to_str().ok().and_then(|cost| cost.parse().ok()).expect("the cost is a number")
}

fn with(name: &'static str, value: &'static str) -> Dress {
    Dress::new(move |_, mut request| {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
        request
    })
}

fn impossible() -> Vec<Impossible> {
    vec![
        Impossible::new("no calls a minute", || Quota::per_minute(0)),
        Impossible::new("a burst of none", || Quota::per_minute(1).burst(0)),
        Impossible::new("one every no time", || Quota::one_every(Duration::ZERO)),
        Impossible::new("one every thousand years", || Quota::one_every(MINUTE * 60 * 24 * 365_250)),
        Impossible::new("a window for no calls", || Window::fixed(0, MINUTE)),
        Impossible::new("a window of no time", || Window::sliding(1, Duration::ZERO)),
        Impossible::new("nine limits at once", || {
            let limiter = RateLimiter::new(Quota::per_minute(1));
            RateLimitLayer::all_of((0..9).map(|_| limiter.rule()).collect())
        }),
        Impossible::new("no keys", || Limit::from(Quota::per_minute(1)).max_keys(0)),
    ]
}

/// A keyed limiter that knows few keys.
fn keyed(quota: impl Into<Limit>) -> RateLimiter<String> {
    RateLimiter::keyed(quota.into().max_keys(256))
}

/// The rejecting mode.
#[derive(Debug)]
pub(super) struct Rejecting;

impl Rejecting {
    fn unkeyed(limit: impl Into<Limit>) -> Handle {
        let limiter = RateLimiter::new(limit);
        Handle::new(move || limiter.layer())
    }

    fn by_key(limit: impl Into<Limit>) -> Handle {
        let limiter = keyed(limit);
        Handle::new(move || RateLimitLayer::new(limiter.rule().by_ref(key).cost(cost)))
    }

    fn both(all: u64, each: u64) -> Handle {
        let all = RateLimiter::new(Limit::new("all", Quota::per_minute(all)));
        let each = keyed(Limit::new("each", Quota::per_minute(each)));
        Handle::new(move || {
            let each = each.rule().by(|request: &Req| key(request).map(ToOwned::to_owned)).cost(cost);
            RateLimitLayer::all((each, all.rule()))
        })
    }
}

impl Subject for Rejecting {
    fn name(&self) -> String {
        "rate-limit".to_owned()
    }

    fn open(&self) -> Handle {
        Self::both(1 << 40, 1 << 40)
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn dress(&self, n: usize, mut request: Req) -> Req {
        request.headers_mut().insert(KEY, (n % 64).into());
        request
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, handle, warm_up, request, lifts| {
            let (then, readiness) = (Then::Resolve, Readiness::PassThrough);
            Refusal { what, handle, warm_up, then, request, readiness, lifts }
        };
        let two = Quota::per_minute(2);
        let half = Some(MINUTE / 2);
        vec![
            refusal("2 a minute", Self::unkeyed(two), 2, Dress::any(), half),
            refusal("2 a minute for a key", Self::by_key(two), 2, with(KEY, "anna"), half),
            refusal("2 a minute for all", Self::both(2, 9), 2, with(KEY, "anna"), half),
            refusal("2 a minute for each", Self::both(9, 2), 2, with(KEY, "anna"), half),
            refusal("2 in a minute", Self::unkeyed(Window::fixed(2, MINUTE)), 2, Dress::any(), Some(MINUTE)),
            refusal(
                "2 in any minute",
                Self::by_key(Window::sliding(2, MINUTE)),
                2,
                with(KEY, "anna"),
                Some(MINUTE + MINUTE / 2),
            ),
            refusal("costs too much for ever", Self::by_key(two), 0, costly("3"), None),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        let sharing = |what, handle| Sharing {
            what,
            handle,
            across: Across::Handle,
            then: Then::Resolve,
            request: with(KEY, "anna"),
            reach: 3,
        };
        let three = Quota::per_minute(3);
        vec![
            sharing("3 a minute", Self::unkeyed(three)),
            sharing("3 a minute for a key", Self::by_key(three)),
            sharing("3 a minute for all", Self::both(3, 9)),
            sharing("3 in a minute", Self::by_key(Window::fixed(3, MINUTE))),
        ]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let panicking = |what, handle, request| Panicking { what, handle, request };
        let quota = Quota::per_minute(100);
        vec![
            panicking("the key function", Self::by_key(quota), with("x-panic", "1")),
            panicking("the key function of several limits", Self::both(100, 100), with("x-panic", "1")),
            panicking("the cost function", Self::by_key(quota), costly("nothing")),
            panicking("the cost function of several limits", Self::both(100, 100), costly("nothing")),
        ]
    }
}

/// The queueing mode.
#[derive(Debug)]
pub(super) struct Queueing;

impl Queueing {
    fn unkeyed(limit: impl Into<Limit>, max_queue: usize, max_wait: Duration) -> Handle {
        let limiter = RateLimiter::new(limit);
        Handle::new(move || limiter.layer().queue(max_queue, max_wait))
    }

    fn by_key(limit: impl Into<Limit>, max_queue: usize, max_wait: Duration) -> Handle {
        let limiter = keyed(limit);
        Handle::new(move || {
            RateLimitLayer::new(limiter.rule().by_ref(key).cost(cost)).queue(max_queue, max_wait)
        })
    }

    fn both(all: Quota, each: Quota, max_queue: usize, max_wait: Duration) -> Handle {
        let (all, each) = (RateLimiter::new(Limit::new("all", all)), keyed(Limit::new("each", each)));
        Handle::new(move || {
            let rules = (each.rule().by_ref(key).cost(cost), all.rule());
            RateLimitLayer::all(rules).queue(max_queue, max_wait)
        })
    }
}

impl Subject for Queueing {
    fn name(&self) -> String {
        "rate-limit-queue".to_owned()
    }

    fn open(&self) -> Handle {
        let open = Quota::per_minute(1 << 40);
        Self::both(open, open, 16, MINUTE)
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn dress(&self, n: usize, request: Req) -> Req {
        Rejecting.dress(n, request)
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, handle, warm_up, request, lifts| {
            let (then, readiness) = (Then::Resolve, Readiness::AtOnce);
            Refusal { what, handle, warm_up, then, request, readiness, lifts }
        };
        let (two, half) = (Quota::per_minute(2), Some(MINUTE / 2));
        vec![
            refusal("no place to wait", Self::unkeyed(two, 0, MINUTE), 2, Dress::any(), half),
            refusal("no time to wait", Self::unkeyed(two, 9, Duration::ZERO), 2, Dress::any(), half),
            refusal(
                "no time to wait for a key",
                Self::by_key(two, 9, MINUTE / 3),
                2,
                with(KEY, "anna"),
                None,
            ),
            refusal("costs too much for ever", Self::by_key(two, 9, MINUTE), 0, costly("3"), None),
            refusal(
                "no place to wait for one of two",
                Self::both(two.burst(9), two, 0, MINUTE),
                2,
                with(KEY, "anna"),
                half,
            ),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        let sharing = |what, handle, then| Sharing {
            what,
            handle,
            across: Across::Handle,
            then,
            request: with(KEY, "anna"),
            reach: 3,
        };
        let three = Quota::per_minute(3);
        vec![
            sharing("3 a minute", Self::unkeyed(three, 9, MINUTE), Then::Resolve),
            sharing("3 a minute for a key", Self::by_key(three, 9, MINUTE), Then::Resolve),
            sharing("3 a minute for all", Self::both(three, three.burst(9), 9, MINUTE), Then::Resolve),
        ]
    }

    fn timings(&self) -> Vec<Timing> {
        let timing = |what, handle, warm_up, at| Timing {
            what,
            handle,
            warm_up,
            then: Then::Resolve,
            request: with(KEY, "anna"),
            at,
        };
        let once = Quota::one_every(MINUTE);
        vec![
            timing("the second call waits a minute", Self::unkeyed(once, 9, MINUTE), 1, MINUTE),
            timing("the third one does for its key", Self::by_key(once.burst(2), 9, MINUTE), 2, MINUTE),
            timing("it waits for the slower one", Self::both(once, once.burst(2), 9, MINUTE), 1, MINUTE),
            timing("it waits for its key", Self::both(once.burst(9), once, 9, MINUTE), 1, MINUTE),
            timing("a window begins", Self::unkeyed(Window::fixed(1, MINUTE), 9, MINUTE), 1, MINUTE),
        ]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let panicking = |what, request| Panicking { what, handle: self.open(), request };
        vec![
            panicking("the key function", with("x-panic", "1")),
            panicking("the cost function", costly("nothing")),
        ]
    }
}

/// The mode that is not ready before there is a permit.
#[derive(Debug)]
pub(super) struct Waiting;

impl Waiting {
    fn of(limit: impl Into<Limit>) -> Handle {
        let limiter = RateLimiter::new(limit);
        Handle::new(move || RateLimitLayer::new(limiter.rule().cost(cost)).backpressure())
    }
}

impl Subject for Waiting {
    fn name(&self) -> String {
        "rate-limit-backpressure".to_owned()
    }

    fn open(&self) -> Handle {
        Self::of(Quota::per_minute(1 << 40))
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![Refusal {
            what: "costs too much for ever",
            handle: Self::of(Quota::per_minute(2)),
            warm_up: 0,
            then: Then::Resolve,
            request: costly("3"),
            readiness: Readiness::PassThrough,
            lifts: None,
        }]
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![Sharing {
            what: "3 a minute",
            handle: Self::of(Quota::per_minute(3)),
            across: Across::Handle,
            then: Then::Resolve,
            request: Dress::any(),
            reach: 3,
        }]
    }

    fn timings(&self) -> Vec<Timing> {
        vec![Timing {
            what: "the second call waits a minute",
            handle: Self::of(Quota::one_every(MINUTE)),
            warm_up: 1,
            then: Then::Resolve,
            request: Dress::any(),
            at: MINUTE,
        }]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        vec![Panicking {
            what: "the cost function",
            handle: Self::of(Quota::per_minute(100)),
            request: costly("nothing"),
        }]
    }
}

/// Counted in a store. A law cannot know how long one takes, so it takes no time but where that is the law.
#[derive(Debug)]
pub(super) struct Storing;

impl Storing {
    fn both(all: Quota, each: Quota) -> Handle {
        Self::away(Duration::ZERO, all, each)
    }

    fn away(latency: Duration, all: Quota, each: Quota) -> Handle {
        let (all, each) = (RateLimiter::new(Limit::new("all", all)), keyed(Limit::new("each", each)));
        let store = Remote::new(latency);
        Handle::new(move || {
            let rules = (each.rule().by_ref(key).cost(cost), all.rule());
            RateLimitLayer::all(rules).store(store.clone(), MINUTE, OnStoreError::Deny)
        })
    }
}

impl Subject for Storing {
    fn name(&self) -> String {
        "rate-limit-store".to_owned()
    }

    fn open(&self) -> Handle {
        let open = Quota::per_minute(1 << 40);
        Self::both(open, open)
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn dress(&self, n: usize, request: Req) -> Req {
        Rejecting.dress(n, request)
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, handle, warm_up, request, lifts| {
            let (then, readiness) = (Then::Resolve, Readiness::AtOnce);
            Refusal { what, handle, warm_up, then, request, readiness, lifts }
        };
        let (two, nine) = (Quota::per_minute(2), Quota::per_minute(9));
        vec![
            refusal("2 a minute for all", Self::both(two, nine), 2, with(KEY, "anna"), Some(MINUTE / 2)),
            refusal("2 a minute for each", Self::both(nine, two), 2, with(KEY, "anna"), Some(MINUTE / 2)),
            refusal("costs too much for ever", Self::both(nine, two), 0, costly("3"), None),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![Sharing {
            what: "3 a minute for a key",
            handle: Self::both(Quota::per_minute(9), Quota::per_minute(3)),
            across: Across::Handle,
            then: Then::Resolve,
            request: with(KEY, "anna"),
            reach: 3,
        }]
    }

    fn timings(&self) -> Vec<Timing> {
        vec![Timing {
            what: "a call waits for the store",
            handle: Self::away(MINUTE / 6, Quota::per_minute(9), Quota::per_minute(9)),
            warm_up: 0,
            then: Then::Resolve,
            request: with(KEY, "anna"),
            at: MINUTE / 6,
        }]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let panicking = |what, request| Panicking { what, handle: self.open(), request };
        vec![
            panicking("the key function", with("x-panic", "1")),
            panicking("the cost function", costly("nothing")),
        ]
    }
}

/// Calls of one key that cost so much each.
fn costly(cost: &'static str) -> Dress {
    let cost = with("x-cost", cost);
    Dress::new(move |n, request| with(KEY, "anna").dress(n, cost.dress(n, request)))
}
