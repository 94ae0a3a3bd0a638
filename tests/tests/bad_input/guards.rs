//! Requests and answers that break rules: who is refused, who passes, and what nobody gets to see of it.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use axum::{Router, routing::post};
use bartizan_provider::mock::{Mock, Script};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::Notify};

use crate::{
    gateway_under_test::{Gateway, UPSTREAM_KEY, mock, model, soon, within},
    wire::{Answer, CHAT, exchange, send, with_length},
};

const ADMIN: &str = "adm-7Wq2kZ";
const CARD: &str = "4111 1111 1111 1111";

struct Front {
    gateway: Gateway,
    mock: Mock,
    address: SocketAddr,
}

impl Front {
    /// A gateway with these sections, in front of models of one upstream.
    async fn start(models: &[(&str, &str)], rest: &str) -> Self {
        let (mock, upstream) = mock().await;
        let mut sections: Vec<_> = models.iter().map(|(name, more)| model(name, upstream, more)).collect();
        sections.push(format!("{rest}\n"));
        let gateway = Gateway::start(&format!("admin_token = \"{ADMIN}\""), &sections).await;
        Self { address: gateway.address, gateway, mock }
    }

    async fn ask(&self, body: &Value) -> Answer {
        self.post("", body.to_string()).await
    }

    async fn post(&self, headers: &str, body: impl AsRef<[u8]>) -> Answer {
        exchange(self.address, &with_length(&format!("{CHAT}{headers}"), body)).await
    }

    async fn get(&self, path: &str) -> String {
        let head = format!(
            "GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nauthorization: Bearer {ADMIN}\r\n\r\n"
        );
        exchange(self.address, head.as_bytes()).await.body
    }

    /// What `/health` tells of a model, or a rule.
    async fn told(&self, layer: &str, name: &str) -> Value {
        let all: Value = serde_json::from_str(&self.get("/health").await).unwrap();
        let all = all["layers"][layer].as_array().unwrap().clone();
        all.into_iter().find(|each| each["name"] == name).unwrap_or_else(|| panic!("no {name}"))
    }

    /// How much a tenant has left of a limit.
    async fn left(&self, limit: &str) -> i64 {
        let all: Value = serde_json::from_str(&self.get("/admin/limits?tenant=t").await).unwrap();
        let found = all["limits"].as_array().unwrap().iter().find(|each| each["name"] == limit).unwrap();
        found["tenant"]["available"].as_i64().unwrap()
    }

    async fn stop(self) {
        self.gateway.stop().await;
    }
}

fn rule(name: &str, side: &str, more: &str) -> String {
    format!("[[rule]]\nname = \"{name}\"\nside = \"{side}\"\n{more}\n")
}

fn says(model: &str, text: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": text}]})
}

fn streamed(mut body: Value) -> Value {
    body["stream"] = json!(true);
    body
}

/// A file that no other test uses, and its name as it stands in a configuration.
fn file(name: &str, text: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("guards-{name}"));
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

const REFUSED: &str = "invalid_request_error";
const POLICY: Option<&str> = Some("content_policy_violation");
const FORM: Option<&str> = Some("validation_failed");

