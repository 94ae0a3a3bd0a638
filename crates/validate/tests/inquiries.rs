//! Rules that are services.

use std::{
    convert::Infallible,
    future::{pending, ready},
    panic::panic_any,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_validate::{
    Found, Inquiry, Level, OnRuleError, Policy, Report, Rules, Severity, Stats, Validator, must,
};
use futures_util::FutureExt;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

const SECOND: Duration = Duration::from_secs(1);

/// A service that says after a while whether there is something in a text.
fn judge(
    asked: &Arc<Mutex<Vec<String>>>,
    takes: Duration,
) -> impl Service<String, Response = bool, Error = BoxError, Future: Send> + Clone + use<> {
    let asked = asked.clone();
    service_fn(move |text: String| {
        asked.lock().unwrap().push(text.clone());
        async move {
            sleep(takes).await;
            match text.as_str() {
                "down" => Err("down".into()),
                "panic" => panic_any("the service panics"),
                "never" => pending().await,
                text => Ok(text.contains("bad")),
            }
        }
    })
}

fn not_bad() -> impl bartizan_validate::Rule<bool> + Send + Sync + 'static {
    |bad: &bool, found: &mut Found<'_>| {
        if *bad {
            found.violation("/there", "it is bad");
        }
    }
}

fn inquiry(asked: &Arc<Mutex<Vec<String>>>, takes: Duration) -> Inquiry<String> {
    let question = |text: &String| (!text.is_empty()).then(|| text.clone());
    Inquiry::new(question, judge(asked, takes), not_bad()).within(10 * SECOND)
}

fn echo() -> impl Service<String, Response = String, Error = BoxError, Future: Send> + Clone {
    service_fn(|text: String| ready(Ok(text)))
}

async fn call<A: bartizan_validate::Answers<String, Response = String>>(
    validator: &Validator<String, A>,
    policy: impl Into<Policy>,
    text: &str,
) -> Result<String, BoxError> {
    validator.layer(policy).layer(echo()).oneshot(text.to_owned()).await
}

fn told(report: &Report) -> Vec<String> {
    report.violations().iter().map(|it| format!("{}{}", it.rule(), it.pointer())).collect()
}

#[tokio::test(start_paused = true)]
async fn what_a_service_says_is_what_a_rule_says() {
    let asked = Arc::default();
    let reports: Arc<Mutex<Vec<Vec<String>>>> = Arc::default();
    let validator = |severity| {
        let reports = reports.clone();
        let rules = Rules::new()
            .inquire("judge", severity, inquiry(&asked, SECOND))
            .warn("short", must("short", |text: &String| text.len() < 8))
            .on_report(move |_, report| reports.lock().unwrap().push(told(report)));
        Validator::new(rules)
    };
    let begin = Instant::now();
    assert_eq!(call(&validator(Severity::Warn), Level::Strict, "fine").await.unwrap(), "fine");
    assert_eq!(begin.elapsed(), SECOND);
    let error = call(&validator(Severity::Error), Level::Moderate, "bad, and long").await.unwrap_err();
    assert_eq!(told(Report::find(&*error).unwrap()), ["short", "judge/there"], "behind the others");
    assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::Invalid);
    let lenient = validator(Severity::Error);
    assert_eq!(call(&lenient, Level::Lenient, "bad, and long").await.unwrap(), "bad, and long");
    assert_eq!(*reports.lock().unwrap(), [["short", "judge/there"]]);
    assert_eq!(lenient.stats(), Stats { reported: 1, ..Stats::default() });

    // Nobody is asked about what is refused anyway, nor where there is nothing to ask.
    asked.lock().unwrap().clear();
    assert!(call(&validator(Severity::Safety), Level::Strict, "bad, and long").await.is_err());
    assert!(call(&validator(Severity::Safety), Level::Strict, "").await.is_ok());
    let switched_off = validator(Severity::Safety);
    switched_off.disable();
    assert!(call(&switched_off, Level::Strict, "bad").await.is_ok());
    assert!(asked.lock().unwrap().is_empty());

    // One violation instead of all: the first that refuses.
    let policy = Policy::new(Level::Moderate).first();
    let error = call(&validator(Severity::Error), policy, "bad, and long").await.unwrap_err();
    assert_eq!(told(Report::find(&*error).unwrap()), ["judge/there"]);
}

