#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod class;
#[cfg(feature = "client")]
mod client;
mod embeddings;
mod error;
mod error_events;
mod events;
mod facts;
mod future;
mod intake;
mod json;
mod limits;
mod media;
#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "retry")]
mod retry;
mod service;
mod usage;

pub use body::ResponseBody;
pub use class::Class;
#[cfg(feature = "client")]
pub use client::{DrivenBody, Exchange, HttpTransport, OutOfDescriptors};
pub use embeddings::{Embedding, EmbeddingBatches, EmbeddingBatchesFuture};
pub use error::{Error, openai_error, redact};
pub use error_events::{ErrorEvents, ErrorEventsBody, ErrorEventsFuture, ErrorEventsLayer};
pub use facts::{Facts, Operation, Tenant};
pub use future::ResponseFuture;
pub use intake::{Intake, IntakeFuture, IntakeLayer};
pub use limits::{Limits, StillSending};
#[cfg(feature = "retry")]
pub use retry::RetryPolicy;
pub use service::Provider;
pub use usage::{Usage, UsageReport};
