//! What clients ask beyond their limits, or without a right to ask at all.

use std::net::SocketAddr;

use bartizan_provider::mock::{Mock, Script};
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;

use crate::{
    gateway_under_test::{Gateway, mock, model, soon, within},
    wire::{Answer, GOOD, GOOD_STREAM, exchange, send, with_length},
};

const ADMIN: &str = "adm-7Wq2kZ";
const KEYS: &str = "[[key]]\ntenant = \"a\"\nkey = \"sk-of-a\"\n[[key]]\ntenant = \"b\"\nkey = \"sk-of-b\"\n";

struct Front {
    gateway: Gateway,
    mock: Mock,
    address: SocketAddr,
}

impl Front {
    /// A gateway with these limits, tenants and keys.
    async fn start(rest: &str) -> Self {
        let (mock, upstream) = mock().await;
        let models = [model("chat", upstream, ""), format!("{rest}\n")];
        let gateway = Gateway::start(&format!("admin_token = \"{ADMIN}\""), &models).await;
        Self { address: gateway.address, gateway, mock }
    }

    /// Asks with these further headers.
    async fn ask(&self, headers: &str, body: &str) -> Answer {
        exchange(self.address, &post(headers, body)).await
    }

    /// What the upstream does with the next one who asks as `tenant`, and how many tokens that leaves.
    async fn ask_scripted(&self, script: Script, body: &str) -> (Answer, i64) {
        self.mock.script(script);
        let answer = self.ask("x-tenant-id: t\r\n", body).await;
        (answer, self.told("t", "tokens_per_hour").await["available"].as_i64().unwrap())
    }

    /// What `/admin/limits` tells of a tenant's limit.
    async fn told(&self, tenant: &str, limit: &str) -> Value {
        let mut all = self.limits(&format!("?tenant={tenant}")).await;
        let found = all.as_array_mut().unwrap().iter_mut().find(|each| each["name"] == limit);
        found.unwrap_or_else(|| panic!("no {limit}"))["tenant"].take()
    }

    async fn limits(&self, query: &str) -> Value {
        let answer =
            self.get(&format!("/admin/limits{query}"), &format!("authorization: Bearer {ADMIN}\r\n")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()["limits"].take()
    }

    async fn get(&self, path: &str, headers: &str) -> Answer {
        let head = format!("GET {path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n");
        exchange(self.address, head.as_bytes()).await
    }

    async fn stop(self) {
        self.gateway.stop().await;
    }
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n\
         content-type: application/json\r\n{headers}"
    );
    with_length(&head, body)
}

#[track_caller]
fn assert_limited(answer: &Answer, limit: &str) {
    answer.assert_error(
        429,
        "rate_limit_error",
        Some("rate_limit_exceeded"),
        &format!("rate limit {limit}: "),
    );
    let wait: u64 = answer.header("retry-after").expect("when to come back").parse().unwrap();
    assert!(wait > 0, "{answer:?}");
    assert_eq!(answer.header("x-should-retry"), None, "{answer:?}");
}

