//! Clients that ask the same: what they share and what they do not.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bartizan_provider::mock::{Mock, Script};
use futures_util::{
    future::join_all,
    stream::{self, StreamExt},
};
use http_body_util::{BodyExt, StreamBody};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tower_service::Service;

use crate::{
    gateway_under_test::{Gateway, mock, model, soon, within},
    wire::{Answer, CHAT, GOOD, GOOD_STREAM, exchange, send, with_length},
};

const ADMIN: &str = "adm-7Wq2kZ";

/// Longer than any test runs.
const KEPT: &str = "enabled = true\nttl_ms = 3_600_000";

const MISS: Option<&str> = Some("bartizan; fwd=miss");
const COLLAPSED: Option<&str> = Some("bartizan; fwd=miss; collapsed");
const BYPASS: Option<&str> = Some("bartizan; fwd=bypass");

struct Front {
    gateway: Gateway,
    mock: Mock,
    address: SocketAddr,
}

impl Front {
    /// A gateway with these lines of `[dedup]` and after it.
    async fn start(dedup: &str) -> Self {
        let (mock, upstream) = mock().await;
        Self::before(mock, upstream, dedup).await
    }

    async fn before(mock: Mock, upstream: SocketAddr, dedup: &str) -> Self {
        let models = [
            model("chat", upstream, ""),
            model("alone", upstream, "dedup = false"),
            model("dead", nobody().await, ""),
            format!("[dedup]\n{dedup}\n"),
        ];
        let gateway = Gateway::start(&format!("admin_token = \"{ADMIN}\""), &models).await;
        Self { address: gateway.address, gateway, mock }
    }

    /// As [`start`](Self::start), with a mock that goes on only when it is let: after so many frames, or with 0 not even
    /// to the head.
    async fn gated(frames: usize, script: Script, dedup: &str) -> (Self, Gate) {
        let mock = Mock::new();
        mock.script_always(script);
        let (gate, opened) = watch::channel(false);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = listener.local_addr().unwrap();
        tokio::spawn(serve_gated(listener, frames, mock.clone(), opened));
        (Self::before(mock, upstream, dedup).await, Gate(gate))
    }

    async fn ask(&self, headers: &str, body: &str) -> Answer {
        exchange(self.address, &post(headers, body)).await
    }

    async fn asking(&self, body: &str) -> TcpStream {
        send(self.address, &post("", body)).await
    }

    async fn admin(&self, method: &str, path: &str) -> Answer {
        self.raw(method, path, &format!("authorization: Bearer {ADMIN}\r\n")).await
    }

    async fn raw(&self, method: &str, path: &str, headers: &str) -> Answer {
        let head =
            format!("{method} /admin/{path} HTTP/1.1\r\nhost: gateway\r\nconnection: close\r\n{headers}\r\n");
        exchange(self.address, head.as_bytes()).await
    }

    /// What `/admin/dedup` tells.
    async fn told(&self) -> Value {
        let answer = self.admin("GET", "dedup").await;
        assert_eq!(answer.status, 200, "{answer:?}");
        serde_json::from_str::<Value>(&answer.body).unwrap()["dedup"].take()
    }

    /// Waits until `name` is `count`.
    async fn until(&self, name: &str, count: u64) {
        let looking = async { while self.told().await[name] != count {} };
        within(&format!("{name} to be {count}"), looking).await;
    }

    /// Closes a connection whose call goes on for others.
    async fn sees_the_end_of(&self, connection: TcpStream) {
        drop(connection);
        // Both workers have looked at their sockets since.
        for _ in 0..4 {
            assert_eq!(self.told().await["in_flight"], 1);
        }
    }

    /// How many tokens `tenant` has left of a day's.
    async fn tokens(&self, tenant: &str) -> u64 {
        let answer = self.admin("GET", &format!("limits?tenant={tenant}")).await;
        let told: Value = serde_json::from_str(&answer.body).unwrap();
        let all = told["limits"].as_array().unwrap();
        let limit = all.iter().find(|each| each["name"] == "tokens_per_day").unwrap();
        limit["tenant"]["remaining"].as_u64().unwrap()
    }

