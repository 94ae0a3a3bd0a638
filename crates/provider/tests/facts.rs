//! Facts, from a request as it arrives to the upstream that sees it.
#![cfg(feature = "mock")]

use bartizan_core::{BoxError, RejectionLayer};
use bartizan_provider::{Error, Facts, IntakeLayer, mock::Mock, openai_error};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Layer, Service, ServiceExt, service_fn};

fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::post("/v1/chat/completions")
        .header("content-type", "application/json")
        .body(Full::new(body.into()))
        .unwrap()
}

#[tokio::test]
async fn a_request_is_renamed_on_its_way_without_a_second_parse() {
    let mock = Mock::with_models(["upstream-name"]);
    let upstream = mock.clone();
    let rename = service_fn(move |request: Request<Bytes>| {
        let facts = request.extensions().get::<Facts>().expect("intake read them").clone();
        let request = request.map(|body| Full::new(facts.rename(&body, "upstream-name")));
        let mut service = upstream.service();
        async move { service.call(request).await }
    });
    let service = IntakeLayer::new().layer(rename);

    let body = r#"{ "messages":[{"role":"user","content":"\"model\": é"}] , "model" : "public\u002dname","top_p":1e-1}"#;
    let response = service.oneshot(post(body)).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(mock.requests()[0].body, body.replace(r#""public\u002dname""#, r#""upstream-name""#));
}

#[tokio::test]
async fn bad_requests_get_openai_shaped_answers_and_never_reach_the_upstream() {
    let mock = Mock::new();
    let upstream = mock.clone();
    let inner = service_fn(move |request: Request<Bytes>| {
        let mut service = upstream.service();
        async move { service.call(request.map(Full::new)).await }
    });
    let stack = RejectionLayer::new(openai_error).layer(IntakeLayer::new().max_body(1_000).layer(inner));

    let ask = async |body: Vec<u8>| {
        let response = stack.clone().oneshot(post(body)).await.unwrap();
        let status = response.status();
        let no_retry = response.headers().get("x-should-retry").is_some_and(|value| value == "false");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let error: serde_json::Value = serde_json::from_slice(&body).unwrap();
        (status, no_retry, error["error"].clone())
    };
    for (body, expected, param) in [
        (b"hello".to_vec(), StatusCode::BAD_REQUEST, None),
        (b"".to_vec(), StatusCode::BAD_REQUEST, None),
        (vec![b' '; 1_001], StatusCode::PAYLOAD_TOO_LARGE, None),
        (vec![b'['; 1_000], StatusCode::BAD_REQUEST, None),
        (b"{\"model\":\"\xff\"}".to_vec(), StatusCode::BAD_REQUEST, None),
        (b"{\"messages\":[]}".to_vec(), StatusCode::BAD_REQUEST, Some("model")),
        (b"{\"model\":\"a\",\"model\":\"b\"}".to_vec(), StatusCode::BAD_REQUEST, Some("model")),
    ] {
        let (status, no_retry, error) = ask(body.clone()).await;
        let shown = String::from_utf8_lossy(&body);
        assert_eq!(status, expected, "{shown}");
        assert!(no_retry, "{shown}");
        assert_eq!(error["type"], "invalid_request_error", "{shown}");
        assert_eq!(error["param"].as_str(), param, "{shown}");
        assert!(error["message"].as_str().is_some_and(|message| message.len() > 10), "{shown}");
    }
    assert_eq!(mock.calls(), 0);
}

#[test]
fn an_error_stays_itself_in_a_box() {
    let error: BoxError = Error::new(bartizan_provider::Class::NotFound, "gone").into();
    assert_eq!(Error::find(&*error).map(Error::message), Some("gone"));
}
