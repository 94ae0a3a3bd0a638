//! How the cases of `circuit_breaker.json` drive the layer.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_circuit_breaker::{CircuitBreaker, Permit, Settings, State, Stats, Transition, Window};
use bartizan_core::{BoxError, Class, Classify, Rejected, RejectionKind, RetryAfter};
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tower::{Layer, Service, ServiceExt, service_fn};

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Err,
    Panic,
    Ignored,
    Cancel,
}

impl Outcome {
    /// What a permit is told.
    fn class(self) -> Class {
        match self {
            Self::Ok => Class::Success,
            Self::Err | Self::Panic => Class::Failure(RetryAfter::Unknown),
            Self::Ignored | Self::Cancel => Class::Ignore,
        }
    }

    fn tells(self) -> bool {
        matches!(self, Self::Ok | Self::Err | Self::Panic)
    }
}

/// What an inner call waits for: how it is to end.
type End = oneshot::Receiver<Outcome>;

async fn inner(end: End) -> Result<Outcome, BoxError> {
    match end.await? {
        Outcome::Err => Err("it fails".into()),
        Outcome::Panic => panic!("it panics"),
        outcome => Ok(outcome),
    }
}

/// Responses say themselves what they are.
#[derive(Clone, Copy)]
struct Judge;

impl Classify<Outcome> for Judge {
    fn classify(&self, result: Result<&Outcome, &(dyn Error + 'static)>) -> Class {
        result.map_or(Class::Failure(RetryAfter::Unknown), |outcome| outcome.class())
    }
}

type Future = Pin<Box<dyn std::future::Future<Output = Result<Outcome, BoxError>>>>;

/// A call that passed.
enum Call {
    Service {
        future: Future,
        end: oneshot::Sender<Outcome>,
    },
    /// By hand: at a time that is not now, or of a length that the clock does not tell.
    Hand(Permit),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HalfOpen {
    max_concurrent: Option<u32>,
    successes: Option<u32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, tag = "type", rename_all = "lowercase")]
enum Span {
    Count { size: u32 },
    Time { len: u64 },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Backoff {
    factor: f64,
    max: u64,
    jitter: Option<f64>,
}

pub(crate) struct Breaker {
    /// `None` if the configuration is refused.
    breaker: Option<CircuitBreaker>,
    watched: Option<watch::Receiver<Transition>>,
    base: Instant,
    last: State,
    transitions: Vec<String>,
    calls: BTreeMap<String, Vec<Call>>,
    /// Calls of a `run` that began before its time because they last.
    begun: HashMap<usize, (u64, Vec<Call>)>,
    resets: u64,
    /// When the calls end whose length a case gives, and how long they last.
    lengths: RefCell<HashMap<String, (u64, u64)>>,
}

/// How long after the breaker was built the case begins.
const LEAD: Duration = Duration::from_secs(3600);

fn name(state: State) -> &'static str {
    match state {
        State::Closed => "closed",
        State::Open => "open",
        State::HalfOpen => "half_open",
        State::ForcedOpen => "forced_open",
        State::Disabled => "disabled",
    }
}

fn count(fields: &Fields, key: &str) -> Result<Option<u64>, String> {
    let n = fields.integer(key)?;
    n.map(|n| u64::try_from(n).map_err(|_| format!("{key}: {n} is out of range"))).transpose()
}

fn told(retry_after: RetryAfter) -> Value {
    match retry_after {
        RetryAfter::After(wait) => {
            json!(u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX))
        }
        RetryAfter::Never => json!("never"),
        RetryAfter::Unknown => Value::Null,
    }
}

fn settings(config: &Fields) -> Result<Settings, String> {
    let millis = Duration::from_millis;
    let consecutive: Option<u32> = config.get("consecutive")?;
    let span: Option<Span> = config.get("window")?;
    let min_calls: Option<u32> = config.get("min_calls")?;
    let failures: Option<u8> = config.get("failure_pct")?;
    let slow = (count(config, "slow_call")?, config.get::<u8>("slow_pct")?);
    let window = span.map(|span| {
        let mut window = match span {
            Span::Count { size } => Window::of_calls(size),
            Span::Time { len } => Window::of_time(millis(len)),
        };
        if let Some(min_calls) = min_calls {
            window = window.min_calls(min_calls);
        }
        if let Some(percent) = failures {
            window = window.failures(percent);
        }
        if let (Some(over), Some(percent)) = slow {
            window = window.slow(millis(over), percent);
        }
        window
    });
    let mut settings = match (consecutive, window) {
        (Some(failures), Some(window)) => Settings::consecutive(failures).or_window(window),
        (Some(failures), None) => Settings::consecutive(failures),
        (None, Some(window)) => Settings::window(window),
        (None, None) => return Err("nothing trips".to_owned()),
    };
    settings = settings.probe_timeout(count(config, "half_open_timeout")?.map(millis));
    if let Some(open_for) = count(config, "open_for")? {
        settings = settings.open_for(millis(open_for));
    }
    if let Some(HalfOpen { max_concurrent, successes }) = config.get("half_open")? {
        settings = max_concurrent.map_or(settings.clone(), |probes| settings.probes(probes));
        settings = successes.map_or(settings.clone(), |successes| settings.successes(successes));
    }
    if let Some(Backoff { factor, max, jitter }) = config.get("backoff")? {
        settings = settings.growing(factor, millis(max)).jitter(jitter.unwrap_or_default());
    }
    Ok(settings)
}

