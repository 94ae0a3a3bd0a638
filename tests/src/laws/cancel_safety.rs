use std::time::Duration;

use tokio::time;

use crate::{
    Subject,
    bench::{Bench, Call, Ran, ordinary, paused, readiness, run, settle},
    cancel::drop_at_every_await_point,
    controlled::{Gate, Then},
    subject::Sharing,
    wire::Handle,
};

use super::each;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    for gate in [Gate::Shut, Gate::Open] {
        paused(async { drops(subject, &subject.open(), gate).await })?;
    }
    for then in [Then::PanicInCall, Then::Panic] {
        paused(panics(subject, then)).map_err(|saw| format!("inner {then:?}: {saw}"))?;
    }
    // An open layer has room for what it leaks; one at its limit has not.
    let limits = || subject.sharings().into_iter().filter(|sharing| sharing.then == Then::Hang).collect();
    each(limits, |it| it.what, async |limit| keeps_its_limit(subject, limit).await)?;
    for change in Change::ALL {
        each(limits, |it| it.what, async |limit| wakes_who_is_next(subject, limit, change).await)?;
    }
    Ok(())
}

/// `gate` is what the inner service says when a call begins: not every layer waits for it to become ready.
async fn drops(subject: &dyn Subject, handle: &Handle, gate: Gate) -> Result<(), String> {
    let bench = Bench::new(handle, 1);
    drop_at_every_await_point(
        || {
            bench.controls.gate(gate);
            bench.controls.then(Then::Hang);
            bench.call(ordinary(subject))
        },
        async |nudged| {
            match nudged {
                0 => bench.controls.gate(Gate::Open),
                1 => bench.controls.finish_all(Then::Resolve),
                _ => {
                    bench.controls.finish_all(Then::Resolve);
                    time::advance(Duration::from_secs(1)).await;
                }
            }
            settle().await;
        },
        async || all_is_well(subject, &bench).await,
    )
    .await?;
    Ok(())
}

async fn panics(subject: &dyn Subject, then: Then) -> Result<(), String> {
    let bench = Bench::new(&subject.open(), 1);
    bench.controls.then(then);
    for _ in 0..3 {
        let mut call = bench.call(ordinary(subject));
        if let Ran::Pending = run(&mut call).await {
            time::advance(Duration::from_secs(3600)).await;
            if let Ran::Pending = run(&mut call).await {
                return Err("the caller is not told".to_owned());
            }
        }
        drop(call);
        all_is_well(subject, &bench).await?;
        bench.controls.then(then);
    }
    Ok(())
}

/// Everything is given back and calls pass.
async fn all_is_well(subject: &dyn Subject, bench: &Bench) -> Result<(), String> {
    settle().await;
    bench.controls.gate(Gate::Open);
    if subject.tasks() == 0 {
        bench.given_back()?;
    }
    bench.controls.finish_all(Then::Resolve);
    settle().await;
    bench.given_back()?;
    bench.passes(ordinary(subject)).await
}

async fn keeps_its_limit(subject: &dyn Subject, limit: Sharing) -> Result<(), String> {
    for gate in [Gate::Shut, Gate::Open] {
        drops(subject, &limit.handle, gate).await?;
    }
    let bench = Bench::new(&limit.handle, limit.reach + 2);
    for then in [Then::PanicInCall, Then::Panic] {
        for n in 0..=limit.reach {
            bench.controls.then(then);
            run(&mut bench.call(limit.request.request(n))).await;
        }
    }
    settle().await;
    let before = bench.counts.calls();
    bench.controls.then(Then::Hang);
    let mut calls: Vec<_> = (0..limit.reach + 1).map(|n| bench.call(limit.request.request(n))).collect();
    for call in &mut calls {
        run(call).await;
    }
    match bench.counts.calls() - before {
        reached if reached == limit.reach => Ok(()),
        reached => {
            Err(format!("after drops and panics {reached} calls pass at once instead of {}", limit.reach))
        }
    }
}

/// Who goes away while two wait for the one place that becomes free.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    FirstLeaves,
    SecondLeaves,
    FirstLeavesWhenWoken,
    /// Whoever held the place was ready and never made a call.
    ReadyLeaves,
}

impl Change {
    const ALL: [Self; 4] =
        [Self::FirstLeaves, Self::SecondLeaves, Self::FirstLeavesWhenWoken, Self::ReadyLeaves];
}

async fn wakes_who_is_next(subject: &dyn Subject, limit: Sharing, change: Change) -> Result<(), String> {
    let bench = Bench::new(&limit.handle, limit.reach + 2);
    let mut ready = bench.clone_of_service();
    let calls = limit.reach - usize::from(change == Change::ReadyLeaves);
    let mut held = bench.warm_up(calls, Then::Hang, &limit.request).await;
    if change == Change::ReadyLeaves {
        run(&mut readiness(&mut ready)).await;
    }
    let mut first = bench.call(limit.request.request(limit.reach));
    let mut second = bench.call(limit.request.request(limit.reach + 1));
    let wait =
        matches!(run(&mut first).await, Ran::Pending) && matches!(run(&mut second).await, Ran::Pending);
    if !wait || bench.counts.calls() > calls {
        return Ok(()); // It refuses instead of waiting, or gives the place to whoever calls first.
    }
    let mut stays = match change {
        Change::FirstLeaves => {
            drop(first);
            leave(subject, &bench, &mut held);
            second
        }
        Change::SecondLeaves => {
            drop(second);
            leave(subject, &bench, &mut held);
            first
        }
        Change::FirstLeavesWhenWoken => {
            leave(subject, &bench, &mut held);
            settle().await;
            drop(first);
            second
        }
        Change::ReadyLeaves => {
            drop(ready);
            first
        }
    };
    settle().await;
    // A task may have gone on for it.
    if !stays.is_woken() && bench.counts.calls() == calls {
        return Err("a place became free and the next one was not woken".to_owned());
    }
    run(&mut stays).await;
    match bench.counts.calls() == calls + 1 {
        true => Ok(()),
        false => Err("a place became free and the next one did not get it".to_owned()),
    }
}

/// The first of the calls that hold a place goes away. One that was handed to a task runs on: it ends as well.
fn leave(subject: &dyn Subject, bench: &Bench, held: &mut Vec<Call>) {
    if subject.tasks() > 0 {
        bench.controls.finish(Then::Resolve);
    }
    held.drain(..1);
}
