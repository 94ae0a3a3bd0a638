//! `bartizan-validate`, with rules for heads and with bodies that are guarded.

use std::time::Duration;

use axum::body::Body;
use bartizan_core::BoxError;
use bartizan_validate::{
    GatherLayer, Gathered, Inquiry, Level, Pattern, Rules, Severity, Validator, Window, must, text,
};
use http::Request;
use tower::{Layer, ServiceExt, layer::layer_fn, service_fn};

use crate::{
    Subject,
    controlled::Then,
    subject::{Dress, Impossible, Panicking, Readiness, Refusal, Timing},
    wire::{Handle, Req, Res, Wire},
};

fn with(name: &'static str) -> Dress {
    Dress::new(move |_, mut request| {
        request.headers_mut().insert(name, http::HeaderValue::from_static("1"));
        request
    })
}

/// Rules for requests. One of them has a bug.
fn rules() -> Rules<Req> {
    Rules::new()
        .warn(
            "unusual",
            must("nothing unusual", |request: &Req| !request.headers().contains_key("x-unusual")),
        )
        .error("bad", must("nothing bad", |request: &Req| !request.headers().contains_key("x-bad")))
        .safety(
            "bug",
            must("no bug", |request: &Req| {
                assert!(!request.headers().contains_key("x-rule-panics"), "the rule panics");
                true
            }),
        )
}

fn impossible() -> Vec<Impossible> {
    vec![
        Impossible::new("a rule without a name", || Rules::<Req>::new().warn("", must("it", |_: &Req| true))),
        Impossible::new("reports of nothing", || Rules::<Req>::new().max_violations(0)),
        Impossible::new("windows of nothing", || Window::new(0)),
        Impossible::new("JSON of no depth", || bartizan_validate::Json::new().max_depth(0)),
        Impossible::new("JSON too deep to read", || bartizan_validate::Json::new().max_depth(128)),
        Impossible::new("a pointer that is none", || {
            bartizan_validate::at("a", Pattern::deny("x").expect("it is a pattern"))
        }),
    ]
}

fn exempt(law: &str) -> Option<&'static str> {
    match law {
        "shared-state" | "served" => Some("no call changes what another one meets: it only counts"),
        "paused-time" => Some("no call waits for a time, only bodies do: its own tests show that"),
        _ => None,
    }
}

fn refusal(what: &'static str, handle: Handle, header: &'static str) -> Refusal {
    Refusal {
        what,
        handle,
        warm_up: 0,
        then: Then::Resolve,
        request: with(header),
        readiness: Readiness::PassThrough,
        lifts: None,
    }
}

/// Requests and answers that are looked at as they stand.
#[derive(Debug)]
pub(super) struct Heads;

impl Heads {
    fn handle(level: Level) -> Handle {
        let answers =
            Rules::new().error("ours", must("ours", |answer: &Res| !answer.headers().contains_key("x-bad")));
        let validator = Validator::new(rules()).answers(answers);
        Handle::new(move || validator.layer(level))
    }
}

impl Subject for Heads {
    fn name(&self) -> String {
        "validate".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle(Level::Strict)
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![
            refusal("an error", Self::handle(Level::Moderate), "x-bad"),
            refusal("a warning", Self::handle(Level::Strict), "x-unusual"),
            refusal("a rule that panics", Self::handle(Level::Moderate), "x-rule-panics"),
        ]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let panicking =
            |what, level| Panicking { what, handle: Self::handle(level), request: with("x-rule-panics") };
        let told = Validator::new(rules().on_report(|_, _| panic!("the report is told to a bug")));
        let told = Handle::new(move || told.layer(Level::Lenient));
        vec![
            panicking("a rule that refuses then", Level::Strict),
            panicking("a rule that is reported then", Level::Lenient),
            Panicking { what: "who is told of reports", handle: told, request: with("x-bad") },
        ]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        exempt(law)
    }
}

/// Bodies that are read, or pass through windows.
#[derive(Debug)]
pub(super) struct Guarding;

impl Guarding {
    fn handle() -> Handle {
        let deny = || Rules::new().error("deny", Pattern::deny("SECRET").expect("it is a pattern"));
        let validator =
            Validator::http(rules()).window(Window::default(), deny()).events(Window::default(), deny());
        Handle::new(move || validator.layer(Level::Moderate))
    }
}

