//! The service of the gateway: its routes, and the stack of layers behind the ones that ask a model.

use std::{
    collections::HashMap,
    error::Error as StdError,
    future::{Ready, ready},
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State, rejection::PathRejection},
    routing::get,
};
use bartizan_core::{BoxError, Rejected, RejectionLayer, chain};
use bartizan_fallback::NotBegun;
use bartizan_provider::{
    Class, Error, ErrorEventsLayer, Facts, HttpTransport, IntakeLayer, Limits, Provider, Tenant, mock::Mock,
    openai_error,
};
use bartizan_validate::Report;
use bytes::Bytes;
use futures_util::future::{Either, join_all};
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{CONTENT_TYPE, WWW_AUTHENTICATE},
};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, filter::FilterLayer, util::Oneshot};

use crate::{
    access::Access,
    ask::{Ask, erased},
    batches::Batches,
    calls::logged,
    circuit_breakers::CircuitBreakers,
    config::{Config, Model, Upstream},
    dedup::Dedup,
    fallbacks::{self, Fallbacks},
    health::Upstreams,
    metrics::Metrics,
    rate_limits::{self, RateLimits},
    validation::{self, Validation},
};

mod admin;
mod status;

/// What all workers share.
#[derive(Clone, Debug)]
pub struct App {
    config: Arc<Config>,
    /// Where the embedded mock listens, if a model asks it.
    mock: Option<SocketAddr>,
    access: Arc<Access>,
    /// `None` if nothing is limited.
    rate_limits: Option<Arc<RateLimits>>,
    circuit_breakers: Arc<CircuitBreakers>,
    fallbacks: Arc<Fallbacks>,
    /// `None` if no model wants it.
    dedup: Option<Arc<Dedup>>,
    upstreams: Arc<Upstreams>,
    metrics: Arc<Metrics>,
    /// `None` if embedding requests are not sent together.
    batches: Option<Arc<Batches>>,
    /// `None` if no model is guarded.
    validation: Option<Arc<Validation>>,
    draining: Arc<AtomicBool>,
}

impl App {
    /// Prepares to serve `config`. The future is to be run beside the gateway, and never ends: it is the embedded mock's
    /// server, if a model needs that, and logs what circuit breakers do.
    ///
    /// # Errors
    ///
    /// When the mock finds no port on loopback.
    ///
    /// # Panics
    ///
    /// If the configuration's circuit breakers or its deduplication can never work; those of one that was loaded can.
    pub async fn new(config: Config) -> io::Result<(Self, impl Future<Output = ()>)> {
        let mut listener = None;
        if config.models.iter().any(|model| matches!(model.upstream, Upstream::Mock)) {
            listener = Some(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        }
        let mock = listener.as_ref().map(TcpListener::local_addr).transpose()?;
        let names: Vec<_> = config.models.iter().map(|model| model.model.clone()).collect();
        let config = Arc::new(config);
        let app = Self {
            access: Arc::new(Access::new(&config)),
            rate_limits: RateLimits::new(&config),
            circuit_breakers: Arc::new(CircuitBreakers::new(&config)),
            fallbacks: Arc::new(Fallbacks::new(&config)),
            dedup: Dedup::new(&config),
            upstreams: Arc::new(Upstreams::new(&config)),
            metrics: Arc::new(Metrics::new()),
            batches: Batches::new(&config),
            validation: Validation::new(&config),
            config,
            mock,
            draining: Arc::default(),
        };
        let log = app.circuit_breakers.log();
        let probe = join_all(app.upstreams.probers(&app.config, |model| app.base_url(model)));
        let serve = async move {
            match listener {
                Some(listener) => {
                    let mock = Mock::with_models(names);
                    mock.keep_requests(0);
                    mock.serve(listener).await;
                }
                None => std::future::pending().await,
            }
        };
        let probes = app.config.health.probe_every.is_some();
        let beside = async move {
            tokio::select! {
                () = serve => {}
                () = log => {}
                _ = probe, if probes => {}
            }
        };
        Ok((app, beside))
    }

    /// The configuration that is served.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// From now on `/readyz` says that this gateway is going away.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
        self.upstreams.drain();
    }

