use tower::Service;

use crate::{
    Subject,
    bench::{Bench, Ran, readiness, run, settle},
    controlled::{Gate, Then},
    subject::{Readiness, Refusal, Timing},
    watch::Watched,
};

use super::{each, some};

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    let refusals = each(|| subject.refusals(), |it| it.what, gives_back)?;
    let timings = each(|| subject.timings(), |it| it.what, waits_without)?;
    some("refusals and no timings", refusals + timings)
}

/// The refused instance lives on, and yet holds nothing.
async fn gives_back(refusal: Refusal) -> Result<(), String> {
    let bench = Bench::new(&refusal.handle, refusal.warm_up + 1);
    let _held = bench.warm_up(refusal.warm_up, refusal.then, &refusal.request).await;
    let (calls, free) = (bench.counts.calls(), bench.controls.free());

    let mut service = bench.clone_of_service();
    if refusal.readiness == Readiness::AtOnce {
        bench.controls.gate(Gate::Shut);
    }
    match run(&mut readiness(&mut service)).await {
        Ran::Done(Ok(())) => bench.controls.gate(Gate::Open),
        ran => return Err(format!("it does not answer what needs no inner service: {ran}")),
    }
    let mut answer = Watched::new(service.call(refusal.request.request(refusal.warm_up)));
    let ran = run(&mut answer).await;
    if matches!(ran, Ran::Pending | Ran::Panicked(_)) {
        return Err(format!("a call that needs no inner service does not end: {ran}"));
    }
    settle().await;
    if bench.counts.calls() != calls {
        return Err("a call that was to be answered without the inner service reached it".to_owned());
    }
    nothing_held(&bench, free)
}

/// A call that waits before it reaches the inner service holds nothing of it meanwhile.
async fn waits_without(timing: Timing) -> Result<(), String> {
    let bench = Bench::new(&timing.handle, timing.warm_up + 1);
    let _held = bench.warm_up(timing.warm_up, Then::Resolve, &timing.request).await;
    let (calls, free) = (bench.counts.calls(), bench.controls.free());
    bench.controls.then(timing.then);
    let mut waits = bench.call(timing.request.request(timing.warm_up));
    match run(&mut waits).await {
        Ran::Pending if bench.counts.calls() == calls => nothing_held(&bench, free),
        _ => Ok(()),
    }
}

fn nothing_held(bench: &Bench, free: usize) -> Result<(), String> {
    match bench.granted() {
        0 if bench.controls.free() == free => Ok(()),
        0 => Err("the inner service's permit is not given back".to_owned()),
        granted => Err(format!("it keeps {granted} grant(s) of an inner service that it does not use")),
    }
}
