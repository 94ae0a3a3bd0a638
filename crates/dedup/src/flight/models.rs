//! Every interleaving of callers who come and go at one key.
//!
//! The standard library's reference counts are no part of the model: they change between two points at which threads may
//! switch, never at one.

use std::mem;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::task::{Wake, Waker};

use loom::{model::Builder, thread};

use super::*;
use crate::{Identity, Limits, Replay, table::Found};

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// A task that knows whether it is to be polled.
struct Task(AtomicBool);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// How many executions began, and how many are there.
#[derive(Clone, Default)]
struct Count(Arc<[AtomicUsize; 2]>);

/// An execution that is done when it was polled so often, and asks to be polled again until then.
struct Counted {
    count: Count,
    polls: usize,
    has_begun: bool,
}

impl Count {
    fn execution(&self, polls: usize) -> Counted {
        self.0[1].fetch_add(1, SeqCst);
        Counted { count: self.clone(), polls, has_begun: false }
    }

    fn began(&self) -> usize {
        self.0[0].load(SeqCst)
    }

    fn under_way(&self) -> usize {
        self.0[1].load(SeqCst)
    }
}

impl Future for Counted {
    type Output = Result<Recorded<u8>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if !mem::replace(&mut self.has_begun, true) {
            self.count.0[0].fetch_add(1, SeqCst);
        }
        if self.polls > 0 {
            self.polls -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(Recorded { tape: 7, verdict: Verdict::Keep(Limits::none()), size: Some(1) }))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.count.0[1].fetch_sub(1, SeqCst);
    }
}

/// A caller, from asking to the answer.
struct Caller {
    seat: Option<Seat<u8, u8>>,
    answer: Option<u8>,
    task: Arc<Task>,
}

impl Caller {
    fn asks(table: &Arc<Table<u8, u8>>, count: &Count, polls: usize) -> Self {
        let (seat, answer) = match table.find(Identity::new(1), || count.execution(polls)) {
            Found::Kept(value, _) => (None, value.ok().map(|answer| *answer)),
            Found::Joined(flight, _) => (Some(Seat::new(flight, false)), None),
            Found::Leads(flight) => (Some(Seat::new(flight, true)), None),
            Found::Stale(..) | Found::Conflict => {
                unreachable!("nothing gets stale, nothing has a fingerprint")
            }
        };
        Self { seat, answer, task: Arc::new(Task(AtomicBool::new(true))) }
    }

    fn turn(&mut self) {
        self.task.0.store(false, SeqCst);
        let waker = Waker::from(self.task.clone());
        let Some(seat) = &mut self.seat else { return };
        if let Poll::Ready(arrival) = seat.poll(&mut Context::from_waker(&waker)) {
            self.answer = match arrival {
                Arrival::Own(answer) => Some(answer),
                Arrival::Shared(Outcome::Done(Ok(answer))) => Some(*answer),
                Arrival::Shared(_) => unreachable!("the call succeeds"),
            };
            self.seat = None;
        }
    }

    fn is_woken(&self) -> bool {
        self.seat.is_some() && self.task.0.load(SeqCst)
    }
}

fn settle(callers: &mut [Caller]) {
    while let Some(caller) = callers.iter_mut().find(|caller| caller.is_woken()) {
        caller.turn();
    }
}

#[test]
fn whoever_stays_is_answered_and_the_key_is_free_when_all_have_gone() {
    for keeps in [false, true] {
        model(move || {
            let replay = if keeps { Replay::ttl(std::time::Duration::from_secs(60)) } else { Replay::none() };
            let table = Arc::new(Table::new(replay.max_entries(1)));
            let count = Count::default();
            // It goes after one turn, answered or not.
            let goes = {
                let (table, count) = (table.clone(), count.clone());
                thread::spawn(move || Caller::asks(&table, &count, 1).turn())
            };
            let stays = {
                let (table, count) = (table.clone(), count.clone());
                thread::spawn(move || {
                    let mut caller = Caller::asks(&table, &count, 1);
                    caller.turn();
                    caller
                })
            };
            goes.join().unwrap();
            let mut callers = [stays.join().unwrap()];
            settle(&mut callers);
            assert_eq!(callers[0].answer, Some(7));
            assert!((1..=2).contains(&count.began()));
            assert_eq!(count.under_way(), 0, "what is done is dropped");
            let stats = table.stats();
            assert_eq!((stats.in_flight, stats.entries), (0, usize::from(keeps)));
        });
    }
}

#[test]
fn a_call_dies_with_the_last_caller_only() {
    model(|| {
        let table = Arc::new(Table::new(Replay::none().max_entries(1)));
        let count = Count::default();
        let mut first = Caller::asks(&table, &count, usize::MAX);
        first.turn();
        let second = {
            let (table, count) = (table.clone(), count.clone());
            thread::spawn(move || Caller::asks(&table, &count, usize::MAX))
        };
        drop(first);
        let second = second.join().unwrap();
        assert_eq!(count.under_way(), 1, "it goes on for the second one, or it is another one");
        drop(second);
        assert_eq!(count.under_way(), 0);
        assert_eq!(table.stats().in_flight, 0);
    });
}

#[test]
fn what_was_invalidated_does_not_come_back() {
    model(|| {
        let table = Arc::new(Table::new(Replay::ttl(std::time::Duration::from_secs(60)).max_entries(1)));
        let count = Count::default();
        let mut caller = Caller::asks(&table, &count, 0);
        let other = {
            let table = table.clone();
            thread::spawn(move || table.invalidate(&1))
        };
        caller.turn();
        assert_eq!(caller.answer, Some(7), "whoever waits gets it");
        other.join().unwrap();
        // Invalidated before it landed or after, it is gone.
        assert_eq!(table.stats().entries, 0);
    });
}
