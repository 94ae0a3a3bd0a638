//! Models that fail, and those that answer for them.

use std::net::SocketAddr;

use bartizan_provider::mock::{Mock, Script};
use serde_json::{Value, json};

use crate::{
    gateway_under_test::{Gateway, mock, model},
    wire::{Answer, CHAT, GOOD, GOOD_STREAM, assert_good, chat, exchange, with_length},
};

/// A gateway in front of three upstreams, each of which has one model.
struct Front {
    gateway: Gateway,
    chat: Mock,
    second: Mock,
    third: Mock,
}

impl Front {
    /// `more` has further lines of the model `chat`, `rest` further sections.
    async fn start(more: &str, rest: &str) -> Self {
        let ((chat, a), (second, b), (third, c)) = (mock().await, mock().await, mock().await);
        let limits = "head_ms = 300\nfirst_frame_ms = 300\nidle_ms = 300\n";
        let own = |name, upstream: SocketAddr, more: &str| model(name, upstream, &format!("{limits}{more}"));
        let models = [own("chat", a, more), own("second", b, ""), own("third", c, ""), format!("{rest}\n")];
        Self { gateway: Gateway::start("admin_token = \"adm-7Wq2kZ\"", &models).await, chat, second, third }
    }

    async fn ask(&self, body: &str) -> Answer {
        exchange(self.gateway.address, &chat(body)).await
    }

    async fn ask_with(&self, headers: &str, body: &str) -> Answer {
        exchange(self.gateway.address, &with_length(&format!("{CHAT}{headers}"), body)).await
    }

    async fn admin(&self, headers: &str) -> Answer {
        let head = "GET /admin/fallbacks HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n";
        exchange(self.gateway.address, format!("{head}{headers}\r\n").as_bytes()).await
    }

    fn calls(&self) -> [u64; 3] {
        [self.chat.calls(), self.second.calls(), self.third.calls()]
    }

    fn all_do(&self, script: &Script) {
        for mock in [&self.chat, &self.second, &self.third] {
            mock.script_always(script.clone());
        }
    }
}

const BOTH: &str = "fallbacks = [\"second\", \"third\"]";

#[track_caller]
fn assert_answered(answer: &Answer, model: &str, attempts: Option<&str>) {
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(answer.body.contains("said: ") && answer.body.contains("hello"), "{answer:?}");
    assert_eq!(answer.header("x-bartizan-served-by"), Some(model), "{answer:?}");
    assert_eq!(answer.header("x-bartizan-attempts"), attempts, "{answer:?}");
}

fn error_body(code: &str) -> String {
    json!({"error": {"message": "it is so", "type": "invalid_request_error", "param": null, "code": code}})
        .to_string()
}

