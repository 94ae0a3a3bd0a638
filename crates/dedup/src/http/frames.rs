use std::{
    fmt,
    io::Write,
    sync::{Arc, OnceLock},
    time::Duration,
};

use bartizan_core::{BoxError, headers};
use bytes::Bytes;
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Response, StatusCode,
    header::{ACCESS_CONTROL_ALLOW_ORIGIN, AGE, CONTENT_ENCODING, CONTENT_LENGTH, SET_COOKIE, VARY},
    response::Parts,
};
use http_body::Body;

use super::{
    cache_control::{self, CacheControl},
    grpc::{self, Outcome},
    playback::{Playback, Rest},
    reel::{self, Reader, Reel},
};
use crate::{Dedup, Limits, Replay, Served, Share, Ticket, Verdict};

/// HTTP responses, whose bodies are shared while they run: whoever joins gets every frame so far, and the rest as it comes.
///
/// Whoever reads drives the body, and the fastest reader sets the pace. Of a body, as much as
/// [`max_body`](Self::max_body) is held: one that is longer goes on for those who have it, but is joined by nobody and not
/// kept, and a reader who falls behind by more than that fails with [`Lagged`](bartizan_core::RejectionKind::Lagged). One
/// that is known from the first to be longer is for the caller whose request it answers.
///
/// Where `Content-Length` says how long a body is, it ends with its last byte, and trailers after that are not read. One that
/// is shorter or longer fails, and is not kept. One that is empty at once, as in the answer to `HEAD`, is whole whatever
/// `Content-Length` says.
///
/// A complete response with a status of success may be kept, for as long as its `Cache-Control` allows, or its `Expires`
/// where that gives no time. That counts from when it was made, as its `Age` or `Date` says, and so does the `Age` of hits;
/// the time its body takes is part of it. One that says `must-revalidate`, `proxy-revalidate` or `s-maxage` is not served stale.
///
/// One that says `private` or `no-store`, or something that cannot be read, sets a cookie, varies with what is not in the
/// key (see [`keyed_by`](Self::keyed_by)), or is one of 1xx, 206 and 304, is for the caller whose request it answers; others
/// who waited make calls of their own. 408, 425, 429 and all of 5xx but 501 and 505 are failures: a stale answer may stand in
/// for them whatever else they say, and they take the place of none.
///
/// What is kept counts as the bytes of its frames and of its headers, with some 200 for each header and 64 for each frame. Of
/// data that is a slice of a larger buffer the slice is counted, though all of the buffer is kept; extensions count nothing.
///
/// Where there is a `grpc-status` other than 0, in the head or in the trailers, nothing is kept. One in the head is a failure,
/// but for those that tell the caller that he has asked for what he cannot have: 3, 5, 6, 7, 9, 11, 12 and 16.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    max_body: usize,
    keeps_no_cache: bool,
    keyed_by: &'static [&'static str],
    marks: bool,
}

impl Frames {
    /// Bodies of at most 1 MiB.
    pub const fn new() -> Self {
        Self { max_body: 1 << 20, keeps_no_cache: false, keyed_by: &[], marks: false }
    }

    /// How many bytes of a body are held at most; a frame counts for at most 64 bytes beside its data. 1 MiB by default.
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

