//! How the cases of `batch.json` drive the layer.

use std::{
    collections::{BTreeMap, HashMap},
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bartizan_batch::{Batch, Batched, Settings};
use bartizan_core::{BoxError, Rejected, RejectionKind, chain};
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step, settle};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    sync::oneshot,
    task::{self, AbortHandle},
    time::Instant,
};
use tower::{Layer, Service, service_fn};

/// What a batch ends with.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum Outcome {
    Items(Vec<ItemOutcome>),
    Err(Value),
    Panic(bool),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "lowercase")]
enum ItemOutcome {
    Ok(Value),
    Err(Value),
}

/// An error that is whatever the case says, of an item or of a batch.
#[derive(Clone, Debug)]
struct Told(Value);

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Told {}

struct Item {
    id: String,
    bytes: u64,
    key: Option<String>,
}

type Results = Vec<Result<Value, Told>>;

/// The handler: it notes what it is given, and waits to be told the outcome.
#[derive(Default)]
struct Handler {
    /// Batches that nobody has been told of yet.
    flushed: Vec<(Instant, Vec<String>)>,
    running: Vec<Option<oneshot::Sender<Outcome>>>,
}

async fn handle(handler: Arc<Mutex<Handler>>, items: Vec<Item>) -> Result<Results, Told> {
    let (end, ended) = oneshot::channel();
    {
        let mut handler = handler.lock().unwrap();
        handler.flushed.push((Instant::now(), items.into_iter().map(|item| item.id).collect()));
        handler.running.push(Some(end));
    }
    match ended.await.expect("the adapter keeps its end") {
        Outcome::Items(items) => Ok(items
            .into_iter()
            .map(|item| match item {
                ItemOutcome::Ok(value) => Ok(value),
                ItemOutcome::Err(value) => Err(Told(value)),
            })
            .collect()),
        Outcome::Err(value) => Err(Told(value)),
        Outcome::Panic(panics) => {
            assert!(!panics, "the handler panics");
            Ok(Vec::new())
        }
    }
}

/// What callers got, by their names.
type Got = Arc<Mutex<BTreeMap<String, Value>>>;

pub(crate) struct Batching {
    batch: Batch,
    service: Batched<Item, Value, Told, Option<String>>,
    handler: Arc<Mutex<Handler>>,
    base: Instant,
    got: Got,
    /// How many of those have been told.
    told: Vec<String>,
    calls: HashMap<String, Vec<AbortHandle>>,
}

/// How long after the layer was built the case begins.
const LEAD: Duration = Duration::from_secs(3600);

fn told(result: Result<Value, BoxError>) -> Value {
    match result {
        Ok(value) => json!({"ok": value}),
        Err(error) => json!({"err": cause(&*error)}),
    }
}

