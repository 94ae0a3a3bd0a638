use std::time::Duration;

use tokio::time;

use crate::{
    Subject,
    bench::{Bench, run},
    controlled::Then,
    subject::{Refusal, Timing},
};

use super::{each, some};

/// Tokio's timers count whole milliseconds, and never end early.
const TICK: Duration = Duration::from_millis(1);

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    let lifting = || {
        let with_time = |it: Refusal| it.lifts.map(|lifts| (it, lifts));
        subject.refusals().into_iter().filter_map(with_time).collect::<Vec<_>>()
    };
    let ends = async |it: Timing| in_no_time(it.at, ends_at(it)).await;
    let timings = each(|| subject.timings(), |it| it.what, ends)?;
    let lifts = async |(it, lifts)| in_no_time(lifts, lifts_at(it, lifts)).await;
    let refusals = each(lifting, |(it, _)| it.what, lifts)?;
    some("timings and no refusals that lift", timings + refusals)
}

#[expect(clippy::disallowed_methods, reason = "whether real time passes can only be seen on a real clock")]
async fn in_no_time(at: Duration, check: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    if at < Duration::from_secs(10) {
        return Err(format!(
            "{at:?} is too short to be told from the time a check takes: make it ten seconds"
        ));
    }
    let begin = std::time::Instant::now();
    check.await?;
    if begin.elapsed() >= at {
        return Err(format!("{at:?} really passed"));
    }
    Ok(())
}

async fn ends_at(timing: Timing) -> Result<(), String> {
    let at = timing.at;
    let bench = Bench::new(&timing.handle, timing.warm_up + 1);
    let _held = bench.warm_up(timing.warm_up, Then::Resolve, &timing.request).await;
    bench.controls.then(timing.then);
    let begin = time::Instant::now();
    let call = bench.call(timing.request.request(timing.warm_up));
    if time::timeout(2 * at, call).await.is_err() {
        return Err(format!("a call that ends after {at:?} had not ended after twice that"));
    }
    let took = begin.elapsed();
    match took < at || took > at + TICK {
        true => Err(format!("a call that ends after {at:?} ended after {took:?}")),
        false => Ok(()),
    }
}

async fn lifts_at(refusal: Refusal, lifts: Duration) -> Result<(), String> {
    let bench = Bench::new(&refusal.handle, refusal.warm_up + 2);
    let _held = bench.warm_up(refusal.warm_up, refusal.then, &refusal.request).await;
    bench.controls.then(Then::Resolve);
    let reached = bench.counts.calls();
    time::advance(lifts - TICK).await;
    run(&mut bench.call(refusal.request.request(refusal.warm_up))).await;
    if bench.counts.calls() != reached {
        return Err(format!("what lifts after {lifts:?} had lifted {TICK:?} before"));
    }
    time::advance(TICK).await;
    run(&mut bench.call(refusal.request.request(refusal.warm_up + 1))).await;
    match bench.counts.calls() > reached {
        true => Ok(()),
        false => Err(format!("what lifts after {lifts:?} had not lifted then")),
    }
}
