//! Upstreams that die and recover, and operators who do not wait for them.

use std::{net::Ipv4Addr, time::Duration};

use bartizan_provider::mock::{Mock, Script};
use bytes::Bytes;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
};

use crate::{
    gateway_under_test::{Gateway, mock, model, within},
    wire::{Answer, GOOD, GOOD_STREAM, chat, exchange, send},
};

const ADMIN: &str = "authorization: Bearer adm-7Wq2kZ\r\n";

/// Longer than any test runs.
const HOUR: &str = "open_ms = 3_600_000\nmax_open_ms = 3_600_000";

struct Front {
    gateway: Gateway,
    mock: Mock,
}

impl Front {
    /// A gateway with these settings of its breakers, in front of a mock with three models.
    async fn start(breakers: &str) -> Self {
        let (mock, upstream) = mock().await;
        let models = [
            model("chat", upstream, "head_ms = 200\nidle_ms = 200"),
            model("other", upstream, ""),
            model("meta/llama 3", upstream, ""),
            format!("[circuit_breaker]\n{breakers}\n"),
        ];
        Self { gateway: Gateway::start("admin_token = \"adm-7Wq2kZ\"", &models).await, mock }
    }

    async fn ask(&self, body: &str) -> Answer {
        exchange(self.gateway.address, &chat(body)).await
    }

    async fn ask_for(&self, model: &str) -> Answer {
        self.ask(&GOOD.replace("chat", model)).await
    }

    async fn asking(&self, body: &str) -> TcpStream {
        send(self.gateway.address, &chat(body)).await
    }

    async fn admin(&self, method: &str, path: &str, headers: &str) -> Answer {
        let head = format!(
            "{method} /admin/breakers{path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n"
        );
        exchange(self.gateway.address, head.as_bytes()).await
    }

    /// What there is to tell of this model's breaker.
    async fn told(&self, model: &str) -> Value {
        let answer = self.admin("GET", "", ADMIN).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut told: Value = serde_json::from_str(&answer.body).unwrap();
        let mut all = told["breakers"].as_array_mut().unwrap().iter_mut();
        all.find(|each| each["name"] == model).unwrap_or_else(|| panic!("no {model}")).take()
    }

    async fn command(&self, path: &str) -> Value {
        let answer = self.admin("POST", path, ADMIN).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    /// Waits for what the gateway notices a little after its client.
    async fn until(&self, what: &str, mut reached: impl FnMut(&Value) -> bool) -> Value {
        let looking = async {
            loop {
                let told = self.told("chat").await;
                if reached(&told) {
                    return told;
                }
            }
        };
        within(what, looking).await
    }

    async fn stop(self) {
        self.gateway.stop().await;
    }
}

/// The seconds until the client may come back.
#[track_caller]
fn assert_open(answer: &Answer, words: &str) -> u64 {
    answer.assert_error(503, "service_unavailable_error", Some("circuit_open"), words);
    assert_eq!(answer.header("x-should-retry"), None, "{answer:?}");
    answer.header("retry-after").expect("when to come back").parse().unwrap()
}

#[track_caller]
fn assert_part(whole: &Value, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(whole[name], *value, "{name} of {whole}");
    }
}

