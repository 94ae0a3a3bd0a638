//! What load balancers, orchestrators and people ask.

use std::{
    convert::Infallible,
    fmt,
    future::{Ready, ready},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE},
};
use http_body_util::Full;
use tower_service::Service;

use crate::{Health, State, json};

/// Answers `GET` and `HEAD` of `/livez`, `/readyz` and `/health`: [`Health::service`] makes one.
///
/// - `/livez`: 200, always. It never looks at a component: a dead database is no reason to restart who asks it.
/// - `/readyz`: 200, or 503 if the whole is unhealthy or going away. The body names what is not healthy.
/// - `/health`: the same status, with everything there is to know as `application/health+json`.
///
/// Any other path is 404, any other method 405. Nothing is cached.
///
/// ```
/// use bartizan_health::Health;
/// use http::Request;
/// use tower::ServiceExt;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let health = Health::new();
/// let get = async |path: &str| {
///     health.service().oneshot(Request::get(path).body(()).unwrap()).await.unwrap().status().as_u16()
/// };
/// assert_eq!((get("/readyz").await, get("/livez").await), (200, 200));
/// health.drain();
/// assert_eq!((get("/readyz").await, get("/livez").await, get("/else").await), (503, 200, 404));
/// # }
/// ```
#[derive(Clone)]
pub struct Endpoints {
    health: Health,
}

impl Health {
    /// A service that answers `/livez`, `/readyz` and `/health`.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn service(&self) -> Endpoints {
        Endpoints { health: self.clone() }
    }

    /// The document of `/health`, as a string of JSON.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn to_json(&self) -> String {
        json::document(&self.summary())
    }
}

impl Endpoints {
    fn answer(&self, method: &Method, path: &str) -> Response<Full<Bytes>> {
        let (status, kind, body) = match path {
            _ if !matches!(path, "/livez" | "/readyz" | "/health") => {
                (StatusCode::NOT_FOUND, TEXT, "not found\n".to_owned())
            }
            _ if !matches!(*method, Method::GET | Method::HEAD) => {
                (StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned())
            }
            "/livez" => (StatusCode::OK, TEXT, "alive\n".to_owned()),
            "/readyz" => self.ready(),
            _ => {
                let summary = self.health.summary();
                let ready = !summary.draining && summary.state != State::Unhealthy;
                (status(ready), "application/health+json", json::document(&summary))
            }
        };
        let body = if method == Method::HEAD { String::new() } else { body };
        let mut response = Response::new(Full::from(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        response
    }

    fn ready(&self) -> (StatusCode, &'static str, String) {
        let summary = self.health.summary();
        let components = summary.components.iter().map(|stats| (stats.name.as_str(), stats.state));
        let reports = summary.reports.iter().map(|(name, report)| (name.as_str(), report.state()));
        let mut body = match (summary.draining, summary.state) {
            (true, _) => "draining\n".to_owned(),
            (false, State::Unhealthy) => "not ready\n".to_owned(),
            (false, _) => "ready\n".to_owned(),
        };
        for (name, state) in components.chain(reports).filter(|(_, state)| *state != State::Healthy) {
            // In quotes, so that a name cannot make a line of its own.
            body += &format!("{name:?} is {state}\n");
        }
        (status(!summary.draining && summary.state != State::Unhealthy), TEXT, body)
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn status(ready: bool) -> StatusCode {
    if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

impl<B> Service<Request<B>> for Endpoints {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        ready(Ok(self.answer(request.method(), request.uri().path())))
    }
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoints").field("health", &self.health).finish()
    }
}
