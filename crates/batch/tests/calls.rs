//! What calls meet in a batch: others, drops, panics, readiness, time, the end.

use std::{
    convert::Infallible,
    future::pending,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bartizan_batch::{Batch, BatchFailed, Settings, WrongCount};
use bartizan_core::{BoxError, Class, Rejected, RejectionKind, RetryAfter, chain};
use tokio::{
    sync::Semaphore,
    time::{Instant, advance, sleep},
};
use tokio_test::task::spawn;
use tower::{Layer, Service, ServiceExt, service_fn};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The batches that came, and when.
type Log = Arc<Mutex<Vec<(Duration, Vec<u32>)>>>;
type Results = Result<Vec<Result<u32, BoxError>>, BoxError>;

/// Answers each number with its double once there is a permit, notes what it is given, and for some lists misbehaves.
#[derive(Clone)]
struct Doubler {
    log: Log,
    start: Instant,
    permits: Arc<Semaphore>,
}

const PANIC: u32 = 1000;
const PANIC_IN_CALL: u32 = 1001;
const FAIL: u32 = 1002;
const FAIL_ALONE: u32 = 1003;
const ONE_TOO_FEW: u32 = 1004;
const ONE_TOO_MANY: u32 = 1005;
const HANG: u32 = 1006;

impl Doubler {
    fn new(permits: usize) -> Self {
        Self { log: Log::default(), start: Instant::now(), permits: Arc::new(Semaphore::new(permits)) }
    }

    fn service(
        &self,
    ) -> impl Service<Vec<u32>, Response = Vec<Result<u32, BoxError>>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + 'static {
        let this = self.clone();
        service_fn(move |items: Vec<u32>| {
            assert!(!items.contains(&PANIC_IN_CALL), "the service panics in call");
            this.log.lock().unwrap().push((this.start.elapsed(), items.clone()));
            this.clone().answer(items)
        })
    }

    async fn answer(self, items: Vec<u32>) -> Results {
        self.permits.acquire().await.unwrap().forget();
        assert!(!items.contains(&PANIC), "the service panics");
        if items.contains(&FAIL) {
            return Err("it fails".into());
        }
        if items.contains(&HANG) {
            return pending().await;
        }
        let double = |n: &u32| if *n == FAIL_ALONE { Err("no such number".into()) } else { Ok(2 * n) };
        let mut results: Vec<_> = items.iter().map(double).collect();
        if items.contains(&ONE_TOO_FEW) {
            results.pop();
        }
        if items.contains(&ONE_TOO_MANY) {
            results.push(Ok(0));
        }
        Ok(results)
    }

    fn log(&self) -> Vec<(u128, Vec<u32>)> {
        let log = self.log.lock().unwrap();
        log.iter().map(|(at, items)| (at.as_millis(), items.clone())).collect()
    }

    fn batches(&self) -> Vec<Vec<u32>> {
        self.log().into_iter().map(|(_, items)| items).collect()
    }
}

/// The worker gets its turns, and no time passes.
async fn settle() {
    for _ in 0..8 {
        advance(Duration::ZERO).await;
    }
}

fn kind(error: &BoxError) -> RejectionKind {
    Rejected::find(&**error).expect("a refusal").kind()
}

#[tokio::test(start_paused = true)]
async fn everybody_gets_his_own_answer() {
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(8).linger(10 * MILLI));
    let service = batch.layer().layer(doubler.service());
    let calls: Vec<_> = (0..20).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    for (n, call) in (0..).zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), 2 * n);
    }
    assert_eq!(
        doubler.log().iter().map(|(at, items)| (*at, items.len())).collect::<Vec<_>>(),
        [(0, 8), (0, 8), (10, 4)]
    );
    let stats = batch.stats();
    assert_eq!((stats.batches, stats.items, stats.failed), (3, 20, 0));
    assert_eq!((stats.waiting, stats.in_flight), (0, 0));
    assert_eq!((stats.waited, stats.longest_wait), (10 * MILLI, 10 * MILLI));
    assert!((stats.mean_size() - 20.0 / 3.0).abs() < 1e-9);
    assert_eq!(stats.mean_wait(), 10 * MILLI / 3);
}

