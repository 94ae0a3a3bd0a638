//! What the gateway tells of itself: `/health` for programs, `/metrics` for Prometheus, the page at `/` for people.
//!
//! All three read the same statistics. A layer shows up in all of them by an entry in [`LAYERS`].

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use bartizan_health::{Latency, State as Health, Stats};
use serde_json::{Map, Value, json};

use crate::{
    app::App,
    batches::Batches,
    health::state,
    metrics::{Exposition, Kind},
    validation::Validation,
};

/// A layer that tells of itself.
struct Layer {
    /// What it is called in `/health` and on the page.
    name: &'static str,
    /// A list of objects, one for each of what it has, as the admin endpoints show it; null if it is not used.
    tell: fn(&App) -> Value,
    /// The label that tells those apart in `/metrics`, by their `name`.
    label: &'static str,
    /// The numbers of theirs that `/metrics` shows.
    fields: &'static [Field],
}

/// A number of an object: its key, and what it is in `/metrics`.
struct Field {
    key: &'static str,
    metric: &'static str,
    kind: Kind,
    help: &'static str,
}

const fn counter(key: &'static str, metric: &'static str, help: &'static str) -> Field {
    Field { key, metric, kind: Kind::Counter, help }
}

const fn gauge(key: &'static str, metric: &'static str, help: &'static str) -> Field {
    Field { key, metric, kind: Kind::Gauge, help }
}

/// Every layer there is.
const LAYERS: &[Layer] = &[
    Layer {
        name: "rate_limits",
        tell: |app| app.rate_limits().map_or(Value::Null, |limits| limits.describe(None)),
        label: "limit",
        fields: &[
            counter("admitted", "gateway_rate_limit_admitted_total", "Requests that a rate limit let pass."),
            counter("refused", "gateway_rate_limit_refused_total", "Requests that a rate limit refused."),
            counter(
                "timed_out",
                "gateway_rate_limit_timed_out_total",
                "Requests that waited in vain for a rate limit.",
            ),
            gauge("queued", "gateway_rate_limit_queue_length", "Requests that wait for a rate limit."),
            gauge("keys", "gateway_rate_limit_keys", "Tenants, or models, that a rate limit remembers."),
        ],
    },
    Layer {
        name: "circuit_breakers",
        tell: |app| app.circuit_breakers().describe(),
        label: "model",
        fields: &[
            counter(
                "opens",
                "gateway_circuit_breaker_opens_total",
                "How often a model's circuit breaker has opened.",
            ),
            counter(
                "refused",
                "gateway_circuit_breaker_refused_total",
                "Requests that a circuit breaker refused.",
            ),
            gauge(
                "probes",
                "gateway_circuit_breaker_probes",
                "Probes of a circuit breaker that are under way.",
            ),
        ],
    },
    Layer {
        name: "fallbacks",
        tell: |app| app.fallbacks().describe(),
        label: "model",
        fields: &[
            counter(
                "took_over",
                "gateway_fallback_took_over_total",
                "Requests that a model answered for another one.",
            ),
            counter(
                "failed",
                "gateway_fallback_failed_total",
                "Calls for which a model's fallback was asked.",
            ),
            counter(
                "skipped",
                "gateway_fallback_skipped_total",
                "Calls that were not made to a model that is left alone.",
            ),
        ],
    },
    Layer {
        name: "fallback_unanswered",
        tell: |app| {
            let unanswered = app.fallbacks().unanswered();
            unanswered.map(|(why, requests)| json!({"name": why, "requests": requests})).into()
        },
        label: "why",
        fields: &[counter(
            "requests",
            "gateway_fallback_unanswered_total",
            "Requests to models with fallbacks that nobody has answered: all have failed, the time was over, or nobody was \
             ready.",
        )],
    },
    Layer {
        name: "dedup",
        tell: |app| app.dedup().map_or(Value::Null, |dedup| json!([named("answers", dedup.describe())])),
        label: "table",
        fields: &[
            counter("hits", "gateway_dedup_hits_total", "Requests that were answered with what was kept."),
            counter("collapsed", "gateway_dedup_collapsed_total", "Requests that joined one under way."),
            counter(
                "refreshes",
                "gateway_dedup_refreshes_total",
                "Calls for a new answer in place of a stale one.",
            ),
            counter("misses", "gateway_dedup_misses_total", "Requests that had to be sent."),
            counter("stale", "gateway_dedup_stale_total", "Answers that were given though stale."),
            counter(
                "saved_tokens",
                "gateway_dedup_saved_tokens_total",
                "Tokens of answers that were shared.",
            ),
            gauge(
                "hit_rate",
                "gateway_dedup_hit_ratio",
                "The share of requests that were not sent, from 0 to 1.",
            ),
            gauge("entries", "gateway_dedup_entries", "Answers that are kept."),
            gauge("bytes", "gateway_dedup_bytes", "The bytes of the answers that are kept."),
        ],
    },
    Layer {
        name: "embedding_batches",
        tell: |app| app.batches().map_or(Value::Null, Batches::describe),
        label: "model",
        fields: &[
            counter("batches", "gateway_batches_total", "Batches of embedding requests that were sent."),
            counter("requests", "gateway_batched_requests_total", "Embedding requests in those."),
            gauge("mean_size", "gateway_batch_mean_size", "Requests in a batch, in the mean of all so far."),
            gauge("waiting", "gateway_batch_waiting", "Embedding requests that wait for their batch to go."),
        ],
    },
    Layer {
        name: "validation",
        tell: |app| app.validation().map_or(Value::Null, Validation::describe),
        label: "model",
        fields: &[
            counter(
                "checked_requests",
                "gateway_validation_checked_requests_total",
                "Requests that were checked.",
            ),
            counter(
                "refused_requests",
                "gateway_validation_refused_requests_total",
                "Requests that were refused for what they say.",
            ),
            counter(
                "reported_requests",
                "gateway_validation_reported_requests_total",
                "Requests that passed although they break a rule.",
            ),
            counter(
                "checked_answers",
                "gateway_validation_checked_answers_total",
                "Answers that were checked.",
            ),
            counter(
                "refused_answers",
                "gateway_validation_refused_answers_total",
                "Answers that were refused, and streams that were cut.",
            ),
            counter(
                "reported_answers",
                "gateway_validation_reported_answers_total",
                "Answers, and windows of streams, that passed although they break a rule.",
            ),
        ],
    },
    Layer {
        name: "validation_rules",
        tell: |app| app.validation().map_or(Value::Null, Validation::describe_rules),
        label: "rule",
        fields: &[
            counter(
                "refused_requests",
                "gateway_validation_rule_refused_requests_total",
                "Requests that the rule refused.",
            ),
            counter(
                "reported_requests",
                "gateway_validation_rule_reported_requests_total",
                "Requests that break the rule, which did not refuse them.",
            ),
            counter(
                "refused_answers",
                "gateway_validation_rule_refused_answers_total",
                "Answers that the rule refused.",
            ),
            counter(
                "reported_answers",
                "gateway_validation_rule_reported_answers_total",
                "Answers, and windows of streams, that break the rule, which did not refuse them.",
            ),
        ],
    },
];

