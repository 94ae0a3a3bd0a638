//! How the cases of `rate_limit.json` drive the layer.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::Waker,
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter, headers};
use bartizan_rate_limit::{
    Exceeded, Limit, Queue, Quota, RateLimitLayer, RateLimiter, Rules, RulesFor, Window,
};
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step, settle};
use http::HeaderMap;
use serde_json::{Map, Value, json};
use tokio::{task::AbortHandle, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn};

/// What is called.
#[derive(Clone, Debug)]
struct Call {
    key: Option<String>,
    n: u64,
}

/// A limit of a case. In a case of a single limit, calls without a key meet one without keys.
#[derive(Clone)]
struct Named {
    keyed: RateLimiter<String>,
    plain: Option<RateLimiter>,
    global: bool,
}

impl Named {
    fn key(&self, call: &Call) -> String {
        if self.global { String::new() } else { call.key.clone().unwrap_or_default() }
    }

    /// Available, remaining, nanoseconds until it is full.
    fn level(&self, call: &Call) -> (i64, u64, u64) {
        let stats = match (&self.plain, &call.key) {
            (Some(plain), None) => plain.stats_of(&()),
            _ => self.keyed.stats_of(&self.key(call)),
        };
        (stats.available, stats.remaining, nanos(stats.reset_after))
    }
}

pub(crate) struct RateLimit {
    /// `None` if the configuration is refused.
    limits: Option<Vec<Named>>,
    /// How many may wait, if there is a queue.
    max_queue: Option<usize>,
    base: Instant,
    waiters: BTreeMap<String, Waiter>,
    keys: BTreeSet<String>,
}

struct Waiter {
    seen: Arc<Mutex<Seen>>,
    task: AbortHandle,
}

#[derive(Default)]
struct Seen {
    /// Of a call that has ended.
    outcome: Option<Value>,
    at: Option<Instant>,
    waker: Option<Waker>,
    cancelled: bool,
}

/// How long after the layer was built the case begins.
const LEAD: Duration = Duration::from_secs(3600);

/// `Ok(None)` if the layer refuses it.
fn limit(config: &Fields) -> Result<Option<Limit>, String> {
    let need = |key: &str| config.integer(key)?.ok_or_else(|| format!("{key} is missing"));
    let algo = config.get::<String>("algo")?.unwrap_or_else(|| "gcra".to_owned());
    match algo.as_str() {
        "gcra" => {
            let (rate, per) = (need("rate")?, need("per")?);
            Ok(quota(rate, per, config.integer("burst")?.unwrap_or(rate)).map(Limit::from))
        }
        "fixed_window" | "sliding_counter" => {
            let (limit, window) = (need("limit")?, need("window")?);
            let anchor = config.integer("anchor")?.unwrap_or(0);
            Ok(frame(limit, window, anchor, algo == "sliding_counter").map(Limit::from))
        }
        other => Err(format!("unknown algo {other:?}")),
    }
}

fn quota(rate: i128, per: i128, burst: i128) -> Option<Quota> {
    let per = Duration::from_nanos(u64::try_from(per).ok()?);
    Quota::try_new(u64::try_from(rate).ok()?, per).ok()?.try_burst(u64::try_from(burst).ok()?).ok()
}

fn frame(limit: i128, window: i128, anchor: i128, sliding: bool) -> Option<Window> {
    let (limit, length) = (u64::try_from(limit).ok()?, Duration::from_nanos(u64::try_from(window).ok()?));
    let built = if sliding { Window::try_sliding(limit, length) } else { Window::try_fixed(limit, length) };
    let built = built.ok()?;
    let delay = (anchor + i128::try_from(LEAD.as_nanos()).ok()?).rem_euclid(window);
    Some(built.anchored(Duration::from_nanos(u64::try_from(delay).ok()?)))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().expect("nothing panics under this lock")
}

fn count(step: &Step, key: &str) -> Result<Option<u64>, String> {
    let n = step.args.integer(key)?;
    n.map(|n| u64::try_from(n).map_err(|_| format!("{key}: {n} is out of range"))).transpose()
}

/// What is below the limiter: it takes every call, and says when.
async fn inner(_: Call) -> Result<Instant, BoxError> {
    Ok(Instant::now())
}

fn cost(call: &Call) -> u64 {
    call.n
}