impl Subject for Guarding {
    fn name(&self) -> String {
        "validate-bodies".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle()
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn refusals(&self) -> Vec<Refusal> {
        vec![refusal("an error", Self::handle(), "x-bad")]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        vec![Panicking { what: "a rule", handle: Self::handle(), request: with("x-rule-panics") }]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        exempt(law)
    }
}

/// Rules that are services: calls wait for what they say.
#[derive(Debug)]
pub(super) struct Asking;

impl Asking {
    /// A service that says no, hangs or panics as headers say.
    fn handle(level: Level) -> Handle {
        let service = service_fn(|(bad, hangs, panics): (bool, bool, bool)| async move {
            assert!(!panics, "the service panics");
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok::<_, BoxError>(bad)
        });
        let question = |request: &Req| {
            let has = |name: &str| request.headers().contains_key(name);
            assert!(!has("x-question-panics"), "the question panics");
            (!has("x-nothing-to-ask"))
                .then(|| (has("x-bad-says-it"), has("x-hangs"), has("x-service-panics")))
        };
        let inquiry = Inquiry::new(question, service, must("nothing bad", |bad: &bool| !bad));
        let inquiry = inquiry.within(Duration::from_secs(20));
        let validator = Validator::new(rules().inquire("service", Severity::Error, inquiry));
        Handle::new(move || validator.layer(level))
    }
}

impl Subject for Asking {
    fn name(&self) -> String {
        "validate-asking".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle(Level::Strict)
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, level, header| Refusal {
            readiness: Readiness::AtOnce,
            ..refusal(what, Self::handle(level), header)
        };
        vec![
            refusal("a service that says no", Level::Moderate, "x-bad-says-it"),
            refusal("an error", Level::Moderate, "x-bad"),
            refusal("a service that panics", Level::Strict, "x-service-panics"),
        ]
    }

    fn timings(&self) -> Vec<Timing> {
        vec![Timing {
            what: "a service that does not answer",
            handle: Self::handle(Level::Strict),
            warm_up: 0,
            then: Then::Resolve,
            request: with("x-hangs"),
            at: Duration::from_secs(20),
        }]
    }

    fn impossible(&self) -> Vec<Impossible> {
        let inquiry = || {
            Inquiry::new(
                |_: &Req| Some(()),
                service_fn(|()| std::future::ready(Ok::<_, BoxError>(()))),
                must("it", |(): &()| true),
            )
        };
        vec![Impossible::new("a service without a name", move || {
            Rules::new().inquire("", Severity::Warn, inquiry())
        })]
    }

    fn panicking(&self) -> Vec<Panicking> {
        let panicking =
            |what, header| Panicking { what, handle: Self::handle(Level::Lenient), request: with(header) };
        vec![
            panicking("the service", "x-service-panics"),
            panicking("what makes the question", "x-question-panics"),
            panicking("a rule that says at once", "x-rule-panics"),
        ]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        match law {
            "shared-state" | "served" => Some("no call changes what another one meets: it only counts"),
            _ => None,
        }
    }
}

/// Bodies that are read before rules look at them.
#[derive(Debug)]
pub(super) struct Gathering;

impl Gathering {
    fn handle() -> Handle {
        let deny = Pattern::deny("SECRET").expect("it is a pattern");
        let validator = Validator::http(Rules::new().error("deny", text(deny)));
        Handle::new(move || {
            let layer = validator.layer(Level::Moderate);
            layer_fn(move |inner: Wire| {
                let inner = inner.map_request(|request: Request<Gathered>| request.map(Body::new));
                GatherLayer::new(64).layer(layer.layer(inner))
            })
        })
    }
}

impl Subject for Gathering {
    fn name(&self) -> String {
        "validate-gathering".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle()
    }

    fn readiness(&self) -> Readiness {
        Readiness::AtOnce
    }

    fn refusals(&self) -> Vec<Refusal> {
        let with_body = |body: fn() -> Body| Dress::new(move |_, request| request.map(|_| body()));
        let refusal = |what, body: fn() -> Body| Refusal {
            request: with_body(body),
            readiness: Readiness::AtOnce,
            ..refusal(what, Self::handle(), "x")
        };
        vec![
            refusal("a rule", || Body::from("a SECRET")),
            refusal("a body that is too long", || Body::from(vec![b'x'; 65])),
            refusal("a body that breaks off", || {
                let frames = ["a", "b"].map(|data| if data == "a" { Ok(data) } else { Err("it breaks off") });
                Body::from_stream(futures_util::stream::iter(frames))
            }),
        ]
    }

    fn impossible(&self) -> Vec<Impossible> {
        impossible()
    }

    fn panicking(&self) -> Vec<Panicking> {
        let body =
            || Body::new(http_body_util::BodyExt::map_frame(Body::from("x"), |_| panic!("the body panics")));
        let request = Dress::new(move |_, request| request.map(|_| body()));
        vec![Panicking { what: "what the body is made of", handle: Self::handle(), request }]
    }

    fn exempt(&self, law: &str) -> Option<&'static str> {
        exempt(law)
    }
}
