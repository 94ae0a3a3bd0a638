use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::{Bytes, BytesMut};
use http::{
    HeaderMap, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
    response::Parts,
};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{
    checked::Checked,
    message::{media_type, uncheckable},
    window::{Judge, Raw, Window},
};
use crate::{Answers, Part, Policy, Report, Rules, Validator, validator::Tally};

/// Responses with bodies. [`Validator::http`] begins with one that checks none.
///
/// Only responses whose status is a success are checked. Once there are rules for some bodies, a body that none of them
/// fits is refused, so that nobody gets past them by asking for another kind of answer: one with a content coding, one that is
/// longer than is read, an event stream where none was thought of.
pub struct Bodies(Arc<Settings>);

struct Settings {
    whole: Option<Whole>,
    window: Option<Guarded>,
    #[cfg(feature = "json")]
    events: Option<Guarded>,
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
    /// Texts are the strings in each `delta` of an event's JSON, and each `text` of a choice; those of different choices
    /// and members are apart. Data that is not JSON is a text of its own. The window counts bytes of text, and passes whole
    /// events.
    ///
    /// # Panics
    ///
    /// If layers were made from it before, or clones.
    #[cfg(feature = "json")]
    #[must_use]
    pub fn events(self, window: Window, rules: Rules<str>) -> Self {
        self.with(|settings| settings.events = Some(Guarded { window, rules: Arc::new(rules) }))
    }

    fn with(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        let settings = Arc::get_mut(&mut self.answers.0);
        change(settings.expect("rules are added before layers are made"));
        self
    }
}

/// How a body is checked.
enum Way<'a> {
    Pass,
    Refuse(&'static str),
    Read,
    Guard(&'a Guarded),
    #[cfg(feature = "json")]
    Events(&'a Guarded),
}

impl Settings {
    fn way<B: Body>(&self, response: &Response<B>) -> Way<'_> {
        let some = self.whole.is_some() || self.window.is_some();
        #[cfg(feature = "json")]
        let some = some || self.events.is_some();
        if !some || !response.status().is_success() || response.status() == StatusCode::NO_CONTENT {
            return Way::Pass;
        }
        if let Some(why) = uncheckable(response.headers()) {
            return Way::Refuse(why);
        }
        if response.status() == StatusCode::PARTIAL_CONTENT {
            return Way::Refuse("a part of a body cannot be checked");
        }
        if response.headers().get_all(CONTENT_TYPE).iter().count() > 1 {
            return Way::Refuse("a body of two content types cannot be checked");
        }
        if media_type(response.headers()).eq_ignore_ascii_case("text/event-stream") {
            #[cfg(feature = "json")]
            if let Some(events) = &self.events {
                return Way::Events(events);
            }
            return Way::Refuse("an event stream cannot be checked by these rules");
        }
        match (&self.whole, &self.window) {
            (Some(whole), _) if declared(response) > whole.max_bytes as u64 => Way::Refuse(TOO_LONG),
            (Some(_), _) => Way::Read,
            (None, Some(window)) => Way::Guard(window),
            (None, None) => Way::Refuse("a body that is no event stream cannot be checked by these rules"),
        }
    }

    fn refuse(&self, message: &'static str) -> BoxError {
        let report = Report::malformed(Part::Response, "body", message);
        self.tally.count(&report);
        report.into_error()
    }
}

const TOO_LONG: &str = "the body is longer than may be read to check it";

/// How many bytes there will be at least, as far as anybody said.
fn declared<B: Body>(response: &Response<B>) -> u64 {
    let length = response.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    response.body().size_hint().lower().max(length.unwrap_or(0))
}

impl<B> Answers<Response<B>> for Bodies
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response<Checked<B>>;
    type Checking = Checking<B>;

    fn check(self, mut response: Response<B>, policy: Option<Policy>, request: Report) -> Checking<B> {
        if !request.is_clean() {
            response.extensions_mut().insert(request);
        }
        let settings = &self.0;
        let Some(policy) = policy else { return Checking::passed(response.map(Checked::passed)) };
        match settings.way(&response) {
            Way::Pass => Checking::passed(response.map(Checked::passed)),
            Way::Refuse(message) => {
                Checking { state: State::Known { result: Some(Err(settings.refuse(message))) } }
            }
            Way::Guard(guarded) => {
                let judge = guarded.judge(policy, &settings.tally);
                let raw = Raw::new(guarded.window, judge);
                Checking::passed(response.map(|body| Checked::raw(body, raw, guarded.window.time())))
            }
            #[cfg(feature = "json")]
            Way::Events(guarded) => {
                let judge = guarded.judge(policy, &settings.tally);
                let events = super::events::Events::new(guarded.window, judge);
                Checking::passed(response.map(|body| Checked::events(body, events, guarded.window.time())))
            }
            Way::Read => {
                let (head, body) = response.into_parts();
                let (read, trailers) = (BytesMut::new(), None);
                let rest = Some((head, self.clone(), policy));
                Checking { state: State::Reading { body, read, trailers, rest } }
            }
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

pin_project! {
    /// Gives a response once its body is checked, or guarded.
    pub struct Checking<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<B> {
        Known { result: Option<Result<Response<Checked<B>>, BoxError>> },
        Reading {
            #[pin] body: B,
            read: BytesMut,
            trailers: Option<HeaderMap>,
            rest: Option<(Parts, Bodies, Policy)>,
        },
    }
}

impl<B> Checking<B> {
    fn passed(response: Response<Checked<B>>) -> Self {
        Self { state: State::Known { result: Some(Ok(response)) } }
    }
}

impl<B> Future for Checking<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Checked<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProjection::Known { result } => Poll::Ready(result.take().expect("polled after completion")),
            StateProjection::Reading { mut body, read, trailers, rest } => {
                while let Some(frame) = ready!(body.as_mut().poll_frame(cx)) {
                    match frame.map_err(Into::into)?.into_data() {
                        Ok(data) => {
                            let (_, bodies, _) = rest.as_ref().expect("polled after completion");
                            let most = bodies.0.whole.as_ref().map_or(0, |whole| whole.max_bytes);
                            if read.len() + data.len() > most {
                                return Poll::Ready(Err(bodies.0.refuse(TOO_LONG)));
                            }
                            read.extend_from_slice(&data);
                        }
                        Err(frame) => *trailers = frame.into_trailers().ok(),
                    }
                }
                let (head, bodies, policy) = rest.take().expect("polled after completion");
                Poll::Ready(bodies.judge(
                    Response::from_parts(head, read.split().freeze()),
                    policy,
                    trailers.take(),
                ))
            }
        }
    }
}

impl Bodies {
    fn judge<B>(
        &self,
        mut response: Response<Bytes>,
        policy: Policy,
        trailers: Option<HeaderMap>,
    ) -> Result<Response<Checked<B>>, BoxError> {
        let whole = self.0.whole.as_ref().expect("a body is read for them");
        let report = whole.rules.judge(&mut response, policy, Part::Response);
        self.0.tally.count(&report);
        if report.refuses() {
            return Err(report.into_error());
        }
        if !report.is_clean() {
            let request = response.extensions_mut().remove::<Report>();
            let report = request.map_or_else(|| report.clone(), |request| request.and(&report));
            response.extensions_mut().insert(report);
        }
        Ok(response.map(|data| Checked::whole(data, trailers)))
    }
}

impl<B> fmt::Debug for Checking<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Known { .. } => "known",
            State::Reading { .. } => "reading",
        };
        f.debug_struct("Checking").field("state", &state).finish()
    }
}
