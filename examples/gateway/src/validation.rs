//! By what rules requests and answers are checked, model by model.
//!
//! Outside of what costs or keeps: a request that breaks a rule asks nobody, and an answer is checked each time that it is
//! given, whoever made it and when, by the rules of the model that was asked for. Inside of the rate limits, so that nobody
//! has the rules tried on more requests than he may make. Whoever stands in for another model has its own rules for requests
//! asked again before it is.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use bartizan_provider::{HttpTransport, Operation, UsageReport};
use bartizan_validate::{Bodies, Level, OnRuleError, Part, Policy, Report, Validator, Violation};
use bytes::Bytes;
use http::{HeaderName, Request, Response};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::{Layer, Service, ServiceExt, service_fn, util::Oneshot};

use crate::{
    ask::{AnswerBody, Ask, erased},
    config::{Action, Config, Model},
    dedup,
    rate_limits::facts,
};

use counts::{Counts, Side};
use told::Told;

mod counts;
mod moderation;
mod rules;
mod told;

/// What was found in a request and its answer that pass all the same: a structured field, as
/// `"cards";at="/messages/0/content";is=error`.
const HEADER: HeaderName = HeaderName::from_static("x-bartizan-validation");

/// The rules of a gateway: what all of its workers share.
#[derive(Debug)]
pub(crate) struct Validation {
    config: Arc<Config>,
    /// Those that are checked, in the order of the configuration, and what became of what they were asked.
    models: Vec<(Model, Arc<counts::OfModel>)>,
    counts: Arc<Counts>,
}

impl Validation {
    /// `None` if no model is guarded.
    pub(crate) fn new(config: &Arc<Config>) -> Option<Arc<Self>> {
        let guarded = |model: &&Model| config.validation.guards(&model.guard);
        let own = |model: &Model| (model.clone(), Arc::default());
        let models: Vec<_> = config.models.iter().filter(guarded).map(own).collect();
        let counts = Arc::new(Counts::new(&config.validation.rules));
        (!models.is_empty()).then(|| Arc::new(Self { config: config.clone(), models, counts }))
    }

    /// The guards of one worker, which asks moderation endpoints over connections of its own.
    pub(crate) fn guards(&self, transport: &HttpTransport) -> Guards {
        let guard = |(model, own): &(Model, Arc<counts::OfModel>)| {
            let guard = Guard::new(&self.config, model, own, &self.counts, transport);
            (model.name.clone(), Arc::new(guard))
        };
        Guards(self.models.iter().map(guard).collect())
    }

    /// What there is to tell of every model that is checked.
    pub(crate) fn describe(&self) -> Value {
        self.models.iter().map(|(model, own)| own.describe(&model.name)).collect()
    }

    /// What there is to tell of every rule.
    pub(crate) fn describe_rules(&self) -> Value {
        self.counts.describe()
    }
}

/// By the model; those that are not checked are not there.
pub(crate) struct Guards(HashMap<String, Arc<Guard>>);

impl Guards {
    /// Checks what reaches `inner`, and what it answers.
    pub(crate) fn around(&self, inner: Ask) -> Ask {
        let guarded = |(model, guard): (&String, &Arc<Guard>)| (model.clone(), guard.around(&inner));
        let guarded: HashMap<_, _> = self.0.iter().map(guarded).collect();
        Ask::new(Guarded { models: Arc::new(guarded), others: inner })
    }

    /// Checks what reaches this model because another one has failed: not everything that may be sent there may be sent here.
    pub(crate) fn stand_in(&self, model: &str, inner: Ask) -> Ask {
        let Some(guard) = self.0.get(model).cloned() else { return inner };
        let layer = guard.requests.layer(guard.policy);
        erased(layer.layer(inner).map_err(move |error| {
            // Who asked it counts as another's, and decides what to do without it.
            if let Some(report) = Report::find(&*error) {
                guard.counts.refused(&guard.own, report, guard.policy.level());
            }
            error
        }))
    }
}

/// How one model is guarded.
#[derive(Debug)]
struct Guard {
    /// Requests and answers of a chat.
    chat: Validator<Request<Bytes>, Bodies>,
    /// Requests alone.
    requests: Validator<Request<Bytes>, Bodies>,
    policy: Policy,
    /// Whether answers must have the form that their request asks for.
    structured: bool,
    told: Told,
    own: Arc<counts::OfModel>,
    counts: Arc<Counts>,
}

impl Guard {
    fn new(
        config: &Config,
        model: &Model,
        own: &Arc<counts::OfModel>,
        counts: &Arc<Counts>,
        transport: &HttpTransport,
    ) -> Self {
        let rules = rules::OfModel::new(config, model, own, counts, transport);
        let policy = match (model.guard.action, config.validation.on_error) {
            (Action::Reject, None) => Policy::new(model.guard.level),
            (Action::Reject, Some(choice)) => Policy::new(model.guard.level).on_rule_error(choice),
            (Action::Report, _) => Policy::new(Level::Lenient).on_rule_error(OnRuleError::Open),
        };
        Self {
            chat: rules.of_chat(),
            requests: rules.of_requests(),
            policy,
            structured: model.guard.structured_output,
            told: Told::new(config, model, policy.level()),
            own: own.clone(),
            counts: counts.clone(),
        }
    }

