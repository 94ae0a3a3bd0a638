//! Who answers when a model fails.
//!
//! Each model is a target under its own name, whoever it stands in for. What a model says about when to come back holds for
//! all requests, and for all workers.

use std::{
    collections::HashMap,
    error::Error as StdError,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_core::{
    BoxError, Budget, Class as Outcome, Classify, Rejected, RejectionKind, RetryAfter, headers,
};
use bartizan_fallback::{
    Attempt, Cloned, Commit, CommitLayer, Exhausted, FailedResponse, Fallback, FallbackService, FirstChunk,
    FirstEvent, Http, Listed, LlmEvents, LlmWatch, NotBegun, One, Or, ServedBy, Skipped, Step, TargetStats,
    Watch,
};
use bartizan_provider::{Class, Error, RetryPolicy};
use bytes::Bytes;
use futures_util::{
    TryFutureExt,
    future::{Either, MapOk},
};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, response::Parts};
use http_body_util::{Either as EitherBody, Full};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    layer::util::Stack,
    util::{MapErrLayer, Oneshot},
};

use crate::{
    ask::{AnswerBody, Ask},
    config::{Config, Fallbacks as Lists, Model},
};

/// A client's word: `off` asks the model that the request names, and no other.
pub(crate) const FALLBACK: HeaderName = HeaderName::from_static("x-bartizan-fallback");
/// The model that has answered.
const SERVED_BY: HeaderName = HeaderName::from_static("x-bartizan-served-by");
/// What was tried before, a structured field: `"gpt-4o";error=overloaded, "local";skipped`.
const ATTEMPTS: HeaderName = HeaderName::from_static("x-bartizan-attempts");

/// The fallbacks of a gateway: what all of its workers share.
#[derive(Debug)]
pub(crate) struct Fallbacks {
    fallback: Fallback,
    attempts: u32,
    within: Duration,
    /// By the model.
    lists: HashMap<String, Lists>,
}

impl Fallbacks {
    pub(crate) fn new(config: &Config) -> Self {
        let lists = config.models.iter().map(|model| (model.name.clone(), model.fallbacks.clone()));
        Self {
            fallback: Fallback::new(config.models.iter().map(|model| model.name.as_str())),
            attempts: config.fallback.attempts,
            within: config.fallback.within,
            lists: lists.collect(),
        }
    }

    /// Makes of a stream that fails before it has begun a call that has failed: who has asked is told by a status. It has
    /// begun with its first byte, and where that makes a difference, because others could answer or the model is asked
    /// again, with the first that it says.
    pub(crate) fn begun(&self, model: &Model) -> Stack<CommitLayer<Streams>, MapErrLayer<Typed>> {
        let stands_in = self.lists.values().any(|lists| lists.all().any(|name| name == model.name));
        let begins = match stands_in || !model.fallbacks.are_none() {
            // An event that is an error comes as the error of the body.
            true => Streams::Content(LlmEvents::new()),
            false => Streams::Anything,
        };
        let committed = CommitLayer::new(begins).within(model.limits.first_frame);
        Stack::new(committed, MapErrLayer::new(typed as Typed))
    }

    /// One model, asked again as often as it may be, and saying who it is.
    pub(crate) fn target(&self, model: &Model, inner: Ask) -> Ask {
        let inner = match model.fallbacks.retries {
            0 => inner,
            retries => {
                let policy = RetryPolicy::new().retries(retries);
                Ask::new(ServiceBuilder::new().retry(policy).service(inner))
            }
        };
        let name = quiet(&model.name);
        Ask::new(inner.map_response(move |mut response: Response<AnswerBody>| {
            response.headers_mut().insert(SERVED_BY, name.clone());
            response
        }))
    }

    /// A model and those that stand in for it.
    pub(crate) fn around<S: Clone>(
        &self,
        model: &str,
        alone: S,
        mut stand_in: impl FnMut(&str) -> S,
    ) -> Asked<S> {
        let lists = &self.lists[model];
        let budget = (!lists.are_none()).then_some((self.attempts, self.within));
        let mut others: Vec<&str> = Vec::new();
        for name in lists.all() {
            if !others.contains(&name) {
                others.push(name);
            }
        }
        if others.is_empty() {
            return Asked { alone, chain: None, budget };
        }
        let judge = Judge {
            general: !lists.models.is_empty(),
            context_length: !lists.context_length.is_empty(),
            content_policy: !lists.content_policy.is_empty(),
        };
        let services = others.iter().map(|name| (*name, stand_in(name)));
        let mut layer = self.fallback.http_layer(model).or_each(services).classify(judge).served_by();
        for name in others {
            let of = |list: &[String]| list.iter().any(|other| other == name);
            let takes = Judge {
                general: of(&lists.models),
                context_length: of(&lists.context_length),
                content_policy: of(&lists.content_policy),
            };
            // Nobody was asked yet, because the model itself is left alone: that is as when it fails.
            layer = layer.when(name, move |cause| takes.takes(cause.and_then(class_of)));
        }
        Asked { chain: Some(layer.layer(alone.clone())), alone, budget }
    }
}

