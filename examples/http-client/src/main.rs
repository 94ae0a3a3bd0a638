//! An HTTP client that has nothing to do with LLMs, in tower layers.
//!
//! It asks a weather service, which runs in the same process, three times: an answer, one that says when to come back,
//! and one that does not come. The stack makes a response of each, and `server_errors` judges it.

use std::{
    future::{IntoFuture, pending},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use bartizan_core::{
    BoxError, Class, Classify, Rejected, RejectionKind, RejectionLayer, problem_json, server_errors,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{Service, ServiceBuilder, ServiceExt, timeout::error::Elapsed};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, weather()).into_future() => served.map_err(Into::into),
        asked = ask_thrice(&base) => asked,
    }
}

async fn ask_thrice(base: &str) -> Result<(), BoxError> {
    let mut client = ServiceBuilder::new()
        // Outermost: whatever goes wrong below is a response, and nothing below can fail any more.
        .layer(RejectionLayer::new(respond))
        .concurrency_limit(8)
        .timeout(Duration::from_millis(200))
        .service(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());

    for path in ["/berlin", "/busy", "/atlantis"] {
        let request = Request::get(format!("{base}{path}")).body(Empty::new())?;
        let response = client.ready().await?.call(request).await?;
        println!("GET {path}: {}", told(response).await?);
    }
    Ok::<(), BoxError>(())
}

/// The status of tower's own timeout is ours to choose.
fn respond(error: BoxError) -> Response<Full<Bytes>> {
    if error.is::<Elapsed>() {
        return problem_json(Rejected::new(RejectionKind::Deadline, "timeout").into());
    }
    problem_json(error)
}

async fn told<B>(response: Response<B>) -> Result<String, BoxError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let class = match server_errors().classify(Ok(&response)) {
        Class::Success => "a success".to_owned(),
        Class::Failure(retry_after) => format!("a failure, retry {retry_after:?}"),
        Class::Ignore => "nobody's fault".to_owned(),
    };
    let status = response.status();
    let body = response.into_body().collect().await.map_err(Into::into)?.to_bytes();
    Ok(format!("{status}, {class}\n  {}", String::from_utf8_lossy(&body)))
}

/// The service that is asked.
fn weather() -> Router {
    Router::new()
        .route("/berlin", get(async || "rain"))
        .route("/busy", get(async || (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "7")], "many ask")))
        .route("/atlantis", get(async || pending::<&str>().await))
}
