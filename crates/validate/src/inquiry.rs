use std::{fmt, future::poll_fn, sync::Arc, time::Duration};

use tokio::time::timeout;
use tower_service::Service;

use crate::{
    Rule, Severity,
    pending::{Answering, Pending},
    rule::Findings,
    rules::{Check, ask},
};

/// A rule that is a service: a moderation endpoint, a model that judges, a database.
///
/// A question is made of the subject, the service is asked it, and an ordinary rule looks at what it answers. A service
/// that does not answer in time, fails or panics is a rule that failed: [`OnRuleError`](crate::OnRuleError) says what
/// becomes of the call.
///
/// It is asked after all other rules, and only if those do not refuse: what is refused anyway costs nothing more, and is
/// told to nobody else. All services are asked side by side, each on a clone of its own, which is made ready first.
///
/// ```
/// use std::time::Duration;
/// use bartizan_core::BoxError;
/// use bartizan_validate::{Inquiry, Level, Report, Rules, Severity, Validator, must};
/// use tower::{Layer, ServiceExt, service_fn};
///
/// struct Verdict { flagged: bool }
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// let moderation = service_fn(|text: String| async move {
///     Ok::<_, BoxError>(Verdict { flagged: text.contains("nasty") })
/// });
/// let inquiry = Inquiry::new(
///     |text: &String| Some(text.clone()),
///     moderation,
///     must("nothing that is flagged", |verdict: &Verdict| !verdict.flagged),
/// )
/// .within(Duration::from_secs(2));
/// let validator = Validator::new(Rules::new().inquire("moderation", Severity::Safety, inquiry));
/// let echo = service_fn(|text: String| async move { Ok::<_, BoxError>(text) });
/// let service = validator.layer(Level::Lenient).layer(echo);
///
/// assert_eq!(service.clone().oneshot("nice".to_owned()).await?, "nice");
/// let error = service.oneshot("nasty".to_owned()).await.unwrap_err();
/// assert_eq!(Report::find(&*error).expect("a refusal").violations()[0].rule(), "moderation");
/// # Ok::<(), BoxError>(())
/// # }).unwrap();
/// ```
pub struct Inquiry<T: ?Sized> {
    ask: Arc<Ask<T>>,
    within: Duration,
}

/// Asks about a subject, if there is something to ask.
type Ask<T> = dyn Fn(&T, About) -> Option<Answering> + Send + Sync;

/// What an answer is judged by.
struct About {
    findings: Findings,
    name: Arc<str>,
    severity: Severity,
    within: Duration,
}

impl<T: ?Sized> Inquiry<T> {
    /// `question` says what `service` is asked about a subject, or that there is nothing to ask; `rule` looks at the
    /// answer.
    pub fn new<Q, S>(
        question: impl Fn(&T) -> Option<Q> + Send + Sync + 'static,
        service: S,
        rule: impl Rule<S::Response> + Send + Sync + 'static,
    ) -> Self
    where
        S: Service<Q, Future: Send> + Clone + Send + Sync + 'static,
        Q: Send + 'static,
    {
        let rule = Arc::new(rule);
        let ask = move |subject: &T, about: About| -> Option<Answering> {
            let question = question(subject)?;
            Some(Box::pin(answer(service.clone(), question, rule.clone(), about)))
        };
        Self { ask: Arc::new(ask), within: Duration::from_secs(5) }
    }

    /// How long the service has to become ready and to answer. 5 s by default. Needs a tokio runtime with a timer.
    #[must_use]
    pub const fn within(mut self, time: Duration) -> Self {
        self.within = time;
        self
    }
}

async fn answer<Q, S, R>(mut service: S, question: Q, rule: Arc<R>, about: About) -> Findings
where
    S: Service<Q>,
    R: Rule<S::Response>,
{
    let About { mut findings, name, severity, within } = about;
    let answering = async {
        poll_fn(|cx| service.poll_ready(cx)).await?;
        service.call(question).await
    };
    match timeout(within, answering).await {
        Ok(Ok(answer)) => ask(&mut findings, &name, severity, |found| rule.check(&answer, found)),
        Ok(Err(_)) | Err(_) => findings.failed(&name),
    }
    findings
}

impl<T: ?Sized> Clone for Inquiry<T> {
    fn clone(&self) -> Self {
        Self { ask: self.ask.clone(), within: self.within }
    }
}

impl<T: ?Sized> fmt::Debug for Inquiry<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiry").field("within", &self.within).finish_non_exhaustive()
    }
}

/// An inquiry with its name.
pub(crate) struct Inquirer<T: ?Sized> {
    pub(crate) name: Arc<str>,
    pub(crate) severity: Severity,
    pub(crate) inquiry: Inquiry<T>,
}

impl<T: ?Sized> Check<T> for Inquirer<T> {
    fn run(&self, _: &T, _: &mut Findings) {}

    fn waits(&self) -> bool {
        true
    }

    fn inquire(&self, subject: &T, findings: &mut Findings, pending: &mut Vec<Pending>) {
        let about = About {
            findings: findings.alike(),
            name: self.name.clone(),
            severity: self.severity,
            within: self.inquiry.within,
        };
        let mut asked = None;
        // To find the question is the user's code, too.
        ask(findings, &self.name, self.severity, |_| asked = (self.inquiry.ask)(subject, about));
        pending.extend(asked.map(|answering| Pending::new(self.name.clone(), answering)));
    }
}