/// Pitfall 38: zebra's worker closes for good with its first failed batch, and a wrong count shifts answers.
#[tokio::test(start_paused = true)]
async fn what_fails_a_batch_fails_its_members_only() {
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(2).linger(10 * MILLI).deadline(SECOND));
    let service = batch.layer().layer(doubler.service());
    let pair = async |one, two| tokio::join!(service.clone().oneshot(one), service.clone().oneshot(two));

    for round in 1..=3 {
        for (poison, expected) in [
            (PANIC, RejectionKind::Panicked),
            (PANIC_IN_CALL, RejectionKind::Panicked),
            (ONE_TOO_FEW, RejectionKind::Protocol),
            (ONE_TOO_MANY, RejectionKind::Protocol),
            (HANG, RejectionKind::Deadline),
        ] {
            let (one, two) = pair(1, poison).await;
            for error in [one.unwrap_err(), two.unwrap_err()] {
                let refusal = Rejected::find(&*error).unwrap();
                assert_eq!((refusal.kind(), refusal.layer()), (expected, "batch"));
                assert_eq!(refusal.class(), Class::Failure(RetryAfter::Unknown), "breakers outside count it");
                let count = chain(refusal).find_map(|error| error.downcast_ref::<WrongCount>());
                assert_eq!(count.is_some(), expected == RejectionKind::Protocol);
                if let Some(count) = count {
                    let results = if poison == ONE_TOO_FEW { 1 } else { 3 };
                    assert_eq!((count.items, count.results), (2, results));
                }
            }
            let (one, two) = pair(1, 2).await;
            assert_eq!((one.unwrap(), two.unwrap()), (2, 4), "the next batch goes");
        }
        let (one, two) = pair(1, FAIL).await;
        for error in [one.unwrap_err(), two.unwrap_err()] {
            assert!(error.is::<BatchFailed>());
            assert_eq!(error.source().unwrap().to_string(), "it fails");
        }
        let (one, two) = pair(1, FAIL_ALONE).await;
        assert_eq!((one.unwrap(), two.unwrap_err().to_string()), (2, "no such number".to_owned()));
        assert_eq!((batch.stats().failed, batch.stats().in_flight), (6 * round, 0));
    }
}

/// A refusal of a layer below reaches everybody as such.
#[tokio::test]
async fn a_refusal_from_below_is_found() {
    let below = service_fn(|_: Vec<u32>| async {
        Err::<Vec<Result<(), BoxError>>, _>(Rejected::new(RejectionKind::RateLimited, "rate-limit"))
    });
    let service = Batch::new(Settings::max_size(2)).layer().layer(below);
    let (one, two) = tokio::join!(service.clone().oneshot(1), service.clone().oneshot(2));
    assert_eq!([one, two].map(|it| kind(&it.unwrap_err())), [RejectionKind::RateLimited; 2]);
}

/// Pitfall 39: later items push the linger back, an emptied batch calls upstream, a dead member delays the rest.
#[tokio::test(start_paused = true)]
async fn whoever_leaves_before_the_batch_goes_is_not_in_it() {
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(3).linger(10 * MILLI));
    let service = batch.layer().layer(doubler.service());

    // Emptied: nothing goes, and the next one has its whole linger.
    let mut alone = spawn(service.clone().oneshot(1));
    assert!(alone.poll().is_pending());
    settle().await;
    drop(alone);
    assert_eq!(batch.stats().waiting, 0);
    sleep(5 * MILLI).await;
    let mut later = spawn(service.clone().oneshot(2));
    assert!(later.poll().is_pending());
    sleep(9 * MILLI).await;
    assert_eq!(doubler.log(), []);
    sleep(MILLI).await;
    settle().await;
    assert_eq!(doubler.log(), [(15, vec![2])]);

    // Thinned: the others do not wait longer, and the place is free.
    let mut calls: Vec<_> = (3..5).map(|n| spawn(service.clone().oneshot(n))).collect();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    settle().await;
    drop(calls.remove(0));
    calls.extend((5..7).map(|n| spawn(service.clone().oneshot(n))));
    sleep(3 * MILLI).await;
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    settle().await;
    assert_eq!(doubler.log()[1..], [(18, vec![4, 5, 6])], "it is full");
    for (n, mut call) in (4..).zip(calls) {
        assert!(call.is_woken());
        assert!(matches!(call.poll(), Poll::Ready(Ok(double)) if double == 2 * n));
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_leaves_later_changes_nothing_for_the_others() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(3));
    let service = batch.layer().layer(doubler.service());
    let mut calls: Vec<_> = (0..3).map(|n| spawn(service.clone().oneshot(n))).collect();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    settle().await;
    // One goes while the batch is under way, one when it was answered and before it looked.
    drop(calls.remove(1));
    doubler.permits.add_permits(1);
    settle().await;
    assert!(calls.iter().all(tokio_test::task::Spawn::is_woken));
    drop(calls.remove(0));
    assert!(matches!(calls[0].poll(), Poll::Ready(Ok(4))));
    assert_eq!((batch.stats().batches, batch.stats().in_flight), (1, 0));
}

