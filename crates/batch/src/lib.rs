#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod aboard;
mod batch;
mod clock;
mod control;
mod error;
mod flight;
mod future;
mod layer;
mod queue;
mod seats;
mod service;
mod settings;
mod shared;
mod stats;
mod sync;
mod worker;

#[cfg(all(test, loom))]
mod models;

pub use batch::Batch;
pub use error::{BatchFailed, WrongCount};
pub use future::ResponseFuture;
pub use layer::BatchLayer;
pub use service::Batched;
pub use settings::{InvalidSettings, Settings};
pub use stats::Stats;
pub use worker::Worker;

/// The layer's name in refusals.
const NAME: &str = "batch";