/// A service that fails is a rule that fails: closed at strict and moderate, open at lenient, or as is said.
#[tokio::test(start_paused = true)]
async fn a_service_that_fails_is_a_rule_that_fails() {
    let asked = Arc::default();
    let broken = tower::util::service_fn(|_: String| ready(Ok::<_, BoxError>(false)));
    let of = |inquiry| Validator::new(Rules::new().inquire("judge", Severity::Warn, inquiry));
    let question = |text: &String| Some(text.clone());
    for (inquiry, text, takes) in [
        (inquiry(&asked, SECOND), "down", SECOND),
        (inquiry(&asked, SECOND), "panic", SECOND),
        (inquiry(&asked, SECOND), "never", 10 * SECOND),
        (inquiry(&asked, 11 * SECOND), "fine", 10 * SECOND),
        (Inquiry::new(question, NeverReady { says: None }, not_bad()).within(3 * SECOND), "fine", 3 * SECOND),
        (Inquiry::new(question, NeverReady { says: Some("broken") }, not_bad()), "fine", Duration::ZERO),
        (
            Inquiry::new(|_: &String| -> Option<String> { panic!("no question") }, broken, not_bad()),
            "",
            Duration::ZERO,
        ),
        (
            Inquiry::new(
                question,
                service_fn(|_| -> std::future::Ready<Result<bool, BoxError>> { panic!("in call") }),
                not_bad(),
            ),
            "",
            Duration::ZERO,
        ),
        (
            Inquiry::new(question, broken, must("no bug", |_: &bool| panic!("in the rule"))),
            "",
            Duration::ZERO,
        ),
    ] {
        let validator = of(inquiry);
        for (policy, passes) in [
            (Policy::new(Level::Strict), false),
            (Policy::new(Level::Moderate), false),
            (Policy::new(Level::Lenient), true),
            (Policy::new(Level::Strict).on_rule_error(OnRuleError::Open), true),
            (Policy::new(Level::Lenient).on_rule_error(OnRuleError::Closed), false),
        ] {
            let begin = Instant::now();
            let result = call(&validator, policy, text).await;
            assert_eq!(begin.elapsed(), takes, "{text}");
            assert_eq!(result.is_ok(), passes, "{text}, {policy:?}");
            if let Err(error) = result {
                let report = Report::find(&*error).unwrap();
                assert!(report.violations()[0].is_failure() && report.violations().len() == 1);
            }
        }
        assert_eq!(validator.stats().failures, 5);
    }
}

/// A service that never becomes ready, or says that it cannot.
#[derive(Clone)]
struct NeverReady {
    says: Option<&'static str>,
}

impl Service<String> for NeverReady {
    type Response = bool;
    type Error = BoxError;
    type Future = std::future::Ready<Result<bool, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.says.map_or(Poll::Pending, |says| Poll::Ready(Err(says.into())))
    }

    fn call(&mut self, _: String) -> Self::Future {
        panic!("it was never ready")
    }
}

/// The service is called where it is ready, and waits its turn.
#[tokio::test(start_paused = true)]
async fn readiness_is_never_taken_for_granted() {
    let asked = Arc::default();
    let limited = ConcurrencyLimitLayer::new(1).layer(judge(&asked, SECOND));
    let inquiry = Inquiry::new(|text: &String| Some(text.clone()), limited, not_bad());
    let validator = Validator::new(Rules::new().inquire("judge", Severity::Error, inquiry));
    let begin = Instant::now();
    let three = futures_util::future::join_all((0..3).map(|_| call(&validator, Level::Strict, "fine"))).await;
    assert!(three.iter().all(Result::is_ok));
    assert_eq!(begin.elapsed(), 3 * SECOND);
}

