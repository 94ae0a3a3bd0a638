//! Batchers: ours, one written by hand of a channel and a oneshot for each item, and zebra's tower-batch-control.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    mem,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bartizan_batch::{Batch, Settings};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
    time::sleep,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_batch_control::{Batch as Zebra, BatchControl, RequestWeight};

use crate::{
    BoxError,
    measure::{Contender, Figures, Plan},
    report::Table,
};

const BASELINE: &str = "mpsc and a oneshot each, written by hand";
const POLISHED: &str = "the same, that receives many at once";

const MAX_PENDING: usize = 1024;

const AN_HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn compare(plan: Plan) -> Vec<Table> {
    let mut tables = Vec::new();
    for size in [100, 10, 1] {
        tables.push(
            Table::new(
                format!("Batches of {size}, one task that waits for all"),
                BASELINE,
                one_task(plan, size),
            )
            .note("(1) answers each item by itself: it gathers none, and gives no results by position."),
        );
    }
    tables.push(Table::new("Batches of 100, a task for each caller", BASELINE, tasks(plan)));
    tables
}

/// Nothing but the batcher: what is woken is always the same.
fn one_task(plan: Plan, size: usize) -> Vec<Figures> {
    plan.on_one_thread(&[
        Contender::new(BASELINE, |_| {
            let (runtime, plain) = on_a_runtime(|| Plain::spawn(size));
            move |calls| runtime.block_on(in_rounds(&plain, calls, size))
        }),
        Contender::new(POLISHED, |_| {
            let (runtime, plain) = on_a_runtime(|| Plain::spawn_polished(size));
            move |calls| runtime.block_on(in_rounds(&plain, calls, size))
        }),
        Contender::new("ours", |_| {
            let (runtime, ours) = on_a_runtime(|| ours(size));
            move |calls| runtime.block_on(in_rounds(&ours, calls, size))
        }),
        Contender::new("zebra's tower-batch-control (1)", |_| {
            let (runtime, zebra) = on_a_runtime(|| Zebra::new(Alone, size, 1, AN_HOUR));
            move |calls| runtime.block_on(in_rounds(&zebra, calls, size))
        }),
    ])
}

/// As it is in a server: most of it is the runtime's, for every contender.
fn tasks(plan: Plan) -> Vec<Figures> {
    const CALLERS: usize = 100;
    plan.on_one_thread(&[
        Contender::new(BASELINE, |_| {
            let (runtime, plain) = on_a_runtime(|| Plain::spawn(CALLERS));
            move |calls| runtime.block_on(in_tasks(&plain, calls, CALLERS))
        }),
        Contender::new(POLISHED, |_| {
            let (runtime, plain) = on_a_runtime(|| Plain::spawn_polished(CALLERS));
            move |calls| runtime.block_on(in_tasks(&plain, calls, CALLERS))
        }),
        Contender::new("ours", |_| {
            let (runtime, ours) = on_a_runtime(|| ours(CALLERS));
            move |calls| runtime.block_on(in_tasks(&ours, calls, CALLERS))
        }),
        Contender::new("zebra's tower-batch-control (1)", |_| {
            let (runtime, zebra) = on_a_runtime(|| Zebra::new(Alone, CALLERS, 1, AN_HOUR));
            move |calls| runtime.block_on(in_tasks(&zebra, calls, CALLERS))
        }),
    ])
}

fn on_a_runtime<T>(make: impl FnOnce() -> T) -> (Runtime, T) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let made = {
        let _entered = runtime.enter();
        make()
    };
    (runtime, made)
}

/// So many calls at once, and again when all of them are answered.
async fn in_rounds<S>(service: &S, calls: u64, size: usize)
where
    S: Service<Item, Response = u64, Error: std::fmt::Debug, Future: Unpin> + Clone,
{
    let mut service = service.clone();
    let mut round = Vec::with_capacity(size);
    for _ in 0..calls / size as u64 {
        for n in 0..size as u64 {
            let mut call = service.ready().await.expect("it is open").call(Item(n));
            // Everybody waits before anybody is answered.
            assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut call).poll(cx).is_pending())).await);
            round.push(call);
        }
        for (n, call) in (0..).zip(round.drain(..)) {
            assert_eq!(call.await.expect("it is answered"), n + 1);
        }
    }
}

