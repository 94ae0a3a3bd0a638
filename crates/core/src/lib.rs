#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod budget;
mod classify;
mod extent;
mod rejected;

#[cfg(feature = "http")]
mod body;
#[cfg(feature = "tonic")]
pub mod grpc;
#[cfg(feature = "http")]
pub mod headers;
#[cfg(feature = "http")]
mod rejection;
#[cfg(feature = "sse")]
pub mod sse;
#[cfg(feature = "http")]
mod status;

pub use budget::Budget;
pub use classify::{Class, Classify, Errors, FailureIf, errors, failure_if};
pub use extent::{Ending, Extent, Guard, UntilResponse};
pub use rejected::{Rejected, RejectionKind, RetryAfter, chain};

#[cfg(feature = "http")]
pub use body::{GuardedBody, UntilBodyEnd};
#[cfg(feature = "http")]
pub use rejection::{Rejection, RejectionLayer, ResponseFuture, openai_json, problem_json};
#[cfg(feature = "http")]
pub use status::{FailureStatus, ServerErrors, failure_status, server_errors};

/// The error of every layer: boxed, so that a stack's error type does not grow with its height.
///
/// Boxing an error that is boxed already is the identity, so nothing nests.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
