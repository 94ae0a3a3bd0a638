//! Who may ask how much.
//!
//! One layer asks all limits at once: either all let a request pass or none is charged. What it cost in tokens is
//! estimated when it comes and corrected when its answer has ended.

use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RejectionLayer, UntilBodyEnd};
use bartizan_provider::{Class, Error, Facts, Tenant, UsageReport};
use bartizan_rate_limit::{Exceeded, Limit, Quota, RateLimitLayer, RateLimiter, exhausted};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use serde_json::{Value, json};
use tower::Layer;

use crate::{
    ask::{AnswerBody, Ask, erased},
    config::{Config, Rates},
    dedup,
    fallbacks::StoodIn,
    validation::Paid,
};

/// The limits of a gateway: what all of its workers share.
#[derive(Debug)]
pub(crate) struct RateLimits {
    requests: [Arc<Limited>; 3],
    tokens: [Arc<Limited>; 3],
    total: [Arc<Limited>; 2],
    queue: Option<(usize, Duration)>,
    upstreams: Option<Upstreams>,
}

impl RateLimits {
    /// `None` if nothing is limited.
    pub(crate) fn new(config: &Config) -> Option<Arc<Self>> {
        let each = |name, of: fn(&Rates) -> Option<Quota>| Arc::new(Limited::each(name, config, of));
        let total = |name, quota| Arc::new(Limited::total(name, quota));
        let sums = config.rate_limits.total;
        let limits = Self {
            requests: [
                each("requests_per_minute", |rates| {
                    let quota = rates.requests_per_minute?;
                    Some(rates.burst.map_or(quota, |burst| quota.burst(burst)))
                }),
                each("requests_per_hour", |rates| rates.requests_per_hour),
                each("requests_per_day", |rates| rates.requests_per_day),
            ],
            tokens: [
                each("tokens_per_minute", |rates| rates.tokens_per_minute),
                each("tokens_per_hour", |rates| rates.tokens_per_hour),
                each("tokens_per_day", |rates| rates.tokens_per_day),
            ],
            total: [
                total("total_requests_per_minute", sums.requests_per_minute),
                total("total_tokens_per_minute", sums.tokens_per_minute),
            ],
            queue: (config.rate_limits.max_queue > 0)
                .then_some((config.rate_limits.max_queue, config.rate_limits.max_wait)),
            upstreams: config.rate_limits.follow_upstreams.then(|| Upstreams::new(config)),
        };
        let limited = limits.used().next().is_some() || limits.upstreams.is_some();
        limited.then(|| Arc::new(limits))
    }

    /// Limits what reaches `inner`, and tells what is left.
    ///
    /// `refuse` makes responses of what fails within, since only a response can tell.
    pub(crate) fn around(&self, inner: Ask, refuse: fn(BoxError) -> Response<Full<Bytes>>) -> Ask {
        let inner = RejectionLayer::new(refuse).layer(inner);
        let requests = |limit: &Arc<Limited>| {
            let limited = limit.clone();
            limit.limiter.rule().by_ref(move |request: &Request<Bytes>| limited.key(request))
        };
        let tokens = |limit: &Arc<Limited>| requests(limit).cost(estimate).settle(used);
        let ([minute, hour, day], [t_minute, t_hour, t_day]) = (&self.requests, &self.tokens);
        let layer = RateLimitLayer::all((
            requests(minute),
            requests(hour),
            requests(day),
            tokens(t_minute),
            tokens(t_hour),
            tokens(t_day),
            requests(&self.total[0]),
            tokens(&self.total[1]),
        ));
        let layer = layer.headers().legacy_headers().extent(UntilBodyEnd);
        match self.queue {
            None => erased(layer.layer(inner)),
            Some((places, wait)) => erased(layer.queue(places, wait).layer(inner)),
        }
    }

    /// What there is to tell of every limit, and of this tenant's.
    pub(crate) fn describe(&self, tenant: Option<&Tenant>) -> Value {
        let limits = self.used().map(|limit| limit.describe(tenant));
        limits.chain(self.upstreams.as_ref().map(Upstreams::describe)).collect()
    }

