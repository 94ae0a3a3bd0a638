use crate::{
    Subject,
    bench::paused,
    served::{served, shares},
};

use super::some;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    let sharings = paused(async { Ok(subject.sharings().len()) })?;
    for n in 0..sharings {
        served(async {
            let sharing = subject.sharings().swap_remove(n);
            shares(&sharing).await.map_err(|saw| format!("{}: {saw}", sharing.what))
        })?;
    }
    some("sharings", sharings)
}
