//! A rate limit for each peer of an axum server.
//!
//! Without arguments it asks itself three times and shows the answers as they are on the wire: two that say what is left
//! and one that says when to come back. With an address (`127.0.0.1:3000`) it serves there, for `curl -i`.

use std::{
    future::IntoFuture,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request},
    routing::get,
};
use bartizan_core::{BoxError, RejectionLayer};
use bartizan_rate_limit::{Limit, Quota, RateLimitLayer, RateLimiter};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::ServiceBuilder;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match std::env::args().nth(1) {
        Some(address) => {
            let listener = TcpListener::bind(&address).await?;
            println!("try: curl -i http://{}/berlin", listener.local_addr()?);
            serve(listener).await
        }
        None => ask_itself().await,
    }
}

async fn serve(listener: TcpListener) -> Result<(), BoxError> {
    let app = router(&RateLimiter::keyed(Limit::new("peer", Quota::per_minute(6).burst(2))));
    Ok(axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await?)
}

/// Two routes, one limit: 6 a minute from each address, 2 of them at once.
fn router(limiter: &RateLimiter<IpAddr>) -> Router {
    // The peer's own address: a header that says otherwise could be anybody's.
    let rule = limiter.rule().by(|request: &Request| {
        let ConnectInfo(peer) = request.extensions().get::<ConnectInfo<SocketAddr>>()?;
        Some(peer.ip())
    });
    let stack = ServiceBuilder::new()
        .layer(RejectionLayer::problem_json())
        .layer(RateLimitLayer::new(rule).headers());
    Router::new().route("/berlin", get(async || "rain")).route("/lisbon", get(async || "sun")).layer(stack)
}

async fn ask_itself() -> Result<(), BoxError> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::select! {
        served = serve(listener).into_future() => served,
        asked = ask_thrice(address) => asked,
    }
}

async fn ask_thrice(address: SocketAddr) -> Result<(), BoxError> {
    let mut answers = Vec::new();
    for path in ["/berlin", "/lisbon", "/berlin"] {
        let answer = tokio::time::timeout(Duration::from_secs(5), ask(address, path)).await??;
        println!("GET {path}\n{answer}\n");
        answers.push(answer);
    }
    let [first, second, third] = &answers[..] else { unreachable!("three were asked") };
    assert!(first.starts_with("HTTP/1.1 200 OK\r\n") && first.contains("ratelimit: \"peer\";r=1;t=10\r\n"));
    assert!(second.starts_with("HTTP/1.1 200 OK\r\n") && second.contains("ratelimit: \"peer\";r=0;t=10\r\n"));
    assert!(third.starts_with("HTTP/1.1 429 Too Many Requests\r\n") && third.contains("retry-after: 10\r\n"));
    assert!(third.contains("ratelimit-policy: \"peer\";q=2;w=20\r\n"));
    Ok(())
}

/// The whole answer, as it is on the wire.
async fn ask(address: SocketAddr, path: &str) -> Result<String, BoxError> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::ask_itself().await.unwrap();
    }
}
