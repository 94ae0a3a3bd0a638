//! The words that bartizan's tower layers share.
//!
//! A layer crate and its user meet here: one error for every refusal, one way to judge a result, one way to say how
//! long a call lasts, and one layer that turns errors into responses. Layers depend on this crate and never on each
//! other.
//!
//! # Example
//!
//! An axum-shaped service whose refusals become RFC 9457 problem documents:
//!
//! ```
//! # #[cfg(feature = "http")] {
//! use std::time::Duration;
//! use bartizan_core::{BoxError, Rejected, RejectionKind, RejectionLayer, RetryAfter};
//! use http::{Request, Response, StatusCode, header::RETRY_AFTER};
//! use http_body_util::Empty;
//! use tower::{Layer, Service, ServiceExt, service_fn};
//!
//! # tokio_test::block_on(async {
//! let inner = service_fn(|_: Request<()>| async {
//!     let wait = RetryAfter::After(Duration::from_millis(300));
//!     let refusal = Rejected::new(RejectionKind::RateLimited, "rate-limit").with_retry_after(wait);
//!     Err::<Response<Empty<&'static [u8]>>, BoxError>(refusal.into())
//! });
//! let mut service = RejectionLayer::problem_json().layer(inner);
//!
//! let response = service.ready().await?.call(Request::new(())).await?;
//! assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
//! assert_eq!(response.headers()[RETRY_AFTER], "1");
//! # Ok::<(), std::convert::Infallible>(())
//! # }).unwrap();
//! # }
//! ```
//!
//! # Features
//!
//! All are off by default; a feature adds items and changes nothing.
//!
//! - `http`: [`RejectionLayer`], [`UntilBodyEnd`], [`failure_status`], [`server_errors`] and the [`headers`] that
//!   carry rate limits.
//! - `sse`: the [`sse`] parser.
//! - `tonic`: refusals as gRPC statuses ([`grpc::status`]).
//!
//! # Cost
//!
//! Nothing here locks, spawns or reads a clock. [`UntilResponse`] compiles to nothing, [`UntilBodyEnd`] adds one
//! `Option` to the body. A [`Rejected`] allocates once, when it becomes a [`BoxError`].

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

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

pub use classify::{Class, Classify, Errors, FailureIf, errors, failure_if};
pub use extent::{Ending, Extent, Guard, UntilResponse};
pub use rejected::{Rejected, RejectionKind, RetryAfter};

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
