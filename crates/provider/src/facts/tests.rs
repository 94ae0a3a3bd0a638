use proptest::prelude::*;

use super::*;

fn read(body: &str) -> Result<Facts, Error> {
    Facts::read(Operation::Chat, &Bytes::copy_from_slice(body.as_bytes()))
}

#[test]
fn facts_are_found_wherever_they_stand() {
    let facts = read(
        " {\n \"messages\" : [ {\"model\":\"no\",\"stream\":1} ] , \"stream\":true,\"model\" :\t\"m\"\n} ",
    )
    .unwrap();
    assert_eq!((facts.model(), facts.stream()), ("m", true));

    let facts = read(r#"{"m\u006fdel":"a\"\u00e9\/b","stream":null}"#).unwrap();
    assert_eq!((facts.model(), facts.stream()), ("a\"é/b", false));
    assert_eq!(facts.model_span(), 14..28);
}

#[test]
fn tokens_are_estimated() {
    let tokens = |body: &str| read(body).unwrap().estimated_tokens();
    assert_eq!(tokens(r#"{"model":"m"}"#), 4, "13 bytes");
    assert_eq!(tokens(r#"{"model":"m","max_tokens":10}"#), 8 + 10);
    assert_eq!(tokens(r#"{"model":"m","max_tokens":10,"max_completion_tokens":7}"#), 14 + 7);
    assert_eq!(tokens(r#"{"model":"m","max_tokens":"10"}"#), 8, "the upstream will tell");
    assert_eq!(tokens(r#"{"model":"m","max_tokens":-1}"#), 8);
    assert_eq!(tokens(r#"{"model":"m","max_tokens":18446744073709551615}"#), u64::MAX);
}

#[test]
fn what_is_wrong_is_named() {
    for (body, param, message) in [
        ("", None, "the body is empty, where a JSON object was expected"),
        ("  ", None, "the body is not valid JSON: EOF while parsing a value at line 1 column 2"),
        (
            "{\"model\":\"m\",\n oops}",
            None,
            "the body is not valid JSON: key must be a string at line 2 column 2",
        ),
        (
            r#"{"model":"m""#,
            None,
            "the body is not valid JSON: EOF while parsing an object at line 1 column 12",
        ),
        (r#"{"model":"m"} x"#, None, "the body is not valid JSON: trailing characters at line 1 column 15"),
        ("[1]", None, "the body is wrong: it must be a JSON object"),
        (r#""hi""#, None, "the body is wrong: it must be a JSON object"),
        ("sk", None, "the body is not valid JSON: expected value at line 1 column 1"),
        ("{}", Some("model"), "`model` is missing"),
        (r#"{"model":""}"#, Some("model"), "the body is wrong: `model` is empty at line 1 column 12"),
        (r#"{"model":7}"#, Some("model"), "the body is wrong: `model` must be a string at line 1 column 11"),
        (
            r#"{"model":null}"#,
            Some("model"),
            "the body is wrong: `model` must be a string at line 1 column 14",
        ),
        (
            r#"{"model":"a","mod\u0065l":"b"}"#,
            Some("model"),
            "the body is wrong: `model` appears twice at line 1 column 25",
        ),
        (
            r#"{"stream":true,"stream":false}"#,
            Some("stream"),
            "the body is wrong: `stream` appears twice at line 1 column 23",
        ),
        (
            r#"{"stream":null,"stream":true}"#,
            Some("stream"),
            "the body is wrong: `stream` appears twice at line 1 column 23",
        ),
        (
            r#"{"stream":"yes"}"#,
            Some("stream"),
            "the body is wrong: `stream` must be a boolean at line 1 column 16",
        ),
    ] {
        let error = read(body).expect_err(body);
        assert_eq!((error.message(), error.param()), (message, param), "{body}");
        assert_eq!((error.class(), error.status().as_u16()), (Class::BadRequest, 400));
    }
    let error = Facts::read(Operation::Chat, &Bytes::from_static(b"{\"model\":\"\xff\"}")).unwrap_err();
    assert_eq!(error.message(), "the body is not UTF-8: wrong byte at offset 10");
}

/// What is said of a body goes to logs, and is short however long the body is.
#[test]
fn nothing_that_a_body_says_is_repeated() {
    let secret = "s3cret".repeat(1000);
    let quoted = format!("\"{secret}\"");
    let values =
        [&quoted, "73313", "-73313", "73313.5", "7e3313", &format!("[{quoted}]"), &format!("{{{quoted}:7}}")];
    let of_keys = |value: &&str| {
        ["stream", "model", "max_tokens"].map(|key| format!("{{\"model\":\"m\",\"{key}\":{value}}}"))
    };
    let keys = values.iter().flat_map(of_keys);
    let broken = [
        format!("{{\"{secret}"),
        format!("{{{secret}:1}}"),
        format!("{{{quoted}:{secret}}}"),
        format!("{{{quoted}:73313,,}}"),
        format!("{{}}{secret}"),
        format!("{{\"model\":\"{secret}\\ud800\"}}"),
        format!("{{\"model\":\"{secret}\\q\"}}"),
    ];
    let whole = values.iter().map(|value| (*value).to_owned());
    let mut refused = 0;
    for body in whole.chain(keys).chain(broken) {
        let Err(error) = read(&body) else { continue };
        refused += 1;
        let mut told = format!("{error} {error:?}");
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            told += &format!(" {error} {error:?}");
            source = error.source();
        }
        assert!(!told.contains("s3cret") && !told.contains("3313"), "{body:.50}: {told:.300}");
        assert!(error.message().len() < 200, "{body:.50}: {told:.300}");
    }
    // All but those whose `max_tokens` is something that the upstream may refuse.
    assert_eq!(refused, 7 + 3 * 7 - 6 + 7);
}

#[test]
fn nesting_is_bounded() {
    let nested = |open: &str, close: &str, depth| {
        read(&format!(r#"{{"model":"m","x":{}1{}}}"#, open.repeat(depth), close.repeat(depth)))
    };
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        assert!(nested(open, close, 126).is_ok());
        let error = nested(open, close, 127).unwrap_err();
        assert!(error.message().contains("recursion limit exceeded"), "{error}");
        assert!(nested(open, close, 1_000_000).is_err(), "and no stack overflows");
    }
    let model = format!(r#"{{"model":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    assert_eq!(read(&model).unwrap_err().param(), Some("model"));
}

#[test]
fn other_operations_need_no_body() {
    let body = Bytes::from_static(b"not json");
    let facts = Facts::read(Operation::Models, &body).unwrap();
    assert_eq!((facts.model(), facts.model_span(), facts.estimated_tokens()), ("", 0..0, 0));
    assert_eq!(facts.rename(&body, "m"), body);
}

#[test]
fn renaming_to_the_same_name_copies_nothing() {
    let body = Bytes::from_static(br#"{"model":"m"}"#);
    let facts = Facts::read(Operation::Chat, &body).unwrap();
    assert_eq!(facts.rename(&body, "m").as_ptr(), body.as_ptr());
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        any::<String>().prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Into::into),
            prop::collection::hash_map(any::<String>(), inner, 0..6)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn a_rename_changes_the_name_and_nothing_else(
        before in prop::collection::vec((any::<String>(), json()), 0..4),
        after in prop::collection::vec((any::<String>(), json()), 0..4),
        old in any::<String>().prop_filter("a name", |name| !name.is_empty()),
        new in any::<String>().prop_filter("a name", |name| !name.is_empty()),
        gap in "[ \t\r\n]{0,3}",
        stream in any::<bool>(),
    ) {
        let fields = |fields: &[(String, serde_json::Value)]| -> Vec<String> {
            let known = ["model", "stream"];
            fields
                .iter()
                .filter(|(key, _)| !known.contains(&&**key))
                .map(|(key, value)| format!("{gap}{}{gap}:{gap}{value}{gap}", serde_json::json!(key)))
                .collect()
        };
        let head = {
            let mut all = fields(&before);
            all.push(format!("{gap}\"model\"{gap}:{gap}"));
            format!("{gap}{{{}", all.join(","))
        };
        let tail = {
            let mut all = vec![gap.clone(), format!("\"stream\":{gap}{stream}")];
            all.extend(fields(&after));
            format!("{}}}{gap}", all.join(","))
        };
        let spelled = |name: &str| Bytes::from(format!("{head}{}{tail}", serde_json::json!(name)));

        let body = spelled(&old);
        let facts = Facts::read(Operation::Chat, &body).unwrap();
        prop_assert_eq!(facts.model(), &*old);
        prop_assert_eq!(facts.stream(), stream);
        let renamed = facts.rename(&body, &new);
        prop_assert_eq!(&renamed, &spelled(&new));
        let again = Facts::read(Operation::Chat, &renamed).unwrap();
        prop_assert_eq!(again.model(), &*new);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Facts::read(Operation::Chat, &Bytes::from(bytes));
    }

    #[test]
    fn arbitrary_near_json_never_panics(
        text in r#"[\[\]{}:,"\\ue0-9ad.+ -]{0,20}(\{"(model|stream)":)?[\[\]{}:,"\\ue0-9ad.+ -]{0,20}\}?"#,
    ) {
        let body = Bytes::from(text);
        if let Ok(facts) = Facts::read(Operation::Chat, &body) {
            let renamed = facts.rename(&body, "x");
            prop_assert_eq!(Facts::read(Operation::Chat, &renamed).unwrap().model().to_owned(), "x");
        }
    }
}
