//! The keys of what sends embedding requests together.

use std::{ops::RangeInclusive, time::Duration};

use super::{
    Config, EmbeddingBatches,
    key::{Key, Kind},
    load::{Given, Loader},
    section::Section,
};

const SIZE: RangeInclusive<u64> = 2..=2_048;
const LINGER: RangeInclusive<u64> = 0..=10_000;
const CONCURRENT: RangeInclusive<u64> = 1..=10_000;
const INPUTS: RangeInclusive<u64> = 1..=1_000_000;

pub(super) const BATCHES: &[Key<EmbeddingBatches>] = &[
    Key {
        name: "enabled",
        kind: Kind::Flag(|batches, flag| batches.enabled = flag),
        default: "false",
        doc: "Whether embedding requests are sent together.",
    },
    Key {
        name: "max_size",
        kind: Kind::Integer(SIZE, |batches, n| batches.max_size = size(n)),
        default: "32",
        doc: "So many requests in one call at most. A batch that is full goes at once.",
    },
    Key {
        name: "linger_ms",
        kind: Kind::Integer(LINGER, |batches, ms| batches.linger = Duration::from_millis(ms)),
        default: "5",
        doc: "How long the first request of a batch waits for others at most. With 0 batches form while others are under\n\
              way, and nobody waits for the sake of waiting.",
    },
    Key {
        name: "max_concurrent",
        kind: Kind::Integer(CONCURRENT, |batches, n| batches.max_concurrent = size(n)),
        default: "8",
        doc: "How many batches of a model may be under way at once, from each worker. Meanwhile others grow.",
    },
    Key {
        name: "max_inputs",
        kind: Kind::Integer(INPUTS, |batches, n| batches.max_inputs = n),
        default: "2_048",
        doc: "How many texts, or lists of tokens, one call may have: a request can have many. OpenAI takes 2,048. A request\n\
              with more goes alone.",
    },
    Key {
        name: "across_tenants",
        kind: Kind::Flag(|batches, flag| batches.across_tenants = flag),
        default: "false",
        doc: "Whether requests of different tenants may be in one call to the upstream, which then cannot tell them apart.",
    },
];

/// Of a number that its key's range keeps small enough.
fn size(n: u64) -> usize {
    usize::try_from(n).expect("the range of the key is within the type's")
}

impl Loader<'_> {
    /// What has no effect.
    pub(super) fn check_batches(&mut self, config: &Config, given: &Given) {
        if BATCHES.iter().any(|key| given.is_wrong(key.name)) {
            return;
        }
        let (batches, usual) = (&config.embedding_batches, EmbeddingBatches::default());
        let section = Section::EmbeddingBatches;
        for (key, changed) in [
            ("max_size", batches.max_size != usual.max_size),
            ("linger_ms", batches.linger != usual.linger),
            ("max_concurrent", batches.max_concurrent != usual.max_concurrent),
            ("max_inputs", batches.max_inputs != usual.max_inputs),
            ("across_tenants", batches.across_tenants != usual.across_tenants),
        ] {
            if let (Some(origin), true, false) = (given.origin(key), changed, batches.enabled) {
                let message = format!(
                    "{key:?} in {section} has no effect without enabled = true; set that, or remove this"
                );
                self.problem(origin.clone(), message);
            }
        }
        let (size, inputs) = (batches.max_size, batches.max_inputs);
        // Only what was given is wrong, not what it leaves as it is.
        let origin = given.origin("max_size").or_else(|| given.origin("max_inputs"));
        if let (Some(origin), true) = (origin, batches.enabled && inputs < size as u64) {
            let message = format!(
                "\"max_size\" in {section} is {size}, which is never reached: \"max_inputs\" is {inputs}, and each request \
                 has one at least; lower the one or raise the other"
            );
            self.problem(origin.clone(), message);
        }
    }
}
