//! A body that many read while it runs.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    Recording,
    grpc::{self, Outcome},
};
use crate::{
    NAME, SharedError, Ticket,
    relay::{Place, Relay, Results, Yield},
};

/// A body, its frames so far, and who waits for the next one. It ends with the last who has it.
pub(super) struct Reel {
    relay: Relay<Source, Film>,
    began: Instant,
    /// How long it took, once all of it was there.
    took: OnceLock<Duration>,
}

type Source = Pin<Box<dyn Body<Data = Bytes, Error = BoxError> + Send>>;

/// What has come of a body so far.
struct Film {
    pieces: VecDeque<Piece>,
    /// How many pieces were dropped because they were too many.
    dropped: usize,
    /// Those that are to be: whoever has added a piece takes them along, since data may be of a kind of its own, and its end is
    /// not for where a lock is held.
    outdated: Vec<Piece>,
    /// What the pieces weigh that are there, and how much they may.
    weight: usize,
    most: usize,
    /// What the head weighs, which is kept with it.
    head: usize,
    /// It was too long to be kept whole.
    overflowed: bool,
    /// Its trailers say that the call has failed.
    failed: bool,
    /// The bytes of all pieces that ever came.
    bytes: u64,
    /// How many bytes are to come, where the head says so.
    left: Option<u64>,
    /// How many bytes are to come, as far as the body knows.
    hint: SizeHint,
    end: Option<End>,
}

#[derive(Clone)]
enum Piece {
    Data(Bytes),
    /// Apart, since they are large and rare.
    Trailers(Box<HeaderMap>),
}

enum End {
    Complete,
    Failed(SharedError),
    Panicked,
}

impl End {
    fn short() -> Self {
        Self::broken("the body ended before all the bytes were there that its head had promised")
    }

    fn broken(promise: &'static str) -> Self {
        Self::Failed(SharedError::new(promise.into()))
    }
}

/// What weighs on memory beside its bytes: the piece in the queue and what counts the references to it.
const PIECE: usize = 2 * size_of::<Piece>();

const _: () = assert!(PIECE <= 64, "`Frames::max_body` says so");

/// What a body gave, and what it said of itself then.
struct Step {
    frame: Option<Result<Frame<Bytes>, BoxError>>,
    is_end: bool,
    hint: SizeHint,
}

impl Results for Film {
    type Item = Step;

    fn add(&mut self, Step { frame, is_end, hint }: Step) -> bool {
        self.hint = hint;
        let piece = match frame {
            None => {
                self.end =
                    Some(if self.left.is_some_and(|left| left > 0) { End::short() } else { End::Complete });
                return false;
            }
            Some(Err(error)) => {
                self.end = Some(End::Failed(SharedError::new(error)));
                return false;
            }
            Some(Ok(frame)) => match frame.into_data().map_err(Frame::into_trailers) {
                Ok(data) => Piece::Data(data),
                Err(Ok(trailers)) => {
                    self.failed |= grpc::outcome(&trailers).is_some_and(|outcome| outcome != Outcome::Good);
                    Piece::Trailers(Box::new(trailers))
                }
                // There is no third kind; should there be one, it is not known how to share it.
                Err(Err(_)) => return true,
            },
        };
        let left = self.left.map(|left| left.checked_sub(piece.bytes() as u64));
        self.left = left.flatten();
        self.push(piece);
        self.end = match left {
            // Whoever serves it does not ask for more then.
            Some(Some(0)) => Some(End::Complete),
            Some(Some(_)) if is_end => Some(End::short()),
            Some(None) => Some(End::broken("the body is longer than its head had promised")),
            None if is_end => Some(End::Complete),
            _ => None,
        };
        self.end.is_none()
    }

    fn panicked(&mut self) {
        self.end = Some(End::Panicked);
    }
}

impl Film {
    fn push(&mut self, piece: Piece) {
        self.bytes += piece.bytes() as u64;
        self.weight += piece.weight();
        self.pieces.push_back(piece);
        self.overflowed |= self.weight > self.most;
        while self.weight > self.most && self.pieces.len() > 1 {
            let piece = self.pieces.pop_front().expect("there is more than one");
            self.weight -= piece.weight();
            self.dropped += 1;
            self.outdated.push(piece);
        }
    }

