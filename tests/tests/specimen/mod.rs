//! Two small layers that obey every law, and can be told to break one.
//!
//! Tower's own layers never refuse, keep next to no state and accept every configuration, so they cannot show that the
//! laws let a right layer pass. These can: [`desk`] refuses and passes readiness through, [`pacer`] waits and is ready at
//! once.

#![allow(dead_code, reason = "every test target that includes this module uses its part of it")]

pub(crate) mod desk;
pub(crate) mod pacer;
pub(crate) mod turnstile;

use std::sync::Arc;

use bartizan_tests::{Subject, subjects::subjects};

use self::{desk::Specimen, pacer::Pacing};

/// The registered layers and the two specimens, without a flaw.
pub(crate) fn all() -> Vec<Arc<dyn Subject>> {
    let mut all = subjects();
    all.push(Arc::new(Specimen(None)));
    all.push(Arc::new(Pacing(None)));
    all
}
