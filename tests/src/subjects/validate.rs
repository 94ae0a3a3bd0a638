//! `bartizan-validate`, with rules for heads and with bodies that are guarded.

use bartizan_validate::{Level, Pattern, Rules, Validator, Window, must};

use crate::{
    Subject,
    controlled::Then,
    subject::{Dress, Impossible, Panicking, Readiness, Refusal},
    wire::{Handle, Req, Res},
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
