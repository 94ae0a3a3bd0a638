mod bodies;
mod checked;
#[cfg(feature = "json")]
mod events;
mod message;
mod pattern;
mod pii;
mod scan;
mod terms;
mod window;

pub use bodies::{Bodies, Checking};
pub use checked::Checked;
#[cfg(feature = "json")]
pub(crate) use message::uncheckable;
pub use message::{Message, content_type, max_bytes, text, well_formed};
pub use pattern::{InvalidPattern, Pattern};
pub use pii::Pii;
#[cfg(feature = "json")]
pub(crate) use scan::scan;
pub use terms::Terms;
pub use window::{Window, tail};