    async fn stop(self) {
        self.gateway.stop().await;
    }
}

/// Lets gated answers go on.
struct Gate(watch::Sender<bool>);

impl Gate {
    fn open(&self) {
        self.0.send_replace(true);
    }
}

async fn serve_gated(listener: TcpListener, frames: usize, mock: Mock, opened: watch::Receiver<bool>) {
    loop {
        let (socket, _) = listener.accept().await.unwrap();
        let (mock, opened) = (mock.clone(), opened.clone());
        let serve = service_fn(move |request| {
            let (mut mock, mut opened) = (mock.service(), opened.clone());
            async move {
                if frames == 0 {
                    let _ = opened.wait_for(|opened| *opened).await;
                }
                let answer = mock.call(request).await?;
                Ok::<_, std::io::Error>(answer.map(|body| {
                    let stream = stream::unfold((body, 0), move |(mut body, at)| {
                        let mut opened = opened.clone();
                        async move {
                            if at == frames {
                                opened.wait_for(|opened| *opened).await.ok()?;
                            }
                            Some((body.frame().await?, (body, at + 1)))
                        }
                    });
                    StreamBody::new(stream.boxed())
                }))
            }
        });
        tokio::spawn(
            async move { http1::Builder::new().serve_connection(TokioIo::new(socket), serve).await },
        );
    }
}

/// Where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap()
}

fn post(headers: &str, body: &str) -> Vec<u8> {
    with_length(&format!("{CHAT}{headers}"), body)
}

/// A stream that tells its usage.
fn metered() -> String {
    GOOD_STREAM.replace("true,", r#"true,"stream_options":{"include_usage":true},"#)
}

/// Reads on until there is an event.
async fn first_event(connection: &mut TcpStream) -> Vec<u8> {
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("data: ") {
        within("the stream to begin", connection.read_buf(&mut seen)).await.unwrap();
    }
    seen
}

#[tokio::test]
async fn a_hundred_clients_at_once_are_one_call() {
    let script = Script::new().words(20).usage(30, 20);
    let (front, gate) = Front::gated(1, script, "enabled = true").await;
    let asks = metered();
    let asking = join_all((0..100).map(|_| front.ask("", &asks)));
    let opening = async {
        front.until("collapsed", 99).await;
        let told = front.told().await;
        assert_eq!((&told["misses"], &told["in_flight"]), (&json!(1), &json!(1)));
        gate.open();
    };
    let (answers, ()) = tokio::join!(asking, opening);
    assert_eq!(front.mock.calls(), 1);
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &answers[0].body));
    }
    // The role, the words, the reason why it stopped, the usage, the end.
    assert_eq!(answers[0].body.matches("data: ").count(), 1 + 20 + 3, "{}", answers[0].body);
    assert!(answers[0].body.ends_with("data: [DONE]\n\n"));
    let told_by = |status| answers.iter().filter(|answer| answer.header("cache-status") == status).count();
    assert_eq!((told_by(MISS), told_by(COLLAPSED)), (1, 99));
    front.until("saved_tokens", 99 * 50).await;
    let told = front.told().await;
    assert_eq!((&told["in_flight"], &told["entries"], &told["hits"]), (&json!(0), &json!(0), &json!(0)));
    assert_eq!(told["hit_rate"], 0.99);
    // Nothing is kept: who comes later asks anew.
    assert_eq!(front.ask("", &asks).await.header("cache-status"), MISS);
    assert_eq!(front.mock.calls(), 2);
    front.stop().await;
}

