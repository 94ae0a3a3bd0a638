#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

/// `Debug` for what holds a user's functions: its name.
macro_rules! opaque {
    ($($name:ident<$($life:lifetime)? $($p:ident $(: ?$b:ident)?),*>,)*) => {
        $(impl<$($life,)? $($p $(: ?$b)?),*> std::fmt::Debug for $name<$($life,)? $($p),*> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(stringify!($name))
            }
        })*
    };
}

mod account;
mod after;
mod backpressure;
mod cells;
mod counters;
mod error;
mod future;
mod gcra;
#[cfg(feature = "http")]
mod http;
mod key;
mod keyed;
mod layer;
mod limit;
mod limiter;
mod one;
mod part;
mod policy;
mod queue;
mod queued;
mod quota;
mod rule;
mod rules;
mod service;
mod stake;
mod stats;
mod store;
mod stored;
mod sync;
mod table;
mod ticket;
mod window;

pub use after::{After, Hold, Settle, Spent};
pub use backpressure::Backpressure;
pub use error::Exceeded;
pub use future::ResponseFuture;
#[cfg(feature = "http")]
pub use http::{Told, exhausted};
pub use key::{By, ByRef, CostOf, Costs, Each, KeyOf, Unkeyed};
pub use layer::{Queue, RateLimitLayer, Reject};
pub use limit::Limit;
pub use limiter::RateLimiter;
pub use queued::QueuedFuture;
pub use quota::{InvalidQuota, Quota};
pub use rule::Rule;
pub use rules::{All, Attach, Rules, RulesFor, Together};
pub use service::RateLimit;
pub use stats::{KeyStats, Stats};
pub use store::{Ask, Measure, OnStoreError, Store, StoreError, StoredKey, Verdict};
pub use stored::{Stored, StoredFuture};
pub use window::Window;

/// The layer's name in refusals.
const NAME: &str = "rate-limit";
