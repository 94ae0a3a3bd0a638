//! Embedding requests that share calls: everybody's answer is his own, and so is what goes wrong.

use std::net::SocketAddr;

use bartizan_provider::mock::{Mock, Script};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::{
    gateway_under_test::{Gateway, mock, model, within},
    wire::{Answer, GOOD, chat, exchange, send, with_length},
};

const ADMIN: &str = "authorization: Bearer adm-7Wq2kZ\r\n";

struct Front {
    gateway: Gateway,
    mock: Mock,
    upstream: SocketAddr,
}

impl Front {
    /// A gateway with these settings of its batches, and what else there is to say after them.
    async fn start(batches: &str) -> Self {
        Self::on(2, batches).await
    }

    async fn on(workers: usize, batches: &str) -> Self {
        let (mock, upstream) = mock().await;
        let models = [
            model("chat", upstream, ""),
            model("embed", upstream, ""),
            format!("[embedding_batches]\n{batches}\n"),
        ];
        let server = format!("admin_token = \"adm-7Wq2kZ\"\nworkers = {workers}");
        Self { gateway: Gateway::start(&server, &models).await, mock, upstream }
    }

    async fn embed(&self, tenant: &str, input: &Value) -> Answer {
        embed(self.gateway.address, tenant, input).await
    }

    async fn get(&self, path: &str, headers: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n");
        exchange(self.gateway.address, head.as_bytes()).await
    }

    /// What there is to tell of the batches of a model.
    async fn told(&self, model: &str) -> Value {
        let answer = self.get("/admin/batches", ADMIN).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut told: Value = serde_json::from_str(&answer.body).unwrap();
        let mut all = told["batches"].as_array_mut().unwrap().iter_mut();
        all.find(|each| each["name"] == model).map_or(Value::Null, Value::take)
    }

    /// How many tokens a tenant has left.
    async fn tokens_left(&self, tenant: &str) -> u64 {
        let answer = self.get(&format!("/admin/limits?tenant={tenant}"), ADMIN).await;
        let told: Value = serde_json::from_str(&answer.body).unwrap();
        let mut all = told["limits"].as_array().unwrap().iter();
        all.find(|each| each["name"] == "tokens_per_day").unwrap()["tenant"]["available"].as_u64().unwrap()
    }
}

fn post(tenant: &str, body: &Value) -> Vec<u8> {
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\nx-tenant-id: {tenant}\r\n\
         content-type: application/json\r\n"
    );
    with_length(&head, body.to_string())
}

fn asked(input: &Value) -> Value {
    json!({"model": "embed", "input": input, "dimensions": 4})
}

async fn embed(address: SocketAddr, tenant: &str, input: &Value) -> Answer {
    exchange(address, &post(tenant, &asked(input))).await
}

