//! What the gateway tells of itself while upstreams die and recover.

use std::{collections::BTreeMap, net::Ipv4Addr, process::Stdio, time::Duration};

use bartizan_provider::mock::{Mock, Script};
use gateway::{
    app::App,
    config::{Config, Environment},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    process::Command,
    time::sleep,
};
use tower::ServiceExt;

use crate::{
    gateway_under_test::{Gateway, mock, model, within},
    wire::{Answer, GOOD, GOOD_STREAM, chat, exchange, send},
};

const ADMIN: &str = "authorization: Bearer adm-7Wq2kZ\r\n";

/// Breakers that stay out of the way.
const NO_BREAKER: &str = "[circuit_breaker]\nenabled = false\n";

async fn start(more: &[&str]) -> (Gateway, Mock) {
    let (mock, upstream) = mock().await;
    let mut models = vec![
        model("chat", upstream, "head_ms = 200\nidle_ms = 200"),
        // TOML's strings, as the configuration's.
        model("a \\\"b\\\" \\\\", upstream, ""),
    ];
    models.extend(more.iter().map(|more| format!("{more}\n")));
    (Gateway::start("admin_token = \"adm-7Wq2kZ\"", &models).await, mock)
}

async fn request(gateway: &Gateway, method: &str, path: &str, headers: &str) -> Answer {
    let head = format!("{method} {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n");
    exchange(gateway.address, head.as_bytes()).await
}

async fn health(gateway: &Gateway) -> Value {
    let answer = request(gateway, "GET", "/health", "").await;
    let told: Value = serde_json::from_str(&answer.body).unwrap();
    let expected = if told["status"] == "unhealthy" { 503 } else { 200 };
    assert_eq!((answer.status, answer.header("content-type")), (expected, Some("application/json")));
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    told
}

async fn provider(gateway: &Gateway) -> Value {
    health(gateway).await["provider_health"]["chat"].take()
}

/// The samples of `/metrics`: a name with its labels, and a number.
async fn metrics(gateway: &Gateway) -> BTreeMap<String, f64> {
    let answer = request(gateway, "GET", "/metrics", "").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let sample = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    answer.body.lines().filter(|line| !line.starts_with('#')).map(sample).collect()
}

async fn ask(gateway: &Gateway, n: usize, body: &str) {
    for _ in 0..n {
        exchange(gateway.address, &chat(body)).await;
    }
}

#[track_caller]
fn assert_part(whole: &Value, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(whole[name], *value, "{name} of {whole}");
    }
}

/// All that the seed's `get_health()` promises, while an upstream is well, dies, is brought back and is well again.
#[tokio::test]
async fn an_upstream_that_dies_and_recovers() {
    let (gateway, mock) = start(&[NO_BREAKER]).await;
    let told = health(&gateway).await;
    assert_part(&told, &json!({"status": "healthy", "draining": false}));
    assert_part(&told["provider_health"]["chat"], &json!({"success_rate": null, "last_error": null}));

    mock.script_always(Script::new().usage(7, 5));
    ask(&gateway, 10, GOOD).await;
    let told = provider(&gateway).await;
    assert_part(&told, &json!({"status": "healthy", "success_rate": 1.0, "requests": 10, "errors": {}}));
    assert!(told["response_time"]["p50_ms"].as_f64().unwrap() > 0.0, "{told}");
    assert!(told["time_to_first_frame"]["p99_ms"].as_f64().unwrap() > 0.0, "{told}");

    // A tenth of failures, and it is degraded.
    mock.script_always(Script::new().status(500));
    ask(&gateway, 2, GOOD).await;
    let told = health(&gateway).await;
    assert_eq!(told["status"], "degraded");
    assert_part(&told["provider_health"]["chat"], &json!({"status": "degraded", "consecutive_failures": 2}));
    mock.script_always(Script::new().hang());
    ask(&gateway, 8, GOOD).await;
    let told = health(&gateway).await;
    // One of two models still works.
    assert_eq!(told["status"], "degraded");
    let chat = &told["provider_health"]["chat"];
    assert_part(
        chat,
        &json!({"status": "unhealthy", "success_rate": 0.5, "errors": {"upstream": 2, "timeout": 8}}),
    );
    assert!(chat["last_error"]["message"].as_str().unwrap().contains("200ms"), "{chat}");
    assert!(chat["last_error"]["seconds_ago"].as_f64().unwrap() < 30.0, "{chat}");
    let sums = json!({
        "total_requests": 20, "successful_requests": 10, "failed_requests": 10, "success_rate": 0.5,
        "prompt_tokens": 70, "completion_tokens": 50, "responses": {"200": 10, "500": 2, "504": 8},
    });
    assert_part(&told["metrics"], &sums);
    assert!(told["metrics"]["overhead_us"]["p50"].as_f64().unwrap() > 0.0, "{told}");

    // Nobody waits for the window.
    let answer = request(&gateway, "POST", "/admin/health/reset", ADMIN).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = provider(&gateway).await;
    assert_part(&told, &json!({"status": "healthy", "requests": 0, "consecutive_failures": 0}));
    assert_eq!(
        metrics(&gateway).await["gateway_upstream_requests_total{model=\"chat\",outcome=\"failure\"}"],
        10.0
    );
    mock.script_always(Script::new());
    ask(&gateway, 3, GOOD).await;
    assert_part(&provider(&gateway).await, &json!({"status": "healthy", "success_rate": 1.0, "requests": 3}));
    gateway.stop().await;
}