    /// The names of the headers that are in the key of requests (see [`RequestKey::header`](crate::RequestKey::header)).
    /// None by default.
    ///
    /// A response whose `Vary` names another one may be another for another caller, so it is shared with nobody. But one
    /// that varies with `Accept-Encoding` and is not encoded is good for all, and so is one that varies with `Origin` and
    /// allows all of them.
    #[must_use]
    pub const fn keyed_by(mut self, names: &'static [&'static str]) -> Self {
        self.keyed_by = names;
        self
    }

    /// Says in each response's extensions, too, where it comes from: [`Served`]. By default `Cache-Status` alone says it,
    /// which for most hits allocates nothing.
    #[must_use]
    pub const fn served(mut self) -> Self {
        self.marks = true;
        self
    }

    /// Whether a response with these headers may be another one for a request of the same key.
    fn varies(self, headers: &HeaderMap) -> bool {
        let is_good_for_all = |name: &str| match name {
            _ if self.keyed_by.iter().any(|keyed| keyed.eq_ignore_ascii_case(name)) => true,
            _ if name.eq_ignore_ascii_case("accept-encoding") => !headers.contains_key(CONTENT_ENCODING),
            _ if name.eq_ignore_ascii_case("origin") => {
                headers.get(ACCESS_CONTROL_ALLOW_ORIGIN).is_some_and(|origins| origins == "*")
            }
            name => name.is_empty(),
        };
        headers.get_all(VARY).iter().any(|names| match names.to_str() {
            Ok(names) => !names.split(',').map(str::trim).all(is_good_for_all),
            Err(_) => true,
        })
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
    /// How old it was when it came.
    age: Duration,
    reel: Arc<Reel>,
    /// The headers with a place for each that a hit adds, so that a clone of them does not grow.
    kept: OnceLock<HeaderMap>,
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

    /// What came after the body's data. All of it where [`Replay::cache_when`] asks.
    pub fn trailers(&self) -> Option<HeaderMap> {
        self.reel.trailers()
    }

    fn play<B>(&self, ticket: Ticket<Self>, marks: bool) -> Response<Playback<B>> {
        let served = ticket.served();
        let mut response = Response::new(Playback::shared(Reader::new(self.reel.clone(), ticket)));
        let Parts { status, version, headers, extensions, .. } = &self.head;
        *response.status_mut() = *status;
        *response.version_mut() = *version;
        *response.extensions_mut() = extensions.clone();
        *response.headers_mut() = match served {
            Served::Hit { age, .. } | Served::Stale { age, .. } => {
                let mut kept = self.kept.get_or_init(|| with_places(headers)).clone();
                let age = age.saturating_add(self.age).saturating_add(self.reel.took());
                kept.insert(AGE, number(age.as_secs()));
                kept
            }
            _ => headers.clone(),
        };
        tell(&mut response, served, headers.contains_key(CACHE_STATUS), marks);
        response
    }
}

/// What is kept of a response weighs so much without its body.
fn weight(headers: &HeaderMap) -> usize {
    // Their table is there twice once they were given again.
    size_of::<Recording>() + size_of::<Reel>() + reel::weight(headers) + headers.len() * reel::FIELD
}

/// As they are, with something in the place of each header that a hit adds.
fn with_places(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    for name in [AGE, CACHE_STATUS] {
        headers.entry(name).or_insert(HeaderValue::from_static(""));
    }
    headers
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
        let reel = Arc::new(Reel::new(body, length, self.max_body, weight(&head.headers)));
        Recording { age: cache_control::age(&head.headers), head, reel, kept: OnceLock::new() }
    }

    fn complete(&self, recording: &Recording) -> Option<usize> {
        recording.reel.complete()
    }

    fn verdict(&self, recording: &Recording) -> Verdict {
        let (status, headers) = (recording.head.status, &recording.head.headers);
        let control = CacheControl::of(headers);
        let partial = status.is_informational()
            || matches!(status, StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED);
        let private = control.private
            || control.no_store
            || self.varies(headers)
            || partial
            || recording.reel.is_too_long()
            || headers.contains_key(SET_COOKIE);
        let longest = match control.max_age.or_else(|| cache_control::expires(headers)) {
            _ if control.no_cache && !self.keeps_no_cache => Some(Duration::ZERO),
            most => most.map(|most| most.saturating_sub(recording.age)),
        };
        let limits = longest.map_or(Limits::none(), |longest| Limits::none().fresh_for(longest));
        let limits = if control.must_revalidate { limits.never_stale() } else { limits };
        let call = grpc::outcome(headers).unwrap_or(Outcome::Good);
        match (is_failure(status) || call == Outcome::Failure, private) {
            (true, false) => Verdict::Failure,
            (true, true) => Verdict::PrivateFailure,
            (false, true) => Verdict::Private,
            (false, false) if call == Outcome::Refusal => Verdict::Share(limits.fresh_for(Duration::ZERO)),
            (false, false) if status.is_success() => Verdict::Keep(limits),
            (false, false) => Verdict::Share(limits),
        }
    }

    fn is_whole(&self, recording: &Recording) -> bool {
        recording.reel.is_whole()
    }

    fn play(&self, recording: &Recording, ticket: Ticket<Recording>) -> Self::Response {
        recording.play(ticket, self.marks)
    }

    fn pass(&self, response: Response<B>) -> Self::Response {
        let mut response = response.map(Playback::own);
        let others = response.headers().contains_key(CACHE_STATUS);
        tell(&mut response, Served::Bypassed, others, self.marks);
        response
    }

    fn rest(&self, recording: &Recording, ticket: Ticket<Recording>) -> Rest {
        Rest::new(Reader::new(recording.reel.clone(), ticket))
    }
}

