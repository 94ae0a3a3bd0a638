//! The table of the layers under examination.

use std::sync::Arc;

use crate::Subject;

mod batch;
mod circuit_breaker;
mod dedup;
mod fallback;
mod health;
mod rate_limit;
mod tower;
mod validate;

/// Every registered layer. A layer is one line here and a file next to `subjects/tower.rs`.
pub fn subjects() -> Vec<Arc<dyn Subject>> {
    vec![
        Arc::new(tower::ConcurrencyLimit),
        Arc::new(tower::Timeout),
        Arc::new(rate_limit::Rejecting),
        Arc::new(rate_limit::Queueing),
        Arc::new(rate_limit::Waiting),
        Arc::new(rate_limit::Storing),
        Arc::new(circuit_breaker::Refusing),
        Arc::new(circuit_breaker::Keyed),
        Arc::new(circuit_breaker::Waiting),
        Arc::new(batch::Batching),
        Arc::new(dedup::Keeping),
        Arc::new(dedup::Joining),
        Arc::new(fallback::Targets),
        Arc::new(fallback::Listed),
        Arc::new(fallback::Committing),
        Arc::new(health::Watching),
        Arc::new(health::Shedding),
        Arc::new(validate::Heads),
        Arc::new(validate::Guarding),
        Arc::new(validate::Asking),
        Arc::new(validate::Gathering),
    ]
}
