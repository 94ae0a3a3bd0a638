//! The keys of what is asked once for many.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Config, Dedup,
    key::{Key, Kind},
    load::{Given, Loader},
    section::Section,
};

/// A month of 30 days.
const MILLISECONDS: RangeInclusive<u64> = 0..=2_592_000_000;

pub(super) const DEDUP: &[Key<Dedup>] = &[
    Key {
        name: "enabled",
        kind: Kind::Flag(|dedup, flag| dedup.enabled = flag),
        default: "false",
        doc: "Whether it is done for models, but for those that say so themselves.",
    },
    Key {
        name: "ttl_ms",
        kind: Kind::Integer(MILLISECONDS, |dedup, ms| dedup.ttl = Duration::from_millis(ms)),
        default: "0",
        doc: "How long a complete answer is given again, from when all of it was there. With 0 none is kept: only those who\n\
              ask while the answer runs share it.",
    },
    Key {
        name: "max_entries",
        kind: Kind::Integer(1..=10_000_000, |dedup, n| dedup.max_entries = size(n)),
        default: "10_000",
        doc: "How many answers are kept at most. Beyond, those that are asked for least are dropped.",
    },
    Key {
        name: "max_bytes",
        kind: Kind::Integer(1..=1 << 40, |dedup, bytes| dedup.max_bytes = bytes),
        default: "67_108_864",
        doc: "How many bytes all kept answers together may have. One of more than about a sixteenth of that is not kept.",
    },
    Key {
        name: "stale_while_revalidate_ms",
        kind: Kind::Integer(MILLISECONDS, |dedup, ms| {
            dedup.stale_while_revalidate = Duration::from_millis(ms);
        }),
        default: "0",
        doc: "For so long after that an answer is given as it is, while a new one is fetched for those who come later.",
    },
    Key {
        name: "stale_if_error_ms",
        kind: Kind::Integer(MILLISECONDS, |dedup, ms| dedup.stale_if_error = Duration::from_millis(ms)),
        default: "0",
        doc: "For so long after that an answer is given if the upstream cannot be asked, fails, has too much to do or times out.",
    },
];

/// Of a number that its key's range keeps small enough.
fn size(n: u64) -> usize {
    n.try_into().unwrap_or(usize::MAX)
}

impl Loader<'_> {
    /// What has no effect.
    pub(super) fn check_dedup(&mut self, config: &Config, given: &Given) {
        if DEDUP.iter().any(|key| given.is_wrong(key.name)) {
            return;
        }
        let (dedup, usual) = (&config.dedup, Dedup::default());
        let off = !dedup.enabled && !config.models.iter().any(|model| model.dedup);
        let nothing_kept = dedup.ttl.is_zero();
        for (key, is_set) in [
            ("ttl_ms", dedup.ttl != usual.ttl),
            ("max_entries", dedup.max_entries != usual.max_entries),
            ("max_bytes", dedup.max_bytes != usual.max_bytes),
            ("stale_while_revalidate_ms", dedup.stale_while_revalidate != usual.stale_while_revalidate),
            ("stale_if_error_ms", dedup.stale_if_error != usual.stale_if_error),
        ] {
            let without = match key {
                _ if !is_set => continue,
                _ if off => "enabled = true, or dedup = true in a [[model]]",
                _ if nothing_kept => "ttl_ms",
                _ => continue,
            };
            // Only what was given is wrong, not what it leaves as it is.
            if let Some(origin) = given.origin(key) {
                let message = format!(
                    "{key:?} in {} has no effect without {without}; set that, or remove this",
                    Section::Dedup
                );
                self.problem(origin.clone(), message);
            }
        }
    }
}
