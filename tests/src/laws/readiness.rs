use crate::{
    Subject,
    bench::{Bench, Ran, paused, readiness, run},
    controlled::Gate,
    subject::{Readiness, Refusal},
};

use super::each;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    paused(takes_one_grant(subject))?;
    paused(says_what_the_inner_says(subject))?;
    each(|| subject.refusals(), |it| it.what, refuses_in_call)?;
    Ok(())
}

async fn refuses_in_call(refusal: Refusal) -> Result<(), String> {
    let bench = Bench::new(&refusal.handle, refusal.warm_up + 1);
    let _held = bench.warm_up(refusal.warm_up, refusal.then, &refusal.request).await;
    match run(&mut readiness(&mut bench.clone_of_service())).await {
        Ran::Done(Err(error)) => {
            Err(format!("poll_ready refuses, though the inner service is ready: {error}"))
        }
        _ => Ok(()),
    }
}

async fn says_what_the_inner_says(subject: &dyn Subject) -> Result<(), String> {
    let bench = Bench::new(&subject.open(), 1);
    let mut service = bench.clone_of_service();
    let passes = subject.readiness() == Readiness::PassThrough;

    bench.controls.gate(Gate::Shut);
    let mut ready = readiness(&mut service);
    match run(&mut ready).await {
        Ran::Pending if passes => {}
        Ran::Done(Ok(())) if !passes => {}
        ran if passes => {
            return Err(format!("the inner service is not ready and should be waited for: {ran}"));
        }
        ran => return Err(format!("it waits for an inner service that it may not need: {ran}")),
    }
    if passes {
        bench.controls.gate(Gate::Open);
        let ran = run(&mut ready).await;
        if !matches!(ran, Ran::Done(Ok(()))) {
            return Err(format!("the inner service became ready: {ran}"));
        }
    }
    drop(ready);

    bench.controls.gate(Gate::Broken);
    let mut other = bench.clone_of_service();
    match run(&mut readiness(&mut other)).await {
        Ran::Done(Err(_)) if passes => Ok(()),
        Ran::Done(Ok(())) if !passes => Ok(()),
        ran => Err(format!("the inner service's poll_ready fails: {ran}")),
    }
}

async fn takes_one_grant(subject: &dyn Subject) -> Result<(), String> {
    let bench = Bench::new(&subject.open(), 8);
    let mut service = bench.clone_of_service();
    for asked in 1..=5 {
        let ran = run(&mut readiness(&mut service)).await;
        if !matches!(ran, Ran::Done(Ok(()))) {
            return Err(format!("asked {asked} times over a ready inner service: {ran}"));
        }
        let taken = bench.controls.capacity() - bench.controls.free();
        if taken > 1 {
            return Err(format!(
                "poll_ready, asked {asked} times, holds {taken} permits of the inner service"
            ));
        }
    }
    drop(service.clone());
    drop(service);
    bench.given_back().map_err(|saw| format!("a ready service was dropped: {saw}"))
}