/// What is below is not held while somebody is asked, and is made ready before it is called.
#[tokio::test(start_paused = true)]
async fn nothing_below_is_held_meanwhile() {
    let asked = Arc::default();
    let validator = Validator::new(Rules::new().inquire("judge", Severity::Error, inquiry(&asked, SECOND)));
    let slow = service_fn(|text: String| async move {
        sleep(5 * SECOND).await;
        Ok::<_, BoxError>(text)
    });
    let limited = ConcurrencyLimitLayer::new(1).layer(slow);
    let mut service = validator.layer(Level::Strict).layer(limited.clone());
    let mut other = limited;
    service.ready().await.unwrap();
    let call = service.call("fine".to_owned());
    assert!(other.ready().now_or_never().is_some(), "neither by readiness nor by the call");
    let mut call = std::pin::pin!(call);
    assert!(call.as_mut().now_or_never().is_none());
    let begin = Instant::now();
    let direct = other.call("direct".to_owned());
    assert_eq!(direct.await.unwrap(), "direct");
    drop(other);
    assert_eq!(call.await.unwrap(), "fine", "once there is room");
    assert_eq!(begin.elapsed(), 10 * SECOND);
}

struct Counts(Arc<AtomicUsize>);

impl Drop for Counts {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn all_are_asked_side_by_side_and_dropped_together() {
    let under_way = Arc::new(AtomicUsize::new(0));
    let one = |takes: Duration| {
        let under_way = under_way.clone();
        let service = service_fn(move |_: String| {
            under_way.fetch_add(1, SeqCst);
            let counts = Counts(under_way.clone());
            async move {
                sleep(takes).await;
                drop(counts);
                Ok::<_, Infallible>(true)
            }
        });
        Inquiry::new(|text: &String| Some(text.clone()), service, not_bad())
    };
    let rules = Rules::new().inquire("slow", Severity::Error, one(2 * SECOND)).inquire(
        "fast",
        Severity::Error,
        one(SECOND),
    );
    let validator = Validator::new(rules);
    let begin = Instant::now();
    let error = call(&validator, Level::Strict, "x").await.unwrap_err();
    assert_eq!(begin.elapsed(), 2 * SECOND);
    assert_eq!(told(Report::find(&*error).unwrap()), ["slow/there", "fast/there"], "in their order");

