#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod breaker;
mod circuit;
mod clock;
mod future;
mod keyed;
mod layer;
mod machine;
mod mode;
mod period;
mod permit;
mod select;
mod service;
mod settings;
mod started;
mod state;
mod tally;
mod wait;
mod window;

pub use breaker::{CircuitBreaker, Stats};
pub use future::ResponseFuture;
pub use keyed::{CircuitBreakers, KeyedStats};
pub use layer::CircuitBreakerLayer;
pub use machine::Transition;
pub use mode::{Backpressure, Mode, Refuse};
pub use permit::{Answered, Permit};
pub use select::{By, ByRef, One, Select};
pub use service::Break;
pub use settings::{InvalidSettings, Settings, Window};
pub use state::State;

/// The layer's name in refusals.
const NAME: &str = "circuit-breaker";
