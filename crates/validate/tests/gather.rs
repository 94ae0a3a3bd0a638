//! Bodies of requests that are read before rules look at them.

use std::{convert::Infallible, future::ready, time::Duration};

use bartizan_core::{BoxError, Rejected, RejectionKind, RejectionLayer, RetryAfter};
use bartizan_validate::{GatherLayer, Gathered, Level, Report, Rules, Validator, text};
use bytes::Bytes;
use futures_util::{FutureExt, stream};
use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::sync::mpsc;
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};

fn chunks(chunks: Vec<Result<Frame<Bytes>, BoxError>>) -> Request<impl Body<Data = Bytes, Error = BoxError>> {
    Request::new(StreamBody::new(stream::iter(chunks)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

async fn collect<B: Body<Data = Bytes> + Unpin>(
    max: usize,
    request: Request<B>,
) -> Result<Response<Gathered>, BoxError>
where
    B::Error: Into<BoxError>,
{
    let echo = service_fn(|request: Request<Gathered>| {
        ready(Ok::<_, Infallible>(Response::new(request.into_body())))
    });
    GatherLayer::new(max).layer(echo).oneshot(request).await
}

#[tokio::test]
async fn what_comes_is_handed_on() {
    let trailers = HeaderMap::from_iter([(http::header::ETAG, "x".parse().unwrap())]);
    let request = chunks(vec![data("ab"), data(""), data("cd"), Ok(Frame::trailers(trailers.clone()))]);
    let body = collect(4, request).await.unwrap().into_body();
    assert_eq!(body.size_hint().exact(), Some(4));
    assert!(!body.is_end_stream());
    let collected = body.collect().await.unwrap();
    assert_eq!(collected.trailers(), Some(&trailers));
    assert_eq!(collected.to_bytes(), "abcd");

    // In one piece it is not copied.
    let one = Bytes::from(vec![b'x'; 64]);
    let body = collect(64, Request::new(Full::new(one.clone()))).await.unwrap().into_body();
    assert_eq!(body.into_bytes().as_ptr(), one.as_ptr());
    let empty = collect(0, Request::new(Full::<Bytes>::default())).await.unwrap().into_body();
    assert!(empty.is_end_stream() && empty.collect().await.unwrap().to_bytes().is_empty());
}

#[tokio::test]
async fn what_is_too_long_is_not_read() {
    let mut declared = Request::new(StreamBody::new(stream::pending::<Result<Frame<Bytes>, BoxError>>()));
    declared.headers_mut().insert("content-length", "5".parse().unwrap());
    for error in [
        collect(4, declared).now_or_never().expect("nobody waits for it").unwrap_err(),
        collect(4, Request::new(Full::<Bytes>::from("12345"))).await.unwrap_err(),
        collect(4, chunks(vec![data("123"), data("45"), Err("it is not read on".into())])).await.unwrap_err(),
    ] {
        let refusal = Rejected::find(&*error).unwrap();
        assert_eq!(
            (refusal.kind(), refusal.retry_after()),
            (RejectionKind::ExceedsCapacity, RetryAfter::Never)
        );
        assert_eq!(
            Report::find(&*error).unwrap().to_string(),
            "the request: body: the body is longer than 4 bytes"
        );
    }
    let error = collect(4, chunks(vec![data("1"), Err("reset".into())])).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).unwrap().kind(), RejectionKind::Invalid);
    assert!(Report::find(&*error).unwrap().violations()[0].message().contains("reset"));
}

#[tokio::test]
async fn rules_see_the_body() {
    let deny = bartizan_validate::Pattern::deny("SECRET").unwrap();
    let validator = Validator::http(Rules::new().error("deny", text(deny)));
    let echo = service_fn(|request: Request<Gathered>| {
        ready(Ok::<_, Infallible>(Response::new(request.into_body())))
    });
    let service = RejectionLayer::problem_json()
        .layer(GatherLayer::new(64).layer(validator.layer(Level::Moderate).layer(echo)));
    let status = async |request| service.clone().oneshot(request).await.unwrap().status().as_u16();
    assert_eq!(status(chunks(vec![data("fi"), data("ne")])).await, 200);
    assert_eq!(status(chunks(vec![data("SEC"), data("RET")])).await, 400);
    assert_eq!(status(chunks(vec![data("long").map(|_| Frame::data(vec![b'x'; 65].into()))])).await, 413);
}

/// A client that takes its time holds nothing of what is below.
#[tokio::test(start_paused = true)]
async fn nothing_below_is_held_meanwhile() {
    let (send, mut receive) = mpsc::unbounded_channel::<&'static str>();
    let frames = stream::poll_fn(move |cx| {
        receive.poll_recv(cx).map(|next| next.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text)))))
    });
    let slow = service_fn(|request: Request<Gathered>| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok::<_, Infallible>(Response::new(request.into_body()))
    });
    let mut limited = ConcurrencyLimitLayer::new(1).layer(slow);
    let mut service = GatherLayer::new(64).layer(limited.clone());
    ServiceExt::<Request<Full<Bytes>>>::ready(&mut service).await.unwrap();
    let mut call = Box::pin(service.call(Request::new(StreamBody::new(frames))));
    send.send("a").unwrap();
    assert!(call.as_mut().now_or_never().is_none());
    let other = limited.ready().now_or_never().expect("there is a permit").unwrap().call(Request::default());
    send.send("b").unwrap();
    drop(send);
    assert!(call.as_mut().now_or_never().is_none(), "it is read, and waits its turn");
    other.await.unwrap();
    assert_eq!(call.await.unwrap().into_body().as_ref(), b"ab");
}