#[tokio::test]
async fn the_first_client_goes_and_nothing_changes() {
    let (front, gate) = Front::gated(1, Script::new().words(20), KEPT).await;
    let mut first = front.asking(GOOD_STREAM).await;
    first_event(&mut first).await;
    // The acceptor spreads them over both workers.
    let asking = join_all((0..10).map(|_| front.ask("", GOOD_STREAM)));
    let going = async {
        front.until("collapsed", 10).await;
        front.sees_the_end_of(first).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asking, going);
    for answer in answers {
        assert_eq!((answer.status, answer.header("cache-status")), (200, COLLAPSED));
        assert!(answer.body.ends_with("data: [DONE]\n\n"), "{}", answer.body);
        assert_eq!(answer.body.matches("data: ").count(), 1 + 20 + 2);
    }
    let stats = front.mock.stats();
    assert_eq!((stats.calls, stats.cancelled), (1, 0));
    // And it is kept for those who come later.
    assert!(front.ask("", GOOD_STREAM).await.header("cache-status").unwrap().starts_with("bartizan; hit; "));
    front.stop().await;
}

#[tokio::test]
async fn when_all_have_gone_the_upstream_learns_it_and_the_key_is_free() {
    let (front, gate) = Front::gated(1, Script::new().words(20), KEPT).await;
    let mut asking = Vec::new();
    for _ in 0..4 {
        let mut one = front.asking(GOOD_STREAM).await;
        first_event(&mut one).await;
        asking.push(one);
    }
    assert_eq!((front.mock.calls(), front.mock.running()), (1, 1));
    drop(asking);
    soon("the last client's going", front.mock.until(|stats| stats.cancelled == 1)).await;
    gate.open();
    let answer = front.ask("", GOOD_STREAM).await;
    assert_eq!((answer.status, answer.header("cache-status")), (200, MISS));
    assert_eq!(front.mock.calls(), 2);
    front.stop().await;
}

