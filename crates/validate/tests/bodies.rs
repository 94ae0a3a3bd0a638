//! Rules for HTTP bodies, responses that are read, and bodies that pass through a window.

use std::{convert::Infallible, time::Duration};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_validate::{
    Checked, Level, Message, Pattern, Pii, Report, Rules, Terms, Validator, Window, content_type, max_bytes,
    must, text, well_formed,
};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use tokio::{sync::mpsc, time::Instant};
use tower::{Layer, ServiceExt, service_fn};

type Upstream = BoxBody<Bytes, Infallible>;

fn answer(
    response: Response<Upstream>,
) -> impl tower::Service<Request<Bytes>, Response = Response<Upstream>, Error = Infallible, Future: Send> + Clone
{
    let (head, body) = response.into_parts();
    let body = std::sync::Arc::new(std::sync::Mutex::new(Some(body)));
    service_fn(move |_: Request<Bytes>| {
        let body = body.lock().unwrap().take().expect("asked once");
        std::future::ready(Ok(Response::from_parts(head.clone(), body)))
    })
}

fn full(text: &'static str) -> Response<Upstream> {
    Response::new(Full::from(text).boxed())
}

fn chunks(chunks: Vec<&'static [u8]>) -> Response<Upstream> {
    let frames = chunks.into_iter().map(|chunk| Ok(Frame::data(Bytes::from_static(chunk))));
    Response::new(BodyExt::boxed(StreamBody::new(stream::iter(frames.collect::<Vec<_>>()))))
}

async fn through<A>(
    validator: &Validator<Request<Bytes>, A>,
    response: Response<Upstream>,
) -> Result<Response<Checked<Upstream>>, BoxError>
where
    A: bartizan_validate::Answers<Response<Upstream>, Response = Response<Checked<Upstream>>>,
{
    let service = validator.layer(Level::Moderate).layer(answer(response));
    service.oneshot(Request::new(Bytes::new())).await
}

/// What arrives, and the error with which it ends.
async fn read(response: Response<Checked<Upstream>>) -> (Vec<u8>, Option<BoxError>) {
    let mut body = Box::pin(response.into_body());
    let mut passed = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => passed.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data)),
            Err(error) => {
                assert!(body.frame().await.is_none() && body.is_end_stream(), "nothing comes after an error");
                assert_eq!(body.size_hint().exact(), Some(0));
                return (passed, Some(error));
            }
        }
    }
    (passed, None)
}

fn guarded(window: Window) -> Validator<Request<Bytes>, bartizan_validate::Bodies> {
    Validator::http(Rules::new()).window(window, Rules::new().error("deny", Pattern::deny("SECRET").unwrap()))
}

