//! Every interleaving of callers, the worker, and whoever ends it.
//!
//! Without a linger nothing waits for time. A caller, or the worker, who is never woken is a deadlock, which loom finds.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    panic::resume_unwind,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Wake, Waker},
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use loom::{
    model::Builder,
    sync::{
        Condvar, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
};
use tower::{Service, ServiceExt, service_fn};

use crate::{Batch, Batched, Settings, Worker};

type Item = u32;
type Results = Result<Vec<Result<Item, Infallible>>, BoxError>;
type Calls = Batched<Item, Item, Infallible>;

/// What stands below a layer.
trait Below:
    Service<Vec<Item>, Response = Vec<Result<Item, Infallible>>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Below for S where
    S: Service<Vec<Item>, Response = Vec<Result<Item, Infallible>>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// All interleavings in which no thread is preempted more than so often.
fn model(preemptions: usize, test: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(test);
}

/// What a task sleeps on.
struct Sleeper {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *self.woken.lock().unwrap() = true;
        self.condvar.notify_one();
    }
}

/// Polls a future whenever it was woken.
fn block_on<F: Future>(future: F) -> F::Output {
    let sleeper = Arc::new(Sleeper { woken: Mutex::new(false), condvar: Condvar::new() });
    let waker = Waker::from(sleeper.clone());
    let mut future = Box::pin(future);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        let mut woken = sleeper.woken.lock().unwrap();
        while !std::mem::take(&mut *woken) {
            woken = sleeper.condvar.wait(woken).unwrap();
        }
    }
}

/// Gives each item its double, and counts them.
fn doubles(seen: &Arc<AtomicUsize>) -> impl Below + use<> {
    let seen = seen.clone();
    service_fn(move |items: Vec<Item>| {
        assert!(!items.is_empty(), "an empty batch went");
        seen.fetch_add(items.len(), SeqCst);
        ready(Ok(items.into_iter().map(|n| Ok(2 * n)).collect()))
    })
}

/// A batch layer over [`doubles`]: its handle, its service, its worker, and how many items have been seen.
fn doubling(
    settings: Settings,
) -> (Batch, Calls, Worker<impl Below, Item, Item, Infallible>, Arc<AtomicUsize>) {
    let (batch, seen) = (Batch::new(settings), Arc::default());
    let (service, worker) = batch.layer().pair(doubles(&seen));
    (batch, service, worker, seen)
}

fn call(mut service: Calls, item: Item) -> Result<Item, BoxError> {
    block_on(async { service.ready().await?.call(item).await })
}

/// The same in another thread.
fn calling(service: &Calls, item: Item) -> JoinHandle<Result<Item, BoxError>> {
    let service = service.clone();
    thread::spawn(move || call(service, item))
}

fn working(worker: Worker<impl Below, Item, Item, Infallible>) -> JoinHandle<()> {
    thread::spawn(move || block_on(worker))
}

fn kind(error: &BoxError) -> RejectionKind {
    Rejected::find(&**error).expect("a refusal").kind()
}

/// Makes a call in another thread, and leaves it when it has not been answered at once.
fn leaving(service: &Calls, item: Item) -> JoinHandle<()> {
    let mut service = service.clone();
    thread::spawn(move || {
        block_on(async {
            let mut call = service.ready().await.unwrap().call(item);
            poll_fn(|cx| Poll::Ready(Pin::new(&mut call).poll(cx).is_ready())).await
        });
    })
}

#[derive(Clone)]
struct NeverReady;

impl Service<Vec<Item>> for NeverReady {
    type Response = Vec<Result<Item, Infallible>>;
    type Error = BoxError;
    type Future = Ready<Results>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Pending
    }

    fn call(&mut self, _: Vec<Item>) -> Self::Future {
        unreachable!("it is not ready")
    }
}

#[test]
fn everybody_is_answered_once() {
    model(3, || {
        let (batch, service, worker, seen) = doubling(Settings::max_size(2).max_concurrent(1));
        let (other, working) = (calling(&service, 1), working(worker));
        assert_eq!(call(service, 2).unwrap(), 4);
        assert_eq!(other.join().unwrap().unwrap(), 2);
        working.join().unwrap();
        assert_eq!((seen.load(SeqCst), batch.stats().items, batch.stats().waiting), (2, 2, 0));
    });
}

/// Whoever waits for a place gets it from whoever goes, however he goes.
#[test]
fn places_are_passed_on() {
    model(2, || {
        let (batch, service, worker, seen) = doubling(Settings::max_size(1).max_pending(1));
        let (other, working) = (leaving(&service, 1), working(worker));
        assert_eq!(call(service, 2).unwrap(), 4);
        other.join().unwrap();
        working.join().unwrap();
        assert!((1..=2).contains(&seen.load(SeqCst)));
        assert_eq!(batch.stats().waiting, 0);
    });
}

