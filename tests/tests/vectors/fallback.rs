//! How the cases of `fallback.json` drive the layer.

use std::{
    collections::BTreeMap,
    error::Error,
    fmt,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{BoxError, Class, Classify, Rejected, RejectionKind, RetryAfter};
use bartizan_fallback::{
    CommitLayer, Exhausted, FailedResponse, Fallback, FirstChunk, Panicked, ServedBy, Settings, Skipped,
};
use bartizan_tests::vectors::{Adapter, Answer, Fields, Step};
use bytes::Bytes;
use futures_util::{future::BoxFuture, stream};
use http::{Request, Response};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceExt, util::BoxCloneSyncService};

type Body = BoxBody<Bytes, BoxError>;
type Provider = BoxCloneSyncService<Request<Ask>, Response<Body>, BoxError>;

/// One request. Providers know from it what they do this time, and write down that they were asked.
#[derive(Clone)]
struct Ask {
    body: String,
    script: Arc<BTreeMap<String, Act>>,
    asked: Arc<Mutex<Vec<Value>>>,
    base: Instant,
}

/// What a provider does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Act {
    ok: Option<Value>,
    err: Option<String>,
    panic: Option<Value>,
    ms: Option<u64>,
    ready: Option<bool>,
    retry_after: Option<u64>,
}

/// A provider: made ready, called, and answering as its script says.
#[derive(Clone)]
struct Scripted {
    name: String,
    /// What its readiness says. The script is the request's, which readiness does not see.
    ready: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Service<Request<Ask>> for Scripted {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Body>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.ready.lock().unwrap().get(&self.name) {
            Some(false) => Poll::Pending,
            _ => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: Request<Ask>) -> Self::Future {
        let Ask { body, script, asked, base } = request.into_body();
        let at = millis(base.elapsed());
        asked.lock().unwrap().push(json!({"provider": self.name, "at": at, "body": body}));
        let act = script.get(&self.name).cloned().unwrap_or_default();
        Box::pin(act.run())
    }
}

impl Act {
    async fn run(self) -> Result<Response<Body>, BoxError> {
        sleep(Duration::from_millis(self.ms.unwrap_or_default())).await;
        let retry_after = self.retry_after.map(Duration::from_millis);
        if self.panic.is_some_and(|panic| panic != json!(false)) {
            panic!("the provider panics");
        }
        let failure = self.err.map(|class| Failed { class, retry_after });
        let Some(ok) = self.ok else {
            return Err(failure.ok_or("the script says neither ok nor err nor panic")?.into());
        };
        // With both, it fails once its first byte is out.
        let first = stream::iter([Ok(Frame::data(Bytes::from(ok.to_string())))]);
        let rest = stream::iter(failure.map(|error| Err::<Frame<Bytes>, BoxError>(error.into())));
        let mut response =
            Response::new(StreamBody::new(futures_util::StreamExt::chain(first, rest)).boxed());
        response.extensions_mut().insert(Told { ok, retry_after });
        Ok(response)
    }
}

/// What a response says, for whoever judges it.
#[derive(Clone)]
struct Told {
    ok: Value,
    retry_after: Option<Duration>,
}

#[derive(Clone, Debug)]
struct Failed {
    class: String,
    retry_after: Option<Duration>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.class)
    }
}

impl Error for Failed {}

/// The class of an error, as the cases name it.
fn class_of(error: &(dyn Error + 'static)) -> String {
    match error.downcast_ref::<FailedResponse>().and_then(|failed| failed.extensions().get::<Told>()) {
        Some(told) => told.ok.as_str().map_or_else(|| told.ok.to_string(), ToOwned::to_owned),
        None if error.is::<Panicked>() => "panic".to_owned(),
        None => error.to_string(),
    }
}

fn told(wait: Option<Duration>) -> Class {
    Class::Failure(wait.map_or(RetryAfter::Unknown, RetryAfter::After))
}

/// What moves on.
#[derive(Clone)]
struct Judge {
    retryable: Arc<[String]>,
    fail_results: Arc<[Value]>,
}

impl<B> Classify<Response<B>> for Judge {
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        match result {
            Ok(response) => match response.extensions().get::<Told>() {
                Some(it) if self.fail_results.contains(&it.ok) => told(it.retry_after),
                _ => Class::Success,
            },
            Err(error) if self.retryable.contains(&class_of(error)) => {
                told(error.downcast_ref::<Failed>().and_then(|failed| failed.retry_after))
            }
            Err(_) => Class::Success,
        }
    }
}

pub(crate) struct Fallbacks {
    service: Provider,
    fallback: Fallback,
    ready: Arc<Mutex<BTreeMap<String, bool>>>,
    base: Instant,
}

/// How long after the layer was built the case begins.
const LEAD: Duration = Duration::from_secs(3600);

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).expect("a case is short")
}