/// Pitfall 47: plain or streamed makes no difference to who is refused.
#[tokio::test]
async fn levels_and_severities() {
    let rules = [("warn", "w0rd"), ("error", "err0r"), ("safety", "safety0")].map(|(severity, term)| {
        rule(severity, "request", &format!("severity = \"{severity}\"\nterms = [\"{term}\"]"))
    });
    let models = [
        ("strict", "validation_level = \"strict\""),
        ("moderate", ""),
        ("lenient", "validation_level = \"lenient\""),
        ("reports", "validation_level = \"strict\"\nvalidation_action = \"report\""),
        ("off", "validation = false"),
    ];
    let front = Front::start(&models, &rules.concat()).await;
    let mut calls = 0;
    for (model, refuses) in [
        ("strict", [true, true, true]),
        ("moderate", [false, true, true]),
        ("lenient", [false, false, true]),
        ("reports", [false, false, false]),
        ("off", [false, false, false]),
    ] {
        for ((severity, term), refused) in
            [("warn", "w0rd"), ("error", "err0r"), ("safety", "safety0")].into_iter().zip(refuses)
        {
            let body = says(model, &format!("tell me of {term}"));
            for body in [body.clone(), streamed(body)] {
                let answer = front.ask(&body).await;
                if refused {
                    let words = format!("rule \"{severity}\" at /messages/0/content: a term");
                    answer.assert_error(422, REFUSED, POLICY, &words);
                    assert!(answer.body.contains(r#""param":"messages[0].content""#), "{answer:?}");
                    assert_eq!(answer.header("x-should-retry"), Some("false"), "{answer:?}");
                } else {
                    calls += 1;
                    assert_eq!(answer.status, 200, "{answer:?}");
                    let told = format!("\"{severity}\";at=\"/messages/0/content\";is={severity}");
                    let told = (model != "off").then_some(told.as_str());
                    assert_eq!(answer.header("x-bartizan-validation"), told, "{model}");
                }
                // A refused request is sent to nobody.
                assert_eq!(front.mock.calls(), calls, "{model} {severity}");
            }
        }
    }
    // Of two that are broken only one refuses, and only that one is said to.
    front.ask(&says("moderate", "w0rd and err0r")).await.assert_error(422, REFUSED, POLICY, "rule \"warn\"");
    let warn = front.told("validation_rules", "warn").await;
    assert_eq!((&warn["refused_requests"], &warn["reported_requests"]), (&json!(2), &json!(7)));
    let moderate = front.told("validation", "moderate").await;
    let expected = json!({
        "name": "moderate", "checked_requests": 7, "refused_requests": 5, "reported_requests": 2,
        "checked_answers": 2, "refused_answers": 0, "reported_answers": 0,
    });
    assert_eq!(moderate, expected);
    let rule = front.told("validation_rules", "error").await;
    assert_eq!((&rule["refused_requests"], &rule["reported_requests"]), (&json!(5), &json!(4)));
    let metrics = front.get("/metrics").await;
    let line = "gateway_validation_rule_refused_requests_total{rule=\"error\"} 5";
    assert!(metrics.lines().any(|it| it == line), "{metrics}");
    assert!(!metrics.contains("gateway_validation_checked_requests_total{model=\"off\"}"), "{metrics}");
    front.stop().await;
}

/// Switched off by one line, whatever else stands there.
#[tokio::test]
async fn all_of_it_is_off() {
    let rest = format!("[validation]\nenabled = false\n{}", rule("cards", "both", "pii = [\"cards\"]"));
    let front = Front::start(&[("chat", ""), ("own", "validation = true")], &rest).await;
    let answer = front.ask(&says("chat", CARD)).await;
    assert_eq!((answer.status, answer.header("x-bartizan-validation")), (200, None), "{answer:?}");
    assert_eq!(front.ask(&says("own", CARD)).await.status, 422);
    front.stop().await;
}

#[tokio::test]
async fn every_violation_with_its_rule_and_place() {
    let schema = file(
        "every.json",
        r#"{"required": ["user"], "properties": {"n": {"maximum": 1}, "metadata": {"properties": {"known": {"type": "string"}}}}}"#,
    );
    let rest = [
        rule("form", "request", &format!("schema = '{schema}'")),
        rule("short", "request", "max_bytes = 200"),
        rule("cards", "request", "pii = [\"cards\", \"secrets\"]"),
        rule("numbered", "request", "require = '^\\d+: '\nat = \"/messages/*/content\""),
        rule("inside", "request", "terms = [\"night\"]\ninside_words = true"),
    ];
    let front = Front::start(&[("chat", "")], &rest.concat()).await;

    let mut body = says("chat", &format!("nightfall {CARD}"));
    body["n"] = json!(5);
    body["metadata"] = json!({"known": 7, CARD: "x", "x": "y".repeat(100)});
    let answer = front.ask(&body).await;
    // The form goes before the policy: who mends it is told of that in turn.
    answer.assert_error(400, REFUSED, FORM, "rule \"short\": the body is longer than 200 bytes");
    for words in [
        "; rule \\\"form\\\": \\\"user\\\" is a required property",
        "; rule \\\"form\\\" at /n: the value is greater than the maximum of 1",
        "; rule \\\"form\\\" at /metadata/known: ",
        "; rule \\\"cards\\\" at /messages/0/content: the number of a payment card",
        // Names that nobody knows may be anything.
        "; rule \\\"cards\\\" at /metadata/*: the number of a payment card",
        "; rule \\\"numbered\\\" at /messages/0/content: a pattern that must be there is not there",
        "; rule \\\"inside\\\" at /messages/0/content: a term that must not be there is there",
    ] {
        assert!(answer.body.contains(words), "no {words:?} in {}", answer.body);
    }
    assert!(!answer.body.contains("4111") && !answer.body.contains("nightfall"), "{}", answer.body);
    assert_eq!(front.mock.calls(), 0);

    let mut good = says("chat", "1: hello");
    good["user"] = json!("u");
    assert_eq!(front.ask(&good).await.status, 200);
    front.stop().await;
}

/// There are more than a person reads, and than a head can hold.
#[tokio::test]
async fn many_violations_are_counted() {
    let rest = rule("cards", "request", "pii = [\"cards\"]");
    let models = [("chat", ""), ("reports", "validation_action = \"report\"")];
    let front = Front::start(&models, &rest).await;
    let messages = vec![json!({"role": "user", "content": CARD}); 500];
    let answer = front.ask(&json!({"model": "chat", "messages": messages})).await;
    answer.assert_error(
        422,
        REFUSED,
        POLICY,
        "at /messages/15/content: the number of a payment card; and 484 more",
    );
    let answer = front.ask(&json!({"model": "reports", "messages": messages})).await;
    assert!(answer.header("x-bartizan-validation").unwrap().ends_with(";is=error, more;n=484"), "{answer:?}");
    front.stop().await;
}

#[tokio::test]
async fn bodies_that_cannot_be_checked() {
    let rest =
        ["[validation]\nmax_json_depth = 8\n", &rule("cards", "request", "pii = [\"cards\"]")].concat();
    // Not even one that only reports lets pass what it cannot read.
    let models = [
        ("chat", ""),
        ("reports", "validation_action = \"report\""),
        ("lenient", "validation_level = \"lenient\""),
    ];
    let front = Front::start(&models, &rest).await;
    for model in ["chat", "reports", "lenient"] {
        let with = |more: &str| {
            format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}]{more}}}"#)
        };
        let deep = format!(r#","metadata":{}1{}"#, "[".repeat(8), "]".repeat(8));
        let answer = front.post("", with(&deep)).await;
        answer.assert_error(400, REFUSED, FORM, "rule \"json\"");
        for (more, at) in [
            (r#","messages":[]"#, "/messages: "),
            (r#","m\u0065ssages":[]"#, "/messages: "),
            (r#","metadata":{"a":{"user":1,"user":2}}"#, "/metadata/*/user: "),
            (r#","metadata":{"4111 1111 1111 1111":1,"4111 1111 1111 1111":2}"#, "/metadata/*: "),
        ] {
            let words = format!("rule \"json\" at {at}two members of an object have one name");
            let answer = front.post("", with(more)).await;
            answer.assert_error(400, REFUSED, FORM, &words);
            assert!(!answer.body.contains("4111"), "{answer:?}");
        }
        let coded = front.post("content-encoding: identity\r\n", with("")).await;
        assert!([200, 400].contains(&coded.status), "{coded:?}");
        let coded = front.post("content-encoding: gzip\r\n", with("")).await;
        coded.assert_error(400, REFUSED, FORM, "content coding");
        // These are refused before, by whoever reads the body.
        for body in
            [&b"[]"[..], b"{\"model\":\"chat\"", b"", b"{\"model\":\"chat\",\"messages\":\"\xff\"}", b"7"]
        {
            front.post("", body).await.assert_error(400, REFUSED, None, "the body is");
        }
    }
    let deep = format!(r#"{{"model":"chat","messages":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    front.post("", deep).await.assert_error(400, REFUSED, None, "not valid JSON");
    assert_eq!(front.told("validation_rules", "json").await["refused_requests"], json!(18));
    front.stop().await;
}

/// What a rule finds in an answer that is whole is not sent, and what the answer has cost is charged.
#[tokio::test]
async fn answers_that_break_rules() {
    let schema = file("answers.json", r#"{"properties": {"choices": {"maxItems": 1}}}"#);
    let rest = [
        rule("codenames", "answer", "severity = \"safety\"\nterms = [\"nightfall\"]"),
        rule("mail", "answer", "severity = \"warn\"\npii = [\"emails\"]"),
        rule("form", "answer", &format!("schema = '{schema}'")),
        "[rate_limits]\ntokens_per_day = 100_000\nrequests_per_day = 100\n".to_owned(),
        "[validation]\nmax_answer_bytes = 2000\n".to_owned(),
    ];
    let models = [("chat", ""), ("reports", "validation_action = \"report\"")];
    let front = Front::start(&models, &rest.concat()).await;
    let body = says("chat", "hello");
    let ask = |script: Script| {
        front.mock.script(script);
        front.post("x-tenant-id: t\r\n", body.to_string())
    };
    const KIND: &str = "api_error";

    let refused = ask(Script::new().text("about NightFall").usage(700, 300)).await;
    let words = "the answer cannot pass: rule \"codenames\" at /choices/0/message/content: a term";
    refused.assert_error(502, KIND, Some("content_filter"), words);
    assert!(!refused.body.to_lowercase().contains("nightfall"), "{refused:?}");
    assert_eq!(refused.header("x-should-retry"), Some("false"), "it costs as much again");
    assert_eq!(front.left("tokens_per_day").await, 99_000);
    assert_eq!(front.left("requests_per_day").await, 99);

    let passes = ask(Script::new().text("write to ann@example.org").usage(700, 300)).await;
    assert_eq!(passes.status, 200, "{passes:?}");
    let told = "\"mail\";at=\"/choices/0/message/content\";is=warn";
    assert_eq!(passes.header("x-bartizan-validation"), Some(told));
    assert_eq!(front.left("tokens_per_day").await, 98_000);

    let two = r#"{"choices":[{"index":0},{"index":1}],"usage":{"prompt_tokens":5,"completion_tokens":5,"total_tokens":10}}"#;
    let refused = ask(Script::new().header("content-type", "application/json").body(two)).await;
    refused.assert_error(502, KIND, Some("invalid_answer"), "rule \"form\" at /choices: ");
    assert_eq!(front.left("tokens_per_day").await, 97_990);

    let refused = ask(Script::new().words(1_000).usage(1, 1)).await;
    refused.assert_error(
        502,
        KIND,
        Some("invalid_answer"),
        "rule \"body\": the body is longer than may be read",
    );
    let twice = r#"{"choices":[],"choices":[{"message":{"content":"nightfall"}}]}"#;
    let refused = ask(Script::new().header("content-type", "application/json").body(twice)).await;
    refused.assert_error(502, KIND, Some("invalid_answer"), "rule \"json\" at /choices: two members");

    // Ids are the provider's own, whatever they look like; whatever else it says is looked at.
    let answer = |name: &str| format!(r#"{{"{name}":"ann@example.org","choices":[]}}"#);
    let script = |body: String| Script::new().header("content-type", "application/json").body(body);
    let passes = ask(script(answer("id"))).await;
    assert_eq!((passes.status, passes.header("x-bartizan-validation")), (200, None), "{passes:?}");
    let passes = ask(script(answer("x/y"))).await;
    assert_eq!(passes.header("x-bartizan-validation"), Some("\"mail\";at=\"/*\";is=warn"), "{passes:?}");

    // An upstream's error is none of the rules' business, and is free.
    let left = front.left("tokens_per_day").await;
    let failed = ask(Script::new().status(500)).await;
    assert_eq!((failed.status, front.left("tokens_per_day").await), (500, left), "{failed:?}");
    // What an upstream says in this header is not ours.
    let lying = Script::new().header("x-bartizan-validation", "\"all is well\"");
    assert_eq!(ask(lying).await.header("x-bartizan-validation"), None);

    front.mock.script(Script::new().text("about nightfall, ann@example.org"));
    let reported = front.ask(&says("reports", "hello")).await;
    let told = "\"codenames\";at=\"/choices/0/message/content\";is=safety, \"mail\";at=\"/choices/0/message/content\";is=warn";
    assert_eq!(
        (reported.status, reported.header("x-bartizan-validation")),
        (200, Some(told)),
        "{reported:?}"
    );

    let chat = front.told("validation", "chat").await;
    let expected = json!({
        "name": "chat", "checked_requests": 9, "refused_requests": 0, "reported_requests": 0,
        "checked_answers": 8, "refused_answers": 4, "reported_answers": 2,
    });
    assert_eq!(chat, expected);
    assert_eq!(front.told("validation_rules", "codenames").await["refused_answers"], json!(1));
    front.stop().await;
}

/// A request that is refused is charged nothing but itself.
#[tokio::test]
async fn what_a_refused_request_costs() {
    let rest = [
        rule("cards", "request", "pii = [\"cards\"]"),
        "[rate_limits]\ntokens_per_day = 100_000\nrequests_per_day = 3\n".to_owned(),
    ];
    let front = Front::start(&[("chat", "")], &rest.concat()).await;
    for left in [2, 1, 0] {
        let answer = front.post("x-tenant-id: t\r\n", says("chat", CARD).to_string()).await;
        answer.assert_error(422, REFUSED, POLICY, "cards");
        let (tokens, requests) = (front.left("tokens_per_day").await, front.left("requests_per_day").await);
        assert_eq!((tokens, requests), (100_000, left));
    }
    // Nobody has the rules tried on more than he may ask.
    let answer = front.post("x-tenant-id: t\r\n", says("chat", CARD).to_string()).await;
    answer.assert_error(429, "rate_limit_error", Some("rate_limit_exceeded"), "requests_per_day");
    assert_eq!(front.told("validation", "chat").await["checked_requests"], json!(3));
    assert_eq!(front.mock.calls(), 0);
    front.stop().await;
}

/// Text that is put together from events, in windows; the window in which something is found is never sent.
#[tokio::test]
async fn streams_that_break_rules() {
    let rest = [
        rule("codenames", "answer", "terms = [\"night fall\"]"),
        rule("mail", "answer", "severity = \"warn\"\npii = [\"emails\"]"),
        "[validation]\nwindow_bytes = 16\noverlap_bytes = 64\nwindow_ms = 10_000\n".to_owned(),
    ];
    let models = [("chat", ""), ("reports", "validation_action = \"report\"")];
    let front = Front::start(&models, &rest.concat()).await;
    let text = "one two three four five six night fall seven eight";
    for chop in [usize::MAX, 7] {
        front.mock.script(Script::new().text(text).chop(chop));
        let answer = front.ask(&streamed(says("chat", "hello"))).await;
        assert_eq!((answer.status, answer.header("x-bartizan-validation")), (200, None), "{answer:?}");
        assert!(!answer.body.contains("fall") && !answer.body.contains("[DONE]"), "{answer:?}");
        assert!(answer.body.contains("one ") && answer.body.contains("three"), "{answer:?}");
        let last = answer.body.trim_end().rsplit_once("\n\ndata: ").unwrap().1;
        let error = &serde_json::from_str::<Value>(last).unwrap()["error"];
        let expected = json!({
            "message": "the answer cannot pass: rule \"codenames\": a term that must not be there is there",
            "type": "api_error", "param": null, "code": "content_filter",
        });
        assert_eq!(*error, expected);
    }
    // It is not asked to go on.
    front.mock.script(Script::new().text(text).hang_after(11));
    let answer = front.ask(&streamed(says("chat", "hello"))).await;
    assert!(answer.body.contains("content_filter"), "{answer:?}");
    soon("the end of the call", front.mock.until(|stats| stats.cancelled == 1)).await;

    front.mock.script(Script::new().text("mail ann@example.org, or wait for the night fall"));
    let answer = front.ask(&streamed(says("reports", "hello"))).await;
    assert!(answer.body.contains("fall") && answer.body.ends_with("data: [DONE]\n\n"), "{answer:?}");
    let told = front.told("validation", "reports").await;
    assert!(told["reported_answers"].as_u64().unwrap() >= 2, "{told}");
    assert_eq!(front.told("validation", "chat").await["refused_answers"], json!(3));
    front.stop().await;
}

/// Pitfall 47: a rule that needs the whole answer is not got around with a stream.
#[tokio::test]
async fn streams_that_cannot_be_checked() {
    let rest = [
        rule("numbered", "answer", "require = '^\\d+: '\nat = \"/choices/*/message/content\""),
        rule("codenames", "answer", "terms = [\"nightfall\"]"),
    ];
    let models = [("chat", ""), ("lenient", "validation_level = \"lenient\"")];
    let front = Front::start(&models, &rest.concat()).await;
    front.mock.script_always(Script::new().text("1: fine"));
    assert_eq!(front.ask(&says("chat", "hello")).await.status, 200);
    let refused = front.ask(&streamed(says("chat", "hello"))).await;
    refused.assert_error(
        400,
        REFUSED,
        FORM,
        "rule \"numbered\" at /stream: answers are checked by it as a whole",
    );
    assert_eq!(front.mock.calls(), 1);
    // Where the rule refuses nothing it does not do so here.
    let passes = front.ask(&streamed(says("lenient", "hello"))).await;
    let told = "\"numbered\";at=\"/stream\";is=error";
    assert_eq!((passes.status, passes.header("x-bartizan-validation")), (200, Some(told)), "{passes:?}");
    // An upstream that streams what was not asked for as a stream gets around nothing either.
    let events =
        "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"no number\"}}]}\n\ndata: [DONE]\n\n";
    front.mock.script_always(Script::new().header("content-type", "text/event-stream").body(events));
    let answer = front.ask(&says("chat", "hello")).await;
    assert!(answer.status == 502 && !answer.body.contains("no number"), "{answer:?}");
    front.stop().await;
}

/// An answer is checked each time it is given, whether it is new, shared or kept; and refused ones are paid for once.
#[tokio::test]
async fn shared_answers_are_checked_for_each() {
    let rest = [
        rule("codenames", "answer", "terms = [\"nightfall\"]"),
        rule("cards", "request", "pii = [\"cards\"]"),
        "[dedup]\nenabled = true\nttl_ms = 3_600_000\n[rate_limits]\ntokens_per_day = 100_000\n".to_owned(),
    ];
    let front = Front::start(&[("chat", "")], &rest.concat()).await;
    front.mock.script_always(Script::new().text("about nightfall").usage(700, 300));
    for body in [says("chat", "a"), streamed(says("chat", "b"))] {
        for n in 0..3 {
            let answer = front.post("x-tenant-id: t\r\n", body.to_string()).await;
            assert!(
                answer.body.contains("content_filter") && !answer.body.contains("fall"),
                "{n} {answer:?}"
            );
        }
    }
    assert_eq!(front.mock.calls(), 2);
    front.mock.script_always(Script::new());
    // Not even for one that was answered before the request had such a thing in it.
    for status in [422, 422] {
        assert_eq!(front.ask(&says("chat", CARD)).await.status, status);
    }
    assert_eq!(front.mock.calls(), 2);
    let told = front.told("validation", "chat").await;
    assert_eq!((&told["checked_answers"], &told["refused_answers"]), (&json!(6), &json!(6)));

    let left = front.left("tokens_per_day").await;
    front.post("x-tenant-id: t\r\n", says("chat", "a").to_string()).await;
    assert_eq!(front.left("tokens_per_day").await, left, "a kept answer costs nothing, refused or not");
    front.stop().await;
}

/// Whoever stands in is asked only what may be sent there, and its answers keep to the rules of whoever was asked.
#[tokio::test]
async fn fallbacks_have_rules_of_their_own() {
    let ((inside, a), (outside, b), (last, c)) = (mock().await, mock().await, mock().await);
    let sections = [
        model("inside", a, "fallbacks = [\"outside\", \"last\"]\nvalidation_rules = [\"codenames\"]"),
        model("outside", b, "validation_rules = [\"cards\"]"),
        model("last", c, "validation = false"),
        rule("cards", "request", "pii = [\"cards\"]"),
        rule("codenames", "answer", "terms = [\"nightfall\"]"),
    ];
    let gateway = Gateway::start("", &sections).await;
    let front = Front { address: gateway.address, gateway, mock: inside.clone() };
    inside.script_always(Script::new().status(500));
    outside.script_always(Script::new().text("fine"));
    last.script_always(Script::new().text("about nightfall"));

    let answer = front.ask(&says("inside", "hello")).await;
    assert_eq!((answer.status, answer.header("x-bartizan-served-by")), (200, Some("outside")), "{answer:?}");
    // No card leaves the house.
    let answer = front.ask(&says("inside", CARD)).await;
    assert_eq!(outside.calls(), 1);
    answer.assert_error(502, "api_error", Some("content_filter"), "codenames");
    assert_eq!(last.calls(), 1);
    let told = front.told("validation", "outside").await;
    assert_eq!((&told["refused_requests"], &told["checked_answers"]), (&json!(1), &json!(0)));
    last.script_always(Script::new().text("fine"));
    let answer = front.ask(&says("inside", CARD)).await;
    assert_eq!((answer.status, answer.header("x-bartizan-served-by")), (200, Some("last")), "{answer:?}");
    front.stop().await;
}

/// Requests for embeddings are checked; their answers are numbers.
#[tokio::test]
async fn embeddings() {
    let rest = [rule("cards", "request", "pii = [\"cards\"]"), rule("answers", "answer", "max_bytes = 1")];
    let front = Front::start(&[("embed", "")], &rest.concat()).await;
    let head = CHAT.replace("chat/completions", "embeddings");
    let ask = |input: &str| {
        let body = json!({"model": "embed", "input": ["hello", input]}).to_string();
        let request = with_length(&head, body);
        let address = front.address;
        async move { exchange(address, &request).await }
    };
    assert_eq!(ask("there").await.status, 200);
    ask(CARD).await.assert_error(422, REFUSED, POLICY, "rule \"cards\" at /input/1");
    assert_eq!(front.mock.calls(), 1);
    front.stop().await;
}

/// An answer of the form that its request asks for, or none.
#[tokio::test]
async fn structured_output() {
    let models =
        [("chat", ""), ("lenient", "validation_level = \"lenient\""), ("off", "structured_output = false")];
    let front = Front::start(&models, "[validation]\nstructured_output = true\n").await;
    let asks = |model: &str, schema: Value| {
        let mut body = says(model, "how old is she?");
        body["response_format"] =
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        body
    };
    let person = json!({"type": "object", "required": ["age"], "properties": {"age": {"type": "integer"}}});
    let good = r#"{"age": 7}"#;
    for (text, words) in [
        (good, None),
        (r#"{"age": "4111 1111 1111 1111"}"#, Some("/choices/0/message/content/age: ")),
        ("seven", Some("/choices/0/message/content: not the JSON that was asked for")),
        ("{}", Some("/choices/0/message/content: \"age\" is a required property")),
    ] {
        front.mock.script_always(Script::new().text(text));
        let plain = front.ask(&asks("chat", person.clone())).await;
        let stream = front.ask(&streamed(asks("chat", person.clone()))).await;
        match words {
            None => {
                assert_eq!((plain.status, stream.status), (200, 200), "{plain:?} {stream:?}");
                assert!(stream.body.ends_with("data: [DONE]\n\n"), "{stream:?}");
            }
            Some(words) => {
                plain.assert_error(502, "api_error", Some("invalid_answer"), words);
                assert!(!plain.body.contains("4111"), "{plain:?}");
                assert!(stream.body.contains("\"code\":\"invalid_answer\""), "{stream:?}");
                assert!(!stream.body.contains("[DONE]") && !stream.body.contains("\"stop\""), "{stream:?}");
            }
        }
        for model in ["lenient", "off"] {
            for body in [asks(model, person.clone()), streamed(asks(model, person.clone()))] {
                assert_eq!(front.ask(&body).await.status, 200);
            }
        }
    }
    let told = front.told("validation", "lenient").await;
    assert_eq!((&told["refused_answers"], &told["reported_answers"]), (&json!(0), &json!(6)), "{told}");
    assert_eq!(front.told("validation_rules", "structured_output").await["refused_answers"], json!(6));

    let calls = front.mock.calls();
    for (schema, at) in [
        (json!({"$ref": "http://127.0.0.1:9/x.json"}), "/response_format/json_schema/schema/*"),
        (json!({"type": "no type"}), "/response_format/json_schema/schema"),
        (
            json!({"properties": {"a": {"pattern": "(?=x)"}}}),
            "/response_format/json_schema/schema/properties/a",
        ),
        (json!(7), "/response_format/json_schema/schema"),
    ] {
        let answer = front.ask(&asks("chat", schema)).await;
        answer.assert_error(400, REFUSED, FORM, &format!("rule \"structured_output\" at {at}"));
    }
    assert_eq!(front.mock.calls(), calls);
    front.stop().await;
}

/// The key that was shown, and the question.
type Asked = (Option<String>, Value);

/// A moderation endpoint that flags what is nasty, or does as it is told.
#[derive(Clone, Default)]
struct Moderation {
    asked: Arc<Mutex<Vec<Asked>>>,
    instead: Arc<Mutex<Option<(u16, String)>>>,
    hangs: Arc<AtomicBool>,
    hanging: Arc<Notify>,
}

impl Moderation {
    async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (moderation, address) = (Self::default(), listener.local_addr().unwrap());
        let handler = moderation.clone();
        let judge = async move |headers: HeaderMap, body: String| handler.judge(&headers, &body).await;
        let router = Router::new().route("/v1/moderations", post(judge));
        tokio::spawn(async move { axum::serve(listener, router).await });
        (moderation, address)
    }

    async fn judge(&self, headers: &HeaderMap, body: &str) -> (StatusCode, String) {
        let body: Value = serde_json::from_str(body).unwrap();
        let key = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.asked.lock().unwrap().push((key, body.clone()));
        if self.hangs.load(Relaxed) {
            self.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        if let Some((status, body)) = self.instead.lock().unwrap().clone() {
            return (StatusCode::from_u16(status).unwrap(), body);
        }
        let verdict = |text: &Value| {
            let flagged = text.as_str().unwrap().contains("nasty");
            json!({"flagged": flagged, "categories": {"violence": flagged, "hate": false}})
        };
        let results: Vec<_> = body["input"].as_array().unwrap().iter().map(verdict).collect();
        (StatusCode::OK, json!({"id": "modr-1", "results": results}).to_string())
    }

    fn calls(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    fn answer(&self, status: u16, body: &str) {
        *self.instead.lock().unwrap() = Some((status, body.to_owned()));
    }
}

fn moderated(address: SocketAddr, side: &str) -> String {
    rule(
        "moderation",
        side,
        &format!(
            "severity = \"safety\"\nmoderation_url = \"http://{address}/v1\"\nmoderation_key_env = \"UPSTREAM_KEY\"\n\
             moderation_model = \"m\"\ndeadline_ms = 300"
        ),
    )
}

/// What an endpoint flags is refused, or reported, in requests, whole answers and streams.
#[tokio::test]
async fn moderation() {
    let (endpoint, address) = Moderation::start().await;
    let rest = moderated(address, "both")
        + &rule("cards", "request", "pii = [\"cards\"]")
        + "[validation]\nwindow_bytes = 16\nwindow_ms = 10_000\n";
    let models = [("chat", "validation_level = \"lenient\""), ("reports", "validation_action = \"report\"")];
    let front = Front::start(&models, &rest).await;
    let nice = front.ask(&says("chat", "nice")).await;
    assert_eq!(nice.status, 200, "{nice:?}");
    let asked = endpoint.asked.lock().unwrap().clone();
    let key = Some(format!("Bearer {UPSTREAM_KEY}"));
    let expected = [
        (key.clone(), json!({"input": ["nice"], "model": "m"})),
        (key, json!({"input": ["stop", "You said: nice"], "model": "m"})),
    ];
    let sorted = |mut asked: Vec<Asked>| {
        for (_, body) in &mut asked {
            body["input"].as_array_mut().unwrap().sort_by_key(ToString::to_string);
        }
        asked
    };
    assert_eq!(sorted(asked), sorted(expected.to_vec()));

    let refused = front.ask(&says("chat", "a nasty word")).await;
    let words = "rule \"moderation\" at /messages/0/content: it is flagged: violence";
    refused.assert_error(422, REFUSED, POLICY, words);
    assert_eq!((front.mock.calls(), endpoint.calls()), (1, 3));

    front.mock.script_always(Script::new().text("one two three four nasty five six seven"));
    let refused = front.ask(&says("chat", "nice")).await;
    let words = "rule \"moderation\" at /choices/0/message/content: it is flagged: violence";
    refused.assert_error(502, "api_error", Some("content_filter"), words);
    let stream = front.ask(&streamed(says("chat", "nice"))).await;
    assert!(stream.body.contains("one ") && stream.body.contains("content_filter"), "{stream:?}");
    assert!(!stream.body.contains("nasty") && !stream.body.contains("five"), "{stream:?}");

    let reported = front.ask(&says("reports", "nasty")).await;
    let told = "\"moderation\";at=\"/messages/0/content\";is=safety, \"moderation\";at=\"/choices/0/message/content\";is=safety";
    assert_eq!(
        (reported.status, reported.header("x-bartizan-validation")),
        (200, Some(told)),
        "{reported:?}"
    );
    let stream = front.ask(&streamed(says("reports", "nice"))).await;
    assert!(stream.body.contains("nasty") && stream.body.ends_with("data: [DONE]\n\n"), "{stream:?}");
    front.stop().await;

    // What another rule refuses is told to nobody else.
    let front = Front::start(&[("chat", "")], &rest).await;
    let calls = endpoint.calls();
    assert_eq!(front.ask(&says("chat", &format!("nasty {CARD}"))).await.status, 422);
    assert_eq!(endpoint.calls(), calls);
    front.stop().await;
}

/// An endpoint that does not judge: refused with a 503 that may be tried again, or passed and reported, as it is wished.
#[tokio::test]
async fn moderation_that_fails() {
    let (endpoint, address) = Moderation::start().await;
    let models = [("chat", ""), ("lenient", "validation_level = \"lenient\"")];
    for (on_error, statuses) in [("auto", [503, 200]), ("refuse", [503, 503]), ("pass", [200, 200])] {
        let rest = format!("{}[validation]\non_error = \"{on_error}\"\n", moderated(address, "request"));
        let front = Front::start(&models, &rest).await;
        let mut calls = 0;
        for (status, body) in [
            (500, "{}"),
            (401, r#"{"error":{"message":"wrong key"}}"#),
            (200, "no JSON"),
            (200, r#"{"results":[]}"#),
            (200, r#"{"results":[{"flagged":false},{"flagged":false}]}"#),
            (200, r#"{"results":[{}]}"#),
            (0, ""),
        ] {
            endpoint.hangs.store(status == 0, Relaxed);
            endpoint.answer(status.max(100), body);
            for ((model, _), expected) in models.iter().zip(statuses) {
                let answer = front.ask(&says(model, "nice")).await;
                if expected == 200 {
                    calls += 1;
                    let told = Some("\"moderation\";is=failed");
                    assert_eq!(
                        (answer.status, answer.header("x-bartizan-validation")),
                        (200, told),
                        "{answer:?}"
                    );
                } else {
                    let words = "rule \"moderation\": the rule itself failed";
                    answer.assert_error(
                        503,
                        "service_unavailable_error",
                        Some("validation_unavailable"),
                        words,
                    );
                    assert_eq!(answer.header("x-should-retry"), None, "{answer:?}");
                }
                assert_eq!(front.mock.calls(), calls);
            }
        }
        front.stop().await;
    }
    // Nobody there.
    let gone = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        listener.local_addr().unwrap()
    };
    let front = Front::start(&[("chat", "")], &moderated(gone, "request")).await;
    assert_eq!(front.ask(&says("chat", "nice")).await.status, 503);
    front.stop().await;
}

/// A client that goes while an endpoint judges leaves nothing behind.
#[tokio::test]
async fn a_client_that_goes_while_it_is_judged() {
    let (endpoint, address) = Moderation::start().await;
    endpoint.hangs.store(true, Relaxed);
    let rest = moderated(address, "request").replace("deadline_ms = 300", "deadline_ms = 60_000");
    let front = Front::start(&[("chat", "")], &rest).await;
    let connection = send(front.address, &with_length(CHAT, says("chat", "nice").to_string())).await;
    within("the endpoint to be asked", endpoint.hanging.notified()).await;
    drop(connection);
    assert_eq!(front.mock.calls(), 0);
    // It would wait for what is left of it, and cut it.
    front.stop().await;
}