/// The vectors of a good answer, in order, and the tokens.
fn vectors(answer: &Answer) -> (Vec<Value>, u64) {
    assert_eq!(answer.status, 200, "{answer:?}");
    let body: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!("embed")));
    let data = body["data"].as_array().unwrap();
    assert!(data.iter().enumerate().all(|(n, item)| item["index"] == n && item["object"] == "embedding"));
    let tokens = body["usage"]["total_tokens"].as_u64().unwrap();
    (data.iter().map(|item| item["embedding"].clone()).collect(), tokens)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_callers_at_once() {
    const CALLERS: usize = 200;
    const SIZE: usize = 20;
    const DAY: u64 = 10_000;
    let batches = format!(
        "enabled = true\nacross_tenants = true\nmax_size = {SIZE}\nlinger_ms = 2_000\n\
         [rate_limits]\ntokens_per_day = {DAY}"
    );
    let front = Front::start(&batches).await;
    let texts: Vec<_> = (0..CALLERS).map(|n| json!(format!("what caller {n} has to say"))).collect();
    let (expected, alone) = vectors(&embed(front.upstream, "", &json!(texts)).await);
    let before = front.mock.calls();

    let tenants = ["a", "b", "c", "d"];
    let callers = texts.iter().enumerate().map(|(n, text)| front.embed(tenants[n % 4], text));
    let answers = within("200 answers", join_all(callers)).await;

    let mut used = [0; 4];
    for (n, answer) in answers.iter().enumerate() {
        let (own, tokens) = vectors(answer);
        assert_eq!(own, [expected[n].clone()], "caller {n}");
        used[n % 4] += tokens;
    }
    // Each of the two workers may have had one that was not full.
    let calls = usize::try_from(front.mock.calls() - before).unwrap();
    assert!((CALLERS / SIZE..=CALLERS / SIZE + 2).contains(&calls), "{calls} calls");
    assert_eq!(used.iter().sum::<u64>(), alone, "the shares add up");

    let told = front.told("embed").await;
    assert_eq!(
        (told["batches"].as_u64(), told["requests"].as_u64()),
        (Some(calls as u64), Some(200)),
        "{told}"
    );
    assert_eq!((&told["waiting"], &told["in_flight"], &told["failed"]), (&json!(0), &json!(0), &json!(0)));
    for (tenant, used) in tenants.iter().zip(used) {
        // Some of it comes back while the test runs.
        let settled = async {
            while !(DAY - used..=DAY - used + 2).contains(&front.tokens_left(tenant).await) {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        within("everybody to have paid for himself", settled).await;
    }
    front.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inputs_that_are_refused_and_upstreams_that_fail() {
    let front = Front::on(1, "enabled = true\nmax_size = 2\nlinger_ms = 10_000").await;
    let pair = async |script: &[Script]| {
        script.iter().for_each(|script| front.mock.script(script.clone()));
        let calls = front.mock.calls();
        let (one, two) = (json!("a"), json!(["b", "c"]));
        let asking = [front.embed("t", &one), front.embed("t", &two)];
        let answers = within("both answers", join_all(asking)).await;
        (answers, front.mock.calls() - calls)
    };
    let error = |status, message: &str, code: &str| {
        let error = json!({"message": message, "type": "invalid_request_error", "param": null, "code": code});
        Script::new().status(status).body(json!({"error": error}).to_string())
    };

    // Refused together, each is asked for once more, alone.
    let too_long = error(400, "too long", "context_length_exceeded");
    let (answers, calls) = pair(&[too_long.clone(), too_long]).await;
    let (refused, good): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status != 200);
    assert_eq!((refused.len(), good.len(), calls), (1, 1, 3), "{answers:?}");
    refused[0].assert_error(400, "invalid_request_error", Some("context_length_exceeded"), "too long");
    vectors(good[0]);

    // What is nobody's fault is told to both, and neither is tried again.
    let (answers, calls) = pair(&[error(503, "busy", "overloaded")]).await;
    assert!(answers.iter().all(|answer| answer.status == 503) && calls == 1, "{calls} {answers:?}");
    // So is no answer at all, and one that does not add up.
    let short = r#"{"object":"list","data":[{"index":0,"embedding":[1]}],"model":"embed"}"#;
    for script in [Script::new().fail(), Script::new().body(short)] {
        let (answers, calls) = pair(&[script]).await;
        assert!(answers.iter().all(|answer| answer.status == 502) && calls == 1, "{calls} {answers:?}");
    }
    assert_eq!(front.told("embed").await["failed"], 2);
    let (answers, calls) = pair(&[]).await;
    assert!(answers.iter().all(|answer| answer.status == 200) && calls == 1, "{calls} {answers:?}");
    front.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_kept_apart_and_who_goes_is_not_asked_for() {
    let front = Front::start("enabled = true\nmax_size = 2\nlinger_ms = 300").await;
    let gone = send(front.gateway.address, &post("t", &asked(&json!("gone")))).await;
    let waits = async {
        while front.told("embed").await["waiting"] != 1 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within("it to wait", waits).await;
    drop(gone);
    let leaves = async {
        while front.told("embed").await["waiting"] != 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    within("it to leave", leaves).await;
    assert_eq!(front.mock.calls(), 0);

    let tenants = ["a", "b", "a", "b", "a", "b", "a", "b"];
    let asking = tenants.map(async |tenant| front.embed(tenant, &json!(tenant)).await);
    let answers = within("all answers", join_all(asking)).await;
    answers.iter().for_each(|answer| drop(vectors(answer)));
    for request in front.mock.requests() {
        let body: Value = serde_json::from_slice(&request.body).unwrap();
        let inputs = body["input"].as_array().cloned().unwrap_or_else(|| vec![body["input"].clone()]);
        assert!(inputs.iter().all(|input| *input == inputs[0]), "{body}");
        assert!(!request.headers.contains_key("x-tenant-id"));
    }
    front.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_embedding_or_no_good_one_passes_by() {
    let front = Front::start("enabled = true\nlinger_ms = 10_000").await;
    assert_eq!(exchange(front.gateway.address, &chat(GOOD)).await.status, 200);
    for input in [json!([]), json!(null), json!(["a", 1])] {
        let answer = within("the upstream's refusal", front.embed("t", &input)).await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    assert_eq!(front.told("embed").await["batches"], 0);
    front.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_and_without_a_right_to_ask() {
    let front = Front::start("enabled = false").await;
    vectors(&front.embed("t", &json!("a")).await);
    assert_eq!(front.told("embed").await, Value::Null);
    let answer = front.get("/admin/batches", "").await;
    assert_eq!(answer.status, 401, "{answer:?}");
    front.gateway.stop().await;
}
