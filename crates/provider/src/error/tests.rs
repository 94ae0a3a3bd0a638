use std::time::Duration;

use bartizan_core::RejectionKind;
use http_body_util::BodyExt;
use serde_json::{Value, json};

use super::*;

fn of(status: u16, body: &str) -> Error {
    Error::of_response(
        StatusCode::from_u16(status).unwrap(),
        &HeaderMap::new(),
        body.as_bytes(),
        &["sk-secret99"],
    )
}

async fn read(response: Response<Full<Bytes>>) -> (StatusCode, HeaderMap, Value) {
    let (head, body) = response.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status, head.headers, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn responses_have_the_shape_of_openai() {
    let error = Error::new(Class::BadRequest, "`model` is \"missing\"").with_param("model");
    let (status, headers, body) = read(error.to_response()).await;
    assert_eq!(status, 400);
    assert_eq!(headers[CONTENT_TYPE], "application/json");
    assert_eq!(headers["x-should-retry"], "false");
    let expected = json!({"error": {
        "message": "`model` is \"missing\"", "type": "invalid_request_error", "param": "model", "code": null,
    }});
    assert_eq!(body, expected);

    let wait = RetryAfter::After(Duration::from_millis(1200));
    let (status, headers, body) =
        read(Error::new(Class::RateLimit, "slow down").with_retry_after(wait).to_response()).await;
    assert_eq!(status, 429);
    assert_eq!(headers["retry-after"], "2");
    assert!(!headers.contains_key("x-should-retry"), "a later try may pass");
    assert_eq!(body["error"]["code"], "rate_limit_exceeded");

    let never = Error::new(Class::RateLimit, "too much").with_retry_after(RetryAfter::Never);
    assert!(!never.is_transient());
    assert_eq!(never.to_response().headers()["x-should-retry"], "false");

    let response = Error::method_not_allowed("POST").to_response();
    assert_eq!(
        (response.status().as_u16(), &response.headers()[ALLOW]),
        (405, &HeaderValue::from_static("POST"))
    );
}

#[test]
fn an_event_is_one_line_of_data() {
    let event = Error::new(Class::Malformed, "cut\n\ndata: [DONE]\n\n").event();
    let text = str::from_utf8(&event).unwrap();
    let data = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    assert!(!data.contains('\n'));
    let value: Value = serde_json::from_str(data).unwrap();
    assert_eq!(value["error"]["message"], "cut\n\ndata: [DONE]\n\n");
}

#[test]
fn the_outermost_of_error_and_rejection_answers() {
    let rejected = || Rejected::new(RejectionKind::Exhausted, "fallback");
    let wrapped = std::io::Error::other(Error::new(Class::NotFound, "no such model"));
    assert_eq!(openai_error(wrapped.into()).status(), 404);
    let exhausted = rejected().with_source(Error::new(Class::NotFound, "no such model"));
    assert_eq!(openai_error(exhausted.into()).status(), 502);
    let over = Error::new(Class::Overloaded, "busy").with_source(rejected());
    assert_eq!(openai_error(over.into()).status(), 503);
    assert_eq!(openai_error("what?".into()).status(), 500);
}

#[test]
fn an_upstreams_4xx_is_kept_where_it_agrees_with_the_class() {
    assert_eq!(of(422, r#"{"error":{"message":"no"}}"#).status(), 422);
    assert_eq!(of(403, "").status(), 403);
    assert_eq!(of(402, "").status(), 402);
    assert_eq!(of(408, "").status(), 504);
    assert_eq!(of(500, "").status(), 502);
    assert_eq!(of(529, "").status(), 503);
    let spent = of(400, r#"{"error":{"message":"","code":"billing_hard_limit_reached"}}"#);
    assert_eq!((spent.status().as_u16(), spent.is_transient()), (429, false));
}

#[test]
fn headers_say_when_to_come_back() {
    let read = |name: &'static str, value: &'static str| {
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))]);
        Error::of_response(StatusCode::TOO_MANY_REQUESTS, &headers, b"", &[]).retry_after()
    };
    assert_eq!(read("retry-after-ms", "1500"), RetryAfter::After(Duration::from_millis(1500)));
    assert_eq!(read("x-should-retry", "false"), RetryAfter::Never);
    assert_eq!(read("x-should-retry", "true"), RetryAfter::Unknown);
}

