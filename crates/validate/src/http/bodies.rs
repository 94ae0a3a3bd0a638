use std::{fmt, sync::Arc};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body::Body;

use super::{
    checked::Checked,
    checking::Checking,
    header,
    message::{declared, media_type, uncheckable},
    window::{Judge, Raw, Window},
};
use crate::{
    Answers, Asked, Found, Part, Policy, Report, Rules, Severity, Validator, answers::Expected,
    pending::Inquiring, rule::Findings, rules::ask, validator::Tally,
};

/// Responses with bodies. [`Validator::http`] begins with one that checks none.
///
/// Only responses whose status is a success are checked. Once there are rules for some bodies, a body that none of them
/// fits is refused, so that nobody gets past them by asking for another kind of answer: one with a content coding, one that is
/// longer than is read, an event stream where none was thought of.
pub struct Bodies(Arc<Settings>);

pub(super) struct Settings {
    whole: Option<Whole>,
    window: Option<Guarded>,
    #[cfg(feature = "json")]
    events: Option<Guarded>,
    /// Streams of which only the form is looked at.
    #[cfg(feature = "json")]
    unguarded: Guarded,
    /// Responses have the report in a header, too.
    pub(super) headers: bool,
    tally: Arc<Tally>,
}

struct Whole {
    max_bytes: usize,
    rules: Rules<Response<Bytes>>,
}

struct Guarded {
    window: Window,
    rules: Arc<Rules<str>>,
}

impl Guarded {
    fn judge(&self, policy: Policy, tally: &Arc<Tally>) -> Judge {
        Judge { rules: self.rules.clone(), policy, tally: tally.clone() }
    }
}

impl<B> Validator<Request<B>> {
    /// Checks requests by `rules`, which look at the head and, if it is there (`B: AsRef<[u8]>`), the body.
    ///
    /// A request that passes although something was found carries the [`Report`] among its extensions, and so does the
    /// response to it.
    ///
    /// ```
    /// use bartizan_core::BoxError;
    /// use bartizan_validate::{Level, Pii, Report, Rules, Validator, Window, text, well_formed};
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::{BodyExt, Full};
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # tokio_test::block_on(async {
    /// let validator = Validator::http(Rules::new().error("json", well_formed(64)).warn("pii", text(Pii::all())))
    ///     .window(Window::default(), Rules::new().error("secrets", Pii::new().secrets()));
    /// let echo = service_fn(|request: Request<Bytes>| async move {
    ///     Ok::<_, BoxError>(Response::new(Full::new(request.into_body())))
    /// });
    /// let service = validator.layer(Level::Moderate).layer(echo);
    /// let call = |body: &'static str| service.clone().oneshot(Request::new(Bytes::from_static(body.as_bytes())));
    ///
    /// let response = call(r#"{"to": "ann@example.org"}"#).await?;
    /// assert_eq!(response.extensions().get::<Report>().expect("a warning").violations()[0].rule(), "pii");
    /// assert_eq!(response.into_body().collect().await?.to_bytes(), r#"{"to": "ann@example.org"}"#);
    ///
    /// assert!(call("{").await.is_err(), "malformed");
    /// // The request passes with a warning. Of the answer nothing does.
    /// let leaking = call(r#"["AKIAIOSFODNN7EXAMPLE"]"#).await?;
    /// let error = leaking.into_body().collect().await.unwrap_err();
    /// assert_eq!(Report::find(&*error).expect("a refusal").violations()[0].rule(), "secrets");
    /// # Ok::<(), BoxError>(())
    /// # }).unwrap();
    /// ```
    pub fn http(rules: Rules<Request<B>>) -> Validator<Request<B>, Bodies> {
        let rules = if rules.tells() {
            rules
        } else {
            rules.on_report(|request, report| {
                request.extensions_mut().insert(report.clone());
            })
        };
        let Validator { shared, tally, .. } = Self::new(rules);
        let settings = Settings {
            whole: None,
            window: None,
            #[cfg(feature = "json")]
            events: None,
            #[cfg(feature = "json")]
            unguarded: Guarded { window: Window::new(1), rules: Arc::default() },
            headers: false,
            tally: tally.clone(),
        };
        Validator { shared, answers: Bodies(Arc::new(settings)), tally }
    }
}