#[test]
fn requests_are_looked_at() {
    let rules = Rules::new()
        .error("size", max_bytes(32))
        .error("type", content_type(["application/json"]))
        .error("json", well_formed(3))
        .error("pii", text(Pii::all()));
    let of = |kind: &str, body: &'static [u8]| {
        let request = Request::builder().header("content-type", kind).body(Bytes::from_static(body)).unwrap();
        let report = rules.check(&request, Level::Moderate);
        report.violations().iter().map(|violation| violation.rule().to_owned()).collect::<Vec<_>>()
    };
    assert!(of("Application/JSON; charset=utf-8", br#"{"a":[1]}"#).is_empty());
    assert_eq!(of("text/plain", br#"{"a":[1]}"#), ["type"]);
    assert_eq!(of("application/json", br#"{"a":"ann@example.org"}"#), ["pii"]);
    assert_eq!(of("application/json", b"[[[[1]]]]"), ["json"]);
    assert_eq!(of("application/json", b"\"\xff\""), ["json", "pii"], "what is no text cannot be checked");
    assert_eq!(of("application/json", b"[1,2,3,4,5,6,7,8,9,10,11,12,13,14]"), ["size"]);

    let coded = Request::builder().header("content-encoding", "gzip").body("{}").unwrap();
    let rules = Rules::new().warn("json", well_formed(3)).warn("text", text(Pii::all()));
    let report = rules.check(&coded, Level::Lenient);
    assert!(report.refuses() && report.violations().iter().all(bartizan_validate::Violation::is_malformed));
    // In UTF-16 a word looks like another one.
    for kind in ["text/plain; charset=utf-16", "application/json;a=b; Charset=\"UTF-7\""] {
        let request = Request::builder().header("content-type", kind).body("{}").unwrap();
        assert!(rules.check(&request, Level::Lenient).is_malformed(), "{kind}");
    }
    for kind in ["text/plain; charset=\"UTF-8\"", "a/b; q", "a/b;charset=us-ascii"] {
        let request = Request::builder().header("content-type", kind).body("{}").unwrap();
        assert!(rules.check(&request, Level::Lenient).is_clean(), "{kind}");
    }
}

#[test]
fn patterns_that_are_wrong_or_huge_cannot_be_built() {
    for pattern in ["(", "a{1000}{1000}", r"(a)\1", "(?=a)"] {
        assert!(Pattern::deny(pattern).is_err(), "{pattern}");
    }
    assert!(Terms::new([""]).is_err());
}

/// Pitfall 48: an expression that takes a backtracking engine for ever is searched in one pass.
#[test]
fn no_expression_takes_exponential_time() {
    let rules = Rules::<str>::new().error("evil", Pattern::deny("^(a+)+$").unwrap());
    assert!(rules.check(&format!("{}b", "a".repeat(100_000)), Level::Strict).is_clean());
}

#[test]
fn terms_are_words() {
    let terms = |terms: Terms| Rules::<str>::new().error("terms", terms);
    let words = terms(Terms::new(["ass", "red door", "c++"]).unwrap());
    for (text, refused) in [
        ("class", false),
        ("an ASS.", true),
        ("ass", true),
        ("ässä", false),
        ("Red Door!", true),
        ("bored doors", false),
        ("c++17", true),
        ("assess the ass", true),
    ] {
        assert_eq!(words.check(text, Level::Strict).refuses(), refused, "{text}");
    }
    let inside = terms(Terms::new(["ass"]).unwrap().inside_words());
    assert!(inside.check("class", Level::Strict).refuses());
    let many = terms(Terms::new((0..1000).map(|n| format!("term{n}"))).unwrap());
    assert!(many.check("so term999 it is", Level::Strict).refuses());
    assert!(many.check("so term1000 it is", Level::Strict).is_clean());
}

proptest::proptest! {
    /// Few terms in long text are found by other means than many, and no others.
    #[test]
    fn terms_are_found_however_many_there_are(
        words in proptest::collection::vec(proptest::sample::select(vec![
            "ass", "class", "Ass.", "red", "DOOR", "red door", "bored door", "é", "c++", "assess", "x", "night",
        ]), 0..60),
        inside: bool,
    ) {
        let few = || vec!["ass".to_owned(), "Red Door".to_owned(), "c++".to_owned(), "é".to_owned()];
        let many = few().into_iter().chain((0..40).map(|n| format!("zzz{n}")));
        let rules = |terms: Terms| {
            Rules::<str>::new().error("terms", if inside { terms.inside_words() } else { terms })
        };
        let (few, many) = (rules(Terms::new(few()).unwrap()), rules(Terms::new(many).unwrap()));
        for join in [" ", ""] {
            let text = words.join(join);
            let of = |rules: &Rules<str>| rules.check(&text, Level::Strict).refuses();
            proptest::prop_assert_eq!(of(&few), of(&many), "{}", text);
        }
    }
}

#[tokio::test]
async fn the_report_rides_in_the_extensions() {
    let validator = Validator::http(Rules::new().warn("words", text(Terms::new(["hm"]).unwrap()))).whole(
        64,
        Rules::new().warn("sure", must("it says so", |response: &Response<Bytes>| response.body() == "sure")),
    );
    let inner = service_fn(|request: Request<Bytes>| {
        let report = request.extensions().get::<Report>().expect("the inner service sees it");
        assert_eq!(report.violations()[0].rule(), "words");
        std::future::ready(Ok::<_, Infallible>(full("well")))
    });
    let service = validator.layer(Level::Moderate).layer(inner);
    let response = service.oneshot(Request::new(Bytes::from_static(b"hm"))).await.unwrap();
    let report = response.extensions().get::<Report>().unwrap();
    let rules: Vec<_> = report.violations().iter().map(bartizan_validate::Violation::rule).collect();
    assert_eq!(rules, ["words", "sure"]);
    assert_eq!(response.body().size_hint().exact(), Some(4));
    assert_eq!(read(response).await.0, b"well");
}

#[tokio::test]
async fn the_report_stands_in_a_header_if_that_is_asked_for() {
    let validator = |headers: bool| {
        let it = Validator::http(Rules::new().warn("words", text(Terms::new(["hm"]).unwrap()))).whole(
            64,
            Rules::new()
                .warn("sure", must("it says so", |response: &Response<Bytes>| response.body() == "sure")),
        );
        if headers { it.report_header() } else { it }
    };
    let inner = service_fn(|_: Request<Bytes>| {
        let mut response = full("well");
        response.headers_mut().insert("validation-report", "\"never\"".parse().unwrap());
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let call = async |headers: bool, level: Level, body: &'static str| {
        let service = validator(headers).layer(level).layer(inner);
        let service = bartizan_core::RejectionLayer::problem_json().layer(service);
        let response = service.oneshot(Request::new(Bytes::from_static(body.as_bytes()))).await.unwrap();
        let header =
            response.headers().get("validation-report").map(|value| value.to_str().unwrap().to_owned());
        (response.status().as_u16(), header.unwrap_or_default())
    };
    let both = "\"words\";is=warn, \"sure\";is=warn".to_owned();
    assert_eq!(call(true, Level::Moderate, "hm").await, (200, both));
    assert_eq!(call(true, Level::Strict, "hm").await, (400, "\"words\";is=warn".to_owned()));
    assert_eq!(call(true, Level::Strict, "").await, (502, "\"sure\";is=warn".to_owned()));
    assert_eq!(call(false, Level::Strict, "hm").await, (400, String::new()));
    assert_eq!(call(false, Level::Moderate, "hm").await, (200, "\"never\"".to_owned()));
}

#[tokio::test]
async fn whole_bodies_are_read_and_bounded() {
    let validator = Validator::http(Rules::new())
        .whole(16, Rules::new().error("deny", text(Pattern::deny("SECRET").unwrap())));
    assert_eq!(read(through(&validator, chunks(vec![b"fi", b"ne"])).await.unwrap()).await.0, b"fine");
    let error = through(&validator, chunks(vec![b"a SEC", b"RET"])).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::InvalidAnswer);
    for long in [full("12345678901234567"), chunks(vec![b"1234567890", b"1234567"])] {
        assert!(Report::find(&*through(&validator, long).await.unwrap_err()).unwrap().is_malformed());
    }
    // An upstream's own error is no answer.
    let mut failed = full("SECRET");
    *failed.status_mut() = http::StatusCode::BAD_GATEWAY;
    assert_eq!(read(through(&validator, failed).await.unwrap()).await.0, b"SECRET");

    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Ok(Frame::trailers(trailers.clone()))];
    let trailed = Response::new(BodyExt::boxed(StreamBody::new(stream::iter(frames))));
    let body = through(&validator, trailed).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
}

/// Pitfall 47: what cannot be checked is refused, so nobody gets past the rules by asking for another kind of answer.
#[tokio::test]
async fn what_cannot_be_checked_is_refused() {
    let with = |name: &'static str, value: &'static str| {
        let mut response = full("data: fine\n\n");
        response.headers_mut().insert(name, value.parse().unwrap());
        response
    };
    let rules = || Rules::new().error("deny", text(Pattern::deny("SECRET").unwrap()));
    for validator in [Validator::http(Rules::new()).whole(64, rules()), guarded(Window::default())] {
        assert!(through(&validator, with("content-type", "text/event-stream; charset=utf-8")).await.is_err());
        assert!(through(&validator, with("content-encoding", "br")).await.is_err());
        assert!(through(&validator, with("content-encoding", "identity")).await.is_ok());
        assert!(through(&validator, with("content-type", "text/plain")).await.is_ok());
        assert!(through(&validator, with("content-type", "text/plain; charset=utf-16")).await.is_err());
        // Two parts of a body could be put together.
        let mut part = full("SEC");
        *part.status_mut() = http::StatusCode::PARTIAL_CONTENT;
        assert!(through(&validator, part).await.is_err());
        let mut twice = with("content-type", "text/plain");
        twice.headers_mut().append("content-type", "text/event-stream".parse().unwrap());
        assert!(through(&validator, twice).await.is_err());
        assert_eq!(validator.stats().refused_responses, 5);
    }
    // Without rules for bodies there is nothing to get past.
    let unchecked = Validator::http(Rules::new());
    assert!(through(&unchecked, with("content-type", "text/event-stream")).await.is_ok());
}

/// Pitfall 49: across two chunks, and across two windows.
#[tokio::test]
async fn a_pattern_across_chunks_and_windows_is_found() {
    let window = Window::new(8).overlap(5);
    let (passed, error) =
        read(through(&guarded(window), chunks(vec![b"aSE", b"CRETb"])).await.unwrap()).await;
    assert_eq!((&passed[..], error.is_some()), (&b""[..], true));
    let response = through(&guarded(window), chunks(vec![b"12345SECRET67890 and more"])).await.unwrap();
    let (passed, error) = read(response).await;
    assert_eq!(passed, b"12345SEC", "the window before was clean");
    assert_eq!(Rejected::find(&*error.unwrap()).unwrap().kind(), RejectionKind::InvalidAnswer);
    // What the documentation says can be missed: a match longer than the overlap.
    let response =
        through(&guarded(Window::new(8).overlap(2)), chunks(vec![b"12345SECRET67890"])).await.unwrap();
    assert_eq!(read(response).await.0, b"12345SECRET67890");
}

#[tokio::test]
async fn what_passes_is_what_came() {
    let validator = guarded(Window::new(4));
    let body = through(&validator, full("héllo wörld")).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some("héllo wörld".len() as u64));
    let mut passed = Vec::new();
    let mut body = std::pin::pin!(body);
    while let Some(frame) = body.frame().await {
        passed.extend_from_slice(frame.unwrap().data_ref().unwrap());
        assert_eq!(body.size_hint().exact(), Some(("héllo wörld".len() - passed.len()) as u64));
    }
    assert_eq!(passed, "héllo wörld".as_bytes());

    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let frames = [Ok(Frame::data(Bytes::from_static(b"a"))), Ok(Frame::trailers(trailers.clone()))];
    let trailed = Response::new(BodyExt::boxed(StreamBody::new(stream::iter(frames))));
    let body = through(&validator, trailed).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers));
    assert_eq!(body.to_bytes(), "a");
}

#[tokio::test(start_paused = true)]
async fn a_window_passes_in_time_though_it_is_not_full() {
    let (send, receive) = mpsc::unbounded_channel::<&'static [u8]>();
    let frames = stream::unfold(receive, |mut receive| async move {
        Some((Ok::<_, BoxError>(Frame::data(Bytes::from_static(receive.recv().await?))), receive))
    });
    let window = Window::new(100).within(Duration::from_millis(50));
    let inner = service_fn(|body: Request<_>| {
        std::future::ready(Ok::<_, Infallible>(Response::new(body.into_body())))
    });
    let validator = Validator::http(Rules::new())
        .window(window, Rules::new().error("deny", Pattern::deny("SECRET").unwrap()));
    let service = validator.layer(Level::Moderate).layer(inner);
    let response = service.oneshot(Request::new(Box::pin(StreamBody::new(frames)))).await.unwrap();
    let mut body = Box::pin(response.into_body());

    let begin = Instant::now();
    send.send(b"a SEC").unwrap();
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(
        (frame.into_data().unwrap(), begin.elapsed()),
        (Bytes::from_static(b"a SEC"), Duration::from_millis(50))
    );
    // The time counts from the oldest byte that is held.
    send.send(b"x").unwrap();
    assert!(body.frame().now_or_never().is_none());
    tokio::time::advance(Duration::from_millis(30)).await;
    send.send(b"y").unwrap();
    let frame = body.frame().await.unwrap().unwrap();
    assert_eq!(
        (frame.into_data().unwrap(), begin.elapsed()),
        (Bytes::from_static(b"xy"), Duration::from_millis(100))
    );
    // And what time has cut is put together again.
    send.send(b"SEC").unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    send.send(b"RET").unwrap();
    assert!(body.frame().await.unwrap().is_err());
    assert!(send.is_closed(), "the upstream's body is dropped, so that it stops");
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn an_error_comes_after_what_was_held() {
    let inner = service_fn(|_: Request<Bytes>| {
        let frames = stream::iter([Ok(Frame::data(Bytes::from_static(b"fine"))), Err("cut")]);
        std::future::ready(Ok::<_, Infallible>(Response::new(StreamBody::new(frames))))
    });
    let service = guarded(Window::default()).layer(Level::Moderate).layer(inner);
    let response = service.oneshot(Request::new(Bytes::new())).await.unwrap();
    let mut body = Box::pin(response.into_body());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "fine");
    assert_eq!(body.frame().await.unwrap().unwrap_err().to_string(), "cut");
    assert!(body.frame().await.is_none());
}

#[test]
fn messages_are_requests_and_responses() {
    assert_eq!(Message::body(&Request::new("a")), b"a");
    assert_eq!(Message::body(&Response::new("b")), b"b");
}
