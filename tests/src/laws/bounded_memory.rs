use crate::{
    Subject,
    alloc::{allocations, counted},
    bench::{Bench, paused, run},
    controlled::Then,
    wire::Req,
};

/// Calls until the plateau must be reached, and then four times as many.
const PLATEAU: usize = 512;
/// What tables and buffers may still grow by: two bytes a call.
const SLACK: i64 = 4 * 2 * PLATEAU as i64;

pub(super) fn check(subject: &dyn Subject) -> Result<(), String> {
    if allocations(|| Box::new(0_u64)).1.allocated == 0 {
        return Err(
            "this binary does not count: make bartizan_tests::alloc::Counting its allocator".to_owned()
        );
    }
    paused(async {
        let bench = Bench::new(&subject.open(), 1);
        calls(subject, &bench, 0..PLATEAU).await;
        let plateau = counted().live;
        calls(subject, &bench, PLATEAU..5 * PLATEAU).await;
        let grown = counted().live - plateau;
        match grown > SLACK {
            true => Err(format!("{grown} bytes more are live after {} calls more", 4 * PLATEAU)),
            false => Ok(()),
        }
    })
}

/// Calls that succeed, fail, and are dropped.
async fn calls(subject: &dyn Subject, bench: &Bench, range: std::ops::Range<usize>) {
    for n in range {
        bench.controls.then([Then::Resolve, Then::Fail, Then::Resolve, Then::Hang][n % 4]);
        run(&mut bench.call(subject.dress(n, Req::default()))).await;
        bench.controls.finish_all(Then::Resolve);
    }
}