/// When nothing works any more a monitor that looks at nothing but the status sees it.
#[tokio::test]
async fn no_upstream_works() {
    let (mock, upstream) = mock().await;
    mock.script_always(Script::new().fail());
    let gateway = Gateway::start("", &[model("chat", upstream, "")]).await;
    ask(&gateway, 5, GOOD).await;
    // Its breaker is open, long before there are calls enough for a share.
    let told = health(&gateway).await;
    assert_eq!(told["status"], "unhealthy");
    assert_part(&told["provider_health"]["chat"], &json!({"status": "unhealthy", "circuit_breaker": "open"}));
    assert_eq!(told["layers"]["circuit_breakers"][0]["state"], "open");
    let metrics = metrics(&gateway).await;
    assert_eq!(metrics["gateway_circuit_breaker_state{model=\"chat\",state=\"open\"}"], 1.0);
    assert_eq!(metrics["gateway_circuit_breaker_state{model=\"chat\",state=\"closed\"}"], 0.0);
    assert_eq!(metrics["gateway_circuit_breaker_opens_total{model=\"chat\"}"], 1.0);
    assert_eq!(metrics["gateway_upstream_state{model=\"chat\",state=\"unhealthy\"}"], 1.0);
    // It is alive, and may be sent work, all the same.
    assert_eq!(request(&gateway, "GET", "/livez", "").await.status, 200);
    assert_eq!(request(&gateway, "GET", "/readyz", "").await.status, 200);
    gateway.stop().await;
}

/// With `shed` a model that is unhealthy is not asked, and comes back by itself.
#[tokio::test]
async fn what_is_unhealthy_is_shed_until_its_window_is_empty() {
    let (gateway, mock) =
        start(&[NO_BREAKER, "[health]\nshed = true\nwindow_ms = 1_600\nmin_requests = 2"]).await;
    mock.script_always(Script::new().status(500));
    ask(&gateway, 2, GOOD).await;
    mock.script_always(Script::new());
    let answer = exchange(gateway.address, &chat(GOOD)).await;
    answer.assert_error(503, "service_unavailable_error", Some("unhealthy"), "health: unhealthy");
    assert!(matches!(answer.header("retry-after"), Some("1" | "2")), "{answer:?}");
    assert_eq!(mock.calls(), 2);
    let metrics = metrics(&gateway).await;
    assert_eq!(metrics["gateway_upstream_shed_total{model=\"chat\"}"], 1.0);
    sleep(Duration::from_millis(1_700)).await;
    assert_eq!(exchange(gateway.address, &chat(GOOD)).await.status, 200);
    gateway.stop().await;
}

