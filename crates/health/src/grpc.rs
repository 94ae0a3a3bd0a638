//! The health checking protocol of gRPC.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use tonic::{Request, Response, Status, async_trait};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health as Protocol, HealthServer},
};

use crate::{Health, Standing, Watch, watch::standing};

impl Health {
    /// `grpc.health.v1.Health`, for `tonic::transport::Server::add_service`. A service's name is that of a component, and
    /// the empty one is the whole.
    ///
    /// `Check` of an unknown name is `NOT_FOUND`. `Watch` answers at once and then with every change, those that time makes
    /// included; of an unknown name it says `SERVICE_UNKNOWN` and stays open, in case it becomes known. What is unhealthy
    /// or going away is `NOT_SERVING`. A stream ends when the last handle of this is gone.
    #[cfg_attr(docsrs, doc(cfg(feature = "tonic")))]
    pub fn grpc(&self) -> HealthServer<Grpc> {
        HealthServer::new(Grpc::new(self))
    }
}

/// Answers `grpc.health.v1`: what [`Health::grpc`] serves, for a `HealthServer` with options of one's own.
#[derive(Clone, Debug)]
pub struct Grpc {
    health: Health,
}

impl Grpc {
    /// Answers for this handle.
    pub fn new(health: &Health) -> Self {
        Self { health: health.clone() }
    }
}

/// The name as this crate has it.
fn name(request: Request<HealthCheckRequest>) -> Option<String> {
    Some(request.into_inner().service).filter(|name| !name.is_empty())
}

fn response(standing: Option<Standing>) -> HealthCheckResponse {
    let status = match standing {
        None => ServingStatus::ServiceUnknown,
        Some(standing) if standing.serves() => ServingStatus::Serving,
        Some(_) => ServingStatus::NotServing,
    };
    HealthCheckResponse { status: status.into() }
}

#[async_trait]
impl Protocol for Grpc {
    type WatchStream = Changes;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let name = name(request);
        match standing(&self.health, name.as_deref()) {
            Some(standing) => Ok(Response::new(response(Some(standing)))),
            None => Err(Status::not_found("there is no component of this name")),
        }
    }

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Changes>, Status> {
        let watch = self.health.watch(name(request).as_deref());
        Ok(Response::new(Changes { next: next(watch), told: None }))
    }
}

type Next = Pin<Box<dyn Future<Output = Option<(HealthCheckResponse, Watch)>> + Send>>;

/// A stream of answers, each other than the one before.
pub struct Changes {
    next: Next,
    told: Option<HealthCheckResponse>,
}

fn next(mut watch: Watch) -> Next {
    Box::pin(async move {
        let standing = watch.next().await?;
        Some((response(standing), watch))
    })
}

impl Stream for Changes {
    type Item = Result<HealthCheckResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            let Some((response, watch)) = ready!(self.next.as_mut().poll(cx)) else {
                // Whoever asks again is told the same.
                self.next = Box::pin(std::future::ready(None));
                return Poll::Ready(None);
            };
            self.next = next(watch);
            // What is degraded serves as well.
            if self.told.as_ref() != Some(&response) {
                self.told = Some(response);
                return Poll::Ready(Some(Ok(response)));
            }
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("told", &self.told).finish_non_exhaustive()
    }
}
