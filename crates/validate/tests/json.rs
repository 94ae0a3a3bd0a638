//! Rules for what a body says as JSON, schemas, and event streams whose text is put together.

use std::{convert::Infallible, time::Duration};

use bartizan_core::BoxError;
use bartizan_validate::{
    Bodies, Json, Level, Pattern, Pii, Report, Rules, Schema, Terms, Validator, Window, at, strings,
};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};
use tower::{Layer, ServiceExt, service_fn};

fn told(report: &Report) -> Vec<(String, String)> {
    let one =
        |violation: &bartizan_validate::Violation| (violation.rule().into(), violation.pointer().into());
    report.violations().iter().map(one).collect()
}

fn pair(rule: &str, pointer: &str) -> (String, String) {
    (rule.into(), pointer.into())
}

fn check(rules: Rules<Value>, body: &str) -> Report {
    Rules::new().json(Json::new(), rules).check(&Request::new(body), Level::Lenient)
}

#[test]
fn what_is_no_json_is_malformed_before_a_rule_is_asked() {
    let rules = || {
        Rules::new().json(
            Json::new().max_bytes(20).max_depth(2),
            Rules::new().safety("never", |_: &Value, found: &mut bartizan_validate::Found<'_>| {
                found.violation("", "asked");
            }),
        )
    };
    for body in ["", "{", "NaN", "[Infinity]", "[[[]]]", "1e999", "[1,2,3,4,5,6,7,8,9,0]"] {
        let report = rules().check(&Request::new(body), Level::Lenient);
        assert!(report.refuses() && report.is_malformed(), "{body}");
        assert_eq!(told(&report), [pair("json", "")], "{body}");
    }
    assert_eq!(told(&rules().check(&Request::new("[[1.0]]"), Level::Lenient)), [pair("never", "")]);
}

#[test]
fn pointers_are_json_pointers() {
    let body = r#"{"a/b":["x","ann@example.org"],"m~n":{"to":"ann@example.org"},"ann@example.org":1}"#;
    let report = check(Rules::new().warn("pii", strings(Pii::new().emails())), body);
    assert_eq!(
        told(&report),
        [pair("pii", "/a~1b/1"), pair("pii", "/ann@example.org"), pair("pii", "/m~0n/to")]
    );
    let of = |pointer: &str| {
        let deny = Pattern::deny("example").unwrap();
        told(&check(Rules::new().warn("at", at(pointer, deny)), body))
    };
    assert_eq!(of("/a~1b/1"), [pair("at", "/a~1b/1")]);
    assert_eq!(of("/*/*"), [pair("at", "/a~1b/1"), pair("at", "/m~0n/to")]);
    assert!(of("/a~1b/7").is_empty() && of("/nothing").is_empty() && of("").is_empty());
}

proptest! {
    /// All strings at once, and one by one only if there may be something, finds what one by one finds.
    #[test]
    fn strings_are_looked_at_one_by_one(
        texts in prop::collection::vec(prop::sample::select(vec![
            "", "a", "sec", "ret", "secret", "a secret", "secretly", "the SECRET", "\n", "se\ncret", "4111 1111", "1111 1111",
            "4111111111111111", "ann@", "example.org", "ann@example.org", "+1 415", "555 2671", "(415) 555-2671", "b",
            "foo bar", "foo", "bar", "AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7", "EXAMPLE", "é", "x\r", "1",
        ]), 0..7),
        pattern in prop::sample::select(vec![
            "secret", r"\bsecret\b", r"\Bret", r"ret\B", "^secret$", "(?m)^secret", r"\Asec", r"ret\z", "(?i)secret", "foo.*bar",
            "(?s)foo.*bar", r"foo\s+bar", "[^a]+b", "", "é", r"\b{end}", r"(?R)x\r$", r"\w+@", r"^\d+$", r"(?-u:\b)b",
        ]),
        nest in 0_u8..4,
    ) {
        let value = match nest {
            0 => json!(texts),
            1 => Value::Object(texts.iter().map(|text| ((*text).to_owned(), json!(text))).collect()),
            2 => json!([{"a": texts}, texts, {"b": {"c": texts}}]),
            _ => json!({"a": {"a": texts, "ann@example.org": texts.len()}}),
        };
        let body = value.to_string();
        let agree = |(at_once, one_by_one): (Report, Report)| {
            prop_assert_eq!(told(&at_once), told(&one_by_one), "{} in {}", pattern, body);
            Ok(())
        };
        fn both<R: bartizan_validate::Rule<str> + Clone + Send + Sync + 'static>(rule: R, body: &str) -> (Report, Report) {
            let simple = rule.clone();
            // A closure never clears many texts at once.
            let simple = move |text: &str, found: &mut bartizan_validate::Found<'_>| simple.check(text, found);
            let of = |rules| check(rules, body);
            (of(Rules::new().warn("r", strings(rule))), of(Rules::new().warn("r", strings(simple))))
        }
        agree(both(Pattern::deny(pattern).unwrap(), &body))?;
        agree(both(Pattern::require(pattern).unwrap(), &body))?;
        agree(both(Pii::all(), &body))?;
        agree(both(Terms::new(["secret", "foo bar", "b"]).unwrap(), &body))?;
        agree(both(Terms::new(["ret", "\n"]).unwrap().inside_words(), &body))?;
    }
}

