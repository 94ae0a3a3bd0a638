use std::{
    error::Error,
    fmt::{self, Display, Write as _},
    sync::OnceLock,
    time::Duration,
};

use bartizan_core::{Rejected, chain};
use tokio::time::error::Elapsed;

use crate::sync::{AcqRel, Acquire, AtomicU64, Relaxed, Release, fence};

/// What went wrong, in the words of whoever reads statistics: an [`Explain`] makes it.
#[derive(Clone, Copy)]
pub struct Fault<'a> {
    class: &'static str,
    message: Message<'a>,
}

#[derive(Clone, Copy)]
enum Message<'a> {
    Class,
    Text(&'static str),
    Display(&'a dyn Display),
}

impl<'a> Fault<'a> {
    /// A failure of this class, which is a short word such as `timeout`: there is a count for each of 31, and one for all
    /// further ones together, which is `other`.
    pub const fn new(class: &'static str) -> Self {
        Self { class, message: Message::Class }
    }

    /// What it says. Of what is longer the first 256 bytes are kept.
    #[must_use]
    pub const fn says(self, message: &'a dyn Display) -> Self {
        Self { message: Message::Display(message), ..self }
    }

    /// What it says, in words that are always the same.
    #[must_use]
    pub const fn text(self, message: &'static str) -> Self {
        Self { message: Message::Text(message), ..self }
    }

    /// The class.
    pub const fn class(&self) -> &'static str {
        self.class
    }
}

impl Display for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.message {
            Message::Class => f.write_str(self.class),
            Message::Text(text) => f.write_str(text),
            Message::Display(message) => message.fmt(f),
        }
    }
}

impl fmt::Debug for Fault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault").field("class", &self.class).field("says", &format_args!("{self}")).finish()
    }
}

/// Says what went wrong: the class and the words that statistics tell of a call that was no success.
///
/// [`causes`] is for errors, and with the feature `http` `statuses` for responses too.
pub trait Explain<Res> {
    /// What there is to say of this result, if it has gone wrong. It is called once a call that was no success.
    fn explain<'a>(&self, result: Result<&'a Res, &'a (dyn Error + 'static)>) -> Option<Fault<'a>>;
}

/// Explains errors by themselves: a refusal by what it is, a timeout as `timeout`, what else comes from a socket as `io`, and
/// the rest as `error`.
///
/// ```
/// use bartizan_health::{Explain, causes};
///
/// let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
/// let fault = Explain::<()>::explain(&causes(), Err(&refused)).unwrap();
/// assert_eq!((fault.class(), fault.to_string()), ("io", "connection refused".to_owned()));
/// ```
pub const fn causes() -> Causes {
    Causes
}

/// The explanation made by [`causes`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Causes;

impl<Res> Explain<Res> for Causes {
    fn explain<'a>(&self, result: Result<&'a Res, &'a (dyn Error + 'static)>) -> Option<Fault<'a>> {
        result.err().map(of_error)
    }
}

pub(crate) fn of_error<'a>(error: &'a (dyn Error + 'static)) -> Fault<'a> {
    use std::io::{Error as Io, ErrorKind::TimedOut};

    let timed_out = |error: &(dyn Error + 'static)| {
        error.is::<Elapsed>() || error.downcast_ref::<Io>().is_some_and(|io| io.kind() == TimedOut)
    };
    let class = if Rejected::find(error).is_some() {
        "refused"
    } else if chain(error).any(timed_out) {
        "timeout"
    } else if chain(error).any(<dyn Error>::is::<Io>) {
        "io"
    } else {
        "error"
    };
    Fault::new(class).says(error)
}

/// How often each class has come, counted without a lock.
#[derive(Debug)]
pub(crate) struct Classes([Slot; CLASSES]);

/// The last one is for all that have none.
#[cfg(not(all(loom, test)))]
const CLASSES: usize = 32;
#[cfg(all(loom, test))]
const CLASSES: usize = 3;

/// A slot belongs to whoever puts a key into it first, in one exchange, and that one alone names it: so nobody waits for the
/// name. Another one with the same key that comes before the name counts here all the same.
#[derive(Debug)]
struct Slot {
    /// A hash of the name, never 0.
    key: AtomicU64,
    name: OnceLock<&'static str>,
    count: AtomicU64,
}

/// The class of whatever has no slot of its own.
const OTHER: &str = "other";

impl Classes {
    pub(crate) fn new() -> Self {
        Self(std::array::from_fn(|_| Slot {
            key: AtomicU64::new(0),
            name: OnceLock::new(),
            count: AtomicU64::new(0),
        }))
    }

    pub(crate) fn count(&self, class: &'static str) {
        let (last, slots) = self.0.split_last().expect("there are some");
        let key = key(class);
        slots.iter().find(|slot| slot.is_for(key, class)).unwrap_or(last).count.fetch_add(1, Relaxed);
    }

    pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
        let named = self.0.iter().enumerate().map(|(n, slot)| {
            let name = if n + 1 == CLASSES { Some(OTHER) } else { slot.name.get().copied() };
            (name, slot.count.load(Relaxed))
        });
        named.filter_map(|(name, count)| name.filter(|_| count > 0).map(|name| (name, count))).collect()
    }
}

