use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bartizan_core::BoxError;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, response::Parts};
use http_body::Body;
use pin_project_lite::pin_project;

use super::{
    bodies::{Settings, TOO_LONG},
    checked::Checked,
    header,
};
use crate::{Policy, Report, answers::Expected, pending::Inquiring, rule::Findings};

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
        Reading { #[pin] body: B, read: BytesMut, most: usize, trailers: Option<HeaderMap>, rest: Option<Rest> },
        Asking { inquiring: Inquiring, asked: Option<Asked> },
    }
}

struct Rest {
    head: Parts,
    by: By,
}

/// What some services are asked about.
struct Asked {
    response: Response<Bytes>,
    settings: Arc<Settings>,
    trailers: Option<HeaderMap>,
}

/// By what a body is judged.
type By = (Arc<Settings>, Policy, Option<Expected>);

impl<B> Checking<B> {
    pub(super) const fn known(result: Result<Response<Checked<B>>, BoxError>) -> Self {
        Self { state: State::Known { result: Some(result) } }
    }

    pub(super) fn reading(response: Response<B>, most: usize, by: By) -> Self {
        let (head, body) = response.into_parts();
        let rest = Some(Rest { head, by });
        Self { state: State::Reading { body, read: BytesMut::new(), most, trailers: None, rest } }
    }
}

impl<B> Future for Checking<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Checked<B>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let (inquiring, asked) = match state.as_mut().project() {
                StateProjection::Known { result } => {
                    return Poll::Ready(result.take().expect("polled after completion"));
                }
                StateProjection::Reading { mut body, read, most, trailers, rest } => {
                    while let Some(frame) = ready!(body.as_mut().poll_frame(cx)) {
                        match frame.map_err(Into::into)?.into_data() {
                            Ok(data) => {
                                if read.len() + data.len() > *most {
                                    let (settings, ..) = rest.take().expect("polled after completion").by;
                                    return Poll::Ready(Err(settings.refuse(TOO_LONG)));
                                }
                                read.extend_from_slice(&data);
                            }
                            Err(frame) => *trailers = frame.into_trailers().ok(),
                        }
                    }
                    let Rest { head, by } = rest.take().expect("polled after completion");
                    let (settings, policy, expected) = by;
                    let response = Response::from_parts(head, read.split().freeze());
                    let inquiring = settings.look(&response, policy, expected.as_ref());
                    (inquiring, Asked { response, settings, trailers: trailers.take() })
                }
                StateProjection::Asking { inquiring, asked } => {
                    ready!(inquiring.poll(cx));
                    let findings = inquiring.take();
                    return Poll::Ready(asked.take().expect("polled after completion").conclude(findings));
                }
            };
            state.set(State::Asking { inquiring, asked: Some(asked) });
        }
    }
}

impl Asked {
    fn conclude<B>(self, findings: Findings) -> Result<Response<Checked<B>>, BoxError> {
        let Self { mut response, settings, trailers } = self;
        let report = settings.conclude(&mut response, findings);
        if report.refuses() {
            return Err(report.into_error(settings.headers));
        }
        if !report.is_clean() {
            let request = response.extensions_mut().remove::<Report>();
            let report = request.map_or_else(|| report.clone(), |request| request.and(&report));
            if settings.headers {
                header::set(response.headers_mut(), &report);
            }
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
            State::Asking { .. } => "asking",
        };
        f.debug_struct("Checking").field("state", &state).finish()
    }
}