/// The call runs on the sockets of the first client's worker, which has nobody left to serve while the gateway drains.
#[tokio::test]
async fn a_worker_that_has_served_goes_on_for_the_others() {
    let (front, gate) = Front::gated(1, Script::new().words(20), "enabled = true").await;
    let mut first = front.asking(GOOD_STREAM).await;
    let mut seen = first_event(&mut first).await;
    // That worker has a connection now, so the next one goes to the other.
    let mut second = front.asking(GOOD_STREAM).await;
    let mut same = first_event(&mut second).await;
    let address = front.address;
    let stopping = tokio::spawn(front.stop());
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    within("the gateway to drain", refused).await;
    drop(first);
    // Time for a worker to end that should not: if it takes longer this shows less, and fails no more.
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.open();
    within("the stream to end", second.read_to_end(&mut same)).await.unwrap();
    seen.truncate(same.len());
    let text = String::from_utf8(same).unwrap();
    assert!(text.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"), "{text}");
    assert_eq!(text.matches("data: ").count(), 1 + 20 + 2, "{text}");
    within("the gateway to stop", stopping).await.unwrap();
}

#[tokio::test]
async fn tenants_never_share() {
    let (front, gate) = Front::gated(1, Script::new().words(3), KEPT).await;
    let tenants = ["x-tenant-id: a\r\n", "x-tenant-id: b\r\n", "x-tenant-id: ab\r\n", ""];
    let asking = join_all(tenants.map(|tenant| front.ask(tenant, GOOD_STREAM)));
    let opening = async {
        front.until("misses", 4).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asking, opening);
    assert_eq!(front.mock.calls(), 4);
    for (nth, (tenant, answer)) in tenants.iter().zip(&answers).enumerate() {
        assert!(answers[..nth].iter().all(|other| other.body != answer.body), "{answer:?}");
        assert_eq!(answer.header("cache-status"), MISS);
        // Each finds his own again.
        assert_eq!(front.ask(tenant, GOOD_STREAM).await.body, answer.body);
    }
    assert_eq!((front.mock.calls(), &front.told().await["hits"]), (4, &json!(4)));
    front.stop().await;
}

/// With keys the key is the tenant, and not what it claims to be.
#[tokio::test]
async fn keys_of_one_tenant_share_and_others_do_not() {
    let keys = "[[key]]\ntenant = \"a\"\nkey = \"sk-of-the-client\"\n[[key]]\ntenant = \"a\"\nkey = \"sk-2\"\n\
                [[key]]\ntenant = \"b\"\nkey = \"sk-3\"";
    let front = Front::start(&format!("{KEPT}\n{keys}")).await;
    let with = |key: &str| {
        let head = CHAT.replace("sk-of-the-client", key);
        with_length(&format!("{head}x-tenant-id: a\r\n"), GOOD)
    };
    let mut seen = Vec::new();
    for key in ["sk-of-the-client", "sk-2", "sk-3"] {
        seen.push(exchange(front.address, &with(key)).await);
    }
    assert_eq!((front.mock.calls(), &seen[0].body), (2, &seen[1].body));
    assert_ne!(seen[0].body, seen[2].body);
    front.stop().await;
}

/// What an upstream had left then would slow its clients down now.
#[tokio::test]
async fn answers_that_are_given_again_tell_no_old_limits() {
    let front = Front::start(KEPT).await;
    let [left, request] = ["x-ratelimit-remaining-requests", "x-request-id"];
    front.mock.script(Script::new().header(left, "0").header(request, "req-7"));
    for told in [Some("0"), None] {
        let answer = front.ask("", GOOD).await;
        assert_eq!((answer.status, answer.header(left)), (200, told));
        assert_eq!(answer.header(request), Some("req-7"), "it is that one's answer");
    }
    front.stop().await;
}

#[tokio::test]
async fn what_is_asked_is_compared_to_the_last_field() {
    let front = Front::start(KEPT).await;
    let same = [
        r#"{"model":"chat","messages":[{"role":"user","content":"hello"}],"seed":1,"user":"u"}"#,
        r#"{ "user" : "u", "seed" : 1, "messages":[ {"content":"h\u0065llo","role":"user"} ], "model":"chat" }"#,
    ];
    let first = front.ask("", same[0]).await;
    assert_eq!(first.header("cache-status"), MISS);
    assert_eq!(first.header("age"), None);
    let again = front.ask("x-request-id: another\r\nuser-agent: another\r\n", same[1]).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    let ttl = again.header("cache-status").unwrap().strip_prefix("bartizan; hit; ttl=").unwrap();
    assert!((3_500..3_600).contains(&ttl.parse::<u64>().unwrap()), "{ttl}");
    assert!(again.header("age").unwrap().parse::<u64>().unwrap() < 100);
    for other in [
        same[0].replace("\"seed\":1", "\"seed\":2"),
        same[0].replace("\"user\":\"u\"", "\"user\":\"v\""),
        same[0].replace("hello", "Hello"),
        same[0].replace("\"seed\":1,", ""),
        same[0].replace("\"seed\"", "\"stream\":true,\"seed\""),
        same[0].replace("\"seed\"", "\"seeds\""),
    ] {
        assert_eq!(front.ask("", &other).await.header("cache-status"), MISS, "{other}");
    }
    assert_eq!(front.mock.calls(), 7);
    front.stop().await;
}

/// A model that is given a schema writes what comes first in it first.
#[tokio::test]
async fn schemas_are_compared_in_their_order() {
    let front = Front::start(KEPT).await;
    let (asked, turned) = (r#"{"why":{"type":"string"},"n":{}}"#, r#"{"n":{},"why":{"type":"string"}}"#);
    let member =
        |name, schema: &str| GOOD.replace("{\"model\"", &format!("{{\"{name}\":[{schema}],\"model\""));
    for (name, counts) in [
        ("response_format", true),
        ("tools", true),
        ("functions", true),
        ("guided_json", true),
        ("json_schema", true),
        ("metadata", false),
    ] {
        assert_eq!(front.ask("", &member(name, asked)).await.header("cache-status"), MISS);
        let again = front.ask("", &member(name, &asked.replace(',', " , "))).await;
        assert_ne!(again.header("cache-status"), MISS, "{name}");
        let other = front.ask("", &member(name, turned)).await;
        assert_eq!(other.header("cache-status") == MISS, counts, "{name}");
    }
    front.stop().await;
}

#[tokio::test]
async fn embeddings_are_shared_too() {
    let front = Front::start(KEPT).await;
    let ask = |input: &str| {
        let head = CHAT.replace("chat/completions", "embeddings");
        with_length(&head, format!(r#"{{"model":"chat","input":["{input}"]}}"#))
    };
    let first = exchange(front.address, &ask("one")).await;
    let again = exchange(front.address, &ask("one")).await;
    assert_eq!((first.status, first.header("cache-status")), (200, MISS));
    assert!(again.header("cache-status").unwrap().starts_with("bartizan; hit; "), "{again:?}");
    assert_eq!(first.body, again.body);
    assert_eq!(exchange(front.address, &ask("two")).await.header("cache-status"), MISS);
    assert_eq!(front.mock.calls(), 2);
    front.stop().await;
}

#[tokio::test]
async fn what_clients_say_about_caches() {
    let front = Front::start(KEPT).await;
    let first = front.ask("", GOOD).await;
    let own = front.ask("cache-control: no-store\r\n", GOOD).await;
    assert_eq!(own.header("cache-status"), BYPASS);
    let new = front.ask("cache-control: no-cache\r\n", GOOD).await;
    assert_eq!(new.header("cache-status"), MISS);
    assert!(first.body != own.body && own.body != new.body && new.body != first.body);
    // The newest that may be kept is.
    assert_eq!(front.ask("", GOOD).await.body, new.body);
    let told = front.told().await;
    let counts = ["bypassed", "misses", "hits", "entries"].map(|name| told[name].as_u64().unwrap());
    assert_eq!((front.mock.calls(), counts), (3, [1, 2, 1, 1]));
    front.stop().await;
}

#[tokio::test]
async fn what_upstreams_say_about_caches() {
    let front = Front::start(KEPT).await;
    for (says, calls) in [("no-store", 2), ("private", 2), ("no-cache", 1), ("max-age=60", 1)] {
        let before = front.mock.calls();
        front.mock.script_always(Script::new().header("cache-control", says));
        let asks = GOOD.replace("hello", says);
        for _ in 0..2 {
            assert_eq!(front.ask("", &asks).await.status, 200);
        }
        assert_eq!(front.mock.calls() - before, calls, "{says}");
    }
    front.stop().await;
}

/// The leader's tenant pays. Whoever follows, or comes later, is counted as a request.
#[tokio::test]
async fn shared_answers_cost_no_tokens() {
    let limits = "[rate_limits]\nrequests_per_hour = 9\ntokens_per_day = 10_000";
    let script = Script::new().usage(700, 300);
    let (front, gate) = Front::gated(1, script, &format!("{KEPT}\n{limits}")).await;
    let asks = metered();
    let all = front.tokens("a").await;
    let asking = join_all((0..3).map(|_| front.ask("x-tenant-id: a\r\n", &asks)));
    let opening = async {
        front.until("collapsed", 2).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asking, opening);
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == answers[0].body));
    let settled = async { while front.tokens("a").await < all - 1_000 {} };
    within("the followers to be settled", settled).await;
    for _ in 0..2 {
        let hit = front.ask("x-tenant-id: a\r\n", &asks).await;
        assert_eq!(hit.body, answers[0].body);
    }
    let settled = async { while front.tokens("a").await < all - 1_000 {} };
    within("the hits to be settled", settled).await;
    // It refills meanwhile, by a token in 8.6 seconds.
    assert!((all - 1_000..all - 950).contains(&front.tokens("a").await));
    front.until("saved_tokens", 4 * 1_000).await;
    // Five of nine requests; a stream in which nobody tells of tokens saves none that are known.
    for left in (0..4).rev() {
        let answer = front.ask("x-tenant-id: a\r\n", GOOD).await;
        let remaining = answer.header("ratelimit").unwrap().split("\"requests_per_hour\";r=").nth(1).unwrap();
        assert!(remaining.starts_with(&format!("{left};")), "{answer:?}");
    }
    assert_eq!(front.ask("x-tenant-id: a\r\n", GOOD).await.status, 429);
    assert_eq!(front.mock.calls(), 2);
    front.stop().await;
}

/// Whoever leads and goes before the end has paid what was estimated.
#[tokio::test]
async fn a_leader_who_goes_still_pays() {
    let limits = "[rate_limits]\ntokens_per_day = 10_000";
    let script = Script::new().usage(700, 300);
    let (front, gate) = Front::gated(1, script, &format!("enabled = true\n{limits}")).await;
    let asks = metered().replace("true,", "true,\"max_tokens\":500,");
    let mut first = front.asking(&asks).await;
    first_event(&mut first).await;
    let mut second = front.asking(&asks).await;
    first_event(&mut second).await;
    front.sees_the_end_of(first).await;
    gate.open();
    let mut rest = Vec::new();
    within("the stream to end", second.read_to_end(&mut rest)).await.unwrap();
    assert!(String::from_utf8(rest).unwrap().contains("[DONE]"));
    let settled = async { while front.tokens("").await < 9_000 {} };
    within("the follower to be settled", settled).await;
    assert!((9_400..9_500).contains(&front.tokens("").await), "{}", front.tokens("").await);
    front.stop().await;
}

#[tokio::test]
async fn a_stream_that_is_cut_reaches_all_and_is_not_kept() {
    let (front, gate) = Front::gated(1, Script::new().fail_after(4), KEPT).await;
    let asking = join_all((0..10).map(|_| front.ask("", GOOD_STREAM)));
    let opening = async {
        front.until("collapsed", 9).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asking, opening);
    let whole = &answers[0].body;
    let (events, error) = whole.rsplit_once("data: ").unwrap();
    assert_eq!(events.matches("data: ").count(), 4, "{whole}");
    let error: Value = serde_json::from_str(error).unwrap();
    assert_eq!(error["error"]["code"], "upstream_error");
    assert!(error["error"]["message"].as_str().unwrap().contains("cut off"), "{error}");
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.body == *whole));
    assert_eq!(front.mock.calls(), 1);
    assert_eq!((&front.told().await["entries"], &front.told().await["in_flight"]), (&json!(0), &json!(0)));
    front.mock.script_always(Script::new());
    assert!(front.ask("", GOOD_STREAM).await.body.ends_with("data: [DONE]\n\n"));
    assert_eq!(front.mock.calls(), 2);
    front.stop().await;
}