/// An item and its result are dropped when they are of no use any more.
#[tokio::test(start_paused = true)]
async fn nothing_is_kept() {
    let item = Arc::new(());
    let batch = Batch::new(Settings::max_size(2));
    let gate = Arc::new(Semaphore::new(0));
    let below = gate.clone();
    let service = batch.layer().layer(service_fn(move |items: Vec<Arc<()>>| {
        let gate = below.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Ok::<_, BoxError>(items.into_iter().map(Ok::<_, BoxError>).collect::<Vec<_>>())
        }
    }));
    let call = || {
        let mut call = spawn(service.clone().oneshot(item.clone()));
        assert!(call.poll().is_pending());
        call
    };
    drop(call());
    assert_eq!(Arc::strong_count(&item), 1, "it waited");
    let (one, mut two) = (call(), call());
    settle().await;
    drop(one);
    gate.add_permits(1);
    settle().await;
    assert_eq!(Arc::strong_count(&item), 2, "nobody wants the first one's result");
    drop(two.poll());
    drop(two);
    assert_eq!(Arc::strong_count(&item), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_is_polled_twice_and_woken_once() {
    let doubler = Doubler::new(0);
    let service = Batch::new(Settings::max_size(2)).layer().layer(doubler.service());
    let mut call = spawn(service.oneshot(1));
    assert!(call.poll().is_pending());
    settle().await;
    assert!(!call.is_woken());
    doubler.permits.add_permits(1);
    settle().await;
    assert!(call.is_woken());
    assert!(matches!(call.poll(), Poll::Ready(Ok(2))));
}

/// The worker is woken when a batch begins, when it is full, and when it is answered, and not for every item.
#[tokio::test(start_paused = true)]
async fn the_worker_is_polled_for_batches_and_not_for_items() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(100).linger(SECOND));
    let (mut service, worker) = batch.layer().pair(doubler.service());
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    let mut join = || {
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(service.poll_ready(cx).is_ready());
        let mut call = spawn(service.call(1));
        assert!(call.poll().is_pending());
        call
    };
    let mut calls = vec![join()];
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    calls.extend((0..98).map(|_| join()));
    assert!(!worker.is_woken());
    calls.push(join());
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert!(!worker.is_woken());
    doubler.permits.add_permits(1);
    assert!(worker.is_woken());
    assert!(worker.poll().is_pending());
    assert!(!worker.is_woken());
    assert!(calls.iter_mut().all(|call| call.is_woken() && call.poll().is_ready()));
}

/// A task that counts how often it is woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

/// Who waits for many is woken once, who asks from elsewhere is woken there, and nobody else is.
#[tokio::test(start_paused = true)]
async fn the_task_that_asked_last_is_woken() {
    for failing in [false, true] {
        let doubler = Doubler::new(0);
        let batch = Batch::new(Settings::max_size(6).max_concurrent(1));
        let (service, worker) = batch.layer().pair(doubler.service());
        let mut worker = spawn(worker);
        let mut calls = Vec::new();
        for n in 0..6 {
            let n = if failing && n == 5 { FAIL } else { n };
            calls.push(service.clone().ready().await.unwrap().call(n));
        }
        let tasks: [Arc<Woken>; 4] = std::array::from_fn(|_| Arc::default());
        let mut ask = |call: usize, task: usize| {
            let waker = Waker::from(tasks[task].clone());
            std::pin::Pin::new(&mut calls[call]).poll(&mut Context::from_waker(&waker))
        };
        for (call, task) in [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (0, 0), (2, 1)] {
            assert!(ask(call, task).is_pending());
        }
        assert!(worker.poll().is_pending());
        // On the way they go to other tasks. The fifth goes away from its task, and the sixth never asked.
        for (call, task) in [(2, 3), (4, 3), (4, 0)] {
            assert!(ask(call, task).is_pending());
        }
        doubler.permits.add_permits(1);
        assert!(worker.poll().is_pending());
        assert_eq!(tasks.each_ref().map(|task| task.0.load(SeqCst)), [1, 1, 0, 1]);
        for call in 0..6 {
            let Poll::Ready(result) = ask(call, 2) else { panic!("it is answered") };
            assert_eq!(result.ok(), (!failing).then_some(2 * call as u32));
        }
        assert!(tasks.iter().all(|task| Arc::strong_count(task) == 1), "a task is kept");
    }
}

