//! Every interleaving of a few threads on one window, of two buckets.

use std::time::Duration;

use loom::{sync::Arc, thread};

use super::*;

const WIDTH: u64 = 500_000_000;

fn window(min_requests: u32) -> Arc<Window> {
    let passive = Passive::none().window(Duration::from_secs(1)).min_requests(min_requests).unhealthy(50);
    Arc::new(Window::new(&passive))
}

/// All interleavings in which no thread is preempted more than three times.
fn model(test: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

fn records(window: &Arc<Window>, outcomes: &'static [(bool, u64)]) -> thread::JoinHandle<usize> {
    let window = window.clone();
    thread::spawn(move || {
        outcomes.iter().filter(|(failed, at)| window.record(*failed, *at).0.is_some()).count()
    })
}

/// Nothing is lost where a bucket begins, and the verdict follows from all of it. It turns once.
#[test]
fn outcomes_of_two_threads_that_begin_a_bucket() {
    model(|| {
        let window = window(4);
        window.record(true, 0);
        let one = records(&window, &[(true, 1), (true, WIDTH)]);
        let turns = records(&window, &[(false, WIDTH)]).join().unwrap() + one.join().unwrap();
        let look = window.look(WIDTH);
        assert_eq!(look.counts, Counts { total: 4, failures: 3 });
        assert_eq!((look.verdict, turns), (State::Unhealthy, 1));
    });
}

/// One begins a bucket while another one begins the one after: what is in the window of both stays.
#[test]
fn buckets_that_begin_at_once() {
    model(|| {
        let window = window(1);
        window.record(true, 0);
        let one = records(&window, &[(true, WIDTH)]);
        let other = records(&window, &[(false, 2 * WIDTH)]);
        one.join().unwrap();
        other.join().unwrap();
        // The first one's may have come last, and then counts where the other does.
        assert_eq!(window.look(2 * WIDTH).counts, Counts { total: 2, failures: 1 });
    });
}

/// A verdict lapses once, whoever comes first after the window was empty.
#[test]
fn a_lapse_is_told_once() {
    model(|| {
        let window = window(1);
        assert_eq!(window.record(true, 0).0, Some(Turn { lapsed: None, to: State::Unhealthy }));
        let one = records(&window, &[(false, 9 * WIDTH)]);
        let turns = records(&window, &[(false, 9 * WIDTH)]).join().unwrap() + one.join().unwrap();
        assert_eq!((window.verdict(9 * WIDTH), turns), (State::Healthy, 1));
    });
}

/// Whoever looks while a bucket begins sees what there was before or after.
#[test]
fn a_look_while_a_bucket_begins() {
    model(|| {
        let window = window(9);
        window.record(true, 0);
        window.record(false, 0);
        let one = records(&window, &[(false, WIDTH)]);
        let seen = window.look(WIDTH).counts;
        assert_eq!(seen.failures, 1);
        assert!((2..=3).contains(&seen.total), "{seen:?}");
        one.join().unwrap();
    });
}

/// A reset leaves nothing of before.
#[test]
fn a_reset_among_outcomes() {
    model(|| {
        let window = window(1);
        window.record(true, 0);
        let one = records(&window, &[(true, 0)]);
        window.reset();
        one.join().unwrap();
        assert!(window.look(0).counts.total <= 1);
        window.reset();
        assert_eq!(window.look(0).counts, Counts::NONE);
    });
}
