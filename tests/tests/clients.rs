//! The gateway as the official `openai` Python package finds it.
//!
//! Each test runs one scenario of `clients/openai_client.py` against a gateway in front of a scripted mock, and judges
//! what the client saw. The package is in a virtual environment that `scripts/test` makes.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bartizan_provider::mock::{Mock, Script};
use gateway_under_test::{Gateway, UPSTREAM_KEY, mock, model, soon, within};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinHandle,
};

mod gateway_under_test;

/// What the client says in every scenario, and what the mock makes of it.
const SAID: &str = "Grüße aus dem Türmchen 🗼";
const ANSWERED: &str = "You said: Grüße aus dem Türmchen 🗼";

/// How often the script streams at once.
const MANY: usize = 20;

const SHORT: Duration = Duration::from_millis(1);

/// One run of the client.
struct Client {
    child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    stderr: JoinHandle<String>,
}

impl Client {
    async fn start(gateway: &Gateway, scenario: &str, model: &str) -> Self {
        let clients = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients");
        let mut child = Command::new(python())
            .arg("-I")
            .args([&clients.join("openai_client.py"), Path::new(scenario), Path::new(model)])
            // Whatever proxies, keys and organizations there are, they are not the test's.
            .env_clear()
            .env("OPENAI_BASE_URL", format!("http://{}/v1", gateway.address))
            .env("OPENAI_API_KEY", "sk-of-the-client")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the interpreter starts");
        let mut stderr = child.stderr.take().unwrap();
        let stderr = tokio::spawn(async move {
            let mut text = String::new();
            _ = stderr.read_to_string(&mut text).await;
            text
        });
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut client = Self { stdin: child.stdin.take().unwrap(), child, lines, stderr };

        let version = client.line().await["version"].as_str().unwrap().to_owned();
        let pinned = format!("\nopenai=={version}\n");
        assert!(
            include_str!("../clients/requirements.txt").contains(&pinned),
            "openai {version} is not what tests/clients/requirements.txt asks for: run scripts/test"
        );
        client
    }

    /// What it prints next.
    async fn line(&mut self) -> Value {
        match within("the client to print something", self.lines.next_line()).await.unwrap() {
            Some(line) => {
                serde_json::from_str(&line).unwrap_or_else(|_| panic!("the client printed {line:?}"))
            }
            None => panic!("the client ended early:\n{}", (&mut self.stderr).await.unwrap()),
        }
    }

    /// Lets it go on from where it waits.
    async fn go_on(&mut self) {
        self.stdin.write_all(b"\n").await.unwrap();
    }

    /// All that it still prints, to its good end.
    async fn rest(mut self) -> Vec<Value> {
        let mut all = Vec::new();
        while let Some(line) = within("the client to end", self.lines.next_line()).await.unwrap() {
            all.push(serde_json::from_str(&line).unwrap_or_else(|_| panic!("the client printed {line:?}")));
        }
        let status = within("the client to end", self.child.wait()).await.unwrap();
        assert!(status.success(), "the client failed:\n{}", self.stderr.await.unwrap());
        all
    }
}

fn python() -> PathBuf {
    let python = match std::env::var_os("BARTIZAN_PYTHON") {
        Some(python) => PathBuf::from(python),
        None => {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
            workspace.join("target/python/bin/python3")
        }
    };
    assert!(
        python.exists(),
        "there is no {}: run scripts/test, which makes it and puts the openai package there",
        python.display()
    );
    python
}

/// A gateway in front of a mock that does as `script` says, with short limits for what upstreams may leave undone.
async fn gateway(script: Script) -> (Gateway, Mock) {
    let (mock, upstream) = mock().await;
    mock.script_always(script);
    let limits = "head_ms = 300\nfirst_frame_ms = 300\nidle_ms = 300";
    let models = [
        model("chat", upstream, ""),
        model("vendor/embed-3", upstream, "model = \"embed-3\""),
        model("watched", upstream, limits),
    ];
    (Gateway::start("", &models).await, mock)
}

/// Runs one scenario against a gateway with these limits.
async fn run_limited(limits: &str, script: Script, scenario: &str) -> (Vec<Value>, Mock) {
    let (mock, upstream) = mock().await;
    mock.script_always(script);
    let gateway = Gateway::start("", &[model("chat", upstream, ""), format!("{limits}\n")]).await;
    let seen = Client::start(&gateway, scenario, "chat").await.rest().await;
    gateway.stop().await;
    (seen, mock)
}

/// Runs one scenario from its beginning to its end.
async fn run(script: Script, scenario: &str, model: &str) -> (Vec<Value>, Mock) {
    let (gateway, mock) = gateway(script).await;
    let seen = Client::start(&gateway, scenario, model).await.rest().await;
    gateway.stop().await;
    (seen, mock)
}

