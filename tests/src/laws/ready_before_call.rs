use crate::{
    Subject,
    bench::{Bench, Ran, call, paused, readiness, run},
    controlled::{Gate, Then},
    probe::UNREADY,
    wire::Req,
};

use tower::Service;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    paused(async {
        let request = |n| subject.dress(n, Req::default());
        let bench = Bench::new(&subject.open(), 4);

        // An instance, its clone made while it was ready, and itself again.
        let mut service = bench.clone_of_service();
        for n in 0..3 {
            bench.controls.gate(Gate::Shut);
            let mut ready = readiness(&mut service);
            run(&mut ready).await;
            bench.controls.gate(Gate::Open);
            expect_ready(run(&mut ready).await)?;
            drop(ready);
            let clone = service.clone();
            let _first = service.call(request(2 * n)).await;
            let _second = call(&clone, request(2 * n + 1)).await;
        }

        // Several at once, which the inner service does not all take.
        bench.controls.then(Then::Hang);
        let mut calls: Vec<_> = (10..16).map(|n| bench.call(request(n))).collect();
        for call in &mut calls {
            run(call).await;
        }
        bench.controls.then(Then::Resolve);
        bench.controls.finish_all(Then::Resolve);
        for call in calls {
            let _ = call.await;
        }
        match bench.counts.unready() {
            0 => Ok(()),
            times => Err(format!("the inner service was {UNREADY} ({times} times)")),
        }
    })
}

fn expect_ready<E: std::fmt::Display>(ran: Ran<Result<(), E>>) -> Result<(), String> {
    match ran {
        Ran::Done(Ok(())) => Ok(()),
        Ran::Done(Err(error)) => Err(format!("it is not ready over a ready inner service: {error}")),
        Ran::Pending => Err("it is not ready over a ready inner service".to_owned()),
        Ran::Panicked(message) => Err(format!("poll_ready panicked: {message}")),
    }
}
