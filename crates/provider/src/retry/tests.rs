use std::sync::atomic::AtomicUsize;

use bartizan_core::RejectionKind;
use http::StatusCode;
use tower::{ServiceBuilder, ServiceExt, retry::budget::TpsBudget, service_fn};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn response(status: u16, headers: &[(&str, &str)]) -> Response<()> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(()).unwrap()
}

/// As a provider answers it, with its error in the extensions.
fn provided(status: u16, headers: &[(&str, &str)], body: &str) -> Response<()> {
    let mut response = response(status, headers);
    let status = StatusCode::from_u16(status).unwrap();
    let error = Error::of_response(status, response.headers(), body.as_bytes(), &[]);
    response.extensions_mut().insert(Arc::new(error));
    response
}

#[test]
fn what_may_be_better_the_next_time_is_tried_again() {
    let again = Said::Again(RetryAfter::Unknown);
    for status in [408, 409, 429, 500, 502, 503, 504, 529] {
        assert_eq!(of_response(&response(status, &[])), again, "{status}");
        assert_eq!(of_response(&provided(status, &[], "")), again, "{status}");
    }
    for status in [400, 401, 403, 404, 413, 422] {
        assert_eq!(of_response(&response(status, &[])), Said::Never, "{status}");
        assert_eq!(of_response(&provided(status, &[], "")), Said::Never, "{status}");
    }
    assert_eq!(of_response(&response(200, &[])), Said::Fine);
}

/// Pitfall 31: a quota that is used up is no rate limit, whatever its status.
#[test]
fn what_cannot_succeed_is_not() {
    let spent = r#"{"error":{"message":"You exceeded your current quota","code":"insufficient_quota"}}"#;
    assert_eq!(of_response(&provided(429, &[("retry-after", "1")], spent)), Said::Never);
    let long = r#"{"error":{"message":"too long","code":"context_length_exceeded"}}"#;
    assert_eq!(of_response(&provided(500, &[], long)), Said::Never);
}

#[test]
fn the_header_overrides_all() {
    let (yes, no) = (("x-should-retry", "true"), ("x-should-retry", "false"));
    assert_eq!(of_response(&response(400, &[yes])), Said::Again(RetryAfter::Unknown));
    let wait = Said::Again(RetryAfter::After(3 * SECOND));
    assert_eq!(of_response(&response(400, &[yes, ("retry-after", "3")])), wait);
    assert_eq!(of_response(&response(503, &[no])), Said::Never);
    assert_eq!(of_response(&provided(503, &[no], "")), Said::Never);
    assert_eq!(of_response(&response(200, &[no])), Said::Fine);
}

#[test]
fn errors_by_their_class() {
    let of = |error: BoxError| of_error(&*error);
    assert_eq!(of(Error::new(Class::Connect, "no").into()), Said::Again(RetryAfter::Unknown));
    assert_eq!(of(Error::new(Class::ContextLength, "no").into()), Said::Never);
    let wait = RetryAfter::After(7 * SECOND);
    assert_eq!(of(Error::new(Class::Overloaded, "no").with_retry_after(wait).into()), Said::Again(wait));
    assert_eq!(
        of(Error::new(Class::Overloaded, "no").with_retry_after(RetryAfter::Never).into()),
        Said::Never
    );
    let refused = |kind| of(Rejected::new(kind, "layer").with_retry_after(wait).into());
    assert_eq!(refused(RejectionKind::Exhausted), Said::Again(wait));
    for kind in [RejectionKind::CircuitOpen, RejectionKind::RateLimited, RejectionKind::Invalid] {
        assert_eq!(refused(kind), Said::Never, "{kind}");
    }
    let told =
        Error::new(Class::Overloaded, "open").with_source(Rejected::new(RejectionKind::CircuitOpen, "layer"));
    assert_eq!(of(told.into()), Said::Never, "a refusal in other words");
    let inner = Error::new(Class::Auth, "no");
    assert_eq!(of(std::io::Error::other(inner).into()), Said::Never, "however wrapped");
    assert_eq!(of("the wire was cut".into()), Said::Again(RetryAfter::Unknown));
}

