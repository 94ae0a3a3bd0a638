//! What a provider makes of answers that stop, stall, break or are none: always an error that says so, never a silent
//! end. All on a paused clock, over a scripted transport.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::{BoxError, RetryAfter};
use bartizan_provider::{
    Class, Error, ErrorEventsLayer, Facts, Limits, Operation, Provider, ResponseBody, StillSending,
    UsageReport,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, service_fn};

#[derive(Clone, Copy, Debug)]
enum Step {
    Say(&'static str),
    Wait(u64),
    Cut,
    Hang,
}
use Step::{Cut, Hang, Say, Wait};

type Script = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

fn script(steps: &'static [Step]) -> Script {
    let frames = futures_util::stream::unfold(steps.iter(), |mut steps| async {
        loop {
            match steps.next()? {
                Say(text) => return Some((Ok(Frame::data(Bytes::from(*text))), steps)),
                Wait(ms) => sleep(Duration::from_millis(*ms)).await,
                Cut => return Some((Err(BoxError::from("connection reset")), steps)),
                Hang => std::future::pending().await,
            }
        }
    });
    Box::pin(StreamBody::new(frames))
}

/// Asks a provider whose upstream answers with this head and body.
async fn ask(
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static [Step],
) -> Result<Response<ResponseBody<Script>>, Error> {
    ask_for(question(), status, headers, body).await
}

async fn ask_for(
    request: Request<Bytes>,
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: &'static [Step],
) -> Result<Response<ResponseBody<Script>>, Error> {
    let transport = service_fn(move |_: Request<Full<Bytes>>| {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        std::future::ready(Ok::<_, BoxError>(response.body(script(body)).unwrap()))
    });
    let provider = Provider::new(transport, "http://upstream.example/v1").unwrap();
    let mut provider = provider.api_key("sk-geheim1234".into());
    provider.ready().await?.call(request).await
}

fn question() -> Request<Bytes> {
    let body = Bytes::from_static(br#"{"model":"m","stream":true}"#);
    Request::post("/v1/chat/completions").body(body).unwrap()
}

/// A request that somebody has read.
fn read(path: &str, body: &'static str) -> Request<Bytes> {
    let mut request = Request::post(path).body(Bytes::from(body)).unwrap();
    let facts = Facts::read(Operation::of_path(path), request.body()).unwrap();
    request.extensions_mut().insert(facts);
    request
}

const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream; charset=utf-8")];
const JSON: &[(&str, &str)] = &[("content-type", "application/json")];

/// The frames of a stream, and how it ended.
async fn stream(body: &'static [Step]) -> (Vec<String>, Option<Error>) {
    let mut body = ask(200, EVENTS, body).await.unwrap().into_body();
    let mut frames = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => frames.push(String::from_utf8(frame.into_data().unwrap().into()).unwrap()),
            Err(error) => {
                assert!(body.frame().await.is_none(), "nothing after an error");
                return (frames, Some(error));
            }
        }
    }
    (frames, None)
}

fn told(ended: Option<Error>) -> (Class, String) {
    let error = ended.expect("the stream must not end silently");
    (error.class(), error.message().to_owned())
}