    /// Keeps from `inner` what its upstreams say that they have no capacity for, if they are to be believed.
    ///
    /// What is answered without asking them, because it was answered before, is not held up by that.
    pub(crate) fn following(&self, inner: Ask) -> Ask {
        match &self.upstreams {
            Some(upstreams) => upstreams.around(inner),
            None => inner,
        }
    }

    fn used(&self) -> impl Iterator<Item = &Limited> {
        let all = self.requests.iter().chain(&self.tokens).chain(&self.total);
        all.map(|limit| &**limit).filter(|limit| limit.for_most || !limit.other.is_empty())
    }
}

/// A limit, and whom it limits.
#[derive(Debug)]
struct Limited {
    limiter: RateLimiter<Tenant>,
    /// Whether it limits tenants of which nothing else is said.
    for_most: bool,
    /// The tenants for whom it is the other way round.
    other: HashSet<Tenant>,
    /// Whether it counts all tenants together.
    together: bool,
}

/// Who asks without a name; and the name of all.
static NOBODY: LazyLock<Tenant> = LazyLock::new(|| Tenant::from(""));

impl Limited {
    /// A limit of each tenant's.
    fn each(name: &'static str, config: &Config, of: impl Fn(&Rates) -> Option<Quota>) -> Self {
        let most = of(&config.rate_limits.tenant);
        let own: Vec<_> =
            config.tenants.iter().map(|each| (Tenant::from(&*each.name), of(&each.rates))).collect();
        let limiter = RateLimiter::keyed(Limit::new(name, most.unwrap_or(UNUSED)));
        let mut other = HashSet::new();
        for (tenant, quota) in own {
            if quota.is_some() != most.is_some() {
                other.insert(tenant.clone());
            }
            if let Some(quota) = quota.filter(|quota| Some(*quota) != most) {
                limiter.set_quota(tenant, quota);
            }
        }
        Self { limiter, for_most: most.is_some(), other, together: false }
    }

    fn total(name: &'static str, quota: Option<Quota>) -> Self {
        let limiter = RateLimiter::keyed(Limit::new(name, quota.unwrap_or(UNUSED)));
        Self { limiter, for_most: quota.is_some(), other: HashSet::new(), together: true }
    }

    /// What a request counts under, if it is limited.
    fn key<'r>(&self, request: &'r Request<Bytes>) -> Option<&'r Tenant> {
        self.key_of(facts(request).tenant().unwrap_or(&NOBODY))
    }

    fn key_of<'t>(&self, tenant: &'t Tenant) -> Option<&'t Tenant> {
        // Most gateways have no exceptions, and most requests need not be hashed to know.
        let is_other = !self.other.is_empty() && self.other.contains(tenant);
        (self.for_most != is_other).then_some(if self.together { &NOBODY } else { tenant })
    }

    fn describe(&self, tenant: Option<&Tenant>) -> Value {
        let mut told = counts(&self.limiter);
        if let Some(tenant) = tenant {
            told["tenant"] = self.key_of(tenant).map_or(Value::Null, |key| {
                let one = self.limiter.stats_of(key);
                json!({
                    "available": one.available,
                    "remaining": one.remaining,
                    "capacity": one.capacity,
                    "reset_after": one.reset_after.as_secs_f64(),
                    "queued": one.queued,
                    "admitted": one.admitted,
                    "refused": one.refused,
                    "timed_out": one.timed_out,
                })
            });
        }
        told
    }
}

/// What upstreams say of their own limits, for each model. There is no limit but theirs.
#[derive(Debug)]
struct Upstreams {
    held: RateLimiter<String>,
    models: Arc<HashSet<String>>,
}

/// The longest that an upstream is believed.
const MAX_HOLD: Duration = Duration::from_secs(60 * 60);