/// Fallbacks take over at once for what is unhealthy: its upstream is asked no more.
#[tokio::test]
async fn fallbacks_skip_what_is_unhealthy() {
    let (mock, upstream) = mock().await;
    let models = [
        model("chat", upstream, "fallbacks = [\"other\"]"),
        model("other", upstream, ""),
        format!("{NO_BREAKER}[health]\nshed = true\nmin_requests = 2\n"),
    ];
    let gateway = Gateway::start("", &models).await;
    mock.script_for("chat", Script::new().status(500));
    for asked in [2, 4, 5, 6] {
        assert_eq!(exchange(gateway.address, &chat(GOOD)).await.status, 200);
        assert_eq!(mock.calls(), asked);
    }
    let told = health(&gateway).await;
    assert_part(&told["provider_health"]["chat"], &json!({"status": "unhealthy", "requests": 2}));
    assert_eq!(told["provider_health"]["other"]["status"], "healthy");
    let metrics = metrics(&gateway).await;
    assert_eq!(metrics["gateway_fallback_took_over_total{model=\"other\"}"], 4.0);
    assert_eq!(metrics["gateway_upstream_shed_total{model=\"chat\"}"], 2.0);
    gateway.stop().await;
}

/// A request that nobody has answered is seen wherever operators look, and why.
#[tokio::test]
async fn requests_that_no_fallback_has_answered() {
    let (mock, upstream) = mock().await;
    let models = [
        model("chat", upstream, "fallbacks = [\"other\"]"),
        model("other", upstream, ""),
        format!("{NO_BREAKER}[fallback]\nwithin_ms = 300\n"),
    ];
    let gateway = Gateway::start("admin_token = \"adm-7Wq2kZ\"", &models).await;
    mock.script_always(Script::new().status(500));
    ask(&gateway, 2, GOOD).await;
    mock.script_always(Script::new().hang());
    ask(&gateway, 1, GOOD).await;

    let whys = [("exhausted", 2), ("out_of_time", 1), ("no_target", 0)];
    let told = health(&gateway).await;
    let expected: Value = whys.iter().map(|(why, n)| json!({"name": why, "requests": n})).collect();
    assert_eq!(told["layers"]["fallback_unanswered"], expected, "{told}");
    let metrics = metrics(&gateway).await;
    let admin = request(&gateway, "GET", "/admin/fallbacks", ADMIN).await;
    let admin: Value = serde_json::from_str(&admin.body).unwrap();
    for (why, n) in whys {
        let sample = format!("gateway_fallback_unanswered_total{{why=\"{why}\"}}");
        assert_eq!(metrics.get(&sample), Some(&f64::from(n)), "{metrics:?}");
        assert_eq!(admin[why], n, "{admin}");
    }
    gateway.stop().await;
}

/// A client that goes before its answer has begun has got none, and is counted all the same.
#[tokio::test]
async fn clients_that_go_before_their_answer_are_counted() {
    let (gateway, mock) = start(&[NO_BREAKER]).await;
    ask(&gateway, 1, GOOD).await;
    mock.script_always(Script::new().hang());
    for asked in [2, 3] {
        let asking = send(gateway.address, &chat(GOOD)).await;
        within("the upstream to be asked", mock.until(|stats| stats.calls == asked)).await;
        drop(asking);
    }
    let metrics = within("both to be counted", async {
        loop {
            let metrics = metrics(&gateway).await;
            if metrics.get("gateway_abandoned_requests_total") != Some(&1.0) {
                return metrics;
            }
        }
    })
    .await;
    for (name, value) in [
        ("gateway_abandoned_requests_total", 2.0),
        ("gateway_responses_total{code=\"200\"}", 1.0),
        ("gateway_overhead_seconds_count", 3.0),
    ] {
        assert_eq!(metrics.get(name), Some(&value), "{name}");
    }
    let told = health(&gateway).await;
    assert_part(&told["metrics"], &json!({"abandoned_requests": 2, "responses": {"200": 1}}));
    gateway.stop().await;
}