/// The run that everything here is about: an upstream dies, is left alone, recovers, dies again, and is brought back.
#[tokio::test]
async fn an_upstream_that_dies_and_recovers() {
    let front = Front::start("failure_threshold = 3\nopen_ms = 1_000\nmax_open_ms = 1_000").await;
    assert_eq!(front.ask(GOOD).await.status, 200);
    front.mock.script_for("chat", Script::new().status(500));
    for _ in 0..3 {
        let answer = front.ask(GOOD).await;
        assert_eq!((answer.status, answer.body.contains("circuit")), (500, false), "{answer:?}");
    }
    // It is asked no more, whoever asks and whatever for, by either worker.
    for answer in join_all((0..10).map(|_| front.ask(GOOD))).await {
        assert!(assert_open(&answer, "\"chat\" has failed too often") <= 2);
    }
    assert_open(&front.ask(GOOD_STREAM).await, "\"chat\"");
    assert_eq!(front.mock.calls(), 4);
    let told = front.told("chat").await;
    assert_part(&told, &json!({"state": "open", "failures": 3, "failures_in_a_row": 3, "opens": 1}));
    assert_eq!(told["refused"], 11);
    assert!(told["last_failure_ago"].as_f64().unwrap() < 30.0, "{told}");
    let wait = told["half_open_after"].as_f64().unwrap();
    assert!(wait <= 1.1, "{told}");

    // Others are nobody's worse for it.
    assert_eq!(front.ask_for("other").await.status, 200);
    assert_part(&front.told("other").await, &json!({"state": "closed", "failures": 0, "refused": 0}));

    // While it is dead a probe finds that out, alone.
    tokio::time::sleep(Duration::from_secs_f64(wait)).await;
    assert_eq!(front.told("chat").await["state"], "half-open");
    assert_eq!((front.ask(GOOD).await.status, front.mock.calls()), (500, 6));
    assert_open(&front.ask(GOOD).await, "\"chat\"");
    let told = front.told("chat").await;
    assert_part(&told, &json!({"state": "open", "opens": 2, "failures_in_a_row": 4}));

    // It has recovered, and the first who comes is answered.
    front.mock.script_for("chat", Script::new());
    tokio::time::sleep(Duration::from_secs_f64(told["half_open_after"].as_f64().unwrap())).await;
    assert_eq!(front.ask(GOOD).await.status, 200);
    front.until("the breaker to close", |told| told["state"] == "closed").await;
    assert_eq!((front.ask(GOOD_STREAM).await.status, front.mock.calls()), (200, 8));
    front.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_brought_back_by_hand() {
    let front = Front::start(&format!("failure_threshold = 1\n{HOUR}")).await;
    front.mock.script_for("chat", Script::new().status(529));
    // What an upstream calls its own is passed on as what clients know.
    assert!(front.ask(GOOD).await.status >= 500);
    assert!(assert_open(&front.ask(GOOD).await, "\"chat\"") > 3_590);
    front.mock.script_for("chat", Script::new());
    assert!(assert_open(&front.ask(GOOD).await, "\"chat\"") > 3_590);

    let told = front.command("/chat/reset").await;
    assert_part(&told, &json!({"name": "chat", "state": "closed", "failures": 0, "half_open_after": null}));
    assert_eq!((front.ask(GOOD).await.status, front.mock.calls()), (200, 2));
    front.stop().await;
}

#[tokio::test]
async fn breakers_that_are_opened_and_disabled_by_hand() {
    let front = Front::start(&format!("failure_threshold = 1\n{HOUR}")).await;
    // With a slash as it is, or as clients write one into a path.
    for path in ["/meta/llama%203", "/meta%2Fllama%203", "/meta%2fllama%203"] {
        let told = front.command(&format!("{path}/force-open")).await;
        assert_part(&told, &json!({"name": "meta/llama 3", "state": "forced-open", "half_open_after": null}));
        let refused = front.ask_for("meta/llama 3").await;
        let words = "\"meta/llama 3\" was taken out of service by hand";
        refused.assert_error(503, "service_unavailable_error", Some("circuit_open"), words);
        assert_eq!((refused.header("x-should-retry"), refused.header("retry-after")), (Some("false"), None));
        assert_eq!(front.command(&format!("{path}/reset")).await["state"], "closed");
        assert_eq!(front.ask_for("meta/llama 3").await.status, 200);
    }
    let calls = front.mock.calls();
    front.mock.script_for("chat", Script::new().status(500));
    assert_eq!(front.command("/chat/disable").await["state"], "disabled");
    for _ in 0..3 {
        assert_eq!(front.ask(GOOD).await.status, 500);
    }
    assert_eq!(front.mock.calls(), calls + 3);
    assert_part(&front.told("chat").await, &json!({"state": "disabled", "failures": 0, "opens": 0}));
    front.command("/chat/reset").await;
    assert_eq!(front.ask(GOOD).await.status, 500);
    assert_open(&front.ask(GOOD).await, "\"chat\"");
    assert_eq!(front.command("/chat/disable").await["state"], "disabled");
    assert_eq!(front.ask(GOOD).await.status, 500);
    front.stop().await;
}

/// Whatever an upstream does wrong, a stream that breaks off after a good head included.
#[tokio::test]
async fn all_that_is_a_failure() {
    let front = Front::start(&format!("failure_threshold = 2\n{HOUR}")).await;
    let spent = r#"{"error":{"message":"The engine is overloaded","type":"server_error","param":null,"code":"engine_overloaded_error"}}"#;
    let cases = [
        (Script::new().fail(), GOOD),
        (Script::new().hang(), GOOD),
        (Script::new().status(500), GOOD),
        (Script::new().status(503), GOOD_STREAM),
        (Script::new().status(529), GOOD),
        (Script::new().status(408), GOOD),
        (Script::new().status(429), GOOD),
        (Script::new().body("no JSON"), GOOD),
        (Script::new().fail_after(1), GOOD),
        (Script::new().fail_after(2), GOOD_STREAM),
        (Script::new().end_after(2), GOOD_STREAM),
        (Script::new().hang_after(2), GOOD_STREAM),
        (Script::new().garbage_after(2), GOOD_STREAM),
        (
            Script::new().header("content-type", "text/event-stream").body(format!("data: {spent}\n\n")),
            GOOD_STREAM,
        ),
    ];
    for (script, body) in cases {
        let before = front.mock.calls();
        front.mock.script_for("chat", script.clone());
        for failed in 1..=2 {
            assert_ne!(front.told("chat").await["state"], "open", "{script:?}");
            let answer = front.ask(body).await;
            assert!(answer.status != 200 || answer.body.contains("\"error\""), "{script:?}: {answer:?}");
            assert_eq!(front.told("chat").await["failures"], failed, "{script:?}: {answer:?}");
        }
        assert_open(&front.ask(body).await, "\"chat\"");
        assert_eq!(front.mock.calls(), before + 2, "{script:?}");
        front.command("/chat/reset").await;
    }
    front.stop().await;
}

#[tokio::test]
async fn an_upstream_that_is_not_there() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    // What opens a breaker does not depend on anybody having configured one.
    let gateway = Gateway::start("", &[model("chat", nobody, "")]).await;
    for _ in 0..5 {
        let answer = exchange(gateway.address, &chat(GOOD)).await;
        answer.assert_error(502, "api_error", Some("upstream_unreachable"), "");
    }
    let wait = assert_open(&exchange(gateway.address, &chat(GOOD)).await, "\"chat\"");
    assert!((28..=33).contains(&wait), "{wait}");
    gateway.stop().await;
}