#[test]
fn who_leaves_takes_nobody_with_him() {
    model(3, || {
        let (batch, service, worker, seen) = doubling(Settings::max_size(2).max_concurrent(1));
        let (other, working) = (leaving(&service, 1), working(worker));
        assert_eq!(call(service, 2).unwrap(), 4);
        other.join().unwrap();
        working.join().unwrap();
        assert_eq!(seen.load(SeqCst) as u64, batch.stats().items);
    });
}

/// A worker that waits for a service that is never ready ends when the last one leaves after the end.
#[test]
fn when_all_have_left_the_worker_ends() {
    model(2, || {
        let (service, worker) = Batch::new(Settings::max_size(2)).layer().pair(NeverReady);
        let (other, working) = (leaving(&service, 1), working(worker));
        drop(service);
        other.join().unwrap();
        working.join().unwrap();
    });
}

/// A call at a shutdown is answered or refused, and what was accepted is sent.
#[test]
fn shutdown_loses_nobody() {
    model(3, || {
        let (batch, service, worker, seen) = doubling(Settings::max_size(2).max_concurrent(1));
        let (ends, working) = (thread::spawn(move || batch.shutdown()), working(worker));
        let answered = match call(service, 2) {
            Ok(double) => double / 4,
            Err(error) => {
                assert_eq!(kind(&error), RejectionKind::Closed);
                0
            }
        };
        ends.join().unwrap();
        working.join().unwrap();
        assert_eq!(seen.load(SeqCst), answered as usize);
    });
}

/// A worker that is dropped in the middle of it refuses whom it has not answered.
#[test]
fn a_dropped_worker_leaves_nobody_waiting() {
    model(3, || {
        let (batch, service, worker, seen) = doubling(Settings::max_size(2));
        let other = calling(&service, 1);
        let working = thread::spawn(move || {
            let mut worker = pin!(worker);
            let _ = worker.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        });
        let results = [call(service, 2), other.join().unwrap()];
        working.join().unwrap();
        let answered = results.iter().filter(|result| result.is_ok()).count();
        for error in results.into_iter().filter_map(Result::err) {
            assert_eq!(kind(&error), RejectionKind::Closed);
        }
        assert_eq!(answered, seen.load(SeqCst));
        assert_eq!(batch.stats().waiting, 0);
    });
}

#[test]
fn a_panic_is_told_to_all_and_the_next_batch_goes() {
    model(2, || {
        let below = service_fn(|items: Vec<Item>| {
            if items.contains(&1) {
                resume_unwind(Box::new("the service panics"));
            }
            ready(Ok::<_, BoxError>(items.into_iter().map(Ok).collect()))
        });
        let (service, worker) = Batch::new(Settings::max_size(2).max_concurrent(1)).layer().pair(below);
        let (other, working) = (calling(&service, 1), working(worker));
        if let Err(error) = call(service.clone(), 2) {
            assert_eq!(kind(&error), RejectionKind::Panicked);
        }
        assert_eq!(kind(&other.join().unwrap().unwrap_err()), RejectionKind::Panicked);
        assert_eq!(call(service, 3).unwrap(), 3);
        working.join().unwrap();
    });
}

/// A batch under way that another thread completes.
#[test]
fn a_future_that_is_woken_elsewhere_is_polled() {
    model(3, || {
        let gate: Arc<Mutex<(bool, Option<Waker>)>> = Arc::new(Mutex::new((false, None)));
        let below = gate.clone();
        let below = service_fn(move |items: Vec<Item>| {
            let gate = below.clone();
            let mut items = Some(items);
            poll_fn(move |cx| {
                let mut gate = gate.lock().unwrap();
                if gate.0 {
                    let items = items.take().expect("it is complete once");
                    return Poll::Ready(Results::Ok(items.into_iter().map(Ok).collect()));
                }
                gate.1 = Some(cx.waker().clone());
                Poll::Pending
            })
        });
        let (service, worker) = Batch::new(Settings::max_size(1)).layer().pair(below);
        let working = working(worker);
        let opens = thread::spawn(move || {
            let waker = {
                let mut gate = gate.lock().unwrap();
                gate.0 = true;
                gate.1.take()
            };
            waker.into_iter().for_each(Waker::wake);
        });
        assert_eq!(call(service, 2).unwrap(), 2);
        opens.join().unwrap();
        working.join().unwrap();
    });
}
