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
use crate::{Policy, Report, answers::Expected};

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
    }
}

struct Rest {
    head: Parts,
    by: By,
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
        match self.project().state.project() {
            StateProjection::Known { result } => Poll::Ready(result.take().expect("polled after completion")),
            StateProjection::Reading { mut body, read, most, trailers, rest } => {
                while let Some(frame) = ready!(body.as_mut().poll_frame(cx)) {
                    match frame.map_err(Into::into)?.into_data() {
                        Ok(data) => {
                            if read.len() + data.len() > *most {
                                let Rest { by: (settings, ..), .. } =
                                    rest.take().expect("polled after completion");
                                return Poll::Ready(Err(settings.refuse(TOO_LONG)));
                            }
                            read.extend_from_slice(&data);
                        }
                        Err(frame) => *trailers = frame.into_trailers().ok(),
                    }
                }
                let Rest { head, by } = rest.take().expect("polled after completion");
                Poll::Ready(judged(Response::from_parts(head, read.split().freeze()), by, trailers.take()))
            }
        }
    }
}

fn judged<B>(
    mut response: Response<Bytes>,
    (settings, policy, expected): By,
    trailers: Option<HeaderMap>,
) -> Result<Response<Checked<B>>, BoxError> {
    let report = settings.judge(&mut response, policy, expected.as_ref());
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

impl<B> fmt::Debug for Checking<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Known { .. } => "known",
            State::Reading { .. } => "reading",
        };
        f.debug_struct("Checking").field("state", &state).finish()
    }
}