/// What there is one of needs a name all the same, as those have of which there are many.
fn named(name: &str, mut told: Value) -> Value {
    told["name"] = name.into();
    told
}

/// The states of a circuit breaker, of which one is 1.
const BREAKER_STATES: [&str; 5] = ["closed", "open", "half-open", "forced-open", "disabled"];

/// How all of it fares: as the best model, but degraded as soon as one is not healthy.
fn whole(models: &[(Stats, Health)]) -> Health {
    let all = || models.iter().map(|(_, state)| *state);
    match (all().min(), all().max()) {
        (Some(Health::Unhealthy), _) => Health::Unhealthy,
        (_, Some(Health::Degraded | Health::Unhealthy)) => Health::Degraded,
        _ => Health::Healthy,
    }
}

/// Every model with its state, circuit breaker included.
fn models(app: &App) -> Vec<(Stats, Health)> {
    let tell = |upstream: &crate::health::Upstream| {
        let stats = upstream.component.stats();
        let state = state(&stats, app.circuit_breakers().state_of(&stats.name));
        (stats, state)
    };
    app.upstreams().all().iter().map(tell).collect()
}

/// What `/health` says, and whether anything works.
pub(crate) fn health(app: &App) -> (Value, bool) {
    let models = models(app);
    let whole = whole(&models);
    let providers: Map<_, _> =
        models.iter().map(|(stats, state)| (stats.name.clone(), provider(app, stats, *state))).collect();
    let layers: Map<_, _> = LAYERS
        .iter()
        .map(|layer| (layer.name.to_owned(), (layer.tell)(app)))
        .filter(|(_, told)| !told.is_null())
        .collect();
    let told = json!({
        "status": whole.as_str(),
        "draining": app.upstreams().is_draining(),
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": app.metrics().started.elapsed().unwrap_or_default().as_secs(),
        "provider_health": providers,
        "metrics": metrics(app, &models),
        "layers": layers,
    });
    (told, whole != Health::Unhealthy)
}

