use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

#[cfg(feature = "json")]
use super::events::Events;
use super::window::{AskedOf, Hold, Judge, Raw};
use crate::Report;

pin_project! {
    /// The body of a response that was checked, or is checked while it runs.
    ///
    /// One that is checked while it runs fails with the refusal where a rule refuses: see [`Report::find`]. The body below is
    /// dropped then, so that nobody goes on writing it. Its time limit needs a tokio runtime with a timer.
    pub struct Checked<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<B> {
        Passed { #[pin] body: B },
        Whole { data: Bytes, trailers: Option<HeaderMap> },
        Raw { #[pin] guarded: Guarded<B, Raw> },
        Events { #[pin] guarded: Guarded<B, Events> },
    }
}

/// There are no guarded events without the feature.
#[cfg(not(feature = "json"))]
enum Events {}

#[cfg(not(feature = "json"))]
impl Hold for Events {
    fn push(&mut self, _: Bytes) {
        match *self {}
    }

    fn next(&mut self, _: bool, _: bool, _: &mut Vec<AskedOf>) -> Result<Option<Bytes>, Report> {
        match *self {}
    }

    fn by(&self) -> &Judge {
        match *self {}
    }

    fn held(&self) -> usize {
        match *self {}
    }
}

impl<B> Checked<B> {
    pub(super) const fn passed(body: B) -> Self {
        Self { state: State::Passed { body } }
    }

    pub(super) const fn whole(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { state: State::Whole { data, trailers } }
    }

    pub(super) const fn raw(body: B, raw: Raw, within: Duration) -> Self {
        Self { state: State::Raw { guarded: Guarded::new(body, raw, within) } }
    }

    #[cfg(feature = "json")]
    pub(super) const fn events(body: B, events: Events, within: Duration) -> Self {
        Self { state: State::Events { guarded: Guarded::new(body, events, within) } }
    }
}

impl<B> Body for Checked<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.project().state.project() {
            StateProjection::Passed { body } => body.poll_frame(cx).map_err(Into::into),
            StateProjection::Whole { data, trailers } => {
                let frame = if data.is_empty() {
                    trailers.take().map(Frame::trailers)
                } else {
                    Some(Frame::data(mem::take(data)))
                };
                Poll::Ready(frame.map(Ok))
            }
            StateProjection::Raw { guarded } => guarded.poll_frame(cx),
            StateProjection::Events { guarded } => guarded.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Passed { body } => body.is_end_stream(),
            State::Whole { data, trailers } => data.is_empty() && trailers.is_none(),
            State::Raw { guarded } => guarded.is_end_stream(),
            State::Events { guarded } => guarded.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Passed { body } => body.size_hint(),
            State::Whole { data, .. } => SizeHint::with_exact(data.len() as u64),
            State::Raw { guarded } => guarded.size_hint(),
            State::Events { guarded } => guarded.size_hint(),
        }
    }
}

impl<B> fmt::Debug for Checked<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passed { .. } => "passed",
            State::Whole { .. } => "whole",
            State::Raw { .. } => "guarded",
            State::Events { .. } => "guarded events",
        };
        f.debug_struct("Checked").field("state", &state).finish()
    }
}

pin_project! {
    /// A body that passes window by window.
    struct Guarded<B, H> {
        // Gone when it has ended, or is not wanted any more.
        #[pin]
        body: Option<B>,
        hold: H,
        // About what passes next, services are asked.
        asked: Vec<AskedOf>,
        next: Option<Bytes>,
        // It was refused: nothing more passes.
        refused: bool,
        // What comes after all that is held.
        end: Option<End>,
        // When what is held passes, though it is no full window.
        #[pin]
        alarm: Option<Sleep>,
        within: Duration,
    }
}

/// Waits for what is said of all of these.
///
/// # Errors
///
/// The report that refuses.
fn poll_all(asked: &mut Vec<AskedOf>, by: &Judge, cx: &mut Context<'_>) -> Poll<Result<(), Report>> {
    let mut all = true;
    for one in asked.iter_mut() {
        all &= one.inquiring.poll(cx).is_ready();
    }
    if !all {
        return Poll::Pending;
    }
    Poll::Ready(
        asked.drain(..).try_for_each(|mut one| by.conclude(one.inquiring.into_findings(), &mut one.text)),
    )
}

enum End {
    Trailers(HeaderMap),
    Failed(BoxError),
}

impl<B, H> Guarded<B, H> {
    const fn new(body: B, hold: H, within: Duration) -> Self {
        Self {
            body: Some(body),
            hold,
            asked: Vec::new(),
            next: None,
            refused: false,
            end: None,
            alarm: None,
            within,
        }
    }
}

impl<B, H> Guarded<B, H>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    H: Hold,
{
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut this = self.project();
        if *this.refused {
            return Poll::Ready(None);
        }
        let mut all = false;
        loop {
            let ended = this.body.is_none();
            let held = if this.next.is_some() {
                // Nothing more is read meanwhile.
                let answered = ready!(poll_all(this.asked, this.hold.by(), cx));
                answered.map(|()| this.next.take())
            } else {
                this.hold.next(all, ended, this.asked)
            };
            match held {
                Ok(Some(data)) if !this.asked.is_empty() => {
                    *this.next = Some(data);
                    this.alarm.set(None);
                    continue;
                }
                Ok(Some(data)) => {
                    this.alarm.set(None);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(None) => {}
                Err(report) => {
                    this.asked.clear();
                    *this.next = None;
                    *this.refused = true;
                    this.body.set(None);
                    this.alarm.set(None);
                    *this.end = None;
                    return Poll::Ready(Some(Err(report.into_error(false))));
                }
            }
            let Some(body) = this.body.as_mut().as_pin_mut() else {
                return Poll::Ready(match this.end.take() {
                    Some(End::Trailers(trailers)) => Some(Ok(Frame::trailers(trailers))),
                    Some(End::Failed(error)) => Some(Err(error)),
                    None => None,
                });
            };
            match body.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.hold.push(data),
                    Err(frame) => {
                        *this.end = frame.into_trailers().ok().map(End::Trailers);
                        this.body.set(None);
                    }
                },
                Poll::Ready(Some(Err(error))) => {
                    this.hold.cut();
                    *this.end = Some(End::Failed(error.into()));
                    this.body.set(None);
                }
                Poll::Ready(None) => this.body.set(None),
                Poll::Pending if this.hold.held() == 0 || all => return Poll::Pending,
                Poll::Pending => {
                    if this.alarm.is_none() {
                        this.alarm.set(Some(sleep(*this.within)));
                    }
                    let alarm = this.alarm.as_mut().as_pin_mut().expect("it was just set");
                    if alarm.poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    // Once: if even then nothing can pass (half a character), only the body can bring more.
                    all = true;
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let nothing_left =
            self.next.is_none() && self.hold.held() == 0 && self.end.is_none() && self.hold.is_settled();
        self.refused || nothing_left && self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    /// What passes is what came, byte for byte.
    fn size_hint(&self) -> SizeHint {
        let held = self.hold.held() + self.next.as_ref().map_or(0, Bytes::len);
        let held = if self.refused { 0 } else { held as u64 };
        let rest = self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), http_body::Body::size_hint);
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(held));
        }
        hint.set_lower(rest.lower().saturating_add(held));
        hint
    }
}