/// What clients do wrong, and what no pause mends.
#[tokio::test]
async fn all_that_is_none() {
    let front = Front::start(&format!("failure_threshold = 1\n{HOUR}")).await;
    let coded = |status, code: &str| {
        let body =
            json!({"error": {"message": "no", "type": "invalid_request_error", "param": null, "code": code}});
        Script::new().status(status).body(body.to_string())
    };
    let mut scripts: Vec<_> =
        [400, 401, 403, 404, 413, 422].map(|status| Script::new().status(status)).into();
    scripts.extend([
        coded(429, "insufficient_quota"),
        coded(400, "context_length_exceeded"),
        coded(400, "content_policy_violation"),
        coded(500, "context_length_exceeded"),
    ]);
    let asked = scripts.len() as u64;
    for script in scripts {
        front.mock.script(script.clone());
        let answer = front.ask(GOOD).await;
        assert!(answer.status >= 400 && !answer.body.contains("circuit"), "{script:?}: {answer:?}");
    }
    for body in ["{", r#"{"messages":[]}"#, r#"{"model":"gpt-9","messages":[]}"#] {
        assert!((400..500).contains(&front.ask(body).await.status));
    }
    assert_eq!((front.ask(GOOD).await.status, front.mock.calls()), (200, asked + 1));
    assert_part(&front.told("chat").await, &json!({"state": "closed", "failures": 0, "opens": 0}));
    front.stop().await;
}