/// So many callers, who make one call after the other.
async fn in_tasks<S>(service: &S, calls: u64, callers: usize)
where
    S: Service<Item, Response = u64, Error: std::fmt::Debug + Send, Future: Send> + Clone + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for caller in 0..callers as u64 {
        let mut service = service.clone();
        tasks.spawn(async move {
            for n in 0..calls / callers as u64 {
                let answer = service.ready().await.expect("it is open").call(Item(caller + n)).await;
                assert_eq!(answer.expect("it is answered"), caller + n + 1);
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.expect("a caller");
    }
}

#[derive(Debug)]
struct Item(u64);

/// What is done with a batch, by all that gather one.
fn answer(items: Vec<Item>) -> Ready<Result<Vec<Result<u64, Infallible>>, Infallible>> {
    ready(Ok(items.into_iter().map(|Item(n)| Ok(n + 1)).collect()))
}

fn ours(size: usize) -> bartizan_batch::Batched<Item, u64, Infallible> {
    let settings = Settings::max_size(size).linger(AN_HOUR).max_concurrent(1).max_pending(MAX_PENDING);
    Batch::new(settings).layer().layer(service_fn(answer))
}

/// The batcher that one writes in an hour: a bounded channel, a task that gathers until there are enough or the first has
/// waited long enough, and a oneshot for each answer.
#[derive(Debug)]
struct Plain {
    send: Option<mpsc::Sender<Sent>>,
    place: Option<mpsc::OwnedPermit<Sent>>,
}

type Sent = (Item, oneshot::Sender<u64>);

impl Plain {
    fn spawn(size: usize) -> Self {
        let (send, mut receive) = mpsc::channel::<Sent>(MAX_PENDING);
        tokio::spawn(async move {
            while let Some(first) = receive.recv().await {
                let mut came = Vec::with_capacity(size);
                came.push(first);
                let mut linger = pin!(sleep(AN_HOUR));
                while came.len() < size {
                    tokio::select! {
                        biased;
                        next = receive.recv() => match next {
                            Some(next) => came.push(next),
                            None => break,
                        },
                        () = &mut linger => break,
                    }
                }
                give(came).await;
            }
        });
        Self { send: Some(send), place: None }
    }

    /// The same, polished: it takes all that there is from the channel at once.
    fn spawn_polished(size: usize) -> Self {
        let (send, mut receive) = mpsc::channel::<Sent>(MAX_PENDING);
        tokio::spawn(async move {
            let mut came = Vec::with_capacity(size);
            while receive.recv_many(&mut came, size).await > 0 {
                let mut linger = pin!(sleep(AN_HOUR));
                while let missing @ 1.. = size - came.len() {
                    tokio::select! {
                        biased;
                        more = receive.recv_many(&mut came, missing) => if more == 0 { break },
                        () = &mut linger => break,
                    }
                }
                give(mem::replace(&mut came, Vec::with_capacity(size))).await;
            }
        });
        Self { send: Some(send), place: None }
    }
}

/// Has a batch answered, and gives everybody his answer.
async fn give(batch: Vec<Sent>) {
    let (items, callers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    let Ok(results) = answer(items).await;
    for (caller, Ok(result)) in callers.into_iter().zip(results) {
        let _ = caller.send(result);
    }
}

impl Clone for Plain {
    fn clone(&self) -> Self {
        Self { send: self.send.clone(), place: None }
    }
}

impl Service<Item> for Plain {
    type Response = u64;
    type Error = oneshot::error::RecvError;
    type Future = oneshot::Receiver<u64>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if let Some(send) = self.send.take() {
            self.place = Some(send.try_reserve_owned().expect("there are fewer callers than places"));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, item: Item) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        let place = self.place.take().expect("it is ready");
        self.send = Some(place.send((item, answer)));
        answered
    }
}

impl RequestWeight for Item {}

/// A service as zebra's batcher wants it: it is told each item, and when a batch is over.
#[derive(Clone, Copy, Debug)]
struct Alone;

impl Service<BatchControl<Item>> for Alone {
    type Response = u64;
    type Error = BoxError;
    type Future = Ready<Result<u64, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, told: BatchControl<Item>) -> Self::Future {
        ready(Ok(match told {
            BatchControl::Item(Item(n)) => n + 1,
            BatchControl::Flush => 0,
        }))
    }
}