#[tokio::test]
async fn errors_reach_all_who_wait_and_are_not_kept() {
    let (front, gate) = Front::gated(0, Script::new().status(500), KEPT).await;
    let asking = join_all((0..5).map(|_| front.ask("", GOOD)));
    let opening = async {
        front.until("collapsed", 4).await;
        gate.open();
    };
    let (answers, ()) = tokio::join!(asking, opening);
    for answer in &answers {
        answer.assert_error(500, "api_error", None, "as scripted");
    }
    assert_eq!((front.mock.calls(), &front.told().await["entries"]), (1, &json!(0)));
    front.ask("", GOOD).await.assert_error(500, "api_error", None, "as scripted");
    assert_eq!(front.mock.calls(), 2);
    // An error that is no answer.
    let dead = GOOD.replace("chat", "dead");
    for _ in 0..2 {
        front.ask("", &dead).await.assert_error(502, "api_error", Some("upstream_unreachable"), "connect");
    }
    assert_eq!((&front.told().await["hits"], &front.told().await["entries"]), (&json!(0), &json!(0)));
    front.stop().await;
}

#[tokio::test]
async fn answers_that_are_not_worth_repeating() {
    let choice = |index: u8, reason: &str| json!({"index": index, "message": {"role": "assistant", "content": "x"}, "finish_reason": reason});
    let document = |choices: &[Value]| Script::new().body(json!({"id": "1", "choices": choices}).to_string());
    let event = |index: u8, reason: &str| {
        let choices = [json!({"index": index, "delta": {"content": "x"}, "finish_reason": reason})];
        format!("data: {}\n\n", json!({"id": "1", "choices": choices}))
    };
    let stream = |events: &[String]| {
        let frames = events.iter().cloned().chain(["data: [DONE]\n\n".to_owned()]);
        Script::new().header("content-type", "text/event-stream").frames(frames)
    };
    let error = "data: {\"error\":{\"message\":\"overloaded\",\"type\":\"server_error\"}}\n\n".to_owned();
    let front = Front::start(KEPT).await;
    for (nth, (script, body, kept)) in [
        (document(&[choice(0, "stop")]), GOOD, true),
        (document(&[choice(0, "length")]), GOOD, false),
        (document(&[choice(0, "stop"), choice(1, "length"), choice(2, "stop")]), GOOD, false),
        (document(&[choice(0, "content_filter")]), GOOD, false),
        (document(&[]), GOOD, false),
        (document(&[choice(0, "stop")]).status(201), GOOD, false),
        (stream(&[event(0, "stop")]), GOOD_STREAM, true),
        (stream(&[event(0, "length")]), GOOD_STREAM, false),
        (stream(&[event(0, "stop"), event(1, "length")]), GOOD_STREAM, false),
        (stream(&[event(0, "stop"), error]), GOOD_STREAM, false),
        (Script::new().status(404), GOOD, false),
        (Script::new().status(429), GOOD, false),
    ]
    .into_iter()
    .enumerate()
    {
        let before = front.mock.calls();
        front.mock.script_always(script);
        let asks = body.replace("hello", &format!("number {nth}"));
        let [first, again] = [front.ask("", &asks).await, front.ask("", &asks).await];
        assert_eq!((first.status, &first.body), (again.status, &again.body), "{nth}");
        assert_eq!(front.mock.calls() - before, if kept { 1 } else { 2 }, "{nth}: {again:?}");
    }
    front.stop().await;
}

