//! Limits that several machines count in one store.

use std::{error::Error, time::Duration};

use bartizan_core::{BoxError, Rejected, RejectionKind, RetryAfter};
use bartizan_rate_limit::{Limit, OnStoreError, Quota, RateLimitLayer, RateLimiter, StoreError, Window};
use bartizan_tests::store::{Mood, Remote};
use tokio::time::{Instant, advance};
use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimitLayer, service_fn, util::BoxCloneService};

const MILLI: Duration = Duration::from_millis(1);
const DEADLINE: Duration = Duration::from_millis(100);
const MINUTE: Duration = Duration::from_secs(60);

type Calls = BoxCloneService<&'static str, (), BoxError>;

/// One machine of several: its own handles, the common store.
struct Machine {
    all: RateLimiter,
    each: RateLimiter<String>,
    service: Calls,
}

fn machine(store: &Remote, on_error: OnStoreError) -> Machine {
    let all = RateLimiter::new(Limit::new("all", Quota::per_minute(10)));
    let each: RateLimiter<String> = RateLimiter::keyed(Limit::new("each", Window::fixed(3, MINUTE)));
    let rules = (all.rule(), each.rule().by_ref(|key: &&'static str| (!key.is_empty()).then_some(*key)));
    let layer = RateLimitLayer::all(rules).store(store.clone(), DEADLINE, on_error);
    let service = layer.layer(service_fn(|_: &'static str| async { Ok::<_, BoxError>(()) }));
    Machine { all, each, service: BoxCloneService::new(service) }
}

impl Machine {
    async fn call(&self, key: &'static str) -> Result<(), BoxError> {
        self.service.clone().oneshot(key).await
    }
}

fn refusal(result: Result<(), BoxError>) -> (RejectionKind, RetryAfter) {
    let error = result.expect_err("it is refused");
    let rejected = Rejected::find(&*error).expect("by the layer");
    (rejected.kind(), rejected.retry_after())
}

#[tokio::test(start_paused = true)]
async fn several_machines_share_one_limit() {
    let store = Remote::new(5 * MILLI);
    let machines = [0, 1, 2].map(|_| machine(&store, OnStoreError::Deny));
    let mut admitted = 0;
    for n in 0..60 {
        let key = ["a", "b", "c", "d", "e"][n % 5];
        admitted += u64::from(machines[n % 3].call(key).await.is_ok());
    }
    assert_eq!(admitted, 10, "and not 10 on each");
    assert_eq!((store.trips(), store.available("all", "")), (60, Some(0)), "one trip for both limits");
    // A denial by one limit spends nothing of the other.
    let spent: i64 =
        ["a", "b", "c", "d", "e"].iter().map(|key| 3 - store.available("each", key).unwrap()).sum();
    assert_eq!(spent, 10);
    let counted: u64 = machines.iter().map(|machine| machine.all.stats().admitted).sum();
    assert_eq!(counted, 10);
}

#[tokio::test(start_paused = true)]
async fn the_stores_refusal_is_the_layers() {
    let store = Remote::new(MILLI);
    let machine = machine(&store, OnStoreError::Deny);
    for _ in 0..3 {
        machine.call("anna").await.unwrap();
    }
    let begin = Instant::now();
    let error = machine.call("anna").await.unwrap_err();
    assert_eq!(begin.elapsed(), MILLI);
    let rejected = Rejected::find(&*error).unwrap();
    assert_eq!(rejected.kind(), RejectionKind::RateLimited);
    assert!(matches!(rejected.retry_after(), RetryAfter::After(wait) if wait <= MINUTE), "{rejected:?}");
    let detail = rejected.source().unwrap().to_string();
    assert!(detail.contains("each"), "{detail}");
    let stats = machine.each.stats();
    assert_eq!((stats.admitted, stats.refused, stats.store_failures), (3, 1, 0));
    // Without a key only the other limit is asked; without any nobody is.
    machine.call("").await.unwrap();
    assert_eq!(store.available("all", ""), Some(6));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_or_is_silent_is_answered_as_was_chosen() {
    for mood in [Mood::Failing, Mood::Silent] {
        let waits = if mood == Mood::Silent { DEADLINE } else { Duration::ZERO };
        for policy in [OnStoreError::Deny, OnStoreError::Allow, OnStoreError::Local] {
            let store = Remote::new(MILLI);
            let machine = machine(&store, policy);
            machine.call("anna").await.unwrap();
            store.set_mood(mood);
            let mut admitted = 0;
            for _ in 0..5 {
                let begin = Instant::now();
                match machine.call("anna").await {
                    Ok(()) => admitted += 1,
                    Err(error) if policy == OnStoreError::Deny => {
                        let cause = Rejected::find(&*error).unwrap().source().unwrap();
                        assert!(cause.is::<StoreError>());
                        let text = cause.to_string();
                        assert!(
                            text.contains(if mood == Mood::Silent { "100ms" } else { "failed" }),
                            "{text}"
                        );
                        assert_eq!(refusal(Err(error)), (RejectionKind::Unhealthy, RetryAfter::Unknown));
                    }
                    Err(error) => assert_eq!(refusal(Err(error)).0, RejectionKind::RateLimited),
                }
                assert_eq!(begin.elapsed(), waits, "no call hangs");
            }
            // Here nothing was counted before, so the whole limit of 3 is there.
            let expected = match policy {
                OnStoreError::Deny => 0,
                OnStoreError::Allow => 5,
                OnStoreError::Local => 3,
            };
            assert_eq!(admitted, expected, "{mood:?} {policy:?}");
            assert_eq!(machine.each.stats().store_failures, 5, "and it is seen");
            store.set_mood(Mood::Well);
            machine.call("anna").await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_settled_goes_to_the_store() {
    let store = Remote::new(MILLI);
    let tokens: RateLimiter<String> = RateLimiter::keyed(Limit::new("tokens", Quota::per_hour(1_000)));
    let rule = tokens.rule().by_ref(|key: &&'static str| Some(*key)).cost(|_: &&'static str| 100);
    let layer = RateLimitLayer::new(rule.settle(|actual: &u64| {
        let actual = *actual;
        move || Some(actual)
    }));
    let layer = layer.store(store.clone(), DEADLINE, OnStoreError::Deny);
    let service = layer
        .layer(service_fn(|key: &'static str| async move { key.parse::<u64>().map_err(BoxError::from) }));
    service.clone().oneshot("7").await.unwrap();
    assert_eq!(store.available("tokens", "7"), Some(993));
    service.clone().oneshot("1500").await.unwrap();
    assert_eq!(store.available("tokens", "1500"), Some(-500), "a debt is owed");
    service.clone().oneshot("nothing").await.unwrap_err();
    assert_eq!(store.available("tokens", "nothing"), Some(1_000), "a call that fails costs nothing");
    tokens.settle("7", 0, 3);
    assert_eq!(store.available("tokens", "7"), Some(990), "by hand");
    assert_eq!(tokens.stats_of("7").available, 1_000, "and not here");
}

/// The store has admitted it, and it goes away before the service below was ready.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_made_is_given_back() {
    let store = Remote::new(MILLI);
    let limiter = RateLimiter::new(Limit::new("all", Quota::per_hour(10)));
    let layer = limiter.layer().store(store.clone(), DEADLINE, OnStoreError::Local);
    let busy = ConcurrencyLimitLayer::new(1).layer(service_fn(|()| async { Ok::<_, BoxError>(()) }));
    let mut holder = busy.clone();
    holder.ready().await.unwrap();
    for mood in [Mood::Well, Mood::Failing] {
        store.set_mood(mood);
        let left = || {
            if mood == Mood::Well {
                store.available("all", "")
            } else {
                Some(limiter.stats_of(&()).available)
            }
        };
        let mut call = tokio_test::task::spawn(layer.layer(busy.clone()).call(()));
        assert!(call.poll().is_pending());
        advance(2 * MILLI).await;
        assert!(call.poll().is_pending());
        assert_eq!(left(), Some(9));
        drop(call);
        assert_eq!(left(), Some(10));
    }
    drop(holder);
    store.set_mood(Mood::Well);
    layer.layer(busy).oneshot(()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_is_held_here_is_not_asked_for() {
    let store = Remote::new(MILLI);
    let machine = machine(&store, OnStoreError::Deny);
    machine.each.hold("anna", MINUTE);
    let refused = (RejectionKind::RateLimited, RetryAfter::After(MINUTE));
    assert_eq!(refusal(machine.call("anna").await), refused);
    assert_eq!(store.trips(), 0);
    machine.call("ben").await.unwrap();
}
