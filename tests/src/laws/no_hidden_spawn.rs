use tokio::runtime;

use crate::{
    Subject,
    bench::{Bench, paused, run, settle},
    controlled::Then,
    wire::Req,
};

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    paused(async {
        let handle = subject.open();
        let tasks = || runtime::Handle::current().metrics().num_alive_tasks();
        let bench = Bench::new(&handle, 4);
        bench.controls.then(Then::Hang);
        let mut calls: Vec<_> = (0..3).map(|n| bench.call(subject.dress(n, Req::default()))).collect();
        for call in &mut calls {
            run(call).await;
        }
        let (alive, may) = (tasks(), subject.tasks());
        if alive > may {
            return Err(format!("{alive} tasks are alive during 3 calls, {may} declared"));
        }
        bench.controls.finish_all(Then::Resolve);
        drop((calls, bench, handle));
        settle().await;
        match tasks() {
            0 => Ok(()),
            alive => Err(format!("{alive} tasks outlive the layer and its handle")),
        }
    })
}
