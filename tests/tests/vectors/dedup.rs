//! How the cases of `dedup.json` drive the layer.

use std::{
    collections::BTreeMap,
    error::Error,
    hash::{Hash, Hasher},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_dedup::{Dedup, DedupLayer, Identity, Replay, Served, Share, Stats, Ticket, Whole};
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step, settle};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;
use tower::{Layer, ServiceExt, service_fn};

/// How an execution ends.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Outcome {
    Ok(Value),
    Err(Value),
    Panic(#[expect(dead_code, reason = "it is always true")] bool),
}

/// A request of a case.
#[derive(Clone)]
struct Call {
    key: Option<Key>,
    fingerprint: Option<String>,
    panics: bool,
}

/// A key; in some cases all have the same hash.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    tenant: Option<String>,
    name: String,
    constant: bool,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        if !self.constant {
            (&self.tenant, &self.name).hash(state);
        }
    }
}

/// Responses are values, and say where they come from.
#[derive(Clone)]
struct Told;

impl Share<Value> for Told {
    type Tape = Value;
    type Response = (Value, Served);
    type Rest = std::future::Ready<()>;

    fn record(&self, response: Value) -> Value {
        response
    }

    fn complete(&self, tape: &Value) -> Option<usize> {
        <Whole as Share<Value>>::complete(&Whole, tape)
    }

    fn play(&self, tape: &Value, ticket: Ticket<Value>) -> (Value, Served) {
        (tape.clone(), ticket.served())
    }

    fn pass(&self, response: Value) -> (Value, Served) {
        (response, Served::Bypassed)
    }

    fn rest(&self, _: &Value, _: Ticket<Value>) -> Self::Rest {
        std::future::ready(())
    }
}

/// The inner service's executions, in the order in which they began.
#[derive(Clone, Default)]
struct Executions(Arc<Mutex<Vec<Option<oneshot::Sender<Outcome>>>>>);

impl Executions {
    fn begin(&self, panics: bool) -> oneshot::Receiver<Outcome> {
        let (end, ended) = oneshot::channel();
        let mut all = self.0.lock().unwrap();
        all.push((!panics).then_some(end));
        ended
    }

