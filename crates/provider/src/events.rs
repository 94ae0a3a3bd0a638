use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use bartizan_core::{BoxError, sse::Aligner};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use pin_project_lite::pin_project;

use crate::{Class, Error, limits::Watch};

/// The longest event passed on, in bytes: a bound on what is held back.
const MAX_EVENT: usize = 1024 * 1024;

/// How much of what arrived together leaves together, in bytes.
const MAX_RUN: usize = 16 * 1024;

pin_project! {
    /// A stream of server-sent events on its way through: whole events, all that are there at once, and an error
    /// where the upstream would just have stopped.
    pub(crate) struct Events<B> {
        #[pin]
        inner: B,
        aligner: Aligner,
        watch: Watch,
        // The stream said `[DONE]`, so it may end.
        done: bool,
        state: State,
    }
}

#[derive(Debug)]
enum State {
    Open,
    /// To be told once what came before it is out.
    Failed(Option<Error>),
    Ended,
}

impl<B> Events<B> {
    pub(crate) fn new(inner: B, watch: Watch) -> Self {
        Self { inner, aligner: Aligner::new(MAX_EVENT), watch, done: false, state: State::Open }
    }
}

impl<B> Body for Events<B>
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut this = self.project();
        let mut run = Run::default();
        while matches!(this.state, State::Open) && run.len() < MAX_RUN {
            match this.inner.as_mut().poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.watch.frame();
                    // Trailers of an event stream say nothing that a client of it could see.
                    let Ok(chunk) = frame.into_data() else { continue };
                    match this.aligner.push(chunk) {
                        Ok(events) => {
                            if let Err(error) = pass_on(events, &mut run, this.done) {
                                *this.state = end(*this.done, Some(error));
                            }
                        }
                        Err(too_long) => {
                            let error = Error::new(
                                Class::Malformed,
                                format!("the upstream's stream is broken: {too_long}"),
                            );
                            *this.state = State::Failed(Some(error));
                        }
                    }
                }
                Poll::Ready(None) => {
                    let last = pass_on(this.aligner.finish(), &mut run, this.done);
                    *this.state = end(*this.done, last.err());
                }
                Poll::Ready(Some(Err(error))) => *this.state = end(*this.done, Some(of_body(error.into()))),
                Poll::Pending if !run.is_empty() => break,
                Poll::Pending => match this.watch.poll_over(cx) {
                    Poll::Ready(error) => *this.state = end(*this.done, Some(error)),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        if let Some(bytes) = run.take() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        match this.state {
            State::Failed(error) => {
                let error = error.take();
                *this.state = State::Ended;
                Poll::Ready(error.map(Err))
            }
            State::Open | State::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

/// Puts whole events into the run, up to the first thing that no client could read.
fn pass_on(events: Bytes, run: &mut Run, done: &mut bool) -> Result<(), Error> {
    if events.is_empty() {
        return Ok(());
    }
    if *done {
        run.push(events);
        return Ok(());
    }
    if !looks_like_events(&events) {
        return Err(Error::new(Class::Malformed, "the upstream's stream is not made of server-sent events"));
    }
    let Err(garbage) = str::from_utf8(&events) else {
        *done = ends_with_done(&events);
        run.push(events);
        return Ok(());
    };
    let good = Aligner::new(usize::MAX).push(events.slice(..garbage.valid_up_to())).unwrap_or_default();
    *done = ends_with_done(&good);
    run.push(good);
    Err(Error::new(Class::Malformed, "the upstream's stream has an event in it that is not UTF-8")
        .with_source(garbage))
}

/// After `[DONE]` nothing that goes wrong matters to the client any more.
fn end(done: bool, error: Option<Error>) -> State {
    if done {
        return State::Ended;
    }
    State::Failed(Some(error.unwrap_or_else(|| {
        Error::new(
            Class::Upstream,
            "the upstream's stream ended without `data: [DONE]`: the answer is incomplete",
        )
    })))
}

/// The transport's own error if it is one of ours.
fn of_body(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::new(Class::Upstream, "the upstream's stream was cut off").with_source(error),
    }
}

/// Whether a run of events ends with the event by which OpenAI's streams say that they are complete.
fn ends_with_done(events: &[u8]) -> bool {
    let Some(line) = events.trim_ascii_end().strip_suffix(b"[DONE]") else { return false };
    let Some(before) = line.trim_ascii_end().strip_suffix(b"data:") else { return false };
    matches!(before.last(), None | Some(b'\n' | b'\r'))
}

/// Whether `events` begin as an event can begin. An HTML page, or anything else that is no event stream, does not.
fn looks_like_events(events: &[u8]) -> bool {
    const BEGINNINGS: [&[u8]; 7] = [b"data", b"event", b"id", b"retry", b":", b"\n", b"\r"];
    let events = events.strip_prefix(b"\xef\xbb\xbf").unwrap_or(events);
    BEGINNINGS.iter().any(|beginning| events.starts_with(beginning))
}

/// What goes out as one frame. The first piece is copied only if a second one joins it.
#[derive(Default)]
struct Run {
    first: Bytes,
    joined: BytesMut,
}

impl Run {
    fn push(&mut self, bytes: Bytes) {
        if self.is_empty() {
            self.first = bytes;
            return;
        }
        if self.joined.is_empty() {
            self.joined.reserve(self.first.len() + bytes.len().max(MAX_RUN / 4));
            self.joined.extend_from_slice(&self.first);
        }
        self.joined.extend_from_slice(&bytes);
    }

    fn len(&self) -> usize {
        self.first.len().max(self.joined.len())
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn take(self) -> Option<Bytes> {
        let bytes = if self.joined.is_empty() { self.first } else { self.joined.freeze() };
        (!bytes.is_empty()).then_some(bytes)
    }
}

impl<B: fmt::Debug> fmt::Debug for Events<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("inner", &self.inner).field("done", &self.done).finish_non_exhaustive()
    }
}
