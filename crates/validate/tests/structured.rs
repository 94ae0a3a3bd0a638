//! Answers against the form that their requests ask for: whole, and in streams.

use std::convert::Infallible;

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_validate::{
    Bodies, Level, Pattern, Report, ResponseFormat, Rules, Severity, Stats, Validator, Wanted, Window,
};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use serde_json::{Value, json};
use tower::{Layer, ServiceExt, service_fn};

type Upstream = BoxBody<Bytes, BoxError>;

fn chat() -> Validator<Request<Bytes>, Bodies> {
    Validator::http(Rules::new()).structured("form", Severity::Error, ResponseFormat::chat())
}

fn schema(schema: &Value) -> String {
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "x", "strict": true, "schema": schema}});
    json!({"model": "m", "response_format": format, "messages": []}).to_string()
}

fn ages() -> String {
    schema(&json!({
        "type": "object", "required": ["age"], "additionalProperties": false,
        "properties": {"age": {"type": "integer"}},
    }))
}

async fn call(
    validator: &Validator<Request<Bytes>, Bodies>,
    level: Level,
    request: &str,
    response: Response<Upstream>,
) -> Result<Response<impl Body<Data = Bytes, Error = BoxError> + use<>>, BoxError> {
    let (head, body) = response.into_parts();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    let inner = service_fn(move |_: Request<Bytes>| {
        let body = body.lock().unwrap().take().expect("asked once");
        std::future::ready(Ok::<_, Infallible>(Response::from_parts(head.clone(), body)))
    });
    validator
        .layer(level)
        .layer(inner)
        .oneshot(Request::new(Bytes::copy_from_slice(request.as_bytes())))
        .await
}

fn full(text: impl Into<Bytes>) -> Response<Upstream> {
    Response::new(BodyExt::boxed(Full::new(text.into()).map_err(|never| match never {})))
}

fn choices(texts: &[&str]) -> String {
    let choices: Vec<_> = texts.iter().map(|text| json!({"message": {"content": text}})).collect();
    json!({ "choices": choices }).to_string()
}

fn told(error: &BoxError) -> Vec<(String, String)> {
    let report = Report::find(&**error).expect("a refusal");
    report.violations().iter().map(|it| (it.rule().to_owned(), it.pointer().to_owned())).collect()
}

fn pointers(error: &BoxError) -> Vec<String> {
    told(error).into_iter().map(|(rule, pointer)| (rule == "form").then_some(pointer).unwrap()).collect()
}

