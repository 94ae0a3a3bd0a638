//! Downloads a file from the first mirror that begins to send it.
//!
//! Three mirrors run in the same process: one has a good head and then nothing to say, one does not have the file, one
//! works. Nobody waits longer for a mirror than half a second, and the file comes from one mirror only.

use std::{convert::Infallible, future::IntoFuture, time::Duration};

use axum::{Router, body::Body, http::StatusCode, routing::get};
use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_fallback::{CommitLayer, Exhausted, Fallback, FirstChunk, ServedBy, Settings};
use bytes::Bytes;
use futures_util::stream;
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceBuilder, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, mirrors()).into_future() => served.map_err(Into::into),
        asked = download(&base) => asked,
    }
}

async fn download(base: &str) -> Result<(), BoxError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let mirror = |name: &str| {
        let mirror = format!("{base}/{name}");
        ServiceBuilder::new()
            // What has not begun to come within half a second has failed, however good its head is.
            .layer(CommitLayer::new(FirstChunk).within(Duration::from_millis(500)))
            .map_request(move |request: Request<Empty<Bytes>>| at(&mirror, &request))
            .service(client.clone())
    };
    let fallback =
        Fallback::with(Settings::new().within(Duration::from_secs(5)), ["stalls", "empty", "works"]);
    let mut file = fallback
        .http_layer("stalls")
        .or("empty", mirror("empty"))
        .or("works", mirror("works"))
        .served_by()
        .layer(mirror("stalls"));

    let response = file.ready().await?.call(Request::get("/file").body(Empty::new())?).await?;
    let served = response.extensions().get::<ServedBy>().expect("it was asked for").clone();
    for attempt in served.attempts() {
        println!("{}: {}", attempt.name(), attempt.cause());
    }
    let bytes = response.into_body().collect().await?.to_bytes();
    println!("{}: {} bytes", served.name(), bytes.len());
    assert_eq!((served.name(), served.attempts().len(), &bytes[..]), ("works", 2, &b"the file"[..]));

    let error = file.ready().await?.call(Request::get("/nothing").body(Empty::new())?).await.unwrap_err();
    assert_eq!(Rejected::find(&*error).expect("no mirror has it").kind(), RejectionKind::Exhausted);
    println!("/nothing: {}", Exhausted::find(&*error).expect("the causes"));
    Ok(())
}

/// The same request to that mirror.
fn at(mirror: &str, request: &Request<Empty<Bytes>>) -> Request<Empty<Bytes>> {
    let uri = format!("{mirror}{}", request.uri().path()).parse::<Uri>().expect("a mirror and a path");
    Request::get(uri).body(Empty::new()).expect("a request without headers")
}

fn mirrors() -> Router {
    let nothing_more = || Body::from_stream(stream::pending::<Result<Bytes, Infallible>>());
    Router::new()
        .route("/stalls/file", get(async move || nothing_more()))
        .route("/works/file", get(async || "the file"))
        .fallback(async || StatusCode::NOT_FOUND)
}