impl Upstreams {
    fn new(config: &Config) -> Self {
        // More than there can be, so that only holds count.
        let limit = Limit::new("upstream", Quota::per_second(1_000_000_000));
        let models = config.models.iter().map(|model| model.name.clone()).collect();
        Self { held: RateLimiter::keyed(limit), models: Arc::new(models) }
    }

    fn around(&self, inner: Ask) -> Ask {
        let models = self.models.clone();
        let rule = self
            .held
            .rule()
            // Names that nobody serves are not worth remembering.
            .by_ref(move |request: &Request<Bytes>| {
                models.get(facts(request).model()).and(Some(facts(request).model()))
            })
            .hold_when(|result: Result<&Response<AnswerBody>, _>| {
                // What another model says that has answered for it is not about this one.
                let stood_in = result.is_ok_and(|response| response.extensions().get::<StoodIn>().is_some());
                if stood_in { None } else { exhausted(result).map(|wait| wait.min(MAX_HOLD)) }
            });
        Ask::new(RateLimitLayer::new(rule).layer(inner))
    }

    fn describe(&self) -> Value {
        let mut told = counts(&self.held);
        let held = self.models.iter().filter_map(|model| {
            let seconds = self.held.stats_of(model.as_str()).reset_after.as_secs_f64();
            (seconds > 0.001).then(|| (model.clone(), json!(seconds)))
        });
        told["held"] = Value::Object(held.collect());
        told
    }
}

fn counts<K: Hash + Eq>(limiter: &RateLimiter<K>) -> Value {
    let all = limiter.stats();
    json!({
        "name": limiter.name(),
        "admitted": all.admitted,
        "refused": all.refused,
        "timed_out": all.timed_out,
        "queued": all.queued,
        "keys": all.keys,
    })
}

/// Of a limit for which no request has a key but those of tenants with a quota of their own.
const UNUSED: Quota = Quota::per_minute(1);

pub(crate) fn facts(request: &Request<Bytes>) -> &Facts {
    request.extensions().get().expect("intake has read the request")
}

fn estimate(request: &Request<Bytes>) -> u64 {
    facts(request).estimated_tokens()
}

/// What an answer turns out to have cost: nothing if it is an error or was got for somebody else, else what it tells by its
/// end, if it does.
fn used<B>(response: &Response<B>) -> impl FnOnce() -> Option<u64> + use<B> {
    let paid = response.extensions().get::<Paid>().cloned();
    let is_free = !response.status().is_success() || dedup::is_shared(response);
    let report = response.extensions().get::<UsageReport>().cloned();
    move || match paid {
        Some(paid) => paid.tokens(),
        None if is_free => Some(0),
        None => Some(report?.get()?.total_tokens),
    }
}

/// What a client sees of a refusal, if `error` is one of these limits'.
pub(crate) fn refusal(error: &BoxError) -> Option<Response<Full<Bytes>>> {
    let rejected = Rejected::find(&**error)?;
    let limit = std::error::Error::source(rejected)?.downcast_ref::<Exceeded>()?.limit();
    let (class, code, message) = match rejected.kind() {
        RejectionKind::ExceedsCapacity => {
            let message = "this request may use more tokens than the limit can ever let pass; shorten it, or lower \
                           max_completion_tokens";
            (Class::TooLarge, "request_too_large", message)
        }
        RejectionKind::QueueFull => {
            (Class::RateLimit, "rate_limit_exceeded", "too many requests wait for it already")
        }
        RejectionKind::QueueTimeout => {
            (Class::RateLimit, "rate_limit_exceeded", "the request waited in vain for it")
        }
        _ => (Class::RateLimit, "rate_limit_exceeded", "it is used up for now"),
    };
    let error = Error::new(class, format!("rate limit {limit}: {message}"))
        .with_code(code)
        .with_retry_after(rejected.retry_after());
    let mut response = error.to_response();
    if let Some(headers) = rejected.headers() {
        response.headers_mut().extend(headers.clone());
    }
    Some(response)
}
