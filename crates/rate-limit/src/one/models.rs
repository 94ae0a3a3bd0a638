//! Every interleaving of a few threads on one limiter whose calls wait.
//!
//! Time is what each thread says it is. Once all threads have gone, timers and wakers do what they would do, in order, and
//! everybody must come to his end no later than the quota says.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    task::{Wake, Waker},
};

use loom::{model::Builder, thread};

use super::*;
use crate::{
    account::{Bounds, Denial},
    gcra::Gcra,
    queue::{Fate, Place},
};

/// A permit's time. A timer counts milliseconds, so this is many of them.
const PERMIT: u64 = 10_000_000;

/// One permit each so often, and no more at once than `burst`.
fn quota(permit: u64, burst: u64) -> Policy {
    Policy::Gcra(Gcra::new(1, permit, burst).unwrap())
}

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

/// A call that waits, as a task would drive it.
struct Call {
    cost: u64,
    place: Arc<Place>,
    woken: Arc<Flag>,
    /// When its timer rings. It looks at once if it never has.
    rings: u64,
}

impl Call {
    /// `None` if it is let through at once.
    fn enter(one: &One, now: u64, cost: u64) -> Option<Self> {
        let bounds = Bounds { max_queue: 9, max_wait: u64::MAX };
        match one.with(now, |account| account.enter(now, cost, bounds)) {
            Ok((place, _)) => Some(Self { cost, place: place?, woken: Arc::default(), rings: now }),
            Err(Denial::Limited(denied)) => panic!("{denied:?}"),
            Err(Denial::Full(_)) => panic!("there is room"),
        }
    }

    /// Polls it: whether it has its permits.
    fn poll(&mut self, one: &One, now: u64) -> bool {
        self.woken.0.store(false, SeqCst);
        let waker = Waker::from(self.woken.clone());
        match one.with(now, |account| account.attend(now, &self.place, &waker)) {
            Ok(Fate::Granted) => true,
            Ok(fate) => panic!("{fate:?}"),
            Err(at) => {
                assert!(at > now, "a timer that has rung");
                self.rings = at;
                false
            }
        }
    }

    fn cancel(&self, one: &One, now: u64) {
        one.with(now, |account| account.withdraw(now, self.cost, &self.place));
    }
}

/// Goes on from `now` until all have their permits, and says when the last one had his.
fn finish(one: &One, mut now: u64, mut calls: Vec<Call>) -> u64 {
    for _ in 0..20 {
        calls.sort_by_key(|call| if call.woken.0.load(SeqCst) { 0 } else { call.rings });
        let Some(next) = calls.first_mut() else {
            assert!(!one.hot.slow.load(Relaxed) || one.slowly.lock().unwrap().state.is_some());
            assert_eq!(one.queued(), 0);
            return now;
        };
        if !next.woken.0.load(SeqCst) {
            now = now.max(next.rings);
        }
        if next.poll(one, now) {
            calls.remove(0);
        }
    }
    panic!("{} calls wait for ever", calls.len());
}

/// The head goes away while the one behind it looks for the first time and a third call tries its luck.
#[test]
fn whoever_stood_behind_a_head_that_went_has_its_turn() {
    model(|| {
        let one = loom::sync::Arc::new(One::new(quota(PERMIT, 2)));
        assert_eq!(one.take(0, 2), Ok(()));
        let head = Call::enter(&one, 0, 2).unwrap();
        let mut behind = Call::enter(&one, 0, 1).unwrap();
        let leaves = thread::spawn({
            let one = one.clone();
            move || head.cancel(&one, 1)
        });
        let looks = thread::spawn({
            let one = one.clone();
            move || (!behind.poll(&one, 0)).then_some(behind)
        });
        assert!(one.take(PERMIT, 1).is_err(), "a permit is there, and two who wait");
        leaves.join().unwrap();
        let behind = looks.join().unwrap();
        assert!(finish(&one, 2, behind.into_iter().collect()) <= PERMIT, "too late");
        assert!(one.take(PERMIT, 1).is_err(), "one permit, and one alone");
    });
}

