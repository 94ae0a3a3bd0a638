//! What HTTP requests are known by.
#![cfg(feature = "http")]

use bartizan_dedup::{Identity, Key, KeyBuilder, RequestKey};
use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use serde_json::{Value, json};

type Req = Request<Vec<u8>>;

fn tenant(request: &Req) -> Option<&str> {
    request.headers().get("x-tenant")?.to_str().ok()
}

fn request(method: &str, uri: &str, headers: &[(&'static str, &str)], body: impl Into<Vec<u8>>) -> Req {
    let mut request = Request::builder().method(method).uri(uri).header("x-tenant", "acme");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body.into()).unwrap()
}

fn of(request: &Req) -> Option<Identity<Key>> {
    RequestKey::scoped_by(tenant).header(HeaderName::from_static("accept")).of(request)
}

const JSON: (&str, &str) = ("content-type", "application/json");

#[test]
fn everything_that_is_told_counts() {
    let all = [
        request("GET", "/a", &[], ""),
        request("POST", "/a", &[], ""),
        request("GET", "/b", &[], ""),
        request("GET", "/a?", &[], ""),
        request("GET", "/a?b", &[], ""),
        request("GET", "http://h/a", &[], ""),
        request("GET", "https://h/a", &[], ""),
        request("GET", "http://h:81/a", &[], ""),
        request("GET", "/a", &[("accept", "x")], ""),
        request("GET", "/a", &[("accept", "x"), ("accept", "y")], ""),
        request("GET", "/a", &[("accept", "x, y")], ""),
        request("GET", "/a", &[("accept", "")], ""),
        request("GET", "/a", &[], "x"),
        request("GET", "/a", &[("content-type", "text/plain")], "x"),
        request("GET", "/a", &[("content-encoding", "br")], "x"),
        request("GET", "/a", &[JSON], "1"),
        request("GET", "/a", &[JSON], "\"1\""),
        request("GET", "/a", &[("content-type", "text/plain")], "1"),
        request("PATCH", "/a", &[JSON], "{}"),
        request("PATCH", "/a", &[("content-type", "application/merge-patch+json")], "{}"),
        request("PATCH", "/a", &[("content-type", "application/json; version=2")], "{}"),
        request("GET", "/a", &[("host", "h")], ""),
        request("GET", "/a", &[("host", "i")], ""),
    ];
    for (n, one) in all.iter().enumerate() {
        assert_eq!(of(one), of(one));
        for (m, other) in all.iter().enumerate() {
            assert_eq!(of(one) == of(other), n == m, "{one:?} and {other:?}");
        }
    }
    assert!(all.iter().all(|request| of(request).is_some()));
}

#[test]
fn what_is_not_told_does_not() {
    let plain = of(&request("GET", "/a", &[], ""));
    for name in ["user-agent", "authorization", "cookie", "accept-language", "prefer"] {
        assert_eq!(of(&request("GET", "/a", &[(name, "x")], "")), plain, "{name}");
    }
    let json = |kind, body: &str| of(&request("POST", "/a", &[("content-type", kind)], body));
    let spaced = json("application/json; charset=utf-8", "{\"a\" :1}");
    assert_eq!(json("Application/JSON", "{\"a\":1}"), spaced);
    assert_eq!(json("application/json ;Charset=\"UTF-8\"", "{\"a\":1}"), spaced);
    let problem = json("application/problem+json", "{\"b\":1,\"a\" :1}");
    assert_eq!(json("application/problem+json", "{\"a\":1,\"b\":1}"), problem);
    assert_eq!(
        of(&request("GET", "http://h/a", &[("host", "h")], "")),
        of(&request("GET", "http://h/a", &[("host", "elsewhere")], "")),
        "where the URI says the host, the header does not",
    );
}

#[test]
fn some_requests_have_no_key() {
    let mut nobodys = request("GET", "/a", &[], "");
    nobodys.headers_mut().remove("x-tenant");
    let deep = "[".repeat(200) + &"]".repeat(200);
    for none in [
        nobodys,
        request("GET", "/a", &[("cache-control", "no-store")], ""),
        request("GET", "/a", &[("range", "bytes=0-1")], ""),
        request("GET", "/a", &[("if-none-match", "\"x\"")], ""),
        request("GET", "/a", &[("last-event-id", "41")], ""),
        request("POST", "/a", &[JSON], "{"),
        request("POST", "/a", &[JSON], deep),
        request("POST", "/a", &[JSON], vec![b'"', 0xff, b'"']),
        request("POST", "/a", &[], vec![0; (1 << 20) + 1]),
    ] {
        assert_eq!(of(&none), None, "{:?}", none.headers());
    }
    assert!(of(&request("POST", "/a", &[], vec![0; 1 << 20])).is_some());
    let short = RequestKey::scoped_by(tenant).max_body(3);
    assert!(short.of(&request("POST", "/a", &[], "abc")).is_some());
    assert_eq!(short.of(&request("POST", "/a", &[], "abcd")), None);
}

#[test]
fn one_that_wants_a_new_answer_says_so() {
    let plain = of(&request("GET", "/a", &[], "")).unwrap();
    for control in ["no-cache", "max-age=0"] {
        assert_eq!(of(&request("GET", "/a", &[("cache-control", control)], "")), Some(plain.no_cache()));
    }
    for control in ["max-age=1", "min-fresh=1", "max-stale", "only-if-cached"] {
        assert_eq!(of(&request("GET", "/a", &[("cache-control", control)], "")), Some(plain), "{control}");
    }
}

/// A request, by what it is made of.
#[derive(Clone, Debug, PartialEq)]
struct Parts {
    tenant: String,
    method: &'static str,
    path: String,
    query: Option<String>,
    accept: Vec<String>,
    body: Value,
}

impl Parts {
    fn request(&self) -> Req {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        let mut request = Request::builder().method(self.method).uri(format!("/{}{query}", self.path));
        let headers = request.headers_mut().unwrap();
        headers.insert("x-tenant", HeaderValue::from_str(&self.tenant).unwrap());
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        for accept in &self.accept {
            headers.append("accept", HeaderValue::from_str(accept).unwrap());
        }
        request.body(self.body.to_string().into_bytes()).unwrap()
    }
}

fn parts() -> impl Strategy<Value = Parts> {
    // So few letters that boundaries are what tells most of them apart.
    let word = "[ab]{0,2}";
    let body = prop_oneof![
        Just(json!({"model": "a"})),
        (word, word).prop_map(|(model, prompt)| json!({"model": model, "prompt": prompt})),
        (word, any::<bool>(), 0..3_u8)
            .prop_map(|(prompt, stream, n)| json!({"n": n, "prompt": prompt, "stream": stream})),
        prop::collection::vec(word, 0..3).prop_map(|all| json!(all)),
    ];
    (word, prop_oneof!["GET", "POST"], word, prop::option::of(word), prop::collection::vec(word, 0..3), body)
        .prop_map(|(tenant, method, path, query, accept, body)| Parts {
            tenant,
            method: if method == "GET" { "GET" } else { "POST" },
            path,
            query,
            accept,
            body,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// No two requests that differ in any part share a key; no two tenants share one whatever they ask.
    #[test]
    fn requests_share_a_key_only_if_they_are_the_same(one in parts(), other in parts(), tenant in "[ab]{0,2}") {
        let keys = [of(&one.request()).unwrap(), of(&other.request()).unwrap()];
        prop_assert_eq!(keys[0] == keys[1], one == other);
        let elsewhere = Parts { tenant: tenant.clone(), ..one.clone() };
        prop_assert_eq!(of(&elsewhere.request()).unwrap() == keys[0], tenant == one.tenant);
    }

    #[test]
    fn parts_do_not_run_together(one in prop::collection::vec("[ab]{0,2}", 0..4), other in prop::collection::vec("[ab]{0,2}", 0..4)) {
        let key = |parts: &[String]| match parts.split_first() {
            Some((scope, rest)) => rest.iter().fold(Key::scope(scope), KeyBuilder::part).finish(),
            None => Key::scope("").part("nothing").part("").part("").finish(),
        };
        prop_assert_eq!(key(&one) == key(&other), one == other);
    }
}