/// Going away is said by `/readyz`; `/health` tells of it, and answers for the models as before.
#[tokio::test]
async fn a_gateway_that_drains() {
    let (mock, upstream) = mock().await;
    let text = format!("[server]\nlisten = \"127.0.0.1:0\"\n{}", model("chat", upstream, ""));
    let environment = Environment::from_iter([("UPSTREAM_KEY", "sk-up")]);
    let config = Config::from_toml("test.toml", &text, &environment).unwrap();
    let (app, _beside) = App::new(config).await.unwrap();
    let get = async |path: &str| {
        let request = http::Request::get(path).body(axum::body::Body::empty()).unwrap();
        let response = app.service().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        (status, String::from_utf8(body.into()).unwrap())
    };
    assert_eq!(get("/readyz").await, (200, "ready\n".to_owned()));
    app.drain();
    assert_eq!(get("/readyz").await, (503, "draining\n".to_owned()));
    assert_eq!(get("/livez").await.0, 200);
    let (status, told) = get("/health").await;
    assert_eq!(status, 200);
    let told = serde_json::from_str(&told).unwrap();
    assert_part(&told, &json!({"status": "healthy", "draining": true}));
    drop(mock);
}

/// Streams: the first frame, the tokens, and one that breaks off or whose client goes.
#[tokio::test]
async fn streams_are_told_as_what_they_were() {
    let (gateway, mock) = start(&[NO_BREAKER]).await;
    let asked =
        GOOD_STREAM.replace("\"stream\":true", "\"stream\":true,\"stream_options\":{\"include_usage\":true}");
    mock.script(Script::new().usage(3, 4).words(3).pace(Duration::from_millis(30)));
    ask(&gateway, 1, &asked).await;
    mock.script(Script::new().end_after(2));
    ask(&gateway, 1, &asked).await;
    mock.script(Script::new().words(9).pace(Duration::from_millis(50)));
    let mut asking = send(gateway.address, &chat(&asked)).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("data:") {
        within("the stream to begin", asking.read_buf(&mut seen)).await.unwrap();
    }
    drop(asking);
    within("the client's going", mock.until(|stats| stats.cancelled == 1)).await;

    let metrics = within("it to be counted", async {
        loop {
            let metrics = metrics(&gateway).await;
            if metrics["gateway_upstream_requests_total{model=\"chat\",outcome=\"cancelled\"}"] > 0.0 {
                return metrics;
            }
        }
    })
    .await;
    for (name, value) in [
        ("gateway_upstream_requests_total{model=\"chat\",outcome=\"success\"}", 1.0),
        ("gateway_upstream_requests_total{model=\"chat\",outcome=\"failure\"}", 1.0),
        ("gateway_upstream_errors_total{model=\"chat\",class=\"upstream\"}", 1.0),
        ("gateway_tokens_total{model=\"chat\",kind=\"prompt\"}", 3.0),
        ("gateway_tokens_total{model=\"chat\",kind=\"completion\"}", 4.0),
        ("gateway_upstream_duration_seconds_count{model=\"chat\"}", 2.0),
        ("gateway_responses_total{code=\"200\"}", 3.0),
        ("gateway_overhead_seconds_count", 3.0),
    ] {
        assert_eq!(metrics.get(name), Some(&value), "{name}");
    }
    assert_eq!(metrics["gateway_upstream_first_frame_seconds_count{model=\"chat\"}"], 3.0);
    assert!(metrics["gateway_upstream_duration_seconds_sum{model=\"chat\"}"] >= 0.06);
    gateway.stop().await;
}

/// What clients do wrong, and what no upstream is asked for, is no upstream's failure; all of it is an answer.
#[tokio::test]
async fn mistakes_are_answers_and_no_failures() {
    let (gateway, mock) = start(&[NO_BREAKER, "[rate_limits]\nrequests_per_minute = 2"]).await;
    mock.script(Script::new().status(400));
    ask(&gateway, 3, GOOD).await;
    ask(&gateway, 1, "{").await;
    let told = health(&gateway).await;
    assert_part(
        &told["provider_health"]["chat"],
        &json!({"status": "healthy", "errors": {"bad_request": 1}}),
    );
    let expected =
        json!({"total_requests": 2, "ignored_requests": 1, "responses": {"200": 1, "400": 2, "429": 1}});
    assert_part(&told["metrics"], &expected);
    let limit = &told["layers"]["rate_limits"][0];
    assert_part(limit, &json!({"name": "requests_per_minute", "admitted": 2, "refused": 1, "queued": 0}));
    let metrics = metrics(&gateway).await;
    assert_eq!(metrics["gateway_rate_limit_refused_total{limit=\"requests_per_minute\"}"], 1.0);
    assert_eq!(metrics["gateway_rate_limit_queue_length{limit=\"requests_per_minute\"}"], 0.0);
    gateway.stop().await;
}