#[tokio::test]
async fn whole_answers_fit_what_was_asked_for() {
    let ask = async |request: &str, answer: &str| {
        let response = call(&chat(), Level::Moderate, request, full(answer.to_owned())).await?;
        assert_eq!(response.into_body().collect().await?.to_bytes(), answer, "byte for byte");
        Ok::<_, BoxError>(())
    };
    let age = "/choices/0/message/content";
    ask(&ages(), &choices(&[r#" {"age": 7} "#])).await.unwrap();
    for (texts, expected) in [
        (&[r#"{"age":"7"}"#][..], vec![format!("{age}/age")]),
        (&[r#"{"age":7,"x":1}"#], vec![age.to_owned()]),
        (&["{}"], vec![age.to_owned()]),
        (&["```json\n{\"age\":7}\n```"], vec![age.to_owned()]),
        (&[r#"{"age":7"#], vec![age.to_owned()]),
        (&[""], vec![age.to_owned()]),
        (&[r#"{"age":7,"age":"x"}"#], vec![format!("{age}/age")]),
        (
            &[r#"{"age":7}"#, r#"{"age":null}"#, "[]"],
            vec!["/choices/1/message/content/age".to_owned(), "/choices/2/message/content".to_owned()],
        ),
    ] {
        let error = ask(&ages(), &choices(texts)).await.unwrap_err();
        assert_eq!(pointers(&error), expected, "{texts:?}");
        assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::InvalidAnswer);
        assert!(!Report::find(&*error).unwrap().to_string().contains("```"), "nothing is quoted");
    }
    // Where the text is put together of parts, or counted otherwise.
    let parts = json!([{"type": "text", "text": "{\"age\""}, {"type": "text", "text": ":7}"}]);
    ask(&ages(), &json!({"choices": [{"message": {"content": parts}}]}).to_string()).await.unwrap();
    let error =
        ask(&ages(), &json!({"choices": [{"index": 3, "message": {"content": "no"}}]}).to_string()).await;
    assert_eq!(pointers(&error.unwrap_err()), ["/choices/3/message/content"]);
    // There is nothing to check in these.
    for message in [
        json!({"content": null, "tool_calls": [{"id": "t"}]}),
        json!({"content": "well", "function_call": {"name": "f"}}),
        json!({"content": null, "refusal": "I cannot"}),
    ] {
        ask(&ages(), &json!({"choices": [{ "message": message }]}).to_string()).await.unwrap();
    }
    // In these there should be.
    for answer in [
        json!({"choices": []}),
        json!({"error": "late"}),
        json!({"choices": [{"message": {"content": null, "tool_calls": [], "refusal": ""}}]}),
        json!([]),
    ] {
        assert!(ask(&ages(), &answer.to_string()).await.is_err(), "{answer}");
    }
    for answer in ["", "{", r#"{"choices":[],"choices":[{"message":{"content":"{\"age\":7}"}}]}"#] {
        assert!(ask(&ages(), answer).await.is_err(), "{answer}");
    }
    // Nothing was asked of these.
    for request in ["", "{}", r#"{"response_format":null}"#, r#"{"response_format":{"type":"text"}}"#] {
        ask(request, "whatever").await.unwrap();
    }
    for format in
        [json!({"type": "json_object"}), json!({"type": "json_schema", "json_schema": {"name": "x"}})]
    {
        let request = json!({ "response_format": format }).to_string();
        ask(&request, &choices(&["{}"])).await.unwrap();
        assert!(ask(&request, &choices(&["[]"])).await.is_err());
    }
}

#[tokio::test]
async fn levels_say_what_a_wrong_form_does() {
    let validator = chat();
    let response = call(&validator, Level::Lenient, &ages(), full(choices(&["no"]))).await.unwrap();
    assert_eq!(response.extensions().get::<Report>().unwrap().violations()[0].rule(), "form");
    let stream = events(&[delta(0, "no"), finish(0)]);
    let response = call(&validator, Level::Lenient, &ages(), stream).await.unwrap();
    assert!(response.into_body().collect().await.is_ok());
    assert_eq!(validator.stats(), Stats { reported: 2, ..Stats::default() });
    // What is no JSON at all cannot be checked.
    assert!(call(&validator, Level::Lenient, &ages(), full("no")).await.is_err());
    // Neither can what is too long, or packed.
    let short = ResponseFormat::chat().max_bytes(20);
    let short = Validator::http(Rules::new()).structured("form", Severity::Warn, short);
    assert!(call(&short, Level::Lenient, &ages(), full(choices(&["{}"]))).await.is_err());
    let many: Vec<_> = (0..21).map(|_| delta(0, "a")).collect();
    let response = call(&short, Level::Lenient, &ages(), events(&many)).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
    let mut packed = full("x");
    packed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert!(call(&validator, Level::Lenient, &ages(), packed).await.is_err());
    // An upstream's own error is no answer.
    let mut failed = full("down");
    *failed.status_mut() = http::StatusCode::BAD_GATEWAY;
    assert!(call(&validator, Level::Strict, &ages(), failed).await.is_ok());
}

#[tokio::test]
async fn a_form_that_cannot_be_checked_is_refused_with_the_request() {
    let validator = chat();
    let refused = async |request: &str| {
        let error = call(&validator, Level::Lenient, request, full("")).await.err().expect("refused");
        assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::Invalid, "{request}");
        assert!(Report::find(&*error).unwrap().is_malformed());
        pointers(&error).pop().unwrap()
    };
    let at = |rest: &str| format!("/response_format/json_schema/schema{rest}");
    for (bad, pointer) in [
        (json!({"$ref": "http://127.0.0.1:9/x.json"}), at("/$ref")),
        (
            json!({"properties": {"a/b": {"items": {"$ref": "file:///etc/passwd"}}}}),
            at("/properties/a~1b/items/$ref"),
        ),
        (json!({"$ref": "#"}), at("")),
        (json!({"items": {"pattern": "(?=a)"}}), at("/items/pattern")),
        (json!({"pattern": r"\p{L}{500}"}), at("/pattern")),
        (json!({"type": "text"}), at("/type")),
        (json!({"$ref": "#/$defs/none"}), at("/$ref")),
    ] {
        let told = refused(&schema(&bad)).await;
        assert!(told.starts_with(&pointer), "{bad}: {told}");
    }
    assert_eq!(refused(&schema(&json!({"title": "x".repeat(70_000)}))).await, "/response_format");
    assert_eq!(
        refused(r#"{"response_format":{"type":"json_object","type":"text"}}"#).await,
        "/response_format/type"
    );
    // Asked for twice, in whatever letters, or by what is no JSON to us and may be to others.
    for request in [
        r#"{"response_format":{"type":"text"},"response\u005fformat":{"type":"json_object"}}"#,
        r#"{"response_format":{"type":"json_object"},"x":NaN}"#,
        "[]",
        "{} {}",
    ] {
        assert_eq!(refused(request).await, "", "{request}");
    }
    let written_otherwise = ages().replace("response_format", r"respons\u0065_format");
    assert!(call(&validator, Level::Moderate, &written_otherwise, full(choices(&["no"]))).await.is_err());
    assert_eq!(validator.stats().refused_responses, 1);
}

/// More formats than are kept, in turn: each answer is checked by its own.
#[tokio::test]
async fn every_answer_is_checked_by_its_own_form() {
    let validator = chat();
    for n in (0..20).chain(0..20).chain([3, 3, 4]) {
        let request = schema(&json!({ "const": n }));
        for (answer, fits) in [(n, true), (n + 1, false)] {
            let response = full(choices(&[&answer.to_string()]));
            assert_eq!(call(&validator, Level::Strict, &request, response).await.is_ok(), fits);
        }
    }
}

#[tokio::test]
async fn other_ways_to_ask() {
    let format = ResponseFormat::new("output", |format| match format.get("schema") {
        Some(_) => Wanted::Schema("/schema".into()),
        None => Wanted::Anything,
    });
    let validator = Validator::http(Rules::new()).structured(
        "form",
        Severity::Error,
        format.text_at("/output/text", "/text"),
    );
    let request = json!({"output": {"schema": {"type": "array"}}}).to_string();
    let answer = |text: &str| full(json!({"output": {"text": text}}).to_string());
    assert!(call(&validator, Level::Strict, &request, answer("[]")).await.is_ok());
    let error = call(&validator, Level::Strict, &request, answer("{}")).await.err().unwrap();
    assert_eq!(pointers(&error), ["/output/text"]);
    for (texts, fits) in [(["[", "]"], true), (["[", "}"], false)] {
        let events = texts.map(|text| format!("data: {}\n\n", json!({ "text": text })));
        let response = call(&validator, Level::Strict, &request, self::events(&events)).await.unwrap();
        assert_eq!(response.into_body().collect().await.is_ok(), fits);
    }
}

fn delta(choice: u64, text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": choice, "delta": {"content": text}, "finish_reason": null}]})
    )
}

fn finish(choice: u64) -> String {
    format!("data: {}\n\n", json!({"choices": [{"index": choice, "delta": {}, "finish_reason": "stop"}]}))
}

const DONE: &str = "data: [DONE]\n\n";

fn stream_of(frames: Vec<Result<Bytes, BoxError>>) -> Response<Upstream> {
    let frames = stream::iter(frames.into_iter().map(|frame| frame.map(Frame::data)).collect::<Vec<_>>());
    let frames = StreamBody::new(futures_util::StreamExt::map(frames, |frame| frame));
    let body = UpstreamBody(Box::pin(frames));
    Response::builder().header("content-type", "text/event-stream").body(BodyExt::boxed(body)).unwrap()
}

/// A body of frames that may fail, which is `Sync` as bodies of clients are.
struct UpstreamBody<B>(std::pin::Pin<Box<B>>);

impl<B: Body<Data = Bytes, Error = BoxError>> Body for UpstreamBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.0.as_mut().poll_frame(cx)
    }
}

fn events(events: &[String]) -> Response<Upstream> {
    stream_of(events.iter().map(|event| Ok(Bytes::from(event.clone()))).collect())
}

/// What passes, and how it ends.
async fn through(
    validator: &Validator<Request<Bytes>, Bodies>,
    response: Response<Upstream>,
) -> (String, Result<(), BoxError>) {
    let response = call(validator, Level::Moderate, &ages(), response).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let mut passed = Vec::new();
    loop {
        assert!(!body.is_end_stream() || body.frame().await.is_none(), "it does not end before its end");
        match body.frame().await {
            Some(Ok(frame)) => passed.extend_from_slice(frame.data_ref().unwrap()),
            Some(Err(error)) => return (String::from_utf8(passed).unwrap(), Err(error)),
            None => return (String::from_utf8(passed).unwrap(), Ok(())),
        }
    }
}

#[tokio::test]
async fn a_text_is_checked_before_its_end_passes() {
    let good = [delta(0, "{\"age\""), delta(0, ":7}"), finish(0), DONE.to_owned()];
    let (passed, result) = through(&chat(), events(&good)).await;
    assert!(result.is_ok());
    assert_eq!(passed, good.concat());

    let bad = [delta(0, "{\"age\""), delta(0, ":\"x\"}"), finish(0), DONE.to_owned()];
    let (passed, result) = through(&chat(), events(&bad)).await;
    assert_eq!(passed, bad[..2].concat(), "neither its end nor [DONE]");
    assert_eq!(pointers(&result.unwrap_err()), ["/choices/0/delta/content/age"]);

    // An end in the event that brings the last of the text.
    let last = json!({"choices": [{"delta": {"content": "}"}, "finish_reason": "stop"}]});
    let (passed, result) = through(&chat(), events(&[delta(0, "{"), format!("data: {last}\n\n")])).await;
    assert_eq!((passed, result.is_err()), (delta(0, "{"), true));

    // No such event: [DONE] then, or the end of the stream.
    let (passed, result) = through(&chat(), events(&[delta(0, "{"), DONE.to_owned()])).await;
    assert_eq!((passed, result.is_err()), (delta(0, "{"), true));
    let (passed, result) = through(&chat(), events(&[delta(0, "{")])).await;
    assert_eq!((passed, result.is_err()), (delta(0, "{"), true));
    // A server asks a body for nothing more once that says that it is over.
    let mut over = full(delta(0, "{"));
    over.headers_mut().insert("content-type", "text/event-stream".parse().unwrap());
    assert!(through(&chat(), over).await.1.is_err());
    // No text at all.
    for nothing in [vec![], vec![DONE.to_owned()], vec![": ping\n\n".to_owned(), finish(0)]] {
        assert!(through(&chat(), events(&nothing)).await.1.is_err(), "{nothing:?}");
    }
    // Text behind the end is text.
    let late = [delta(0, "{\"age\":7}"), finish(0), delta(0, "x"), DONE.to_owned()];
    let (passed, result) = through(&chat(), events(&late)).await;
    assert_eq!((passed, result.is_err()), (late[..2].concat(), true));
}

#[tokio::test]
async fn choices_are_apart_and_events_come_as_they_may() {
    let mixed =
        [delta(1, "{\"age\""), delta(0, "{\"age\":"), delta(1, ":1}"), finish(1), delta(0, "2}"), finish(0)];
    assert!(through(&chat(), events(&mixed)).await.1.is_ok());
    let mixed =
        [delta(1, "{\"age\""), delta(0, "{\"age\":"), delta(1, ":1}"), finish(1), delta(0, "}"), finish(0)];
    let (passed, result) = through(&chat(), events(&mixed)).await;
    assert_eq!(passed, mixed[..5].concat());
    assert_eq!(pointers(&result.unwrap_err()), ["/choices/0/delta/content"]);

    let tools =
        json!({"choices": [{"delta": {"tool_calls": [{"index": 0}]}, "finish_reason": "tool_calls"}]});
    assert!(
        through(&chat(), events(&[delta(0, "let me see"), format!("data: {tools}\n\n")])).await.1.is_ok()
    );

    // Byte by byte, with other line ends, comments, ids and data over two lines.
    let data =
        json!({"choices": [{"delta": {"content": "{\"age\":\"x\"}"}, "finish_reason": "stop"}]}).to_string();
    let (first, second) = data.split_once(',').unwrap();
    let event = format!(": hm\r\nid: 1\r\nevent: x\r\ndata: {first},\r\ndata:{second}\r\n\r\n");
    let bytes = event.bytes().map(|byte| Ok(Bytes::copy_from_slice(&[byte]))).collect();
    let (passed, result) = through(&chat(), stream_of(bytes)).await;
    assert_eq!(passed, "");
    assert_eq!(pointers(&result.unwrap_err()), ["/choices/0/delta/content/age"]);
}

/// An error of the upstream is the upstream's: nobody knows what the text would have been.
#[tokio::test]
async fn a_stream_that_fails_fails_as_it_did() {
    let frames = vec![Ok(delta(0, "{").into()), Err("reset".into())];
    let (passed, result) = through(&chat(), stream_of(frames)).await;
    assert_eq!((passed, result.unwrap_err().to_string()), (delta(0, "{"), "reset".to_owned()));
}

/// The form is one rule more: those for text are asked as well.
#[tokio::test]
async fn other_rules_are_asked_as_well() {
    let deny = || Rules::new().error("deny", Pattern::deny("SECRET").unwrap());
    let answer = choices(&[r#"{"age":"SECRET"}"#]);
    let told_of = async |validator: Validator<Request<Bytes>, Bodies>, response| {
        let response = match call(&validator, Level::Moderate, &ages(), response).await {
            Ok(response) => response,
            Err(error) => return told(&error),
        };
        told(&response.into_body().collect().await.unwrap_err())
    };
    let form = ("form".to_owned(), "/choices/0/message/content/age".to_owned());
    let deny_at = ("deny".to_owned(), String::new());
    assert_eq!(
        told_of(chat().window(Window::default(), deny()), full(answer.clone())).await,
        [deny_at.clone(), form]
    );
    let stream = events(&[delta(0, r#"{"age":"SECRET"}"#), finish(0)]);
    assert_eq!(told_of(chat().events(Window::new(4), deny()), stream).await, [deny_at]);
    // What rules for whole bodies cannot look at is refused, whatever was asked for.
    let body = ("body".to_owned(), String::new());
    let stream = events(&[delta(0, r#"{"age":7}"#), finish(0)]);
    assert_eq!(told_of(chat().window(Window::default(), deny()), stream).await, std::slice::from_ref(&body));
    assert_eq!(told_of(chat().events(Window::default(), deny()), full(answer)).await, [body]);
}