/// A millisecond's freshness is over by the time that anybody asks again.
#[tokio::test]
async fn stale_answers() {
    let short = "enabled = true\nttl_ms = 1";
    let front = Front::start(&format!("{short}\nstale_if_error_ms = 3_600_000")).await;
    let first = front.ask("", GOOD).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    for (status, count) in [(503, 1), (429, 2), (529, 3)] {
        front.mock.script_always(Script::new().status(status));
        let stale = front.ask("", GOOD).await;
        assert_eq!((stale.status, &stale.body), (200, &first.body));
        assert_eq!(stale.header("cache-status"), Some("bartizan; hit; ttl=-0"));
        assert_eq!((front.mock.calls(), &front.told().await["stale"]), (1 + count, &json!(count)));
    }
    front.mock.script_always(Script::new().status(401));
    assert_eq!(front.ask("", GOOD).await.status, 401, "what is the gateway's own fault is told");
    front.stop().await;

    let front = Front::start(&format!("{short}\nstale_while_revalidate_ms = 3_600_000")).await;
    let first = front.ask("", GOOD_STREAM).await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    let stale = front.ask("", GOOD_STREAM).await;
    assert_eq!(stale.body, first.body);
    within("the new answer", front.mock.until(|stats| stats.completed == 2)).await;
    let newer = async { while front.ask("", GOOD_STREAM).await.body == first.body {} };
    within("the new answer to be kept", newer).await;
    front.stop().await;
}