/// The last permit is there once, for a call that waits if it must and one that does not.
#[test]
fn a_call_that_waits_and_one_that_does_not_race_for_a_permit() {
    model(|| {
        let one = loom::sync::Arc::new(One::new(quota(PERMIT, 1)));
        let waits = thread::spawn({
            let one = one.clone();
            move || {
                let mut call = Call::enter(&one, 0, 1)?;
                (!call.poll(&one, 1)).then_some(call)
            }
        });
        let taken = [one.take(0, 1), one.take(2, 1)];
        let waits = waits.join().unwrap();
        let at_once = taken.iter().filter(|taken| taken.is_ok()).count();
        match waits {
            Some(call) => {
                assert_eq!(at_once, 1, "one permit");
                assert_eq!(finish(&one, 2, vec![call]), PERMIT);
            }
            None => assert_eq!(at_once, 0, "one permit"),
        }
        assert!(one.take(PERMIT, 1).is_ok() || at_once == 1);
    });
}

/// Two wait and look, and the one before them is cancelled after it was granted its permits: they are not lost.
#[test]
fn permits_that_were_granted_and_not_used_go_to_the_next() {
    model(|| {
        let one = loom::sync::Arc::new(One::new(quota(PERMIT, 1)));
        assert_eq!(one.take(0, 1), Ok(()));
        let head = Call::enter(&one, 0, 1).unwrap();
        let mut behind = Call::enter(&one, 0, 1).unwrap();
        let leaves = thread::spawn({
            let one = one.clone();
            move || head.cancel(&one, PERMIT)
        });
        // Looks after the head: it may grant the head its permits before that one goes.
        let granted = behind.poll(&one, PERMIT);
        leaves.join().unwrap();
        if !granted {
            assert_eq!(finish(&one, PERMIT, vec![behind]), PERMIT);
        }
        assert!(one.take(PERMIT, 1).is_err(), "one permit, and one alone");
    });
}

/// Takes while the quota becomes another one: what is admitted is what the greater one allows, and a refusal tells a wait
/// of one of them.
#[test]
fn a_take_never_sees_a_quota_that_is_gone() {
    model(|| {
        let one = loom::sync::Arc::new(One::new(quota(PERMIT, 1)));
        let changes = thread::spawn({
            let one = one.clone();
            move || one.set_policy(quota(PERMIT, 2), 0)
        });
        let takes = thread::spawn({
            let one = one.clone();
            move || one.take(0, 1)
        });
        let taken = [one.take(0, 1), one.take(0, 1)];
        let taken = [taken[0], taken[1], takes.join().unwrap()];
        changes.join().unwrap();
        let admitted = taken.iter().filter(|taken| taken.is_ok()).count();
        assert!((1..=2).contains(&admitted), "{taken:?}");
        for denied in taken.iter().filter_map(|taken| taken.err()) {
            assert_eq!(denied, Denied::Wait(PERMIT));
        }
        // What is left is what is left, wherever it is counted now.
        let left = one.with(0, |account| account.level(0)).remaining;
        assert!(left == 2 - admitted as u64 || left == 1, "{left} left of {taken:?}");
    });
}

/// The quota becomes a faster one while somebody looks when his turn is: he learns of it.
#[test]
fn a_faster_quota_is_for_those_who_wait_already() {
    model(|| {
        let one = loom::sync::Arc::new(One::new(quota(PERMIT, 1)));
        assert_eq!(one.take(0, 1), Ok(()));
        let mut call = Call::enter(&one, 0, 1).unwrap();
        let changes = thread::spawn({
            let one = one.clone();
            move || one.set_policy(quota(PERMIT / 2, 1), 0)
        });
        assert!(!call.poll(&one, 0), "there is no permit yet");
        changes.join().unwrap();
        assert_eq!(finish(&one, 0, vec![call]), PERMIT / 2);
    });
}
