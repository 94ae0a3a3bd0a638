use std::{fmt, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// What a [`Mock`](super::Mock) does on a call, where that is not the obvious.
///
/// Everything can be combined, and what is not set is as it would be without a script. Times add up in the order in which
/// things happen: [`latency`](Self::latency), head, [`first_frame_delay`](Self::first_frame_delay), first event,
/// [`pace`](Self::pace), second event, and so on.
///
/// An *event* is what is sent as one frame. A streamed chat completion has one for the role, one for each word, one for
/// the reason why it stopped, one for the usage if it was asked for, and `[DONE]`. A plain response is one event, or, where
/// the script tells it from the second, two: the halves of its body.
///
/// ```
/// use std::time::Duration;
/// use bartizan_provider::mock::Script;
///
/// // Answers after 200 ms, sends ten words, one every 20 ms, and is cut off in mid-stream.
/// let script = Script::new()
///     .latency(Duration::from_millis(200))
///     .words(10)
///     .pace(Duration::from_millis(20))
///     .fail_after(5);
/// ```
#[derive(Clone, Default)]
pub struct Script {
    pub(super) latency: Duration,
    pub(super) first_frame_delay: Duration,
    pub(super) pace: Duration,
    pub(super) status: Option<StatusCode>,
    pub(super) headers: HeaderMap,
    pub(super) frames: Option<Vec<Bytes>>,
    pub(super) text: Option<String>,
    pub(super) words: Option<usize>,
    pub(super) usage: Option<(u64, u64)>,
    pub(super) head: Option<NoHead>,
    pub(super) end: Option<(usize, End)>,
    pub(super) garbage: Option<usize>,
    pub(super) chop: Option<usize>,
}

/// What comes instead of a head.
#[derive(Clone, Copy, Debug)]
pub(super) enum NoHead {
    Fail,
    Hang,
}

/// What comes after the last event that is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    #[default]
    Clean,
    Fail,
    Hang,
}

impl Script {
    /// Nothing out of the ordinary.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits this long before the head of the response. Default: not at all.
    #[must_use]
    pub fn latency(mut self, delay: Duration) -> Self {
        self.latency = delay;
        self
    }

    /// Waits this long between the head and the first event. Default: not at all.
    #[must_use]
    pub fn first_frame_delay(mut self, delay: Duration) -> Self {
        self.first_frame_delay = delay;
        self
    }

    /// Lets this much time pass between two events. Default: none.
    ///
    /// The times are fixed when the head is sent: a reader that comes late gets all that is due by then.
    #[must_use]
    pub fn pace(mut self, delay: Duration) -> Self {
        self.pace = delay;
        self
    }

    /// Answers with this status. Without a [`body`](Self::body), one of 400 and above is an error in OpenAI's shape.
    ///
    /// # Panics
    ///
    /// Panics if `status` is not in 100 to 999.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(StatusCode::from_u16(status).expect("a status is in 100 to 999"));
        self
    }

    /// Adds a header, or replaces the one of this name that the response would have had.
    ///
    /// A `content-length` is sent as it is, wrong or not. The server then stops at that length, or breaks the connection
    /// off where there is less.
    ///
    /// # Panics
    ///
    /// Panics if the name or the value is none.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name: HeaderName = name.parse().expect("a valid header name");
        self.headers.append(name, HeaderValue::from_str(value).expect("a valid header value"));
        self
    }

    /// Answers with this body, as one event, instead of the one that was asked for.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Self {
        self.frames([body])
    }

    /// Answers with these frames, byte for byte, instead of the body that was asked for. Each is one event.
    #[must_use]
    pub fn frames<F: Into<Bytes>>(mut self, frames: impl IntoIterator<Item = F>) -> Self {
        self.frames = Some(frames.into_iter().map(Into::into).collect());
        self
    }

    /// Says this in a chat. Default: `You said: ` and the last user message.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Says exactly this many words in a chat, the text cut short or repeated as it takes.
    ///
    /// A streamed answer has `n` + 3 events then: the role, the words, the stop, `[DONE]`.
    #[must_use]
    pub fn words(mut self, n: usize) -> Self {
        self.words = Some(n);
        self
    }

    /// Reports these numbers of tokens as used.
    #[must_use]
    pub fn usage(mut self, prompt_tokens: u64, completion_tokens: u64) -> Self {
        self.usage = Some((prompt_tokens, completion_tokens));
        self
    }

    /// Breaks the connection off before the head: the service's call fails.
    #[must_use]
    pub fn fail(mut self) -> Self {
        self.head = Some(NoHead::Fail);
        self
    }

    /// Never sends a head.
    #[must_use]
    pub fn hang(mut self) -> Self {
        self.head = Some(NoHead::Hang);
        self
    }

    /// Breaks the connection off after `n` events: the body fails. Replaces any other `_after` but `garbage_after`.
    #[must_use]
    pub fn fail_after(self, n: usize) -> Self {
        self.end(n, End::Fail)
    }

    /// Ends the body after `n` events as if that were all. Replaces any other `_after` but `garbage_after`.
    #[must_use]
    pub fn end_after(self, n: usize) -> Self {
        self.end(n, End::Clean)
    }

    /// Sends nothing after `n` events, nor an end. Replaces any other `_after` but `garbage_after`.
    #[must_use]
    pub fn hang_after(self, n: usize) -> Self {
        self.end(n, End::Hang)
    }

    /// Puts an event of bytes that mean nothing after the first `n`, and goes on as if nothing had happened.
    ///
    /// It counts as an event itself.
    #[must_use]
    pub fn garbage_after(mut self, n: usize) -> Self {
        self.garbage = Some(n);
        self
    }

    /// Cuts every event into frames of at most `bytes` bytes, which is done last: times stay those of the events.
    ///
    /// # Panics
    ///
    /// Panics if `bytes` is 0.
    #[must_use]
    pub fn chop(mut self, bytes: usize) -> Self {
        assert!(bytes > 0, "a frame has at least one byte");
        self.chop = Some(bytes);
        self
    }

    fn end(mut self, n: usize, end: End) -> Self {
        self.end = Some((n, end));
        self
    }

    /// Whether anything is told of a second event.
    pub(super) fn tells_events_apart(&self) -> bool {
        self.end.is_some_and(|(n, _)| n > 0) || self.garbage.is_some_and(|n| n > 0) || !self.pace.is_zero()
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Most of it is unset in most scripts.
        let mut f = f.debug_struct("Script");
        if let Some(status) = self.status {
            f.field("status", &status.as_u16());
        }
        if let Some(head) = self.head {
            f.field("head", &head);
        }
        if let Some(end) = self.end {
            f.field("end", &end);
        }
        f.finish_non_exhaustive()
    }
}
