//! Whatever clients send and upstreams answer, the gateway says what was wrong, and stays up.

mod batches;
mod breakers;
mod clients;
mod dedup;
mod fallbacks;
#[path = "../gateway_under_test/mod.rs"]
mod gateway_under_test;
mod guards;
mod health;
mod limits;
mod upstreams;
mod wire;