/// As [`run`], for a scenario that ends in one error, which is returned.
async fn fail(script: Script, scenario: &str, model: &str) -> (Value, Mock) {
    let (mut seen, mock) = run(script, scenario, model).await;
    assert_eq!(seen.len(), 1, "{seen:?}");
    (seen.remove(0), mock)
}

/// `error` is an exception of that class, with these fields.
#[track_caller]
fn assert_raised(error: &Value, class: &str, fields: &Value) {
    let classes = error["raised"].as_array().unwrap_or_else(|| panic!("no error: {error}"));
    assert!(classes.contains(&json!(class)), "no {class}: {error}");
    assert_part(error, fields);
}

/// `whole` has these fields, with these values.
#[track_caller]
fn assert_part(whole: &Value, fields: &Value) {
    for (name, value) in fields.as_object().unwrap() {
        assert_eq!(whole[name], *value, "{name} of {whole}");
    }
}

#[track_caller]
fn assert_message(error: &Value, part: &str) {
    assert!(error["message"].as_str().unwrap().contains(part), "no {part:?} in {error}");
}

/// The text that the events of a stream make.
fn contents(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["delta"].as_str()).collect()
}

#[tokio::test]
async fn chat() {
    let (seen, mock) = run(Script::new().usage(7, 5), "chat", "chat").await;
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12});
    let answer = json!({
        "model": "chat", "content": ANSWERED, "finish": "stop", "usage": usage, "request_id": "req_mock_1",
    });
    assert_eq!(seen, [answer]);

    let request = &mock.requests()[0];
    let body: Value = serde_json::from_slice(&request.body).unwrap();
    assert_eq!(body, json!({"model": "chat", "messages": [{"role": "user", "content": SAID}]}));
    assert_eq!(request.headers["authorization"], format!("Bearer {UPSTREAM_KEY}"));
}

#[tokio::test]
async fn streamed_chat() {
    // In pieces that respect neither events nor characters.
    let script = Script::new().usage(7, 5).chop(7);
    let (seen, _) = run(script, "stream", "chat").await;
    assert_eq!(contents(&seen), ANSWERED);
    let (ended, events) = seen.split_last().unwrap();
    assert_eq!(*ended, json!({"ended": true}));
    for event in events {
        assert_part(event, &json!({"id": "chatcmpl-mock-1", "model": "chat"}));
    }
    // The role, the seven words, the reason why it stopped, the usage.
    assert_eq!(events.len(), 1 + ANSWERED.split(' ').count() + 2);
    let [.., stop, usage] = events else { unreachable!() };
    assert_eq!((&stop["finish"], &stop["usage"]), (&json!("stop"), &json!(null)));
    let used = json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12});
    assert_eq!((&usage["delta"], &usage["usage"]), (&json!(null), &used));
}

