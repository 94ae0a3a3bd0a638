//! A rate limit for each API key of a gRPC server.
//!
//! The service is the standard health service; any generated one is wrapped alike. A client that asks too often sees
//! `RESOURCE_EXHAUSTED` with `RetryInfo`, waits as long as that says, and is answered.

use std::{net::SocketAddr, time::Duration};

use bartizan_core::{BoxError, RejectionLayer};
use bartizan_rate_limit::{Quota, RateLimitLayer, RateLimiter};
use http::Request;
use tokio::{net::TcpListener, time::sleep};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, body::Body, transport::Server};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_types::StatusExt;
use tower::ServiceBuilder;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::select! {
        served = serve(listener) => served,
        asked = ask(address) => asked,
    }
}

async fn serve(listener: TcpListener) -> Result<(), BoxError> {
    let limiter: RateLimiter<String> = RateLimiter::keyed(Quota::per_second(4).burst(2));
    let rule = limiter.rule().by_ref(|request: &Request<Body>| {
        // A key that is not text is a key all the same: whoever has none at all shares one.
        Some(request.headers().get("x-api-key").map_or("", |key| key.to_str().unwrap_or("not text")))
    });
    let stack =
        ServiceBuilder::new().layer(RejectionLayer::grpc()).layer(RateLimitLayer::new(rule)).into_inner();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let incoming = TcpListenerStream::new(listener);
    Ok(Server::builder().layer(stack).add_service(health).serve_with_incoming(incoming).await?)
}

async fn ask(address: SocketAddr) -> Result<(), BoxError> {
    let channel = tonic::transport::Endpoint::try_from(format!("http://{address}"))?.connect().await?;
    let mut client = HealthClient::new(channel);
    let mut check = async |key: &'static str| {
        let mut request = tonic::Request::new(HealthCheckRequest { service: String::new() });
        request.metadata_mut().insert("x-api-key", tonic::metadata::MetadataValue::from_static(key));
        let answer = client.check(request).await;
        match &answer {
            Ok(_) => println!("{key}: serving"),
            Err(status) => println!("{key}: {:?}, {}", status.code(), status.message()),
        }
        answer.map(drop)
    };

    check("anna").await?;
    check("anna").await?;
    let refused = check("anna").await.expect_err("2 at once");
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let wait = wait(&refused).expect("the status says when to come back");
    assert!(!wait.is_zero() && wait <= Duration::from_millis(250), "{wait:?}");
    check("ben").await?;

    // Timers count milliseconds.
    sleep(wait + Duration::from_millis(1)).await;
    check("anna").await?;
    Ok(())
}

fn wait(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