impl<Req> Validator<Req, Bodies> {
    /// Reads bodies of at most `max_bytes` bytes, and then asks `rules`. A longer one is refused unread.
    ///
    /// What the report says of a response that passes is among the response's extensions, behind what was found in the
    /// request.
    ///
    /// # Panics
    ///
    /// If layers were made from it before, or clones.
    #[must_use]
    pub fn whole(self, max_bytes: usize, rules: Rules<Response<Bytes>>) -> Self {
        self.with(|settings| settings.whole = Some(Whole { max_bytes, rules }))
    }

    /// Guards bodies while they run, as the text they are. Where [`whole`](Self::whole) is set, it goes before.
    ///
    /// Event streams are refused: text that is split over events would not be seen. `events` (feature `json`) puts it
    /// together.
    ///
    /// # Panics
    ///
    /// If layers were made from it before, or clones.
    #[must_use]
    pub fn window(self, window: Window, rules: Rules<str>) -> Self {
        self.with(|settings| settings.window = Some(Guarded { window, rules: Arc::new(rules) }))
    }

    /// Guards event streams while they run: what events add to each text is put together and looked at.
    ///
    /// Texts are the strings of an event's JSON, but for what servers say of an event (`id`, `object`, `model`, `type`,
    /// `role`, `finish_reason` and the like, and `logprobs`, which repeat the text) outside of a `delta`; those of different
    /// choices and members are apart. Data that is not JSON is a text of its own. Names of members, comments and other
    /// fields of the stream are not looked at. The window counts bytes of text, and passes whole events.
    ///
    /// # Panics
    ///
    /// If layers were made from it before, or clones.
    #[cfg(feature = "json")]
    #[must_use]
    pub fn events(self, window: Window, rules: Rules<str>) -> Self {
        self.with(|settings| settings.events = Some(Guarded { window, rules: Arc::new(rules) }))
    }

    /// Has every response that something is to be told of say so in a header, beside the extensions: one that passes, and one
    /// that is made from a refusal. What others have said in a header of this name is taken out.
    ///
    /// ```text
    /// validation-report: "pii";at="/messages/0/content";is=warn, "terms";is=error, more;n=3
    /// ```
    ///
    /// A list of structured fields (RFC 9651): names of rules, with the JSON pointer and the severity (or `failed`, or
    /// `malformed`), and at last how many more there are. At most 1,024 bytes; bytes that a header cannot have, `"`, `\` and
    /// `%` are percent-encoded; a name is cut, and a pointer left out, after 256 bytes. It quotes nothing, but a pointer has
    /// names of members as the message has them. Of a stream it tells what was found in the request.
    ///
    /// # Panics
    ///
    /// If layers were made from it before, or clones.
    #[must_use]
    pub fn report_header(mut self) -> Self {
        Arc::get_mut(&mut self.shared).expect(BEFORE).headers = true;
        self.with(|settings| settings.headers = true)
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        let settings = Arc::get_mut(&mut self.answers.0);
        change(settings.expect(BEFORE));
        self
    }
}

