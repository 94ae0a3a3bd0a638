#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod aloft;
mod dedup;
mod entry;
mod error;
mod execution;
mod flight;
mod future;
mod identity;
mod kept;
mod layer;
mod lifetime;
mod relay;
mod replay;
mod service;
mod share;
mod sync;
mod table;

#[cfg(feature = "http")]
mod http;

pub use dedup::{Dedup, Stats};
pub use error::SharedError;
pub use future::ResponseFuture;
#[cfg(feature = "http")]
pub use http::{Frames, Key, KeyBuilder, Playback, Recording, RequestKey, Rest};
pub use identity::{Fingerprint, Identity};
pub use layer::DedupLayer;
pub use replay::{InvalidReplay, Replay};
pub use service::Deduplicate;
pub use share::{Limits, Served, Share, Ticket, Verdict, Whole};

/// The layer's name in refusals.
const NAME: &str = "dedup";
