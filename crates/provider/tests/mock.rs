//! The scripted upstream, as a service and as a server.
#![cfg(feature = "mock")]

use std::{convert::Infallible, time::Duration};

use bartizan_provider::{
    Class, Error,
    mock::{Mock, MockBody, Script},
};
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tower::{Service, ServiceExt};

const MS: Duration = Duration::from_millis(1);

fn request(method: Method, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(path).body(Full::new(body.into())).unwrap()
}

fn chat(stream: bool) -> Request<Full<Bytes>> {
    let body = json!({
        "model": "m",
        "stream": stream,
        "messages": [
            {"role": "user", "content": "no"},
            {"role": "user", "content": [{"type": "text", "text": "a \"b\" "}, {"type": "text", "text": "é"}]},
            {"role": "assistant", "content": "yes"},
        ],
    });
    request(Method::POST, "/v1/chat/completions", body.to_string())
}

async fn send(mock: &Mock, request: Request<Full<Bytes>>) -> Response<MockBody> {
    mock.service().oneshot(request).await.unwrap()
}

async fn text(response: Response<MockBody>) -> String {
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

async fn ask(mock: &Mock, method: Method, path: &str, body: &str) -> (u16, Value) {
    let response = send(mock, request(method, path, body.to_owned())).await;
    (response.status().as_u16(), serde_json::from_str(&text(response).await).unwrap())
}

async fn next(body: &mut MockBody) -> Option<Bytes> {
    body.frame().await.map(|frame| frame.unwrap().into_data().unwrap())
}

/// The frames up to the end, and the error if there is one instead.
async fn frames(response: Response<MockBody>) -> (Vec<Bytes>, Option<std::io::Error>) {
    let mut body = response.into_body();
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frames.push(frame.into_data().unwrap()),
            Err(error) => return (frames, Some(error)),
        }
    }
    (frames, None)
}