/// Of a task that all have left, nobody is woken.
#[tokio::test(start_paused = true)]
async fn a_task_that_nobody_waits_in_is_not_woken() {
    let doubler = Doubler::new(1);
    let (service, worker) = Batch::new(Settings::max_size(3)).layer().pair(doubler.service());
    let mut worker = spawn(worker);
    let tasks: [Arc<Woken>; 2] = std::array::from_fn(|_| Arc::default());
    let mut calls = Vec::new();
    for task in &tasks {
        let mut call = service.clone().ready().await.unwrap().call(1);
        let waker = Waker::from(task.clone());
        assert!(std::pin::Pin::new(&mut call).poll(&mut Context::from_waker(&waker)).is_pending());
        calls.push(call);
    }
    drop(calls.remove(0));
    assert!(worker.poll().is_pending());
    assert_eq!(tasks.each_ref().map(|task| task.0.load(SeqCst)), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn one_is_under_way_and_what_comes_meanwhile_goes_together() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(8).max_concurrent(1));
    let service = batch.layer().layer(doubler.service());
    let mut calls = Vec::new();
    for n in 0..4 {
        let mut call = spawn(service.clone().oneshot(n));
        assert!(call.poll().is_pending());
        calls.push(call);
        settle().await;
    }
    assert_eq!(doubler.batches(), [vec![0]]);
    assert_eq!((batch.stats().waiting, batch.stats().in_flight), (3, 1));
    doubler.permits.add_permits(1);
    settle().await;
    assert_eq!(doubler.batches(), [vec![0], vec![1, 2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn several_are_under_way_and_end_in_any_order() {
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = order.clone();
    let below = service_fn(move |items: Vec<u32>| {
        let log = log.clone();
        async move {
            sleep(items[0] * MILLI).await;
            log.lock().unwrap().push(items[0]);
            Ok::<_, BoxError>(items.into_iter().map(Ok::<_, BoxError>).collect::<Vec<_>>())
        }
    });
    let batch = Batch::new(Settings::max_size(1).max_concurrent(3));
    let service = batch.layer().layer(below);
    let calls: Vec<_> = [30, 10, 20, 5, 40].map(|n| tokio::spawn(service.clone().oneshot(n))).into();
    settle().await;
    assert_eq!((batch.stats().in_flight, batch.stats().waiting), (3, 2));
    for (n, call) in [30, 10, 20, 5, 40].into_iter().zip(calls) {
        assert_eq!(call.await.unwrap().unwrap(), n);
    }
    assert_eq!(*order.lock().unwrap(), [10, 5, 20, 30, 40]);
}

#[tokio::test(start_paused = true)]
async fn keys_do_not_mix_and_the_first_due_goes_first() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(2).linger(10 * MILLI).max_concurrent(1));
    let service = batch.layer().by(|n: &u32| n % 3).layer(doubler.service());
    let mut calls = Vec::new();
    for n in [0, 1, 2, 4, 5, 3] {
        let mut call = spawn(service.clone().oneshot(n));
        assert!(call.poll().is_pending());
        calls.push(call);
        sleep(MILLI).await;
    }
    for _ in 0..3 {
        doubler.permits.add_permits(1);
        settle().await;
    }
    assert_eq!(doubler.log(), [(3, vec![1, 4]), (6, vec![2, 5]), (6, vec![0, 3])]);
}

#[tokio::test(start_paused = true)]
async fn an_item_that_is_too_heavy_goes_alone() {
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(100).linger(10 * MILLI));
    let service = batch.layer().max_weight(100, |n: &u32| u64::from(*n)).layer(doubler.service());
    let calls: Vec<_> = [60, 30, 20, 500, 7, 93].map(|n| tokio::spawn(service.clone().oneshot(n))).into();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(doubler.log(), [(0, vec![60, 30]), (0, vec![20]), (0, vec![500]), (0, vec![7, 93])]);
}

#[tokio::test(start_paused = true)]
async fn so_many_may_wait_and_the_others_wait_their_turn() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(1).max_concurrent(1).max_pending(2));
    let service = batch.layer().layer(doubler.service());
    let mut calls: Vec<_> = (0..3).map(|n| spawn(service.clone().oneshot(n))).collect();
    for call in &mut calls {
        assert!(call.poll().is_pending());
        settle().await;
    }
    assert_eq!((batch.stats().in_flight, batch.stats().waiting), (1, 2));

    let [mut gives_up, mut third, mut fourth] = [3, 4, 5].map(|n| spawn(service.clone().oneshot(n)));
    for call in [&mut gives_up, &mut third, &mut fourth] {
        assert!(call.poll().is_pending());
    }
    // A place becomes free, and whoever gets it goes away: it is the next one's.
    doubler.permits.add_permits(1);
    settle().await;
    assert!(gives_up.is_woken() && !third.is_woken());
    drop(gives_up);
    assert!(third.is_woken() && !fourth.is_woken());
    assert!(third.poll().is_pending());
    assert_eq!(batch.stats().waiting, 2);
    // An item that leaves makes room too.
    drop(calls.pop());
    assert!(fourth.is_woken());
    // And so does a service that was ready and was not called.
    let mut ready = service.clone();
    drop(fourth);
    assert!(matches!(spawn(ready.ready()).poll(), Poll::Ready(Ok(_))));
    let mut next = spawn(service.clone().oneshot(6));
    assert!(next.poll().is_pending());
    assert!(!next.is_woken());
    drop(ready);
    assert!(next.is_woken());
}

