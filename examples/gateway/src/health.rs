//! How the upstreams fare, model by model: what traffic says, and probes if there are any.
//!
//! Each model is a component under its own name, inside of its circuit breaker: it sees every call that reaches the
//! upstream, and nothing that was refused before.

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use bartizan_core::{BoxError, Class as Outcome, Classify, Ending, Extent, Guard, RetryAfter, UntilBodyEnd};
use bartizan_health::{Component, Explain, Fault, Health, Prober, State, Stats, causes};
use bartizan_provider::{Class, Error, HttpTransport, UsageReport};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header::AUTHORIZATION};
use http_body::Body;
use http_body_util::{BodyExt, Full, Limited};
use secrecy::{ExposeSecret, SecretString};
use tower::{Service, ServiceBuilder, ServiceExt};

use crate::{
    app::transport,
    circuit_breakers::Judge,
    config::{Config, Model},
};

/// The upstreams of a gateway, in the order of its models: what all of its workers share.
#[derive(Debug)]
pub(crate) struct Upstreams {
    health: Health,
    models: Vec<Upstream>,
    shed: bool,
}

/// What is known of a model's upstream.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) component: Component,
    pub(crate) tokens: Arc<Tokens>,
}

/// The tokens that a model's answers have used, as far as they told.
#[derive(Debug, Default)]
pub(crate) struct Tokens {
    pub(crate) prompt: AtomicU64,
    pub(crate) completion: AtomicU64,
}

impl Upstreams {
    pub(crate) fn new(config: &Config) -> Self {
        let health = Health::with(config.health.settings());
        let upstream =
            |model: &Model| Upstream { component: health.component(&model.name), tokens: Arc::default() };
        Self { models: config.models.iter().map(upstream).collect(), shed: config.health.shed, health }
    }

    /// Watches what `inner`, the upstream of this model, does.
    pub(crate) fn around<S, B>(
        &self,
        model: &str,
        inner: S,
    ) -> impl Service<
        Request<Bytes>,
        Response = Response<impl Body<Data = Bytes, Error = BoxError> + Send + 'static + use<S, B>>,
        Error = BoxError,
        Future: Send + 'static,
    >
    + Clone
    + Send
    + Sync
    + 'static
    + use<S, B>
    where
        S: Service<Request<Bytes>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let upstream = self.get(model).expect("every model has a component");
        let layer = upstream.component.layer().classify(Judged).explain(Words).until_body_end();
        let tokens = upstream.tokens.clone();
        ServiceBuilder::new()
            .layer(if self.shed { layer.shed() } else { layer })
            .map_response(move |response: Response<B>| {
                let report = response.extensions().get::<UsageReport>().cloned();
                let spent = report.map(|report| Spent { report, tokens: tokens.clone() });
                UntilBodyEnd.hold(response, spent)
            })
            .service(inner)
    }

    /// Asks every model's upstream as often as the configuration says, if it does. `url` says where a model's upstream is.
    /// They are to be polled, and never end.
    pub(crate) fn probers(&self, config: &Config, url: impl Fn(&Model) -> String) -> Vec<Prober> {
        let Some(every) = config.health.probe_every else { return Vec::new() };
        let transport = transport(config.limits.keep_idle);
        let prober = |model: &Model| {
            let (transport, key) = (transport.clone().connect_within(model.limits.connect), model.api_key());
            let url = format!("{}/models", url(model));
            let probe = move || probe(transport.clone(), url.clone(), key.clone());
            self.health.prober(&model.name, every, probe).1
        };
        config.models.iter().map(prober).collect()
    }

    /// All of them, in the order of the models.
    pub(crate) fn all(&self) -> &[Upstream] {
        &self.models
    }

    pub(crate) fn get(&self, model: &str) -> Option<&Upstream> {
        self.models.iter().find(|upstream| upstream.component.name() == model)
    }

    /// Forgets what is known of all of them, but for what is counted for ever.
    pub(crate) fn reset(&self) {
        self.health.reset();
    }

    pub(crate) fn drain(&self) {
        self.health.drain();
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.health.is_draining()
    }
}

