//! Which models are not asked for a while, because their upstreams fail.
//!
//! Each model has a breaker of its own, under its own name, also where two share an upstream: upstreams fail, and limit,
//! by the model, and an operator sees at once what is not served.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use bartizan_circuit_breaker::{CircuitBreaker, State, Stats, Transition};
use bartizan_core::{BoxError, Class as Outcome, Classify, Rejected, RejectionKind, RetryAfter};
use bartizan_provider::{Class, Error, OutOfDescriptors, StillSending};
use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body::Body;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tower::{Layer, Service, ServiceExt};

use crate::{
    ask::{Ask, erased},
    config::{Config, Model},
};

/// The breakers of a gateway, in the order of its models: what all of its workers share.
#[derive(Debug)]
pub(crate) struct CircuitBreakers(Vec<(String, CircuitBreaker)>);

impl CircuitBreakers {
    pub(crate) fn new(config: &Config) -> Self {
        let breaker = |model: &Model| {
            let breaker = CircuitBreaker::new(config.circuit_breaker.settings(&model.limits));
            if !model.circuit_breaker {
                // It costs next to nothing, and can be switched on while the gateway runs.
                breaker.disable();
            }
            (model.name.clone(), breaker)
        };
        Self(config.models.iter().map(breaker).collect())
    }

    /// Watches what `inner`, the upstream of this model, does.
    pub(crate) fn around<S, B>(&self, model: &str, inner: S) -> Ask
    where
        S: Service<Request<Bytes>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let breaker = self.get(model).expect("every model has a breaker");
        let model: Arc<str> = model.into();
        let breaking = breaker.layer().classify(Judge).until_body_end().layer(inner);
        erased(breaking.map_err(move |error| named(&model, error)))
    }

    /// What there is to tell of every breaker.
    pub(crate) fn describe(&self) -> Value {
        self.0.iter().map(|(model, breaker)| describe(model, breaker)).collect()
    }

    /// Does to a model's breaker what its operator wants, and tells what came of it.
    pub(crate) fn command(&self, model: &str, command: &str) -> Result<Value, Error> {
        let breaker = self.get(model).ok_or_else(|| {
            let known: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
            let message =
                format!("there is no circuit breaker {model:?} here, but those of {}", known.join(", "));
            Error::new(Class::NotFound, message).with_code("breaker_not_found")
        })?;
        match command {
            "reset" => breaker.reset(),
            "force-open" => breaker.force_open(),
            "disable" => breaker.disable(),
            _ => {
                let message = format!(
                    "there is no command {command:?} for a circuit breaker, but reset, force-open and disable"
                );
                return Err(Error::new(Class::NotFound, message).with_code("unknown_url"));
            }
        }
        tracing::info!(model, command, "a circuit breaker was commanded by hand");
        Ok(describe(model, breaker))
    }

    /// Logs every change from now on, for ever.
    pub(crate) fn log(&self) -> impl Future<Output = ()> + Send + 'static + use<> {
        let each =
            self.0.iter().map(|(model, breaker)| log(model.clone(), breaker.clone(), breaker.subscribe()));
        let all = join_all(each.collect::<Vec<_>>());
        async {
            all.await;
            std::future::pending::<()>().await;
        }
    }

    /// The state of a model's breaker.
    pub(crate) fn state_of(&self, model: &str) -> Option<State> {
        self.get(model).map(CircuitBreaker::state)
    }

    /// The same in words.
    pub(crate) fn state_name_of(&self, model: &str) -> Option<String> {
        self.state_of(model).map(state_name)
    }

    fn get(&self, model: &str) -> Option<&CircuitBreaker> {
        self.0.iter().find(|(name, _)| name == model).map(|(_, breaker)| breaker)
    }
}

/// What an upstream's answers say about the upstream.
///
/// What may be better the next time, or elsewhere, is a failure. The rest is ignored: a client's mistake, and also refused
/// credentials and a quota that is used up. No pause mends those, and the upstream's own words say what does.
#[derive(Clone, Copy)]
pub(crate) struct Judge;

