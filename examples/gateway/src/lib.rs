//! An LLM gateway made of bartizan's layers.
//!
//! The binary is thin: it reads a [`config`], builds the [`app`] from it, and hands that to the [`server`].

#![forbid(unsafe_code)]

mod access;
pub mod app;
mod circuit_breakers;
pub mod config;
mod fallbacks;
mod rate_limits;
pub mod server;
