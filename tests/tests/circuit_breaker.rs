//! What the circuit breaker layer allocates, exactly; what many keys take; and what headers say.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Mutex,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_circuit_breaker::{CircuitBreaker, CircuitBreakers, Settings, State, Window};
use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_tests::alloc::{Counted, Counting, allocations, counted};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, Service, ServiceExt, service_fn};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SECOND: Duration = Duration::from_secs(1);

type Body = Full<Bytes>;
type Inner = tower::util::ServiceFn<fn(Request<Body>) -> Ready<Result<Response<Body>, Infallible>>>;

fn inner(request: Request<Body>) -> Ready<Result<Response<Body>, Infallible>> {
    ready(Ok(Response::new(request.into_body())))
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("nobody waits here"),
    }
}

/// Calls once so that the key is known, and then again, the body to its end included.
fn second_call<L, B>(layer: &L) -> (Result<(), BoxError>, Counted)
where
    L: Layer<Inner>,
    L::Service: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    B: http_body::Body + Unpin,
{
    let mut service = layer.layer(service_fn(inner as fn(_) -> _));
    let mut cx = Context::from_waker(Waker::noop());
    let request = || {
        let body = Full::new(Bytes::from_static(b"a body"));
        Request::builder().uri("http://a.example/").body(body).unwrap()
    };
    let mut call = |request| {
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut body = now(service.call(request))?.into_body();
        assert!(now(body.frame()).is_some_and(|frame| frame.is_ok()));
        Ok(())
    };
    let _ = call(request());
    let again = request();
    allocations(|| call(again))
}

fn host(request: &Request<Body>) -> Option<&str> {
    request.uri().host()
}

#[test]
fn an_admitted_call_allocates_nothing() {
    let breaker = |settings| CircuitBreaker::new(settings);
    let consecutive = breaker(Settings::consecutive(5));
    let calls = breaker(Settings::window(Window::of_calls(100).failures(50).slow(SECOND, 50)));
    let time = breaker(Settings::window(Window::of_time(SECOND).failures(50)));
    let hosts: CircuitBreakers<String> = CircuitBreakers::new(Settings::consecutive(5));
    for (what, (result, counted)) in [
        ("consecutive", second_call(&consecutive.layer())),
        ("until the body ends", second_call(&consecutive.layer().server_errors().until_body_end())),
        ("backpressure", second_call(&consecutive.layer().backpressure())),
        ("a window of calls", second_call(&calls.layer())),
        ("a window of time", second_call(&time.layer().until_body_end())),
        ("by_ref", second_call(&hosts.by_ref(host))),
    ] {
        assert!(result.is_ok());
        assert_eq!(counted.allocated, 0, "{what}");
    }
}

#[test]
fn a_refusal_allocates_once_and_a_probe_nothing() {
    let open = CircuitBreaker::new(Settings::consecutive(1));
    open.try_acquire().unwrap().failure();
    let hosts: CircuitBreakers<String> = CircuitBreakers::new(Settings::consecutive(1));
    let host_breaker = hosts.get("a.example").unwrap();
    host_breaker.try_acquire().unwrap().failure();
    for (result, counted) in [
        second_call(&open.layer()),
        second_call(&open.layer().server_errors().until_body_end()),
        second_call(&hosts.by_ref(host)),
    ] {
        let error = result.expect_err("it is open");
        assert_eq!(Rejected::find(&*error).map(Rejected::kind), Some(RejectionKind::CircuitOpen));
        assert_eq!(counted.allocated, 1);
    }

    let half_open =
        CircuitBreaker::new(Settings::consecutive(1).open_for(Duration::from_nanos(1)).successes(9));
    half_open.try_acquire().unwrap().failure();
    let (result, counted) = second_call(&half_open.layer());
    assert!(result.is_ok());
    assert_eq!(counted.allocated, 0);
}

/// Breakers take the places of those that are gone, whichever thread those were of: tests that look at memory run alone.
static ALONE: Mutex<()> = Mutex::new(());

/// A breaker that is gone leaves its place to the next one: making and dropping them takes no memory.
#[test]
fn breakers_that_are_gone_take_no_memory() {
    let _alone = ALONE.lock();
    let cycle = || {
        let settings = Settings::consecutive(3).or_window(Window::of_calls(1_000).failures(50));
        let breaker = CircuitBreaker::new(settings);
        breaker.try_acquire().unwrap().failure();
    };
    cycle();
    let before = counted().live;
    (0..1_000).for_each(|_| cycle());
    // A thousand rings would be a million bytes.
    assert!(counted().live - before < 100_000, "{} bytes", counted().live - before);
}