/// Pitfall 56: an upstream that answers 200 and fails in its stream has failed, whatever it says after that.
#[tokio::test]
async fn streams_that_say_that_they_have_failed() {
    let front = Front::start(&format!("failure_threshold = 100\n{HOUR}")).await;
    let failed = "data: {\"error\":{\"message\":\"boom\",\"code\":\"overloaded_error\"}}\n\n";
    let word = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n";
    let role = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n";
    let done = "data: [DONE]\n\n";
    let events = |events: &[&'static str]| {
        let frames: Vec<_> = events.iter().map(|event| Bytes::from_static(event.as_bytes())).collect();
        Script::new().header("content-type", "text/event-stream").frames(frames)
    };
    // Of what has said nothing, no more is told than of an error response.
    for script in [events(&[failed, done]), events(&[failed])] {
        front.mock.script(script);
        let answer = front.ask(GOOD_STREAM).await;
        answer.assert_error(503, "service_unavailable_error", Some("overloaded_error"), "boom");
        assert_eq!(answer.header("x-should-retry"), None, "{answer:?}");
    }
    for start in [role, word] {
        front.mock.script(events(&[start, failed, done]));
        let answer = front.ask(GOOD_STREAM).await;
        assert_eq!((answer.status, &*answer.body), (200, &*format!("{start}{failed}")));
    }
    // Nor is an answer that is no stream but an error a good one.
    for body in [GOOD, GOOD_STREAM] {
        let error = json!({"error": {"message": "boom", "code": "overloaded_error"}}).to_string();
        front.mock.script(Script::new().header("content-type", "application/json").body(error));
        assert_eq!(front.ask(body).await.status, 503);
    }
    assert_part(&front.told("chat").await, &json!({"state": "closed", "calls": 6, "failures": 6}));
    let health = exchange(
        front.gateway.address,
        b"GET /health HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\r\n",
    );
    let health: Value = serde_json::from_str(&health.await.body).unwrap();
    let chat = &health["provider_health"]["chat"];
    assert_part(chat, &json!({"success_rate": 0.0, "errors": {"overloaded": 6}}));
    front.stop().await;
}

#[tokio::test]
async fn clients_that_go_decide_nothing() {
    let front = Front::start(&format!("failure_threshold = 1\n{HOUR}")).await;
    front.mock.script_for("other", Script::new().hang());
    front.mock.script(Script::new().words(5).pace(Duration::from_millis(100)));
    for (gone, body) in [(1, GOOD_STREAM), (2, &*GOOD.replace("chat", "other"))] {
        let mut asking = front.asking(body).await;
        within("the upstream to be asked", front.mock.until(|stats| stats.running == 1)).await;
        let mut seen = Vec::new();
        while gone == 1 && !String::from_utf8_lossy(&seen).contains("said") {
            within("the stream to begin", asking.read_buf(&mut seen)).await.unwrap();
        }
        drop(asking);
        within("the client's going", front.mock.until(move |stats| stats.cancelled == gone)).await;
    }
    assert_eq!(front.ask(GOOD).await.status, 200);
    for model in ["chat", "other"] {
        let told = front.told(model).await;
        assert_part(&told, &json!({"state": "closed", "failures": 0, "opens": 0, "late": 0}));
    }
    front.stop().await;
}

/// Unless their patience says something about the model: it is up to who configures it.
#[tokio::test]
async fn clients_that_waited_for_long_are_counted_if_asked_for() {
    let front = Front::start(&format!("failure_threshold = 1\nclient_gone_ms = 1_500\n{HOUR}")).await;
    front.mock.script_for("other", Script::new().hang());
    for (gone, wait, state) in [(1, 0, "closed"), (2, 1_600, "open")] {
        let asking = front.asking(&GOOD.replace("chat", "other")).await;
        within("the upstream to be asked", front.mock.until(|stats| stats.running == 1)).await;
        tokio::time::sleep(Duration::from_millis(wait)).await;
        drop(asking);
        within("the client's going", front.mock.until(move |stats| stats.cancelled == gone)).await;
        // The upstream may learn of it before the breaker does.
        let looking = async { while front.told("other").await["state"] != state {} };
        within(&format!("the breaker to be {state}"), looking).await;
    }
    front.stop().await;
}

