//! Every interleaving of a few threads that wait for the same work.
//!
//! Threads poll as tasks would. Once all have gone, whoever was woken is polled again, until nobody is; then everybody must
//! have come to his end, but for those who are parked on purpose.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use loom::{model::Builder, thread};

use super::*;

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// Work that gives a result whenever somebody outside lets it, or panics then.
#[derive(Clone)]
struct Inner(Arc<Mutex<Outside>>);

#[derive(Default)]
struct Outside {
    allowed: usize,
    given: usize,
    panics: bool,
    waker: Option<Waker>,
    polls: usize,
    wakes: usize,
}

impl Inner {
    fn new(panics: bool) -> Self {
        Self(Arc::new(Mutex::new(Outside { panics, ..Outside::default() })))
    }

    /// `None` is a panic: the checker's threads are one thread, in which two panics at once would be the end.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<usize>> {
        let mut outside = lock(&self.0);
        outside.polls += 1;
        if outside.given == outside.allowed {
            outside.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        outside.given += 1;
        Poll::Ready((!outside.panics).then_some(outside.given))
    }

    fn allow(&self) {
        let mut outside = lock(&self.0);
        outside.allowed += 1;
        let waker = outside.waker.take();
        outside.wakes += usize::from(waker.is_some());
        drop(outside);
        waker.into_iter().for_each(Waker::wake);
    }
}

/// As many results as there are to be.
struct Log {
    results: Vec<Result<usize, ()>>,
    all: usize,
}

impl Results for Log {
    type Item = usize;

    fn add(&mut self, item: usize) -> bool {
        self.results.push(Ok(item));
        self.results.len() < self.all
    }

    fn panicked(&mut self) {
        self.results.push(Err(()));
    }
}

#[derive(Default)]
struct Task {
    woken: AtomicBool,
}

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, SeqCst);
    }
}

type Shared = Arc<Relay<Inner, Log>>;

fn relay(inner: &Inner, all: usize) -> Shared {
    Arc::new(Relay::new(Some(inner.clone()), Log { results: Vec::new(), all }))
}

/// Someone who reads results one by one.
struct Reader {
    relay: Shared,
    place: Place,
    got: Vec<Result<usize, ()>>,
    task: Arc<Task>,
    polls: usize,
    all: usize,
}

impl Reader {
    fn new(relay: &Shared, all: usize) -> Self {
        let (place, task) = (Place::default(), Arc::default());
        Self { relay: relay.clone(), place, got: Vec::new(), task, polls: 0, all }
    }

    fn is_done(&self) -> bool {
        self.got.len() == self.all || self.got.contains(&Err(()))
    }

    /// One turn of its task: reads until it must wait. A panic of the work is its own.
    fn turn(&mut self) {
        self.polls += 1;
        self.task.woken.store(false, SeqCst);
        let own = Waker::from(self.task.clone());
        while !self.is_done() {
            let at = self.got.len();
            let mut take = |log: &mut Log| log.results.get(at).copied();
            let mut outing = match self.relay.turn(&mut self.place, &own, &mut take) {
                Turn::Found(result) => {
                    self.got.push(result);
                    continue;
                }
                Turn::Waits => return,
                Turn::Drives(outing) => outing,
            };
            // What `Relay::poll` does, but for a panic.
            let waker = outing.rope.map_or(&own, |rope| &rope.waker);
            let work = outing.work.as_mut().unwrap();
            match work.poll(&mut Context::from_waker(waker)) {
                Poll::Pending => {
                    if outing.back(&mut self.place, &own) {
                        return;
                    }
                }
                Poll::Ready(Some(item)) => {
                    self.got.extend(outing.result(item, &mut self.place, take));
                }
                Poll::Ready(None) => drop(outing),
            }
        }
    }

    /// Takes turns as long as it is woken.
    fn turns(&mut self) -> bool {
        let mut any = false;
        while !self.is_done() && self.task.woken.load(SeqCst) {
            self.turn();
            any = true;
        }
        any
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.relay.leave(&mut self.place);
    }
}