impl Adapter for Fallbacks {
    fn build(config: &Fields) -> Result<Self, String> {
        let providers: Vec<String> = config.need("providers")?;
        let retryable: Vec<String> = config.get("retryable")?.unwrap_or_default();
        let fail_results: Vec<Value> = config.get("fail_results")?.unwrap_or_default();
        let transforms: BTreeMap<String, String> = config.get("transform")?.unwrap_or_default();
        let deadline = config.get("deadline")?.map(Duration::from_millis);
        let least = config.get("min_attempt")?.map(Duration::from_millis).unwrap_or_default();
        if let Some(stranger) = transforms.keys().find(|name| !providers.contains(name)) {
            return Err(format!("transform: there is no provider {stranger:?}"));
        }

        let mut settings = Settings::new().min_attempt(least).longest_retry_after(Duration::MAX);
        if let Some(deadline) = deadline {
            settings = settings.within(deadline);
        }
        let fallback = Fallback::with(settings, providers.iter().map(String::as_str));
        let ready = Arc::new(Mutex::new(BTreeMap::new()));
        let provider = |name: &String| -> Provider {
            let scripted = Scripted { name: name.clone(), ready: ready.clone() };
            let committed = CommitLayer::new(FirstChunk).layer(scripted);
            let transform = transforms.get(name).cloned();
            let service = committed.map_request(move |mut request: Request<Ask>| {
                if let Some(transform) = &transform {
                    let body = &mut request.body_mut().body;
                    *body = format!("{body}|{transform}");
                }
                request
            });
            Provider::new(service.map_response(|response: Response<_>| response.map(BodyExt::boxed)))
        };
        let judge = Judge { retryable: retryable.into(), fail_results: fail_results.into() };
        let (first, rest) = providers.split_first().ok_or("there are no providers")?;
        let layer = fallback.http_layer(first);
        let rest = rest.iter().map(|name| (name, provider(name)));
        let service = layer.or_each(rest).classify(judge).served_by().layer(provider(first));
        let service =
            Provider::new(service.map_response(|response: Response<_>| response.map(BodyExt::boxed)));
        Ok(Self { service, fallback, ready, base: Instant::now() + LEAD })
    }

    async fn step(&mut self, step: &Step) -> Result<Answer, String> {
        if step.op != "call" {
            return step.unknown();
        }
        let script: BTreeMap<String, Act> = step.args.need("script")?;
        let body: String = step.args.get("body")?.unwrap_or_default();
        let cancel_at: Option<u64> = step.args.get("cancel_at")?;
        let ready = script.iter().map(|(name, act)| (name.clone(), act.ready.unwrap_or(true))).collect();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let base = self.base;
        let ask = Ask { body, script: Arc::new(script), asked: asked.clone(), base };

        let service = self.service.clone();
        let (readiness, fallback) = (self.ready.clone(), self.fallback.clone());
        let before = skips(&fallback);
        let mut call = Box::pin(service.oneshot(Request::new(ask)));
        // What is ready is said once for all providers, so it is set for each poll of a call that runs beside others.
        let call = std::future::poll_fn(move |cx| {
            readiness.lock().unwrap().clone_from(&ready);
            call.as_mut().poll(cx)
        });
        Ok(Answer::Later(Box::pin(async move {
            let answered = async {
                match call.await {
                    Ok(response) => read(response).await,
                    Err(error) => failure(&error),
                }
            };
            let mut seen = match cancel_at.map(|at| base + Duration::from_millis(at)) {
                None => answered.await,
                Some(at) => tokio::time::timeout_at(at, answered)
                    .await
                    .unwrap_or_else(|_| json!({"error": {"kind": "cancelled"}})),
            };
            if seen["error"]["kind"] == "final" {
                // The error is the provider's own: who was left out before is in the statistics only.
                let after = skips(&fallback).into_iter().zip(before);
                let more = after.filter(|((_, now), (_, then))| now > then).map(|((name, _), _)| name);
                seen["skipped"] = more.collect();
            }
            seen["attempts"] = json!(asked.lock().unwrap().clone());
            seen["end"] = json!(millis(base.elapsed()));
            seen
        })))
    }
}

/// How often each provider was left out.
fn skips(fallback: &Fallback) -> Vec<(String, u64)> {
    fallback.stats().targets.iter().map(|it| (it.name.to_string(), it.skipped)).collect()
}

/// What the caller gets of a response: a stream may still fail.
async fn read(response: Response<Body>) -> Value {
    let (head, mut body) = response.into_parts();
    let told = head.extensions.get::<Told>().expect("a provider has answered");
    let served = head.extensions.get::<ServedBy>().expect("the layer marks responses");
    let causes: Vec<_> = served.attempts().iter().map(cause).collect();
    let skipped: Vec<_> = served.skipped().iter().map(Skipped::name).collect();
    let mut seen = json!({"served_by": served.name(), "skipped": skipped, "causes": causes});
    while let Some(frame) = body.frame().await {
        if let Err(error) = frame {
            seen["error"] = json!({"kind": "stream", "err": class_of(&*error)});
            return seen;
        }
        if body.is_end_stream() {
            break;
        }
    }
    seen["ok"] = told.ok.clone();
    seen
}

fn cause(attempt: &bartizan_fallback::Attempt) -> Value {
    json!({"provider": attempt.name(), "err": class_of(attempt.cause())})
}

/// What the caller gets of an error.
fn failure(error: &BoxError) -> Value {
    let Some(detail) = Exhausted::find(&**error) else {
        return json!({"error": {"kind": "final", "err": class_of(&**error)}});
    };
    let kind = match Rejected::find(&**error).expect("the refusal of which this is the detail").kind() {
        RejectionKind::Exhausted => "exhausted",
        RejectionKind::Deadline => "deadline",
        RejectionKind::Unhealthy => "no_provider",
        kind => panic!("no fallback refuses with {kind}"),
    };
    let causes: Vec<_> = detail.attempts().iter().map(cause).collect();
    let skipped: Vec<_> = detail.skipped().iter().map(Skipped::name).collect();
    json!({"error": {"kind": kind, "causes": causes}, "skipped": skipped})
}