    let mut dropped = Box::pin(call(&validator, Level::Strict, "x"));
    assert!(dropped.as_mut().now_or_never().is_none());
    assert_eq!(under_way.load(SeqCst), 2);
    drop(dropped);
    assert_eq!(under_way.load(SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_that_are_values_are_asked_about() {
    let asked = Arc::default();
    let validator = Validator::new(Rules::new()).answers(Rules::new().inquire(
        "judge",
        Severity::Error,
        inquiry(&asked, SECOND),
    ));
    assert_eq!(call(&validator, Level::Strict, "fine").await.unwrap(), "fine");
    let error = call(&validator, Level::Strict, "bad").await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::InvalidAnswer);
    assert_eq!(call(&validator, Level::Lenient, "bad").await.unwrap(), "bad");
    let stats = Stats { refused_responses: 1, reported: 1, ..Stats::default() };
    assert_eq!(validator.stats(), stats);
}

#[cfg(feature = "http")]
mod bodies {
    use bartizan_validate::{Checked, Window};
    use bytes::Bytes;
    use http::{Request, Response};
    use http_body::{Body, Frame};
    use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
    use tokio::sync::mpsc;

    use super::*;

    type Upstream = UnsyncBoxBody<Bytes, Infallible>;

    async fn through<A>(
        validator: &Validator<Request<Bytes>, A>,
        body: Upstream,
    ) -> Result<Response<Checked<Upstream>>, BoxError>
    where
        A: bartizan_validate::Answers<Response<Upstream>, Response = Response<Checked<Upstream>>>,
    {
        let body = Mutex::new(Some(body));
        let inner = service_fn(|_: Request<Bytes>| {
            ready(Ok::<_, Infallible>(Response::new(body.lock().unwrap().take().unwrap())))
        });
        validator.layer(Level::Moderate).layer(inner).oneshot(Request::new(Bytes::new())).await
    }

    fn of_text(asked: &Arc<Mutex<Vec<String>>>) -> Inquiry<str> {
        Inquiry::new(|text: &str| Some(text.to_owned()), judge(asked, SECOND), not_bad())
    }

    #[tokio::test(start_paused = true)]
    async fn whole_bodies() {
        let asked = Arc::default();
        let question =
            |response: &Response<Bytes>| Some(String::from_utf8_lossy(response.body()).into_owned());
        let inquiry = Inquiry::new(question, judge(&asked, SECOND), not_bad());
        let validator =
            Validator::http(Rules::new()).whole(64, Rules::new().inquire("judge", Severity::Error, inquiry));
        let full = |text: &'static str| UnsyncBoxBody::new(Full::<Bytes>::from(text));
        let response = through(&validator, full("fine")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "fine");
        let error = through(&validator, full("bad")).await.unwrap_err();
        assert_eq!(told(Report::find(&*error).unwrap()), ["judge/there"]);
        assert_eq!(*asked.lock().unwrap(), ["fine", "bad"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_waits_for_what_is_said_of_it() {
        let asked = Arc::default();
        let rules = Rules::new().inquire("judge", Severity::Error, of_text(&asked));
        let validator = Validator::http(Rules::new()).window(Window::new(4).overlap(2), rules);
        let (send, mut receive) = mpsc::unbounded_channel::<&'static str>();
        let frames = futures_util::stream::poll_fn(move |cx| {
            receive.poll_recv(cx).map(|next| next.map(|text| Ok(Frame::data(Bytes::from(text)))))
        });
        let response = through(&validator, UnsyncBoxBody::new(StreamBody::new(frames))).await.unwrap();
        let mut body = Box::pin(response.into_body());
        let begin = Instant::now();
        send.send("abcdef").unwrap();
        assert!(body.frame().now_or_never().is_none());
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().lower(), 6, "what waits is still to come");
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!((frame.into_data().unwrap(), begin.elapsed()), (Bytes::from("abcd"), SECOND));
        send.send("ghbad").unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!((frame.into_data().unwrap(), begin.elapsed()), (Bytes::from("efgh"), 2 * SECOND));
        send.send("x").unwrap();
        let error = body.frame().await.unwrap().unwrap_err();
        assert_eq!(told(Report::find(&*error).unwrap()), ["judge/there"]);
        assert!(send.is_closed(), "the body below is dropped");
        assert!(body.is_end_stream() && body.frame().await.is_none());
        assert_eq!(*asked.lock().unwrap(), ["abcd", "cdefgh", "ghbadx"], "with the end of what passed");
        assert_eq!(validator.stats().refused_responses, 1);
    }

    #[cfg(feature = "json")]
    #[tokio::test(start_paused = true)]
    async fn json_and_texts_of_event_streams() {
        use bartizan_validate::Json;
        use serde_json::{Value, json};

        let asked = Arc::default();
        let question = |value: &Value| value["text"].as_str().map(str::to_owned);
        let of_json = Inquiry::new(question, judge(&asked, SECOND), not_bad());
        let rules = Rules::new().json(Json::new(), Rules::new().inquire("judge", Severity::Error, of_json));
        let validator = Validator::http(rules)
            .events(Window::new(64), Rules::new().inquire("events", Severity::Error, of_text(&asked)));
        let events = |texts: &[&str]| {
            let event = |(index, text)| {
                format!("data: {}\n\n", json!({"choices": [{"index": index, "delta": text}]}))
            };
            texts.iter().enumerate().map(event).collect::<String>()
        };
        let call = async |request: &'static str, texts: &[&str]| {
            let body = Full::<Bytes>::from(events(texts));
            let inner = service_fn(move |_: Request<Bytes>| {
                let response = Response::builder().header("content-type", "text/event-stream");
                ready(Ok::<_, Infallible>(response.body(body.clone()).unwrap()))
            });
            let service = validator.layer(Level::Moderate).layer(inner);
            let response = service.oneshot(Request::new(Bytes::from(request))).await?;
            Ok::<_, BoxError>(response.into_body().collect().await?.to_bytes())
        };
        let begin = Instant::now();
        assert_eq!(call(r#"{"text":"a"}"#, &["b", "c"]).await.unwrap(), events(&["b", "c"]));
        assert_eq!(begin.elapsed(), 2 * SECOND, "texts of one window side by side");
        assert_eq!(*asked.lock().unwrap(), ["a", "b", "c"]);
        let error = call(r#"{"text":"bad"}"#, &[]).await.unwrap_err();
        assert_eq!(told(Report::find(&*error).unwrap()), ["judge/there"]);
        let error = call("{}", &["b", "bad"]).await.unwrap_err();
        assert_eq!(told(Report::find(&*error).unwrap()), ["events/there"]);
    }
}
