use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use super::*;

/// Results, and how many there are to be.
struct Log(Vec<u8>, usize);

impl Results for Log {
    type Item = u8;

    fn add(&mut self, item: u8) -> bool {
        self.0.push(item);
        self.0.len() < self.1
    }

    fn panicked(&mut self) {}
}

/// Work that has the waker it was last polled with, and this to give.
#[derive(Default)]
struct Work(Arc<Mutex<(Option<Waker>, Vec<u8>)>>);

type Shared = Relay<Work, Log>;

fn relay(all: usize) -> (Shared, Work) {
    let work = Work::default();
    (Relay::new(Some(Work(work.0.clone())), Log(Vec::new(), all)), work)
}

impl Work {
    fn give(&self, item: u8) {
        let mut inside = lock(&self.0);
        inside.1.push(item);
        let waker = inside.0.take();
        drop(inside);
        waker.into_iter().for_each(Waker::wake);
    }

    fn poll(&self, cx: &Context<'_>) -> Poll<u8> {
        let mut inside = lock(&self.0);
        inside.0 = Some(cx.waker().clone());
        inside.1.pop().map_or(Poll::Pending, Poll::Ready)
    }
}

#[derive(Default)]
struct Task(AtomicUsize);

impl Wake for Task {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, SeqCst);
    }
}

#[derive(Default)]
struct Reader {
    place: Place,
    at: usize,
    task: Arc<Task>,
}

impl Reader {
    fn poll(&mut self, relay: &Shared) -> Poll<u8> {
        let waker = Waker::from(self.task.clone());
        let (at, cx) = (self.at, &mut Context::from_waker(&waker));
        let take = |log: &mut Log| log.0.get(at).copied();
        let polled = relay.poll(&mut self.place, cx, take, |work, cx| work.poll(cx).map(Yield::Shared));
        self.at += usize::from(polled.is_ready());
        polled
    }

    fn wakes(&self) -> usize {
        self.task.0.load(SeqCst)
    }
}

#[test]
fn places_are_used_again() {
    let (relay, _work) = relay(1);
    let mut stays = Reader::default();
    assert!(stays.poll(&relay).is_pending());
    for _ in 0..100 {
        let mut goes = Reader::default();
        assert!(goes.poll(&relay).is_pending());
        relay.leave(&mut goes.place);
    }
    let rope = relay.bell.get().expect("there was a second one");
    assert_eq!(rope.bell.waiting().wakers.len(), 2);
}

#[test]
fn whoever_is_alone_lends_the_work_his_waker_and_hangs_up_no_bell() {
    let (relay, work) = relay(3);
    let mut reader = Reader::default();
    assert!(reader.poll(&relay).is_pending());
    work.give(1);
    assert_eq!(reader.wakes(), 1);
    assert_eq!(reader.poll(&relay), Poll::Ready(1));
    assert!(lock(&relay.state).first.is_none(), "he does not wait now");
    assert!(reader.poll(&relay).is_pending());
    let task = Arc::downgrade(&reader.task);
    relay.leave(&mut reader.place);
    drop(reader);
    *lock(&work.0) = Default::default();
    assert_eq!(task.strong_count(), 0, "nothing of him is left");
    assert!(relay.bell.get().is_none());
}

#[test]
fn nobody_is_woken_for_what_he_has_fetched_himself() {
    let (relay, work) = relay(3);
    let mut readers = [(); 2].map(|()| Reader::default());
    for reader in &mut readers {
        assert!(reader.poll(&relay).is_pending());
    }
    for item in 1..=3 {
        work.give(item);
        assert_eq!([0, 1].map(|n| readers[n].wakes()), [item; 2].map(usize::from));
        for reader in &mut readers {
            assert_eq!(reader.poll(&relay), Poll::Ready(item));
        }
        if item < 3 {
            readers.iter_mut().for_each(|reader| assert!(reader.poll(&relay).is_pending()));
        }
        assert_eq!([0, 1].map(|n| readers[n].wakes()), [item; 2].map(usize::from));
    }
}

/// He has the work, and another one comes and goes: the work has the bell then, and the bell his waker.
#[test]
fn whoever_ends_alone_what_he_had_company_with_leaves_no_waker_behind() {
    let (relay, work) = relay(1);
    let mut reader = Reader::default();
    assert!(reader.poll(&relay).is_pending());
    let waker = Waker::from(reader.task.clone());
    let mut polls = 0;
    let step = |inside: &mut Work, cx: &mut Context<'_>| {
        polls += 1;
        if polls == 1 {
            let mut other = Reader::default();
            assert!(other.poll(&relay).is_pending());
            relay.leave(&mut other.place);
            work.give(1);
            return Poll::Pending;
        }
        inside.poll(cx).map(Yield::Own)
    };
    let polled = relay.poll(&mut reader.place, &mut Context::from_waker(&waker), |_| None, step);
    assert_eq!((polled, polls), (Poll::Ready(1), 2));
    let task = Arc::downgrade(&reader.task);
    relay.leave(&mut reader.place);
    drop((reader, waker, relay));
    assert!(lock(&work.0).0.is_some(), "somebody has the bell still");
    assert_eq!(task.strong_count(), 0);
}
