//! An LLM gateway made of bartizan's layers.
//!
//! The binary is thin: it reads a [`config`], builds the [`app`] from it, and hands that to the [`server`].

#![forbid(unsafe_code)]

mod access;
pub mod app;
mod ask;
mod batches;
mod calls;
mod circuit_breakers;
pub mod config;
mod dedup;
mod fallbacks;
mod health;
mod metrics;
mod rate_limits;
pub mod server;
mod status;
mod validation;
