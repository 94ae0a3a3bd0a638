use std::{error::Error, fmt, net::IpAddr, sync::Arc, time::Duration};

use bartizan_core::BoxError;

use crate::{Exceeded, Quota, Window};

/// Where several machines count their limits together. [`RateLimitLayer::store`] asks one.
///
/// A store is a handle: its clones share their state.
///
/// [`RateLimitLayer::store`]: crate::RateLimitLayer::store
pub trait Store: Clone {
    /// What [`take`](Self::take) returns. Dropped before its end, it may have taken or not.
    type Take: Future<Output = Result<Verdict, BoxError>>;

    /// Takes all that is asked or nothing, so that nobody sees it halfway. The store's own clock counts.
    fn take(&self, asks: Arc<[Ask]>) -> Self::Take;

    /// What was taken for `ask` turned out to cost `actual`: what it cost more is owed, what it cost less is given back.
    ///
    /// It is called when a response has ended or a future is dropped, so it must not block: what has to be sent is sent
    /// by somebody else.
    fn settle(&self, ask: &Ask, actual: u64);
}

/// What a call asks of one limit.
#[derive(Clone, Debug)]
pub struct Ask {
    pub(crate) limit: Arc<Exceeded>,
    pub(crate) key: Box<str>,
    pub(crate) measure: Measure,
    pub(crate) cost: u64,
}

impl Ask {
    /// The name of the limit. Different limits have different names in a store, or they are one.
    pub fn limit(&self) -> &str {
        self.limit.limit()
    }

    /// The key; empty for a limit without keys.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What the key is limited to.
    pub const fn measure(&self) -> Measure {
        self.measure
    }

    /// How many permits the call costs.
    pub const fn cost(&self) -> u64 {
        self.cost
    }
}

/// What a limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Permits that come back evenly.
    Quota(Quota),
    /// Permits of a window of time.
    Window(Window),
}

/// What a store says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All was taken.
    Admitted,
    /// Nothing was taken.
    Denied {
        /// The number of the ask that was denied; of several the one that has to be waited for longest.
        ask: usize,
        /// When it would be admitted. `None` if it costs more than there can ever be.
        retry_after: Option<Duration>,
    },
}

/// What to do with a call when the store fails or does not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreError {
    /// Refuse it: nothing passes that was not counted.
    Deny,
    /// Let it pass uncounted.
    Allow,
    /// Count it in this process: each machine has the whole limit for itself meanwhile.
    Local,
}

/// Why a store did not answer: the [`source`](Error::source) of a refusal for it.
#[derive(Debug)]
pub struct StoreError(pub(crate) Cause);

#[derive(Debug)]
pub(crate) enum Cause {
    Failed(BoxError),
    Late(Duration),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Failed(_) => f.write_str("the store of the rate limits failed"),
            Cause::Late(deadline) => write!(f, "the store of the rate limits did not answer in {deadline:?}"),
        }
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Cause::Failed(error) => Some(&**error),
            Cause::Late(_) => None,
        }
    }
}

/// A key that can be told to a store: different keys have different texts.
pub trait StoredKey {
    /// The key's text.
    fn text(&self) -> Box<str>;
}

impl StoredKey for () {
    fn text(&self) -> Box<str> {
        Box::default()
    }
}

macro_rules! stored_keys {
    ($($key:ty),*) => {
        $(impl StoredKey for $key {
            fn text(&self) -> Box<str> {
                self.to_string().into()
            }
        })*
    };
}
stored_keys!(String, Box<str>, Arc<str>, &'static str, u32, u64, u128, IpAddr);

/// A limiter's way to its store.
pub(crate) struct Link<K> {
    pub(crate) text: fn(&K) -> Box<str>,
    pub(crate) sink: Sink,
}

/// Where what is settled goes.
#[doc(hidden)]
#[derive(Clone)]
pub struct Sink(pub(crate) Arc<SettleFn>);

type SettleFn = dyn Fn(&Ask, u64) + Send + Sync;

opaque!(Link<K>,);

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}
