use std::{fmt, sync::Arc, time::Duration};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{AGE, CONTENT_LENGTH, SET_COOKIE, VARY},
    response::Parts,
};
use http_body::Body;

use super::{
    cache_control::{self, CacheControl},
    playback::{Playback, Rest},
    reel::{Reader, Reel},
};
use crate::{Dedup, Replay, Served, Share, Ticket, Verdict};

/// HTTP responses, whose bodies are shared while they run: whoever joins gets every frame so far, and the rest as it comes.
///
/// Whoever reads drives the body, and the fastest reader sets the pace. Of a body, as much as
/// [`max_body`](Self::max_body) is held: one that is longer goes on for those who have it, but is joined by nobody and not
/// kept, and a reader who falls behind by more than that fails with [`Lagged`](bartizan_core::RejectionKind::Lagged).
///
/// Where `Content-Length` says how long a body is, it ends with its last byte, and trailers after that are not read. One that
/// is shorter or longer fails, and is not kept.
///
/// A complete response with a status of success may be kept, for as long as its `Cache-Control` allows. One that says
/// `private` or `no-store`, or something that cannot be read, sets a cookie, says `Vary: *`, or is one of 1xx, 206 and 304,
/// is for the caller whose request it answers; others who waited make calls of their own. 500, 502, 503 and 504 are
/// failures, for which a stale answer may stand in whatever else they say.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    max_body: usize,
    keeps_no_cache: bool,
}

impl Frames {
    /// Bodies of at most 1 MiB.
    pub const fn new() -> Self {
        Self { max_body: 1 << 20, keeps_no_cache: false }
    }

    /// How many bytes of a body are held at most; a frame counts for some 80 bytes beside its data. 1 MiB by default.
    ///
    /// With 0 no response that has a body is kept, or joined once it runs.
    #[must_use]
    pub const fn max_body(mut self, bytes: usize) -> Self {
        self.max_body = bytes;
        self
    }

    /// A response that says `no-cache` may be kept all the same. For upstreams that say so of every event stream, by custom.
    ///
    /// By default it is not kept, since it must not be given again unless its origin agrees.
    #[must_use]
    pub const fn keep_no_cache(mut self) -> Self {
        self.keeps_no_cache = true;
        self
    }
}

impl Default for Frames {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq> Dedup<K, Recording, Frames> {
    /// For HTTP responses: [`sharing`](Self::sharing) with [`Frames::new`].
    ///
    /// # Panics
    ///
    /// If `replay` could never work: see [`InvalidReplay`](crate::InvalidReplay).
    pub fn http(replay: Replay<Recording>) -> Self {
        Self::sharing(Frames::new(), replay)
    }
}

/// What is kept of an HTTP response: its head, and its body as far as it has come.
pub struct Recording {
    head: Parts,
    reel: Arc<Reel>,
}

impl Recording {
    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// The response's headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// The response's extensions.
    pub fn extensions(&self) -> &Extensions {
        &self.head.extensions
    }

    /// The data of the body's frames, in order. All of it where [`Replay::cache_when`] asks.
    pub fn data(&self) -> Vec<Bytes> {
        self.reel.data()
    }

    fn play<B>(&self, ticket: Ticket<Self>) -> Response<Playback<B>> {
        let served = ticket.served();
        let reader = Reader::new(self.reel.clone(), ticket);
        let mut response = Response::from_parts(self.head.clone(), Playback::shared(reader));
        if let Served::Hit { age, .. } | Served::Stale { age, .. } = served {
            let age = age.saturating_add(cache_control::age(&self.head.headers));
            response.headers_mut().insert(AGE, age.as_secs().into());
        }
        tell(&mut response, served);
        response
    }
}

impl fmt::Debug for Recording {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recording").field("status", &self.head.status).finish_non_exhaustive()
    }
}

impl<B> Share<Response<B>> for Frames
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Tape = Recording;
    type Response = Response<Playback<B>>;
    type Rest = Rest;

    fn record(&self, response: Response<B>) -> Recording {
        let (head, body) = response.into_parts();
        let length = head.headers.get(CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Recording { head, reel: Arc::new(Reel::new(body, length, self.max_body)) }
    }

    fn complete(&self, recording: &Recording) -> Option<usize> {
        recording.reel.complete()
    }

    fn verdict(&self, recording: &Recording) -> Verdict {
        let (status, headers) = (recording.head.status, &recording.head.headers);
        let control = CacheControl::of(headers);
        let varies = headers.get_all(VARY).iter().any(|names| names.as_bytes().contains(&b'*'));
        let partial = status.is_informational()
            || matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
        let private =
            control.private || control.no_store || varies || partial || headers.contains_key(SET_COOKIE);
        let longest = match control.max_age {
            _ if control.no_cache && !self.keeps_no_cache => Some(Duration::ZERO),
            most => most.map(|most| most.saturating_sub(cache_control::age(headers))),
        };
        match (status.as_u16(), private) {
            (500 | 502 | 503 | 504, false) => Verdict::Failure,
            (500 | 502 | 503 | 504, true) => Verdict::PrivateFailure,
            (_, true) => Verdict::Private,
            (200..=299, false) => Verdict::Keep(longest),
            (_, false) => Verdict::Share(longest),
        }
    }

    fn play(&self, recording: &Recording, ticket: Ticket<Recording>) -> Self::Response {
        recording.play(ticket)
    }

    fn pass(&self, response: Response<B>) -> Self::Response {
        let mut response = response.map(Playback::own);
        tell(&mut response, Served::Bypassed);
        response
    }

    fn rest(&self, recording: &Recording, ticket: Ticket<Recording>) -> Rest {
        Rest::new(Reader::new(recording.reel.clone(), ticket))
    }
}

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Tells where a response comes from, in an extension and in `Cache-Status` (RFC 9211).
fn tell<B>(response: &mut Response<B>, served: Served) {
    let status = match served {
        Served::Miss => HeaderValue::from_static("bartizan; fwd=miss"),
        Served::Collapsed => HeaderValue::from_static("bartizan; fwd=miss; collapsed"),
        Served::Bypassed => HeaderValue::from_static("bartizan; fwd=bypass"),
        Served::Hit { fresh_for, .. } => value(format_args!("bartizan; hit; ttl={}", fresh_for.as_secs())),
        Served::Stale { stale_for, .. } => value(format_args!("bartizan; hit; ttl=-{}", stale_for.as_secs())),
    };
    response.headers_mut().append(CACHE_STATUS, status);
    response.extensions_mut().insert(served);
}

fn value(text: fmt::Arguments<'_>) -> HeaderValue {
    HeaderValue::try_from(text.to_string()).expect("a word, a name and a number")
}