#[cfg(feature = "json")]
impl<B: AsRef<[u8]>> Validator<Request<B>, Bodies> {
    /// Checks the text of an answer against the form that the request asks for, by a rule of this name and severity.
    ///
    /// A request whose `format` cannot be checked is refused with the pointer to what is wrong with it, and so is any that
    /// has a body which is no JSON object: put this where JSON is taken. Choices that call tools or refuse to answer have no
    /// text to check. Pointers of what is found in an answer begin at the answer and go on within its text.
    ///
    /// An answer is read as a whole, as if by [`whole`](Self::whole). Of an event stream, each text is put together and
    /// checked before the event passes that says it has come to its end; if none does, before `[DONE]`, or else at the
    /// stream's end. What came before has passed by then: a client that gets no such event but an error has no answer.
    ///
    /// ```
    /// use bartizan_core::BoxError;
    /// use bartizan_validate::{Level, Report, ResponseFormat, Rules, Severity, Validator};
    /// use bytes::Bytes;
    /// use http::{Request, Response};
    /// use http_body_util::Full;
    /// use tower::{Layer, ServiceExt, service_fn};
    ///
    /// # tokio_test::block_on(async {
    /// let validator = Validator::http(Rules::new()).structured("form", Severity::Error, ResponseFormat::chat());
    /// let model = service_fn(|_: Request<Bytes>| async {
    ///     let answer = r#"{"choices":[{"message":{"content":"{\"age\":\"seven\"}"}}]}"#;
    ///     Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(answer)))
    /// });
    /// let service = validator.layer(Level::Moderate).layer(model);
    /// let ask = |schema: &str| {
    ///     let format = format!(r#"{{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}"#);
    ///     service.clone().oneshot(Request::new(format!(r#"{{"response_format":{format}}}"#).into()))
    /// };
    ///
    /// assert!(ask(r#"{"properties":{"age":{"type":"string"}}}"#).await.is_ok());
    /// let error = ask(r#"{"properties":{"age":{"type":"number"}}}"#).await.unwrap_err();
    /// let report = Report::find(&*error).expect("a refusal");
    /// assert_eq!(report.violations()[0].pointer(), "/choices/0/message/content/age");
    ///
    /// let error = ask(r#"{"$ref":"https://example.org/schema.json"}"#).await.unwrap_err();
    /// let report = Report::find(&*error).expect("the request is refused, and nothing is fetched");
    /// assert_eq!(report.violations()[0].pointer(), "/response_format/json_schema/schema/$ref");
    /// # Ok::<(), BoxError>(())
    /// # }).unwrap();
    /// ```
    ///
    /// # Panics
    ///
    /// If the name is empty, or if layers were made from it before, or clones.
    #[must_use]
    pub fn structured(mut self, name: &str, severity: Severity, format: crate::ResponseFormat) -> Self {
        let formats = crate::json::Formats::new(name, severity, format);
        let expects = move |request: &Request<B>, findings: &mut Findings| match formats.expected(request) {
            Ok(expected) => expected,
            Err(flaw) => {
                Found::new(findings, formats.name(), severity).at(&flaw.pointer).malformed(flaw.message);
                None
            }
        };
        let shared = Arc::get_mut(&mut self.shared).expect(BEFORE);
        shared.expects = Some(Box::new(expects));
        self
    }
}

const BEFORE: &str = "rules are added before layers are made";