fn settle(readers: &mut [Reader]) {
    while readers.iter_mut().any(Reader::turns) {}
}

fn threads(readers: Vec<Reader>) -> Vec<thread::JoinHandle<Reader>> {
    let turn = |mut reader: Reader| {
        thread::spawn(move || {
            reader.turn();
            reader
        })
    };
    readers.into_iter().map(turn).collect()
}

#[test]
fn everybody_gets_the_result() {
    static POLLS: AtomicUsize = AtomicUsize::new(0);
    model(|| {
        let inner = Inner::new(false);
        let relay = relay(&inner, 1);
        let others = threads(vec![Reader::new(&relay, 1), Reader::new(&relay, 1)]);
        inner.allow();
        let mut readers: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
        settle(&mut readers);
        let outside = lock(&inner.0);
        // Once at first, and once more to have the bell.
        assert!(outside.polls <= outside.wakes + 2, "{} polls, {} wakes", outside.polls, outside.wakes);
        for reader in &readers {
            assert_eq!(reader.got, [Ok(1)]);
            assert!(reader.polls <= outside.wakes + 2, "{} polls, {} wakes", reader.polls, outside.wakes);
            POLLS.fetch_max(reader.polls, SeqCst);
        }
    });
    assert!(POLLS.load(SeqCst) >= 2, "somebody had to wait in some order");
}

/// The one who came first had the work to himself, and waits when the other one comes.
#[test]
fn the_first_one_is_woken_whoever_drives() {
    model(|| {
        let inner = Inner::new(false);
        let relay = relay(&inner, 1);
        let mut first = Reader::new(&relay, 1);
        first.turn();
        let others = threads(vec![Reader::new(&relay, 1)]);
        let lets = {
            let inner = inner.clone();
            thread::spawn(move || inner.allow())
        };
        first.turns();
        lets.join().unwrap();
        let mut readers: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
        readers.push(first);
        settle(&mut readers);
        readers.iter().for_each(|reader| assert_eq!(reader.got, [Ok(1)]));
    });
}

#[test]
fn everybody_gets_all_results_in_order() {
    model(|| {
        let inner = Inner::new(false);
        let relay = relay(&inner, 2);
        let others = threads(vec![Reader::new(&relay, 2)]);
        let mut own = Reader::new(&relay, 2);
        inner.allow();
        own.turn();
        inner.allow();
        let mut readers: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
        readers.push(own);
        settle(&mut readers);
        readers.iter().for_each(|reader| assert_eq!(reader.got, [Ok(1), Ok(2)]));
    });
}

#[test]
fn whoever_is_parked_or_gone_keeps_nobody_waiting() {
    for gone in [false, true] {
        model(move || {
            let inner = Inner::new(false);
            let relay = relay(&inner, 1);
            let mut first = Reader::new(&relay, 1);
            first.turn();
            let others = threads(vec![Reader::new(&relay, 1)]);
            inner.allow();
            // It may have been woken: if it goes, or is never polled, that is no reason for the other one to wait.
            let first = (!gone).then_some(first);
            let mut readers: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
            settle(&mut readers);
            assert_eq!(readers[0].got, [Ok(1)]);
            drop(first);
        });
    }
}

#[test]
fn everybody_learns_of_a_panic() {
    model(|| {
        let inner = Inner::new(true);
        let relay = relay(&inner, 1);
        let others = threads(vec![Reader::new(&relay, 1), Reader::new(&relay, 1)]);
        inner.allow();
        let mut readers: Vec<_> = others.into_iter().map(|thread| thread.join().unwrap()).collect();
        settle(&mut readers);
        readers.iter().for_each(|reader| assert_eq!(reader.got, [Err(())]));
        assert_eq!(lock(&inner.0).given, 1, "it is not asked again");
    });
}