    /// The service of one worker, with upstream connections of its own.
    ///
    /// # Panics
    ///
    /// If the configuration has an upstream URL that no provider takes; one that was loaded has none. Outside of a tokio
    /// runtime, if embedding requests are sent together.
    pub fn service(&self) -> Router {
        let config = &self.config;
        let pooled = transport(config.limits.keep_idle);
        let target = |model: &Model| {
            let transport = match model.limits.keep_idle {
                own if own != config.limits.keep_idle => transport(own),
                _ => pooled.clone(),
            };
            let provider = self.upstreams.around(&model.name, self.provider(model, transport));
            let begun = self.fallbacks.begun(model).layer(provider);
            let logged = logged(&model.name, &self.base_url(model), begun);
            let mut upstream = self.circuit_breakers.around(&model.name, logged);
            if let Some(batches) = &self.batches {
                upstream = batches.around(&model.name, upstream);
            }
            (model.name.clone(), self.fallbacks.target(model, upstream))
        };
        let guards = self.validation.as_ref().map(|validation| validation.guards(&pooled));
        let targets: HashMap<String, Ask> = config.models.iter().map(target).collect();
        let stand_in = |name: &str| {
            let target = targets[name].clone();
            match &guards {
                Some(guards) => guards.stand_in(name, target),
                None => target,
            }
        };
        let asked = |(name, alone): (&String, &Ask)| {
            (name.clone(), self.fallbacks.around(name, alone.clone(), stand_in))
        };
        let models = Models {
            upstreams: Arc::new(targets.iter().map(asked).collect::<HashMap<_, _>>()),
            tenant_header: config.server.tenant_header.clone(),
        };
        let mut models = erased(models);
        if let Some(limits) = &self.rate_limits {
            models = limits.following(models);
        }
        if let Some(dedup) = &self.dedup {
            models = dedup.around(models);
        }
        if let Some(guards) = &guards {
            models = guards.around(models);
        }
        if let Some(limits) = &self.rate_limits {
            models = limits.around(models, refuse);
        }
        self.routes(models)
    }

    /// All paths, of which `models` answers what asks a model.
    fn routes(&self, models: Ask) -> Router {
        let server = &self.config.server;
        let intake = IntakeLayer::new()
            .max_body(server.max_body_bytes as u64)
            .body_within(server.body_timeout)
            .tenant_header(server.tenant_header.clone());
        let access = self.access.clone();
        let ask = ServiceBuilder::new()
            .layer(ErrorEventsLayer::new().on_error(log as fn(&BoxError)))
            .layer(RejectionLayer::new(refuse))
            .layer(FilterLayer::new(move |request: Request<axum::body::Body>| {
                access.admit(request).map_err(BoxError::from)
            }))
            .layer(intake)
            .service(models);
        let ask = self.metrics.around(ask);

        let mut routes = Router::new()
            .route_service("/v1/chat/completions", ask.clone())
            .route_service("/v1/embeddings", ask)
            .route("/v1/models", get(list_models))
            .route("/v1/models/{*id}", get(retrieve_model))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(is_ready))
            .merge(status::routes(self));
        if self.access.has_admin() {
            routes = routes.merge(admin::routes());
        }
        routes
            .fallback(async |State(app): State<App>, uri: Uri| no_such_path(&app, &uri).to_response())
            .method_not_allowed_fallback(async || Error::method_not_allowed("GET, HEAD").to_response())
            .with_state(self.clone())
    }

    fn provider(&self, model: &Model, transport: HttpTransport) -> Provider<HttpTransport> {
        let transport = transport.connect_within(model.limits.connect);
        let provider =
            Provider::new(transport, &self.base_url(model)).expect("the configuration checks its URLs");
        let provider = provider.model(model.model.as_str()).limits(Limits {
            head: model.limits.head,
            first_frame: model.limits.first_frame,
            idle: model.limits.idle,
            total: model.limits.total,
        });
        match model.api_key() {
            Some(key) => provider.api_key(key),
            None => provider,
        }
    }

    /// What stands before `/chat/completions`.
    fn base_url(&self, model: &Model) -> String {
        match (&model.upstream, self.mock) {
            (Upstream::OpenAi { base_url, .. }, _) => base_url.to_string(),
            (Upstream::Mock, Some(mock)) => format!("http://{mock}/v1"),
            (Upstream::Mock, None) => unreachable!("a mock is started when a model asks for one"),
        }
    }

    pub(crate) fn rate_limits(&self) -> Option<&RateLimits> {
        self.rate_limits.as_deref()
    }

    pub(crate) fn circuit_breakers(&self) -> &CircuitBreakers {
        &self.circuit_breakers
    }

    pub(crate) fn fallbacks(&self) -> &Fallbacks {
        &self.fallbacks
    }

    pub(crate) fn dedup(&self) -> Option<&Dedup> {
        self.dedup.as_deref()
    }

    pub(crate) fn batches(&self) -> Option<&Batches> {
        self.batches.as_deref()
    }

    pub(crate) fn validation(&self) -> Option<&Validation> {
        self.validation.as_deref()
    }

    pub(crate) fn upstreams(&self) -> &Upstreams {
        &self.upstreams
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// Unused connections a worker keeps to each host.
const MAX_IDLE: usize = 256;

/// Keeps unused connections for so long.
pub(crate) fn transport(keep_idle: Duration) -> HttpTransport {
    let most = if keep_idle.is_zero() { 0 } else { MAX_IDLE };
    HttpTransport::new().keep_idle(most, keep_idle)
}

/// Sends a request to the upstream of the model that it names.
struct Models<S> {
    upstreams: Arc<HashMap<String, S>>,
    tenant_header: HeaderName,
}

impl<S: Clone> Models<S> {
    /// The request's upstream, and the request without what is between the client and the gateway.
    fn route(&self, mut request: Request<Bytes>) -> Result<(S, Request<Bytes>), Error> {
        request.headers_mut().remove(&self.tenant_header);
        let facts = request.extensions().get::<Facts>().expect("intake has read the request");
        tracing::debug!(
            model = facts.model(),
            operation = ?facts.operation(),
            stream = facts.stream(),
            tenant = facts.tenant().map(Tenant::as_str),
            estimated_tokens = facts.estimated_tokens(),
            "asking"
        );
        match self.upstreams.get(facts.model()) {
            Some(upstream) => Ok((upstream.clone(), request)),
            None => Err(no_such_model(facts.model())),
        }
    }
}

impl<S> Service<Request<Bytes>> for Models<S>
where
    S: Service<Request<Bytes>, Error = BoxError> + Clone,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = Either<Oneshot<S, Request<Bytes>>, Ready<Result<S::Response, BoxError>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        match self.route(request) {
            Ok((upstream, request)) => Either::Left(upstream.oneshot(request)),
            Err(error) => Either::Right(ready(Err(error.into()))),
        }
    }
}