#[tokio::test]
async fn the_next_model_answers() {
    let front = Front::start(BOTH, "").await;
    assert_answered(&front.ask(GOOD).await, "chat", None);
    for (status, code) in [
        (500, "upstream_error"),
        (503, "overloaded"),
        (429, "rate_limit_exceeded"),
        (401, "invalid_api_key"),
        (404, "not_found"),
    ] {
        front.chat.script(Script::new().status(status));
        let attempts = format!("\"chat\";error={code}");
        assert_answered(&front.ask(GOOD).await, "second", Some(&attempts));
    }
    front.chat.script(Script::new().fail());
    front.second.script(Script::new().hang());
    let attempts = "\"chat\";error=upstream_error, \"second\";error=timeout";
    assert_answered(&front.ask(GOOD).await, "third", Some(attempts));
    // Each was asked for its own model.
    assert!(String::from_utf8_lossy(&front.third.requests()[0].body).contains(r#""model":"third""#));
    // The others have no fallbacks.
    front.second.script(Script::new().status(500));
    let answer = front.ask(&GOOD.replace("chat", "second")).await;
    assert_eq!((answer.status, answer.header("x-bartizan-served-by")), (500, Some("second")), "{answer:?}");
    front.gateway.stop().await;
}

/// What is wrong with the request is said at once, in the upstream's own words.
#[tokio::test]
async fn a_bad_request_is_asked_of_one_model_only() {
    let front = Front::start(BOTH, "").await;
    for (status, code) in [(400, "invalid_value"), (422, "invalid_value"), (400, "context_length_exceeded")] {
        front.chat.script(Script::new().status(status).body(error_body(code)));
        let answer = front.ask(GOOD).await;
        answer.assert_error(status, "invalid_request_error", Some(code), "it is so");
        assert_eq!(answer.header("x-bartizan-attempts"), None);
    }
    assert_eq!(front.calls(), [3, 0, 0]);
    front.gateway.stop().await;
}

/// By what has failed: a larger model, another provider.
#[tokio::test]
async fn models_for_some_failures() {
    let more = "fallbacks = [\"second\"]\ncontext_length_fallbacks = [\"third\"]";
    let front = Front::start(more, "[fallback]\ncontent_policy_fallbacks = [\"second\"]").await;
    let long = || Script::new().status(400).body(error_body("context_length_exceeded"));
    front.chat.script(long());
    assert_answered(&front.ask(GOOD).await, "third", Some("\"chat\";error=context_length_exceeded"));
    front.chat.script(Script::new().status(400).body(error_body("content_filter")));
    assert_answered(&front.ask(GOOD).await, "second", Some("\"chat\";error=content_policy_violation"));
    front.chat.script(Script::new().status(500));
    assert_answered(&front.ask(GOOD).await, "second", Some("\"chat\";error=upstream_error"));
    // The one that stands in may be the smaller one.
    front.chat.script(Script::new().status(500));
    front.second.script(long());
    let attempts = "\"chat\";error=upstream_error, \"second\";error=context_length_exceeded";
    assert_answered(&front.ask(GOOD).await, "third", Some(attempts));
    // There is nobody for those whom the others have failed in this way.
    front.chat.script(long());
    front.third.script(Script::new().status(500));
    let answer = front.ask(GOOD).await;
    assert_eq!(answer.header("x-bartizan-served-by"), Some("second"), "{answer:?}");
    front.gateway.stop().await;
}

/// Pitfalls 40 and 41: whatever a stream does before its first content.
#[tokio::test]
async fn streams_that_do_not_begin() {
    let front = Front::start(BOTH, "[circuit_breaker]\nenabled = false").await;
    assert_answered(&front.ask(GOOD_STREAM).await, "chat", None);
    let overloaded = "data: {\"error\":{\"message\":\"no\",\"code\":\"overloaded_error\"}}\n\n";
    for (script, code) in [
        (Script::new().fail(), "upstream_error"),
        (Script::new().hang(), "timeout"),
        (Script::new().fail_after(0), "upstream_error"),
        (Script::new().end_after(0), "upstream_error"),
        (Script::new().hang_after(0), "timeout"),
        (Script::new().garbage_after(0), "malformed_response"),
        (Script::new().fail_after(1), "upstream_error"),
        (Script::new().end_after(1), "upstream_error"),
        (Script::new().hang_after(1), "timeout"),
        (Script::new().garbage_after(1), "malformed_response"),
        (Script::new().header("content-type", "text/event-stream").body(overloaded), "overloaded"),
    ] {
        front.chat.script(script.clone());
        let answer = front.ask(GOOD_STREAM).await;
        assert_answered(&answer, "second", Some(&format!("\"chat\";error={code}")));
        assert!(answer.body.ends_with("data: [DONE]\n\n"), "{script:?}: {answer:?}");
    }
    assert_eq!(front.chat.running(), 0);
    // Once it has begun its failure is the client's, and seen.
    front.chat.script(Script::new().fail_after(3));
    let calls = front.calls();
    let answer = front.ask(GOOD_STREAM).await;
    let (_, last) = answer.body.trim_end().rsplit_once("\n\n").unwrap();
    assert!(last.starts_with(r#"data: {"error":{"#) && last.contains("cut off"), "{answer:?}");
    assert_eq!(answer.header("x-bartizan-served-by"), Some("chat"));
    assert_eq!(front.calls(), [calls[0] + 1, calls[1], calls[2]]);
    front.gateway.stop().await;
}

/// Pitfall 59: the client would only do again what was done already.
#[tokio::test]
async fn every_model_fails() {
    let front = Front::start(BOTH, "").await;
    front.all_do(&Script::new().status(500));
    front.chat.script(Script::new().status(503).header("retry-after", "7"));
    let answer = front.ask(GOOD).await;
    answer.assert_error(503, "service_unavailable_error", Some("overloaded"), "every model that was asked");
    for name in ["chat", "second", "third"] {
        assert!(answer.body.contains(&format!(r#"\"{name}\": "#)), "{answer:?}");
    }
    assert_eq!(answer.header("x-should-retry"), Some("false"));
    assert_eq!(answer.header("retry-after"), Some("7"));
    let attempts =
        "\"chat\";error=overloaded, \"second\";error=upstream_error, \"third\";error=upstream_error";
    assert_eq!(answer.header("x-bartizan-attempts"), Some(attempts));
    assert_eq!(front.calls(), [1, 1, 1]);
    front.gateway.stop().await;
}

/// Pitfall 59, too: by retries alone. Who has asked once may ask again.
#[tokio::test]
async fn a_model_without_others_is_asked_again_and_fails() {
    let overloaded = "data: {\"error\":{\"message\":\"no\",\"code\":\"overloaded_error\"}}\n\n";
    let silent =
        ": hi\n\ndata: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n".repeat(2_000);
    let stream = || Script::new().header("content-type", "text/event-stream");
    for (retries, should_retry) in [(1, Some("false")), (0, None)] {
        let rest = format!("[fallback]\nretries = {retries}\n[circuit_breaker]\nenabled = false");
        let front = Front::start("", &rest).await;
        for (script, body, status, name) in [
            (Script::new().status(503).header("retry-after-ms", "1"), GOOD, 503, "service_unavailable_error"),
            (Script::new().status(429).header("retry-after-ms", "1"), GOOD, 429, "rate_limit_error"),
            (Script::new().fail(), GOOD, 502, "upstream_error"),
            (Script::new().fail(), GOOD_STREAM, 502, "upstream_error"),
            (Script::new().hang(), GOOD, 504, "timeout"),
            (stream().body(overloaded), GOOD_STREAM, 503, "overloaded_error"),
            (stream().body(silent.clone()), GOOD_STREAM, 502, "malformed_response"),
        ] {
            if retries == 0 && name == "malformed_response" {
                // Nobody needs to know whether it says something.
                continue;
            }
            let calls = front.chat.calls();
            front.chat.script_always(script.clone());
            let answer = front.ask(body).await;
            assert_eq!(answer.status, status, "{script:?}: {answer:?}");
            assert!(answer.body.contains(&format!(":\"{name}\"")), "{script:?}: {answer:?}");
            assert_eq!(answer.header("x-should-retry"), should_retry, "{script:?}: {answer:?}");
            assert_eq!(front.chat.calls(), calls + 1 + retries);
        }
        front.chat.script_always(Script::new());
        let answer = front.ask(GOOD).await;
        assert_eq!((answer.status, answer.header("x-should-retry")), (200, None));
        front.gateway.stop().await;
    }
}

/// A model that says when to come back is left alone until then, and others answer in its place.
#[tokio::test]
async fn a_model_that_says_when_to_come_back() {
    let front = Front::start(BOTH, "").await;
    front.chat.script(Script::new().status(429).header("retry-after", "60"));
    assert_answered(&front.ask(GOOD).await, "second", Some("\"chat\";error=rate_limit_exceeded"));
    for _ in 0..3 {
        assert_answered(&front.ask(GOOD).await, "second", Some("\"chat\";skipped"));
    }
    assert_eq!(front.calls(), [1, 4, 0]);
    // Operators see it.
    let told = front.admin("authorization: Bearer adm-7Wq2kZ\r\n").await;
    let told: Value = serde_json::from_str(&told.body).unwrap();
    let [chat, second, _] = &told["fallbacks"].as_array().unwrap()[..] else { panic!("{told}") };
    assert_eq!((&chat["failed"], &chat["skipped"], &second["took_over"]), (&json!(1), &json!(3), &json!(4)));
    let left = chat["left_alone_for"].as_f64().unwrap();
    assert!((1.0..=60.0).contains(&left) && second["left_alone_for"].is_null(), "{told}");
    assert_eq!(front.admin("").await.status, 401);
    for why in ["exhausted", "out_of_time", "no_target"] {
        assert_eq!(told[why], 0, "{told}");
    }
    // Who wants this model and no other gets it.
    assert_answered(&front.ask_with("x-bartizan-fallback: off\r\n", GOOD).await, "chat", None);
    front.gateway.stop().await;
}

/// An open breaker is one more model that fails, at once.
#[tokio::test]
async fn a_model_whose_circuit_breaker_is_open() {
    let front = Front::start(BOTH, "[circuit_breaker]\nfailure_threshold = 2\nopen_ms = 60_000").await;
    front.chat.script_always(Script::new().status(500));
    for n in 0..5 {
        let code = if n < 2 { "upstream_error" } else { "overloaded" };
        assert_answered(&front.ask(GOOD).await, "second", Some(&format!("\"chat\";error={code}")));
    }
    assert_eq!(front.calls(), [2, 5, 0]);
    front.gateway.stop().await;
}

#[tokio::test]
async fn a_request_may_forbid_fallbacks() {
    let front = Front::start(BOTH, "").await;
    front.chat.script_always(Script::new().status(500));
    let answer = front.ask_with("x-bartizan-fallback: off\r\n", GOOD).await;
    assert_eq!((answer.status, answer.header("x-bartizan-attempts")), (500, None), "{answer:?}");
    assert_eq!(front.calls(), [1, 0, 0]);
    assert!(!front.chat.requests()[0].headers.contains_key("x-bartizan-fallback"), "upstreams are not told");
    let answer = front.ask_with("x-bartizan-fallback: on\r\n", GOOD).await;
    assert_answered(&answer, "second", Some("\"chat\";error=upstream_error"));
    for bad in ["x-bartizan-fallback: no\r\n", "x-bartizan-fallback:\r\n"] {
        let answer = front.ask_with(bad, GOOD).await;
        answer.assert_error(400, "invalid_request_error", None, "either `on`, the default, or `off`");
    }
    front.gateway.stop().await;
}

/// Pitfall 42: the upstreams count.
#[tokio::test]
async fn retries_and_fallbacks_have_one_budget() {
    let rest = "[fallback]\nfallbacks = [\"second\", \"third\"]\nretries = 1\nattempts = 4";
    let front = Front::start("", rest).await;
    let failing = Script::new().status(503).header("retry-after-ms", "1");
    front.all_do(&failing);
    assert_eq!(front.ask(GOOD).await.status, 503);
    assert_eq!(front.calls(), [2, 2, 0], "four in all");
    // The second time is enough.
    front.chat.script_always(Script::new());
    front.chat.script(failing.clone());
    // It is left alone for that millisecond.
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    assert_answered(&front.ask(GOOD).await, "chat", None);
    assert_eq!(front.calls(), [4, 2, 0]);
    front.gateway.stop().await;

    let front = Front::start("retries = 2\nfallbacks = [\"third\"]", "[fallback]\nwithin_ms = 1_000").await;
    front.chat.script_always(Script::new().status(503).header("retry-after", "30"));
    assert_answered(&front.ask(GOOD).await, "third", Some("\"chat\";error=overloaded"));
    assert_eq!(front.calls(), [1, 0, 1], "there is no time to wait for half a minute");
    front.gateway.stop().await;

    let front = Front::start(BOTH, "[fallback]\nwithin_ms = 100").await;
    front.chat.script_always(Script::new().hang());
    let answer = front.ask(GOOD).await;
    answer.assert_error(504, "timeout_error", Some("timeout"), "no more time");
    assert_eq!(front.calls(), [1, 0, 0]);
    assert_good_after(&front).await;
}

async fn assert_good_after(front: &Front) {
    front.chat.script_always(Script::new());
    assert_good(front.gateway.address).await;
}