/// Whether the same request may be answered with something better: not if the server cannot do what it asks at all.
fn is_failure(status: StatusCode) -> bool {
    let never = matches!(status, StatusCode::NOT_IMPLEMENTED | StatusCode::HTTP_VERSION_NOT_SUPPORTED);
    headers::is_transient(status) || status.is_server_error() && !never
}

const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// Tells where a response comes from, in `Cache-Status` (RFC 9211) behind what `others` told there, and in an extension where
/// those are wanted.
fn tell<B>(response: &mut Response<B>, served: Served, others: bool, marks: bool) {
    let status = match served {
        Served::Miss => HeaderValue::from_static("bartizan; fwd=miss"),
        Served::Collapsed => HeaderValue::from_static("bartizan; fwd=miss; collapsed"),
        Served::Bypassed => HeaderValue::from_static("bartizan; fwd=bypass"),
        Served::Hit { fresh_for, .. } => fresh_hit(fresh_for.as_secs()),
        Served::Stale { stale_for, .. } => hit(format_args!("-{}", stale_for.as_secs())),
    };
    if others {
        response.headers_mut().append(CACHE_STATUS, status);
    } else {
        response.headers_mut().insert(CACHE_STATUS, status);
    }
    if marks {
        response.extensions_mut().insert(served);
    }
}

/// A number by itself.
fn number(number: u64) -> HeaderValue {
    ready_made(number, HIT.len()).unwrap_or_else(|| number.into())
}

fn fresh_hit(ttl: u64) -> HeaderValue {
    ready_made(ttl, 0).unwrap_or_else(|| hit(format_args!("{ttl}")))
}

fn hit(ttl: fmt::Arguments<'_>) -> HeaderValue {
    // Whole text in one piece: what has room left is moved once more.
    let mut text = [0; 64];
    let mut rest = &mut text[..];
    write!(rest, "{HIT}{ttl}").expect("there is room for the longest number");
    let left = rest.len();
    HeaderValue::from_bytes(&text[..64 - left]).expect("a word, a name and a number")
}

const HIT: &str = "bartizan; hit; ttl=";

/// A text from [`HITS`], or the end of it.
fn ready_made(ttl: u64, from: usize) -> Option<HeaderValue> {
    let text = HITS.get(usize::try_from(ttl).ok()?)?;
    let digits = ttl.checked_ilog10().unwrap_or(0) as usize + 1;
    let text = str::from_utf8(&text[from..HIT.len() + digits]).expect("ASCII");
    Some(HeaderValue::from_static(text))
}

/// [`HIT`] with each number of seconds up to an hour, so that for those nothing is allocated.
static HITS: [[u8; HIT.len() + 4]; 3_601] = {
    let mut texts = [[0; HIT.len() + 4]; 3_601];
    let mut ttl = 0;
    while ttl < texts.len() {
        let (text, digits) = texts[ttl].split_at_mut(HIT.len());
        text.copy_from_slice(HIT.as_bytes());
        let (mut left, mut at) = (ttl, if ttl == 0 { 1 } else { ttl.ilog10() as usize + 1 });
        while at > 0 {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
        }
        ttl += 1;
    }
    texts
};

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_numbers_are() {
        for time in (0..4_000).chain([u64::MAX]) {
            assert_eq!(number(time), time.to_string());
            assert_eq!(fresh_hit(time), format!("bartizan; hit; ttl={time}"));
        }
        assert_eq!(hit(format_args!("-{}", u64::MAX)), format!("bartizan; hit; ttl=-{}", u64::MAX));
    }
}