fn outcome(result: &Result<Instant, BoxError>) -> Value {
    let Err(error) = result else { return json!({"ok": true, "state": "granted"}) };
    let rejected = Rejected::find(&**error).expect("the inner service does not fail");
    let detail = rejected.source().and_then(|source| source.downcast_ref::<Exceeded>());
    let detail = detail.expect("a refusal names its limit");
    let reason = match rejected.kind() {
        RejectionKind::RateLimited => "limited",
        RejectionKind::ExceedsCapacity => "exceeds_capacity",
        RejectionKind::QueueFull => "queue_full",
        RejectionKind::QueueTimeout => "timeout",
        other => panic!("{other}"),
    };
    let retry_after = match rejected.retry_after() {
        RetryAfter::After(wait) => json!(nanos(wait)),
        RetryAfter::Never => json!("never"),
        RetryAfter::Unknown => Value::Null,
    };
    json!({
        "ok": false, "state": "rejected", "reason": reason, "retry_after": retry_after,
        "limit": detail.limit(), "capacity": detail.capacity(),
    })
}

fn join(mut all: Value, more: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

impl RateLimit {
    fn limits(&self) -> Result<&[Named], String> {
        self.limits.as_deref().ok_or_else(|| "the configuration was refused".to_owned())
    }

    fn since_base(&self, at: Instant) -> u64 {
        nanos(at.saturating_duration_since(self.base))
    }

    fn call(&mut self, step: &Step) -> Result<Call, String> {
        let key: Option<String> = step.args.get("key")?;
        self.keys.extend(key.clone());
        Ok(Call { key, n: count(step, "n")?.unwrap_or(1) })
    }

    fn level(&self, call: &Call) -> Result<Value, String> {
        let (mut available, mut remaining, mut reset) = (i64::MAX, u64::MAX, 0);
        for level in self.limits()?.iter().map(|limit| limit.level(call)) {
            available = available.min(level.0);
            remaining = remaining.min(level.1);
            reset = reset.max(level.2);
        }
        Ok(json!({"available": available, "remaining": remaining, "reset_after": reset}))
    }

    async fn acquire(&self, step: &Step, call: &Call) -> Result<Value, String> {
        let result = match self.limits()? {
            [one] if step.back => {
                let at = self.base + Duration::from_nanos(step.t.unwrap_or_default());
                let taken = match (&one.plain, &call.key) {
                    (Some(plain), None) => plain.try_acquire_at(&(), call.n, at),
                    _ => one.keyed.try_acquire_at(&one.key(call), call.n, at),
                };
                taken.map(|()| at).map_err(Into::into)
            }
            [Named { plain: Some(plain), .. }] if call.key.is_none() => {
                RateLimitLayer::new(plain.rule().cost(cost))
                    .layer(service_fn(inner))
                    .oneshot(call.clone())
                    .await
            }
            [one] => {
                let rule = one.keyed.rule().by_ref(|call: &Call| call.key.as_ref()).cost(cost);
                RateLimitLayer::new(rule).layer(service_fn(inner)).oneshot(call.clone()).await
            }
            several => all_of(several).layer(service_fn(inner)).oneshot(call.clone()).await,
        };
        Ok(join(outcome(&result), self.level(call)?))
    }

    async fn enqueue(&mut self, step: &Step, call: Call) -> Result<Value, String> {
        let id: String = step.args.need("id")?;
        let max_wait = Duration::from_nanos(count(step, "max_wait")?.unwrap_or(u64::MAX));
        let max_queue = self.max_queue.ok_or("there is no queue")?;
        let seen = Arc::default();
        let (wait, task) = match self.limits()? {
            [Named { plain: Some(plain), .. }] if call.key.is_none() => {
                let layer = RateLimitLayer::new(plain.rule().cost(cost)).queue(max_queue, max_wait);
                wait(&layer, call, &seen).await
            }
            [one] => {
                let rule = one.keyed.rule().by_ref(|call: &Call| call.key.as_ref()).cost(cost);
                wait(&RateLimitLayer::new(rule).queue(max_queue, max_wait), call, &seen).await
            }
            several => wait(&all_of(several).queue(max_queue, max_wait), call, &seen).await,
        };
        self.waiters.insert(id.clone(), Waiter { seen, task });
        settle().await;
        let state = self.state(&id)?;
        Ok(join(state, json!({"wait": wait.map(nanos)})))
    }

    fn state(&self, id: &str) -> Result<Value, String> {
        let waiter = self.waiters.get(id).ok_or_else(|| format!("nobody is called {id:?}"))?;
        let seen = lock(&waiter.seen);
        let at = seen.at.map(|at| self.since_base(at));
        Ok(match &seen.outcome {
            Some(outcome) => join(outcome.clone(), json!({"at": at})),
            None if seen.cancelled => json!({"state": "cancelled"}),
            None => json!({"state": "queued"}),
        })
    }

    /// Timers count milliseconds. Whoever looks in between looks by himself.
    async fn look(&self) {
        let wakers = self.waiters.values().filter_map(|waiter| lock(&waiter.seen).waker.take());
        wakers.for_each(Waker::wake);
        settle().await;
    }

    fn min_gap(&self, step: &Step) -> Result<Value, String> {
        let ids: Vec<String> = step.args.need("ids")?;
        let at = |id: &String| {
            let waiter = self.waiters.get(id).ok_or_else(|| format!("nobody is called {id:?}"))?;
            lock(&waiter.seen).at.ok_or_else(|| format!("{id} was never admitted"))
        };
        let mut times = ids.iter().map(at).collect::<Result<Vec<_>, _>>()?;
        times.sort();
        let gap = times.windows(2).map(|pair| nanos(pair[1] - pair[0])).min();
        Ok(json!({"gap": gap}))
    }

    /// Which keys may be dropped: as many remain as the limiter says, once it has dropped them.
    fn sweep(&self) -> Result<Value, String> {
        let [one] = self.limits()? else { return Err("a sweep of several limits".to_owned()) };
        let fresh = |key: &&String| one.keyed.stats_of(key.as_str()).reset_after.is_zero();
        let droppable: Vec<_> = self.keys.iter().filter(fresh).collect();
        let (kept, expected) = (one.keyed.stats().keys, self.keys.len() - droppable.len());
        if kept != expected {
            return Err(format!("{kept} keys are kept and {expected} are not fresh"));
        }
        Ok(json!({"droppable": droppable}))
    }

    fn settle(&self, step: &Step, call: &Call) -> Result<Value, String> {
        let reserved = count(step, "reserved")?.ok_or("reserved is missing")?;
        let actual = count(step, "actual")?.ok_or("actual is missing")?;
        for limit in self.limits()? {
            match (&limit.plain, &call.key) {
                (Some(plain), None) => plain.settle(&(), reserved, actual),
                _ => limit.keyed.settle(&limit.key(call), reserved, actual),
            }
        }
        self.level(call)
    }

    /// Draws arrivals from the generator of RL-12 and hashes what is decided.
    fn property(&self, step: &Step) -> Result<Value, String> {
        let need = |key: &str| count(step, key)?.ok_or_else(|| format!("{key} is missing"));
        let (mut x, arrivals) = (need("seed")?, need("arrivals")?);
        let (gap_mod, weight_mod) = (need("gap_mod")?, need("weight_mod")?);
        let [Named { plain: Some(limiter), .. }] = self.limits()? else {
            return Err("arrivals at several limits".to_owned());
        };
        let mut next = || {
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            x.wrapping_mul(2_685_821_657_736_338_717)
        };
        let (mut t, mut admitted, mut denied, mut hash) =
            (step.t.unwrap_or_default(), 0, 0, 0xcbf2_9ce4_8422_2325_u64);
        for _ in 0..arrivals {
            t += next() % gap_mod;
            let n = 1 + next() % weight_mod;
            let taken = limiter.try_acquire_at(&(), n, self.base + Duration::from_nanos(t)).is_ok();
            hash = (hash ^ u64::from(taken)).wrapping_mul(0x100_0000_01b3);
            if taken { admitted += n } else { denied += 1 }
        }
        Ok(json!({
            "admitted_weight": admitted, "denied": denied, "end_t": t, "fnv1a64": hash,
            "hash": hash, "admitted": arrivals - denied,
        }))
    }
}

/// Rules for the calls of these cases, whose futures can be spawned.
trait Asked:
    Rules<Call, Kept: Send + 'static> + RulesFor<Call, Instant, Charge: Send + 'static> + Clone + Send + 'static
{
}

impl<R> Asked for R where
    R: Rules<Call, Kept: Send + 'static>
        + RulesFor<Call, Instant, Charge: Send + 'static>
        + Clone
        + Send
        + 'static
{
}

/// A layer that asks all of these limits.
fn all_of(limits: &[Named]) -> RateLimitLayer<impl Asked> {
    let rules = limits.iter().map(|limit| {
        let of = limit.clone();
        limit.keyed.rule().by(move |call: &Call| Some(of.key(call))).cost(cost)
    });
    RateLimitLayer::all_of(rules.collect())
}

/// Makes a call of a queueing layer, and lets it wait in a task: how long it has to, as it says itself.
async fn wait<R>(
    layer: &RateLimitLayer<R, Queue>,
    call: Call,
    seen: &Arc<Mutex<Seen>>,
) -> (Option<Duration>, AbortHandle)
where
    R: Asked,
{
    let mut service = layer.layer(service_fn(inner));
    let future = service.ready().await.expect("it is always ready").call(call);
    let wait = future.wait();
    // Boxed where it stands, so that the task need not name what the inner service's future is.
    (wait, watch(Box::pin(future), seen.clone()))
}

type Waiting = Pin<Box<dyn Future<Output = Result<Instant, BoxError>> + Send>>;

fn watch(mut call: Waiting, seen: Arc<Mutex<Seen>>) -> AbortHandle {
    let task = async move {
        let result = std::future::poll_fn(|cx| {
            lock(&seen).waker = Some(cx.waker().clone());
            call.as_mut().poll(cx)
        })
        .await;
        let mut seen = lock(&seen);
        seen.outcome = Some(outcome(&result));
        seen.at = result.ok();
    };
    tokio::spawn(task).abort_handle()
}

impl Adapter for RateLimit {
    fn build(config: &Fields) -> Result<Self, String> {
        let several: Option<Vec<Map<String, Value>>> = config.get("limits")?;
        let limits = match several {
            None => {
                let limit = limit(config)?;
                limit.map(|limit| {
                    let keyed = RateLimiter::keyed(limit.clone());
                    vec![Named { keyed, plain: Some(RateLimiter::new(limit)), global: false }]
                })
            }
            Some(several) => {
                let algo: Option<String> = config.get("algo")?;
                let named = |mut fields: Map<String, Value>| {
                    if let (None, Some(algo)) = (fields.get("algo"), &algo) {
                        fields.insert("algo".to_owned(), algo.clone().into());
                    }
                    let known =
                        ["name", "scope", "algo", "rate", "per", "burst", "limit", "window", "anchor"];
                    if let Some(key) = fields.keys().find(|key| !known.contains(&key.as_str())) {
                        return Err(format!("unknown key {key:?}"));
                    }
                    let fields = Fields::new(fields);
                    let name: String = fields.need("name")?;
                    let global = match fields.need::<String>("scope")?.as_str() {
                        "global" => true,
                        "key" => false,
                        other => return Err(format!("unknown scope {other:?}")),
                    };
                    let limit = limit(&fields)?;
                    Ok(limit.map(|limit| Named {
                        keyed: RateLimiter::keyed(Limit::new(name, limit)),
                        plain: None,
                        global,
                    }))
                };
                several.into_iter().map(named).collect::<Result<Option<Vec<_>>, _>>()?
            }
        };
        let max_queue = match config.get::<Map<String, Value>>("queue")? {
            None => None,
            Some(queue) => match queue.keys().find(|key| *key != "max_queue") {
                Some(key) => return Err(format!("unknown key {key:?}")),
                None => {
                    let max = Fields::new(queue).integer("max_queue")?;
                    Some(max.map_or(Ok(usize::MAX), usize::try_from).map_err(|error| error.to_string())?)
                }
            },
        };
        let base = Instant::now() + LEAD;
        Ok(Self { limits, max_queue, base, waiters: BTreeMap::new(), keys: BTreeSet::new() })
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        self.look().await;
        let seen = match step.op.as_str() {
            "build" if self.limits.is_none() => return Ok(Answer::Last(json!({"build": "invalid_config"}))),
            "build" => json!({"build": "ok"}),
            "acquire" => {
                let call = self.call(step)?;
                self.acquire(step, &call).await?
            }
            "peek" => {
                let call = self.call(step)?;
                self.level(&call)?
            }
            "settle" => {
                let call = self.call(step)?;
                self.settle(step, &call)?
            }
            "enqueue" => {
                let call = self.call(step)?;
                self.enqueue(step, call).await?
            }
            "state" => self.state(&step.args.need::<String>("id")?)?,
            "cancel" => {
                let id: String = step.args.need("id")?;
                let waiter = self.waiters.get(&id).ok_or_else(|| format!("nobody is called {id:?}"))?;
                lock(&waiter.seen).cancelled = true;
                waiter.task.abort();
                settle().await;
                self.state(&id)?
            }
            "min_gap" => self.min_gap(step)?,
            "sweep" => self.sweep()?,
            "property" => self.property(step)?,
            "retry_after_header" => {
                let wait = Duration::from_nanos(count(step, "retry_after")?.ok_or("retry_after is missing")?);
                let mut map = HeaderMap::new();
                headers::set_retry_after(&mut map, RetryAfter::After(wait));
                json!({"header": map.get("retry-after").and_then(|value| value.to_str().ok())})
            }
            _ => return step.unknown(),
        };
        Ok(Answer::Now(seen))
    }
}
