use std::{fmt, hash::Hash, sync::Arc};

use crate::{DedupLayer, Identity, InvalidReplay, Replay, Whole, table::Table};

/// What is asked for now, and what was answered lately.
///
/// Clones, and all layers made from any of them, share it. `K` is what calls are known by, `T` what is kept of a response,
/// and `X` says how a response is shared.
///
/// ```
/// use std::time::Duration;
/// use bartizan_dedup::{Dedup, Replay};
///
/// let dedup: Dedup<String, String> = Dedup::new(Replay::ttl(Duration::from_secs(60)));
/// let layer = dedup.layer(|request: &String| Some(request.clone()));
/// assert_eq!(dedup.stats().hit_rate(), None, "nobody has asked");
/// # let _ = layer;
/// ```
pub struct Dedup<K, T, X = Whole> {
    table: Arc<Table<K, T>>,
    share: X,
}

impl<K: Eq, T> Dedup<K, T> {
    /// For responses that are values, of which each caller gets a clone.
    ///
    /// # Panics
    ///
    /// If `replay` could never work: see [`InvalidReplay`].
    pub fn new(replay: Replay<T>) -> Self {
        Self::sharing(Whole, replay)
    }

    /// [`new`](Self::new), with values from a file.
    ///
    /// # Errors
    ///
    /// If `replay` could never work.
    pub fn try_new(replay: Replay<T>) -> Result<Self, InvalidReplay> {
        Self::try_sharing(Whole, replay)
    }
}

impl<K: Eq, T, X> Dedup<K, T, X> {
    /// For responses that are shared as `share` says.
    ///
    /// # Panics
    ///
    /// If `replay` could never work: see [`InvalidReplay`].
    pub fn sharing(share: X, replay: Replay<T>) -> Self {
        match Self::try_sharing(share, replay) {
            Ok(dedup) => dedup,
            Err(invalid) => panic!("{invalid}"),
        }
    }

    /// [`sharing`](Self::sharing), with values from a file.
    ///
    /// # Errors
    ///
    /// If `replay` could never work.
    pub fn try_sharing(share: X, replay: Replay<T>) -> Result<Self, InvalidReplay> {
        replay.check()?;
        Ok(Self { table: Arc::new(Table::new(replay)), share })
    }
}

impl<K, T, X> Dedup<K, T, X> {
    /// A layer in which calls are known by what `key` says: a key, or an [`Identity`]. A call for which it says `None` is
    /// made by itself.
    ///
    /// **The key says who may see whose answer.** Whatever the answer depends on belongs into it, and who asks: the tenant
    /// first of all. With feature `http`, `RequestKey` makes one of method, URI and body; who may see the answer is to be told
    /// to it, and on which headers it depends.
    ///
    /// `Hash`, `Eq` and `Clone` of keys run under a lock that is held shortly.
    pub fn layer<Req, I, F>(&self, key: F) -> DedupLayer<K, T, X, F>
    where
        X: Clone,
        F: Fn(&Req) -> Option<I>,
        I: Into<Identity<K>>,
    {
        DedupLayer::new(self.table.clone(), self.share.clone(), key)
    }
}

impl<K: Hash + Eq + Clone, T, X> Dedup<K, T, X> {
    /// Forgets the answer to `key`. A call that is under way still answers those who wait for it, but nobody joins it any
    /// more, and it is not kept.
    ///
    /// A refresh in the background goes on, for nobody: as long as it takes, or the old answer would have been served.
    pub fn invalidate(&self, key: &K) {
        self.table.invalidate(key);
    }

    /// [`invalidate`](Self::invalidate) for all keys.
    pub fn clear(&self) {
        self.table.clear();
    }

    /// What was counted so far, and what is there now. Looks at every kept answer, and drops those that serve no more.
    pub fn stats(&self) -> Stats {
        self.table.stats()
    }
}

impl<K, T, X: Clone> Clone for Dedup<K, T, X> {
    fn clone(&self) -> Self {
        Self { table: self.table.clone(), share: self.share.clone() }
    }
}

impl<K, T, X> fmt::Debug for Dedup<K, T, X> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dedup").field("replay", &self.table.replay).finish_non_exhaustive()
    }
}

/// What a [`Dedup`] counted, and what is there.
///
/// Every call is one of hits, misses, collapsed, bypassed and conflicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Calls that were answered with what was kept.
    pub hits: u64,
    /// Answers that were served though stale: such hits, and those to callers whose call had failed.
    pub stale: u64,
    /// Calls for which one was made below.
    pub misses: u64,
    /// Calls that were made for a new answer while the stale one was served.
    pub refreshes: u64,
    /// Calls that joined one which another caller had begun.
    pub collapsed: u64,
    /// Calls without a key, made by themselves.
    pub bypassed: u64,
    /// Calls that were refused because their key was known with another fingerprint.
    pub conflicts: u64,
    /// Calls under way now that can be joined, until all of their responses is there.
    pub in_flight: usize,
    /// Answers kept now.
    pub entries: usize,
    /// The bytes of all answers kept now.
    pub bytes: u64,
}

impl Stats {
    /// The share of calls with a key that were answered without a call of their own, from 0 to 1; `None` before the first
    /// one.
    pub fn hit_rate(&self) -> Option<f64> {
        let shared = self.hits + self.collapsed;
        let all = shared + self.misses;
        (all > 0).then(|| shared as f64 / all as f64)
    }
}
