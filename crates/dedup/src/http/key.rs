use std::{
    fmt,
    hash::{Hash, Hasher},
};

/// A digest of everything that tells one request from another, 256 bits of BLAKE3.
///
/// Its parts go in with their lengths, so no two lists of parts have the same one, and with the scope first: requests of
/// different scopes never have.
///
/// ```
/// use bartizan_dedup::Key;
///
/// let key = |scope, parts: &[&str]| {
///     parts.iter().fold(Key::scope(scope), |key, part| key.part(part)).finish()
/// };
/// assert_eq!(key("acme", &["ab", "c"]), key("acme", &["ab", "c"]));
/// assert_ne!(key("acme", &["ab", "c"]), key("acme", &["a", "bc"]));
/// assert_ne!(key("acme", &["ab", "c"]), key("umbrella", &["ab", "c"]));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key([u8; 32]);

impl Key {
    /// Begins the key of a request of this scope: of whoever may see the answer, a tenant as a rule.
    pub fn scope(scope: impl AsRef<[u8]>) -> KeyBuilder {
        KeyBuilder(blake3::Hasher::new_derive_key("bartizan-dedup: the key of a request")).part(scope)
    }

    /// The digest.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Hash for Key {
    /// A digest's first bytes are as good as all.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let (first, _) = self.0.split_first_chunk().expect("it is longer");
        state.write_u128(u128::from_ne_bytes(*first));
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(")?;
        self.0[..8].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("..)")
    }
}

/// A [`Key`] under way. Each part counts, and so does their order.
#[derive(Clone, Debug)]
pub struct KeyBuilder(blake3::Hasher);

/// A part from so many bytes on goes in as its digest. Its length tells.
const LONG: usize = 1024;

impl KeyBuilder {
    /// Adds a part.
    #[must_use]
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update(&(part.len() as u64).to_le_bytes());
        if part.len() < LONG {
            self.0.update(part);
        } else {
            // On its own it lies on the boundaries on which BLAKE3 is fast.
            self.0.update(blake3::hash(part).as_bytes());
        }
        self
    }

    /// The key of all parts.
    pub fn finish(self) -> Key {
        Key(self.0.finalize().into())
    }
}
