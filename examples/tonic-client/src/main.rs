//! A gRPC client with a circuit breaker.
//!
//! The service is unavailable for a while: it says so twice, then the breaker refuses, and the client sees `UNAVAILABLE`
//! with `RetryInfo` and nothing is sent. Later a probe finds it well.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bartizan_circuit_breaker::{CircuitBreaker, Settings, State};
use bartizan_core::{BoxError, RejectionLayer, failure_if};
use bytes::{Buf, BufMut};
use http::uri::PathAndQuery;
use tokio::net::TcpListener;
use tonic::{
    Code, Status,
    body::Body,
    client::GrpcService,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::NamedService,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tower::{Service, ServiceBuilder, service_fn};

/// Open for a second, so that the example ends soon; a client would wait longer.
const OPEN_FOR: Duration = Duration::from_secs(1);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    run().await
}

async fn run() -> Result<(), BoxError> {
    let weather = Weather::default();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let channel = Endpoint::new(format!("http://{}", listener.local_addr()?))?.connect_lazy();
    let server = Server::builder().add_service(weather.clone());
    tokio::select! {
        served = server.serve_with_incoming(TcpIncoming::from(listener)) => served.map_err(Into::into),
        asked = ask(channel, &weather) => asked,
    }
}

async fn ask(channel: Channel, weather: &Weather) -> Result<(), BoxError> {
    let breaker = CircuitBreaker::new(Settings::consecutive(2).open_for(OPEN_FOR));
    let client = ServiceBuilder::new()
        // A refusal becomes a status, as if the service had sent it.
        .layer(RejectionLayer::grpc())
        .layer(breaker.layer().classify(failure_if(is_unavailable)))
        .service(channel);
    let mut client = tonic::client::Grpc::new(client);

    let unavailable = rain(&mut client).await.expect_err("the service is down");
    assert_eq!((unavailable.code(), unavailable.message()), (Code::Unavailable, "the station is down"));
    assert!(rain(&mut client).await.is_err());
    let refused = rain(&mut client).await.expect_err("the breaker is open");
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().starts_with("circuit-breaker: circuit open, retry after"));
    assert!(!refused.details().is_empty(), "RetryInfo says for how long");
    assert_eq!(weather.asked.load(SeqCst), 2, "the third call was not sent");

    weather.up.store(true, SeqCst);
    tokio::time::sleep(OPEN_FOR).await;
    assert!(rain(&mut client).await.is_ok());
    assert_eq!(breaker.state(), State::Closed);
    println!("{:?}", breaker.stats());
    Ok(())
}

/// The call. Every message is a text, so that the example needs no generated code.
async fn rain<S>(client: &mut tonic::client::Grpc<S>) -> Result<String, Status>
where
    S: GrpcService<Body>,
    S::Error: std::fmt::Display,
    S::ResponseBody: http_body::Body<Error: Into<BoxError>> + Send + 'static,
{
    client.ready().await.map_err(|error| Status::unknown(error.to_string()))?;
    let path = PathAndQuery::from_static("/weather.Weather/Rain");
    let answer = client.unary(tonic::Request::new("Berlin".to_owned()), path, Text).await;
    match &answer {
        Ok(answer) => println!("{}", answer.get_ref()),
        Err(status) => println!("{status}"),
    }
    answer.map(tonic::Response::into_inner)
}

/// A status without a message stands in the head of the response. One after messages stands in the trailers, and is the
/// call's own affair: the service was there.
fn is_unavailable<B>(response: &http::Response<B>) -> bool {
    Status::from_header_map(response.headers()).is_some_and(|status| status.code() == Code::Unavailable)
}

/// The service that is asked.
#[derive(Clone, Default)]
struct Weather {
    up: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl NamedService for Weather {
    const NAME: &'static str = "weather.Weather";
}

impl Service<http::Request<Body>> for Weather {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<http::Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.asked.fetch_add(1, SeqCst);
        let up = self.up.load(SeqCst);
        let answer = service_fn(move |city: tonic::Request<String>| async move {
            match up {
                true => Ok(tonic::Response::new(format!("rain in {}", city.get_ref()))),
                false => Err(Status::unavailable("the station is down")),
            }
        });
        Box::pin(async move { Ok(tonic::server::Grpc::new(Text).unary(answer, request).await) })
    }
}

/// Messages that are texts.
#[derive(Clone, Copy)]
struct Text;

impl Codec for Text {
    type Encode = String;
    type Decode = String;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Text {
    type Item = String;
    type Error = Status;

    fn encode(&mut self, text: String, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put_slice(text.as_bytes());
        Ok(())
    }
}

impl Decoder for Text {
    type Item = String;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<String>, Status> {
        let bytes = from.copy_to_bytes(from.remaining());
        String::from_utf8(bytes.into()).map(Some).map_err(|error| Status::internal(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
