//! What operators ask and command, with the admin token.

use axum::{
    Router,
    extract::{
        Path, Query, State,
        rejection::{PathRejection, QueryRejection},
    },
    routing::{get, post},
};
use bartizan_provider::{Class, Error, Tenant};
use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body_util::Full;
use serde_json::json;

use super::{App, json_response, refuse};

pub(super) fn routes() -> Router<App> {
    let post_only = async || Error::method_not_allowed("POST").to_response();
    Router::new()
        .route("/admin/limits", get(describe_limits))
        .route("/admin/dedup", get(describe_dedup))
        .route("/admin/dedup/clear", post(clear_dedup).fallback(post_only))
        .route("/admin/batches", get(describe_batches))
        .route("/admin/breakers", get(describe_breakers))
        .route("/admin/fallbacks", get(describe_fallbacks))
        .route("/admin/breakers/{*which}", post(command_breaker).fallback(post_only))
}

/// What the rate limits have done, and with `?tenant=` what that tenant has left.
async fn describe_limits(
    State(app): State<App>,
    headers: HeaderMap,
    query: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    let tenant = match query.as_ref().map(|Query(pairs)| &pairs[..]) {
        Ok([]) => None,
        Ok([(name, tenant)]) if name == "tenant" => Some(Tenant::from(tenant.as_str())),
        _ => {
            let message = "the query of this path is `?tenant=` and the name of one tenant, or nothing";
            return Error::new(Class::BadRequest, message).to_response();
        }
    };
    let limits = app.rate_limits.map_or_else(|| json!([]), |limits| limits.describe(tenant.as_ref()));
    json_response(&json!({"limits": limits}))
}

/// How many requests were not sent twice, and what is kept.
async fn describe_dedup(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    json_response(&json!({"dedup": app.dedup.map(|dedup| dedup.describe())}))
}

/// Forgets all answers that are kept.
async fn clear_dedup(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    let Some(dedup) = app.dedup else {
        let message = "nothing is deduplicated here, so nothing is kept";
        return Error::new(Class::NotFound, message).with_code("dedup_off").to_response();
    };
    dedup.clear();
    json_response(&json!({"dedup": dedup.describe()}))
}

/// What has been sent together.
async fn describe_batches(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    let batches = app.batches.map_or_else(|| json!([]), |batches| batches.describe());
    json_response(&json!({"batches": batches}))
}

/// What the circuit breakers have seen and done.
async fn describe_breakers(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    json_response(&json!({"breakers": app.circuit_breakers.describe()}))
}

/// Which models have answered for others, and which are left alone; and how many requests nobody has answered.
async fn describe_fallbacks(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    let mut told = json!({"fallbacks": app.fallbacks.describe()});
    for (why, requests) in app.fallbacks.unanswered() {
        told[why] = requests.into();
    }
    json_response(&told)
}

/// What is done to a breaker by hand: the path is a model's name, which may have slashes in it, and a command.
async fn command_breaker(
    State(app): State<App>,
    headers: HeaderMap,
    path: Result<Path<String>, PathRejection>,
) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.admit_admin(&headers) {
        return refuse(error.into());
    }
    let Ok(Path(path)) = path else {
        return Error::new(Class::BadRequest, "the path is not UTF-8 text").to_response();
    };
    let (model, command) = path.rsplit_once('/').unwrap_or((&path, ""));
    match app.circuit_breakers.command(model, command) {
        Ok(breaker) => json_response(&breaker),
        Err(error) => error.to_response(),
    }
}
