//! Whatever clients send and upstreams answer, the gateway says what was wrong, and stays up.

mod breakers;
mod clients;
mod fallbacks;
#[path = "../gateway_under_test/mod.rs"]
mod gateway_under_test;
mod limits;
mod upstreams;
mod wire;