/// Nor do clients that read so slowly that the time of their call is over while the upstream still sends.
#[tokio::test]
async fn clients_that_read_slowly_decide_nothing() {
    let (mock, upstream) = mock().await;
    // More than the buffers on the way hold.
    let event =
        Bytes::from(format!("data: {{\"choices\":[],\"obfuscation\":\"{}\"}}\n\n", "x".repeat(2_000)));
    mock.script(Script::new().header("content-type", "text/event-stream").frames(vec![event; 20_000]));
    let models = [
        model("chat", upstream, "total_ms = 1_000"),
        format!("[circuit_breaker]\nfailure_threshold = 1\n{HOUR}\n"),
    ];
    let front = Front { gateway: Gateway::start("admin_token = \"adm-7Wq2kZ\"", &models).await, mock };
    let mut asking = front.asking(GOOD_STREAM).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let answer = Answer::read(&mut asking).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("\"the upstream was not done within 1s\""), "{} bytes", answer.body.len());
    assert_part(&front.told("chat").await, &json!({"state": "closed", "failures": 0}));
    assert_eq!(front.ask(GOOD).await.status, 200);
    front.stop().await;
}

/// Whoever comes while a probe is under way is told to come again soon, and a probe whose client goes makes room.
#[tokio::test]
async fn probes_are_few_and_may_go() {
    let front = Front::start("failure_threshold = 1\nopen_ms = 1\nmax_open_ms = 1").await;
    front.mock.script(Script::new().status(500));
    assert_eq!(front.ask(GOOD).await.status, 500);
    front.until("the open period to end", |told| told["state"] == "half-open").await;
    front.mock.script_for("chat", Script::new().words(1_000).pace(Duration::from_millis(100)));
    let probing = front.asking(GOOD_STREAM).await;
    within("the probe", front.mock.until(|stats| stats.running == 1)).await;
    for _ in 0..3 {
        assert_eq!(assert_open(&front.ask(GOOD).await, "\"chat\" has failed too often, and it is being"), 1);
    }
    assert_part(&front.told("chat").await, &json!({"state": "half-open", "probes": 1}));
    drop(probing);
    front.until("room for another probe", |told| told["probes"] == 0).await;
    front.mock.script_for("chat", Script::new());
    assert_eq!((front.ask(GOOD).await.status, front.mock.calls()), (200, 3));
    front.until("the breaker to close", |told| told["state"] == "closed").await;
    front.stop().await;
}

#[tokio::test]
async fn an_upstream_that_says_when_to_come_back() {
    let front = Front::start("failure_threshold = 1\nopen_ms = 1\nmax_open_ms = 1").await;
    front.mock.script(Script::new().status(429).header("retry-after", "70"));
    assert_eq!(front.ask(GOOD).await.status, 429);
    assert!((40..=70).contains(&assert_open(&front.ask(GOOD).await, "\"chat\"")));
    front.command("/chat/reset").await;
    // An hour is the most that is believed.
    front.mock.script(Script::new().status(503).header("retry-after", "86400"));
    assert_eq!(front.ask(GOOD).await.status, 503);
    assert!((3_570..=3_600).contains(&assert_open(&front.ask(GOOD).await, "\"chat\"")));
    front.stop().await;
}

#[tokio::test]
async fn shares_of_failures_and_of_slow_calls() {
    let windows = [
        ("failure_percent = 50", Script::new().status(500)),
        ("slow_percent = 50\nslow_ms = 1", Script::new().latency(Duration::from_millis(20))),
    ];
    for (window, bad) in windows {
        let settings = format!("failure_threshold = \"off\"\n{window}\nmin_calls = 4\n{HOUR}");
        let front = Front::start(&settings).await;
        if window.starts_with("failure") {
            front.ask(GOOD).await;
            front.ask(GOOD).await;
            front.mock.script_for("chat", bad);
            front.ask(GOOD).await;
            assert_part(&front.told("chat").await, &json!({"state": "closed", "calls": 3, "failures": 1}));
            front.ask(GOOD).await;
        } else {
            front.mock.script_for("chat", bad);
            for _ in 0..4 {
                assert_eq!(front.ask(GOOD).await.status, 200);
            }
            assert_part(&front.told("chat").await, &json!({"slow": 4, "failures": 0}));
        }
        assert_part(&front.told("chat").await, &json!({"state": "open", "calls": 4, "opens": 1}));
        assert_open(&front.ask(GOOD).await, "\"chat\"");
        front.stop().await;
    }
}