/// What no pause mends opens no breaker, and nobody is served all the same: operators see why.
#[tokio::test]
async fn a_key_that_is_refused_is_seen() {
    let (gateway, mock) = start(&[]).await;
    mock.script_always(Script::new().status(401));
    ask(&gateway, 10, GOOD).await;
    let told = provider(&gateway).await;
    assert_part(&told, &json!({"status": "unhealthy", "circuit_breaker": "closed", "errors": {"auth": 10}}));
    assert!(told["last_error"]["message"].as_str().unwrap().starts_with("credentials refused"), "{told}");
    assert!(!told.to_string().contains("sk-"), "{told}");
    gateway.stop().await;
}

/// Names with quotes and backslashes, and errors with whatever upstreams say; what Prometheus's own checker says of it.
#[tokio::test]
async fn promtool_finds_nothing_wrong() {
    let rest = "[rate_limits]\nrequests_per_minute = 100\nmax_queue = 3\n[[rule]]\nname = \"a.b-c\"\nside = \"both\"\n\
                pii = [\"cards\"]";
    let (gateway, mock) = start(&[rest]).await;
    let body =
        r#"{"error":{"message":"line\nline \"quoted\" \\ {} # HELP","type":"server_error","code":null}}"#;
    mock.script(Script::new().status(500).body(body));
    ask(&gateway, 1, GOOD).await;
    ask(&gateway, 1, &GOOD.replace("chat", "a \\\"b\\\" \\\\")).await;
    let text = request(&gateway, "GET", "/metrics", "").await.body;
    let odd = "gateway_upstream_requests_total{model=\"a \\\"b\\\" \\\\\",outcome=\"success\"} 1";
    assert!(text.lines().any(|line| line == odd), "{text}");
    gateway.stop().await;

    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool, of Debian's package prometheus: scripts/test installs it");
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).await.unwrap();
    let said = within("promtool", promtool.wait_with_output()).await.unwrap();
    let words = String::from_utf8_lossy(&said.stdout) + String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && words.is_empty(), "{words}");
}

/// Model names and upstreams' words are shown to whom they may be shown, and to nobody else.
#[tokio::test]
async fn who_may_see_it() {
    let (gateway, _) = start(&["[health]\nshow_to = \"admin\""]).await;
    for path in ["/health", "/metrics"] {
        for headers in ["", "authorization: Bearer adm\r\n", "authorization: Bearer sk-of-the-client\r\n"] {
            let answer = request(&gateway, "GET", path, headers).await;
            answer.assert_error(401, "authentication_error", Some("invalid_api_key"), "admin token");
        }
        assert_eq!(request(&gateway, "GET", path, ADMIN).await.status, 200);
        let answer = request(&gateway, "POST", path, ADMIN).await;
        assert_eq!(answer.status, 405, "{answer:?}");
    }
    let answer = request(&gateway, "POST", "/admin/health/reset", "").await;
    answer.assert_error(401, "authentication_error", Some("invalid_api_key"), "admin token");
    let answer = request(&gateway, "GET", "/admin/health/reset", ADMIN).await;
    assert_eq!((answer.status, answer.header("allow")), (405, Some("post")), "{answer:?}");
    gateway.stop().await;

    // Without a token there is no way to reset anything.
    let (_, upstream) = mock().await;
    let gateway = Gateway::start("", &[model("chat", upstream, "")]).await;
    request(&gateway, "POST", "/admin/health/reset", ADMIN).await.assert_error(
        404,
        "invalid_request_error",
        Some("unknown_url"),
        "there is no",
    );
    assert_eq!(request(&gateway, "GET", "/health", "").await.status, 200);
    gateway.stop().await;
}

