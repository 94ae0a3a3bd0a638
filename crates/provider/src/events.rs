use std::{
    fmt,
    pin::Pin,
    sync::{Arc, LazyLock},
    task::{Context, Poll, ready},
};

use bartizan_core::{
    BoxError,
    sse::{Aligner, Decoder},
};
use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame};
use memchr::memmem::Finder;
use pin_project_lite::pin_project;

use crate::{Class, Error, UsageReport, error::may_tell_error, limits::Watch, service::Upstream};

/// The longest event passed on, in bytes: a bound on what is held back.
const MAX_EVENT: usize = 1024 * 1024;

/// How much of what arrived together leaves together, in bytes.
const MAX_RUN: usize = 16 * 1024;

/// How much may come behind `[DONE]`, in bytes, for the connection to be kept.
const MAX_REST: usize = 16 * 1024;

pin_project! {
    /// A stream of server-sent events on its way through: whole events, all that are there at once, and an error
    /// where the upstream would just have stopped.
    pub(crate) struct Events<B> {
        // Let go once nothing more is expected of it.
        #[pin]
        inner: Option<B>,
        aligner: Aligner,
        watch: Watch,
        passing: Passing,
        state: State,
    }
}

#[derive(Debug)]
enum State {
    Open,
    /// `[DONE]` was said: it begins here, behind the others of these. It waits until the upstream's body has ended, too, or
    /// has had its time: a connection is used again only then, and who reads a stream may go at its last event.
    Done {
        events: Bytes,
        from: usize,
        max_rest: usize,
    },
    /// To be told once what came before it is out.
    Failed(Option<Error>),
    Ended,
}

impl<B> Events<B> {
    /// What the events tell of usage goes to `usage`.
    pub(crate) fn new(inner: B, watch: Watch, usage: UsageReport, upstream: Arc<Upstream>) -> Self {
        let (aligner, passing) = (Aligner::new(MAX_EVENT), Passing { begun: false, usage, upstream });
        Self { inner: Some(inner), aligner, watch, passing, state: State::Open }
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
        while let (State::Open, Some(inner)) = (&this.state, this.inner.as_mut().as_pin_mut())
            && run.len() < MAX_RUN
        {
            *this.state = match inner.poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    this.watch.frame();
                    // Trailers of an event stream say nothing that a client of it could see.
                    let Ok(chunk) = frame.into_data() else { continue };
                    match this.aligner.push(chunk) {
                        Ok(events) => this.passing.pass_on(events, &mut run),
                        Err(too_long) => {
                            let message = format!("the upstream's stream is broken: {too_long}");
                            State::failed(Error::new(Class::Malformed, message))
                        }
                    }
                }
                Poll::Ready(None) => {
                    this.inner.set(None);
                    this.passing.end(this.aligner, &mut run)
                }
                Poll::Ready(Some(Err(error))) => State::failed(of_body(error.into())),
                Poll::Pending if !run.is_empty() => break,
                Poll::Pending => match this.watch.poll_over(cx) {
                    Poll::Ready(error) => State::failed(error),
                    Poll::Pending => return Poll::Pending,
                },
            };
            if let State::Done { .. } = this.state {
                this.watch.closing();
            }
        }
        if matches!(this.state, State::Open)
            && let Some(error) = this.watch.total_over()
        {
            // It never had to be waited for, so no timer had a chance to ring.
            *this.state = State::failed(error);
        }
        if let State::Done { events, from, max_rest } = this.state {
            let closed = poll_closed(this.inner.as_mut(), max_rest, cx).is_ready();
            if closed || this.watch.poll_over(cx).is_ready() {
                run.push(std::mem::take(events));
                *this.state = State::Ended;
            } else {
                run.push(events.split_to(std::mem::take(from)));
                if run.is_empty() {
                    return Poll::Pending;
                }
            }
        }
        if let State::Failed(_) | State::Ended = this.state {
            this.inner.set(None);
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
            State::Open | State::Done { .. } | State::Ended => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.state, State::Ended)
    }
}

impl State {
    fn failed(error: Error) -> Self {
        Self::Failed(Some(error))
    }
}