    fn count(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// Those that are still waited for.
    fn running(&self) -> Vec<usize> {
        let all = self.0.lock().unwrap();
        let running = |end: &Option<oneshot::Sender<_>>| end.as_ref().is_some_and(|end| !end.is_closed());
        (0..all.len()).filter(|n| running(&all[*n])).collect()
    }

    fn end(&self, n: usize, outcome: Outcome) -> Result<(), String> {
        let end = self.0.lock().unwrap().get_mut(n).and_then(Option::take);
        let end = end.ok_or_else(|| format!("execution {n} does not run"))?;
        end.send(outcome).map_err(|_| format!("nobody waits for execution {n}"))
    }
}

type Future = Pin<Box<dyn std::future::Future<Output = Result<(Value, Served), BoxError>>>>;

/// What became of a caller.
enum Caller {
    Waits(Future),
    Got { result: Value, served: Option<Served> },
}

pub(crate) struct Deduplication {
    dedup: Dedup<Key, Value, Told>,
    executions: Executions,
    constant: bool,
    callers: BTreeMap<String, Caller>,
}

fn millis(fields: &Fields, key: &str) -> Result<Option<Duration>, String> {
    let n = fields.integer(key)?;
    n.map(|n| u64::try_from(n).map(Duration::from_millis).map_err(|_| format!("{key}: {n} is out of range")))
        .transpose()
}

fn fingerprint(name: &str) -> [u8; 32] {
    let mut digest = [0; 32];
    digest[..name.len()].copy_from_slice(name.as_bytes());
    digest[31] = u8::try_from(name.len()).expect("a name that fits");
    digest
}

fn error(error: &(dyn Error + 'static)) -> Value {
    match Rejected::find(error).map(Rejected::kind) {
        Some(RejectionKind::Conflict) => json!("key_reused"),
        Some(RejectionKind::Panicked) => json!("panic"),
        _ => json!(bartizan_core::chain(error).last().expect("there is an error").to_string()),
    }
}

impl Deduplication {
    fn call(&self, call: Call) -> Future {
        let key = |call: &Call| {
            let identity = Identity::new(call.key.clone()?);
            Some(match &call.fingerprint {
                Some(name) => identity.fingerprint(fingerprint(name)),
                None => identity,
            })
        };
        let layer: DedupLayer<Key, Value, Told, _> = self.dedup.layer(key);
        let executions = self.executions.clone();
        let service = layer.layer(service_fn(move |call: Call| {
            let ended = executions.begin(call.panics);
            assert!(!call.panics, "it panics in call");
            async move {
                match ended.await? {
                    Outcome::Ok(value) => Ok(value),
                    Outcome::Err(error) => Err(BoxError::from(error.as_str().unwrap_or("error").to_owned())),
                    Outcome::Panic(_) => panic!("it panics"),
                }
            }
        }));
        Box::pin(service.oneshot(call))
    }

    /// Polls whoever waits, as their tasks would; those that got something, by name.
    async fn run(&mut self) -> Map<String, Value> {
        let mut results = Map::new();
        // Whoever is polled may end what the one before waited for.
        for _ in 0..2 {
            for (name, caller) in &mut self.callers {
                let Caller::Waits(future) = caller else { continue };
                let polled = catch_unwind(AssertUnwindSafe(|| {
                    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
                }));
                let (result, served) = match polled {
                    Ok(Poll::Pending) => continue,
                    Ok(Poll::Ready(Ok((value, served)))) => (json!({"ok": value}), Some(served)),
                    Ok(Poll::Ready(Err(failed))) => (json!({"err": error(&*failed)}), None),
                    Err(_) => (json!({"err": "panic"}), None),
                };
                results.insert(name.clone(), result.clone());
                *caller = Caller::Got { result, served };
            }
            settle().await;
        }
        results
    }

    fn seen(&self) -> Value {
        let stats = self.dedup.stats();
        let running = self.executions.running().len();
        json!({
            "execs": self.executions.count(), "running": running,
            "inflight": stats.in_flight, "entries": stats.entries,
        })
    }
}

/// What a call was counted as.
fn role(before: Stats, after: Stats) -> &'static str {
    if after.hits > before.hits {
        "replay"
    } else if after.collapsed > before.collapsed {
        "follower"
    } else if after.conflicts > before.conflicts {
        "conflict"
    } else if after.misses > before.misses {
        "leader"
    } else {
        "bypass"
    }
}

fn join(mut all: Value, more: Value) -> Value {
    if let (Value::Object(all), Value::Object(more)) = (&mut all, more) {
        all.extend(more);
    }
    all
}

impl Adapter for Deduplication {
    fn build(config: &Fields) -> Result<Self, String> {
        let mut replay = match millis(config, "ttl")? {
            Some(ttl) => Replay::ttl(ttl),
            None => Replay::none(),
        };
        if let Some(window) = millis(config, "stale_while_revalidate")? {
            replay = replay.stale_while_revalidate(window);
        }
        if let Some(window) = millis(config, "stale_if_error")? {
            replay = replay.stale_if_error(window);
        }
        if let Some(ttl) = millis(config, "negative_ttl")? {
            replay = replay.negative_ttl(ttl);
        }
        if let Some(entries) = config.get("max_entries")? {
            replay = replay.max_entries(entries);
        }
        if let Some(bytes) = config.get("max_bytes")? {
            replay = replay.max_bytes(bytes);
        }
        let constant = match config.get::<String>("hasher")?.as_deref() {
            None => false,
            Some("constant") => true,
            Some(other) => return Err(format!("unknown hasher {other:?}")),
        };
        let dedup = Dedup::try_sharing(Told, replay).map_err(|invalid| invalid.to_string())?;
        Ok(Self { dedup, executions: Executions::default(), constant, callers: BTreeMap::new() })
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        let args = &step.args;
        let tenant: Option<String> = args.get("tenant")?;
        let key = |name: String| Key { tenant, name, constant: self.constant };
        let seen = match step.op.as_str() {
            "call" => {
                let id: String = args.need("id")?;
                let call = Call {
                    key: args.get("key")?.map(key),
                    fingerprint: args.get("fp")?,
                    panics: args.get("panic_in_call")?.unwrap_or(false),
                };
                let before = self.dedup.stats();
                let future = self.call(call);
                if self.callers.insert(id.clone(), Caller::Waits(future)).is_some() {
                    return Err(format!("there is a caller {id:?} already"));
                }
                self.run().await;
                let role = role(before, self.dedup.stats());
                let (result, served) = match &self.callers[&id] {
                    Caller::Waits(_) => (Value::Null, None),
                    Caller::Got { result, served } => (result.clone(), *served),
                };
                let stale = matches!(served, Some(Served::Stale { .. }));
                json!({"role": role, "result": result, "stale": stale})
            }
            "finish" => {
                let exec: Value = args.need("exec")?;
                let outcome: Outcome = args.need("outcome")?;
                let running = self.executions.running();
                let n = match (&exec, running.as_slice()) {
                    (Value::String(word), [only]) if word == "running" => *only,
                    (Value::Number(n), _) => n.as_u64().map_or(usize::MAX, |n| n as usize),
                    _ => return Err(format!("exec {exec}: {running:?} run")),
                };
                self.executions.end(n, outcome)?;
                // A refresh has a task of its own.
                settle().await;
                json!({"results": self.run().await})
            }
            "result" => {
                let id: String = args.need("id")?;
                match self.callers.get(&id).ok_or_else(|| format!("there is no caller {id:?}"))? {
                    Caller::Waits(_) => json!({"pending": true}),
                    Caller::Got { result, .. } => result.clone(),
                }
            }
            "cancel" => {
                let id: String = args.need("id")?;
                self.callers.remove(&id).ok_or_else(|| format!("there is no caller {id:?}"))?;
                // Whoever is woken by that has his turn.
                settle().await;
                json!({"results": self.run().await})
            }
            "invalidate" => {
                self.dedup.invalidate(&key(args.need("key")?));
                json!({})
            }
            "clear" => {
                self.dedup.clear();
                json!({})
            }
            "entries" | "stats" | "tick" => json!({}),
            _ => return step.unknown(),
        };
        Ok(Answer::Now(join(self.seen(), seen)))
    }
}
