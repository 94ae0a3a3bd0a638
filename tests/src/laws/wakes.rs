use std::time::Duration;

use tokio::time;

use crate::{
    Subject,
    bench::{Bench, Ran, paused, readiness, run, settle},
    controlled::{Gate, Then},
    subject::{Readiness, Sharing, Timing},
    watch::Watched,
    wire::Req,
};

use super::each;

/// More polls than any single call here has reason for.
const FEW: usize = 16;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    if subject.readiness() == Readiness::PassThrough {
        paused(in_poll_ready(subject)).map_err(|saw| format!("poll_ready: {saw}"))?;
    }
    paused(in_the_call(subject)).map_err(|saw| format!("a call: {saw}"))?;
    each(|| subject.sharings(), |it| it.what, at_the_limit)?;
    each(|| subject.timings(), |it| it.what, in_time)?;
    Ok(())
}

async fn in_poll_ready(subject: &dyn Subject) -> Result<(), String> {
    let bench = Bench::new(&subject.open(), 1);
    bench.controls.gate(Gate::Shut);
    let mut service = bench.clone_of_service();
    let mut ready = readiness(&mut service);
    waits(&mut ready).await?;
    bench.controls.gate(Gate::Open);
    is_woken(&ready).await
}

async fn in_the_call(subject: &dyn Subject) -> Result<(), String> {
    let bench = Bench::new(&subject.open(), 1);
    bench.controls.then(Then::Hang);
    let mut call = bench.call(subject.dress(0, Req::default()));
    if let Ran::Pending = run(&mut call).await
        && bench.counts.calls() == 0
    {
        // A layer that gathers calls hands them over in its own time.
        time::advance(Duration::from_secs(3600)).await;
        run(&mut call).await;
    }
    let before = (bench.counts.polls(), call.polls());
    waits(&mut call).await?;
    // Whoever looks at the inner future more often than it is asked runs a loop.
    let (inner, outer) = (bench.counts.polls() - before.0, call.polls() - before.1);
    if inner > outer {
        return Err(format!("{outer} polls became {inner} polls of the inner future"));
    }
    bench.controls.finish_all(Then::Resolve);
    is_woken(&call).await?;
    match run(&mut call).await {
        Ran::Done(Ok(_)) => few(&call),
        ran => Err(format!("the inner call is complete: {ran}")),
    }
}

async fn at_the_limit(limit: Sharing) -> Result<(), String> {
    let bench = Bench::new(&limit.handle, limit.reach + 1);
    let _held = bench.warm_up(limit.reach, limit.then, &limit.request).await;
    let mut waiting = bench.call(limit.request.request(limit.reach));
    if !matches!(run(&mut waiting).await, Ran::Pending) {
        return Ok(()); // It refuses instead of waiting.
    }
    waits(&mut waiting).await
}

async fn in_time(timing: Timing) -> Result<(), String> {
    let bench = Bench::new(&timing.handle, timing.warm_up + 1);
    let _held = bench.warm_up(timing.warm_up, Then::Resolve, &timing.request).await;
    bench.controls.then(timing.then);
    let mut call = bench.call(timing.request.request(timing.warm_up));
    let _ = time::timeout(timing.at + Duration::from_secs(1), &mut call).await;
    few(&call)
}

/// A future with nothing to do stays asleep, however often it is polled, and whoever polls it last is woken.
async fn waits<F: Future>(future: &mut Watched<F>) -> Result<(), String> {
    for _ in 0..3 {
        if future.poll().is_ready() {
            return Err("it does not wait for the inner service".to_owned());
        }
    }
    let wakes = future.wakes();
    settle().await;
    if future.wakes() > wakes {
        return Err("it was woken and nothing had happened".to_owned());
    }
    future.move_to_another_task();
    let _pending = future.poll();
    few(future)
}

async fn is_woken<F: Future>(future: &Watched<F>) -> Result<(), String> {
    settle().await;
    match future.is_woken() {
        true => Ok(()),
        false => {
            Err("what it waits for has happened and the task that polled it last was not woken".to_owned())
        }
    }
}

fn few<F: Future>(future: &Watched<F>) -> Result<(), String> {
    match future.fault() {
        Some(fault) => Err(fault.to_owned()),
        None if future.polls() > FEW => Err(format!("it took {} polls", future.polls())),
        None => Ok(()),
    }
}
