//! What limiters count.

use std::time::Duration;

/// What a limiter has done, and what it remembers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls that passed, after a wait or without one.
    pub admitted: u64,
    /// Calls refused, those that waited in vain included.
    pub refused: u64,
    /// Calls that waited in vain.
    pub timed_out: u64,
    /// Calls that wait now.
    pub queued: usize,
    /// Keys that are not full now; without keys 1 or 0.
    pub keys: usize,
    /// Calls for which the store failed or did not answer in time, whatever became of them.
    pub store_failures: u64,
}

/// What is left for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KeyStats {
    /// Permits that are there now; below 0 what is owed.
    pub available: i64,
    /// Permits that are there now.
    pub remaining: u64,
    /// The most that can be there.
    pub capacity: u64,
    /// When the key is full again if nothing comes any more.
    pub reset_after: Duration,
    /// Calls that wait now.
    pub queued: usize,
    /// Calls that passed since the key was last full and forgotten; without keys all of them.
    pub admitted: u64,
    /// Calls refused since then, those that waited in vain included.
    pub refused: u64,
    /// Calls that waited in vain since then.
    pub timed_out: u64,
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Count {
    Admitted,
    Refused,
    TimedOut,
}

impl Count {
    pub(crate) const fn of<T, E>(taken: &Result<T, E>) -> Self {
        if taken.is_ok() { Self::Admitted } else { Self::Refused }
    }
}

/// How often, in the order of [`Count`].
pub(crate) type Counts = [u64; 3];