#[tokio::test]
async fn refusals_cost_no_tokens() {
    let front = Front::start("[rate_limits]\ntokens_per_hour = 1_000").await;
    front.command("/chat/force-open").await;
    for _ in 0..5 {
        assert_eq!(front.ask(GOOD).await.status, 503);
    }
    front.command("/chat/reset").await;
    let answer = front.ask(GOOD).await;
    let left = format!(";r={};", 1_000 - GOOD.len().div_ceil(4));
    assert!(answer.header("ratelimit").unwrap().contains(&left), "{answer:?}");
    front.stop().await;
}

#[tokio::test]
async fn breakers_that_are_not_wanted() {
    let (mock, upstream) = mock().await;
    mock.script_always(Script::new().status(500));
    let models = [
        model("chat", upstream, ""),
        model("watched", upstream, "circuit_breaker = true"),
        "[circuit_breaker]\nenabled = false\nfailure_threshold = 1\n".to_owned(),
    ];
    let front = Front { gateway: Gateway::start("admin_token = \"adm-7Wq2kZ\"", &models).await, mock };
    for _ in 0..10 {
        assert_eq!(front.ask(GOOD).await.status, 500);
    }
    assert_eq!(front.told("chat").await["state"], "disabled");
    assert_eq!(front.ask_for("watched").await.status, 500);
    assert_open(&front.ask_for("watched").await, "\"watched\"");
    // By hand one is switched on.
    assert_eq!(front.command("/chat/reset").await["state"], "closed");
    assert_eq!(front.ask(GOOD).await.status, 500);
    assert_open(&front.ask(GOOD).await, "\"chat\"");
    front.stop().await;
}

#[tokio::test]
async fn commands_that_are_wrong() {
    let front = Front::start("").await;
    let not_found = "invalid_request_error";
    for (path, code, words) in [
        ("/chta/reset", "breaker_not_found", "but those of chat, other, meta/llama 3"),
        ("//reset", "breaker_not_found", "\"\""),
        ("/llama%203/reset", "breaker_not_found", "\"llama 3\""),
        ("/chat/reset/", "breaker_not_found", "\"chat/reset\""),
        ("/reset", "breaker_not_found", "\"reset\""),
        ("/chat/close", "unknown_url", "\"close\" for a circuit breaker, but reset, force-open and disable"),
        ("/chat/", "unknown_url", "\"\""),
        ("/chat/Reset", "unknown_url", "\"Reset\""),
        ("/", "unknown_url", "/admin/breakers/"),
    ] {
        front.admin("POST", path, ADMIN).await.assert_error(404, not_found, Some(code), words);
    }
    front.admin("POST", "/%FF/reset", ADMIN).await.assert_error(400, not_found, None, "UTF-8");
    for (method, path, allow) in [
        ("GET", "/chat/reset", "post"),
        ("DELETE", "/chat/reset", "post"),
        ("POST", "", "get, head"),
        ("PUT", "", "get, head"),
    ] {
        let answer = front.admin(method, path, ADMIN).await;
        assert_eq!(
            (answer.status, answer.header("allow")),
            (405, Some(allow)),
            "{method} {path}: {answer:?}"
        );
    }
    for headers in ["", "authorization: Bearer adm\r\n", "authorization: Basic adm-7Wq2kZ\r\n"] {
        for (method, path) in
            [("GET", ""), ("POST", "/chat/force-open"), ("POST", "/nobody/reset"), ("POST", "/%FF/x")]
        {
            let answer = front.admin(method, path, headers).await;
            answer.assert_error(401, "authentication_error", Some("invalid_api_key"), "the admin token");
            assert!(!answer.body.contains("chat"), "{answer:?}");
        }
    }
    assert_eq!((front.ask(GOOD).await.status, &front.told("chat").await["state"]), (200, &json!("closed")));
    front.stop().await;

    // Without a token there are no such paths, whatever is shown.
    let (mock, upstream) = mock().await;
    let front = Front { gateway: Gateway::start("", &[model("chat", upstream, "")]).await, mock };
    for (method, path) in [("GET", ""), ("POST", "/chat/force-open")] {
        let answer = front.admin(method, path, ADMIN).await;
        answer.assert_error(404, not_found, Some("unknown_url"), "/admin/breakers");
    }
    front.stop().await;
}
