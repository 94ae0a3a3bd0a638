use crate::{
    Subject,
    bench::{Bench, Ran, call, run},
    subject::{Across, Sharing},
    wire::Wire,
};

use super::{each, some};

/// How to come by one more view of a handle.
type View = fn(&Bench) -> Wire;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    // State is spent by a check, so each kind of view gets fresh handles.
    let views: [(Across, &str, View); 3] = [
        (Across::Clones, "clones of a service", Bench::clone_of_service),
        (Across::Handle, "services of one layer", Bench::another_service),
        (Across::Handle, "layers of one handle", Bench::another_layers_service),
    ];
    let mut checked = 0;
    for (across, views, view) in views {
        let sharings = || subject.sharings().into_iter().filter(|it| it.across >= across).collect();
        let check = async |it| shares(it, view).await.map_err(|saw| format!("over {views} {saw}"));
        checked += each(sharings, |it| it.what, check)?;
    }
    some("sharings", checked)
}

/// Two calls more than may reach the inner service, over two views.
async fn shares(sharing: Sharing, view: View) -> Result<(), String> {
    let made = sharing.reach + 2;
    let bench = Bench::new(&sharing.handle, made);
    bench.controls.then(sharing.then);
    let views = [view(&bench), view(&bench)];
    let mut held = Vec::new();
    for n in 0..made {
        let mut call = call(&views[n % 2], sharing.request.request(n));
        if let Ran::Pending = run(&mut call).await {
            held.push(call);
        }
    }
    match bench.counts.calls() {
        reached if reached == sharing.reach => Ok(()),
        reached => {
            Err(format!("{reached} of {made} calls reached the inner service instead of {}", sharing.reach))
        }
    }
}