/// Where other machines can reach it, it is the admin's, or nobody's, unless told otherwise.
#[tokio::test]
async fn what_other_machines_may_see() {
    let service = async |more: &str| {
        let text = format!(
            "[server]\nlisten = \"0.0.0.0:0\"\nallow_remote = true\n{more}\n[[model]]\nname = \"m\"\n\
             upstream = \"openai\"\nbase_url = \"http://127.0.0.1:9/v1\"\n"
        );
        let config = Config::from_toml("test.toml", &text, &Environment::default()).unwrap();
        App::new(config).await.unwrap().0.service()
    };
    let status = async |more: &str, token: Option<&str>| {
        let mut request = http::Request::get("/health").body(axum::body::Body::empty()).unwrap();
        if let Some(token) = token {
            request.headers_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        service(more).await.oneshot(request).await.unwrap().status().as_u16()
    };
    assert_eq!(status("", None).await, 404);
    // Who may not see them is not told of them.
    let response =
        service("").await.oneshot(http::Request::get("/metrics").body(axum::body::Body::empty()).unwrap());
    let body = axum::body::to_bytes(response.await.unwrap().into_body(), usize::MAX).await.unwrap();
    let words = String::from_utf8_lossy(&body);
    assert!(words.contains("no \\\"/metrics\\\" here, but /v1/chat/completions, "), "{words}");
    assert!(words.contains("/livez, /readyz and /\"") && !words.contains("/health"), "{words}");
    assert_eq!(status("admin_token = \"adm\"", None).await, 401);
    assert_eq!(status("admin_token = \"adm\"", Some("adm")).await, 200);
    assert_eq!(status("[health]\nshow_to = \"all\"", None).await, 200);
}

/// The page needs nothing from elsewhere and holds nothing that is not the same for everybody.
#[tokio::test]
async fn the_page_stands_alone() {
    let (gateway, _) = start(&["[health]\nshow_to = \"admin\""]).await;
    let answer = request(&gateway, "GET", "/", "").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(answer.header("content-security-policy").unwrap().starts_with("default-src 'none'"));
    for elsewhere in ["http://", "https://", "src=", "@import", "innerHTML", "url("] {
        assert!(!answer.body.contains(elsewhere), "{elsewhere}");
    }
    gateway.stop().await;
}

/// Probes find a dead upstream before any client does, and an upstream that is back.
#[tokio::test]
async fn probes_find_out_what_nobody_has_asked_for() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let upstream = listener.local_addr().unwrap();
    drop(listener);
    let text = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\n[health]\nprobe_every_ms = 20\nunhealthy_probes = 2\n{}",
        model("chat", upstream, "")
    );
    let environment = Environment::from_iter([("UPSTREAM_KEY", "sk-up")]);
    let config = Config::from_toml("test.toml", &text, &environment).unwrap();
    let (app, beside) = App::new(config).await.unwrap();
    let (service, beside) = (app.service(), tokio::spawn(beside));
    let provider = async || {
        let request = http::Request::get("/health").body(axum::body::Body::empty()).unwrap();
        let response = service.clone().oneshot(request).await.unwrap();
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        let mut told: Value = serde_json::from_slice(&body).unwrap();
        told["provider_health"]["chat"].take()
    };
    let until = async |status: &str| {
        let looking = async {
            loop {
                let told = provider().await;
                if told["probes"] == status {
                    return told;
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        within(status, looking).await
    };
    let told = until("unhealthy").await;
    assert_part(&told, &json!({"status": "unhealthy", "requests": 0}));
    assert!(told["last_error"]["message"].as_str().unwrap().contains("connection refused"), "{told}");

    let mock = Mock::new();
    tokio::spawn(mock.serve(TcpListener::bind(upstream).await.unwrap()));
    assert_part(&until("healthy").await, &json!({"status": "healthy", "failed_probes": 0}));
    let request = &mock.requests()[0];
    assert_eq!(
        (request.path(), &request.headers["authorization"]),
        ("/v1/models", &"Bearer sk-up".parse().unwrap())
    );

    // A key that is refused serves nobody, and one that answers 404 to a list of models may serve all the same.
    mock.script_always(Script::new().status(401));
    let told = until("unhealthy").await;
    assert!(told["last_error"]["message"].as_str().unwrap().contains("refuses the API key"), "{told}");
    mock.script_always(Script::new().status(404));
    until("healthy").await;
    mock.script_always(Script::new().status(503));
    until("unhealthy").await;
    assert!(!provider().await.to_string().contains("sk-up"));
    beside.abort();
}
