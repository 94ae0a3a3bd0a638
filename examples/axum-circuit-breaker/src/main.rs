//! A circuit breaker on the routes of an axum server.
//!
//! The handlers ask a database, which is down for a while. Clients see its errors twice, then `503` with `Retry-After` and
//! no handler runs, and an answer again when the database is back.

use std::{
    future::IntoFuture,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use bartizan_circuit_breaker::{CircuitBreaker, Settings, State};
use bartizan_core::{BoxError, RejectionLayer};
use bytes::Bytes;
use http::header::RETRY_AFTER;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::ServiceBuilder;

/// Open for a second, so that the example ends soon; a server would take longer.
const OPEN_FOR: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let database = Arc::new(Database::default());
    let breaker = CircuitBreaker::new(Settings::consecutive(2).open_for(OPEN_FOR));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let base = format!("http://{}", listener.local_addr()?);
    tokio::select! {
        served = axum::serve(listener, router(&database, &breaker)).into_future() => served.map_err(Into::into),
        asked = ask(&base, &database, &breaker) => asked,
    }
}

#[derive(Default)]
struct Database {
    up: AtomicBool,
    asked: AtomicUsize,
}

fn router(database: &Arc<Database>, breaker: &CircuitBreaker) -> Router {
    let route = || {
        let database = database.clone();
        get(async move || {
            database.asked.fetch_add(1, SeqCst);
            match database.up.load(SeqCst) {
                true => (StatusCode::OK, "rain"),
                false => (StatusCode::INTERNAL_SERVER_ERROR, "the database is down"),
            }
        })
    };
    // Both routes carry a layer of the one breaker: what one sees the other knows.
    let stack =
        ServiceBuilder::new().layer(RejectionLayer::problem_json()).layer(breaker.layer().server_errors());
    Router::new().route("/berlin", route()).route("/lisbon", route()).layer(stack)
}

async fn ask(base: &str, database: &Database, breaker: &CircuitBreaker) -> Result<(), BoxError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let get = async |path: &str| -> Result<(u16, Option<String>), BoxError> {
        let response = client.get(format!("{base}{path}").parse()?).await?;
        let wait =
            response.headers().get(RETRY_AFTER).and_then(|wait| wait.to_str().ok()).map(ToOwned::to_owned);
        println!(
            "GET {path}: {}, retry after {wait:?}, the breaker is {}",
            response.status(),
            breaker.state()
        );
        Ok((response.status().as_u16(), wait))
    };

    assert_eq!(get("/berlin").await?.0, 500);
    assert_eq!(get("/lisbon").await?.0, 500);
    assert_eq!(get("/berlin").await?, (503, Some("1".to_owned())));
    assert_eq!(database.asked.load(SeqCst), 2, "the third request reached no handler");

    database.up.store(true, SeqCst);
    tokio::time::sleep(OPEN_FOR).await;
    assert_eq!(get("/lisbon").await?.0, 200);
    assert_eq!(breaker.state(), State::Closed);
    println!("{:?}", breaker.stats());
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