    /// What a reader gets who has got `at` pieces; `None` if he has to wait.
    fn take(&mut self, at: usize) -> Option<Taken> {
        let Some(index) = at.checked_sub(self.dropped) else { return Some(Taken::Lagged) };
        if let Some(piece) = self.pieces.get(index) {
            let is_last = matches!(self.end, Some(End::Complete)) && index + 1 == self.pieces.len();
            let (size, is_lost) = (self.size().filter(|_| is_last), self.is_lost());
            let (piece, outdated) = (piece.clone(), mem::take(&mut self.outdated));
            return Some(Taken::Piece { piece, is_last, size, is_lost, outdated });
        }
        match self.end.as_ref()? {
            End::Complete => Some(Taken::End { size: self.size() }),
            End::Failed(error) => Some(Taken::Failed(error.clone())),
            End::Panicked => Some(Taken::Panicked),
        }
    }

    /// Whether it will not be kept whatever comes.
    const fn is_lost(&self) -> bool {
        self.overflowed || self.failed
    }

    /// What it weighs with its head, if all of it is there and may be kept.
    fn size(&self) -> Option<usize> {
        (matches!(self.end, Some(End::Complete)) && !self.is_lost()).then_some(self.head + self.weight)
    }
}

/// What a reader finds.
enum Taken {
    /// `size` is what to keep of all of it, if this was the last and all is there.
    Piece {
        piece: Piece,
        is_last: bool,
        size: Option<usize>,
        is_lost: bool,
        outdated: Vec<Piece>,
    },
    End {
        size: Option<usize>,
    },
    Failed(SharedError),
    Panicked,
    Lagged,
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Trailers(_) => 0,
        }
    }

    fn weight(&self) -> usize {
        PIECE
            + match self {
                Self::Data(data) => data.len(),
                Self::Trailers(trailers) => weight(trailers),
            }
    }

    fn into_frame(self) -> Frame<Bytes> {
        match self {
            Self::Data(data) => Frame::data(data),
            Self::Trailers(trailers) => Frame::trailers(*trailers),
        }
    }
}

/// What headers weigh: their letters, and where they stand.
pub(super) fn weight(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| FIELD + name.as_str().len() + value.len()).sum()
}

/// What a header takes beside its letters.
pub(super) const FIELD: usize = size_of::<(HeaderName, HeaderValue, [usize; 4])>();

impl Reel {
    /// Of `most` bytes at the most. `length` is how many bytes the head promises, which itself weighs `head`.
    pub(super) fn new<B>(body: B, length: Option<u64>, most: usize, head: usize) -> Self
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let end = (body.is_end_stream() || length == Some(0)).then_some(End::Complete);
        let is_over = end.is_some();
        let film = Film {
            pieces: VecDeque::new(),
            dropped: 0,
            outdated: Vec::new(),
            weight: 0,
            most,
            head,
            overflowed: false,
            failed: false,
            bytes: 0,
            left: length,
            hint: if is_over { SizeHint::with_exact(0) } else { body.size_hint() },
            end,
        };
        let source = (!is_over).then(|| Box::pin(Boxed { body }) as Source);
        Self { relay: Relay::new(source, film), began: Instant::now(), took: OnceLock::new() }
    }

    /// How long it took to come, if it is kept.
    pub(super) fn took(&self) -> Duration {
        self.took.get().copied().unwrap_or_default()
    }

    /// What it weighs with its head, if all of it is there and may be kept.
    pub(super) fn complete(&self) -> Option<usize> {
        self.relay.look(Film::size)
    }

    /// Whether more is to come than is ever held of it.
    pub(super) fn is_too_long(&self) -> bool {
        self.relay.look(|film| {
            let least = film.hint.lower().max(film.left.unwrap_or_default());
            film.end.is_none() && least > 0 && least.saturating_add(PIECE as u64) > film.most as u64
        })
    }

    /// Whether its first piece is there, or will be.
    pub(super) fn is_whole(&self) -> bool {
        self.relay.look(|film| film.dropped == 0)
    }

    /// The data that is there.
    pub(super) fn data(&self) -> Vec<Bytes> {
        let data = |piece: &Piece| match piece {
            Piece::Data(data) => Some(data.clone()),
            Piece::Trailers(_) => None,
        };
        self.relay.look(|film| film.pieces.iter().filter_map(data).collect())
    }

    /// The trailers, if they are there.
    pub(super) fn trailers(&self) -> Option<HeaderMap> {
        self.relay.look(|film| match film.pieces.back()? {
            Piece::Trailers(trailers) => Some(trailers.as_ref().clone()),
            Piece::Data(_) => None,
        })
    }
}

