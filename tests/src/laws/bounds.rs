use crate::{Subject, wire::Handle};

/// That the subject has a [`Handle`] is the proof: see there for what does not compile.
pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    let _: Handle = subject.open();
    Ok(())
}