    /// One for chats and one for all else.
    fn around(self: &Arc<Self>, inner: &Ask) -> [Ask; 2] {
        [&self.chat, &self.requests].map(|validator| {
            let billed = service_fn(billed(inner.clone()));
            let service = erased(validator.layer(self.policy).layer(billed));
            let guard = self.clone();
            Ask::new(service_fn(move |mut request: Request<Bytes>| {
                let (bill, service, guard) = (Bill::default(), service.clone(), guard.clone());
                request.extensions_mut().insert(bill.clone());
                let asked = guard.structured.then(|| request.body().clone());
                guard.own.checked(Side::Request);
                async move {
                    match service.oneshot(request).await {
                        Ok(response) => Ok(guard.passed(response, asked)),
                        Err(error) => guard.refused(error, asked.as_ref(), &bill),
                    }
                }
            }))
        })
    }

    /// Tells what was found, and goes on looking at the body.
    fn passed(
        self: Arc<Self>,
        mut response: Response<AnswerBody>,
        asked: Option<Bytes>,
    ) -> Response<AnswerBody> {
        response.headers_mut().remove(HEADER);
        if response.status().is_success() {
            self.own.checked(Side::Answer);
        }
        if let Some(report) = response.extensions().get::<Report>()
            && let Some(value) = self.told.header(report, asked.as_ref())
        {
            response.headers_mut().insert(HEADER, value);
        }
        response.map(|body| {
            let refuse = move |error: BoxError| match Report::find(&*error) {
                Some(report) => {
                    self.counts.refused(&self.own, report, self.policy.level());
                    self.told.error(report, asked.as_ref()).with_source(error).into()
                }
                None => error,
            };
            body.map_err(refuse).boxed_unsync()
        })
    }

    /// What a client is told in place of what was refused. An answer that was refused was paid for.
    fn refused(
        &self,
        error: BoxError,
        asked: Option<&Bytes>,
        bill: &Bill,
    ) -> Result<Response<AnswerBody>, BoxError> {
        let Some(report) = Report::find(&*error) else { return Err(error) };
        self.counts.refused(&self.own, report, self.policy.level());
        if report.part() == Part::Response {
            self.own.checked(Side::Answer);
        }
        let told = self.told.error(report, asked);
        let Some(paid) = bill.0.get() else { return Err(told.with_source(error).into()) };
        log(report);
        let mut response = told.to_response().map(|body| body.map_err(|never| match never {}).boxed_unsync());
        response.extensions_mut().insert(paid.clone());
        Ok(response)
    }
}

/// Not worth a line for each: they are counted. Pointers have names that a client has chosen, and are left out.
pub(crate) fn log(report: &Report) {
    let mut rules: Vec<_> = report.violations().iter().map(Violation::rule).collect();
    rules.dedup();
    tracing::debug!(part = ?report.part(), ?rules, "refused by rules");
}

/// What an answer that comes has cost, wherever it ends.
#[derive(Clone, Debug, Default)]
struct Bill(Arc<OnceLock<Paid>>);

/// In the extensions of a response that stands for an answer that was refused: what that has cost, if it tells.
#[derive(Clone, Debug)]
pub(crate) struct Paid(Option<UsageReport>);

impl Paid {
    /// `None` if the answer did not tell.
    pub(crate) fn tokens(&self) -> Option<u64> {
        Some(self.0.as_ref()?.get()?.total_tokens)
    }
}

/// Notes on the bill of a request what its answer costs. What was answered before, or for somebody else, costs nothing.
fn billed(inner: Ask) -> impl FnMut(Request<Bytes>) -> BoxFuture + Clone + Send + Sync {
    move |mut request| {
        let (bill, inner) = (request.extensions_mut().remove::<Bill>(), inner.clone());
        Box::pin(async move {
            let response = inner.oneshot(request).await?;
            if let Some(Bill(bill)) = bill
                && response.status().is_success()
                && !dedup::is_shared(&response)
            {
                _ = bill.set(Paid(response.extensions().get().cloned()));
            }
            Ok(response)
        })
    }
}

type BoxFuture = futures_util::future::BoxFuture<'static, Result<Response<AnswerBody>, BoxError>>;

/// Sends a request to the guard of the model that it names.
#[derive(Clone)]
struct Guarded {
    models: Arc<HashMap<String, [Ask; 2]>>,
    others: Ask,
}

impl Service<Request<Bytes>> for Guarded {
    type Response = Response<AnswerBody>;
    type Error = BoxError;
    type Future = Oneshot<Ask, Request<Bytes>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let facts = facts(&request);
        let ask = match (self.models.get(facts.model()), facts.operation()) {
            (Some([chat, _]), Operation::Chat) => chat,
            (Some([_, other]), _) => other,
            (None, _) => &self.others,
        };
        ask.clone().oneshot(request)
    }
}