#[tokio::test(start_paused = true)]
async fn shutdown_sends_what_waits_and_refuses_what_comes() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(10).linger(SECOND).max_concurrent(1).max_pending(2));
    let layer = batch.layer().by(|n: &u32| *n);
    let (mut service, worker) = layer.pair(doubler.service());
    let mut worker = spawn(worker);
    let mut calls: Vec<_> = (0..2).map(|n| spawn(service.clone().oneshot(n))).collect();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    let mut waits = spawn(service.clone().oneshot(2));
    assert!(waits.poll().is_pending());
    assert!(worker.poll().is_pending());
    assert_eq!(doubler.batches().len(), 0);

    batch.shutdown();
    let refused = |call: Poll<Result<u32, BoxError>>| {
        assert!(matches!(call, Poll::Ready(Err(error)) if kind(&error) == RejectionKind::Closed));
    };
    assert!(waits.is_woken());
    refused(waits.poll());
    refused(spawn(service.ready().await.unwrap().call(3)).poll());
    let (late, _worker) = layer.pair(doubler.service());
    refused(spawn(late.oneshot(4)).poll());

    // All go at once, as far as they may.
    assert!(worker.is_woken() && worker.poll().is_pending());
    assert_eq!(doubler.batches(), [[0]]);
    doubler.permits.add_permits(1);
    assert!(worker.is_woken() && worker.poll().is_pending());
    assert_eq!(doubler.batches(), [[0], [1]]);
    doubler.permits.add_permits(1);
    assert!(worker.poll().is_ready());
    for (n, mut call) in (0..).zip(calls) {
        assert!(matches!(call.poll(), Poll::Ready(Ok(double)) if double == 2 * n));
    }
    assert_eq!(batch.stats().waiting, 0);
    batch.shutdown();
}

