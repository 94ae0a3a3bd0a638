use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::{
    Verdict,
    lifetime::{Terms, Windows},
};

/// Which answers are kept, for how long, and how many.
///
/// ```
/// use std::time::Duration;
/// use bartizan_dedup::{Dedup, InvalidReplay, Replay};
///
/// let second = Duration::from_secs(1);
/// let replay = Replay::ttl(60 * second).stale_if_error(600 * second).max_entries(1_000);
/// let dedup: Dedup<u64, String> = Dedup::new(replay.cache_when(|answer: &String| !answer.is_empty()));
/// assert_eq!(dedup.stats().entries, 0);
///
/// let refused = Dedup::<u64, String>::try_new(Replay::ttl(Duration::ZERO)).unwrap_err();
/// assert_eq!(refused, InvalidReplay::Ttl);
/// ```
pub struct Replay<T> {
    ttl: Option<Duration>,
    pub(crate) windows: Windows,
    negative: Option<Duration>,
    pub(crate) max_entries: usize,
    pub(crate) max_bytes: u64,
    pub(crate) spawns: bool,
    cache_when: Option<Judge<T, bool>>,
    ttl_of: Option<Judge<T, Option<Duration>>>,
    size_of: Option<Judge<T, usize>>,
}

type Judge<T, R> = Arc<dyn Fn(&T) -> R + Send + Sync>;

impl<T> Replay<T> {
    /// Nothing is kept: an answer is for those who wait for it, and no one else.
    pub fn none() -> Self {
        Self {
            ttl: None,
            windows: Windows::default(),
            negative: None,
            max_entries: 10_000,
            max_bytes: 64 << 20,
            spawns: true,
            cache_when: None,
            ttl_of: None,
            size_of: None,
        }
    }

    /// Answers are kept, and fresh for `ttl` from when all of them was there.
    pub fn ttl(ttl: Duration) -> Self {
        Self { ttl: Some(ttl), ..Self::none() }
    }

