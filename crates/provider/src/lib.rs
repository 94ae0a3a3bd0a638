//! A thin service for LLM providers.
#![forbid(unsafe_code)]