/// What a breaker counts, and also what no pause mends: whoever asks such an upstream gets no answer either.
#[derive(Clone, Copy)]
struct Judged;

impl<B> Classify<Response<B>> for Judged {
    fn classify(&self, result: Result<&Response<B>, &(dyn StdError + 'static)>) -> Outcome {
        let lasting = error_of(result)
            .is_some_and(|error| matches!(error.class(), Class::Auth | Class::Quota | Class::NotFound));
        if lasting { Outcome::Failure(RetryAfter::Unknown) } else { Judge.classify(result) }
    }
}

/// What the provider says of a result that is none.
fn error_of<'a, B>(result: Result<&'a Response<B>, &'a (dyn StdError + 'static)>) -> Option<&'a Error> {
    match result {
        Ok(response) => response.extensions().get::<Arc<Error>>().map(|error| &**error),
        Err(error) => Error::find(error),
    }
}

/// What an upstream's failure is called in statistics, and what it says. An [`Error`]'s words hold no secret.
#[derive(Clone, Copy)]
struct Words;

impl<B> Explain<Response<B>> for Words {
    fn explain<'a>(
        &self,
        result: Result<&'a Response<B>, &'a (dyn StdError + 'static)>,
    ) -> Option<Fault<'a>> {
        match error_of(result) {
            Some(error) => Some(Fault::new(class_name(error.class())).says(error)),
            None => causes().explain(result),
        }
    }
}

fn class_name(class: Class) -> &'static str {
    match class {
        Class::Auth => "auth",
        Class::RateLimit => "rate_limit",
        Class::Quota => "quota",
        Class::Timeout => "timeout",
        Class::Connect => "connect",
        Class::ContextLength => "context_length",
        Class::ContentPolicy => "content_policy",
        Class::BadRequest => "bad_request",
        Class::TooLarge => "too_large",
        Class::NotFound => "not_found",
        Class::Upstream => "upstream",
        Class::Overloaded => "overloaded",
        Class::Malformed => "malformed",
        _ => "unknown",
    }
}

/// Counts the tokens of an answer when it is over, however it ends.
struct Spent {
    report: UsageReport,
    tokens: Arc<Tokens>,
}

impl Guard for Spent {
    fn settle(self, _: Ending<'_>) {}
}

impl Drop for Spent {
    fn drop(&mut self) {
        if let Some(usage) = self.report.get() {
            self.tokens.prompt.fetch_add(usage.prompt_tokens, Relaxed);
            self.tokens.completion.fetch_add(usage.completion_tokens, Relaxed);
        }
    }
}

/// The list of an upstream's models costs nothing to ask for.
async fn probe(transport: HttpTransport, url: String, key: Option<SecretString>) -> Result<(), BoxError> {
    let mut request = Request::get(url).body(Full::default())?;
    if let Some(key) = key {
        let mut value = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()))?;
        value.set_sensitive(true);
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    let response = transport.oneshot(request).await?;
    let status = response.status();
    // Read to its end, so that the connection is kept. Whoever lists more need not be read.
    let _ = Limited::new(response.into_body(), 1 << 20).collect().await;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Err(format!("it refuses the API key (status {})", status.as_u16()).into())
        }
        status if status.is_server_error() => {
            Err(format!("it answers with status {}", status.as_u16()).into())
        }
        // Not every upstream has a list of its models, but it has answered.
        _ => Ok(()),
    }
}

/// The worse of what the component and the breaker of a model say: while a breaker is open nothing reaches the upstream,
/// and nothing can go wrong.
pub(crate) fn state(stats: &Stats, breaker: Option<bartizan_circuit_breaker::State>) -> State {
    use bartizan_circuit_breaker::State as Breaker;

    let guarded = match breaker {
        Some(Breaker::Open | Breaker::ForcedOpen) => State::Unhealthy,
        Some(Breaker::HalfOpen) => State::Degraded,
        Some(Breaker::Closed | Breaker::Disabled) | None => State::Healthy,
    };
    stats.state.max(guarded)
}
