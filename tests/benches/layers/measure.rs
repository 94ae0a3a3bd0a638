//! How contenders are measured: in short rounds and rotated order, by the CPU time of the thread.
//!
//! ```text
//! let contenders = vec![
//!     Contender::new("hand-written", |_| {
//!         let mut service = hand_written.clone();
//!         move |calls| drive(&mut service, (0..calls).map(|_| Call))
//!     }),
//!     Contender::new("ours", ...),
//! ];
//! Table::new("Admitted", plan.rounds(contenders)).against("hand-written")
//! ```

use std::{
    hint::black_box,
    pin::pin,
    sync::Barrier,
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use bartizan_tests::alloc::allocations;
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;
use tower_service::Service;

/// How much is measured.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) quick: bool,
    pub(crate) rounds: usize,
}

/// Makes so many calls.
type Run<'a> = Box<dyn FnMut(u64) + Send + 'a>;

/// Something that is measured.
pub(crate) struct Contender<'a> {
    name: &'static str,
    make: Box<dyn Fn(u64) -> Run<'a> + Sync + 'a>,
}

impl<'a> Contender<'a> {
    /// `make` is told the number of a thread, and makes what makes calls there: with a clone of a service that all threads
    /// share. What it makes is told how many calls to make.
    pub(crate) fn new<F, R>(name: &'static str, make: F) -> Self
    where
        F: Fn(u64) -> R + Sync + 'a,
        R: FnMut(u64) + Send + 'a,
    {
        Self { name, make: Box::new(move |thread| Box::new(make(thread))) }
    }
}

/// What was measured of a contender.
pub(crate) struct Figures {
    pub(crate) name: &'static str,
    /// CPU nanoseconds a call, by round.
    pub(crate) nanos: Vec<f64>,
    /// Allocations a call.
    pub(crate) allocations: f64,
    /// Calls a second of one thread that is alone and of two together, by round. Empty if that was not asked for.
    pub(crate) rates: Vec<[f64; 2]>,
}

impl Plan {
    /// Measures calls, on one thread and on two.
    pub(crate) fn on_two_threads(self, contenders: &[Contender<'_>]) -> Vec<Figures> {
        self.measure(contenders, true)
    }

    /// Measures calls on one thread.
    pub(crate) fn on_one_thread(self, contenders: &[Contender<'_>]) -> Vec<Figures> {
        self.measure(contenders, false)
    }

    /// Every round is of every contender. The first one is another one in each.
    fn measure(self, contenders: &[Contender<'_>], two_threads: bool) -> Vec<Figures> {
        let batch = if self.quick { 1_000 } else { 50_000 };
        let mut runs: Vec<_> = contenders.iter().map(|it| (it.make)(0)).collect();
        let mut figures: Vec<_> = contenders.iter().map(|it| Figures::of(it.name)).collect();
        for (run, figures) in runs.iter_mut().zip(&mut figures) {
            // What is there once is not counted: the first look at a key, a table that grows.
            run(batch);
            let ((), counted) = allocations(|| run(batch));
            figures.allocations = counted.allocated as f64 / batch as f64;
        }
        for round in 0..self.rounds {
            for turn in 0..contenders.len() {
                let index = (turn + round) % contenders.len();
                let nanos = cpu(|| runs[index](batch)).as_nanos() as f64;
                figures[index].nanos.push(nanos / batch as f64);
                if two_threads {
                    figures[index]
                        .rates
                        .push([1, 2].map(|threads| rate(&contenders[index], threads, 4 * batch)));
                }
            }
        }
        figures
    }
}

impl Figures {
    fn of(name: &'static str) -> Self {
        Self { name, nanos: Vec::new(), allocations: 0.0, rates: Vec::new() }
    }
}

/// Makes a call for each request. None of them may wait or fail.
pub(crate) fn drive<S, Req>(service: &mut S, requests: impl Iterator<Item = Req>)
where
    S: Service<Req>,
{
    for request in requests {
        assert!(once(service, request, || panic!("a call waits")).is_ok(), "a call fails");
    }
}

/// The same for a service whose calls wait for each other: other threads go on, and it is polled again.
pub(crate) fn drive_waiting<S, Req>(service: &mut S, requests: impl Iterator<Item = Req>)
where
    S: Service<Req>,
{
    for request in requests {
        assert!(once(service, request, thread::yield_now).is_ok(), "a call fails");
    }
}

/// Makes a call for each request, which may fail. If one waits, other threads go on, and it is polled again.
pub(crate) fn drive_whatever<S, Req>(service: &mut S, requests: impl Iterator<Item = Req>)
where
    S: Service<Req>,
{
    for request in requests {
        let _ = black_box(once(service, request, thread::yield_now).is_ok());
    }
}

/// Makes a call that must fail for each request.
pub(crate) fn drive_refused<S, Req>(service: &mut S, requests: impl Iterator<Item = Req>)
where
    S: Service<Req>,
{
    for request in requests {
        assert!(once(service, request, || panic!("a call waits")).is_err(), "a call passes");
    }
}

#[inline(always)]
fn once<S, Req>(service: &mut S, request: Req, wait: impl Fn()) -> Result<S::Response, S::Error>
where
    S: Service<Req>,
{
    let cx = &mut Context::from_waker(Waker::noop());
    let ready = matches!(service.poll_ready(cx), Poll::Ready(Ok(())));
    assert!(ready, "a service is not ready");
    // Nothing but the request is hidden from the optimiser: to hide a result is to copy it.
    let mut future = pin!(service.call(black_box(request)));
    loop {
        match future.as_mut().poll(cx) {
            Poll::Ready(result) => return result,
            Poll::Pending => wait(),
        }
    }
}

/// The CPU time that `run` takes on this thread.
fn cpu(run: impl FnOnce()) -> Duration {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default();
    let before = now();
    run();
    now().saturating_sub(before)
}

/// Calls a second of so many threads at once, of which each makes `calls`.
fn rate(contender: &Contender<'_>, threads: u64, calls: u64) -> f64 {
    let runtime = Handle::current();
    let start = Barrier::new(threads as usize);
    let (runtime, start) = (&runtime, &start);
    let time = |thread| {
        move || {
            let _entered = runtime.enter();
            // Made here, or else one thread's service may stand in a cache line with another's.
            let mut run = (contender.make)(thread);
            run(calls / 10);
            start.wait();
            let begin = Instant::now();
            run(calls);
            (begin, Instant::now())
        }
    };
    let times: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|thread| scope.spawn(time(thread))).collect();
        threads.into_iter().map(|it| it.join().expect("a thread that makes calls")).collect()
    });
    let begin = times.iter().map(|(begin, _)| *begin).min().expect("a thread");
    let end = times.iter().map(|(_, end)| *end).max().expect("a thread");
    (threads * calls) as f64 / (end - begin).as_secs_f64()
}
