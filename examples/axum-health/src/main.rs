//! A weather service that depends on a database, which it probes, and on a station, which it watches by its traffic.
//!
//! `cargo run -p axum-health` asks it while both die and recover. With an address it serves until it is stopped, for
//! `curl -i http://127.0.0.1:3000/health`: `cargo run -p axum-health -- 127.0.0.1:3000`.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{Router, extract::State as Extract, http::StatusCode, routing::get};
use bartizan_core::BoxError;
use bartizan_health::{Active, Health, Passive, Probed, Report, Settings, State};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{Layer, ServiceExt, service_fn, util::BoxCloneSyncService};

/// What the weather service depends on, and whether it works.
#[derive(Clone, Default)]
struct World {
    database: Arc<AtomicBool>,
    station: Arc<AtomicBool>,
}

fn app(health: &Health, world: &World) -> Router {
    let database = world.database.clone();
    health.probe("database", Duration::from_secs(10), move || {
        let up = database.load(Relaxed);
        async move { if up { Ok(()) } else { Err("no answer to SELECT 1") } }
    });
    health.report("cache", || Report::new(State::Healthy).with("entries", 42));

    let up = world.station.clone();
    let station = health.layer("station").shed().layer(service_fn(move |()| {
        let up = up.load(Relaxed);
        async move { if up { Ok("sunny") } else { Err(BoxError::from("the station does not answer")) } }
    }));
    Router::new()
        .route("/weather", get(weather))
        .with_state(BoxCloneSyncService::new(station))
        // Everything else: /livez, /readyz and /health.
        .fallback_service(health.service())
}

type Station = BoxCloneSyncService<(), &'static str, BoxError>;

async fn weather(Extract(station): Extract<Station>) -> (StatusCode, String) {
    match station.oneshot(()).await {
        Ok(weather) => (StatusCode::OK, weather.to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

const WINDOW: Duration = Duration::from_secs(3);

/// The station must not fail in half of the last calls, of which there must be three, nor the database in two probes.
fn health() -> Health {
    let passive = Passive::new().window(WINDOW).min_requests(3).degraded(10).unhealthy(50);
    Health::with(Settings::new().passive(passive).active(Active::new().unhealthy_after(2)))
}

async fn run() -> Result<(), BoxError> {
    let (health, world) = (health(), World::default());
    world.database.store(true, Relaxed);
    world.station.store(true, Relaxed);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let base = format!("http://{}", listener.local_addr()?);
    let served = axum::serve(listener, app(&health, &world));
    tokio::select! {
        served = served.into_future() => Ok(served?),
        asked = ask(&base, &health, &world) => asked,
    }
}

async fn ask(base: &str, health: &Health, world: &World) -> Result<(), BoxError> {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let get = async |path: &str| -> Result<(u16, String), BoxError> {
        let response = client.get(format!("{base}{path}").parse()?).await?;
        let status = response.status().as_u16();
        let body = String::from_utf8(response.into_body().collect().await?.to_bytes().into())?;
        println!("GET {path}: {status} {body:?}");
        Ok((status, body))
    };
    assert_eq!(get("/weather").await?, (200, "sunny".to_owned()));
    assert_eq!(get("/readyz").await?.0, 200);

    // The station dies: after two failures nobody waits for it any more.
    world.station.store(false, Relaxed);
    get("/weather").await?;
    assert_eq!(get("/weather").await?, (503, "the station does not answer".to_owned()));
    let (status, refused) = get("/weather").await?;
    assert!(status == 503 && refused.starts_with("health: unhealthy, retry after"), "{refused}");
    assert_eq!(get("/readyz").await?, (200, "ready\n\"station\" is unhealthy\n".to_owned()));

    // So does the database. Without it nothing works, and yet nobody has to be restarted.
    let database = health.component("database").required();
    world.database.store(false, Relaxed);
    for _ in 0..2 {
        assert_eq!(database.probe_now().await, Some(Probed::Failed("no answer to SELECT 1".to_owned())));
    }
    assert_eq!(get("/readyz").await?.0, 503);
    assert_eq!(get("/livez").await?.0, 200);
    assert!(get("/health").await?.1.contains(r#""output":"no answer to SELECT 1""#));

    // Both recover.
    world.station.store(true, Relaxed);
    world.database.store(true, Relaxed);
    for _ in 0..2 {
        assert_eq!(database.probe_now().await, Some(Probed::Good));
    }
    tokio::time::sleep(WINDOW).await;
    assert_eq!(get("/weather").await?, (200, "sunny".to_owned()));
    assert_eq!(get("/readyz").await?, (200, "ready\n".to_owned()));
    Ok(())
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    match std::env::args().nth(1) {
        None => run().await,
        Some(address) => {
            let (health, world) = (health(), World::default());
            world.database.store(true, Relaxed);
            let listener = TcpListener::bind(&address).await?;
            println!("try: curl -i http://{address}/health");
            Ok(axum::serve(listener, app(&health, &world)).await?)
        }
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn it_runs_to_its_end() {
        super::run().await.unwrap();
    }
}