/// Keys that come and go, many more than there is room for.
#[test]
fn keys_are_bounded_and_only_those_without_history_are_dropped() {
    let _alone = ALONE.lock();
    let hosts: CircuitBreakers<u64> = CircuitBreakers::new(Settings::consecutive(2)).max_keys(100);
    for bad in 0..50 {
        hosts.get(&bad).expect("there is room").try_acquire().unwrap().failure();
    }
    let held = hosts.get(&1_000).expect("there is room");
    let under_way = hosts.get(&1_001).expect("there is room").try_acquire().unwrap();
    let before = counted().live;
    for good in 2_000..100_000 {
        if let Some(breaker) = hosts.get(&good) {
            breaker.try_acquire().unwrap().success();
        }
        assert!(good % 997 > 0 || hosts.stats().keys <= 100);
    }
    assert!(counted().live - before < 50_000, "{} bytes", counted().live - before);
    for bad in 0..50 {
        hosts.get(&bad).expect("it is remembered").try_acquire().unwrap().failure();
        assert!(hosts.get(&bad).unwrap().try_acquire().is_err(), "{bad} was forgotten");
    }
    held.force_open();
    assert!(hosts.get(&1_000).unwrap().try_acquire().is_err(), "whoever holds a breaker keeps it");
    drop(under_way);
    // Nobody can go any more: further keys pass, and that is counted.
    for other in 200_000..200_100 {
        if let Some(breaker) = hosts.get(&other) {
            breaker.force_open();
        }
    }
    let stats = hosts.stats();
    assert_eq!((stats.keys, stats.open), (100, 100));
    assert!(hosts.get(&300_000).is_none());
    let layer = hosts.by(|key: &u64| Some(*key));
    let mut service = layer.layer(service_fn(|key: u64| ready(Ok::<_, Infallible>(key))));
    assert_eq!(now(service.call(300_000)).unwrap(), 300_000);
    assert_eq!(hosts.stats().unwatched, 1);
}

/// What the failures before said counts, in the forms that HTTP has.
#[tokio::test(start_paused = true)]
async fn retry_after_headers_lengthen_the_open_period() {
    let breaker = CircuitBreaker::new(Settings::consecutive(1).open_for(SECOND));
    let busy = |_: ()| {
        ready(Ok::<_, Infallible>(
            Response::builder().status(503).header("retry-after-ms", "7500").body(()).unwrap(),
        ))
    };
    let mut service = breaker.layer().server_errors().layer(service_fn(busy));
    assert!(now(service.call(())).is_ok());
    assert_eq!(breaker.stats().retry_after, RetryAfter::After(Duration::from_millis(7500)));
}

/// A stream: a chunk, and then its end, or an error, a panic, or nothing any more.
#[derive(Clone, Copy)]
enum Stream {
    Ends,
    BreaksOff,
    Panics,
    Stalls,
}

type Streamed = StreamBody<stream::BoxStream<'static, Result<Frame<Bytes>, BoxError>>>;

fn streamed(status: u16, then: Stream) -> Response<Streamed> {
    let chunk = stream::iter([Ok(Frame::data(Bytes::from_static(b"a chunk")))]);
    let body = match then {
        Stream::Ends => chunk.boxed(),
        Stream::BreaksOff => chunk.chain(stream::iter([Err("it breaks off".into())])).boxed(),
        Stream::Panics => chunk.chain(stream::poll_fn(|_| panic!("in the body"))).boxed(),
        Stream::Stalls => chunk.chain(stream::pending()).boxed(),
    };
    Response::builder().status(status).body(StreamBody::new(body)).unwrap()
}

async fn ask(
    breaker: &CircuitBreaker,
    status: u16,
    then: Stream,
) -> Result<impl http_body::Body<Data = Bytes, Error = BoxError> + Unpin + use<>, BoxError> {
    let inner = service_fn(move |()| ready(Ok::<_, Infallible>(streamed(status, then))));
    let service = breaker.layer().server_errors().until_body_end().layer(inner);
    Ok(service.oneshot(()).await?.into_body())
}

/// Pitfall 30: a stream that is cut after a good head.
#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_off_is_a_failure() {
    let breaker = CircuitBreaker::new(Settings::consecutive(2).open_for(SECOND));
    for state in [State::Closed, State::Open] {
        let body = ask(&breaker, 200, Stream::BreaksOff).await.unwrap();
        assert!(body.collect().await.is_err());
        assert_eq!(breaker.state(), state);
    }
    // A probe's place is taken until its stream is over.
    tokio::time::advance(SECOND).await;
    let probe = ask(&breaker, 200, Stream::Ends).await.unwrap();
    assert_eq!((breaker.state(), breaker.stats().probes), (State::HalfOpen, 1));
    assert!(ask(&breaker, 200, Stream::Ends).await.is_err());
    assert!(probe.collect().await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_is_a_failure_and_leaks_no_probe() {
    let breaker = CircuitBreaker::new(Settings::consecutive(1).open_for(SECOND));
    for opens in [1, 2] {
        let mut body = ask(&breaker, 200, Stream::Panics).await.unwrap();
        assert!(body.frame().await.is_some());
        assert!(catch_unwind(AssertUnwindSafe(|| now(body.frame()))).is_err());
        // There and then, not when somebody drops the remains.
        assert_eq!((breaker.stats().opens, breaker.stats().probes), (opens, 0));
        tokio::time::advance(SECOND).await;
    }
}

/// Whoever reads no further has had an answer: nobody failed, however long it took.
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_decides_nothing() {
    let breaker =
        CircuitBreaker::new(Settings::consecutive(1).open_for(SECOND).count_cancelled_after(SECOND));
    let mut body = ask(&breaker, 200, Stream::Stalls).await.unwrap();
    assert!(body.frame().await.is_some());
    tokio::time::advance(9 * SECOND).await;
    drop(body);
    assert_eq!(breaker.stats().failures, 0);
    // But a failure that the head shows counts at once: nobody has to read its body.
    drop(ask(&breaker, 503, Stream::Stalls).await.unwrap());
    assert_eq!(breaker.state(), State::Open);
    tokio::time::advance(SECOND).await;
    drop(ask(&breaker, 200, Stream::Stalls).await.unwrap());
    assert_eq!((breaker.state(), breaker.stats().probes), (State::HalfOpen, 0));
}