/// Ready when the upstream has nothing more to say, or says more than it may.
fn poll_closed<B: Body<Data = Bytes>>(
    mut inner: Pin<&mut Option<B>>,
    max_rest: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<()> {
    while let Some(inner) = inner.as_mut().as_pin_mut() {
        let Some(Ok(frame)) = ready!(inner.poll_frame(cx)) else { break };
        // Of frames without anything in them there is no end, either.
        let len = frame.data_ref().map_or(0, Bytes::len).max(1);
        let Some(left) = max_rest.checked_sub(len) else { break };
        *max_rest = left;
    }
    Poll::Ready(())
}

/// What becomes of the events on their way.
struct Passing {
    /// Some have passed.
    begun: bool,
    usage: UsageReport,
    upstream: Arc<Upstream>,
}

impl Passing {
    /// Puts whole events into the run, up to the first thing that no client could read, or after which none expects more.
    fn pass_on(&mut self, mut events: Bytes, run: &mut Run) -> State {
        if events.is_empty() {
            return State::Open;
        }
        let mut state = State::Open;
        if !self.begun && !looks_like_events(&events) {
            let message = "the upstream's stream is not made of server-sent events";
            return State::failed(Error::new(Class::Malformed, message));
        }
        if let Err(garbage) = str::from_utf8(&events) {
            // What was whole before it.
            events.truncate(garbage.valid_up_to());
            events = Aligner::new(usize::MAX).push(events).unwrap_or_default();
            let message = "the upstream's stream has an event in it that is not UTF-8";
            state = State::failed(Error::new(Class::Malformed, message).with_source(garbage));
        }
        self.begun = true;
        let last = Last::find(&events, self.upstream.secret());
        events.truncate(match &last {
            Some((_, Last::Done { to })) => *to,
            Some((from, Last::Failed(_))) => *from,
            None => events.len(),
        });
        self.usage.hear(&events);
        match last {
            Some((from, Last::Done { .. })) => return State::Done { events, from, max_rest: MAX_REST },
            Some((_, Last::Failed(error))) => state = State::failed(error),
            None => {}
        }
        run.push(events);
        state
    }

    /// The body has ended, as it should if it has said so.
    fn end(&mut self, aligner: &mut Aligner, run: &mut Run) -> State {
        let mut last = aligner.finish();
        if last.is_empty() {
            last = completed(aligner.held(), self.upstream.secret());
        }
        match self.pass_on(last, run) {
            State::Open => State::failed(Error::new(
                Class::Upstream,
                "the upstream's stream ended without `data: [DONE]`: the answer is incomplete",
            )),
            state => state,
        }
    }
}

/// An event that lacks nothing but its empty line, if it is one that ends a stream: some upstreams leave that out.
fn completed(held: &[u8], secret: Option<&str>) -> Bytes {
    let mut decoder = Decoder::new(usize::MAX);
    decoder.push([held, b"\n\n"].concat().into());
    let event = decoder.next_event().ok().flatten().map(|event| event.raw().clone());
    event.filter(|event| Last::find(event, secret).is_some()).unwrap_or_default()
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
    /// `[DONE]`, by which OpenAI's streams say that they are complete, and where it ends.
    Done { to: usize },
    /// It says that the answer has failed.
    Failed(Error),
}

impl Last {
    /// The first one, and where it begins.
    fn find(events: &Bytes, secret: Option<&str>) -> Option<(usize, Self)> {
        // Events are taken apart only if one of these words is there at all, which it is once in a stream.
        if DONE.find(events).is_none() && !may_tell_error(events) {
            return None;
        }
        let mut decoder = Decoder::new(usize::MAX);
        // They are whole, so what follows a last `\r` can only end it.
        decoder.push([events, &b"\n"[..]].concat().into());
        let mut from = 0;
        while let Ok(Some(event)) = decoder.next_event() {
            let to = (from + event.raw().len()).min(events.len());
            if let Some(data) = event.data() {
                if data.trim_ascii() == DONE.needle() {
                    return Some((from, Self::Done { to }));
                }
                if may_tell_error(&data)
                    && let Some(error) = Error::of_event(&data, secret.as_slice())
                {
                    return Some((from, Self::Failed(error)));
                }
            }
            from = to;
        }
        None
    }
}

/// To make one costs more than to look through an event with it.
static DONE: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"[DONE]"));

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
        if bytes.is_empty() {
            return;
        }
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
        f.debug_struct("Events")
            .field("inner", &self.inner)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