#[tokio::test]
async fn models_that_are_asked_each_time() {
    let front = Front::start(KEPT).await;
    for _ in 0..2 {
        let answer = front.ask("", &GOOD.replace("chat", "alone")).await;
        assert_eq!((answer.status, answer.header("cache-status")), (200, BYPASS));
        let answer = front.ask("", &GOOD.replace("chat", "gpt-9")).await;
        answer.assert_error(404, "invalid_request_error", Some("model_not_found"), "gpt-9");
    }
    let told = front.told().await;
    assert_eq!((front.mock.calls(), &told["bypassed"], &told["misses"]), (2, &json!(4), &json!(0)));
    assert_eq!(told["hit_rate"], Value::Null);
    front.stop().await;

    // Nothing says a word of it where it is off.
    let front = Front::start("").await;
    for _ in 0..2 {
        assert_eq!(front.ask("", GOOD).await.header("cache-status"), None);
    }
    assert_eq!((front.mock.calls(), front.told().await), (2, Value::Null));
    let answer = front.admin("POST", "dedup/clear").await;
    answer.assert_error(404, "invalid_request_error", Some("dedup_off"), "nothing is kept");
    front.stop().await;
}

#[tokio::test]
async fn answers_are_cleared_by_hand() {
    let front = Front::start(KEPT).await;
    for body in [GOOD, GOOD_STREAM] {
        front.ask("", body).await;
    }
    let told = front.told().await;
    assert_eq!(told["entries"], 2);
    assert!(told["bytes"].as_u64().unwrap() > 500, "{told}");
    let cleared = front.admin("POST", "dedup/clear").await;
    let cleared: Value = serde_json::from_str(&cleared.body).unwrap();
    assert_eq!((&cleared["dedup"]["entries"], &cleared["dedup"]["bytes"]), (&json!(0), &json!(0)));
    assert_eq!(front.ask("", GOOD).await.header("cache-status"), MISS);

    for (method, path) in [("GET", "dedup"), ("POST", "dedup/clear")] {
        for headers in ["", "authorization: Bearer sk-of-the-client\r\n"] {
            let answer = front.raw(method, path, headers).await;
            answer.assert_error(401, "authentication_error", Some("invalid_api_key"), "the admin token");
        }
    }
    for (method, path) in [("POST", "dedup"), ("GET", "dedup/clear")] {
        assert_eq!(front.admin(method, path).await.status, 405, "{method} {path}");
    }
    assert_eq!(front.told().await["entries"], 1);
    front.stop().await;
}