#[tokio::test(start_paused = true)]
async fn what_arrived_together_leaves_together_and_what_came_alone_leaves_at_once() {
    const BODY: &[Step] = &[
        Say("data: 1\n\n"),
        Say("data: 2\n\nda"),
        Wait(5),
        Say("ta: 3\n\n"),
        Wait(5),
        Say("data: [DONE]\n\n"),
    ];
    let (frames, ended) = stream(BODY).await;
    assert_eq!(frames, ["data: 1\n\ndata: 2\n\n", "data: 3\n\n", "data: [DONE]\n\n"]);
    assert!(ended.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stream_without_its_end_is_an_error_whatever_came_before() {
    for body in [&[][..], &[Say("data: 1\n\n")], &[Say("data: 1\n\n"), Wait(1), Say("data: [DON")]] {
        let (class, message) = told(stream(body).await.1);
        assert_eq!(class, Class::Upstream);
        assert!(message.contains("without `data: [DONE]`"), "{message}");
    }
}

#[tokio::test(start_paused = true)]
async fn half_an_event_is_never_passed_on() {
    let (frames, ended) = stream(&[Say("data: 1\n\n"), Wait(1), Say("data: {\"half"), Cut]).await;
    assert_eq!(frames, ["data: 1\n\n"]);
    assert_eq!(told(ended), (Class::Upstream, "the upstream's stream was cut off".into()));
}

#[tokio::test(start_paused = true)]
async fn events_that_came_with_the_error_come_before_it() {
    let (frames, ended) = stream(&[Say("data: 1\n\n"), Cut]).await;
    assert_eq!(frames, ["data: 1\n\n"]);
    assert_eq!(told(ended).0, Class::Upstream);
}

/// More than an event may have.
const LONG: &str = match str::from_utf8(&[b'x'; 1024 * 1024 + 1]) {
    Ok(long) => long,
    Err(_) => unreachable!(),
};

#[tokio::test(start_paused = true)]
async fn an_event_that_does_not_end_is_refused_after_those_that_did() {
    let (frames, ended) = stream(&[Say("data: 1\n\n"), Say(LONG)]).await;
    assert_eq!(frames, ["data: 1\n\n"]);
    assert_eq!(told(ended).0, Class::Malformed);
}

#[tokio::test(start_paused = true)]
async fn after_done_nothing_can_fail() {
    for body in [
        &[Say("data: [DONE]\n\n"), Cut][..],
        &[Say("data: 1\r\n\r\ndata:[DONE]\r\n\r\n")],
        &[Say("data: [DONE]\n\n"), Wait(1), Say(": bye"), Hang],
        &[Say("data: [DONE]\n\n"), Wait(1), Say(": bye\n\n")],
        &[Say("data: 1\n\ndata: [DONE]\n\n: ping\n\n"), Hang],
        &[Say("data: [DONE]\nid: 5\n\n"), Cut],
        &[Say("data: [DONE]\n\nevent: done\ndata: {}\n\n"), Cut],
        &[Say("data: [DONE]\n\n"), Wait(1), Say(LONG)],
        &[Say("data: [DONE]\n\r")],
    ] {
        assert!(stream(body).await.1.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_after_done() {
    for (body, expected) in [
        // The upstream has ended, so all is one frame.
        (&[Say("data: 1\n\ndata: [DONE]\n\n: ping\n\n")][..], &["data: 1\n\ndata: [DONE]\n\n"][..]),
        (&[Say("data: [DONE]\n\n"), Say("data: late\n\n"), Say("garbage")], &["data: [DONE]\n\n"]),
        (&[Say("data: [DONE]\n\n"), Say("data: {\"error\":{}}\n\n"), Cut], &["data: [DONE]\n\n"]),
        (&[Say("data: [DONE]\r\n\r\n"), Wait(1), Say("data: late\n\n")], &["data: [DONE]\r\n\r\n"]),
        (
            &[Say("data: 1\n\ndata: [DONE]\n\n: ping\n\n"), Wait(10), Say(": ping\n\n")],
            &["data: 1\n\n", "data: [DONE]\n\n"],
        ),
        // It has not, nor will it: all was said.
        (&[Say("data: 1\n\n"), Wait(1), Say("data: [DONE]\n\n"), Hang], &["data: 1\n\n", "data: [DONE]\n\n"]),
        (&[Say("data: [DONE]\n\n"), Wait(49), Say(": ping\n\n"), Hang], &["data: [DONE]\n\n"]),
    ] {
        let started = Instant::now();
        let (frames, ended) = stream(body).await;
        assert_eq!(frames, expected);
        assert!(ended.is_none());
        assert!(started.elapsed() <= Duration::from_millis(52), "{:?} for {body:?}", started.elapsed());
    }
}

/// What was said last is there when the stream says that it has ended, and the upstream's body is not kept for longer, nor
/// listened to if it goes on talking.
#[tokio::test(start_paused = true)]
async fn the_end_lets_the_upstream_go() {
    for (body, expected) in [
        (vec![Say("data: 1\n\n"), Wait(1), Say("data: [DONE]\n\n"), Hang], "data: 1\n\ndata: [DONE]\n\n"),
        (vec![Say("data: 1\n\n"), Wait(1), Say("data: {\"error\":{}}\n\n"), Hang], "data: 1\n\n"),
        (vec![Say("data: [DONE]\n\n"); 10_000], "data: [DONE]\n\n"),
    ] {
        let read = Arc::new(AtomicUsize::new(0));
        let (counted, steps): (_, &'static [Step]) = (read.clone(), body.leak());
        let transport = service_fn(move |_: Request<Full<Bytes>>| {
            let counted = counted.clone();
            // It is held by the body, and shows by its count whether that is there.
            let body = script(steps).map_frame(move |frame| {
                counted.fetch_add(1, Relaxed);
                frame
            });
            let response = Response::builder().header("content-type", "text/event-stream");
            std::future::ready(Ok::<_, BoxError>(response.body(body).unwrap()))
        });
        let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap();
        let mut body = provider.ready().await.unwrap().call(question()).await.unwrap().into_body();
        drop(provider);
        assert_eq!(Arc::strong_count(&read), 2, "the body is there");
        let mut said = Vec::new();
        while !body.is_end_stream() {
            match body.frame().await {
                Some(Ok(frame)) => said.extend(frame.into_data().unwrap()),
                Some(Err(error)) => assert!(error.message().contains("told of an error")),
                None => break,
            }
        }
        assert_eq!(str::from_utf8(&said), Ok(expected));
        assert_eq!(Arc::strong_count(&read), 1, "the body is still there");
        assert!(read.load(Relaxed) < 2_000, "all of it was read");
    }
}

/// As some send it.
#[tokio::test(start_paused = true)]
async fn the_last_event_needs_no_empty_line_if_it_is_the_end() {
    for last in ["data: [DONE]", "data: [DONE]\n", "data:[DONE]\r\n", "data: [DONE]\r", ": bye\ndata: [DONE]"]
    {
        let (frames, ended) = stream(vec![Say("data: 1\n\n"), Wait(1), Say(last)].leak()).await;
        assert!(ended.is_none(), "{last:?}");
        let [first, last] = &frames[..] else { panic!("{last:?}: {frames:?}") };
        assert_eq!(first, "data: 1\n\n");
        assert!(
            last.contains("[DONE]") && ["\n\n", "\r\n\n"].iter().any(|end| last.ends_with(end)),
            "{last:?}"
        );
    }
    // Nor if it is an error. All else has been cut off, and so has what breaks off.
    let (_, ended) = stream(&[Say("data: {\"error\":{\"message\":\"boom\"}}")]).await;
    assert_eq!(told(ended), (Class::Upstream, "boom".into()));
    for body in [
        &[Say("data: 1\n\ndata: 2")][..],
        &[Say("data: 1\n\ndata: [DON")],
        &[Say("data: 1\n\ndata: 2\ndata: [DONE]")],
        &[Say("data: 1\n\ndata: [DONE]"), Cut],
    ] {
        let (frames, ended) = stream(body).await;
        assert_eq!(frames, ["data: 1\n\n"], "{body:?}");
        assert_eq!(told(ended).0, Class::Upstream);
    }
}

#[tokio::test(start_paused = true)]
async fn text_that_only_mentions_done_is_not_the_end() {
    for body in [
        &[Say("data: and then it said data: [DONE]\n\n")][..],
        &[Say("data:\n[DONE]\n\n")],
        &[Say("data: {\"x\":1,\ndata: [DONE]\n\n")],
    ] {
        assert_eq!(told(stream(body).await.1).0, Class::Upstream);
    }
}

#[tokio::test(start_paused = true)]
async fn garbage_is_malformed() {
    let (frames, ended) = stream(&[Say("<html>\n\n<body>502 Bad Gateway</body>\n\n")]).await;
    assert!(frames.is_empty());
    assert_eq!(told(ended).0, Class::Malformed);
    // A field that nobody knows is none of it, the standard says.
    let (_, ended) = stream(&[Say("data: 1\n\n"), Wait(1), Say("x: y\ndata: [DONE]\n\n")]).await;
    assert!(ended.is_none());
}

/// Pitfall 56: a stream that was answered with 200 fails by what it says, whatever it says after that.
#[tokio::test(start_paused = true)]
async fn an_error_event_is_the_error_of_the_stream() {
    const ERROR: &str =
        "data: {\"error\":{\"message\":\"boom\",\"code\":\"overloaded_error\",\"extra\":1}}\n\n";
    for (body, before) in [
        (&[Say(ERROR), Say("data: [DONE]\n\n")][..], &[][..]),
        (&[Say(ERROR)], &[]),
        (&[Say(ERROR), Cut], &[]),
        (&[Say(": hi\n\n"), Say(ERROR), Say("data: 2\n\n"), Say("data: [DONE]\n\n")], &[": hi\n\n"]),
        (&[Say("data: 1\n\n"), Wait(1), Say(ERROR), Say("data: [DONE]\n\n")], &["data: 1\n\n"]),
    ] {
        let (frames, ended) = stream(body).await;
        assert_eq!(frames, before);
        let error = ended.expect("it has failed");
        assert_eq!((error.class(), error.message()), (Class::Overloaded, "boom"));
        assert_eq!(error.event(), ERROR, "a client sees what the upstream has said");
    }
    // In one piece with what is good, and in the shapes of others, which are told in OpenAI's.
    for (body, class) in [
        ("data: 1\n\ndata: {\"error\":\"boom\"}\n\ndata: [DONE]\n\n", Class::Upstream),
        (
            "data: 1\n\nevent: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"rate_limit_error\",\"message\":\"boom\"}}\n\n",
            Class::RateLimit,
        ),
        (
            "data: 1\n\ndata: {\"object\":\"error\",\ndata: \"message\":\"boom\",\"code\":400}\n\n",
            Class::BadRequest,
        ),
        (
            "data: 1\n\ndata: {\"error\":{\"message\":\"boom\",\ndata:\"code\":\"timeout_error\"}}\n\n",
            Class::Timeout,
        ),
    ] {
        let body: &'static [Step] = vec![Say(body)].leak();
        let (frames, ended) = stream(body).await;
        assert_eq!(frames, ["data: 1\n\n"], "{body:?}");
        let error = ended.expect("it has failed");
        assert_eq!((error.class(), error.message()), (class, "boom"), "{body:?}");
        let event = String::from_utf8(error.event().into()).unwrap();
        assert!(event.starts_with("data: {\"") && event.contains("\"message\":\"boom\""), "{event}");
        assert_eq!(event.matches('\n').count(), 2, "{event}");
    }
    let quoted = "data: {\"error\":{\"message\":\"key sk-geheim1234\"}}\n\n";
    let error = stream(vec![Say(quoted)].leak()).await.1.unwrap();
    let told = format!("{error:?} {:?}", error.event());
    assert!(!told.contains("geheim"), "{told}");
    let silent = "data: {\"error\":{}}\n\n";
    let error = stream(vec![Say(silent)].leak()).await.1.unwrap();
    assert_eq!(
        (error.class(), error.message()),
        (Class::Upstream, "the upstream told of an error, and not of which")
    );
}

#[tokio::test(start_paused = true)]
async fn what_only_mentions_an_error_is_none() {
    for data in [
        r#"{"error":null,"choices":[]}"#,
        r#"{"error":"","choices":[]}"#,
        r#"{"error":false}"#,
        r#"{"choices":[{"delta":{"content":"it said \"error\": {}"},"finish_reason":"error"}]}"#,
        r#"{"choices":[{"error":{"message":"of this choice"}}]}"#,
        r#""error""#,
        r#"it is no JSON: "error": {"#,
    ] {
        let text = format!("data: {data}\n\n");
        let body = vec![Say(text.clone().leak()), Wait(1), Say("data: [DONE]\n\n")].leak();
        let (frames, ended) = stream(body).await;
        assert!(ended.is_none(), "{data}");
        assert_eq!(frames, [&text, "data: [DONE]\n\n"]);
    }
}

#[tokio::test(start_paused = true)]
async fn each_time_limit_names_itself() {
    let started = Instant::now();
    let (_, ended) = stream(&[Hang]).await;
    let message = "the upstream sent nothing within 60s of its answer's head";
    assert_eq!(told(ended), (Class::Timeout, message.into()));
    assert_eq!(started.elapsed().as_secs(), 60);

    const SLOW: &[Step] = &[Wait(30_000), Say("data: 1\n\n"), Wait(59_000), Say("data: 2\n\n"), Hang];
    let started = Instant::now();
    let (frames, ended) = stream(SLOW).await;
    assert_eq!(frames.len(), 2);
    assert_eq!(told(ended), (Class::Timeout, "the upstream sent nothing more for 60s".into()));
    assert_eq!(started.elapsed().as_secs(), 30 + 59 + 60);
}

#[tokio::test(start_paused = true)]
async fn the_total_limit_counts_from_the_call_and_ends_a_stream_that_only_drips() {
    const DRIP: &[Step] =
        &[Wait(50_000), Say("data: 1\n\n"), Wait(50_000), Say("data: 2\n\n"), Wait(50_000), Hang];
    let transport = service_fn(|_: Request<Full<Bytes>>| async {
        sleep(Duration::from_secs(10)).await;
        let response = Response::builder().header("content-type", "text/event-stream");
        Ok::<_, BoxError>(response.body(script(DRIP)).unwrap())
    });
    let limits = Limits { total: Duration::from_secs(120), ..Limits::default() };
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap().limits(limits);
    let started = Instant::now();
    let response = provider.ready().await.unwrap().call(question()).await.unwrap();
    let error = response.collect().await.unwrap_err();
    assert_eq!((error.class(), error.message()), (Class::Timeout, "the upstream was not done within 120s"));
    assert!(std::error::Error::source(&error).is_none());
    assert_eq!(started.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn the_total_limit_ends_a_stream_that_never_runs_dry() {
    let transport = service_fn(|_: Request<Full<Bytes>>| async {
        let body = StreamBody::new(futures_util::stream::repeat_with(|| {
            Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"data: 1\n\n")))
        }));
        Ok::<_, BoxError>(Response::builder().header("content-type", "text/event-stream").body(body).unwrap())
    });
    let limits = Limits { total: Duration::from_secs(10), ..Limits::default() };
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap().limits(limits);
    let mut body = provider.ready().await.unwrap().call(question()).await.unwrap().into_body();
    let error = loop {
        match body.frame().await.expect("not a silent end") {
            Ok(_) => sleep(Duration::from_secs(1)).await,
            Err(error) => break error,
        }
    };
    assert_eq!(error.message(), "the upstream was not done within 10s");
    assert!(std::error::Error::source(&error).is_some_and(<dyn std::error::Error>::is::<StillSending>));
}

#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_come_is_a_timeout() {
    let transport =
        service_fn(|_: Request<Full<Bytes>>| std::future::pending::<Result<Response<Script>, BoxError>>());
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap();
    let started = Instant::now();
    let error = provider.ready().await.unwrap().call(question()).await.unwrap_err();
    assert_eq!((error.class(), error.message()), (Class::Timeout, "no answer from the upstream within 120s"));
    assert_eq!(started.elapsed().as_secs(), 120);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_is_not_the_upstreams_fault() {
    let response = ask(200, EVENTS, &[Say("data: 1\n\n"), Wait(1), Say("data: [DONE]\n\n")]).await.unwrap();
    let mut body = response.into_body();
    assert!(body.frame().await.unwrap().is_ok());
    sleep(Duration::from_secs(300)).await;
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.frame().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_whole_answer_is_checked_before_its_head_is_passed_on() {
    let response = ask(200, JSON, &[Say("{\"a\":"), Wait(1), Say("1} ")]).await.unwrap();
    assert_eq!(response.body().size_hint().exact(), Some(8));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "{\"a\":1} ");

    for (body, class) in [
        (&[Say("{\"a\":"), Cut][..], Class::Upstream),
        (&[Say("{\"a\":")], Class::Malformed),
        (&[], Class::Malformed),
        (&[Say("<html></html>")], Class::Malformed),
        (&[Say("{"), Hang], Class::Timeout),
        (&[Say("{this is not json at all}")], Class::Malformed),
        (&[Say("{\"choices\":[{\"index\":0,\"message\":{\"content\":\"cut\"}}")], Class::Malformed),
        (&[Say("{\"a\":1}"), Say("{\"a\":1}")], Class::Malformed),
    ] {
        let error = ask(200, JSON, body).await.unwrap_err();
        assert_eq!(error.class(), class);
        assert!(class != Class::Malformed || error.message().contains("no whole JSON document"), "{error}");
    }
}

/// What is no UTF-8 is no JSON, and of what is said at other paths the provider knows no more than how it looks.
#[tokio::test(start_paused = true)]
async fn answers_are_checked_in_full_where_it_is_known_what_they_are() {
    let of = async |path: &str, body: &'static [u8]| {
        let transport = service_fn(move |_: Request<Full<Bytes>>| {
            let response = Response::builder().header("content-type", "application/json");
            std::future::ready(Ok::<_, BoxError>(response.body(Full::from(body)).unwrap()))
        });
        let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap();
        let request = Request::post(path).body(Bytes::new()).unwrap();
        let response = provider.ready().await.unwrap().call(request).await.map_err(|error| error.class())?;
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
        Ok(())
    };
    for body in [&b"{\"a\":\"he\xff\xfeo\"}"[..], b"{\"a\":1}\n{\"a\":2}"] {
        for path in ["/v1/chat/completions", "/v1/embeddings", "/v1/models", "/v1/models/m"] {
            assert_eq!(of(path, body).await, Err(Class::Malformed), "{path}");
        }
        assert_eq!(of("/v1/batches", body).await, Ok(()));
        assert_eq!(of("/v1/batches", &body[..5]).await, Err(Class::Malformed), "as before");
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_no_answer_to_an_api_call_is_refused() {
    for (status, headers) in [
        (200, &[("content-type", "text/html")][..]),
        (200, &[]),
        (200, &[("content-type", "application/json"), ("content-encoding", "gzip")]),
        (302, &[("content-type", "application/json"), ("location", "http://elsewhere.example/")]),
    ] {
        assert_eq!(ask(status, headers, &[Say("{}")]).await.unwrap_err().class(), Class::Malformed);
    }
}

const CHAT: &str = "/v1/chat/completions";

/// Whatever the status says: what it says of itself counts.
#[tokio::test(start_paused = true)]
async fn an_error_in_an_answer_of_200_is_an_error_response() {
    const OVERLOADED: &str = r#"{"error":{"message":"no","type":"server_error","code":"overloaded_error"}}"#;
    for (body, status, class) in [
        (OVERLOADED, 503, Class::Overloaded),
        (r#"{"error":{"message":"no","type":"rate_limit_error"}}"#, 429, Class::RateLimit),
        (r#"{"error":{"message":"no","type":"invalid_request_error"}}"#, 400, Class::BadRequest),
        (r#"{"error":{"message":"no","code":429}}"#, 429, Class::RateLimit),
        (r#"{"error":{"message":"no","code":"insufficient_quota"}}"#, 429, Class::Quota),
        (r#"{"id":"1","choices":[],"error":{"message":"no"}}"#, 502, Class::Upstream),
    ] {
        const WAIT: &[(&str, &str)] = &[("content-type", "application/json"), ("retry-after", "7")];
        let steps: &'static [Step] = vec![Say(body)].leak();
        // A stream was asked for or not, or nobody has looked.
        for request in [
            question(),
            read(CHAT, r#"{"model":"m"}"#),
            read(CHAT, r#"{"model":"m","stream":true}"#),
            read("/v1/embeddings", r#"{"model":"m"}"#),
        ] {
            let response = ask_for(request, 200, WAIT, steps).await.unwrap();
            assert_eq!(response.status(), status, "{body}");
            let error = response.extensions().get::<Arc<Error>>().unwrap();
            assert_eq!((error.class(), error.message()), (class, "no"));
            assert_eq!(error.retry_after(), RetryAfter::After(Duration::from_secs(7)));
            assert_eq!(response.headers().contains_key("x-should-retry"), !class.is_transient());
            assert!(response.extensions().get::<UsageReport>().is_none());
            assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body, "in its words");
        }
    }
    const QUOTED: &[Step] = &[Say(r#"{"error":"your key is sk-geheim1234"}"#)];
    let response = ask(200, JSON, QUOTED).await.unwrap();
    assert_eq!(response.status(), 502);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(br#"{"error":{"message":"your key is [redacted]""#), "{body:?}");

    // There is none in these, or it means something else there.
    const NONE: &[Step] = &[Say(r#"{"error":null,"choices":[{"error":1,"text":"\"error\":{}"}]}"#)];
    assert_eq!(ask(200, JSON, NONE).await.unwrap().status(), 200);
    const OTHER: &[Step] = &[Say(OVERLOADED)];
    for path in ["/v1/fine_tuning/jobs/1", "/v1/responses", "/v1/models"] {
        let request = Request::get(path).body(Bytes::new()).unwrap();
        assert_eq!(ask_for(request, 200, JSON, OTHER).await.unwrap().status(), 200, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_of_an_answer_or_none_is_malformed() {
    const WHOLE: &[Step] = &[Say("{}")];
    for path in [CHAT, "/v1/embeddings"] {
        for (status, body) in [(204, &[][..]), (205, &[]), (206, WHOLE)] {
            let error = ask_for(read(path, r#"{"model":"m"}"#), status, JSON, body).await.unwrap_err();
            assert_eq!(error.class(), Class::Malformed, "{path} {status}");
            assert!(error.message().contains(&format!("status {status}")), "{error}");
        }
        assert_eq!(ask_for(read(path, r#"{"model":"m"}"#), 201, JSON, WHOLE).await.unwrap().status(), 201);
    }
    let delete = || Request::delete("/v1/models/m").body(Bytes::new()).unwrap();
    assert_eq!(ask_for(delete(), 204, &[], &[]).await.unwrap().status(), 204);
    let get = Request::get("/v1/batches/1").body(Bytes::new()).unwrap();
    assert_eq!(ask_for(get, 206, JSON, WHOLE).await.unwrap().status(), 206);
}

/// Neither is what a client that asked for the other can read.
#[tokio::test(start_paused = true)]
async fn a_stream_or_none_as_it_was_asked_for() {
    const WHOLE: &[Step] = &[Say("{\"choices\":[]}")];
    const STREAM: &[Step] = &[Say("data: [DONE]\n\n")];
    let plain = || read(CHAT, r#"{"model":"m"}"#);
    let streamed = || read(CHAT, r#"{"model":"m","stream":true}"#);
    assert!(ask_for(plain(), 200, JSON, WHOLE).await.is_ok());
    assert!(ask_for(streamed(), 200, EVENTS, STREAM).await.is_ok());
    for (request, headers, body, words) in [
        (streamed(), JSON, WHOLE, "no stream"),
        (plain(), EVENTS, STREAM, "a stream"),
        (read("/v1/embeddings", r#"{"model":"m"}"#), EVENTS, STREAM, "a stream"),
    ] {
        let error = ask_for(request, 200, headers, body).await.unwrap_err();
        assert_eq!(error.class(), Class::Malformed);
        assert!(error.message().contains(words), "{error}");
    }
    // Nobody knows what these asked for.
    let mut changed = plain();
    *changed.body_mut() = Bytes::from_static(br#"{"stream":true,"model":"m"}"#);
    for request in [question(), changed] {
        assert!(ask_for(request, 200, EVENTS, STREAM).await.is_ok());
    }
    assert!(ask(200, JSON, WHOLE).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_is_refused_at_the_bound() {
    let transport = service_fn(|_: Request<Full<Bytes>>| async {
        let body = script(&[Say("{\"0123456789\":"), Wait(1), Say("0}")]);
        Ok::<_, BoxError>(Response::builder().header("content-type", "application/json").body(body).unwrap())
    });
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap().max_response(15);
    let error = provider.ready().await.unwrap().call(question()).await.unwrap_err();
    assert_eq!(error.message(), "the upstream's answer is longer than 15 bytes");
}

#[tokio::test(start_paused = true)]
async fn error_responses_keep_their_bytes_and_carry_their_meaning() {
    const BODY: &str = r#"{"error":{"message":"too long","type":"invalid_request_error","param":"messages","code":"context_length_exceeded","extra":1}}"#;
    let response = ask(400, JSON, &[Say(BODY)]).await.unwrap();
    assert_eq!(response.status(), 400);
    assert_eq!(response.extensions().get::<Arc<Error>>().unwrap().class(), Class::ContextLength);
    assert_eq!(response.headers()["x-should-retry"], "false", "what a client cannot tell from the status");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), BODY);

    const WAIT: &[(&str, &str)] = &[("content-type", "application/json"), ("retry-after", "7")];
    let response = ask(429, WAIT, &[Say("{}")]).await.unwrap();
    assert_eq!(response.headers()["retry-after"], "7");
    assert!(!response.headers().contains_key("x-should-retry"));
    let error = response.extensions().get::<Arc<Error>>().unwrap();
    assert_eq!(error.retry_after(), RetryAfter::After(Duration::from_secs(7)));
}

#[tokio::test(start_paused = true)]
async fn error_responses_of_other_shapes_are_told_in_ours() {
    const HTML: &[(&str, &str)] = &[("content-type", "text/html"), ("content-length", "999")];
    for body in [&[Say("<html>down</html>")][..], &[], &[Say("{\"detail\":\"down\"}")]] {
        let response = ask(503, HTML, body).await.unwrap();
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["content-type"], "application/json");
        assert!(!response.headers().contains_key("content-length"));
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["error"]["type"], "service_unavailable_error");
    }
}

#[tokio::test(start_paused = true)]
async fn keys_never_come_back() {
    const MASKED: &[Step] = &[Say(
        r#"{"error":{"message":"Incorrect API key provided: sk-geh***1234.","code":"invalid_api_key"}}"#,
    )];
    const QUOTED: &[Step] = &[Say(r#"{"error":{"message":"header was Bearer sk-geheim1234"}}"#)];
    const TRACE: &[Step] = &[Say("trace: Authorization=Bearer sk-geheim1234")];
    for (status, body) in [(401, MASKED), (400, QUOTED), (500, TRACE)] {
        let response = ask(status, JSON, body).await.unwrap();
        let error = format!("{:?}", response.extensions().get::<Arc<Error>>().unwrap());
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let body = String::from_utf8(body.into()).unwrap();
        for text in [&error, &body] {
            assert!(!text.contains("geheim") && !text.contains("sk-geh"), "{text}");
        }
    }
    let provider = Provider::new((), "http://upstream.example/v1").unwrap().api_key("sk-geheim1234".into());
    assert!(!format!("{provider:?}").contains("geheim"));
}

#[tokio::test(start_paused = true)]
async fn a_clients_headers_stay_behind_and_the_upstreams_do_too() {
    let transport = service_fn(|request: Request<Full<Bytes>>| async move {
        let mut names: Vec<_> = request.headers().keys().map(http::HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["authorization", "content-type", "x-mine"]);
        assert_eq!(request.headers()["authorization"], "Bearer sk-1");
        let response = Response::builder()
            .header("content-type", "application/json")
            .header("set-cookie", "a=b")
            .header("connection", "x-hop")
            .header("x-hop", "1")
            .header("x-request-id", "7");
        Ok::<_, BoxError>(response.body(Full::new(Bytes::from_static(b"{}"))).unwrap())
    });
    let provider = Provider::new(transport, "http://upstream.example/v1").unwrap();
    let mut provider = provider.api_key("sk-1".into());
    let mut request = question();
    for name in [
        "authorization",
        "x-api-key",
        "api-key",
        "cookie",
        "host",
        "connection",
        "te",
        "transfer-encoding",
        "openai-organization",
        "accept-encoding",
        "x-forwarded-for",
        "content-type",
        "x-mine",
        "named",
    ] {
        let value = if name == "connection" { "named, close" } else { "v" };
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let response = provider.ready().await.unwrap().call(request).await.unwrap();
    let mut names: Vec<_> = response.headers().keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["content-type", "x-request-id"]);
}

/// What a provider with a model of its own makes of a request.
async fn renamed(request: Request<Bytes>) -> Result<String, Error> {
    let transport = service_fn(|request: Request<Full<Bytes>>| async move {
        let echo = request.into_body();
        let response = Response::builder().header("content-type", "application/json");
        Ok::<_, BoxError>(response.body(echo).unwrap())
    });
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap().model("cheap");
    let response = provider.ready().await?.call(request).await?;
    Ok(String::from_utf8(response.into_body().collect().await?.to_bytes().into()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn no_path_gets_around_the_providers_model() {
    for path in ["/v1/chat/completions", "/v1/completions", "/v1/chat/completions/", "/v1//chat/completions"]
    {
        let request = Request::post(path).body(Bytes::from_static(br#"{"n":1,"model":"dear"}"#)).unwrap();
        assert_eq!(renamed(request).await.unwrap(), r#"{"n":1,"model":"cheap"}"#, "{path}");
        let request = Request::post(path).body(Bytes::from_static(br#"{"n":1}"#)).unwrap();
        assert_eq!(renamed(request).await.unwrap_err().class(), Class::BadRequest, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn facts_of_another_body_are_not_trusted() {
    let facts = Facts::read(Operation::Chat, &Bytes::from_static(br#"{"model":"fast","n":1}"#)).unwrap();
    for (body, expected) in [
        (r#"{"model":"gpt-4o-mini-2024","n":1}"#, r#"{"model":"cheap","n":1}"#),
        (r#"{"model":"f"}"#, r#"{"model":"cheap"}"#),
        (r#"{"model":"fast","n":1}"#, r#"{"model":"cheap","n":1}"#),
    ] {
        let mut request = Request::post("/v1/chat/completions").body(Bytes::from(body)).unwrap();
        request.extensions_mut().insert(facts.clone());
        assert_eq!(renamed(request).await.unwrap(), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_made_gives_the_transports_permit_back() {
    let transport =
        service_fn(|_: Request<Full<Bytes>>| std::future::pending::<Result<Response<Script>, BoxError>>());
    let transport = tower::limit::ConcurrencyLimit::new(transport, 1);
    let mut one = Provider::new(transport, "http://upstream.example/v1").unwrap();
    let mut other = one.clone();
    let nowhere = Request::get("/nowhere").body(Bytes::new()).unwrap();
    assert!(one.ready().await.unwrap().call(nowhere).await.is_err());
    let ready = tokio::time::timeout(Duration::from_secs(1), other.ready()).await;
    assert!(ready.is_ok(), "the permit is still held");
}

#[tokio::test(start_paused = true)]
async fn answers_without_a_body_have_nothing_to_check() {
    let transport = service_fn(|_: Request<Full<Bytes>>| {
        let response = Response::builder().header("content-type", "application/json");
        std::future::ready(Ok::<_, BoxError>(response.body(script(&[])).unwrap()))
    });
    let mut provider = Provider::new(transport, "http://upstream.example/v1").unwrap();
    let head = Request::head("/v1/models").body(Bytes::new()).unwrap();
    assert_eq!(provider.ready().await.unwrap().call(head).await.unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_replaced_error_body_has_headers_of_its_own() {
    const ZIPPED: &[(&str, &str)] =
        &[("content-type", "text/plain"), ("content-encoding", "gzip"), ("etag", "x")];
    let response = ask(502, ZIPPED, &[Say("\u{1f}not ours to read")]).await.unwrap();
    assert!(!response.headers().contains_key("content-encoding") && !response.headers().contains_key("etag"));
    assert_eq!(response.headers()["content-type"], "application/json");
}

#[tokio::test(start_paused = true)]
async fn half_an_event_does_not_swallow_the_error_event() {
    let inner = service_fn(|()| {
        let response =
            Response::builder().header("content-type", "text/event-stream").header("content-length", "99");
        std::future::ready(response.body(script(&[Say("data: {\"a\":"), Cut])))
    });
    let response = ErrorEventsLayer::new().layer(inner).oneshot(()).await.unwrap();
    assert!(!response.headers().contains_key("content-length"));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(b"data: {\"a\":\n\ndata: {\"error\":"), "{body:?}");
}

#[tokio::test(start_paused = true)]
async fn a_compressed_stream_is_cut_rather_than_spoilt() {
    let inner = service_fn(|()| {
        let response =
            Response::builder().header("content-type", "text/event-stream").header("content-encoding", "br");
        std::future::ready(response.body(script(&[Say("\u{1}"), Cut])))
    });
    let response = ErrorEventsLayer::new().layer(inner).oneshot(()).await.unwrap();
    assert!(response.into_body().collect().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_error_becomes_an_event_where_streams_leave() {
    let inner = service_fn(|()| ask(200, EVENTS, &[Say("data: 1\n\n"), Wait(1), Cut]));
    let response = ErrorEventsLayer::new().layer(inner).oneshot(()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let (first, last) = body.split_at(9);
    assert_eq!(first, b"data: 1\n\n");
    let event: serde_json::Value = serde_json::from_slice(last.strip_prefix(b"data: ").unwrap()).unwrap();
    assert_eq!(event["error"]["message"], "the upstream's stream was cut off");
    assert_eq!(event["error"]["code"], "upstream_error");
}

#[tokio::test(start_paused = true)]
async fn addresses_that_cannot_be_are_refused() {
    for base in [
        "",
        "upstream",
        "/v1",
        "ftp://x/v1",
        "http://x/v1?key=pw",
        "http://user:pw@x/v1",
        "htps://user:pw@x/v1",
        "http://user:p w@x/v1",
        "http://",
    ] {
        let error = Provider::new((), base).unwrap_err();
        assert_eq!(error.class(), Class::BadRequest, "{base}");
        assert!(!error.message().contains("pw") && !error.message().contains("p w"), "{error}");
    }
    let transport = service_fn(|request: Request<Full<Bytes>>| async move {
        let body = Bytes::from(format!("{{\"{}\":1}}", request.uri()));
        let response = Response::builder().header("content-type", "application/json");
        Ok::<_, BoxError>(response.body(Full::new(body)).unwrap())
    });
    let mut provider = Provider::new(transport, "https://upstream.example/llm/v1/").unwrap();
    let get = |path: &str| Request::get(path).body(Bytes::new()).unwrap();
    let response = provider.ready().await.unwrap().call(get("/v1/models?limit=2")).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "{\"https://upstream.example/llm/v1/models?limit=2\":1}");
    let response = provider.ready().await.unwrap().call(get("/v1/models/foo..bar?x=../..")).await.unwrap();
    assert_eq!(response.status(), 200, "two dots are no harm within a name");
    for path in [
        "/",
        "/v1",
        "/v2/models",
        "/v1/../admin",
        "/v1/%2e%2E/admin",
        "/v1/.%2e/admin",
        "/v1/./admin",
        "/v1/a%2f..%2fadmin",
        "/v1/..%5cadmin",
        "/v1beta/models",
    ] {
        let error = provider.ready().await.unwrap().call(get(path)).await.unwrap_err();
        assert_eq!(error.class(), Class::NotFound, "{path}");
    }
}

/// However it was split on the way, and although no byte of it is changed.
#[tokio::test(start_paused = true)]
async fn usage_is_heard_as_it_passes() {
    const STREAM: &[Step] = &[
        Say("data: {\"choices\":[1],\"usage\":null}\n\ndata: {\"choices\":[],\"us"),
        Wait(10),
        Say("age\":{\"prompt_tokens\":7,\"completion_"),
        Say("tokens\":5,\"total_tokens\":12}}\n"),
        Say("\ndata: [DONE]\n\n"),
    ];
    let response = ask(200, EVENTS, STREAM).await.unwrap();
    let report = response.extensions().get::<UsageReport>().cloned().unwrap();
    let mut body = response.into_body();
    body.frame().await.unwrap().unwrap();
    assert_eq!(report.get(), None, "no event has told it");
    body.collect().await.unwrap();
    let usage = report.get().unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (7, 5, 12));

    // Nobody asked for it, and one that breaks off.
    for steps in [&[Say("data: {}\n\ndata: [DONE]\n\n")][..], &[Say("data: {}\n\n"), Cut]] {
        let response = ask(200, EVENTS, steps).await.unwrap();
        let report = response.extensions().get::<UsageReport>().cloned().unwrap();
        let _ = response.into_body().collect().await;
        assert_eq!(report.get(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn usage_of_an_answer_in_pieces() {
    const ANSWER: &[Step] =
        &[Say("{\"us"), Say("age\":{\"prompt_tokens\":8,"), Wait(5), Say("\"total_tokens\":8}}")];
    let response = ask(200, JSON, ANSWER).await.unwrap();
    let usage = response.extensions().get::<UsageReport>().and_then(UsageReport::get).unwrap();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (8, 0, 8));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, r#"{"usage":{"prompt_tokens":8,"total_tokens":8}}"#);

    for (status, steps) in
        [(200, &[Say("{}")]), (200, &[Say("{\"usage\":7}")]), (429, ANSWER.first_chunk().unwrap())]
    {
        let response = ask(status, JSON, steps).await.unwrap();
        assert!(response.extensions().get::<UsageReport>().is_none(), "nothing is known of it");
    }
}
