//! The health checking protocol of gRPC.
#![cfg(feature = "tonic")]

use std::time::Duration;

use bartizan_core::{Class, RetryAfter};
use bartizan_health::{Grpc, Health, Passive, Settings};
use futures_util::{FutureExt, StreamExt};
use tonic::{Code, Request};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus as Status, health_server::Health as Protocol,
};

const SECOND: Duration = Duration::from_secs(1);

fn request(service: &str) -> Request<HealthCheckRequest> {
    Request::new(HealthCheckRequest { service: service.to_owned() })
}

fn served(health: &Health) -> Grpc {
    Grpc::new(health)
}

async fn check(health: &Health, service: &str) -> Result<Status, Code> {
    let answer = served(health).check(request(service)).await;
    answer.map(|answer| answer.into_inner().status()).map_err(|status| status.code())
}

fn fail(health: &Health, name: &str) {
    health.component(name).record(Class::Failure(RetryAfter::Unknown), SECOND, None);
}

fn health() -> Health {
    Health::with(Settings::new().passive(Passive::new().window(16 * SECOND).min_requests(1).unhealthy(50)))
}

#[tokio::test(start_paused = true)]
async fn check_answers_for_components_and_the_whole() {
    let health = health();
    health.component("a");
    assert_eq!(check(&health, "").await, Ok(Status::Serving));
    assert_eq!(check(&health, "a").await, Ok(Status::Serving));
    assert_eq!(check(&health, "b").await, Err(Code::NotFound));
    fail(&health, "b");
    assert_eq!(check(&health, "b").await, Ok(Status::NotServing));
    assert_eq!(check(&health, "").await, Ok(Status::Serving), "degraded");
    health.component("a").drain();
    assert_eq!(check(&health, "a").await, Ok(Status::NotServing));
    health.drain();
    for name in ["", "a", "b"] {
        assert_eq!(check(&health, name).await, Ok(Status::NotServing));
    }
}

/// Pitfall 51: of what is unknown it says so, stays open, and tells when it is known.
#[tokio::test(start_paused = true)]
async fn watch_stays_open_for_what_is_unknown() {
    let health = health();
    let mut changes = served(&health).watch(request("later")).await.unwrap().into_inner();
    assert_eq!(changes.next().await.unwrap().unwrap().status(), Status::ServiceUnknown);
    tokio::time::sleep(3_600 * SECOND).await;
    assert!(changes.next().now_or_never().is_none(), "open, and nothing new");
    health.component("other");
    assert!(changes.next().now_or_never().is_none());
    health.component("later");
    assert_eq!(changes.next().await.unwrap().unwrap().status(), Status::Serving);
}

#[tokio::test(start_paused = true)]
async fn watch_tells_each_change_once_and_ends_with_the_handle() {
    let health = health();
    health.component("it");
    let mut changes = served(&health).watch(request("it")).await.unwrap().into_inner();
    let begin = tokio::time::Instant::now();
    assert_eq!(changes.next().await.unwrap().unwrap().status(), Status::Serving);
    fail(&health, "it");
    fail(&health, "it");
    assert_eq!(changes.next().await.unwrap().unwrap().status(), Status::NotServing);
    // Time alone brings it back.
    assert_eq!(changes.next().await.unwrap().unwrap().status(), Status::Serving);
    assert_eq!(begin.elapsed(), 16 * SECOND);
    // Degraded serves as well: nothing to tell.
    for n in 0..20 {
        health.component("it").record(
            if n == 19 { Class::Failure(RetryAfter::Unknown) } else { Class::Success },
            SECOND,
            None,
        );
    }
    assert!(changes.next().now_or_never().is_none());
    health.drain();
    assert_eq!(changes.next().await.unwrap().unwrap().status(), Status::NotServing);
    drop(health);
    assert!(changes.next().await.is_none());
    assert!(changes.next().await.is_none());
}