fn waits(mut policy: RetryPolicy, request: &Request<()>, said: Said) -> Vec<Duration> {
    std::iter::from_fn(|| policy.next(request, said)).take(20).collect()
}

#[test]
fn waits_double_up_to_a_bound_and_vary() {
    let policy = RetryPolicy::new().retries(20);
    let request = Request::new(());
    for _ in 0..50 {
        for (n, wait) in waits(policy.clone(), &request, Said::Again(RetryAfter::Unknown)).iter().enumerate()
        {
            let full = (SECOND / 2 * 2_u32.pow(u32::try_from(n.min(10)).unwrap())).min(8 * SECOND);
            assert!((full * 3 / 4..=full).contains(wait), "{n}: {wait:?}");
        }
    }
    let mut seen: Vec<_> = (0..50).map(|_| policy.delay()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 40, "{} different waits", seen.len());
    let far = RetryPolicy { made: u32::MAX, ..RetryPolicy::new().first_delay(Duration::MAX) };
    assert!(far.delay() <= 8 * SECOND);
}

#[test]
fn upstreams_are_obeyed_to_the_letter_or_left() {
    let request = Request::new(());
    let of = |wait| waits(RetryPolicy::new(), &request, Said::Again(RetryAfter::After(wait)));
    assert_eq!(of(7 * SECOND), [7 * SECOND; 2]);
    assert_eq!(of(60 * SECOND), [60 * SECOND; 2]);
    assert_eq!(of(61 * SECOND), [Duration::ZERO; 0]);
    assert!(waits(RetryPolicy::new(), &request, Said::Again(RetryAfter::Never)).is_empty());
    assert!(waits(RetryPolicy::new().retries(0), &request, Said::Again(RetryAfter::Unknown)).is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_requests_budget_bounds_calls_and_time() {
    let mut request = Request::new(());
    let soon = Said::Again(RetryAfter::After(4 * SECOND));
    let policy = RetryPolicy::new().retries(9);
    request.extensions_mut().insert(Budget::new(3));
    assert_eq!(waits(policy.clone(), &request, soon).len(), 2);
    assert_eq!(waits(policy.clone(), &request, soon).len(), 0, "nothing is left");

    let in_five = Instant::now() + 5 * SECOND;
    request.extensions_mut().insert(Budget::until(9, in_five.into_std()));
    assert!(policy.clone().next(&request, soon).is_some());
    tokio::time::advance(SECOND).await;
    assert_eq!(policy.clone().next(&request, soon), None, "it would begin when the time is over");
    assert_eq!(request.extensions().get::<Budget>().unwrap().left(), 7, "and is not taken from the budget");
}

#[tokio::test(start_paused = true)]
async fn a_share_bounds_all_requests_together() {
    let share = Arc::new(TpsBudget::new(10 * SECOND, 0, 0.5));
    let policy = RetryPolicy::new().retries(9).share(share);
    let request = Request::new(());
    for _ in 0..10 {
        assert_eq!(policy.clone().next(&request, Said::Fine), None);
    }
    let again = (0..20).filter(|_| policy.clone().next(&request, Said::Again(RetryAfter::Unknown)).is_some());
    assert_eq!(again.count(), 5);
}

/// What comes of calls that end like this, counted from 1, and of how many.
async fn tried<E>(
    retries: u32,
    request: Request<()>,
    answer: impl Fn(usize) -> Result<Response<()>, E> + Clone,
) -> (Result<Response<()>, E>, usize)
where
    RetryPolicy: Policy<Request<()>, Response<()>, E, Future = Sleep>,
{
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let inner = service_fn(move |_| std::future::ready(answer(counted.fetch_add(1, Relaxed) + 1)));
    let policy = RetryPolicy::new().retries(retries);
    let result = ServiceBuilder::new().retry(policy).service(inner).oneshot(request).await;
    (result, calls.load(Relaxed))
}

const SHOULD: &str = "x-should-retry";

fn header(answer: Result<Response<()>, BoxError>, name: &str) -> Option<String> {
    Some(answer.unwrap().headers().get(name)?.to_str().unwrap().to_owned())
}

/// Pitfall 59: a client would only do again what was done already.
#[tokio::test(start_paused = true)]
async fn who_asks_is_told_that_it_was_tried_again() {
    let failing =
        |_| Ok::<_, BoxError>(provided(503, &[("retry-after", "7"), ("x-should-retry", "true")], ""));
    let (answer, calls) = tried(2, Request::new(()), failing).await;
    assert_eq!((calls, answer.as_ref().unwrap().status().as_u16()), (3, 503));
    assert_eq!(of_response(answer.as_ref().unwrap()), Said::Never, "nor does another policy try again");
    assert_eq!(answer.as_ref().unwrap().headers()["retry-after"], "7");
    assert_eq!(header(answer, SHOULD), Some("false".into()));

    // However it ends: nothing is left of the budget, or there is no time.
    let mut request = Request::new(());
    request.extensions_mut().insert(Budget::new(2));
    let (answer, calls) = tried(9, request, failing).await;
    assert_eq!((calls, header(answer, SHOULD)), (2, Some("false".into())));
    let patience = |n| Ok::<_, BoxError>(provided(503, &[("retry-after", ["", "1", "70"][n])], ""));
    let (answer, calls) = tried(9, Request::new(()), patience).await;
    assert_eq!((calls, header(answer, SHOULD)), (2, Some("false".into())));

    // It was not tried again, or it is an answer.
    for retries in [0, 1] {
        let patience = |_| Ok::<_, BoxError>(provided(503, &[("retry-after", "70")], ""));
        let (answer, calls) = tried(retries, Request::new(()), patience).await;
        assert_eq!((calls, header(answer, SHOULD)), (1, None));
    }
    let mended = |n| Ok::<_, BoxError>(if n == 1 { provided(503, &[], "") } else { response(200, &[]) });
    let (answer, calls) = tried(1, Request::new(()), mended).await;
    assert_eq!((calls, header(answer, SHOULD)), (2, None));
}

#[tokio::test(start_paused = true)]
async fn errors_tell_it_too() {
    let failing = |_| Err(Error::new(Class::Connect, "refused").with_param("x"));
    let error = tried(2, Request::new(()), failing).await.0.unwrap_err();
    assert_eq!(error.to_string(), "cannot connect: refused (param `x`)");
    assert_eq!((error.retry_after(), of_error(&error)), (RetryAfter::Never, Said::Never));
    assert_eq!(error.to_response().headers()["x-should-retry"], "false");
    let once = tried(0, Request::new(()), failing).await.0.unwrap_err();
    assert_eq!(once.retry_after(), RetryAfter::Unknown);

    // In a box, and in whatever has been wrapped around it, which is still there.
    let boxed = tried(1, Request::new(()), |n| Err::<_, BoxError>(failing(n).unwrap_err().into())).await.0;
    assert!(boxed.unwrap_err().downcast::<Error>().unwrap().source().is_none());
    let wrapped = |_| {
        Err::<Response<()>, BoxError>(
            std::io::Error::other(Error::new(Class::Timeout, "late").with_code("slow")).into(),
        )
    };
    let error = tried(1, Request::new(()), wrapped).await.0.unwrap_err().downcast::<Error>().unwrap();
    assert_eq!((error.class(), error.message(), error.code()), (Class::Timeout, "late", Some("slow")));
    assert_eq!(error.retry_after(), RetryAfter::Never);
    assert!(error.source().unwrap().is::<std::io::Error>());

    // What is not ours to tell stays as it is.
    let refused = |_| {
        Err::<Response<()>, BoxError>(
            Rejected::new(RejectionKind::Exhausted, "layer")
                .with_source(Error::new(Class::Connect, "no"))
                .into(),
        )
    };
    assert!(tried(1, Request::new(()), refused).await.0.unwrap_err().is::<Rejected>());
    let strange = |_| Err::<Response<()>, BoxError>("the wire was cut".into());
    assert_eq!(tried(1, Request::new(()), strange).await.0.unwrap_err().to_string(), "the wire was cut");
}