fn provider(app: &App, stats: &Stats, state: Health) -> Value {
    let errors: Map<_, _> = stats.errors.iter().map(|(class, n)| ((*class).to_owned(), json!(n))).collect();
    json!({
        "status": state.as_str(),
        "success_rate": (stats.requests > 0).then(|| 1.0 - stats.error_rate()),
        "last_error": stats.last_error.as_ref().map(|last| {
            json!({"message": last.message, "seconds_ago": rounded(last.ago)})
        }),
        "response_time": latency(&stats.latency),
        "time_to_first_frame": latency(&stats.first_frame),
        "requests": stats.requests,
        "failures": stats.failures,
        "window_seconds": stats.window.as_secs_f64(),
        "consecutive_failures": stats.consecutive_failures,
        "errors": errors,
        "seconds_in_state": rounded(stats.in_state),
        "probes": stats.active.map(Health::as_str),
        "failed_probes": stats.failed_probes,
        "circuit_breaker": app.circuit_breakers().state_name_of(&stats.name),
        "total_requests": stats.totals.successes + stats.totals.failures + stats.totals.ignored,
    })
}

/// Milliseconds, of the last one to two windows.
fn latency(latency: &Latency) -> Value {
    let ms = |duration: Option<Duration>| duration.map(|it| (it.as_secs_f64() * 1e6).round() / 1e3);
    json!({
        "mean_ms": ms(latency.mean), "p50_ms": ms(latency.p50), "p90_ms": ms(latency.p90), "p99_ms": ms(latency.p99),
    })
}

fn rounded(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e3).round() / 1e3
}

/// Sums over all models since the start, and of the gateway itself.
fn metrics(app: &App, models: &[(Stats, Health)]) -> Value {
    let sum = |of: fn(&Stats) -> u64| models.iter().map(|(stats, _)| of(stats)).sum::<u64>();
    let (successes, failures) = (sum(|it| it.totals.successes), sum(|it| it.totals.failures));
    let tokens = |of: fn(&crate::health::Tokens) -> u64| -> u64 {
        app.upstreams().all().iter().map(|upstream| of(&upstream.tokens)).sum()
    };
    let overhead = app.metrics().overhead.counts();
    let micros = |quantile| overhead.quantile(quantile).map(|it| (it.as_secs_f64() * 1e7).round() / 1e1);
    let responses: Map<_, _> =
        app.metrics().responses().map(|(status, n)| (status.to_string(), json!(n))).collect();
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let success_rate = (successes + failures > 0).then(|| successes as f64 / (successes + failures) as f64);
    json!({
        "total_requests": successes + failures + sum(|it| it.totals.ignored),
        "successful_requests": successes,
        "failed_requests": failures,
        "ignored_requests": sum(|it| it.totals.ignored),
        "cancelled_requests": sum(|it| it.totals.cancelled),
        "success_rate": success_rate,
        "prompt_tokens": tokens(|it| it.prompt.load(Relaxed)),
        "completion_tokens": tokens(|it| it.completion.load(Relaxed)),
        "responses": responses,
        "abandoned_requests": app.metrics().abandoned(),
        "overhead_us": {"p50": micros(0.5), "p99": micros(0.99)},
    })
}

/// Upper bounds of 1 ms to 9 minutes.
const LATENCY_BITS: std::ops::RangeInclusive<u32> = 10..=29;
/// Upper bounds of 16 µs to a second.
const OVERHEAD_BITS: std::ops::RangeInclusive<u32> = 4..=20;

/// What `/metrics` says.
pub(crate) fn exposition(app: &App) -> String {
    let mut out = Exposition::new();
    let models = models(app);
    itself(app, &mut out);
    upstreams(app, &models, &mut out);
    let breakers = app.circuit_breakers();
    let mut family = out.family(
        "gateway_circuit_breaker_state",
        Kind::Gauge,
        "1 for the state that a model's circuit breaker is in, else 0.",
    );
    for (stats, _) in &models {
        let now = breakers.state_name_of(&stats.name);
        for state in BREAKER_STATES {
            let labels = [("model", stats.name.as_str()), ("state", state)];
            family.sample(&labels, u8::from(now.as_deref() == Some(state)));
        }
    }
    for layer in LAYERS {
        let told = (layer.tell)(app);
        for field in layer.fields.iter().filter(|_| !told.is_null()) {
            let mut family = out.family(field.metric, field.kind, field.help);
            for each in told.as_array().into_iter().flatten() {
                if let (Some(name), Some(value)) = (each["name"].as_str(), each[field.key].as_f64()) {
                    family.sample(&[(layer.label, name)], value);
                }
            }
        }
    }
    out.end()
}