/// A member that stands twice would be one thing here, and another for whoever reads on.
#[test]
fn names_that_stand_twice_are_malformed() {
    let rules = || Rules::new().safety("deny", at("/model", Pattern::deny("secret").unwrap()));
    let report = check(rules(), r#"{"model":"secret","x":[{"y":1,"y":2}],"model":"fine"}"#);
    assert!(report.refuses() && report.is_malformed());
    assert_eq!(told(&report), [pair("json", "/x/0/y")]);
}

/// An escape hides nothing from a rule that looks at what JSON says.
#[test]
fn escapes_hide_nothing() {
    let rules = Rules::new().safety("deny", strings(Terms::new(["secret"]).unwrap()));
    assert!(check(rules, r#"["se\u0063ret"]"#).refuses());
}

#[test]
fn schemas_tell_all_that_is_wrong_and_quote_nothing() {
    let schema = Schema::new(&json!({
        "type": "object",
        "required": ["model"],
        "additionalProperties": false,
        "properties": {"model": {"enum": ["m"]}, "n": {"type": "integer"}, "key": {"pattern": "^sk-"}},
    }))
    .unwrap();
    let report = check(
        Rules::new().safety("schema", schema.clone()),
        r#"{"model":"mine","n":1.5,"key":"hunter2","extra":1}"#,
    );
    let mut pointers = told(&report);
    pointers.sort();
    assert_eq!(pointers, ["", "/key", "/model", "/n"].map(|at| pair("schema", at)));
    for secret in ["hunter2", "mine", "extra"] {
        assert!(!report.to_string().contains(secret), "{report}");
    }
    assert!(
        check(Rules::new().safety("schema", schema), r#"{"model":"m","n":1.0}"#).is_clean(),
        "1.0 is an integer"
    );
}

/// Pitfall 48: nothing is fetched, no pattern takes exponential time, and what is wrong is named.
#[test]
fn schemas_that_are_wrong_cannot_be_built() {
    let wrong = [
        (json!({"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}}), "/properties/a/$ref"),
        (json!({"allOf": [{"$ref": "file:///etc/passwd"}]}), "/allOf/0/$ref"),
        (json!({"$ref": "other.json"}), "/$ref"),
        (json!({"type": "text"}), "at /type:"),
        (json!({"properties": {"a": {"type": "text"}}}), "at /properties/a/type:"),
        (json!({"properties": {"a": {"pattern": "("}}}), "at /properties/a/pattern:"),
        (json!({"pattern": r"^(?=a)(a)\1$"}), "pattern"),
        (json!({"$ref": "#/definitions/none"}), "none"),
    ];
    for (schema, named) in wrong {
        let error = Schema::new(&schema).unwrap_err();
        assert!(error.to_string().contains(named), "{schema}: {error}");
    }
    let remote = Schema::new(&json!({"$ref": "http://127.0.0.1:9/a.json"})).unwrap_err();
    assert!(remote.to_string().contains("nothing is fetched"), "{remote}");
    let local = json!({"$ref": "#/$defs/n", "$defs": {"n": {"type": "integer"}}});
    assert!(check(Rules::new().safety("schema", Schema::new(&local).unwrap()), "1").is_clean());
    let evil = Schema::new(&json!({"pattern": "^(a+)+$"})).unwrap();
    assert!(check(Rules::new().safety("schema", evil), &format!("\"{}b\"", "a".repeat(100_000))).refuses());
}

fn guarded(window: Window) -> Validator<Request<()>, Bodies> {
    Validator::http(Rules::new()).events(window, Rules::new().error("deny", Pattern::deny("SECRET").unwrap()))
}

/// What of a stream passes, and whether all of it did.
async fn through(
    validator: &Validator<Request<()>, Bodies>,
    chunks: Vec<Bytes>,
) -> (String, Result<(), BoxError>) {
    let inner = service_fn(move |_: Request<()>| {
        let frames = chunks.clone().into_iter().map(|chunk| Ok::<_, Infallible>(Frame::data(chunk)));
        let response = Response::builder().header("content-type", "text/event-stream");
        std::future::ready(Ok::<_, Infallible>(response.body(StreamBody::new(stream::iter(frames))).unwrap()))
    });
    let response = validator.layer(Level::Moderate).layer(inner).oneshot(Request::new(())).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let mut passed = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => passed.extend_from_slice(frame.data_ref().unwrap()),
            Err(error) => {
                assert!(body.frame().await.is_none());
                return (String::from_utf8(passed).unwrap(), Err(error));
            }
        }
    }
    (String::from_utf8(passed).unwrap(), Ok(()))
}

fn delta(choice: u64, text: &str) -> String {
    let event = json!({"id": "c-1", "choices": [{"index": choice, "delta": {"content": text}}]});
    format!("data: {event}\n\n")
}

/// Pitfalls 47 and 49: text that is split over events.
#[tokio::test]
async fn text_is_put_together_across_events() {
    let events = [delta(0, "my SEC"), delta(1, "and"), delta(0, "RET is"), "data: [DONE]\n\n".to_owned()];
    let chunks = || vec![Bytes::from(events.concat())];
    let (passed, result) = through(&guarded(Window::default()), chunks()).await;
    assert!(passed.is_empty() && result.is_err());
    // Windows of 4 bytes: the events of the first one were clean.
    let (passed, result) = through(&guarded(Window::new(4)), chunks()).await;
    assert_eq!(passed, events[0]);
    assert!(Report::find(&*result.unwrap_err()).is_some());
    // Two choices are two texts.
    let apart = [delta(0, "SEC"), delta(1, "RET")].concat();
    let (passed, result) = through(&guarded(Window::default()), vec![apart.clone().into()]).await;
    assert!(result.is_ok());
    assert_eq!(passed, apart);
}

#[tokio::test]
async fn other_shapes_of_events_are_looked_at() {
    let refused = [
        "data: SEC\n\ndata: RET\n\n".to_owned(),
        r#"data: {"choices":[{"index":0,"text":"SEC"}]}"#.to_owned()
            + "\n\n"
            + r#"data: {"choices":[{"text":"RET"}]}"#
            + "\n\n",
        [r#"{"type":"content_block_delta","delta":{"text":"SEC"}}"#, r#"{"delta":{"text":"RET"}}"#]
            .map(|data| format!("event: x\ndata: {data}\n\n"))
            .concat(),
        ["SEC", "RET"]
            .map(|part| {
                let call =
                    json!({"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"arguments":part}}]}}]});
                format!("data: {call}\n\n")
            })
            .concat(),
        // Not in a `delta`, and not in the first choice.
        r#"data: {"choices":[{"index":1,"message":{"content":[{"type":"text","text":"SECRET"}]}}]}"#
            .to_owned()
            + "\n\n",
        r#"data: {"choices":[{"delta":{"refusal":"SEC"}}]}"#.to_owned()
            + "\r\n\r\n: hm\r\nid: 7\r\n"
            + r#"data: {"choices":[{"delta":"#
            + "\r\ndata: "
            + r#"{"refusal":"RET"}}]}"#
            + "\r\n\r\n",
        "event: error\ndata: {\"error\":{\"message\":\"SECRET\"}}\n\n".to_owned(),
        "data: [{\"price\":\"SEC\"}]\n\ndata: [{\"price\":\"RET\"}]\n\n".to_owned(),
        // Cut off within an event, which some read all the same.
        delta(0, "SEC") + delta(0, "RET").trim_end(),
        // Escaped, and broken.
        "data: {\"delta\":\"SE\\u0043RET\"}\n\n".to_owned(),
        "data: {\"delta\":\"fine\"\n\n".to_owned(),
        // Ambiguous.
        "data: {\"delta\":\"SECRET\",\"delta\":\"fine\"}\n\n".to_owned(),
    ];
    for stream in refused {
        let (passed, result) = through(&guarded(Window::default()), vec![stream.clone().into()]).await;
        assert!(result.is_err() && passed.is_empty(), "{stream}");
    }
    let (_, result) = through(&guarded(Window::default()), vec![Bytes::from(vec![b'x'; 2 << 20])]).await;
    assert!(result.is_err(), "an event that never ends");
    let many: String = (0..300).map(|choice| delta(choice, "a")).collect();
    assert!(
        through(&guarded(Window::new(1 << 20)), vec![many.into()]).await.1.is_err(),
        "more texts than are looked at"
    );
}

#[tokio::test]
async fn other_bodies_are_refused_where_only_events_are_checked() {
    let inner = service_fn(|_: Request<()>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(http_body_util::Full::<Bytes>::from("fine"))))
    });
    let service = guarded(Window::default()).layer(Level::Lenient).layer(inner);
    assert!(service.oneshot(Request::new(())).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn events_wait_for_the_window_and_no_longer() {
    let (send, receive) = mpsc::unbounded_channel::<String>();
    let frames = stream::unfold(receive, |mut receive| async move {
        Some((Ok::<_, BoxError>(Frame::data(Bytes::from(receive.recv().await?))), receive))
    });
    let inner = service_fn(|request: Request<_>| {
        let response = Response::builder().header("content-type", "text/event-stream");
        std::future::ready(Ok::<_, Infallible>(response.body(request.into_body()).unwrap()))
    });
    let window = Window::default().within(Duration::from_millis(50));
    let validator = Validator::http(Rules::new())
        .events(window, Rules::new().error("deny", Pattern::deny("SECRET").unwrap()));
    let request = Request::new(Box::pin(StreamBody::new(frames)));
    let response = validator.layer(Level::Moderate).layer(inner).oneshot(request).await.unwrap();
    let mut body = Box::pin(response.into_body());
    let begin = Instant::now();
    let mut next = async || {
        let frame = body.frame().await.unwrap().unwrap();
        (String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap(), begin.elapsed().as_millis())
    };
    send.send(": ping\n\n".to_owned()).unwrap();
    assert_eq!(next().await, (": ping\n\n".to_owned(), 0), "what has no text waits for nothing");
    send.send(delta(0, "a")).unwrap();
    assert_eq!(next().await, (delta(0, "a"), 50));
    send.send(delta(0, &"b".repeat(1024))).unwrap();
    assert_eq!(next().await.1, 50, "a full window waits for nothing");
}

proptest! {
    /// However a stream arrives, what passes is whole events from its beginning, all of them if the word is not there,
    /// and none with the word's end.
    #[test]
    fn what_passes_is_the_streams_own_bytes(
        parts in prop::collection::vec(prop::sample::select(vec!["SE", "C", "RET", "x", "é", ""]), 1..12),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        window in 1_usize..12,
    ) {
        let events: Vec<_> = parts.iter().map(|part| delta(0, part)).collect();
        let text = events.concat();
        let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len())).collect();
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let chunks = cuts.windows(2).map(|pair| Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]])).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (passed, result) = runtime.block_on(through(&guarded(Window::new(window)), chunks));
        let at = parts.concat().find("SECRET");
        prop_assert_eq!(result.is_ok(), at.is_none());
        prop_assert!(text.starts_with(&passed));
        match at {
            None => prop_assert_eq!(passed, text),
            Some(at) => {
                let whole = (0..=events.len()).find(|n| events[..*n].concat() == passed);
                prop_assert!(whole.is_some(), "{}", passed);
                prop_assert!(parts[..whole.unwrap()].concat().len() < at + "SECRET".len());
            }
        }
    }
}
