//! Batchers: ours, one written by hand of a channel and a oneshot for each item, and zebra's tower-batch-control.

use std::{
    convert::Infallible,
    future::{Ready, poll_fn, ready},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bartizan_batch::{Batch, Settings};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_batch_control::{Batch as Zebra, BatchControl, RequestWeight};

use crate::{
    BoxError,
    measure::{Contender, Figures, Plan},
    report::Table,
};

const BASELINE: &str = "mpsc and a oneshot each, written by hand";

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
    let settings = Settings::max_size(size).linger(AN_HOUR).max_concurrent(1);
    Batch::new(settings).layer().layer(service_fn(answer))
}

/// The batcher that one writes in an hour.
#[derive(Clone, Debug)]
struct Plain(mpsc::UnboundedSender<(Item, oneshot::Sender<u64>)>);

impl Plain {
    fn spawn(size: usize) -> Self {
        let (send, mut receive) = mpsc::unbounded_channel::<(Item, oneshot::Sender<u64>)>();
        tokio::spawn(async move {
            let mut came = Vec::with_capacity(size);
            loop {
                let missing = size - came.len();
                match receive.recv_many(&mut came, missing).await {
                    0 => break,
                    more if more < missing => continue,
                    _ => {}
                }
                let (items, callers): (Vec<_>, Vec<_>) = came.drain(..).unzip();
                let Ok(results) = answer(items).await;
                for (caller, Ok(result)) in callers.into_iter().zip(results) {
                    let _ = caller.send(result);
                }
            }
        });
        Self(send)
    }
}

impl Service<Item> for Plain {
    type Response = u64;
    type Error = oneshot::error::RecvError;
    type Future = oneshot::Receiver<u64>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, item: Item) -> Self::Future {
        let (answer, answered) = oneshot::channel();
        self.0.send((item, answer)).expect("the task runs");
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