#[tokio::test]
async fn too_many_requests() {
    let front = Front::start("[rate_limits]\nrequests_per_minute = 2").await;
    let first = front.ask("x-tenant-id: a\r\n", GOOD).await;
    assert_eq!(first.status, 200, "{first:?}");
    assert_eq!(first.header("ratelimit-policy"), Some("\"requests_per_minute\";q=2;w=60"));
    assert!(first.header("ratelimit").unwrap().starts_with("\"requests_per_minute\";r=1;t="), "{first:?}");
    assert_eq!(
        (first.header("x-ratelimit-limit"), first.header("x-ratelimit-remaining")),
        (Some("2"), Some("1"))
    );
    assert_eq!(front.ask("x-tenant-id: a\r\n", GOOD).await.status, 200);

    let refused = front.ask("x-tenant-id: a\r\n", GOOD).await;
    assert_limited(&refused, "requests_per_minute");
    assert!(
        refused.header("ratelimit").unwrap().starts_with("\"requests_per_minute\";r=0;t="),
        "{refused:?}"
    );
    assert_eq!(refused.header("x-ratelimit-remaining"), Some("0"));
    // Wherever it claims to be, and for a stream.
    let forwarded = "x-tenant-id: a\r\nx-forwarded-for: 192.0.2.7\r\n";
    assert_limited(&front.ask(forwarded, GOOD_STREAM).await, "requests_per_minute");
    assert_eq!(front.mock.calls(), 2);

    // Others have their own, those without a name one together; and not everything is limited.
    assert_eq!(front.ask("x-tenant-id: b\r\n", GOOD).await.status, 200);
    let nameless = [front.ask("", GOOD).await, front.ask("x-tenant-id:\r\n", GOOD).await];
    assert!(nameless.iter().all(|answer| answer.status == 200), "{nameless:?}");
    assert_limited(&front.ask("", GOOD).await, "requests_per_minute");
    for path in ["/v1/models", "/v1/models/chat", "/livez", "/readyz"] {
        assert_eq!(front.get(path, "x-tenant-id: a\r\n").await.status, 200);
    }
    let told = front.told("a", "requests_per_minute").await;
    assert_eq!((&told["admitted"], &told["refused"], &told["capacity"]), (&json!(2), &json!(2), &json!(2)));
    assert!(told["reset_after"].as_f64().unwrap() > 30.0, "{told}");
    front.stop().await;
}

#[tokio::test]
async fn many_at_once_over_all_workers() {
    let front = Front::start("[rate_limits]\nrequests_per_day = 50").await;
    let answers = join_all((0..300).map(|_| front.ask("x-tenant-id: a\r\n", GOOD))).await;
    let passed = answers.iter().filter(|answer| answer.status == 200).count();
    let refused = answers.iter().filter(|answer| answer.status == 429).count();
    assert_eq!((passed, refused, front.mock.calls()), (50, 250, 50));
    front.stop().await;
}

#[tokio::test]
async fn tenants_with_limits_of_their_own_and_all_together() {
    let front = Front::start(
        "[rate_limits]\nrequests_per_hour = 1\n[total_rate_limits]\nrequests_per_minute = 6\n\
         [[tenant]]\nname = \"large\"\nrequests_per_hour = 3\n[[tenant]]\nname = \"free\"\n\
         requests_per_hour = \"unlimited\"\n[[tenant]]\nname = \"slow\"\nrequests_per_day = 1\n\
         requests_per_hour = \"unlimited\"",
    )
    .await;
    let mut passed = Vec::new();
    for (tenant, limit) in
        [("small", "requests_per_hour"), ("large", "requests_per_hour"), ("slow", "requests_per_day")]
    {
        let mut count = 0;
        let refused = loop {
            let answer = front.ask(&format!("x-tenant-id: {tenant}\r\n"), GOOD).await;
            if answer.status != 200 {
                break answer;
            }
            count += 1;
        };
        assert_limited(&refused, limit);
        passed.push(count);
    }
    assert_eq!(passed, [1, 3, 1]);
    // Five have passed, so one is left for all; what was refused did not spend it.
    assert_eq!(front.ask("x-tenant-id: free\r\n", GOOD).await.status, 200);
    assert_limited(&front.ask("x-tenant-id: free\r\n", GOOD).await, "total_requests_per_minute");
    assert_eq!(front.told("free", "requests_per_hour").await, Value::Null);
    assert_eq!(front.told("free", "total_requests_per_minute").await["admitted"], 6);
    front.stop().await;
}

