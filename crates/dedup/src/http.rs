//! Responses whose bodies are shared while they run, and what HTTP says about keeping them.

mod cache_control;
mod canonical;
mod frames;
mod grpc;
mod key;
mod playback;
mod reel;
mod request;

pub use frames::{Frames, Recording};
pub use key::{Key, KeyBuilder};
pub use playback::{Playback, Rest};
pub use request::RequestKey;