/// An answer that is kept says what its upstream had left then, which is over, and no reason not to give it.
#[tokio::test]
async fn upstreams_without_capacity_do_not_hold_up_what_is_kept() {
    let front = Front::start(&format!("{KEPT}\n[rate_limits]\nfollow_upstreams = true")).await;
    front.mock.script_always(
        Script::new()
            .header("x-ratelimit-remaining-requests", "0")
            .header("x-ratelimit-reset-requests", "600s"),
    );
    let first = front.ask("", GOOD).await;
    assert_eq!(first.status, 200);
    assert_eq!(front.ask("", GOOD).await.body, first.body);
    assert_eq!(front.ask("", GOOD_STREAM).await.status, 429);
    front.stop().await;
}

/// Who stands in for a model answers all who wait, and nobody who comes later; nor whoever wants that model alone.
#[tokio::test]
async fn answers_of_models_that_stand_in() {
    let fallback = format!("{KEPT}\n[fallback]\nfallbacks = [\"alone\"]");
    let (front, gate) = Front::gated(0, Script::new().status(503), &fallback).await;
    let all = ["", "x-bartizan-fallback: off\r\n"]
        .map(|header| join_all((0..3).map(|_| front.ask(header, GOOD)).collect::<Vec<_>>()));
    let opening = async {
        front.until("collapsed", 4).await;
        gate.open();
    };
    let (all, ()) = tokio::join!(join_all(all), opening);
    assert_eq!(front.mock.calls(), 3);
    for (answers, tried) in
        all.iter().zip([Some("\"chat\";error=overloaded, \"alone\";error=overloaded"), None])
    {
        for answer in answers {
            assert_eq!((answer.status, &answer.body), (503, &answers[0].body));
            assert_eq!(answer.header("x-bartizan-attempts"), tried);
        }
    }
    front.stop().await;

    let (mock, upstream) = mock().await;
    mock.script_for("chat", Script::new().status(503));
    let models = [
        model("chat", upstream, "fallbacks = [\"other\"]"),
        model("other", upstream, ""),
        format!("[dedup]\n{KEPT}\n"),
    ];
    let gateway = Gateway::start("", &models).await;
    let mut calls = Vec::new();
    for header in ["", "x-bartizan-fallback: off\r\n", ""] {
        let answer = exchange(gateway.address, &post(header, GOOD)).await;
        assert_eq!(answer.status, if header.is_empty() { 200 } else { 503 }, "{answer:?}");
        calls.push(mock.calls());
    }
    assert_eq!(calls, [2, 3, 5]);
    gateway.stop().await;
}
