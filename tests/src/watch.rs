//! A task that counts: polls, wakes, and what is wrong with them.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
};

/// More polls than any call needs that waits for its wake-ups.
pub const MAX_POLLS: usize = 1_000;

/// A future polled by hand, or awaited, whose polls and wake-ups are counted.
///
/// It sees two faults: a future that wakes itself while it is polled, and a future that is pending although nobody holds
/// its waker. A future polled more than [`MAX_POLLS`] times panics, so that a polling loop ends.
#[derive(Debug)]
pub struct Watched<F> {
    future: Pin<Box<F>>,
    meter: Arc<Meter>,
    polls: usize,
    wakes: usize,
    fault: Option<&'static str>,
}

impl<F: Future> Watched<F> {
    /// Watches `future`.
    pub fn new(future: F) -> Self {
        Self { future: Box::pin(future), meter: Arc::default(), polls: 0, wakes: 0, fault: None }
    }

    /// Polls once.
    pub fn poll(&mut self) -> Poll<F::Output> {
        self.poll_for(Waker::noop())
    }

    /// The same future, polled by another task from now on: wake-ups of the old one no longer count.
    pub fn move_to_another_task(&mut self) {
        self.wakes = self.wakes();
        self.meter = Arc::default();
    }

    /// How often it was polled.
    pub fn polls(&self) -> usize {
        self.polls
    }

    /// How often it was woken.
    pub fn wakes(&self) -> usize {
        self.wakes + self.meter.wakes.load(SeqCst)
    }

    /// Whether it was woken since the last poll.
    pub fn is_woken(&self) -> bool {
        self.meter.woken.load(SeqCst)
    }

    /// The first fault seen, if there was one.
    pub fn fault(&self) -> Option<&'static str> {
        self.fault
    }

    fn poll_for(&mut self, task: &Waker) -> Poll<F::Output> {
        self.polls += 1;
        let fault = self.fault.unwrap_or("it is woken again and again");
        assert!(self.polls <= MAX_POLLS, "polled {MAX_POLLS} times without an end: {fault}");
        self.meter.woken.store(false, SeqCst);
        task.clone_into(&mut self.meter.task.lock().expect("nothing panics under this lock"));

        let waker = Waker::from(self.meter.clone());
        let polled = self.future.as_mut().poll(&mut Context::from_waker(&waker));
        drop(waker);

        if polled.is_pending() {
            if self.is_woken() {
                self.fault.get_or_insert("it woke itself while it was polled");
            } else if Arc::strong_count(&self.meter) == 1 {
                self.fault.get_or_insert("it is pending and nobody holds its waker");
            }
        }
        polled
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.poll_for(cx.waker())
    }
}

#[derive(Debug)]
struct Meter {
    wakes: AtomicUsize,
    woken: AtomicBool,
    task: std::sync::Mutex<Waker>,
}

impl Default for Meter {
    fn default() -> Self {
        Self { wakes: AtomicUsize::new(0), woken: AtomicBool::new(false), task: Waker::noop().clone().into() }
    }
}

impl Wake for Meter {
    fn wake(self: Arc<Self>) {
        self.wakes.fetch_add(1, SeqCst);
        self.woken.store(true, SeqCst);
        let task = self.task.lock().expect("nothing panics under this lock").clone();
        task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn, ready};

    use super::*;

    #[test]
    fn a_pending_future_that_registers_nothing_is_a_fault() {
        let mut silent = Watched::new(pending::<()>());
        assert!(silent.poll().is_pending());
        assert_eq!(silent.fault(), Some("it is pending and nobody holds its waker"));
    }

    #[test]
    fn a_future_that_wakes_itself_is_a_fault() {
        let mut busy = Watched::new(poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        assert!(busy.poll().is_pending());
        assert_eq!(busy.fault(), Some("it woke itself while it was polled"));
    }

    #[test]
    fn a_future_that_waits_for_a_wake_up_has_no_fault() {
        let (send, receive) = tokio::sync::oneshot::channel();
        let mut waits = Watched::new(receive);
        assert!(waits.poll().is_pending());
        assert!(!waits.is_woken());
        send.send(()).unwrap();
        assert!(waits.is_woken());
        assert!(waits.poll().is_ready());
        assert_eq!((waits.polls(), waits.wakes(), waits.fault()), (2, 1, None));

        let mut at_once = Watched::new(ready(()));
        assert!(at_once.poll().is_ready());
        assert_eq!(at_once.fault(), None);
    }

    #[test]
    #[should_panic(expected = "without an end: it is pending and nobody holds its waker")]
    fn a_polling_loop_ends() {
        let mut busy = Watched::new(pending::<()>());
        while busy.poll().is_pending() {}
    }
}