/// Of the gateway itself.
fn itself(app: &App, out: &mut Exposition) {
    let metrics = app.metrics();
    out.family("gateway_build_info", Kind::Gauge, "1, and which version this is.")
        .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let started = metrics.started.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    out.family("gateway_start_time_seconds", Kind::Gauge, "When the gateway started, in seconds since 1970.")
        .sample(&[], started.as_secs_f64());
    out.family("gateway_draining", Kind::Gauge, "1 once the gateway is going away, else 0.")
        .sample(&[], u8::from(app.upstreams().is_draining()));
    let mut family = out.family(
        "gateway_responses_total",
        Kind::Counter,
        "Answers to requests that ask a model, refusals included, by status.",
    );
    for (status, count) in metrics.responses() {
        family.sample(&[("code", &status.to_string())], count);
    }
    out.family(
        "gateway_abandoned_requests_total",
        Kind::Counter,
        "Requests that ask a model whose clients went before the head of their answer: these have no status.",
    )
    .sample(&[], metrics.abandoned());
    out.family(
        "gateway_overhead_seconds",
        Kind::Histogram,
        "How long the gateway itself was busy with a request until the head of its answer, or until its client went, \
         without what it waited for.",
    )
    .histogram(&[], &metrics.overhead.counts(), OVERHEAD_BITS);
}

/// Of the upstreams, model by model.
fn upstreams(app: &App, models: &[(Stats, Health)], out: &mut Exposition) {
    let mut family = out.family(
        "gateway_upstream_requests_total",
        Kind::Counter,
        "Calls that reached a model's upstream and are over. Ignored ones say nothing about it, as a client's mistake.",
    );
    for (stats, _) in models {
        let totals = [
            ("success", stats.totals.successes),
            ("failure", stats.totals.failures),
            ("ignored", stats.totals.ignored),
            ("cancelled", stats.totals.cancelled),
        ];
        for (outcome, count) in totals {
            family.sample(&[("model", &stats.name), ("outcome", outcome)], count);
        }
    }
    let mut family = out.family(
        "gateway_upstream_errors_total",
        Kind::Counter,
        "What went wrong with an upstream, by class.",
    );
    for (stats, _) in models {
        for (class, count) in &stats.errors {
            family.sample(&[("model", &stats.name), ("class", class)], count);
        }
    }
    let mut family = out.family(
        "gateway_upstream_shed_total",
        Kind::Counter,
        "Requests that were refused because the model's upstream was unhealthy.",
    );
    for (stats, _) in models {
        family.sample(&[("model", &stats.name)], stats.totals.refused);
    }
    let mut family = out.family(
        "gateway_upstream_state",
        Kind::Gauge,
        "1 for the state that a model is in, circuit breaker included, else 0.",
    );
    for (stats, now) in models {
        for state in [Health::Healthy, Health::Degraded, Health::Unhealthy] {
            let labels = [("model", stats.name.as_str()), ("state", state.as_str())];
            family.sample(&labels, u8::from(*now == state));
        }
    }
    let mut family = out.family(
        "gateway_upstream_duration_seconds",
        Kind::Histogram,
        "How long calls to a model's upstream took, to the end of their answers.",
    );
    for upstream in app.upstreams().all() {
        let component = &upstream.component;
        family.histogram(&[("model", component.name())], &component.latencies(), LATENCY_BITS);
    }
    let mut family = out.family(
        "gateway_upstream_first_frame_seconds",
        Kind::Histogram,
        "How long it took until the first bytes of an answer came.",
    );
    for upstream in app.upstreams().all() {
        let component = &upstream.component;
        family.histogram(&[("model", component.name())], &component.first_frames(), LATENCY_BITS);
    }
    let mut family = out.family(
        "gateway_tokens_total",
        Kind::Counter,
        "Tokens that answers have used, as far as upstreams tell.",
    );
    for upstream in app.upstreams().all() {
        let (model, tokens) = (upstream.component.name(), &upstream.tokens);
        family.sample(&[("model", model), ("kind", "prompt")], tokens.prompt.load(Relaxed));
        family.sample(&[("model", model), ("kind", "completion")], tokens.completion.load(Relaxed));
    }
}
