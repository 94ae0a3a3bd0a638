//! TROUBLESHOOTING.md tells the truth: its configurations are valid, its answers are the gateway's, and what it says to
//! look at is there.

use axum::{Router, body::Body};
use gateway::{
    app::App,
    config::{Config, Environment, sample},
};
use http::{HeaderMap, Method, Request};
use http_body_util::BodyExt;
use tower::ServiceExt;

const GUIDE: &str = include_str!("../../TROUBLESHOOTING.md");

fn config(text: &str) -> Config {
    Config::from_toml("TROUBLESHOOTING.md", text, &Environment::from_iter([("ANY_KEY", "sk-any")]))
        .unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn its_configurations_are_valid() {
    let blocks: Vec<_> =
        GUIDE.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert!(blocks.len() >= 5);
    for block in blocks {
        let model =
            if block.contains("[[model]]") { "" } else { "[[model]]\nname = \"m\"\nupstream = \"mock\"\n" };
        config(&format!("{block}{model}"));
    }
}

/// The gateway, and all that it has said.
struct Asked {
    gateway: Router,
    said: String,
}

impl Asked {
    async fn ask(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> (HeaderMap, String) {
        let mut request =
            Request::builder().method(method).uri(path).header("authorization", "Bearer letmein");
        for (name, value) in headers.iter().chain(&[("content-type", "application/json")]) {
            request = request.header(*name, *value);
        }
        let response = self.gateway.clone().oneshot(request.body(Body::from(body)).unwrap()).await.unwrap();
        let (head, body) = response.into_parts();
        let body = String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap();
        for (name, value) in &head.headers {
            self.said += &format!("{name}: {}\n", value.to_str().unwrap());
        }
        self.said += &body;
        (head.headers, body)
    }

    async fn says(&mut self, model: &str, text: &str, more: &str) -> (HeaderMap, String) {
        let body =
            format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"{text}"}}]{more}}}"#);
        self.ask(Method::POST, "/v1/chat/completions", &[], body).await
    }

    async fn chat(&mut self, model: &str, headers: &[(&str, &str)]) -> (HeaderMap, String) {
        let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"Hello"}}]}}"#);
        self.ask(Method::POST, "/v1/chat/completions", headers, body).await
    }
}

#[tokio::test]
async fn its_answers_are_the_gateways_and_what_it_names_is_there() {
    // Nobody listens at a port that was free a moment ago.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = config(&format!(
        r#"
[server]
admin_token = "letmein"
[rate_limits]
requests_per_minute = 600
follow_upstreams = true
[circuit_breaker]
open_ms = 1000
[dedup]
ttl_ms = 60_000
[embedding_batches]
enabled = true
[[tenant]]
name = "acme"
requests_per_minute = 2
[[model]]
name = "mock-small"
upstream = "mock"
dedup = true
[[model]]
name = "dead"
upstream = "openai"
base_url = "http://{nobody}/v1"
[[model]]
name = "dead-with-fallback"
upstream = "openai"
base_url = "http://{nobody}/v1"
fallbacks = ["mock-small"]
[validation]
enabled = false
[[rule]]
name = "cards"
side = "request"
pii = ["cards"]
[[rule]]
name = "codenames"
side = "answer"
terms = ["nightfall"]
[[rule]]
name = "moderation"
side = "request"
moderation_url = "http://{nobody}/v1"
[[model]]
name = "guarded"
upstream = "mock"
validation = true
validation_rules = ["cards", "codenames"]
structured_output = true
[[model]]
name = "reports"
upstream = "mock"
validation = true
validation_action = "report"
validation_rules = ["cards"]
[[model]]
name = "moderated"
upstream = "mock"
validation = true
validation_rules = ["moderation"]
"#
    ));
    let (app, mock) = App::new(config).await.unwrap();
    tokio::spawn(mock);
    let mut asked = Asked { gateway: app.service(), said: sample() };

    let quoted = |body: &str| assert!(GUIDE.contains(body), "the guide does not have {body}");
    for _ in 0..5 {
        quoted(&asked.chat("dead", &[]).await.1.replace(&nobody.to_string(), "127.0.0.1:9"));
    }
    quoted(&asked.chat("dead", &[]).await.1);
    let acme = [("x-tenant-id", "acme")];
    for status in ["bartizan; fwd=miss", "bartizan; hit; ttl="] {
        let (head, _) = asked.chat("mock-small", &acme).await;
        assert!(head["cache-status"].to_str().unwrap().starts_with(status));
        quoted(status);
    }
    let (head, body) = asked.chat("mock-small", &acme).await;
    quoted(&body);
    quoted(&format!("ratelimit-policy: {}\n", head["ratelimit-policy"].to_str().unwrap()));
    let (head, _) = asked.chat("dead-with-fallback", &[]).await;
    quoted(&format!("x-bartizan-attempts: {}\n", head["x-bartizan-attempts"].to_str().unwrap()));
    quoted(&format!("x-bartizan-served-by: {}\n", head["x-bartizan-served-by"].to_str().unwrap()));
    let (head, _) = asked.chat("dead-with-fallback", &[("x-bartizan-fallback", "off")]).await;
    assert!(!head.contains_key("x-bartizan-attempts"));
    quoted(&asked.says("guarded", "4111 1111 1111 1111", "").await.1);
    for (model, text, more, code) in [
        ("guarded", "nightfall", "", "content_filter"),
        ("guarded", "hello", r#","response_format":{"type":"json_object"}"#, "invalid_answer"),
        ("guarded", "hello", r#","n":1,"n":2"#, "validation_failed"),
        ("moderated", "hello", "", "validation_unavailable"),
    ] {
        let (_, body) = asked.says(model, text, more).await;
        assert!(body.ends_with(&format!("\"code\":\"{code}\"}}}}")), "{body}");
    }
    let (head, _) = asked.says("reports", "4111 1111 1111 1111", "").await;
    quoted(&format!("`x-bartizan-validation: {}`", head["x-bartizan-validation"].to_str().unwrap()));
    let nope = asked.chat("nope", &[]).await.1.replace("\\\"", "\"");
    quoted(nope.split_once("\"message\":\"").unwrap().1.split_once("\",\"type\"").unwrap().0);
    for path in [
        "/health",
        "/metrics",
        "/admin/limits?tenant=acme",
        "/admin/dedup",
        "/admin/batches",
        "/admin/breakers",
    ] {
        asked.ask(Method::GET, path, &[], String::new()).await;
        quoted(path.split('?').next().unwrap());
    }
    for path in ["/admin/breakers/dead/reset", "/admin/health/reset"] {
        asked.ask(Method::POST, path, &[], String::new()).await;
        quoted(path);
    }

    // What only upstreams with keys and quotas say, or a gateway without descriptors, and fields of requests.
    asked.said += "invalid_api_key insufficient_quota malformed_response upstream_error out_of_descriptors \
                   encoding_format max_tokens";
    let mut named = 0;
    let code = |word: &&str| word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    for word in GUIDE.split('`').skip(1).step_by(2).filter(code) {
        assert!(asked.said.contains(word), "there is no {word}");
        named += 1;
    }
    assert!(named > 30, "{named}");
}