impl<B> Classify<Response<B>> for Judge {
    fn classify(&self, result: Result<&Response<B>, &(dyn StdError + 'static)>) -> Outcome {
        let error = match result {
            Ok(response) => match response.extensions().get::<Arc<Error>>() {
                Some(error) => &**error,
                None => return Outcome::Success,
            },
            Err(error) => match Error::find(error) {
                Some(error) if error.source().is_some_and(is_nobodys) => return Outcome::Ignore,
                Some(error) => error,
                None => return Outcome::Failure(RetryAfter::Unknown),
            },
        };
        if error.class().is_transient() { Outcome::Failure(error.retry_after()) } else { Outcome::Ignore }
    }
}

/// A client that reads slowly, or has asked for very much; or a gateway that could not ask.
fn is_nobodys(cause: &(dyn StdError + 'static)) -> bool {
    cause.is::<StillSending>() || cause.is::<OutOfDescriptors>()
}

/// What clients are told while probes are under way: those may be over at any moment.
const SOON: Duration = Duration::from_secs(1);

/// A breaker's refusal, with what a client can make of it.
fn named(model: &str, error: BoxError) -> BoxError {
    let Some(rejected) = Rejected::find(&*error).filter(|it| it.kind() == RejectionKind::CircuitOpen) else {
        return error;
    };
    let (state, retry_after) = match rejected.retry_after() {
        RetryAfter::Never => ("was taken out of service by hand", RetryAfter::Never),
        RetryAfter::Unknown => ("has failed too often, and it is being tried out", RetryAfter::After(SOON)),
        wait @ RetryAfter::After(_) => ("has failed too often, and is not asked for now", wait),
    };
    let message = format!("circuit breaker: the upstream of the model {model:?} {state}");
    Error::new(Class::Overloaded, message)
        .with_code("circuit_open")
        .with_retry_after(retry_after)
        .with_source(error)
        .into()
}

fn describe(model: &str, breaker: &CircuitBreaker) -> Value {
    let stats = breaker.stats();
    let ago = stats.last_failure.map(|at| Instant::now().saturating_duration_since(at).as_secs_f64());
    json!({
        "name": model,
        "state": state_name(stats.state),
        "calls": stats.calls,
        "failures": stats.failures,
        "slow": stats.slow,
        "failures_in_a_row": stats.consecutive_failures,
        "probes": stats.probes,
        "opens": stats.opens,
        "refused": stats.refused,
        "late": stats.late,
        "last_failure_ago": ago,
        "half_open_after": half_open_after(&stats),
    })
}

/// In so many seconds time ends it.
fn half_open_after(stats: &Stats) -> Option<f64> {
    match stats.retry_after {
        RetryAfter::After(wait) => Some(wait.as_secs_f64()),
        RetryAfter::Never | RetryAfter::Unknown => None,
    }
}

/// As the commands are written.
fn state_name(state: State) -> String {
    state.to_string().replace(' ', "-")
}

async fn log(model: String, breaker: CircuitBreaker, mut changes: watch::Receiver<Transition>) {
    while changes.changed().await.is_ok() {
        let Transition { from, to, .. } = *changes.borrow_and_update();
        let stats = breaker.stats();
        let reason = match (from, to) {
            (State::Closed, State::Open) => "too many calls failed or were slow",
            (State::HalfOpen, State::Open) => "a probe failed or took too long",
            (State::Open, State::HalfOpen) => "it is tried again",
            (State::HalfOpen, State::Closed) => "enough probes succeeded, or it was reset",
            _ => "by hand",
        };
        let counted = (from, to) == (State::Closed, State::Open);
        tracing::info!(
            model,
            from = state_name(from),
            to = state_name(to),
            reason,
            failures = counted.then_some(stats.failures),
            calls = counted.then_some(stats.calls),
            half_open_after = half_open_after(&stats),
            "a circuit breaker changed"
        );
    }
}