impl Fallbacks {
    /// What there is to tell of every model.
    pub(crate) fn describe(&self) -> Value {
        let of = |target: &TargetStats| {
            json!({
                "name": *target.name,
                "took_over": target.took_over,
                "failed": target.failed,
                "skipped": target.skipped,
                "left_alone_for": target.aside_for.map(|time| time.as_secs_f64()),
            })
        };
        self.fallback.stats().targets.iter().map(of).collect()
    }

    /// How many requests nobody has answered, and why.
    pub(crate) fn unanswered(&self) -> [(&'static str, u64); 3] {
        let stats = self.fallback.stats();
        [("exhausted", stats.exhausted), ("out_of_time", stats.out_of_time), ("no_target", stats.no_target)]
    }
}

type Typed = fn(BoxError) -> BoxError;

/// An upstream's failure, if the provider below has seen none: a stream that says nothing, or nothing that says something.
fn typed(error: BoxError) -> BoxError {
    match error.downcast_ref::<NotBegun>() {
        Some(start) if Error::find(start).is_none() => {
            let class = if start.is_late() { Class::Timeout } else { Class::Malformed };
            Error::new(class, start.to_string()).with_source(error).into()
        }
        _ => error,
    }
}

/// What commits a stream.
#[derive(Clone, Debug)]
pub(crate) enum Streams {
    Anything,
    Content(LlmEvents),
}

impl Commit for Streams {
    type Watch = Begun;

    fn watch(&self, head: &Parts) -> Option<Begun> {
        match self {
            Self::Anything => FirstEvent.watch(head).map(|_| Begun::Anything(FirstChunk)),
            Self::Content(events) => events.watch(head).map(Begun::Content),
        }
    }
}

/// Looks at one stream for [`Streams`].
#[derive(Debug)]
pub(crate) enum Begun {
    /// A comment, too, or who waits would see nothing of what upstreams send to keep a connection.
    Anything(FirstChunk),
    Content(LlmWatch),
}

impl Watch for Begun {
    fn chunk(&mut self, chunk: &Bytes) -> Step {
        match self {
            Self::Anything(first) => first.chunk(chunk),
            Self::Content(events) => events.chunk(chunk),
        }
    }

    fn pass(&mut self, chunk: &Bytes) {
        match self {
            Self::Anything(first) => first.pass(chunk),
            Self::Content(events) => events.pass(chunk),
        }
    }

    fn end(&mut self) -> Result<(), BoxError> {
        match self {
            Self::Anything(first) => first.end(),
            Self::Content(events) => events.end(),
        }
    }
}

/// The failures that somebody takes over from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Judge {
    general: bool,
    context_length: bool,
    content_policy: bool,
}

impl Judge {
    fn takes(self, class: Option<Class>) -> bool {
        match class {
            Some(Class::ContextLength) => self.context_length,
            Some(Class::ContentPolicy) => self.content_policy,
            // What is wrong with a request is wrong everywhere.
            Some(Class::BadRequest | Class::TooLarge) => false,
            _ => self.general,
        }
    }
}

