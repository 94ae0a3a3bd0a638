use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::{Subject, bench::message, subject::Impossible};

use super::{each, some};

/// How panics begin that nobody meant for a reader.
const ACCIDENTS: [&str; 6] =
    ["attempt to", "called `", "index out of bounds", "assertion", "capacity overflow", "internal error"];

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    some("impossible configurations", each(|| subject.impossible(), |it| it.what, panics)?)
}

async fn panics(impossible: Impossible) -> Result<(), String> {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| (impossible.build)())) else {
        return Err("it can be built, and can never work".to_owned());
    };
    let message = message(&*panic);
    match message.is_empty() || ACCIDENTS.iter().any(|accident| message.starts_with(accident)) {
        true => Err(format!("it panics by accident, with {message:?}")),
        false => Ok(()),
    }
}
