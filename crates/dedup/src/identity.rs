/// Under what a call is known: calls that are known under the same key are the same call.
///
/// A key function may return the key alone; this adds what else it has to say.
///
/// ```
/// use bartizan_dedup::{Dedup, Identity, Replay};
///
/// struct Order { idempotency_key: String, payload: [u8; 32] }
///
/// let dedup: Dedup<String, String> = Dedup::new(Replay::none());
/// let layer = dedup.layer(|order: &Order| {
///     Some(Identity::new(order.idempotency_key.clone()).fingerprint(order.payload))
/// });
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<K> {
    pub(crate) key: K,
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) no_cache: bool,
}

/// A digest of a payload: 256 bits, of a function for which nobody finds two payloads with the same one.
pub type Fingerprint = [u8; 32];

impl<K> Identity<K> {
    /// Known under `key`, and nothing more to say.
    pub const fn new(key: K) -> Self {
        Self { key, fingerprint: None, no_cache: false }
    }

    /// The key, for [`Dedup::invalidate`](crate::Dedup::invalidate).
    pub const fn key(&self) -> &K {
        &self.key
    }

    /// The payload that comes with the key. A call with the same key and another fingerprint, or none, is refused as a
    /// conflict as long as the first one is under way or its answer is served. Nor does an answer stand in for an error of a
    /// call with another fingerprint.
    #[must_use]
    pub fn fingerprint(mut self, fingerprint: Fingerprint) -> Self {
        self.fingerprint = Some(fingerprint);
        self
    }

    /// Not to be answered with what was kept, not even in place of an error. It may still join a call that is under way, and
    /// its answer is kept.
    #[must_use]
    pub fn no_cache(mut self) -> Self {
        self.no_cache = true;
        self
    }
}

impl<K> From<K> for Identity<K> {
    fn from(key: K) -> Self {
        Self::new(key)
    }
}
