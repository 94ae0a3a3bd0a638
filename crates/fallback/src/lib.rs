#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod answer;
mod aside;
mod choice;
mod clone;
mod error;
mod fallback;
mod form;
mod future;
mod lanes;
mod layer;
mod service;
mod settings;
mod targets;
mod way;

#[cfg(feature = "http")]
mod commit;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "sse")]
mod sse;

pub use answer::{Answer, Transform};
pub use clone::{CloneRequest, CloneWith, Cloned};
pub use error::{Attempt, Exhausted, FailedResult, Panicked, Skipped, Why};
pub use fallback::{Fallback, Stats, Target, TargetStats};
pub use form::{Form, Same, Unite};
pub use future::ResponseFuture;
pub use layer::{Append, FallbackLayer, Somebody};
pub use service::FallbackService;
pub use settings::Settings;
pub use targets::{EitherTrial, Listed, Nobody, One, Or, Targets, Trial, TrialOf};

#[cfg(feature = "http")]
pub use commit::{
    Commit, CommitFuture, CommitLayer, CommitService, CommittedBody, FirstChunk, NotBegun, Step, Watch,
};
#[cfg(feature = "http")]
pub use http::{FailedResponse, Http, HttpFailures, ServedBy, http_failures};
#[cfg(feature = "sse")]
pub use sse::{EventWatch, FirstEvent, LlmEvents, LlmWatch};

/// The layer's name in refusals.
const NAME: &str = "fallback";