#[tokio::test]
async fn a_plain_completion_is_openais() {
    let response = send(&Mock::new(), chat(false)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    let exact = response.body().size_hint().exact();
    let body = text(response).await;
    assert_eq!(exact, Some(body.len() as u64), "so that a server sends content-length");
    let expected = json!({
        "id": "chatcmpl-mock-1", "object": "chat.completion", "created": 1_700_000_000, "model": "m",
        "choices": [{
            "index": 0,
            "message": {"role": "assistant", "content": "You said: a \"b\" é", "refusal": null, "annotations": []},
            "logprobs": null,
            "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 18, "completion_tokens": 5, "total_tokens": 23},
        "service_tier": "default", "system_fingerprint": "fp_mock",
    });
    assert_eq!(serde_json::from_str::<Value>(&body).unwrap(), expected);
}

#[tokio::test]
async fn a_streamed_completion_is_openais_byte_for_byte() {
    let mock = Mock::new();
    mock.script(Script::new().text("Hi you"));
    let response = send(&mock, chat(true)).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let chunk = |choice: &str| {
        format!(
            "data: {{\"id\":\"chatcmpl-mock-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\
             \"model\":\"m\",\"service_tier\":\"default\",\"system_fingerprint\":\"fp_mock\",\
             \"choices\":[{{\"index\":0,\"delta\":{choice}}}]}}\n\n"
        )
    };
    let expected = [
        chunk(r#"{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null"#),
        chunk(r#"{"content":"Hi "},"logprobs":null,"finish_reason":null"#),
        chunk(r#"{"content":"you"},"logprobs":null,"finish_reason":null"#),
        chunk(r#"{},"logprobs":null,"finish_reason":"stop""#),
        "data: [DONE]\n\n".to_owned(),
    ];
    let (frames, error) = frames(response).await;
    assert!(error.is_none());
    assert_eq!(frames, expected, "one frame an event");
}

#[tokio::test]
async fn usage_comes_in_the_stream_if_asked_for() {
    let mock = Mock::new();
    mock.script(Script::new().words(2).usage(7, 9));
    let body = r#"{"model":"m","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"x"}]}"#;
    let (frames, _) = frames(send(&mock, request(Method::POST, "/chat/completions", body)).await).await;
    let events: Vec<Value> = frames[..frames.len() - 1]
        .iter()
        .map(|frame| serde_json::from_slice(frame.strip_prefix(b"data: ").unwrap()).unwrap())
        .collect();
    assert_eq!(events.len(), 5, "role, two words, stop, usage");
    assert!(events[..4].iter().all(|event| event["usage"].is_null() && event.get("usage").is_some()));
    assert_eq!(events[4]["usage"], json!({"prompt_tokens": 7, "completion_tokens": 9, "total_tokens": 16}));
    assert_eq!(events[4]["choices"], json!([]));
}

#[tokio::test]
async fn the_most_tokens_are_honoured() {
    let body = r#"{"model":"m","max_tokens":2,"messages":[{"role":"user","content":"hello"}]}"#;
    let (_, answer) = ask(&Mock::new(), Method::POST, "/v1/chat/completions", body).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "You said: ");
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 2);
}

#[tokio::test]
async fn embeddings_depend_on_their_text_and_come_in_both_encodings() {
    let mock = Mock::new();
    let embed = async |body: Value| ask(&mock, Method::POST, "/v1/embeddings", &body.to_string()).await;
    let floats = |value: &Value| -> Vec<f32> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
    };

    let (status, plain) = embed(json!({"model": "e", "input": ["one", "two", "one"]})).await;
    assert_eq!(status, 200);
    assert_eq!((&plain["object"], &plain["model"]), (&json!("list"), &json!("e")));
    assert_eq!(plain["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    let vectors: Vec<_> = (0..3).map(|i| floats(&plain["data"][i]["embedding"])).collect();
    assert_eq!((vectors[0].len(), &plain["data"][2]["index"]), (16, &json!(2)));
    assert_eq!(vectors[0], vectors[2]);
    assert_ne!(vectors[0], vectors[1]);
    let length: f32 = vectors[1].iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5);

    let (_, encoded) = embed(json!({"model": "e", "input": "one", "encoding_format": "base64"})).await;
    let bytes = from_base64(encoded["data"][0]["embedding"].as_str().unwrap());
    let decoded: Vec<f32> = bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!(decoded, vectors[0]);

    for (dimensions, input) in [(1, json!([1, 2, 3])), (3, json!([[1, 2], [3]])), (4_096, json!("x"))] {
        let (status, sized) = embed(json!({"model": "e", "input": input, "dimensions": dimensions})).await;
        assert_eq!((status, floats(&sized["data"][0]["embedding"]).len()), (200, dimensions));
    }
    for (wrong, param) in [
        (json!({"model": "e", "input": ""}), "input"),
        (json!({"model": "e", "input": []}), "input"),
        (json!({"model": "e", "input": "x", "dimensions": 0}), "dimensions"),
        (json!({"model": "e", "input": "x", "dimensions": 4_097}), "dimensions"),
        (json!({"model": "e", "input": "x", "encoding_format": "hex"}), "encoding_format"),
    ] {
        let (status, error) = embed(wrong).await;
        assert_eq!((status, error["error"]["param"].as_str()), (400, Some(param)));
    }
}

fn from_base64(text: &str) -> Vec<u8> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        b'/' => 63,
        _ => panic!("{c} is no digit"),
    };
    let digits: Vec<u32> = text.trim_end_matches('=').bytes().map(|c| digit(c).into()).collect();
    assert_eq!(text.len() % 4, 0, "padded");
    digits
        .chunks(4)
        .flat_map(|chunk| {
            let group = chunk.iter().fold(0, |group, digit| group << 6 | digit) << (6 * (4 - chunk.len()));
            group.to_be_bytes()[1..chunk.len()].to_vec()
        })
        .collect()
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let mock = Mock::with_models(["a", "b/c"]);
    let get = async |path: &str| ask(&mock, Method::GET, path, "").await;
    let (_, list) = get("/v1/models").await;
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| &model["id"]).collect();
    assert_eq!((&list["object"], ids), (&json!("list"), vec![&json!("a"), &json!("b/c")]));
    assert_eq!(get("/v1/models/b/c").await.1["id"], "b/c");
    let (status, error) = get("/v1/models/d").await;
    assert_eq!((status, &error["error"]["code"]), (404, &json!("model_not_found")));
    let unknown = r#"{"model":"d","stream":true,"messages":[{"role":"user","content":"x"}]}"#;
    assert_eq!(ask(&mock, Method::POST, "/v1/chat/completions", unknown).await.0, 404);
    assert_eq!(ask(&Mock::new(), Method::GET, "/v1/models/any", "").await.1["id"], "any");
}

#[tokio::test]
async fn mistakes_get_errors_that_our_own_reader_understands() {
    let mock = Mock::new();
    for (method, path, body, status, class) in [
        (Method::POST, "/v1/chat/completions", "{", 400, Class::BadRequest),
        (Method::POST, "/v1/chat/completions", r#"{"model":"m"}"#, 400, Class::BadRequest),
        (Method::POST, "/v1/chat/completions", r#"{"model":"m","messages":[]}"#, 400, Class::BadRequest),
        (Method::GET, "/v1/embeddings", "", 405, Class::BadRequest),
        (Method::POST, "/v1/nothing", "{}", 404, Class::NotFound),
    ] {
        let response = send(&mock, request(method, path, body)).await;
        assert_eq!(response.status(), status, "{path} {body}");
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(Error::of_response(head.status, &head.headers, &body, &[]).class(), class);
    }
}

#[tokio::test]
async fn scripts_are_taken_in_order_then_by_model_then_the_default() {
    let mock = Mock::new();
    let say = |text: &str| Script::new().text(text);
    mock.script(say("first"));
    mock.script(say("second"));
    mock.script_for("m", say("of m"));
    mock.script_always(say("always"));
    let said = async |model: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": "x"}]});
        let (_, answer) = ask(&mock, Method::POST, "/v1/chat/completions", &body.to_string()).await;
        answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    };
    assert_eq!(said("x").await, "first");
    assert_eq!(said("m").await, "second");
    assert_eq!(said("m").await, "of m");
    assert_eq!(said("x").await, "always");
}

#[tokio::test]
async fn a_status_brings_its_error_and_a_body_is_sent_as_it_is() {
    let mock = Mock::new();
    mock.script(Script::new().status(429).header("retry-after", "3").header("content-type", "text/weird"));
    let response = send(&mock, chat(true)).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"3".parse().unwrap())
    );
    assert_eq!(response.headers().get_all("content-type").iter().collect::<Vec<_>>(), ["text/weird"]);
    let error: Value = serde_json::from_str(&text(response).await).unwrap();
    assert_eq!(error["error"]["type"], "rate_limit_error");

    mock.script(Script::new().status(500).body("oops"));
    assert_eq!(text(send(&mock, chat(false)).await).await, "oops");
    mock.script(Script::new().frames(["data: ", "{}\n", "\n"]));
    let response = send(&mock, chat(true)).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(frames(response).await.0, ["data: ", "{}\n", "\n"]);
}

#[tokio::test(start_paused = true)]
async fn times_are_kept_to_the_millisecond() {
    let mock = Mock::new();
    mock.script(Script::new().latency(200 * MS).first_frame_delay(50 * MS).pace(20 * MS).words(2));
    let start = Instant::now();
    let mut body = send(&mock, chat(true)).await.into_body();
    assert_eq!(start.elapsed(), 200 * MS);
    let mut seen = Vec::new();
    while next(&mut body).await.is_some() {
        seen.push(start.elapsed().as_millis());
    }
    assert_eq!(seen, [250, 270, 290, 310, 330]);
}

#[tokio::test(start_paused = true)]
async fn a_late_reader_gets_what_is_due() {
    let mock = Mock::new();
    mock.script(Script::new().pace(20 * MS).words(10));
    let mut body = send(&mock, chat(true)).await.into_body();
    tokio::time::sleep(65 * MS).await;
    let start = Instant::now();
    for _ in 0..4 {
        next(&mut body).await.unwrap();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    next(&mut body).await.unwrap();
    assert_eq!(start.elapsed(), 15 * MS);
}

#[tokio::test(start_paused = true)]
async fn a_body_ends_as_scripted() {
    let mock = Mock::new();
    let run = async |script: Script, stream| {
        mock.script(script);
        let response = send(&mock, chat(stream)).await;
        tokio::time::timeout(MS, frames(response)).await
    };
    let whole = run(Script::new(), true).await.unwrap().0;

    let (sent, error) = run(Script::new().fail_after(2), true).await.unwrap();
    assert_eq!(
        (&sent[..], error.map(|e| e.kind())),
        (&whole_of(&mock, 2).await[..], Some(std::io::ErrorKind::ConnectionReset))
    );
    assert_eq!(run(Script::new().fail_after(0), true).await.unwrap().0.len(), 0);
    let (sent, error) = run(Script::new().end_after(3), true).await.unwrap();
    assert_eq!((sent.len(), error.is_none()), (3, true));
    assert!(run(Script::new().hang_after(1), true).await.is_err());
    assert!(run(Script::new().hang_after(0), false).await.is_err());
    let (sent, error) = run(Script::new().garbage_after(1), true).await.unwrap();
    assert_eq!((sent.len(), error.is_none()), (whole.len() + 1, true));
    assert!(str::from_utf8(&sent[1]).is_err());

    let (sent, error) = run(Script::new().fail_after(1), false).await.unwrap();
    assert!(error.is_some() && serde_json::from_slice::<Value>(&sent[0]).is_err(), "half an answer");
    let (sent, error) = run(Script::new().end_after(1), false).await.unwrap();
    assert!(error.is_none() && sent.len() == 1 && serde_json::from_slice::<Value>(&sent[0]).is_err());

    let (sent, _) = run(Script::new().chop(1).end_after(2), true).await.unwrap();
    assert!(sent.iter().all(|frame| frame.len() == 1));
}

/// The first events of an unscripted stream in the call after the last.
async fn whole_of(mock: &Mock, n: usize) -> Vec<Bytes> {
    let number = mock.calls();
    let (mut all, _) = frames(send(&Mock::new(), chat(true)).await).await;
    all.truncate(n);
    let id = format!("chatcmpl-mock-{number}");
    all.iter().map(|event| str::from_utf8(event).unwrap().replace("chatcmpl-mock-1", &id).into()).collect()
}

#[tokio::test(start_paused = true)]
async fn heads_can_fail_or_hang() {
    let mock = Mock::new();
    mock.script(Script::new().fail().latency(5 * MS));
    let start = Instant::now();
    let error = mock.service().oneshot(chat(false)).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (std::io::ErrorKind::ConnectionReset, 5 * MS));
    mock.script(Script::new().hang());
    assert!(
        tokio::time::timeout(Duration::from_secs(3_600), mock.service().oneshot(chat(false))).await.is_err()
    );
    let stats = mock.stats();
    assert_eq!((stats.calls, stats.failed, stats.cancelled, stats.running), (2, 1, 1, 0));
}

#[tokio::test]
async fn calls_are_counted_to_their_true_end() {
    let mock = Mock::new();
    let counts = || {
        let stats = mock.stats();
        (stats.running, stats.completed, stats.failed, stats.cancelled)
    };
    let future = mock.service().call(chat(true));
    assert_eq!(counts(), (1, 0, 0, 0), "counted before it is polled");
    drop(future);
    assert_eq!(counts(), (0, 0, 0, 1));

    let mut body = send(&mock, chat(true)).await.into_body();
    next(&mut body).await;
    assert_eq!(counts(), (1, 0, 0, 1));
    drop(body);
    assert_eq!(counts(), (0, 0, 0, 2));

    let mut body = send(&mock, chat(false)).await.into_body();
    next(&mut body).await;
    assert!(body.is_end_stream());
    assert_eq!(counts(), (0, 1, 0, 2), "over with its last frame, before it is asked for more");
    drop(body);
    assert_eq!(counts(), (0, 1, 0, 2));

    mock.script(Script::new().fail_after(1));
    assert!(frames(send(&mock, chat(true)).await).await.1.is_some());
    assert_eq!(counts(), (0, 1, 1, 2));
    mock.script(Script::new().end_after(0));
    drop(send(&mock, chat(true)).await);
    assert_eq!(counts(), (0, 2, 1, 2), "an empty body is over from the start");
    assert_eq!(mock.calls(), 5);
}

#[tokio::test]
async fn until_wakes_whoever_waits() {
    let mock = Mock::new();
    let watcher = mock.clone();
    let seen = tokio::spawn(async move { watcher.until(|stats| stats.cancelled == 1).await });
    drop(send(&mock, chat(true)).await);
    assert_eq!(seen.await.unwrap().cancelled, 1);
}

#[tokio::test]
async fn requests_are_remembered_within_bounds_and_without_showing_keys() {
    let mock = Mock::new();
    let mut keyed = request(Method::POST, "/v1/embeddings?x=1", r#"{"model":"m","input":"one"}"#);
    keyed.headers_mut().insert("authorization", "Bearer sk-secret".parse().unwrap());
    keyed.headers_mut().insert("x-api-key", "sk-secret".parse().unwrap());
    send(&mock, keyed).await;
    let [seen] = &mock.requests()[..] else { panic!("one request") };
    assert_eq!((&seen.method, seen.path()), (&Method::POST, "/v1/embeddings"));
    assert_eq!(seen.body, r#"{"model":"m","input":"one"}"#);
    assert_eq!(seen.headers["authorization"], "Bearer sk-secret");
    assert!(!format!("{seen:?}").contains("secret"));

    mock.keep_requests(2);
    for path in ["/a", "/b", "/c"] {
        send(&mock, request(Method::GET, path, "")).await;
    }
    let paths: Vec<_> = mock.requests().iter().map(|request| request.path().to_owned()).collect();
    assert_eq!(paths, ["/b", "/c"]);
    mock.keep_requests(0);
    send(&mock, chat(false)).await;
    assert!(mock.requests().is_empty());

    mock.keep_requests(1_000);
    for _ in 0..10 {
        send(&mock, request(Method::POST, "/big", vec![0; 8 << 20])).await;
    }
    assert_eq!(mock.requests().len(), 8, "64 MiB");
}

#[tokio::test]
async fn a_request_that_breaks_off_fails_the_call() {
    let mock = Mock::new();
    let body = http_body_util::StreamBody::new(futures_util::stream::iter([
        Ok(http_body::Frame::data(Bytes::from_static(b"{"))),
        Err(std::io::Error::other("gone")),
    ]));
    assert!(mock.service().oneshot(Request::post("/v1/embeddings").body(body).unwrap()).await.is_err());
    assert_eq!((mock.stats().failed, mock.requests().len()), (1, 0));
}

/// A mock on a socket, for as long as the handle lives.
async fn served() -> (Mock, std::net::SocketAddr, tokio::task::JoinHandle<Infallible>) {
    let mock = Mock::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(mock.serve(listener));
    (mock, address, server)
}

async fn post(socket: &mut TcpStream, stream: bool) {
    let body = format!(r#"{{"model":"m","stream":{stream},"messages":[{{"role":"user","content":"x"}}]}}"#);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: mock\r\ncontent-type: application/json\r\n";
    let request = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    socket.write_all(request.as_bytes()).await.unwrap();
}

/// All that comes until `end` has come, or the connection is closed.
async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut all = Vec::new();
    while !all.ends_with(end.as_bytes()) || end.is_empty() {
        if socket.read_buf(&mut all).await.unwrap_or(0) == 0 {
            break;
        }
    }
    String::from_utf8(all).unwrap()
}

#[tokio::test]
async fn the_server_keeps_connections_alive() {
    let (mock, address, _server) = served().await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        post(&mut socket, true).await;
        let answer = read_until(&mut socket, "0\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("data: [DONE]\n\n"));
        post(&mut socket, false).await;
        let answer = read_until(&mut socket, "\"fp_mock\"}").await;
        assert!(answer.contains("\r\ncontent-length: "), "{answer}");
    }
    assert_eq!(mock.until(|stats| stats.running == 0).await.completed, 6);
}

#[tokio::test]
async fn a_cut_is_seen_on_the_wire() {
    let (mock, address, _server) = served().await;
    let run = async |script: Script, stream| {
        mock.script(script);
        let mut socket = TcpStream::connect(address).await.unwrap();
        post(&mut socket, stream).await;
        read_until(&mut socket, "").await
    };
    let cut = run(Script::new().fail_after(2), true).await;
    assert!(cut.contains("\"content\":\"\"") && !cut.ends_with("0\r\n\r\n"), "no last chunk: {cut}");
    let cut = run(Script::new().fail_after(1), false).await;
    assert!(cut.contains("content-length: ") && !cut.ends_with('}'), "{cut}");
    assert_eq!(run(Script::new().fail(), false).await, "");

    let short = run(Script::new().header("content-length", "9999").body("{}"), false).await;
    assert!(short.contains("content-length: 9999\r\n") && short.ends_with("\r\n\r\n{}"), "{short}");
    let long =
        run(Script::new().header("content-length", "1").header("connection", "close").body("{}"), false)
            .await;
    assert!(long.ends_with("\r\n\r\n{"), "{long}");
}

#[tokio::test]
async fn the_server_sees_the_client_go() {
    let (mock, address, _server) = served().await;
    for script in [Script::new().hang(), Script::new().hang_after(0), Script::new().hang_after(2)] {
        let before = mock.cancelled();
        mock.script(script);
        let mut socket = TcpStream::connect(address).await.unwrap();
        post(&mut socket, true).await;
        mock.until(|stats| stats.running == 1).await;
        drop(socket);
        mock.until(|stats| stats.cancelled == before + 1 && stats.running == 0).await;
    }
}

#[tokio::test]
async fn connections_end_with_the_server() {
    let (mock, address, server) = served().await;
    mock.script(Script::new().hang_after(1));
    let mut socket = TcpStream::connect(address).await.unwrap();
    post(&mut socket, true).await;
    mock.until(|stats| stats.running == 1).await;
    server.abort();
    mock.until(|stats| stats.cancelled == 1).await;
    read_until(&mut socket, "").await;
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}
