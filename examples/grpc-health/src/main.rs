//! A gRPC server that answers `grpc.health.v1` by what it depends on: what `grpc_health_probe`, Kubernetes and balancers
//! ask.
//!
//! `cargo run -p grpc-health` asks it while its database dies and recovers. With an address it serves until it is stopped,
//! with a database that is down every other ten seconds: `cargo run -p grpc-health -- 127.0.0.1:3000`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use bartizan_core::BoxError;
use bartizan_health::{Active, Component, Health, Settings};
use tokio::net::TcpListener;
use tokio_stream::{StreamExt, wrappers::TcpListenerStream};
use tonic::{
    Code,
    transport::{Endpoint, Server},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as Status, health_client::HealthClient,
};

/// The name of a gRPC service is that of the component which it needs.
const NAME: &str = "weather.v1.Weather";

fn health(up: &Arc<AtomicBool>, every: Duration) -> (Health, Component) {
    let health = Health::with(Settings::new().active(Active::new().unhealthy_after(1).healthy_after(1)));
    let up = up.clone();
    let component = health.probe(NAME, every, move || {
        let up = up.load(Relaxed);
        async move { if up { Ok(()) } else { Err("the database does not answer") } }
    });
    (health, component)
}

async fn serve(listener: TcpListener, health: &Health) -> Result<(), BoxError> {
    let incoming = TcpListenerStream::new(listener);
    Ok(Server::builder().add_service(health.grpc()).serve_with_incoming(incoming).await?)
}

async fn run() -> Result<(), BoxError> {
    let up = Arc::new(AtomicBool::new(true));
    let (health, component) = health(&up, Duration::from_secs(3600));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::select! {
        served = serve(listener, &health) => served,
        asked = ask(address, &health, &component, &up) => asked,
    }
}

async fn ask(
    address: SocketAddr,
    health: &Health,
    component: &Component,
    up: &AtomicBool,
) -> Result<(), BoxError> {
    let channel = Endpoint::new(format!("http://{address}"))?.connect().await?;
    let mut client = HealthClient::new(channel);
    let service = |name: &str| HealthCheckRequest { service: name.to_owned() };

    let mut watch = client.watch(service(NAME)).await?.into_inner();
    let mut next = async || -> Result<Status, BoxError> {
        let status = watch.next().await.ok_or("the stream ended")??.status();
        println!("Watch {NAME}: {}", status.as_str_name());
        Ok(status)
    };
    assert_eq!(next().await?, Status::Serving);

    up.store(false, Relaxed);
    component.probe_now().await;
    assert_eq!(next().await?, Status::NotServing);
    assert_eq!(client.check(service(NAME)).await?.into_inner().status(), Status::NotServing);

    up.store(true, Relaxed);
    component.probe_now().await;
    assert_eq!(next().await?, Status::Serving);

    // What nobody knows is refused by Check; Watch stays open in case it becomes known.
    assert_eq!(client.check(service("else")).await.unwrap_err().code(), Code::NotFound);
    let mut unknown = client.watch(service("else")).await?.into_inner();
    assert_eq!(unknown.next().await.ok_or("it stays open")??.status(), Status::ServiceUnknown);
    health.component("else");
    assert_eq!(unknown.next().await.ok_or("it stays open")??.status(), Status::Serving);

    health.drain();
    assert_eq!(next().await?, Status::NotServing);
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let Some(address) = std::env::args().nth(1) else { return run().await };
    let up = Arc::new(AtomicBool::new(true));
    let (health, _component) = health(&up, Duration::from_secs(1));
    let listener = TcpListener::bind(&address).await?;
    println!(
        "listening on {}; try: grpc_health_probe -addr {address} -service {NAME}",
        listener.local_addr()?
    );
    let flaps = async {
        loop {
            tokio::time::sleep(Duration::from_secs(10)).await;
            up.fetch_xor(true, Relaxed);
        }
    };
    tokio::select! {
        served = serve(listener, &health) => served,
        () = flaps => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
