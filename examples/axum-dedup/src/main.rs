//! An expensive report behind an axum route, made once for all who ask at the same time, and kept for a minute.
//!
//! Each tenant has reports of its own. Two requests with one idempotency key and different payloads are a mistake of the
//! client's: the second one gets `409`.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, routing::get};
use bartizan_core::{BoxError, RejectionLayer};
use bartizan_dedup::{Dedup, Frames, Identity, Key, Recording, Replay};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, sync::Barrier};
use tower::ServiceBuilder;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let made = Arc::new(AtomicUsize::new(0));
    let dedup = Dedup::http(Replay::ttl(Duration::from_secs(60)));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, router(&made, &dedup)).into_future() => served.map_err(Into::into),
        asked = ask(&base, &made, &dedup) => asked,
    }
}

/// What a request is known by: its tenant, and its path or the client's own key. Without a tenant it is made by itself.
fn key(request: &Request) -> Option<Identity<Key>> {
    let header = |name| request.headers().get(name)?.to_str().ok();
    let key = Key::scope(header("x-tenant")?).part(request.method().as_str());
    let path = request.uri().path();
    Some(match header("idempotency-key") {
        // The key stands for the payload, so another payload under it is told apart.
        Some(own) => {
            let payload = Key::scope("payload").part(path).finish();
            Identity::new(key.part("own").part(own).finish()).fingerprint(*payload.as_bytes())
        }
        None => Identity::new(key.part("path").part(path).finish()),
    })
}

fn router(made: &Arc<AtomicUsize>, dedup: &Dedup<Key, Recording, Frames>) -> Router {
    let made = made.clone();
    let report = get(async move |request: Request| {
        // It takes a while.
        tokio::time::sleep(Duration::from_millis(200)).await;
        format!("report {} of {}", made.fetch_add(1, SeqCst), request.uri().path())
    });
    let stack = ServiceBuilder::new().layer(RejectionLayer::problem_json()).layer(dedup.layer(key));
    Router::new().route("/reports/{name}", report).layer(stack)
}

async fn ask(base: &str, made: &AtomicUsize, dedup: &Dedup<Key, Recording, Frames>) -> Result<(), BoxError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let get = async |path: &str, headers: &[(&str, &str)]| -> Result<(u16, String, String), BoxError> {
        let mut request = http::Request::get(format!("{base}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = client.request(request.body(Empty::new())?).await?;
        let status = response.status().as_u16();
        let cache =
            response.headers().get("cache-status").map_or("", |value| value.to_str().unwrap_or_default());
        let cache = cache.to_owned();
        let text = String::from_utf8_lossy(&Body::new(response.into_body()).collect().await?.to_bytes())
            .into_owned();
        println!("GET {path} {headers:?}: {status}, {cache:?}, {text}");
        Ok((status, cache, text))
    };
    let acme = [("x-tenant", "acme")];

    // Ten at once are one.
    let all = Barrier::new(10);
    let at_once = async || {
        all.wait().await;
        get("/reports/sales", &acme).await
    };
    let answers = try_join_all((0..10).map(|_| at_once())).await?;
    assert!(answers.iter().all(|(_, _, text)| text == "report 0 of /reports/sales"));
    assert_eq!(made.load(SeqCst), 1);

    // The next one gets what was kept; another tenant does not.
    assert!(get("/reports/sales", &acme).await?.1.starts_with("bartizan; hit"));
    assert_eq!(get("/reports/sales", &[("x-tenant", "umbrella")]).await?.1, "bartizan; fwd=miss");
    // Who says nothing of himself shares nothing.
    assert_eq!(get("/reports/sales", &[]).await?.1, "bartizan; fwd=bypass");
    assert_eq!(made.load(SeqCst), 3);

    let own = [("x-tenant", "acme"), ("idempotency-key", "7")];
    assert_eq!(get("/reports/costs", &own).await?.0, 200);
    assert_eq!(get("/reports/sales", &own).await?.0, 409, "the key is in use for another report");
    println!("{:?}", dedup.stats());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
