#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod account;
mod error;
mod future;
mod gcra;
mod keyed;
mod layer;
mod limit;
mod limiter;
mod one;
mod policy;
mod queue;
mod queued;
mod quota;
mod rule;
mod service;
mod table;
mod ticket;
mod window;

pub use error::Exceeded;
pub use future::ResponseFuture;
pub use layer::{Queue, RateLimitLayer, Reject};
pub use limit::Limit;
pub use limiter::{KeyStats, RateLimiter, Stats};
pub use queued::QueuedFuture;
pub use quota::{InvalidQuota, Quota};
pub use rule::{All, By, ByRef, CostOf, Costs, Each, KeyOf, Rule, Rules, Together, Unkeyed};
pub use service::RateLimit;
pub use window::Window;

/// The layer's name in refusals.
const NAME: &str = "rate-limit";
