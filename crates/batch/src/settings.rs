use std::{fmt, time::Duration};

/// When a batch goes, and how many may wait and run.
///
/// Nothing is checked before [`Batch::new`](crate::Batch::new), which panics at what can never work, or
/// [`Batch::try_new`](crate::Batch::try_new), which says so.
///
/// ```
/// use std::time::Duration;
/// use bartizan_batch::{Batch, Settings};
///
/// let settings = Settings::max_size(100)
///     .linger(Duration::from_millis(5))
///     .max_concurrent(4)
///     .max_pending(10_000)
///     .deadline(Duration::from_secs(30));
/// let batch = Batch::new(settings);
///
/// let error = Batch::try_new(Settings::max_size(0)).unwrap_err();
/// assert_eq!(error.to_string(), "a batch of at most 0 items never goes");
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub(crate) max_size: usize,
    pub(crate) linger: Duration,
    pub(crate) max_concurrent: usize,
    pub(crate) max_pending: usize,
    pub(crate) deadline: Option<Duration>,
}

impl Settings {
    /// Batches of at most so many items, from 1 on. One that is full goes at once.
    #[must_use]
    pub const fn max_size(items: usize) -> Self {
        let some = items.saturating_mul(16);
        Self {
            max_size: items,
            linger: Duration::ZERO,
            max_concurrent: 64,
            max_pending: if some < 1024 { 1024 } else { some },
            deadline: None,
        }
    }

    /// How long the first item of a batch waits for others at most, to the resolution of tokio's timer, which is a
    /// millisecond. Later items do not move that time.
    ///
    /// The default is zero: then a batch goes as soon as there is room for it, with whatever has come by then. With few
    /// batches at once ([`max_concurrent`](Self::max_concurrent)) they become the larger the busier the service below is,
    /// and nobody waits for the sake of waiting.
    #[must_use]
    pub const fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// How many batches of a worker may be under way at once, from 1 on; 64 by default. Meanwhile items gather, and what
    /// is due goes when one of them is done.
    #[must_use]
    pub const fn max_concurrent(mut self, batches: usize) -> Self {
        self.max_concurrent = batches;
        self
    }

    /// How many items may wait for their batch to go, from 1 on; by default 16 batches' worth and at least 1,024. When so
    /// many do, services are not ready. A service that is ready has a place already. With fewer places than
    /// [`max_size`](Self::max_size) a batch never fills, and each waits for its linger to pass.
    #[must_use]
    pub const fn max_pending(mut self, items: usize) -> Self {
        self.max_pending = items;
        self
    }

    /// How long a batch may be under way, more than zero; for ever by default. Then the service's future is dropped and
    /// the members of the batch are refused.
    ///
    /// Without a deadline, a batch that is never answered keeps its place among those that may be under way for ever.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    pub(crate) const fn check(&self) -> Result<(), InvalidSettings> {
        if self.max_size == 0 {
            return Err(InvalidSettings::MaxSize);
        }
        if self.max_concurrent == 0 {
            return Err(InvalidSettings::MaxConcurrent);
        }
        if self.max_pending == 0 {
            return Err(InvalidSettings::MaxPending);
        }
        match self.deadline {
            Some(Duration::ZERO) => Err(InvalidSettings::Deadline),
            _ => Ok(()),
        }
    }
}

/// Settings with which no batch could ever go, or be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// Batches of no items.
    MaxSize,
    /// A weight of zero.
    MaxWeight,
    /// No batches at once.
    MaxConcurrent,
    /// No items that wait.
    MaxPending,
    /// No time for an answer.
    Deadline,
}

impl fmt::Display for InvalidSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MaxSize => "a batch of at most 0 items never goes",
            Self::MaxWeight => "a batch that may weigh nothing never gathers anything",
            Self::MaxConcurrent => "with 0 batches at once none ever goes",
            Self::MaxPending => "with 0 items waiting no batch ever gets one",
            Self::Deadline => "a batch that may take no time is never answered",
        })
    }
}

impl std::error::Error for InvalidSettings {}