    /// For so long after it was fresh, an answer is served as it is while a new one is fetched, one at a time. Zero by
    /// default.
    ///
    /// The new one is fetched by a task on the caller's tokio runtime, which has to have timers: it ends with the call, or with
    /// the time in which the old answer is served, when those who wait for a new one go on with the call.
    /// [`refresh_by_callers`](Self::refresh_by_callers) does without it.
    #[must_use]
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.windows.revalidate = window;
        self
    }

    /// No task fetches the new answer: each caller who is served a stale one drives the call once before, until one finds
    /// it done. That is what happens outside of tokio's runtime, too.
    ///
    /// Whoever finds it done gets it at once: of a response with a body, as soon as its head is there. Between two callers
    /// nobody drives it, so nothing below may hold for a call what other calls wait for, as a concurrency limit does. What
    /// was left undone when the old answer is served no more is given up.
    #[must_use]
    pub fn refresh_by_callers(mut self) -> Self {
        self.spawns = false;
        self
    }

    /// For so long after it was fresh, an answer is served in place of an error. Zero by default.
    #[must_use]
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.windows.if_error = window;
        self
    }

    /// Errors are kept too, for so long. They are not by default. Panics never are.
    #[must_use]
    pub fn negative_ttl(mut self, ttl: Duration) -> Self {
        self.negative = Some(ttl);
        self
    }

    /// How many answers are kept at most. 10,000 by default. Beyond, one that nobody asked for lately is dropped, an old one
    /// first.
    ///
    /// From 128 on both bounds are split over up to 16 parts of the keys, so a part may be full before the whole is.
    #[must_use]
    pub fn max_entries(mut self, entries: usize) -> Self {
        self.max_entries = entries;
        self
    }

    /// How many bytes all kept answers together may have. 64 MiB by default.
    ///
    /// An answer of more than a part's bytes (see [`max_entries`](Self::max_entries)) is not kept. What counts is for the
    /// [`Share`](crate::Share) to say, or [`size_of`](Self::size_of): `Frames` counts bodies and headers. Keys count nothing.
    #[must_use]
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = bytes;
        self
    }

    /// Which answers are kept, of those that may be shared. By default, those of which the [`Share`](crate::Share) says
    /// [`Verdict::Keep`]: all values, and HTTP responses with a status of success.
    ///
    /// It sees a complete answer, never one that broke off. If it panics, the call that was to be kept panics.
    #[must_use]
    pub fn cache_when(mut self, keep: impl Fn(&T) -> bool + Send + Sync + 'static) -> Self {
        self.cache_when = Some(Arc::new(keep));
        self
    }

    /// How long this answer is fresh. `None` leaves it at the handle's time; zero keeps it not.
    #[must_use]
    pub fn ttl_of(mut self, ttl: impl Fn(&T) -> Option<Duration> + Send + Sync + 'static) -> Self {
        self.ttl_of = Some(Arc::new(ttl));
        self
    }

    /// How many bytes this answer has. By default, what [`Share::complete`](crate::Share::complete) says.
    #[must_use]
    pub fn size_of(mut self, size: impl Fn(&T) -> usize + Send + Sync + 'static) -> Self {
        self.size_of = Some(Arc::new(size));
        self
    }

    pub(crate) fn check(&self) -> Result<(), InvalidReplay> {
        let stale = self.windows != Windows::default();
        match self.ttl {
            None if stale || self.negative.is_some() => Err(InvalidReplay::Nothing),
            Some(Duration::ZERO) => Err(InvalidReplay::Ttl),
            _ if self.negative == Some(Duration::ZERO) => Err(InvalidReplay::NegativeTtl),
            _ if self.max_entries == 0 => Err(InvalidReplay::Entries),
            _ if self.max_bytes == 0 => Err(InvalidReplay::Bytes),
            _ => Ok(()),
        }
    }

    /// Whether anything is ever kept.
    pub(crate) const fn keeps(&self) -> bool {
        self.ttl.is_some()
    }

    /// For how long `tape`, which is complete, is kept, and how many bytes it has; `None` if it is not.
    pub(crate) fn keep(&self, tape: &T, verdict: &Verdict, size: usize) -> Option<(Terms, usize)> {
        let limits = match verdict {
            Verdict::Keep(limits) => limits,
            Verdict::Share(limits) if self.cache_when.is_some() => limits,
            _ => return None,
        };
        let ttl = self.ttl?;
        if self.cache_when.as_ref().is_some_and(|keep| !keep(tape)) {
            return None;
        }
        let ttl = self.ttl_of.as_ref().and_then(|of| of(tape)).unwrap_or(ttl);
        let ttl = limits.fresh().map_or(ttl, |longest| ttl.min(longest));
        let size = self.size_of.as_ref().map_or(size, |of| of(tape));
        (!ttl.is_zero()).then_some((Terms { ttl, stale: limits.stale }, size))
    }

    /// For how long an error is kept, if it is.
    pub(crate) fn keep_error(&self) -> Option<Terms> {
        self.negative.map(|ttl| Terms { ttl, stale: false })
    }
}

impl<T> fmt::Debug for Replay<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replay")
            .field("ttl", &self.ttl)
            .field("stale_while_revalidate", &self.windows.revalidate)
            .field("stale_if_error", &self.windows.if_error)
            .field("negative_ttl", &self.negative)
            .field("max_entries", &self.max_entries)
            .field("max_bytes", &self.max_bytes)
            .finish_non_exhaustive()
    }
}

/// Why a [`Replay`] could never work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InvalidReplay {
    /// Answers are fresh for no time: [`Replay::none`] says that nothing is kept.
    Ttl,
    /// Errors are kept for no time.
    NegativeTtl,
    /// Nothing is kept, and yet errors, or stale answers, are to be served.
    Nothing,
    /// There is room for no answer.
    Entries,
    /// There is room for no byte.
    Bytes,
}

impl fmt::Display for InvalidReplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ttl => "answers that are fresh for no time cannot be served again; Replay::none keeps none",
            Self::NegativeTtl => {
                "errors that are kept for no time cannot be served again; leave negative_ttl out"
            }
            Self::Nothing => {
                "where no answer is kept, none can be stale and no error served again; give a ttl"
            }
            Self::Entries => "max_entries must be at least 1",
            Self::Bytes => "max_bytes must be at least 1",
        })
    }
}

impl Error for InvalidReplay {}
