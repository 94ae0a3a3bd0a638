//! The paths at which the gateway tells of itself.

use axum::{
    Router,
    extract::State,
    routing::{get, post},
};
use bartizan_provider::Error;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Response, StatusCode, Uri,
    header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};
use http_body_util::Full;

use super::{App, json_response, no_such_path, refuse};
use crate::{config::ShowTo, status};

pub(super) fn routes(app: &App) -> Router<App> {
    let post_only = async || Error::method_not_allowed("POST").to_response();
    let mut routes =
        Router::new().route("/", get(page)).route("/health", get(health)).route("/metrics", get(metrics));
    if app.access.has_admin() {
        routes = routes.route("/admin/health/reset", post(reset).fallback(post_only));
    }
    routes
}

/// The page itself holds nothing: it asks for `/health`, with the admin token if that is needed.
const PAGE: &str = include_str!("../status_page.html");

/// It needs nothing from elsewhere, and whatever names there are can bring nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

async fn page() -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, "text/html; charset=utf-8", PAGE.to_owned());
    response.headers_mut().insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    response
}

async fn health(State(app): State<App>, headers: HeaderMap, uri: Uri) -> Response<Full<Bytes>> {
    if let Err(error) = admit(&app, &headers, &uri) {
        return refuse(error.into());
    }
    let (told, works) = status::health(&app);
    let status = if works { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    text(status, "application/json", told.to_string())
}

async fn metrics(State(app): State<App>, headers: HeaderMap, uri: Uri) -> Response<Full<Bytes>> {
    match admit(&app, &headers, &uri) {
        Ok(()) => text(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", status::exposition(&app)),
        Err(error) => refuse(error.into()),
    }
}

/// Forgets what is known of the upstreams. What is counted for ever goes on.
async fn reset(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    app.upstreams.reset();
    tracing::info!("the health of the upstreams was reset by hand");
    json_response(&status::health(&app).0)
}

/// Names of models, and errors of upstreams, are not for everybody.
fn admit(app: &App, headers: &HeaderMap, uri: &Uri) -> Result<(), Error> {
    if is_for_all(app) {
        Ok(())
    } else if is_hidden(app) {
        Err(no_such_path(app, uri))
    } else {
        app.access.admit_admin(headers)
    }
}

fn is_for_all(app: &App) -> bool {
    match app.config.health.show_to {
        ShowTo::All => true,
        ShowTo::Admin => false,
        ShowTo::Auto => app.config.server.listen.ip().to_canonical().is_loopback(),
    }
}

/// Whether nobody may see it: it is the admin's, and there is none.
pub(super) fn is_hidden(app: &App) -> bool {
    !is_for_all(app) && !app.access.has_admin()
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
