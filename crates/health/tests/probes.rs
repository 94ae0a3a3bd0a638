//! Probes that panic, hang, overlap and come too late.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bartizan_health::{Active, Health, Probed, Settings, State};
use tokio::{
    runtime::Handle,
    time::{Instant, advance, sleep},
};

const SECOND: Duration = Duration::from_secs(1);

fn health() -> Health {
    Health::with(Settings::new().active(Active::new().unhealthy_after(2).healthy_after(2).timeout(SECOND)))
}

fn tasks() -> usize {
    Handle::current().metrics().num_alive_tasks()
}

/// Pitfall 50: a component that is dead from the start becomes unhealthy.
#[tokio::test(start_paused = true)]
async fn dead_from_the_start() {
    let health = health();
    let component = health.probe("it", 10 * SECOND, async || Err::<(), _>("dead"));
    assert_eq!((component.state(), component.stats().active), (State::Healthy, None));
    sleep(Duration::from_millis(1)).await;
    assert_eq!((component.stats().failed_probes, component.stats().active), (1, None));
    sleep(10 * SECOND).await;
    assert_eq!(component.stats().active, Some(State::Unhealthy));
    assert_eq!(component.stats().last_error.unwrap().message, "dead");
    assert_eq!(component.stats().errors, [("probe", 2)]);
}

/// Pitfall 50 again: one that panics, when it is asked or when it is polled, or whose words panic, fails.
#[tokio::test(start_paused = true)]
async fn a_probe_that_panics_fails_and_the_next_one_is_made() {
    #[derive(Debug)]
    struct Words;
    impl std::error::Error for Words {}
    impl std::fmt::Display for Words {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("no words")
        }
    }
    let (health, made) = (health(), Arc::new(AtomicUsize::new(0)));
    let count = made.clone();
    let component = health.probe("it", SECOND, move || {
        let n = count.fetch_add(1, SeqCst);
        assert!(n > 0, "when it is asked");
        async move {
            assert!(n > 1, "when it is polled");
            if n == 2 { Err(Words) } else { Ok(()) }
        }
    });
    let mut words = Vec::new();
    for _ in 0..3 {
        sleep(SECOND - Duration::from_millis(1)).await;
        words.push(component.stats().last_error.unwrap().message);
        sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(
        words,
        ["it panicked: when it is asked", "it panicked: when it is polled", "it panicked: no words"]
    );
    assert_eq!(component.state(), State::Unhealthy);
    sleep(2 * SECOND).await;
    assert_eq!((component.state(), made.load(SeqCst) >= 5), (State::Healthy, true));
}

/// Probes that hang fail at their time, whoever looks; the next one begins only then.
#[tokio::test(start_paused = true)]
async fn probes_that_hang_do_not_overlap() {
    let (health, running) = (health(), Arc::new(AtomicUsize::new(0)));
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let count = running.clone();
    // Far more often than they end.
    let component = health.probe("it", SECOND / 10, move || {
        assert_eq!(count.fetch_add(1, SeqCst), 0, "two at once");
        let running = Running(count.clone());
        async move {
            let _running = running;
            pending::<Result<(), String>>().await
        }
    });
    sleep(SECOND / 2).await;
    assert_eq!(component.probe_now().await, Some(Probed::UnderWay));
    assert!(component.start_probe().is_none());
    assert!(component.stats().probing);
    sleep(SECOND / 2).await;
    assert_eq!((component.stats().failed_probes, component.stats().active), (1, None));
    sleep(SECOND + Duration::from_millis(5)).await;
    assert_eq!(component.stats().active, Some(State::Unhealthy));
    assert_eq!(component.stats().last_error.unwrap().message, "no answer within 1s");
    assert_eq!(running.load(SeqCst), 1);
    drop((component, health));
    sleep(Duration::from_millis(1)).await;
    assert_eq!(running.load(SeqCst), 0, "dropped with the handle");
}

/// Even one that blocks the only thread there is has failed in time, as whoever looks afterwards sees.
#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_too_late_is_a_failure() {
    let health = health();
    let (component, prober) = health.prober("it", SECOND, async || {
        // Nobody polls the timer meanwhile.
        advance(3 * SECOND).await;
        Ok::<_, String>(())
    });
    assert_eq!(component.probe_now().await, Some(Probed::Failed("no answer within 1s".to_owned())));
    assert_eq!(component.stats().failed_probes, 1);
    drop(prober);
}

#[tokio::test(start_paused = true)]
async fn a_prober_without_a_task() {
    let (health, made) = (health(), Arc::new(AtomicUsize::new(0)));
    let count = made.clone();
    let (component, prober) = health.prober("it", 10 * SECOND, move || {
        count.fetch_add(1, SeqCst);
        async { Ok::<_, String>(()) }
    });
    assert_eq!((tasks(), made.load(SeqCst)), (0, 0), "nothing happens by itself");
    assert!(tokio::time::timeout(25 * SECOND, prober).await.is_err());
    assert_eq!((made.load(SeqCst), component.stats().active), (3, Some(State::Healthy)));
}

/// The task that is declared ends with the handle, with a second probe of the name, and with nothing else.
#[tokio::test(start_paused = true)]
async fn one_task_a_name() {
    let health = health();
    let good = async || Ok::<_, String>(());
    let component = health.probe("it", SECOND, good);
    let component = {
        drop(component);
        health.probe("it", SECOND, good)
    };
    health.probe("other", SECOND, good);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(tasks(), 2);
    drop(component);
    let _layer = health.layer("it");
    drop(health);
    sleep(5 * SECOND).await;
    assert_eq!(tasks(), 2, "a layer keeps the handle");
    drop(_layer);
    sleep(Duration::from_millis(1)).await;
    assert_eq!(tasks(), 0);
}

/// From start to start, however long they take, and at once when one took longer.
#[tokio::test(start_paused = true)]
async fn as_often_as_they_should() {
    let (health, starts) = (health(), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (seen, begin) = (starts.clone(), Instant::now());
    health.probe("it", 2 * SECOND, move || {
        let n = {
            let mut seen = seen.lock().unwrap();
            seen.push(begin.elapsed().as_secs_f64().round());
            seen.len()
        };
        async move {
            sleep(SECOND / 2 * u32::try_from(n).unwrap().min(9)).await;
            Ok::<_, String>(())
        }
    });
    sleep(8 * SECOND).await;
    assert_eq!(*starts.lock().unwrap(), [0.0, 2.0, 4.0, 6.0]);
}

/// A probe whose prober goes decides nothing and makes room.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_decides_nothing() {
    let health = health();
    let (component, _prober) = health.prober("it", SECOND, pending::<Result<(), String>>);
    assert!(tokio::time::timeout(SECOND / 2, component.probe_now()).await.is_err());
    let probe = component.start_probe().expect("there is room");
    sleep(2 * SECOND).await;
    assert!(!probe.good(), "too late");
    assert_eq!(component.stats().failed_probes, 1);
    let stale = component.start_probe().unwrap();
    component.reset();
    assert!(!stale.failed(&"of before"));
    assert_eq!((component.stats().failed_probes, component.stats().active), (0, None));
    assert_eq!(health.probe_now("nobody").await, None);
    assert_eq!(health.component("else").probe_now().await, None);
}