impl<S> Clone for Models<S> {
    fn clone(&self) -> Self {
        Self { upstreams: self.upstreams.clone(), tenant_header: self.tenant_header.clone() }
    }
}

/// As much of a name as a person can have meant.
fn beginning(name: &str) -> String {
    name.chars().take(100).collect()
}

fn no_such_model(model: &str) -> Error {
    let model = beginning(model);
    let message = format!("there is no model {model:?} here; GET /v1/models lists those that there are");
    Error::new(Class::NotFound, message).with_param("model").with_code("model_not_found")
}

/// What a client sees of an error. What it is not told, because it is ours or the upstream's, goes to the log.
fn refuse(error: BoxError) -> Response<Full<Bytes>> {
    log(&error);
    let refusal = rate_limits::refusal(&error).or_else(|| fallbacks::refusal(&error));
    let mut response = refusal.unwrap_or_else(|| openai_error(error));
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// What has failed of an upstream's was [logged](crate::calls) where it happened.
fn log(error: &BoxError) {
    if let Some(report) = Report::find(&**error) {
        return validation::log(report);
    }
    let ours = |error: &(dyn StdError + 'static)| {
        error.is::<Error>() || error.is::<Rejected>() || error.is::<NotBegun>()
    };
    if chain(&**error).any(ours) {
        // Not worth a line for each: they are counted.
        tracing::debug!(%error, "a request was refused, or has failed");
    } else {
        tracing::error!(%error, "a call failed");
    }
}

fn describe(model: &Model) -> Value {
    let owned_by = match model.upstream {
        Upstream::OpenAi { .. } => "openai",
        Upstream::Mock => "mock",
    };
    json!({"id": model.name, "object": "model", "created": 0, "owned_by": owned_by})
}

async fn list_models(State(app): State<App>, headers: HeaderMap) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.tenant(&headers) {
        return refuse(error.into());
    }
    let data: Vec<_> = app.config.models.iter().map(describe).collect();
    json_response(&json!({"object": "list", "data": data}))
}

async fn retrieve_model(
    State(app): State<App>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Response<Full<Bytes>> {
    if let Err(error) = app.access.tenant(&headers) {
        return refuse(error.into());
    }
    let Ok(Path(id)) = id else {
        return Error::new(Class::BadRequest, "the path is not UTF-8 text").to_response();
    };
    match app.config.models.iter().find(|model| model.name == id) {
        Some(model) => json_response(&describe(model)),
        None => no_such_model(&id).to_response(),
    }
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn is_ready(State(app): State<App>) -> (StatusCode, &'static str) {
    if app.draining.load(Ordering::Relaxed) {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

fn no_such_path(app: &App, uri: &Uri) -> Error {
    let rest = if status::is_hidden(app) { " and /" } else { ", /, /health and /metrics" };
    let message = format!(
        "there is no {:?} here, but /v1/chat/completions, /v1/embeddings, /v1/models, /livez, /readyz{rest}",
        beginning(uri.path())
    );
    Error::new(Class::NotFound, message).with_code("unknown_url")
}