#[tokio::test(start_paused = true)]
async fn when_nobody_can_join_any_more_what_waits_goes() {
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(10).linger(SECOND));
    let service = batch.layer().layer(doubler.service());
    let calls: Vec<_> = (0..2).map(|n| tokio::spawn(service.clone().oneshot(n))).collect();
    settle().await;
    drop(service);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(doubler.log(), [(0, vec![0, 1])]);
    settle().await;
    assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0, "the worker has ended");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_dropped_leaves_nobody_waiting() {
    let doubler = Doubler::new(0);
    let batch = Batch::new(Settings::max_size(2).max_pending(2).max_concurrent(1));
    let (service, worker) = batch.layer().pair(doubler.service());
    let mut calls: Vec<_> = (0..2).map(|n| spawn(service.clone().oneshot(n))).collect();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    let mut worker = spawn(worker);
    assert!(worker.poll().is_pending());
    // Two under way, two that wait, one that waits to wait.
    calls.extend((2..5).map(|n| spawn(service.clone().oneshot(n))));
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    drop(worker);
    calls.push(spawn(service.clone().oneshot(9)));
    for mut call in calls {
        let Poll::Ready(Err(error)) = call.poll() else { panic!("nobody answers it any more") };
        assert_eq!(kind(&error), RejectionKind::Closed);
    }
    let stats = batch.stats();
    assert_eq!((stats.waiting, stats.in_flight, stats.batches, stats.failed), (0, 0, 1, 1));
}

/// The user's functions are asked before anything is taken, so a panic in one leaves the place with its service.
#[tokio::test(start_paused = true)]
async fn a_key_or_a_weight_that_panics_changes_nothing() {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    let moody = |n: &u32| if *n == PANIC { std::panic::resume_unwind(Box::new("no key")) } else { 1 };
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(2).max_pending(1));
    for by_key in [true, false] {
        let layer = batch.layer();
        let (mut service, worker) = if by_key {
            layer.by(move |n| moody(n)).pair(doubler.service())
        } else {
            layer.by(|_| 1).max_weight(9, moody).pair(doubler.service())
        };
        let mut worker = spawn(worker);
        for _ in 0..3 {
            service.ready().await.unwrap();
            assert!(catch_unwind(AssertUnwindSafe(|| service.call(PANIC))).is_err());
            assert_eq!(batch.stats().waiting, 0);
        }
        let mut other = service.clone();
        assert!(spawn(other.ready()).poll().is_pending(), "the only place is the first one's");
        let mut call = spawn(service.call(1));
        assert!(worker.poll().is_pending());
        assert!(matches!(call.poll(), Poll::Ready(Ok(2))));
        assert!(spawn(other.ready()).poll().is_ready());
    }
}

/// Who is answered at the very moment at which time is up is answered.
#[tokio::test(start_paused = true)]
async fn an_answer_in_time_counts() {
    for (took, in_time) in [(999, true), (1_000, true), (1_001, false)] {
        let below = service_fn(move |items: Vec<u32>| async move {
            sleep(took * MILLI).await;
            Ok::<_, BoxError>(items.into_iter().map(Ok::<_, BoxError>).collect::<Vec<_>>())
        });
        let batch = Batch::new(Settings::max_size(2).linger(10 * MILLI).deadline(SECOND));
        let service = batch.layer().layer(below);
        let begin = Instant::now();
        let result = service.clone().oneshot(1).await;
        assert_eq!(result.is_ok(), in_time, "{took} ms");
        assert_eq!(begin.elapsed(), 10 * MILLI + took.min(1_000) * MILLI);
        assert_eq!(batch.stats().failed, u64::from(!in_time));
    }
}

/// Whatever the worker waits for: when nobody wants anything any more it ends.
#[tokio::test(start_paused = true)]
async fn when_all_have_left_the_worker_ends_whatever_it_waits_for() {
    let mood = Arc::new(Mutex::new(Mood::Busy(None)));
    for shut_down in [true, false] {
        let moody = Moody { doubler: Doubler::new(0), mood: mood.clone(), clones: Arc::default() };
        let batch = Batch::new(Settings::max_size(1));
        let (service, worker) = batch.layer().pair(moody);
        let mut worker = spawn(worker);
        let mut calls: Vec<_> = (0..2).map(|n| spawn(service.clone().oneshot(n))).collect();
        assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
        assert!(worker.poll().is_pending());
        if shut_down {
            batch.shutdown();
        }
        drop(service);
        assert!(worker.poll().is_pending());
        drop(calls.pop());
        assert!(!worker.is_woken());
        drop(calls.pop());
        assert!(worker.is_woken() && worker.poll().is_ready());
    }
}