impl Breaker {
    fn breaker(&self) -> Result<&CircuitBreaker, String> {
        self.breaker.as_ref().ok_or_else(|| "the configuration was refused".to_owned())
    }

    fn at(&self, step: &Step) -> Instant {
        self.base + Duration::from_millis(step.t.unwrap_or_default())
    }

    /// Asks for admission through the layer.
    async fn call(&self) -> Result<Call, RetryAfter> {
        let breaker = self.breaker.as_ref().expect("it was built");
        let mut service = breaker.layer().classify(Judge).layer(service_fn(inner));
        let (end, ended) = oneshot::channel();
        // Boxed where it stands, so that nobody needs to name it.
        let mut future: Future =
            Box::pin(service.ready().await.expect("the inner service is ready").call(ended));
        match poll(&mut future) {
            Poll::Pending => Ok(Call::Service { future, end }),
            Poll::Ready(result) => Err(refusal(&*result.expect_err("nobody told it to end"))),
        }
    }

    async fn start(&self, step: &Step, by_hand: bool) -> Result<Call, RetryAfter> {
        let breaker = self.breaker.as_ref().expect("it was built");
        let admitted = match (step.back, by_hand) {
            (true, _) => breaker.try_acquire_at(self.at(step)),
            (false, true) => breaker.try_acquire(),
            (false, false) => return self.call().await,
        };
        admitted.map(Call::Hand).map_err(|rejected| refusal(&rejected))
    }

    fn end(&self, step: &Step, call: Call, outcome: Outcome, dur: Option<u64>) {
        match call {
            Call::Service { .. } if outcome == Outcome::Cancel => {}
            Call::Service { mut future, end } => {
                end.send(outcome).expect("the inner call waits for it");
                let ended = catch_unwind(AssertUnwindSafe(|| poll(&mut future)));
                assert_eq!(ended.is_err(), outcome == Outcome::Panic, "a panic reaches the caller");
                assert!(ended.is_err() || matches!(ended, Ok(Poll::Ready(_))), "the inner call is complete");
            }
            Call::Hand(_) if outcome == Outcome::Cancel => {}
            Call::Hand(permit) => {
                let permit = match dur {
                    Some(dur) => permit.took(Duration::from_millis(dur)),
                    None => permit,
                };
                match step.back {
                    true => permit.settle_at(outcome.class(), self.at(step)),
                    false => permit.settle(outcome.class()),
                }
            }
        }
    }

    /// The number of the generation, resets of a closed breaker included.
    fn epoch(&self) -> u64 {
        self.resets + self.watched.as_ref().map_or(0, |watched| watched.borrow().generation)
    }

    async fn run(&mut self, step: &Step, outcome: Outcome, dur: Option<u64>) -> Result<Value, String> {
        let n = count(&step.args, "n")?.unwrap_or(1);
        let (epoch, begun) = self.begun.remove(&step.index).unwrap_or_default();
        let mut begun = begun.into_iter();
        let (mut admitted, mut retry_after) = (0, Value::Null);
        for _ in 0..n {
            // A call that began in another generation is none of this run's: it began too early.
            let early = begun.next().filter(|_| epoch == self.epoch());
            let call = match early {
                Some(call) => Ok(call),
                None => self.start(step, dur.is_some()).await,
            };
            match call {
                Ok(call) => {
                    admitted += 1;
                    self.look()?;
                    self.end(step, call, outcome, dur);
                }
                Err(refused) => retry_after = told(refused),
            }
            self.look()?;
        }
        Ok(json!({"admitted": admitted, "rejected": n - admitted, "retry_after": retry_after}))
    }

    /// The last state that a call or a hand brought about, as `watch` tells it, and all before. Of two changes at once it
    /// tells the second, from which the first follows.
    fn look(&mut self) -> Result<Value, String> {
        let watched = self.watched.as_mut().ok_or("the configuration was refused")?;
        if watched.has_changed().map_err(|error| error.to_string())? {
            let Transition { from, to, .. } = *watched.borrow_and_update();
            if from != self.last {
                self.transitions.push(format!("{}>{}", name(self.last), name(from)));
            }
            self.transitions.push(format!("{}>{}", name(from), name(to)));
            self.last = to;
        }
        Ok(json!({"state": name(self.last), "transitions": self.transitions}))
    }

