use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::{
    BoxError,
    sse::{Aligner, Decoder},
};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use memchr::memmem;
use pin_project_lite::pin_project;

use crate::{Class, Error, UsageReport, error::may_tell_error, limits::Watch, service::Upstream};

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
        said: Said,
        usage: UsageReport,
        state: State,
        upstream: Arc<Upstream>,
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
    /// What the events tell of usage goes to `usage`.
    pub(crate) fn new(inner: B, watch: Watch, usage: UsageReport, upstream: Arc<Upstream>) -> Self {
        let (aligner, said) = (Aligner::new(MAX_EVENT), Said::default());
        Self { inner, aligner, watch, said, usage, state: State::Open, upstream }
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
                            let said =
                                this.said.pass_on(events, this.usage, this.upstream.secret(), &mut run);
                            if let Err(error) = said {
                                *this.state = end(this.said.done, Some(error));
                            }
                        }
                        Err(too_long) => {
                            let message = format!("the upstream's stream is broken: {too_long}");
                            *this.state = end(this.said.done, Some(Error::new(Class::Malformed, message)));
                        }
                    }
                }
                Poll::Ready(None) => {
                    let mut last = this.aligner.finish();
                    if last.is_empty() {
                        last = completed(this.aligner.held(), this.upstream.secret());
                    }
                    let last = this.said.pass_on(last, this.usage, this.upstream.secret(), &mut run);
                    *this.state = end(this.said.done, last.err());
                }
                Poll::Ready(Some(Err(error))) => {
                    *this.state = end(this.said.done, Some(of_body(error.into())));
                }
                Poll::Pending if !run.is_empty() => break,
                Poll::Pending => match this.watch.poll_over(cx) {
                    Poll::Ready(error) => *this.state = end(this.said.done, Some(error)),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
        if matches!(this.state, State::Open)
            && let Some(error) = this.watch.total_over()
        {
            // It never had to be waited for, so no timer had a chance to ring.
            *this.state = end(this.said.done, Some(error));
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

/// What the stream has said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    anything: bool,
    /// `[DONE]`, so it may end.
    done: bool,
}

impl Said {
    /// Puts whole events into the run, up to the first thing that no client could read, or that says that it has failed.
    fn pass_on(
        &mut self,
        mut events: Bytes,
        usage: &UsageReport,
        secret: Option<&str>,
        run: &mut Run,
    ) -> Result<(), Error> {
        if events.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        if !self.done {
            if !self.anything && !looks_like_events(&events) {
                let message = "the upstream's stream is not made of server-sent events";
                return Err(Error::new(Class::Malformed, message));
            }
            if let Err(garbage) = str::from_utf8(&events) {
                // What was whole before it.
                events.truncate(garbage.valid_up_to());
                events = Aligner::new(usize::MAX).push(events).unwrap_or_default();
                let message = "the upstream's stream has an event in it that is not UTF-8";
                result = Err(Error::new(Class::Malformed, message).with_source(garbage));
            }
            match Last::find(&events, secret) {
                Some(Last::Done) => self.done = true,
                Some(Last::Failed { from, error }) => {
                    events.truncate(from);
                    result = Err(error);
                }
                None => {}
            }
            usage.hear(&events);
        }
        self.anything = true;
        run.push(events);
        result
    }
}

/// An event that lacks nothing but its empty line, if it is one that ends a stream: some upstreams leave that out.
fn completed(held: &[u8], secret: Option<&str>) -> Bytes {
    let mut decoder = Decoder::new(usize::MAX);
    decoder.push([held, b"\n\n"].concat().into());
    let event = decoder.next_event().ok().flatten().map(|event| event.raw().clone());
    event.filter(|event| Last::find(event, secret).is_some()).unwrap_or_default()
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

/// An event after which a client expects no other.
enum Last {
    /// `[DONE]`, by which OpenAI's streams say that they are complete.
    Done,
    /// It begins here, and says that the answer has failed.
    Failed { from: usize, error: Error },
}

impl Last {
    fn find(events: &Bytes, secret: Option<&str>) -> Option<Self> {
        // Events are taken apart only if one of these words is there at all, which it is once in a stream.
        if memmem::find(events, DONE).is_none() && !may_tell_error(events) {
            return None;
        }
        let mut decoder = Decoder::new(usize::MAX);
        // They are whole, so what follows a last `\r` can only end it.
        decoder.push([events, &b"\n"[..]].concat().into());
        let mut from = 0;
        while let Ok(Some(event)) = decoder.next_event() {
            if let Some(data) = event.data() {
                if data.trim_ascii() == DONE {
                    return Some(Self::Done);
                }
                if may_tell_error(&data)
                    && let Some(error) = Error::of_event(&data, secret.as_slice())
                {
                    return Some(Self::Failed { from, error });
                }
            }
            from += event.raw().len();
        }
        None
    }
}

const DONE: &[u8] = b"[DONE]";

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
        f.debug_struct("Events").field("inner", &self.inner).field("said", &self.said).finish_non_exhaustive()
    }
}
