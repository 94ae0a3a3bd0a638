//! An HTTP client with a circuit breaker for each host.
//!
//! One host answers, one is busy and says for how long, at one nobody listens. Each is judged by itself.

use std::{future::IntoFuture, time::Duration};

use axum::{Router, http::StatusCode, routing::get};
use bartizan_circuit_breaker::{CircuitBreakers, Settings, State};
use bartizan_core::{BoxError, Rejected, RetryAfter};
use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let (good, busy) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    // A port that was free just now: whoever connects there is refused.
    let gone = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let hosts = [good.local_addr()?, busy.local_addr()?, gone].map(|address| address.to_string());
    let answers = Router::new().route("/", get(async || "rain"));
    let refuses = get(async || (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", "600")], "many ask"));
    tokio::select! {
        served = axum::serve(good, answers).into_future() => served.map_err(Into::into),
        served = axum::serve(busy, Router::new().route("/", refuses)).into_future() => served.map_err(Into::into),
        asked = ask(&hosts) => asked,
    }
}

async fn ask(hosts: &[String; 3]) -> Result<(), BoxError> {
    let settings = Settings::consecutive(2).open_for(Duration::from_secs(30)).jitter(0.1);
    let breakers: CircuitBreakers<String> = CircuitBreakers::new(settings).max_keys(1_000);
    let client = breakers
        .by_ref(|request: &Request<_>| request.uri().authority().map(http::uri::Authority::as_str))
        .server_errors()
        .until_body_end()
        .layer(Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>());

    for _ in 0..3 {
        for host in hosts {
            let request = Request::get(format!("http://{host}/")).body(Empty::new())?;
            match client.clone().oneshot(request).await {
                Ok(response) => println!("{host}: {}", response.status()),
                Err(error) => println!("{host}: {error}"),
            }
        }
    }

    let [good, busy, gone] = hosts.each_ref().map(|host| breakers.get(host.as_str()).expect("there is room"));
    assert_eq!([good.state(), busy.state(), gone.state()], [State::Closed, State::Open, State::Open]);
    let waits = |refusal: Result<_, Rejected>| match refusal.map(drop).expect_err("it is open").retry_after()
    {
        RetryAfter::After(wait) => wait,
        other => panic!("{other:?}"),
    };
    assert!(waits(busy.try_acquire()) > Duration::from_secs(500), "the busy host was heard");
    assert!(waits(gone.try_acquire()) <= Duration::from_secs(33));
    let stats = breakers.stats();
    assert_eq!((stats.keys, stats.open, stats.opens), (3, 2, 2));
    println!("{stats:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