impl Slot {
    /// Whether it belongs to this class, if need be from now on.
    fn is_for(&self, key: u64, class: &'static str) -> bool {
        let mut seen = self.key.load(Acquire);
        if seen == 0 {
            match self.key.compare_exchange(0, key, AcqRel, Acquire) {
                Ok(_) => {
                    // Nobody else ever does, so there is nobody to wait for.
                    let _ = self.name.set(class);
                    return true;
                }
                Err(other) => seen = other,
            }
        }
        seen == key && self.name.get().is_none_or(|name| *name == class)
    }
}

/// FNV-1a: names are few and short.
fn key(class: &str) -> u64 {
    let hash = class.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash.max(1)
}

/// The last thing that went wrong, written and read without a lock.
///
/// A number that is odd while somebody writes. Who finds another one writing leaves the place to it: they came at the same
/// moment. Who reads while it is written reads again.
#[derive(Debug)]
pub(crate) struct Last {
    turn: AtomicU64,
    at: AtomicU64,
    length: AtomicU64,
    text: [AtomicU64; WORDS],
}

#[cfg(not(all(loom, test)))]
const WORDS: usize = 32;
#[cfg(all(loom, test))]
const WORDS: usize = 1;

const BYTES: usize = WORDS * 8;

impl Last {
    pub(crate) fn new() -> Self {
        Self {
            turn: AtomicU64::new(0),
            at: AtomicU64::new(0),
            length: AtomicU64::new(0),
            text: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    pub(crate) fn write(&self, text: &Text, at: u64) {
        let turn = self.turn.load(Relaxed);
        if turn % 2 == 1 || self.turn.compare_exchange(turn, turn + 1, Acquire, Relaxed).is_err() {
            return;
        }
        fence(Release);
        self.at.store(at, Relaxed);
        self.length.store(text.length as u64, Relaxed);
        let words = text.bytes.chunks_exact(8).take(text.length.div_ceil(8));
        for (to, bytes) in self.text.iter().zip(words) {
            to.store(u64::from_le_bytes(bytes.try_into().expect("eight of them")), Relaxed);
        }
        self.turn.store(turn + 2, Release);
    }

    /// What it was and when. `None` if there was none, or there is no reading it because it is written all the time.
    pub(crate) fn read(&self) -> Option<(String, u64)> {
        (0..TRIES).find_map(|_| self.try_read())
    }

    fn try_read(&self) -> Option<(String, u64)> {
        let turn = self.turn.load(Acquire);
        if turn == 0 || turn % 2 == 1 {
            return None;
        }
        let at = self.at.load(Relaxed);
        let length = self.length.load(Relaxed) as usize;
        let mut bytes = [0; BYTES];
        for (to, from) in bytes.chunks_exact_mut(8).zip(&self.text) {
            to.copy_from_slice(&from.load(Relaxed).to_le_bytes());
        }
        fence(Acquire);
        if self.turn.load(Relaxed) != turn {
            return None;
        }
        Some((String::from_utf8_lossy(&bytes[..length.min(BYTES)]).into_owned(), at))
    }
}

#[cfg(not(all(loom, test)))]
const TRIES: usize = 1_000;
#[cfg(all(loom, test))]
const TRIES: usize = 1;

/// Words of a bounded length, on the stack.
pub(crate) struct Text {
    bytes: [u8; BYTES],
    length: usize,
}

impl Text {
    pub(crate) fn of(says: &dyn Display) -> Self {
        let mut text = Self { bytes: [0; BYTES], length: 0 };
        // An error says that it is full, or that whoever speaks has failed: what was said so far remains.
        let _ = write!(text, "{says}");
        text
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let room = part.floor_char_boundary(BYTES - self.length);
        self.bytes[self.length..self.length + room].copy_from_slice(&part.as_bytes()[..room]);
        self.length += room;
        if room == part.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

/// The last thing that went wrong with a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// Its words, the first 256 bytes of them.
    pub message: String,
    /// How long ago.
    pub ago: Duration,
}

#[cfg(all(test, not(loom)))]
#[path = "fault/tests.rs"]
mod tests;

#[cfg(all(test, loom))]
#[path = "fault/models.rs"]
mod models;