    fn stats(&self) -> Result<Value, String> {
        let stats = self.breaker()?.stats();
        Ok(json!({
            "calls": stats.calls, "successes": stats.successes, "failures": stats.failures, "slow": stats.slow,
            "opens": stats.opens, "rejected": stats.refused, "late": stats.late, "probes": stats.probes,
            "retry_after": told(stats.retry_after),
        }))
    }
}

fn poll(future: &mut Future) -> Poll<Result<Outcome, BoxError>> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn refusal(error: &(dyn Error + 'static)) -> RetryAfter {
    let rejected = Rejected::find(error).expect("the inner service does not fail here");
    assert_eq!(rejected.kind(), RejectionKind::CircuitOpen);
    rejected.retry_after()
}

/// What must not change when an outcome is not counted.
fn counts(stats: Stats) -> Value {
    json!([stats.calls, stats.successes, stats.failures, stats.slow, stats.consecutive_failures, stats.opens])
}

fn join(mut all: Value, more: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

impl Adapter for Breaker {
    fn build(config: &Fields) -> Result<Self, String> {
        let breaker = CircuitBreaker::try_new(settings(config)?).ok();
        Ok(Self {
            watched: breaker.as_ref().map(CircuitBreaker::subscribe),
            breaker,
            base: Instant::now() + LEAD,
            last: State::Closed,
            transitions: Vec::new(),
            calls: BTreeMap::new(),
            begun: HashMap::new(),
            resets: 0,
            lengths: RefCell::default(),
        })
    }

    fn lead(&self, step: &Step) -> Duration {
        let dur = count(&step.args, "dur").ok().flatten();
        match (step.op.as_str(), dur) {
            ("run", Some(dur)) => Duration::from_millis(dur),
            ("end", Some(dur)) => {
                if let (Ok(Some(id)), Some(t)) = (step.args.get("id"), step.t) {
                    self.lengths.borrow_mut().insert(id, (t, dur));
                }
                Duration::ZERO
            }
            _ => Duration::ZERO,
        }
    }

    /// Calls that last begin so long before, if the breaker is closed then.
    async fn begin(&mut self, step: &Step) -> Result<(), String> {
        if self.breaker()?.state() == State::Closed {
            let mut calls = Vec::new();
            for _ in 0..count(&step.args, "n")?.unwrap_or(1) {
                calls.extend(self.call().await);
            }
            self.begun.insert(step.index, (self.epoch(), calls));
        }
        Ok(())
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        let dur = count(&step.args, "dur")?;
        let seen = match step.op.as_str() {
            "build" if self.breaker.is_none() => {
                return Ok(Answer::Last(json!({"build": "invalid_config"})));
            }
            "build" => json!({"build": "ok"}),
            "start" => {
                let id: String = step.args.need("id")?;
                let begins = |&(t, dur): &(u64, u64)| t.checked_sub(dur);
                let by_hand = self.lengths.borrow().get(&id).is_some_and(|length| begins(length) != step.t);
                let started = self.start(step, by_hand).await;
                let retry_after = started.as_ref().err().map(|refused| told(*refused));
                let admitted = started.is_ok();
                self.calls.entry(id).or_default().extend(started);
                json!({"admitted": admitted, "retry_after": retry_after})
            }
            "end" => {
                let id: String = step.args.need("id")?;
                let outcome: Outcome = step.args.need("outcome")?;
                let call = self.calls.get_mut(&id).and_then(Vec::pop);
                let call = call.ok_or_else(|| format!("no call {id:?} is under way"))?;
                let before = self.breaker()?.stats();
                self.end(step, call, outcome, dur);
                let after = self.breaker()?.stats();
                // A success may leave the numbers as they are: the run of failures was empty, the window full.
                let used = outcome.tells() && before.late == after.late && before.state != State::Disabled;
                json!({"counted": used || counts(before) != counts(after)})
            }
            "run" => {
                let outcome: Outcome = step.args.need("outcome")?;
                self.run(step, outcome, dur).await?
            }
            "state" | "tick" => {
                // Whoever asks is told what time has brought about.
                self.breaker()?.state();
                json!({})
            }
            "stats" => self.stats()?,
            "force_open" => {
                self.breaker()?.force_open();
                json!({})
            }
            "disable" => {
                self.breaker()?.disable();
                json!({})
            }
            "reset" => {
                self.breaker()?.reset();
                self.resets += 1;
                json!({})
            }
            _ => return step.unknown(),
        };
        let state = self.look()?;
        Ok(Answer::Now(join(seen, state)))
    }
}