#[test]
fn no_key_passes() {
    let leaks = [
        (
            500,
            r#"{"error":{"message":"bad header Bearer sk-secret99!","code":"sk-secret99","param":"sk-secret99"}}"#,
        ),
        (500, "bad header Bearer sk-secret99"),
        (400, r#"{"error":{"message":"key sk-se******et99 is bad"}}"#),
        (
            401,
            r#"{"error":{"message":"Incorrect API key provided: sk-secr...et99","code":"invalid_api_key"}}"#,
        ),
    ];
    for (status, body) in leaks {
        let error = of(status, body);
        for text in [format!("{error}"), format!("{error:?}"), String::from_utf8(error.json()).unwrap()] {
            assert!(!text.contains("secret") && !text.contains("et99"), "{text}");
        }
    }
    let event = br#"{"error":{"message":"sk-secret99 refused","type":"server_error"}}"#;
    let error = Error::of_event(event, &["sk-secret99"]).unwrap();
    assert_eq!(error.to_string(), "upstream failed: [redacted] refused");
}

#[test]
fn half_a_key_does_not_pass_where_a_message_is_cut() {
    let long = format!("{}sk-secret99 and more", "x".repeat(MAX_MESSAGE - 5));
    let error = of(400, &json!({"error": {"message": long}}).to_string());
    assert!(!error.message().contains("sk-s"));
    let long = "é".repeat(MAX_MESSAGE);
    assert!(of(400, &json!({"error": {"message": long}}).to_string()).message().ends_with("é…"));
}

#[test]
fn redaction_takes_the_longest_key_and_leaves_prose_alone() {
    for (text, secrets, expected) in [
        ("a key-1 b key-12.", &["key-1", "key-12"][..], "a [redacted] b [redacted]."),
        ("key-1key-1", &["key-1"], "[redacted][redacted]"),
        ("?k=key-1&x", &["key-1"], "?k=[redacted]&x"),
        ("xkey-1x", &["key-1"], "x[redacted]x"),
        ("see … and so on... ok. **bold**", &["key-1", ""], "see … and so on... ok. **bold**"),
        ("key…1 is", &["key-1"], "[redacted] is"),
        ("naïve é key-1é", &["key-1"], "naïve é [redacted]é"),
        ("", &["key-1"], ""),
    ] {
        assert_eq!(redact(text, secrets), expected);
    }
    assert!(matches!(redact("nothing here", &["key-1"]), Cow::Borrowed(_)));
}

#[test]
fn what_has_no_message_gets_one() {
    assert_eq!(of(503, "").message(), "the upstream answered 503 Service Unavailable");
    assert_eq!(of(502, "<html>nginx</html>").message(), "the upstream answered 502 Bad Gateway");
    assert_eq!(of(502, "upstream connect error\n").message(), "upstream connect error");
    assert_eq!(of(524, "").message(), "the upstream answered 524");
}

#[test]
fn only_error_events_are_errors() {
    for data in [
        r#"{"choices":[{"delta":{"content":"\"error\""}}]}"#,
        r#"{"error":null,"choices":[]}"#,
        r#"{"message":"hello"}"#,
        "[DONE]",
        "",
    ] {
        assert!(Error::of_event(data.as_bytes(), &[]).is_none(), "{data}");
    }
    for (data, class) in [
        (r#"{"error":{"message":"The server had an error","type":"server_error"}}"#, Class::Upstream),
        (r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#, Class::Overloaded),
        (r#"{"id":"1","choices":[],"error":{"code":429,"message":"slow"}}"#, Class::RateLimit),
        (r#"{"object":"error","message":"bad","type":"BadRequestError","code":400}"#, Class::BadRequest),
        (r#"{"error":"something broke"}"#, Class::Upstream),
    ] {
        assert_eq!(Error::of_event(data.as_bytes(), &[]).unwrap().class(), class, "{data}");
    }
}

#[test]
fn a_refusal_within_a_stream_says_what_it_would_before_it() {
    let event = |error: &(dyn error::Error + 'static)| {
        let event = String::from_utf8(event_of(error).to_vec()).unwrap();
        let json: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
        ["message", "type", "code"].map(|name| json["error"][name].as_str().unwrap().to_owned())
    };
    let slow = Rejected::new(RejectionKind::Lagged, "dedup");
    assert_eq!(event(&slow), ["dedup: read too slowly", "service_unavailable_error", "lagged"]);
    let unknown = std::io::Error::other("of nobody's business");
    assert_eq!(event(&unknown), ["the stream broke off", "api_error", "upstream_error"]);
}