/// How a body is checked.
enum Way<'a> {
    Pass,
    Refuse(&'static str),
    /// Read it, if it is not longer than this.
    Read(usize),
    Guard(&'a Guarded),
    #[cfg(feature = "json")]
    Events(&'a Guarded),
}

impl Settings {
    fn way<B: Body>(&self, response: &Response<B>, expected: Option<&Expected>) -> Way<'_> {
        let some = self.whole.is_some() || self.window.is_some();
        #[cfg(feature = "json")]
        let other = self.events.is_some();
        #[cfg(not(feature = "json"))]
        let other = false;
        let status = response.status();
        if !(some || other || expected.is_some()) || !status.is_success() || status == StatusCode::NO_CONTENT
        {
            return Way::Pass;
        }
        if let Some(why) = uncheckable(response.headers()) {
            return Way::Refuse(why);
        }
        if status == StatusCode::PARTIAL_CONTENT {
            return Way::Refuse("a part of a body cannot be checked");
        }
        if response.headers().get_all(CONTENT_TYPE).iter().count() > 1 {
            return Way::Refuse("a body of two content types cannot be checked");
        }
        if media_type(response.headers()).eq_ignore_ascii_case("text/event-stream") {
            #[cfg(feature = "json")]
            match &self.events {
                Some(events) => return Way::Events(events),
                None if !some => return Way::Events(&self.unguarded),
                None => {}
            }
            return Way::Refuse("an event stream cannot be checked by these rules");
        }
        if other && !some {
            return Way::Refuse("a body that is no event stream cannot be checked by these rules");
        }
        let most = match (&self.whole, &self.window, expected) {
            (Some(whole), _, _) => whole.max_bytes,
            (None, _, Some(expected)) => expected.most_bytes(),
            (None, Some(window), None) => return Way::Guard(window),
            (None, None, None) => return Way::Pass,
        };
        if declared(response.headers(), response.body()) > most as u64 {
            Way::Refuse(TOO_LONG)
        } else {
            Way::Read(most)
        }
    }

    pub(super) fn refuse(&self, message: &'static str) -> BoxError {
        let report = Report::malformed(Part::Response, "body", message);
        self.tally.count(&report);
        report.into_error(self.headers)
    }

    /// Asks all rules about a body that was read.
    pub(super) fn look(
        &self,
        response: &Response<Bytes>,
        policy: Policy,
        expected: Option<&Expected>,
    ) -> Inquiring {
        let mut findings = self
            .whole
            .as_ref()
            .map_or_else(|| Rules::<str>::new().findings(policy), |whole| whole.rules.findings(policy));
        match (&self.whole, &self.window) {
            (Some(whole), _) => whole.rules.run(response, &mut findings),
            // It was read to look at its form: then it is a window that is long enough.
            (None, Some(window)) => match str::from_utf8(response.body()) {
                Ok(text) => window.rules.run(text, &mut findings),
                Err(_) => {
                    Found::new(&mut findings, &"body".into(), Severity::Safety).malformed(NOT_UTF8);
                }
            },
            (None, None) => {}
        }
        if let Some(expected) = expected {
            ask(&mut findings, expected.name(), expected.severity(), |found| {
                expected.check(response.body(), found);
            });
        }
        match (&self.whole, &self.window) {
            (Some(whole), _) => whole.rules.inquire_all(response, findings),
            (None, Some(window)) => {
                let text = str::from_utf8(response.body()).unwrap_or_default();
                window.rules.inquire_all(text, findings)
            }
            (None, None) => Inquiring::new(findings, Vec::new()),
        }
    }

    /// What is known of it once all have said what they say.
    pub(super) fn conclude(&self, response: &mut Response<Bytes>, findings: Findings) -> Report {
        let report = findings.into_report(Part::Response);
        if let Some(whole) = &self.whole {
            whole.rules.tell(response, &report);
        }
        self.tally.count(&report);
        report
    }
}

pub(super) const TOO_LONG: &str = "the body is longer than may be read to check it";
pub(super) const NOT_UTF8: &str = "text that is not UTF-8 cannot be checked";

impl<B> Answers<Response<B>> for Bodies
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response<Checked<B>>;
    type Checking = Checking<B>;

    fn check(self, mut response: Response<B>, policy: Option<Policy>, request: Asked) -> Checking<B> {
        let Asked { report, expected } = request;
        let settings = &self.0;
        let Some(policy) = policy else { return Checking::known(Ok(response.map(Checked::passed))) };
        if settings.headers {
            header::set(response.headers_mut(), &report);
        }
        if !report.is_clean() {
            response.extensions_mut().insert(report);
        }
        match settings.way(&response, expected.as_ref()) {
            Way::Pass => Checking::known(Ok(response.map(Checked::passed))),
            Way::Refuse(message) => Checking::known(Err(settings.refuse(message))),
            Way::Guard(guarded) => {
                let raw = Raw::new(guarded.window, guarded.judge(policy, &settings.tally));
                Checking::known(Ok(response.map(|body| Checked::raw(body, raw, guarded.window.time()))))
            }
            #[cfg(feature = "json")]
            Way::Events(guarded) => {
                let judge = guarded.judge(policy, &settings.tally);
                let events = super::events::Events::new(guarded.window, judge, expected);
                Checking::known(Ok(response.map(|body| Checked::events(body, events, guarded.window.time()))))
            }
            Way::Read(most) => Checking::reading(response, most, (self.0.clone(), policy, expected)),
        }
    }
}

impl Clone for Bodies {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl fmt::Debug for Bodies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bodies")
            .field("whole", &self.0.whole.is_some())
            .field("window", &self.0.window.as_ref().map(|guarded| guarded.window))
            .finish_non_exhaustive()
    }
}