#[tokio::test]
async fn tokens_are_settled_by_what_the_answer_tells() {
    let front = Front::start("[rate_limits]\ntokens_per_hour = 1000\nrequests_per_hour = 100").await;
    let refunded = |answer: Answer, left: i64| {
        // A token comes back every 3.6 s, and no more than were taken.
        assert!((1000 - 1..=1000).contains(&left), "{left} left after {answer:?}");
    };
    // A failure costs nothing, whoever noticed.
    for script in [Script::new().status(500), Script::new().status(429), Script::new().fail()] {
        let (answer, left) = front.ask_scripted(script, GOOD).await;
        assert!(answer.status >= 429, "{answer:?}");
        refunded(answer, left);
    }
    let unknown = front.ask("x-tenant-id: t\r\n", r#"{"model":"gpt-9","max_tokens":500}"#).await;
    assert_eq!(unknown.status, 404);
    let left = front.told("t", "tokens_per_hour").await["available"].as_i64().unwrap();
    refunded(unknown, left);

    let estimate = GOOD.len().div_ceil(4) as i64;
    let (answer, left) = front.ask_scripted(Script::new().usage(70, 30), GOOD).await;
    let told = format!(";r={};", 1000 - estimate);
    assert!(answer.header("ratelimit").unwrap().contains(&told), "the estimate: {answer:?}");
    assert!((900..=901).contains(&left), "{left} left");

    // A stream tells only whom it is asked to; then what was estimated stands.
    let asks = GOOD_STREAM.replace("true,", r#"true,"stream_options":{"include_usage":true},"#);
    let (_, left) = front.ask_scripted(Script::new().usage(150, 50).chop(5), &asks).await;
    assert!((700..=702).contains(&left), "{left} left");
    let (_, left) = front.ask_scripted(Script::new().usage(150, 50), GOOD_STREAM).await;
    let estimate = GOOD_STREAM.len().div_ceil(4) as i64;
    assert!((700 - estimate..=702 - estimate).contains(&left), "{left} left");

    // What was used beyond the limit is owed.
    let (answer, left) = front.ask_scripted(Script::new().usage(2000, 0), GOOD).await;
    assert_eq!(answer.status, 200);
    assert!(left < -1300, "{left} left");
    assert_limited(&front.ask("x-tenant-id: t\r\n", GOOD).await, "tokens_per_hour");
    // The refused one did not count as a request.
    assert_eq!(front.told("t", "requests_per_hour").await["admitted"], 8);
    front.stop().await;
}

#[tokio::test]
async fn more_tokens_than_can_ever_pass() {
    let front = Front::start("[rate_limits]\ntokens_per_minute = 100\nrequests_per_hour = 2").await;
    let huge = GOOD.replace("{\"model", "{\"max_tokens\":18446744073709551615,\"model");
    for body in [
        &GOOD.replace("hello", &"x".repeat(400)),
        &GOOD.replace("{\"model", "{\"max_tokens\":90,\"model"),
        &huge,
    ] {
        let answer = front.ask("", body).await;
        answer.assert_error(413, "invalid_request_error", Some("request_too_large"), "tokens_per_minute");
        assert_eq!((answer.header("x-should-retry"), answer.header("retry-after")), (Some("false"), None));
    }
    // Neither was charged as a request.
    assert_eq!(front.told("", "requests_per_hour").await["remaining"], 2);
    assert_eq!(front.ask("", GOOD).await.status, 200);
    front.stop().await;
}

#[tokio::test]
async fn clients_that_go_while_they_wait() {
    let front =
        Front::start("[rate_limits]\nrequests_per_hour = 1\nmax_queue = 1\nmax_wait_ms = 86_400_000").await;
    let queued = async |n: u64| {
        let seen = async { while front.limits("").await[0]["queued"] != n {} };
        within("a place in the queue to be taken or left", seen).await;
    };
    assert_eq!(front.ask("", GOOD).await.status, 200);
    for _ in 0..3 {
        let waiting = send(front.address, &post("", GOOD)).await;
        queued(1).await;
        let refused = front.ask("", GOOD).await;
        assert_limited(&refused, "requests_per_hour");
        assert!(refused.body.contains("too many requests wait"), "{refused:?}");
        drop(waiting);
        queued(0).await;
    }
    assert_eq!(front.mock.calls(), 1);
    front.stop().await;
}

/// One that has been admitted and goes has spent its request, and holds nothing that others wait for.
#[tokio::test]
async fn clients_that_go_while_they_are_answered() {
    let front = Front::start("[rate_limits]\nrequests_per_hour = 3\ntokens_per_hour = 1000").await;
    front.mock.script(Script::new().hang());
    front.mock.script(Script::new().hang_after(2));
    for (number, body) in [(1, GOOD), (2, GOOD_STREAM)] {
        let asking = send(front.address, &post("", body)).await;
        within("the upstream to be asked", front.mock.until(|stats| stats.running == 1)).await;
        drop(asking);
        soon("the client's going", front.mock.until(move |stats| stats.cancelled == number)).await;
    }
    assert_eq!(front.ask("", GOOD).await.status, 200);
    assert_limited(&front.ask("", GOOD).await, "requests_per_hour");
    let told = front.told("", "tokens_per_hour").await;
    assert_eq!((&told["admitted"], &told["queued"]), (&json!(3), &json!(0)));
    front.stop().await;
}

#[tokio::test]
async fn keys_that_are_not_known() {
    let front = Front::start(&format!("{KEYS}[rate_limits]\nrequests_per_hour = 1")).await;
    for headers in [
        "",
        "authorization: sk-of-a\r\n",
        "authorization: Bearer\r\n",
        "authorization: Bearer \r\n",
        "authorization: Basic sk-of-a\r\n",
        "authorization: Bearer sk-of-\r\n",
        "authorization: Bearer sk-of-ab\r\n",
        "authorization: Bearer SK-OF-A\r\n",
        "authorization: Bearer sk-of-\u{e9}\r\n",
        "authorization: Bearer sk-of-a sk-of-b\r\n",
        "authorization: Bearer sk-of-a\r\nauthorization: Bearer sk-of-b\r\n",
        "x-tenant-id: a\r\n",
        "authorization: Bearer adm-7Wq2kZ\r\n",
    ] {
        for answer in [front.ask(headers, GOOD).await, front.get("/v1/models", headers).await] {
            answer.assert_error(401, "authentication_error", Some("invalid_api_key"), "API key");
            assert!(!answer.body.contains("sk-of"), "{answer:?}");
            assert_eq!(answer.header("www-authenticate"), Some("bearer"));
        }
    }
    assert_eq!(front.get("/v1/models/chat", "").await.status, 401);
    assert_eq!(front.get("/v1/models/%ff%zz", "").await.status, 401);
    assert_eq!((front.get("/livez", "").await.status, front.mock.calls()), (200, 0));

    // The key says who it is, and the header cannot; nor does the upstream learn of either.
    let key = "authorization: bearer sk-of-a\r\n";
    assert_eq!(front.get("/v1/models", key).await.status, 200);
    assert_eq!(front.ask(&format!("{key}x-tenant-id: b\r\nx-tenant-id: c\r\n"), GOOD).await.status, 200);
    assert_limited(&front.ask(&format!("{key}x-tenant-id: b\r\n"), GOOD).await, "requests_per_hour");
    assert_eq!(front.ask("authorization: Bearer sk-of-b\r\n", GOOD).await.status, 200);
    let sent = &front.mock.requests()[0].headers;
    assert!(!sent.contains_key("x-tenant-id") && !format!("{sent:?}").contains("sk-of"), "{sent:?}");
    assert_eq!(front.told("a", "requests_per_hour").await["admitted"], 1);
    front.stop().await;
}

#[tokio::test]
async fn admin_tokens_that_are_wrong() {
    let front = Front::start(&format!("{KEYS}[rate_limits]\nrequests_per_hour = 1")).await;
    for headers in [
        "",
        "authorization: Bearer\r\n",
        "authorization: Bearer \r\n",
        "authorization: Bearer adm-7Wq2k\r\n",
        "authorization: Bearer adm-7Wq2kZZ\r\n",
        "authorization: Bearer sk-of-a\r\n",
        "authorization: Basic adm-7Wq2kZ\r\n",
        "authorization: adm-7Wq2kZ\r\n",
    ] {
        for query in ["", "?tenant=a", "?nonsense"] {
            let answer = front.get(&format!("/admin/limits{query}"), headers).await;
            answer.assert_error(
                401,
                "authentication_error",
                Some("invalid_api_key"),
                "the admin token is needed",
            );
            assert!(!answer.body.contains("adm-"), "{answer:?}");
        }
    }
    let admin = format!("authorization: Bearer {ADMIN}\r\n");
    for query in ["?tennant=a", "?tenant=a&tenant=b", "?tenant=a&more=1", "?a"] {
        let answer = front.get(&format!("/admin/limits{query}"), &admin).await;
        answer.assert_error(400, "invalid_request_error", None, "`?tenant=`");
    }
    let answer = front.get("/admin/limits?tenant=caf%C3%A9%00%FF", &admin).await;
    assert_eq!((answer.status, answer.body.contains("sk-of")), (200, false), "{answer:?}");
    assert_eq!(front.limits("").await[0]["keys"], 0, "who asks leaves nothing behind");
    let head = format!("POST /admin/limits HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{admin}");
    assert_eq!(exchange(front.address, &with_length(&head, "{}")).await.status, 405);
    front.stop().await;

    // Without a token there is no such path, whatever is shown.
    let (_mock, upstream) = mock().await;
    let gateway = Gateway::start("", &[model("chat", upstream, "")]).await;
    for headers in ["", "authorization: Bearer \r\n", &admin] {
        let head =
            format!("GET /admin/limits HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n");
        let answer = exchange(gateway.address, head.as_bytes()).await;
        answer.assert_error(404, "invalid_request_error", Some("unknown_url"), "/admin/limits");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn tenants_that_are_absurd() {
    let front = Front::start("[rate_limits]\nrequests_per_hour = 1").await;
    let invalid = "invalid_request_error";
    for (headers, words) in [
        (format!("x-tenant-id: {}\r\n", "x".repeat(257)), "longer than 256 bytes"),
        (format!("x-tenant-id: {}\r\n", "x".repeat(60_000)), "longer than 256 bytes"),
        ("x-tenant-id: caf\u{e9}\r\n".to_owned(), "not visible ASCII"),
        ("x-tenant-id: a\r\nx-tenant-id: b\r\n".to_owned(), "given twice"),
    ] {
        front.ask(&headers, GOOD).await.assert_error(400, invalid, None, words);
    }
    assert_eq!((front.mock.calls(), &front.limits("").await[0]["keys"]), (0, &json!(0)));
    let longest = format!("x-tenant-id: {}\r\n", "x".repeat(256));
    assert_eq!(front.ask(&longest, GOOD).await.status, 200);
    assert_limited(&front.ask(&longest, GOOD).await, "requests_per_hour");
    front.stop().await;
}

#[tokio::test]
async fn what_an_upstream_has_no_capacity_for_is_not_asked() {
    let spent = || {
        [
            Script::new().status(429).header("retry-after", "7"),
            Script::new()
                .header("x-ratelimit-remaining-requests", "0")
                .header("x-ratelimit-reset-requests", "6s"),
        ]
    };
    for script in spent() {
        let (mock, upstream) = mock().await;
        mock.script(script);
        let models = [
            model("chat", upstream, ""),
            model("other", upstream, ""),
            "[rate_limits]\nfollow_upstreams = true\n".to_owned(),
        ];
        let gateway = Gateway::start(&format!("admin_token = \"{ADMIN}\""), &models).await;
        let front = Front { address: gateway.address, gateway, mock };
        let first = front.ask("", GOOD).await;
        assert!([200, 429].contains(&first.status), "{first:?}");
        for tenant in ["", "x-tenant-id: a\r\n"] {
            let refused = front.ask(tenant, GOOD).await;
            assert_limited(&refused, "upstream");
            let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
            assert!((5..=7).contains(&wait), "{refused:?}");
        }
        assert_eq!(front.ask("", &GOOD.replace("chat", "other")).await.status, 200);
        assert_eq!(front.ask("", &GOOD.replace("chat", "gpt-9")).await.status, 404);
        assert_eq!(front.mock.calls(), 2);
        let told = &front.limits("").await[0];
        assert_eq!((&told["name"], &told["refused"]), (&json!("upstream"), &json!(2)));
        let held = told["held"].as_object().unwrap();
        assert!(held.len() == 1 && held["chat"].as_f64().unwrap() > 4.0, "{told}");
        front.stop().await;
    }

    // Whoever does not want this asks on.
    let front = Front::start("[rate_limits]\nrequests_per_hour = 9").await;
    for script in spent() {
        front.mock.script(script);
        front.ask("", GOOD).await;
    }
    assert_eq!(front.ask("", GOOD).await.status, 200);
    front.stop().await;
}

/// As OpenAI's client does at `[DONE]`, whether the upstream has ended its answer by then or not.
#[tokio::test]
async fn clients_that_go_when_they_have_what_they_want() {
    let front = Front::start("[rate_limits]\ntokens_per_hour = 1000").await;
    front.mock.script(Script::new().words(1).usage(200, 100).hang_after(5));
    let asks = GOOD_STREAM.replace("true,", r#"true,"stream_options":{"include_usage":true},"#);
    let mut asking = send(front.address, &post("", &asks)).await;
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("[DONE]") {
        within("the stream to go on", asking.read_buf(&mut seen)).await.unwrap();
    }
    drop(asking);
    soon("the client's going", front.mock.until(|stats| stats.cancelled == 1)).await;
    let settled =
        async { while front.told("", "tokens_per_hour").await["available"].as_i64().unwrap() > 701 {} };
    within("the call to be settled", settled).await;
    front.stop().await;
}

#[tokio::test]
async fn errors_of_calls_that_were_admitted_tell_what_is_left() {
    let (mock, upstream) = mock().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let models = [
        model("chat", upstream, "head_ms = 30"),
        model("dead", nobody, ""),
        "[rate_limits]\nrequests_per_hour = 9\ntokens_per_hour = 1000\n[circuit_breaker]\nfailure_threshold = 1\n".to_owned(),
    ];
    let gateway = Gateway::start(&format!("admin_token = \"{ADMIN}\""), &models).await;
    let front = Front { address: gateway.address, gateway, mock };
    let mut left = 9;
    for (model, status) in [("gpt-9", 404), ("chat", 504), ("chat", 503), ("dead", 502), ("dead", 503)] {
        front.mock.script(Script::new().hang());
        let answer = front.ask("", &GOOD.replace("chat", model)).await;
        left -= 1;
        assert_eq!(answer.status, status, "{answer:?}");
        let policy = "\"requests_per_hour\";q=9;w=3600, \"tokens_per_hour\";q=1000;w=3600";
        assert_eq!(answer.header("ratelimit-policy"), Some(policy), "{answer:?}");
        let remaining = format!("\"requests_per_hour\";r={left};t=");
        assert!(answer.header("ratelimit").unwrap().starts_with(&remaining), "{answer:?}");
        assert_eq!(answer.header("x-ratelimit-remaining"), Some(&*left.to_string()), "{answer:?}");
    }
    // They cost no tokens.
    assert_eq!(front.told("", "tokens_per_hour").await["available"], 1000);
    front.stop().await;
}