/// An executor looks at the statistics when it wakes the worker.
#[tokio::test(start_paused = true)]
async fn statistics_are_right_while_it_is_shut_down() {
    struct Looks(Batch, Mutex<Vec<usize>>);

    impl Wake for Looks {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0.stats().waiting);
        }
    }

    let batch = Batch::new(Settings::max_size(9).linger(SECOND));
    let (mut service, worker) = batch.layer().pair(Doubler::new(0).service());
    let _call = service.ready().await.unwrap().call(1);
    let looks = Arc::new(Looks(batch.clone(), Mutex::default()));
    let mut worker = pin!(worker);
    let waker = Waker::from(looks.clone());
    assert!(worker.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    batch.shutdown();
    assert_eq!(*looks.1.lock().unwrap(), [1]);
}

/// An item that panics when it is dropped, once.
#[derive(Clone, Debug, Default)]
struct Bomb(Arc<AtomicUsize>);

impl Drop for Bomb {
    fn drop(&mut self) {
        if self.0.swap(0, SeqCst) > 0 {
            std::panic::resume_unwind(Box::new("an item panics"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn items_that_panic_when_they_are_dropped_harm_nobody() {
    let asked = Arc::new(AtomicUsize::new(0));
    let (service, worker) = Batch::new(Settings::max_size(2)).layer().pair(Broken { asked: asked.clone() });
    let mut worker = spawn(worker);
    for round in 1..3 {
        let bomb = Bomb(Arc::new(AtomicUsize::new(1)));
        let mut calls = [bomb.clone(), Bomb::default()].map(|item| spawn(service.clone().oneshot(item)));
        std::mem::forget(bomb);
        assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
        assert!(worker.poll().is_pending());
        assert!(
            calls
                .iter_mut()
                .all(|call| matches!(call.poll(), Poll::Ready(Err(error)) if error.is::<BatchFailed>()))
        );
        assert_eq!(asked.load(SeqCst), round);
    }
    // Two batches wait when the worker is dropped.
    let items = [1, 0, 0].map(|n| Bomb(Arc::new(AtomicUsize::new(n))));
    let mut calls = items.map(|item| spawn(service.clone().oneshot(item)));
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    drop(worker);
    for mut call in calls {
        assert!(matches!(call.poll(), Poll::Ready(Err(error)) if kind(&error) == RejectionKind::Closed));
    }
}

/// It is never ready.
#[derive(Clone)]
struct Broken {
    asked: Arc<AtomicUsize>,
}

impl Service<Vec<Bomb>> for Broken {
    type Response = Vec<Result<(), BoxError>>;
    type Error = BoxError;
    type Future = std::future::Pending<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.asked.fetch_add(1, SeqCst);
        Poll::Ready(Err("it is broken".into()))
    }

    fn call(&mut self, _: Vec<Bomb>) -> Self::Future {
        unreachable!("it is not ready")
    }
}

/// What becomes ready late, or not, or panics when it is asked.
#[derive(Clone)]
struct Moody {
    doubler: Doubler,
    mood: Arc<Mutex<Mood>>,
    clones: Arc<AtomicUsize>,
}

#[derive(Clone, Debug)]
enum Mood {
    Ready,
    Busy(Option<Waker>),
    Broken,
    Panics,
}

impl Service<Vec<u32>> for Moody {
    type Response = Vec<Result<u32, BoxError>>;
    type Error = BoxError;
    type Future = std::pin::Pin<Box<dyn Future<Output = Results> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.clones.fetch_add(1, SeqCst);
        let mood = &mut *self.mood.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match mood {
            Mood::Ready => Poll::Ready(Ok(())),
            Mood::Busy(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            Mood::Broken => Poll::Ready(Err("it is broken".into())),
            Mood::Panics => panic!("poll_ready panics"),
        }
    }

    fn call(&mut self, items: Vec<u32>) -> Self::Future {
        self.doubler.log.lock().unwrap().push((Duration::ZERO, items.clone()));
        Box::pin(self.doubler.clone().answer(items))
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_ready_gathers_more_and_one_that_fails_is_asked_anew() {
    let mood = Arc::new(Mutex::new(Mood::Ready));
    let asked = Arc::new(AtomicUsize::new(0));
    let moody = Moody { doubler: Doubler::new(100), mood: mood.clone(), clones: asked.clone() };
    let batch = Batch::new(Settings::max_size(3));
    let service = batch.layer().layer(moody.clone());
    settle().await;
    assert_eq!(asked.load(SeqCst), 0, "nobody asks for a readiness that nobody needs");

    *mood.lock().unwrap() = Mood::Busy(None);
    let mut calls: Vec<_> = (0..3).map(|n| spawn(service.clone().oneshot(n))).collect();
    for call in &mut calls {
        assert!(call.poll().is_pending());
        settle().await;
    }
    drop(calls.remove(0));
    let Mood::Busy(Some(waker)) = std::mem::replace(&mut *mood.lock().unwrap(), Mood::Ready) else {
        panic!("the worker waits")
    };
    waker.wake();
    settle().await;
    assert_eq!(moody.doubler.batches(), [vec![1, 2]]);

    for (bad, expected) in [(Mood::Broken, None), (Mood::Panics, Some(RejectionKind::Panicked))] {
        *mood.lock().unwrap() = bad;
        let error = service.clone().oneshot(5).await.unwrap_err();
        assert_eq!(Rejected::find(&*error).map(Rejected::kind), expected);
        *mood.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Mood::Ready;
        mood.clear_poison();
        assert_eq!(service.clone().oneshot(6).await.unwrap(), 12);
    }
}

#[tokio::test(start_paused = true)]
async fn a_readiness_that_nobody_needs_any_more_is_given_back() {
    let permits = tower::limit::GlobalConcurrencyLimitLayer::new(1);
    let held = permits.layer(service_fn(|()| pending::<Result<(), BoxError>>()));
    let holder = held.clone().oneshot(());
    let mut holder = spawn(holder);
    assert!(holder.poll().is_pending());

    let doubler = Doubler::new(100);
    let service = Batch::new(Settings::max_size(3)).layer().layer(permits.layer(doubler.service()));
    let mut call = spawn(service.clone().oneshot(1));
    assert!(call.poll().is_pending());
    settle().await;
    drop(call);
    drop(holder);
    settle().await;
    let mut other = held.clone();
    assert!(matches!(spawn(other.ready()).poll(), Poll::Ready(Ok(_))), "the worker keeps the only permit");
}

#[tokio::test(start_paused = true)]
async fn deadlines_are_counted_from_when_a_batch_goes() {
    let doubler = Doubler::new(100);
    let batch = Batch::new(Settings::max_size(1).max_concurrent(1).deadline(SECOND));
    let service = batch.layer().layer(doubler.service());
    let begin = Instant::now();
    let calls: Vec<_> = [HANG, HANG, 7].map(|n| tokio::spawn(service.clone().oneshot(n))).into();
    let mut ends = Vec::new();
    for call in calls {
        ends.push((call.await.unwrap().map_err(|error| kind(&error)), begin.elapsed()));
    }
    assert_eq!(
        ends,
        [
            (Err(RejectionKind::Deadline), SECOND),
            (Err(RejectionKind::Deadline), 2 * SECOND),
            (Ok(14), 2 * SECOND)
        ]
    );
}

/// Many callers on several threads, batches on several at once, some who leave: everybody who stays is answered rightly.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_everybody_gets_his_own_answer() {
    let most = Arc::new(AtomicUsize::new(0));
    let seen = most.clone();
    let below = service_fn(move |items: Vec<u64>| {
        seen.fetch_max(items.len(), SeqCst);
        async move {
            sleep(MILLI / 10).await;
            Ok::<_, BoxError>(items.into_iter().map(|n| Ok::<_, Infallible>(n + 1)).collect::<Vec<_>>())
        }
    });
    let batch = Batch::new(Settings::max_size(16).max_concurrent(2).max_pending(64).linger(MILLI));
    let service = batch.layer().by(|n: &u64| n % 3).layer(below);
    let callers = (0..64).map(|caller: u64| {
        let service = service.clone();
        tokio::spawn(async move {
            for n in (0..100).map(|n| 100 * caller + n) {
                if n % 7 == 0 {
                    let mut gone = pin!(service.clone().oneshot(n));
                    let _ = std::future::poll_fn(|cx| Poll::Ready(gone.as_mut().poll(cx))).await;
                    continue;
                }
                assert_eq!(service.clone().oneshot(n).await.unwrap(), n + 1);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    drop(service);
    while batch.stats().in_flight > 0 {
        sleep(MILLI).await;
    }
    assert!(most.load(SeqCst) <= 16);
    assert_eq!((batch.stats().waiting, batch.stats().failed), (0, 0));
}