fn cause(error: &(dyn Error + 'static)) -> Value {
    if let Some(Told(value)) = chain(error).find_map(|error| error.downcast_ref()) {
        return value.clone();
    }
    match Rejected::find(error).map(Rejected::kind) {
        Some(RejectionKind::Protocol) => json!("batch_protocol"),
        Some(RejectionKind::Panicked) => json!("panic"),
        Some(RejectionKind::Deadline) => json!("deadline"),
        Some(RejectionKind::Closed) => json!("closed"),
        _ => panic!("the layer has no such error: {error}"),
    }
}

impl Batching {
    /// Whether the item was taken: the service was ready, and did not refuse it.
    fn submit(&mut self, item: Item) -> bool {
        let mut service = self.service.clone();
        let cx = &mut Context::from_waker(Waker::noop());
        let Poll::Ready(Ok(())) = service.poll_ready(cx) else { return false };
        let id = item.id.clone();
        let mut call = Box::pin(service.call(item));
        if let Poll::Ready(Err(error)) = Pin::new(&mut call).poll(cx) {
            assert_eq!(cause(&*error), json!("closed"), "it was not even sent");
            return false;
        }
        let (got, key) = (self.got.clone(), id.clone());
        let call = task::spawn(async move {
            let result = call.await;
            got.lock().unwrap().insert(key, told(result));
        });
        self.calls.entry(id).or_default().push(call.abort_handle());
        true
    }

    async fn seen(&mut self, more: Value) -> Answer {
        settle().await;
        let flushed = std::mem::take(&mut self.handler.lock().unwrap().flushed);
        let at = |at: Instant| u64::try_from((at - self.base).as_millis()).unwrap();
        let flushed: Vec<_> =
            flushed.into_iter().map(|(time, members)| json!({"at": at(time), "members": members})).collect();
        let got = self.got.lock().unwrap();
        let new = got.iter().filter(|(id, _)| !self.told.contains(id));
        let results: Map<_, _> = new.map(|(id, result)| (id.clone(), result.clone())).collect();
        self.told.extend(results.keys().cloned());
        let mut seen = json!({"flushed": flushed, "results": results, "pending": self.batch.stats().waiting});
        if let (Value::Object(seen), Value::Object(more)) = (&mut seen, more) {
            seen.extend(more);
        }
        Answer::Now(seen)
    }
}

impl Adapter for Batching {
    fn build(config: &Fields) -> Result<Self, String> {
        let millis = |key| Ok::<_, String>(config.get::<u64>(key)?.map(Duration::from_millis));
        // Where a case says nothing there is no bound.
        let mut settings = Settings::max_size(config.get("max_size")?.unwrap_or(usize::MAX))
            .linger(millis("linger")?.unwrap_or_default())
            .max_concurrent(config.get("max_concurrent")?.unwrap_or(usize::MAX))
            .max_pending(config.get("max_pending")?.unwrap_or(usize::MAX));
        if let Some(deadline) = millis("deadline")? {
            settings = settings.deadline(deadline);
        }
        let batch = Batch::try_new(settings).map_err(|invalid| invalid.to_string())?;
        let mut layer = batch.layer().by(|item: &Item| item.key.clone());
        if let Some(max) = config.get("max_bytes")? {
            layer = layer.max_weight(max, |item| item.bytes);
        }
        let handler = Arc::<Mutex<Handler>>::default();
        let below = handler.clone();
        let service = layer.layer(service_fn(move |items| handle(below.clone(), items)));
        Ok(Self {
            batch,
            service,
            handler,
            base: Instant::now() + LEAD,
            got: Got::default(),
            told: Vec::new(),
            calls: HashMap::new(),
        })
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        let id = || step.args.need::<String>("id");
        let more = match step.op.as_str() {
            "submit" => {
                let (bytes, key) = (step.args.get("bytes")?.unwrap_or(0), step.args.get("key")?);
                json!({"accepted": self.submit(Item { id: id()?, bytes, key })})
            }
            "advance" => json!({}),
            "complete" => {
                let (batch, outcome): (usize, Outcome) =
                    (step.args.need("batch")?, step.args.need("outcome")?);
                let end = self.handler.lock().unwrap().running.get_mut(batch).and_then(Option::take);
                let end = end.ok_or_else(|| format!("batch {batch} is not under way"))?;
                // Nobody listens if its time was up.
                let _ = end.send(outcome);
                json!({})
            }
            "cancel" => {
                let id = id()?;
                let call = self.calls.get_mut(&id).and_then(Vec::pop);
                call.ok_or_else(|| format!("nobody called {id:?} waits"))?.abort();
                settle().await;
                self.got.lock().unwrap().entry(id).or_insert(json!({"err": "cancelled"}));
                json!({})
            }
            "result" => {
                let id = id()?;
                let got = self.got.lock().unwrap().get(&id).cloned();
                got.unwrap_or_else(|| json!({"waits": true}))
            }
            "shutdown" => {
                self.batch.shutdown();
                json!({})
            }
            _ => return step.unknown(),
        };
        Ok(self.seen(more).await)
    }
}
