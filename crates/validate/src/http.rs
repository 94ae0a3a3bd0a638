mod bodies;
mod checked;
mod checking;
#[cfg(feature = "json")]
mod events;
mod gather;
mod header;
mod message;
mod pattern;
mod pii;
mod scan;
mod terms;
mod window;

pub use bodies::Bodies;
pub use checked::Checked;
pub use checking::Checking;
pub use gather::{Gather, GatherLayer, Gathered, Gathering};
pub(crate) use header::set as set_header;
#[cfg(feature = "json")]
pub(crate) use message::uncheckable;
pub use message::{Message, content_type, max_bytes, text, well_formed};
pub use pattern::{InvalidPattern, Pattern};
pub use pii::Pii;
#[cfg(feature = "json")]
pub(crate) use scan::scan;
#[cfg(all(test, feature = "json"))]
pub(crate) use scan::tests::value;
pub use terms::Terms;
pub use window::{Window, tail};

#[cfg(not(feature = "json"))]
mod unexpected {
    //! Without feature `json` no form of answers is known, and so none expected.

    use std::sync::Arc;

    use crate::{Found, Severity, answers::Expected};

    impl Expected {
        pub(crate) fn name(&self) -> &Arc<str> {
            match *self {}
        }

        pub(crate) fn severity(&self) -> Severity {
            match *self {}
        }

        pub(crate) fn most_bytes(&self) -> usize {
            match *self {}
        }

        pub(crate) fn check(&self, _: &[u8], _: &mut Found<'_>) {
            match *self {}
        }
    }
}
