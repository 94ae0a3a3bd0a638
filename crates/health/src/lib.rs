#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod active;
mod call;
mod changes;
mod clock;
mod component;
mod eject;
mod fault;
mod future;
mod health;
mod histogram;
mod layer;
mod place;
mod prober;
mod report;
mod service;
mod settings;
mod state;
mod stats;
mod sync;
mod until;
mod watch;
mod watched;
mod window;

#[cfg(feature = "http")]
mod body;
#[cfg(feature = "tonic")]
mod grpc;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http")]
mod json;
#[cfg(feature = "http")]
mod statuses;

pub use call::Answered;
pub use component::Component;
pub use fault::{Causes, Explain, Fault, LastError, causes};
pub use future::ResponseFuture;
pub use health::{Eligible, Health, Summary};
pub use histogram::{Counts, Histogram};
pub use layer::HealthLayer;
pub use prober::{Probe, Probed, Prober};
pub use report::{Figure, Report};
pub use service::HealthService;
pub use settings::{Active, Ejection, InvalidSettings, Passive, Settings};
pub use state::State;
pub use stats::{Latency, Stats, Totals};
pub use until::Until;
pub use watch::{Standing, Watch};

#[cfg(feature = "http")]
pub use body::FirstFrame;
#[cfg(feature = "tonic")]
pub use grpc::{Changes, Grpc};
#[cfg(feature = "http")]
pub use http::Endpoints;
#[cfg(feature = "http")]
pub use statuses::{Statuses, statuses};

/// The layer's name in refusals.
const NAME: &str = "health";