/// Someone who reads a [`Reel`] from its beginning.
pub(super) struct Reader {
    reel: Arc<Reel>,
    place: Place,
    /// How many pieces it has got, and the bytes of those.
    at: usize,
    bytes: u64,
    /// Until all is read, or nothing more can be.
    ticket: Option<Ticket<Recording>>,
    /// Nothing more is to be read, whatever is there.
    is_over: bool,
}

impl Reader {
    pub(super) fn new(reel: Arc<Reel>, ticket: Ticket<Recording>) -> Self {
        Self { reel, place: Place::default(), at: 0, bytes: 0, ticket: Some(ticket), is_over: false }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.is_over {
            return Poll::Ready(None);
        }
        let Self { reel, place, at, ticket, .. } = self;
        let taken = ready!(reel.relay.poll(
            place,
            cx,
            |film| film.take(*at),
            |source, cx| {
                let detaches = Detaches(ticket.as_ref());
                let step = source.as_mut().poll_frame(cx).map(|frame| Step {
                    frame,
                    is_end: source.is_end_stream(),
                    hint: source.size_hint(),
                });
                mem::forget(detaches);
                step.map(Yield::Shared)
            },
        ));
        Poll::Ready(match taken {
            Taken::Piece { piece, is_last, size, is_lost, outdated } => {
                self.at += 1;
                self.bytes += piece.bytes() as u64;
                if is_lost {
                    self.detach();
                } else if is_last {
                    self.complete(size);
                }
                drop(outdated);
                Some(Ok(piece.into_frame()))
            }
            Taken::End { size } => {
                self.is_over = true;
                self.complete(size);
                None
            }
            Taken::Failed(error) => self.fail(error.into()),
            Taken::Panicked => self.fail(Rejected::new(RejectionKind::Panicked, NAME).into()),
            Taken::Lagged => self.fail(Rejected::new(RejectionKind::Lagged, NAME).into()),
        })
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.is_over
            || self.reel.relay.look(|film| {
                matches!(film.end, Some(End::Complete)) && self.at == film.dropped + film.pieces.len()
            })
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        if self.is_over {
            return SizeHint::with_exact(0);
        }
        self.reel.relay.look(|film| {
            let here = film.bytes.saturating_sub(self.bytes);
            if film.end.is_some() {
                return SizeHint::with_exact(here);
            }
            let mut hint = SizeHint::new();
            if let Some(upper) = film.hint.upper() {
                hint.set_upper(here.saturating_add(upper));
            }
            hint.set_lower(here.saturating_add(film.hint.lower()));
            hint
        })
    }

    /// Whether what is still to come may be joined, or kept.
    pub(super) const fn is_shared(&self) -> bool {
        self.ticket.is_some()
    }

    fn complete(&mut self, size: Option<usize>) {
        if let (Some(ticket), Some(size)) = (self.ticket.take(), size) {
            self.reel.took.get_or_init(|| self.reel.began.elapsed());
            ticket.complete(size);
        }
    }

    fn detach(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            ticket.detach();
        }
    }

    fn fail(&mut self, error: BoxError) -> Option<Result<Frame<Bytes>, BoxError>> {
        self.is_over = true;
        self.detach();
        Some(Err(error))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.reel.relay.leave(&mut self.place);
    }
}

/// Nobody joins a body that panicked.
struct Detaches<'a>(Option<&'a Ticket<Recording>>);

impl Drop for Detaches<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.0 {
            ticket.detach();
        }
    }
}

pin_project_lite::pin_project! {
    /// A body whose error is boxed.
    struct Boxed<B> {
        #[pin]
        body: B,
    }
}

impl<B> Body for Boxed<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().body.poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