impl<B> Classify<Response<B>> for Judge {
    fn classify(&self, result: Result<&Response<B>, &(dyn StdError + 'static)>) -> Outcome {
        let error = match result {
            Ok(response) => match response.extensions().get::<Arc<Error>>() {
                Some(error) => Some(&**error),
                None => return Outcome::Success,
            },
            Err(error) => Error::find(error),
        };
        match self.takes(error.map(Error::class)) {
            true => Outcome::Failure(error.map_or(RetryAfter::Unknown, Error::retry_after)),
            false => Outcome::Success,
        }
    }
}

/// What a cause means; `None` if it is of no class.
fn class_of(cause: &(dyn StdError + 'static)) -> Option<Class> {
    error_of(cause).map(Error::class)
}

fn error_of<'a>(cause: &'a (dyn StdError + 'static)) -> Option<&'a Error> {
    match cause.downcast_ref::<FailedResponse>() {
        Some(response) => response.extensions().get::<Arc<Error>>().map(|error| &**error),
        None => Error::find(cause),
    }
}

/// A model, asked with those that stand in for it or, if the client wants that, alone.
#[derive(Clone)]
pub(crate) struct Asked<S> {
    alone: S,
    chain: Option<Chain<S>>,
    /// What a request is bound by that may be sent more than once.
    budget: Option<(u32, Duration)>,
}

type Chain<S> = FallbackService<Or<One<S>, Listed<S>, Http>, Judge, Cloned, Http>;

type Answer<B> = Response<EitherBody<B, B>>;
type Alone<S, B> = MapOk<Oneshot<S, Request<Bytes>>, fn(Response<B>) -> Answer<B>>;
type Chained<S, B> = MapOk<<Chain<S> as Service<Request<Bytes>>>::Future, fn(Answer<B>) -> Answer<B>>;

impl<S, B> Service<Request<Bytes>> for Asked<S>
where
    S: Service<Request<Bytes>, Response = Response<B>, Error = BoxError> + Clone,
{
    type Response = Answer<B>;
    type Error = BoxError;
    type Future = Either<Alone<S, B>, Either<Chained<S, B>, Ready<Result<Answer<B>, BoxError>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Bytes>) -> Self::Future {
        let alone = match is_alone(request.headers_mut()) {
            Ok(alone) => alone,
            Err(error) => return Either::Right(Either::Right(ready(Err(error.into())))),
        };
        if let Some((attempts, within)) = self.budget {
            let deadline = (Instant::now() + within).into_std();
            request.extensions_mut().insert(Budget::until(attempts, deadline));
        }
        match &mut self.chain {
            Some(chain) if !alone => {
                Either::Right(Either::Left(chain.call(request).map_ok(tell as fn(_) -> _)))
            }
            _ => {
                let first = |response: Response<B>| response.map(EitherBody::Left);
                Either::Left(self.alone.clone().oneshot(request).map_ok(first as fn(_) -> _))
            }
        }
    }
}

/// Whether the client wants no other model. Upstreams are not told.
fn is_alone(headers: &mut HeaderMap) -> Result<bool, Error> {
    match headers.remove(&FALLBACK).as_ref().map(HeaderValue::as_bytes) {
        None | Some(b"on") => Ok(false),
        Some(b"off") => Ok(true),
        Some(_) => {
            let message = "x-bartizan-fallback is either `on`, the default, or `off`";
            Err(Error::new(Class::BadRequest, message).with_param("x-bartizan-fallback"))
        }
    }
}

/// Tells the client, and the log, what was tried before.
fn tell<B>(mut response: Response<B>) -> Response<B> {
    let Some(served) = response.extensions_mut().remove::<ServedBy>() else { return response };
    if !served.attempts().is_empty() || !served.skipped().is_empty() {
        tracing::info!(
            model = served.name(),
            attempts = describe(served.attempts(), served.skipped()),
            "a model answered for another"
        );
        response.headers_mut().insert(ATTEMPTS, attempts(served.attempts(), served.skipped()));
        response.extensions_mut().insert(StoodIn);
    }
    response
}

/// In the extensions of responses that are not of the model that was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoodIn;

/// What a client sees when nobody has answered, if `error` is that: the failure of the model it has asked for, and that
/// others have failed, too. Its client need not try again: that was done.
pub(crate) fn refusal(error: &BoxError) -> Option<Response<Full<Bytes>>> {
    let rejected = Rejected::find(&**error).filter(|rejected| rejected.layer() == "fallback")?;
    let exhausted = rejected.source()?.downcast_ref::<Exhausted>()?;
    let (tried, skipped) = (exhausted.attempts(), exhausted.skipped());
    let first = tried.first().map(Attempt::cause);
    let class = match (rejected.kind(), first) {
        (RejectionKind::Deadline, _) => Class::Timeout,
        (RejectionKind::Unhealthy, _) => Class::Overloaded,
        (_, first) => first.and_then(class_of).unwrap_or(Class::Upstream),
    };
    let what = match rejected.kind() {
        RejectionKind::Deadline => "there was no more time to ask a model",
        RejectionKind::Unhealthy => "no model that may answer is ready",
        _ => "every model that was asked has failed",
    };
    let message = match describe(tried, skipped) {
        details if details.is_empty() => what.to_owned(),
        details => format!("{what}: {details}"),
    };
    let mut told = Error::new(class, message).with_retry_after(RetryAfter::Never);
    if class != Class::Timeout
        && let Some(first) = first.and_then(error_of)
    {
        told = told.with_status(first.status());
        if let Some(code) = first.code() {
            told = told.with_code(code.to_owned());
        }
    }
    let mut response = told.to_response();
    headers::set_retry_after(response.headers_mut(), rejected.retry_after());
    response.headers_mut().insert(ATTEMPTS, attempts(tried, skipped));
    Some(response)
}

/// In words: the causes of ours are safe to tell, of others only that they are.
fn describe(tried: &[Attempt], skipped: &[Skipped]) -> String {
    let tried = tried.iter().map(|attempt| match error_of(attempt.cause()) {
        Some(error) => format!("{:?}: {}", attempt.name(), error.message()),
        None => format!("{:?}: it failed", attempt.name()),
    });
    let skipped = skipped.iter().map(|skipped| {
        let why = if skipped.is_aside() { "it is left alone as it has asked" } else { "it was not ready" };
        format!("{:?}: {why}", skipped.name())
    });
    tried.chain(skipped).collect::<Vec<_>>().join("; ")
}

/// As a structured field.
fn attempts(tried: &[Attempt], skipped: &[Skipped]) -> HeaderValue {
    let tried = tried.iter().map(|attempt| {
        let class = class_of(attempt.cause()).unwrap_or(Class::Upstream);
        let code = class.openai_code().unwrap_or("bad_request");
        format!("{};error={code}", quoted(attempt.name()))
    });
    let skipped = skipped.iter().map(|skipped| format!("{};skipped", quoted(skipped.name())));
    quiet(&tried.chain(skipped).collect::<Vec<_>>().join(", "))
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Names have no control characters: they are checked.
fn quiet(text: &str) -> HeaderValue {
    HeaderValue::from_bytes(text.as_bytes()).unwrap_or_else(|_| HeaderValue::from_static("?"))
}
