//! The atomics, which loom replaces where it looks at every interleaving.

#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};

#[cfg(all(loom, test))]
pub(crate) use loom::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
    fence,
};