/// What is given again is what was given first, event by event.
#[tokio::test]
async fn streamed_chat_that_is_kept() {
    let kept = "[dedup]\nenabled = true\nttl_ms = 3_600_000";
    let (seen, mock) = run_limited(kept, Script::new().usage(7, 5).chop(7), "repeated_stream").await;
    let (first, again) = seen.split_at(seen.len() / 2);
    assert_eq!(first[0], json!({"cache_status": "bartizan; fwd=miss", "has_age": false}));
    assert!(again[0]["cache_status"].as_str().unwrap().starts_with("bartizan; hit; ttl=35"), "{}", again[0]);
    assert_eq!((&again[0]["has_age"], &first[1..]), (&json!(true), &again[1..]));
    assert_eq!(contents(again), ANSWERED);
    let used = json!({"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12});
    let [.., usage, ended] = again else { panic!("{seen:?}") };
    assert_eq!((&usage["usage"], ended), (&used, &json!({"ended": true})));
    assert_eq!(mock.calls(), 1);
}

#[tokio::test]
async fn many_streams_at_once() {
    let (mock, upstream) = mock().await;
    mock.script_for("chat", Script::new().pace(SHORT));
    mock.script_for("chat-held", Script::new().words(10).hang_after(4));
    let models = [model("chat", upstream, ""), model("chat-held", upstream, "")];
    let gateway = Gateway::start("", &models).await;
    let mut client = Client::start(&gateway, "many_streams", "chat").await;

    let expected: Vec<_> = (0..MANY).map(|number| format!("You said: number {number} of many")).collect();
    assert_eq!(client.line().await, json!({"contents": expected}));
    assert_eq!(client.line().await, json!({"held": MANY}));
    assert_eq!(mock.running(), MANY as u64);
    client.go_on().await;
    assert_eq!(client.line().await, json!({"closed": MANY}));
    soon("the end of the streams", mock.until(|stats| stats.cancelled == MANY as u64)).await;
    assert_eq!(client.rest().await, [json!(null); 0]);
    gateway.stop().await;
}

#[tokio::test]
async fn embeddings() {
    let (seen, mock) = run(Script::new(), "embeddings", "vendor/embed-3").await;
    let [base64, floats, short, single] = &seen[..] else { panic!("{seen:?}") };
    assert_part(base64, &json!({"model": "embed-3", "indices": [0, 1, 2]}));
    assert_part(base64, &json!({"usage": {"prompt_tokens": 3, "total_tokens": 3}}));
    // Numbers pass for what they are, in either coding.
    assert_eq!(numbers(&base64["vectors"]), numbers(&floats["vectors"]));
    let vectors = numbers(&base64["vectors"]);
    assert_eq!(vectors.iter().map(Vec::len).collect::<Vec<_>>(), [16, 16, 16]);
    assert!(vectors[0] == vectors[2] && vectors[0] != vectors[1]);
    assert!(numbers(&short["vectors"]).iter().all(|vector| vector.len() == 5), "{short}");
    assert_eq!(numbers(&single["vectors"]), [vectors[0].clone()]);

    let bodies = mock.requests().into_iter().map(|request| serde_json::from_slice::<Value>(&request.body));
    let formats: Vec<_> = bodies.map(|body| body.unwrap()["encoding_format"].clone()).collect();
    assert_eq!(formats, ["base64", "float", "base64", "base64"]);
}

/// As precise as they were sent.
fn numbers(vectors: &Value) -> Vec<Vec<f32>> {
    serde_json::from_value(vectors.clone()).unwrap()
}

#[tokio::test]
async fn models() {
    let (seen, mock) = run(Script::new(), "models", "vendor/embed-3").await;
    let [list, one, error] = &seen[..] else { panic!("{seen:?}") };
    assert_eq!(*list, json!({"ids": ["chat", "vendor/embed-3", "watched"]}));
    assert_eq!(*one, json!({"id": "vendor/embed-3"}));
    assert_raised(error, "NotFoundError", &json!({"status": 404, "code": "model_not_found"}));
    assert_message(error, "vendor/embed-3-not");
    assert_eq!(mock.calls(), 0);
}

#[tokio::test]
async fn an_unknown_model() {
    let (error, mock) = fail(Script::new(), "chat", "gpt-9").await;
    let fields = json!({
        "status": 404, "type": "invalid_request_error", "code": "model_not_found", "param": "model",
        "should_retry": "false",
    });
    assert_raised(&error, "NotFoundError", &fields);
    assert_message(&error, "gpt-9");
    assert_eq!(mock.calls(), 0);
}

#[tokio::test]
async fn a_request_that_is_too_large() {
    let (error, mock) = fail(Script::new(), "long_chat", "chat").await;
    assert_raised(&error, "APIStatusError", &json!({"status": 413, "code": "request_too_large"}));
    assert_eq!(mock.calls(), 0);
}

#[tokio::test]
async fn rate_limited_by_the_upstream() {
    let (error, _) = fail(Script::new().status(429).header("retry-after", "7"), "chat", "chat").await;
    let fields = json!({"status": 429, "type": "rate_limit_error", "retry_after": "7", "should_retry": null});
    assert_raised(&error, "RateLimitError", &fields);
}

#[tokio::test]
async fn rate_limited_by_the_gateway() {
    let limits = "[rate_limits]\nrequests_per_minute = 2";
    let (seen, mock) = run_limited(limits, Script::new(), "limited_chats").await;
    let [first, second, refused, of_another, stream, models] = &seen[..] else { panic!("{seen:?}") };
    for answer in [first, second, of_another] {
        assert_part(answer, &json!({"content": ANSWERED}));
    }
    for refused in [refused, stream] {
        let fields = json!({
            "status": 429, "type": "rate_limit_error", "code": "rate_limit_exceeded", "should_retry": null,
        });
        assert_raised(refused, "RateLimitError", &fields);
        assert_message(refused, "rate limit requests_per_minute");
        let wait: u64 = refused["retry_after"].as_str().unwrap().parse().unwrap();
        assert!((1..=30).contains(&wait), "{refused}");
    }
    assert_eq!(*models, json!({"ids": ["chat"]}));
    assert_eq!(mock.calls(), 3);
}

/// It comes again when it was told to, which is early enough and late enough.
#[tokio::test]
async fn rate_limited_and_patient() {
    let limits = "[rate_limits]\nrequests_per_minute = 60\nburst = 1";
    let (seen, mock) = run_limited(limits, Script::new(), "chats_of_a_patient_client").await;
    assert_eq!(seen.len(), 2);
    seen.iter().for_each(|answer| assert_part(answer, &json!({"content": ANSWERED})));
    assert_eq!(mock.calls(), 2);
}

#[tokio::test]
async fn queued_by_the_gateway() {
    let limits = "[rate_limits]\nrequests_per_minute = 600\nburst = 1\nmax_queue = 3";
    let (seen, mock) = run_limited(limits, Script::new(), "chats_at_once").await;
    assert_eq!(seen, [json!({"contents": vec![ANSWERED; 4]})]);
    assert_eq!(mock.calls(), 4);
}

#[tokio::test]
async fn tokens_limited_by_the_gateway() {
    let limits = "[rate_limits]\ntokens_per_day = 10_000";
    let (seen, _) = run_limited(limits, Script::new().usage(900, 100), "metered_chats").await;
    let left: Vec<_> = seen.iter().map(|told| told["remaining"].as_u64().unwrap()).collect();
    let [first, second, third, fourth] = left[..] else { panic!("{seen:?}") };
    // Each is told after its own estimate. Two are settled by what they used; the stream that was not asked is not.
    let estimate = 10_000 - first;
    assert!((10..100).contains(&estimate), "{left:?}");
    assert!((9_000 - 100..9_000).contains(&second), "{left:?}");
    assert!((8_000 - 100..8_000).contains(&third), "{left:?}");
    assert!((8_000 - 200..third).contains(&fourth), "{left:?}");
}

/// The client is told to come back, and when it does so the upstream is asked again.
#[tokio::test]
async fn a_dying_upstream() {
    let (mock, upstream) = mock().await;
    mock.script_always(Script::new().status(500));
    let breaker = "[circuit_breaker]\nfailure_threshold = 2\nopen_ms = 2_000\n";
    let gateway = Gateway::start("", &[model("chat", upstream, ""), breaker.to_owned()]).await;
    let mut client = Client::start(&gateway, "chats_with_a_dying_upstream", "chat").await;
    for _ in 0..2 {
        assert_raised(&client.line().await, "InternalServerError", &json!({"status": 500}));
    }
    for _ in 0..2 {
        let refused = client.line().await;
        let fields = json!({
            "status": 503, "type": "service_unavailable_error", "code": "circuit_open", "should_retry": null,
        });
        assert_raised(&refused, "InternalServerError", &fields);
        assert_message(&refused, "\"chat\"");
        let wait: u64 = refused["retry_after"].as_str().unwrap().parse().unwrap();
        assert!((1..=3).contains(&wait), "{refused}");
    }
    assert_eq!(mock.calls(), 2);
    mock.script_always(Script::new());
    client.go_on().await;
    assert_part(&client.line().await, &json!({"content": ANSWERED}));
    assert_eq!(mock.calls(), 3);
    assert_eq!(client.rest().await, [json!(null); 0]);
    gateway.stop().await;
}

#[tokio::test]
async fn keys_of_the_gateway() {
    let keys = "[[key]]\ntenant = \"a\"\nkey = \"sk-of-the-client\"";
    let (seen, mock) = run_limited(keys, Script::new(), "chats_with_keys").await;
    let [answer, chat, models] = &seen[..] else { panic!("{seen:?}") };
    assert_part(answer, &json!({"content": ANSWERED}));
    for refused in [chat, models] {
        let fields = json!({"status": 401, "code": "invalid_api_key", "should_retry": "false"});
        assert_raised(refused, "AuthenticationError", &fields);
        assert!(!refused.to_string().contains("nobody"), "{refused}");
    }
    assert_eq!(mock.calls(), 1);
}

#[tokio::test]
async fn the_upstream_refuses_the_gateways_key() {
    let body = json!({"error": {
        "message": format!("Incorrect API key provided: {UPSTREAM_KEY}."),
        "type": "invalid_request_error", "param": null, "code": "invalid_api_key",
    }});
    let script = Script::new().status(401).body(body.to_string());
    let (error, _) = fail(script, "chat", "chat").await;
    assert_raised(&error, "AuthenticationError", &json!({"status": 401, "code": "invalid_api_key"}));
    assert!(!error.to_string().contains(&UPSTREAM_KEY[..12]), "{error}");
}

/// The client would try a 429 again, which cannot help here.
#[tokio::test]
async fn the_upstream_wants_money() {
    let body = json!({"error": {
        "message": "You exceeded your current quota.",
        "type": "insufficient_quota", "param": null, "code": "insufficient_quota",
    }});
    let script = Script::new().status(429).body(body.to_string());
    let (error, mock) = fail(script, "persistent_chat", "chat").await;
    let fields = json!({"status": 429, "type": "insufficient_quota", "code": "insufficient_quota"});
    assert_raised(&error, "RateLimitError", &fields);
    assert_part(&error, &json!({"should_retry": "false"}));
    assert_eq!(mock.calls(), 1);
}

#[tokio::test]
async fn what_is_not_to_be_tried_again_is_not() {
    let script = Script::new().status(503).header("x-should-retry", "false");
    let (error, mock) = fail(script, "persistent_chat", "chat").await;
    assert_raised(&error, "InternalServerError", &json!({"status": 503, "should_retry": "false"}));
    assert_eq!(mock.calls(), 1);
}

#[tokio::test]
async fn the_upstream_does_not_answer() {
    let (error, mock) = fail(Script::new().hang(), "chat", "watched").await;
    assert_raised(&error, "InternalServerError", &json!({"status": 504, "type": "timeout_error"}));
    assert_message(&error, "300ms");
    assert_eq!(mock.cancelled(), 1);
}

#[tokio::test]
async fn the_client_does_not_wait() {
    let impatient =
        [("impatient_chat", Script::new().hang(), 0), ("impatient_stream", Script::new().hang_after(2), 2)];
    for (scenario, script, events) in impatient {
        let (gateway, mock) = gateway(script).await;
        let mut client = Client::start(&gateway, scenario, "chat").await;
        for _ in 0..events {
            assert_part(&client.line().await, &json!({"finish": null}));
        }
        assert_raised(&client.line().await, "APITimeoutError", &json!({"status": null}));
        soon("the client's timeout", mock.until(|stats| stats.cancelled == 1)).await;
        assert_eq!(client.rest().await, [json!(null); 0]);
        gateway.stop().await;
    }
}

#[tokio::test]
async fn cancelling_in_mid_stream() {
    let (gateway, mock) = gateway(Script::new().words(60_000).pace(SHORT)).await;
    let mut client = Client::start(&gateway, "broken_off_stream", "chat").await;
    for _ in 0..3 {
        assert_part(&client.line().await, &json!({"finish": null}));
    }
    assert_eq!(client.line().await, json!({"closed": true}));
    let stats = soon("the client's close", mock.until(|stats| stats.cancelled == 1)).await;
    assert_eq!((stats.calls, stats.running, stats.completed), (1, 0, 0));
    assert_eq!(client.rest().await, [json!(null); 0]);
    gateway.stop().await;
}

/// A stream that goes wrong after four events: those come through, and then an exception that says so.
async fn fail_in_mid_stream(script: Script, fields: Value, message: &str) {
    let (seen, _) = run(script, "stream", "watched").await;
    let (error, events) = seen.split_last().unwrap();
    assert_raised(error, "APIError", &json!({"status": null}));
    assert_part(error, &fields);
    assert_message(error, message);
    assert_eq!((events.len(), contents(events).as_str()), (4, "You said: Grüße "), "{events:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut() {
    let fields = json!({"type": "api_error", "code": "upstream_error"});
    fail_in_mid_stream(Script::new().fail_after(4), fields, "cut off").await;
}

#[tokio::test]
async fn a_stream_that_stalls() {
    let fields = json!({"type": "timeout_error", "code": "timeout"});
    fail_in_mid_stream(Script::new().hang_after(4), fields, "300ms").await;
}

#[tokio::test]
async fn a_stream_that_ends_too_early() {
    let fields = json!({"type": "api_error", "code": "upstream_error"});
    fail_in_mid_stream(Script::new().end_after(4), fields, "[DONE]").await;
}

#[tokio::test]
async fn a_stream_with_garbage_in_it() {
    let fields = json!({"type": "api_error", "code": "malformed_response"});
    fail_in_mid_stream(Script::new().garbage_after(4), fields, "stream").await;
}

#[tokio::test]
async fn a_stream_with_an_error_in_it() {
    let error = r#"data: {"error":{"message":"The engine is overloaded","type":"server_error","param":null,"code":"engine_overloaded_error"}}"#;
    let chunk = |text| {
        format!(
            "data: {}\n\n",
            json!({"id": "1", "model": "m", "choices": [{"index": 0, "delta": {"content": text}}]})
        )
    };
    let frames = [chunk("You "), chunk("said: "), chunk("Grüße "), chunk(""), format!("{error}\n\n")];
    let script = Script::new().header("content-type", "text/event-stream").frames(frames);
    fail_in_mid_stream(script, json!({"code": "engine_overloaded_error"}), "overloaded").await;
}

/// A gateway with three models, each with an upstream of its own, of which the first falls back to the others.
async fn with_fallbacks(rest: &str) -> (Gateway, [Mock; 3]) {
    let ((first, a), (second, b), (third, c)) = (mock().await, mock().await, mock().await);
    let limits = "head_ms = 300\nfirst_frame_ms = 300\nidle_ms = 300\n";
    let models = [
        model("chat", a, &format!("{limits}fallbacks = [\"second\", \"third\"]")),
        model("second", b, limits),
        model("third", c, limits),
        // So that every scenario finds all models as it wants them.
        format!("[circuit_breaker]\nenabled = false\n{rest}\n"),
    ];
    (Gateway::start("", &models).await, [first, second, third])
}

impl Client {
    /// Lets it stream once more, and returns what it sees.
    async fn stream_once_more(&mut self) -> Vec<Value> {
        self.go_on().await;
        let mut seen = Vec::new();
        loop {
            seen.push(self.line().await);
            let last = seen.last().unwrap();
            if last.get("ended").is_some() || last.get("raised").is_some() {
                return seen;
            }
        }
    }
}

/// What the client sees of a stream: who has answered, the text, and how it ended.
fn of_stream(lines: &[Value]) -> (&Value, String, &Value) {
    let (served, rest) = lines.split_first().unwrap();
    let (ended, events) = rest.split_last().unwrap();
    (served, contents(events), ended)
}

/// Two of three upstreams die, each in every way there is; whatever they do, the client gets the third one's answer.
#[tokio::test]
async fn upstreams_that_die_before_they_have_said_anything() {
    let (gateway, [first, second, third]) = with_fallbacks("").await;
    let error = "data: {\"error\":{\"code\":\"overloaded_error\"}}\n\n";
    let ways = [
        (Script::new().fail(), "upstream_error"),
        (Script::new().hang(), "timeout"),
        (Script::new().status(500), "upstream_error"),
        (Script::new().fail_after(0), "upstream_error"),
        (Script::new().hang_after(0), "timeout"),
        (Script::new().end_after(0), "upstream_error"),
        (Script::new().garbage_after(0), "malformed_response"),
        (Script::new().fail_after(1), "upstream_error"),
        (Script::new().hang_after(1), "timeout"),
        (Script::new().end_after(1), "upstream_error"),
        (Script::new().garbage_after(1), "malformed_response"),
        (Script::new().header("content-type", "text/event-stream").body(error), "overloaded"),
    ];
    let mut client = Client::start(&gateway, "streams_with_fallbacks", "chat").await;
    // Each way with the next one, so that no two targets of a request die in the same.
    for n in 0..ways.len() {
        let ((one, code), (other, other_code)) = (&ways[n], &ways[(n + 1) % ways.len()]);
        first.script_always(one.clone());
        second.script_always(other.clone());
        let calls = third.calls();
        let seen = client.stream_once_more().await;
        let (served, text, ended) = of_stream(&seen);
        let attempts = format!("\"chat\";error={code}, \"second\";error={other_code}");
        assert_eq!(*served, json!({"served_by": "third", "attempts": attempts}), "{one:?} {other:?}");
        assert_eq!((text.as_str(), ended), (ANSWERED, &json!({"ended": true})), "{one:?} {other:?}");
        assert_eq!(third.calls(), calls + 1);
    }
    drop(client);
    let asked = ways.len() as u64;
    assert_eq!((first.calls(), second.calls(), third.calls()), (asked, asked, asked));
    gateway.stop().await;
}

/// After its first words the stream is the client's, and so is its error.
#[tokio::test]
async fn upstreams_that_die_after_they_have_said_something() {
    let (gateway, [first, second, third]) = with_fallbacks("").await;
    let mut client = Client::start(&gateway, "streams_with_fallbacks", "chat").await;
    for (script, code) in [
        (Script::new().fail_after(4), "upstream_error"),
        (Script::new().hang_after(4), "timeout"),
        (Script::new().end_after(4), "upstream_error"),
        (Script::new().garbage_after(4), "malformed_response"),
    ] {
        first.script_always(script);
        let seen = client.stream_once_more().await;
        let (served, text, error) = of_stream(&seen);
        assert_eq!(
            (served, text.as_str()),
            (&json!({"served_by": "chat", "attempts": null}), "You said: Grüße ")
        );
        assert_raised(error, "APIError", &json!({"code": code}));
    }
    drop(client);
    assert_eq!((second.calls(), third.calls()), (0, 0));
    gateway.stop().await;
}

/// Plain and streamed; and as one who wants this model and no other.
#[tokio::test]
async fn who_has_answered() {
    let (gateway, [first, second, third]) = with_fallbacks("").await;
    first.script_always(Script::new().status(500));
    let seen = Client::start(&gateway, "chats_with_fallbacks", "chat").await.rest().await;
    let served = json!({"served_by": "second", "attempts": "\"chat\";error=upstream_error"});
    let ([plain_by, plain, stream @ ..], [alone, alone_stream]) = seen.split_at(seen.len() - 2) else {
        panic!("{seen:?}")
    };
    assert_eq!((plain_by, &plain["content"]), (&served, &json!(ANSWERED)));
    assert_eq!(of_stream(stream), (&served, ANSWERED.to_owned(), &json!({"ended": true})));
    for error in [alone, alone_stream] {
        assert_raised(error, "InternalServerError", &json!({"status": 500, "attempts": null}));
    }
    assert_eq!((first.calls(), second.calls(), third.calls()), (4, 2, 0));
    gateway.stop().await;
}

/// Pitfalls 42 and 59: nobody multiplies. The client would retry twice, and is told not to.
#[tokio::test]
async fn all_upstreams_are_dead() {
    let rest = "[fallback]\nretries = 2\nattempts = 5";
    let (gateway, mocks) = with_fallbacks(rest).await;
    mocks.iter().for_each(|mock| mock.script_always(Script::new().status(503).header("retry-after-ms", "1")));
    let seen = Client::start(&gateway, "persistent_chat", "chat").await.rest().await;
    let [error] = &seen[..] else { panic!("{seen:?}") };
    let fields = json!({
        "status": 503, "code": "overloaded", "should_retry": "false",
        "attempts": "\"chat\";error=overloaded, \"second\";error=overloaded",
    });
    assert_raised(error, "InternalServerError", &fields);
    assert_eq!(mocks.each_ref().map(Mock::calls), [3, 2, 0]);
    gateway.stop().await;
}

/// A card's number, which no error, header or event may repeat.
const CARD: &str = "4111 1111 1111 1111";

/// Rules of each severity for requests, one for answers, and models at each level.
async fn guarded(script: Script) -> (Gateway, Mock) {
    let (mock, upstream) = mock().await;
    mock.script_always(script);
    let models = [
        ("strict", "validation_level = \"strict\""),
        ("moderate", ""),
        ("lenient", "validation_level = \"lenient\""),
        ("reports", "validation_action = \"report\""),
        ("off", "validation = false"),
    ];
    let rule = |name, side, more| format!("[[rule]]\nname = \"{name}\"\nside = \"{side}\"\n{more}\n");
    let rules = [
        rule("polite", "request", "severity = \"warn\"\ndeny = '(?i)at once'"),
        rule("cards", "request", "pii = [\"cards\"]"),
        rule("weapons", "request", "severity = \"safety\"\nterms = [\"trebuchet\"]"),
        rule("size", "request", "max_bytes = 1000"),
        rule("codenames", "answer", "severity = \"safety\"\nterms = [\"red door\"]"),
        "[validation]\nwindow_bytes = 16\noverlap_bytes = 64\nwindow_ms = 10_000\n".to_owned(),
    ];
    let models: Vec<_> = models.iter().map(|(name, more)| model(name, upstream, more)).collect();
    (Gateway::start("", &[models.concat(), rules.concat()]).await, mock)
}

impl Client {
    /// Asks a model plain and streamed, and returns what the client saw of each.
    async fn guarded(&mut self, model: &str, text: &str) -> [Vec<Value>; 2] {
        let asked = json!({"model": model, "text": text}).to_string();
        self.stdin.write_all(format!("{asked}\n").as_bytes()).await.unwrap();
        let mut plain = vec![self.line().await];
        if plain[0].get("raised").is_none() {
            plain.push(self.line().await);
        }
        let mut stream = Vec::new();
        loop {
            stream.push(self.line().await);
            let last = stream.last().unwrap();
            if last.get("ended").is_some() || last.get("raised").is_some() {
                return [plain, stream];
            }
        }
    }
}

/// Every level, plain and streamed: who is refused learns each rule and place, and whoever passes finds them in the head.
#[tokio::test]
async fn requests_that_break_rules() {
    let (gateway, mock) = guarded(Script::new().text("fine")).await;
    let mut client = Client::start(&gateway, "guarded_chats", "-").await;
    let long = "x".repeat(1_000);
    let (passes, reports, policy, form) = (0, 1, 422, 400);
    let mut calls = 0;
    for (text, rule, is, outcomes) in [
        ("hello", "", "", [passes, passes, passes, passes, passes]),
        ("at once!", "polite", "warn", [policy, reports, reports, reports, passes]),
        (CARD, "cards", "error", [policy, policy, reports, reports, passes]),
        ("a trebuchet", "weapons", "safety", [policy, policy, policy, reports, passes]),
        (&long, "size", "error", [form, form, reports, reports, passes]),
    ] {
        for (model, outcome) in ["strict", "moderate", "lenient", "reports", "off"].into_iter().zip(outcomes)
        {
            let at = if rule == "size" { "" } else { "/messages/0/content" };
            for seen in client.guarded(model, text).await {
                assert!(!seen.iter().any(|line| line.to_string().contains(CARD)), "{seen:?}");
                if outcome >= 400 {
                    let [error] = &seen[..] else { panic!("{seen:?}") };
                    let (class, code, param) = if outcome == policy {
                        ("UnprocessableEntityError", "content_policy_violation", json!("messages[0].content"))
                    } else {
                        ("BadRequestError", "validation_failed", json!(null))
                    };
                    let fields = json!({
                        "status": outcome, "type": "invalid_request_error", "code": code, "param": param,
                        "should_retry": "false", "validation": null,
                    });
                    assert_raised(error, class, &fields);
                    let place = if at.is_empty() { String::new() } else { format!(" at {at}") };
                    assert_message(error, &format!("rule \"{rule}\"{place}: "));
                    continue;
                }
                calls += 1;
                let told = match (outcome == reports, at) {
                    (false, _) => json!(null),
                    (true, "") => json!(format!("\"{rule}\";is={is}")),
                    (true, at) => json!(format!("\"{rule}\";at=\"{at}\";is={is}")),
                };
                assert_eq!(seen[0], json!({"validation": told}), "{model} {rule}");
                let text = seen[1]["content"].as_str().map_or_else(|| contents(&seen), ToOwned::to_owned);
                assert_eq!(text, "fine", "{seen:?}");
            }
            assert_eq!(mock.calls(), calls, "a refused request is sent to nobody");
        }
    }
    drop(client);
    gateway.stop().await;
}

/// A whole answer is a 502; of a stream the client gets the windows before, and an exception instead of the next.
#[tokio::test]
async fn answers_that_break_rules() {
    let (gateway, mock) =
        guarded(Script::new().text("there is no harm in this; behind the red door however")).await;
    let mut client = Client::start(&gateway, "guarded_chats", "-").await;
    for model in ["strict", "moderate", "lenient"] {
        let [plain, stream] = client.guarded(model, "hello").await;
        let [error] = &plain[..] else { panic!("{plain:?}") };
        let fields =
            json!({"status": 502, "type": "api_error", "code": "content_filter", "should_retry": "false"});
        assert_raised(error, "InternalServerError", &fields);
        assert_message(error, "rule \"codenames\" at /choices/0/message/content: ");

        let (error, events) = stream.split_last().unwrap();
        assert_raised(error, "APIError", &json!({"status": null, "code": "content_filter"}));
        assert_message(error, "rule \"codenames\": a term that must not be there is there");
        let text = contents(events);
        assert!(text.starts_with("there is no harm") && !text.contains("red"), "{text:?}");
    }
    for (model, told) in [
        ("reports", json!("\"codenames\";at=\"/choices/0/message/content\";is=safety")),
        ("off", json!(null)),
    ] {
        let [plain, stream] = client.guarded(model, "hello").await;
        assert_eq!(plain[0], json!({"validation": told}));
        assert!(plain[1]["content"].as_str().unwrap().contains("red door"), "{plain:?}");
        assert!(contents(&stream).contains("red door"), "{stream:?}");
    }
    assert_eq!(mock.calls(), 10);
    drop(client);
    gateway.stop().await;
}

/// The client's own `response_format`, held to it.
#[tokio::test]
async fn answers_of_the_wrong_form() {
    let structured = "[validation]\nstructured_output = true";
    let (seen, _) = run_limited(structured, Script::new().text(r#"{"age": 7}"#), "structured_chats").await;
    assert_eq!(seen[1], json!({"content": r#"{"age": 7}"#}));
    assert_eq!(
        (contents(&seen[3..]).as_str(), seen.last()),
        (r#"{"age": 7}"#, Some(&json!({"ended": true})))
    );

    let (seen, _) = run_limited(structured, Script::new().text(r#"{"age": "7"}"#), "structured_chats").await;
    let [plain, head, events @ .., stream] = &seen[..] else { panic!("{seen:?}") };
    let words = "rule \"structured_output\" at /choices/0/message/content/age: the value is not of type";
    assert_raised(plain, "InternalServerError", &json!({"status": 502, "code": "invalid_answer"}));
    assert_message(plain, words);
    assert_eq!(*head, json!({"validation": null}));
    assert_raised(stream, "APIError", &json!({"status": null, "code": "invalid_answer"}));
    assert!(events.iter().all(|event| event["finish"].is_null()), "no good end: {events:?}");
}
