//! Calls whose answers are values.

use std::{
    error::Error,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_dedup::{Dedup, Identity, Replay, SharedError};
use futures_util::FutureExt;
use tokio::{sync::oneshot, time::advance};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt, service_fn};

const SECOND: Duration = Duration::from_secs(1);

type Answer = Result<String, BoxError>;
type Call = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// An inner service that answers when it is told to.
#[derive(Clone, Default)]
struct Inner(Arc<Mutex<Vec<Option<oneshot::Sender<Answer>>>>>);

impl Inner {
    fn calls(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn answer(&self, n: usize, answer: impl Into<String>) {
        let waits = self.0.lock().unwrap()[n].take().expect("it is answered once");
        waits.send(Ok(answer.into())).expect("somebody waits");
    }

    fn fail(&self, n: usize, error: impl Into<BoxError>) {
        let waits = self.0.lock().unwrap()[n].take().expect("it is answered once");
        waits.send(Err(error.into())).expect("somebody waits");
    }

    /// Whether nobody waits for this call any more.
    fn is_dropped(&self, n: usize) -> bool {
        self.0.lock().unwrap()[n].as_ref().is_none_or(oneshot::Sender::is_closed)
    }

    fn call(&self) -> impl Future<Output = Answer> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        self.0.lock().unwrap().push(Some(answer));
        async { answered.await? }
    }
}

type Words = Dedup<String, String>;

fn ask(dedup: &Words, inner: &Inner, key: &'static str) -> task::Spawn<Call> {
    let layer = dedup.layer(|key: &&'static str| (!key.is_empty()).then(|| (*key).to_owned()));
    let inner = inner.clone();
    task::spawn(Box::pin(layer.layer(service_fn(move |_| inner.call())).oneshot(key)))
}

/// The first call for `k`, from asking to its answer.
fn be_answered(dedup: &Words, inner: &Inner, answer: &str) {
    let mut call = ask(dedup, inner, "k");
    assert_pending!(call.poll());
    inner.answer(0, answer);
    assert_eq!(assert_ready!(call.poll()).unwrap(), answer);
}

fn none() -> Words {
    Dedup::new(Replay::none())
}

/// Lets every task have its turns.
async fn turns() {
    advance(Duration::ZERO).await;
}

fn kind(error: &(dyn Error + 'static)) -> Option<RejectionKind> {
    Rejected::find(error).map(Rejected::kind)
}

#[test]
fn identical_calls_at_once_are_one_call() {
    let (dedup, inner) = (none(), Inner::default());
    let mut calls: Vec<_> = (0..100).map(|_| ask(&dedup, &inner, "k")).collect();
    let mut other = ask(&dedup, &inner, "l");
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_pending!(other.poll());
    assert_eq!(inner.calls(), 2);
    inner.answer(0, "an answer");
    for call in &mut calls {
        assert!(call.is_woken());
        assert_eq!(assert_ready!(call.poll()).unwrap(), "an answer");
    }
    assert!(!other.is_woken());
    assert!(
        assert_ready!({
            inner.answer(1, "");
            other.poll()
        })
        .is_ok()
    );
    let stats = dedup.stats();
    assert_eq!((stats.misses, stats.collapsed, stats.hits, stats.in_flight), (2, 99, 0, 0));
    assert_eq!(stats.hit_rate(), Some(99.0 / 101.0));
}

/// 10,000 followers: each is polled once at first, once for each wake of the inner call, and once at last.
#[test]
fn polls_are_bounded_by_what_happens() {
    const WAKES: usize = 3;
    let dedup: Dedup<u8, usize> = Dedup::new(Replay::none());
    let polls = Arc::new(AtomicUsize::new(0));
    let waker = Arc::new(Mutex::new(None));
    let service = dedup.layer(|_: &()| Some(1)).layer(service_fn({
        let (polls, waker) = (polls.clone(), waker.clone());
        move |()| {
            let (polls, waker) = (polls.clone(), waker.clone());
            std::future::poll_fn(move |cx| {
                *waker.lock().unwrap() = Some(cx.waker().clone());
                match polls.fetch_add(1, SeqCst) {
                    WAKES => Poll::Ready(Ok::<_, BoxError>(7)),
                    _ => Poll::Pending,
                }
            })
        }
    }));
    let call = || (task::spawn(service.clone().oneshot(())), 0);
    let mut calls: Vec<_> = std::iter::repeat_with(call).take(10_000).collect();
    for (call, polled) in &mut calls {
        assert_pending!(call.poll());
        *polled += 1;
    }
    let mut done = 0;
    for _ in 0..WAKES {
        let waker: std::task::Waker = waker.lock().unwrap().take().expect("it waits");
        waker.wake();
        // The first one to be polled drives; it may wake those who were polled before it.
        for _ in 0..2 {
            calls.retain_mut(|(call, polled)| {
                if !call.is_woken() {
                    return true;
                }
                *polled += 1;
                let pending = call.poll().is_pending();
                if !pending {
                    assert!(*polled <= WAKES + 2, "{polled} polls");
                    done += 1;
                }
                pending
            });
        }
    }
    assert_eq!(done, 10_000);
    assert_eq!(polls.load(SeqCst), WAKES + 1, "one of them drives");
}

#[test]
fn whoever_is_parked_or_goes_keeps_nobody_waiting() {
    for goes in [false, true] {
        let (dedup, inner) = (none(), Inner::default());
        let mut first = ask(&dedup, &inner, "k");
        assert_pending!(first.poll());
        let [mut second, mut third] = [0; 2].map(|_| ask(&dedup, &inner, "k"));
        assert_pending!(second.poll());
        assert_pending!(third.poll());
        let first = (!goes).then_some(first);
        inner.answer(0, "an answer");
        assert!(second.is_woken() && third.is_woken());
        assert_eq!(assert_ready!(third.poll()).unwrap(), "an answer");
        assert_eq!(assert_ready!(second.poll()).unwrap(), "an answer");
        assert_eq!(inner.calls(), 1);
        drop(first);
    }
}

#[test]
fn a_call_begins_with_whoever_is_polled_first() {
    let (dedup, inner) = (none(), Inner::default());
    let first = ask(&dedup, &inner, "k");
    let mut second = ask(&dedup, &inner, "k");
    assert_pending!(second.poll());
    assert_eq!(inner.calls(), 1);
    drop(first);
    inner.answer(0, "an answer");
    assert_eq!(assert_ready!(second.poll()).unwrap(), "an answer");
}

#[test]
fn when_all_have_gone_the_call_ends_and_the_key_is_free() {
    let (dedup, inner) = (none(), Inner::default());
    let mut calls = [0; 3].map(|_| ask(&dedup, &inner, "k"));
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    let [first, second, third] = calls;
    drop(second);
    drop(first);
    assert!(!inner.is_dropped(0));
    assert_eq!(dedup.stats().in_flight, 1);
    drop(third);
    assert!(inner.is_dropped(0));
    assert_eq!(dedup.stats().in_flight, 0);
    assert_pending!(ask(&dedup, &inner, "k").poll());
    assert_eq!(inner.calls(), 2);
}

#[test]
fn an_error_is_everybodys_and_keeps_its_source() {
    let (dedup, inner) = (none(), Inner::default());
    let mut calls = [0; 2].map(|_| ask(&dedup, &inner, "k"));
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    inner.fail(0, Rejected::new(RejectionKind::RateLimited, "rate-limit"));
    for call in &mut calls {
        let error = assert_ready!(call.poll()).unwrap_err();
        assert_eq!(kind(&*error), Some(RejectionKind::RateLimited));
    }
    assert_eq!(dedup.stats().entries, 0, "errors are not kept");
}

#[test]
fn whoever_is_alone_has_the_error_itself() {
    let (dedup, inner) = (none(), Inner::default());
    let mut alone = ask(&dedup, &inner, "k");
    assert_pending!(alone.poll());
    inner.fail(0, std::io::Error::other("cut"));
    let error = assert_ready!(alone.poll()).unwrap_err();
    assert!(error.is::<std::io::Error>() && !error.is::<SharedError>());
}

#[test]
fn a_panic_reaches_who_polled_and_the_others_are_told() {
    for in_call in [false, true] {
        let dedup: Dedup<u8, u8> = Dedup::new(Replay::ttl(SECOND));
        let (panics, waker) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<std::task::Waker>)));
        let service = dedup.layer(|_: &()| Some(1)).layer(service_fn({
            let (panics, waker) = (panics.clone(), waker.clone());
            move |()| {
                let begun = panics.load(SeqCst);
                assert!(!(in_call && begun == 0), "it panics in call");
                let (panics, waker) = (panics.clone(), waker.clone());
                std::future::poll_fn(move |cx| {
                    *waker.lock().unwrap() = Some(cx.waker().clone());
                    match panics.load(SeqCst) {
                        0 => Poll::Pending,
                        1 => panic!("it panics"),
                        _ => Poll::Ready(Ok::<_, BoxError>(7)),
                    }
                })
            }
        }));
        let mut calls = [0; 3].map(|_| task::spawn(service.clone().call(())));
        if !in_call {
            calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
            panics.store(1, SeqCst);
            waker.lock().unwrap().take().expect("it waits").wake();
        }
        catch_unwind(AssertUnwindSafe(|| drop(calls[1].poll()))).unwrap_err();
        for other in [0, 2] {
            let error = assert_ready!(calls[other].poll()).unwrap_err();
            assert_eq!(kind(&*error), Some(RejectionKind::Panicked));
        }
        assert_eq!(dedup.stats().in_flight, 0);
        panics.store(2, SeqCst);
        assert_eq!(service.clone().oneshot(()).now_or_never().unwrap().unwrap(), 7, "the key is free");
    }
}

/// Nor is it known before it is there: who asks meanwhile has nothing to do with the panic.
#[test]
fn a_service_that_panics_when_it_is_cloned_leaves_the_key_free() {
    type Hook = Box<dyn FnOnce() + Send>;
    struct Fragile(Arc<Mutex<Option<Hook>>>);

    impl Clone for Fragile {
        fn clone(&self) -> Self {
            let hook = self.0.lock().unwrap().take();
            hook.into_iter().for_each(|hook| hook());
            Self(self.0.clone())
        }
    }

    impl Service<&'static str> for Fragile {
        type Response = String;
        type Error = BoxError;
        type Future = std::future::Ready<Answer>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, answer: &'static str) -> Self::Future {
            std::future::ready(Ok(answer.to_owned()))
        }
    }

    let (dedup, inner) = (none(), Inner::default());
    let asked_meanwhile = Arc::new(Mutex::new(None));
    let hook: Hook = {
        let (dedup, inner, asked) = (dedup.clone(), inner.clone(), asked_meanwhile.clone());
        Box::new(move || {
            let mut call = ask(&dedup, &inner, "k");
            assert_pending!(call.poll());
            *asked.lock().unwrap() = Some(call);
            panic!("it panics");
        })
    };
    let hook = Arc::new(Mutex::new(Some(hook)));
    let mut service = dedup.layer(|key: &&str| Some((*key).to_owned())).layer(Fragile(hook));
    catch_unwind(AssertUnwindSafe(|| drop(service.call("k")))).unwrap_err();
    let mut other = asked_meanwhile.lock().unwrap().take().expect("it asked");
    let stats = dedup.stats();
    assert_eq!((stats.in_flight, stats.misses), (1, 1), "the one that is there");
    inner.answer(0, "an answer");
    assert_eq!(assert_ready!(other.poll()).unwrap(), "an answer");
    assert_eq!(service.call("k").now_or_never().unwrap().unwrap(), "k", "the key is free");
}

#[tokio::test(start_paused = true)]
async fn answers_are_kept_for_their_time_and_say_so() {
    let (dedup, inner) = (Dedup::new(Replay::ttl(SECOND).negative_ttl(SECOND / 2)), Inner::default());
    let mut call = ask(&dedup, &inner, "k");
    assert_pending!(call.poll());
    inner.answer(0, "an answer");
    assert!(assert_ready!(call.poll()).is_ok());
    advance(SECOND - Duration::from_millis(1)).await;
    assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "an answer");
    assert_eq!(dedup.stats().entries, 1);
    advance(Duration::from_millis(1)).await;
    assert_eq!(dedup.stats().entries, 0, "what serves no more is not there");
    let mut call = ask(&dedup, &inner, "k");
    assert_pending!(call.poll());

    inner.fail(1, "no");
    assert!(assert_ready!(call.poll()).is_err());
    let kept = assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap_err();
    assert_eq!(kept.source().unwrap().to_string(), "no");
    advance(SECOND / 2).await;
    assert_pending!(ask(&dedup, &inner, "k").poll());
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_and_how_long_is_the_handles_to_say() {
    let replay = Replay::ttl(10 * SECOND)
        .cache_when(|answer: &String| answer != "never")
        .ttl_of(|answer| match answer.as_str() {
            "short" => Some(SECOND),
            "not" => Some(Duration::ZERO),
            _ => None,
        })
        .size_of(String::len);
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    for (n, (key, answer, kept)) in
        [("a", "never", false), ("b", "short", true), ("c", "not", false), ("d", "long", true)]
            .into_iter()
            .enumerate()
    {
        let mut call = ask(&dedup, &inner, key);
        assert_pending!(call.poll());
        inner.answer(n, answer);
        assert_eq!(assert_ready!(call.poll()).unwrap(), answer);
        assert_eq!(ask(&dedup, &inner, key).poll().is_ready(), kept, "{answer}");
        if !kept {
            // The second one has begun a call of its own, and gone.
            inner.0.lock().unwrap().pop();
        }
    }
    assert_eq!(dedup.stats().bytes, 9);
    advance(SECOND).await;
    assert_eq!(dedup.stats().bytes, 4);
}

/// A stale answer is served at once; who fetches the new one, a task or the callers, makes no difference to them.
#[tokio::test(start_paused = true)]
async fn a_stale_answer_is_served_while_a_new_one_is_fetched() {
    for by_callers in [false, true] {
        let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND);
        let replay = if by_callers { replay.refresh_by_callers() } else { replay };
        let (dedup, inner) = (Dedup::new(replay), Inner::default());
        be_answered(&dedup, &inner, "old");
        advance(SECOND).await;
        for _ in 0..3 {
            assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "old");
            turns().await;
            assert_eq!(inner.calls(), 2, "one call fetches the new one");
        }
        inner.answer(1, "new");
        turns().await;
        assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "new");
        let stats = dedup.stats();
        assert_eq!((stats.entries, stats.in_flight), (1, 0));
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_tried_again_and_one_that_nobody_drives_is_dropped_with_the_answer() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(9 * SECOND).refresh_by_callers();
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    advance(SECOND).await;
    let asks_again = || assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap();
    assert_eq!(asks_again(), "old");
    inner.fail(1, "no");
    assert_eq!(asks_again(), "old", "it learns that this one failed");
    assert_eq!(asks_again(), "old", "and begins another one");
    assert_eq!(inner.calls(), 3);
    assert!(!inner.is_dropped(2));
    dedup.clear();
    assert!(inner.is_dropped(2));
}

/// Nobody would ever end it: the task goes when there is nothing stale to serve any more, and the call with it, unless somebody
/// has joined.
#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_does_not_keep_the_key() {
    for joined in [false, true] {
        let (dedup, inner) =
            (Dedup::new(Replay::ttl(SECOND).stale_while_revalidate(SECOND)), Inner::default());
        be_answered(&dedup, &inner, "old");
        advance(SECOND + SECOND / 2).await;
        assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "old");
        turns().await;
        assert_eq!(inner.calls(), 2, "it is fetched");
        advance(SECOND / 2 - Duration::from_millis(1)).await;
        turns().await;
        assert!(!inner.is_dropped(1), "as long as the old one is served");
        advance(Duration::from_millis(1)).await;
        let mut call = ask(&dedup, &inner, "k");
        if joined {
            assert_pending!(call.poll());
        }
        turns().await;
        turns().await;
        assert_eq!(tokio::runtime::Handle::current().metrics().num_alive_tasks(), 0);
        assert_eq!(inner.is_dropped(1), !joined);
        if joined {
            inner.answer(1, "new");
            assert_eq!(assert_ready!(call.poll()).unwrap(), "new");
        } else {
            assert_pending!(call.poll());
            assert_eq!(inner.calls(), 3, "another one");
        }
    }
}

/// Where no task drives it, nobody does when there is nothing stale to serve any more: it is old, and may refuse or answer
/// nobody then.
#[tokio::test(start_paused = true)]
async fn a_refresh_by_callers_that_is_left_alone_is_given_up() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND).refresh_by_callers();
    let inner = Inner::default();
    let dedup: Dedup<&str, String> = Dedup::new(replay);
    let layer = dedup.layer(|order: &u8| Some(Identity::new("k").fingerprint([*order; 32])));
    let ask = |order: u8| {
        let inner = inner.clone();
        task::spawn(Box::pin(layer.layer(service_fn(move |_| inner.call())).oneshot(order)))
    };
    for order in [1, 2] {
        let n = inner.calls();
        let mut call = ask(1);
        assert_pending!(call.poll());
        inner.answer(n, "old");
        assert!(assert_ready!(call.poll()).is_ok());
        advance(SECOND).await;
        assert_eq!(assert_ready!(ask(1).poll()).unwrap(), "old");
        advance(SECOND).await;
        let mut call = ask(order);
        assert_pending!(call.poll());
        assert_eq!((inner.calls(), inner.is_dropped(n + 1)), (n + 3, true), "order {order}");
        inner.answer(n + 2, "new");
        assert_eq!(assert_ready!(call.poll()).unwrap(), "new");
        advance(2 * SECOND).await;
    }
}

/// But not while somebody has it, who is not alone with it then; and it ends with the last of them.
#[tokio::test(start_paused = true)]
async fn a_refresh_by_callers_that_somebody_has_is_joined() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND).refresh_by_callers();
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    advance(SECOND).await;
    let service = dedup.layer(|key: &&'static str| Some((*key).to_owned()));
    let below = inner.clone();
    let passes = service.layer(service_fn(move |_| below.call())).call("k");
    advance(SECOND).await;
    let mut waits = [(); 2].map(|()| ask(&dedup, &inner, "k"));
    waits.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_eq!((inner.calls(), dedup.stats().collapsed), (2, 2));
    drop(passes);
    let [first, mut second] = waits;
    drop(first);
    assert_pending!(ask(&dedup, &inner, "k").poll());
    assert_pending!(second.poll());
    assert_eq!((inner.calls(), inner.is_dropped(1)), (2, false), "all are with it");
    drop(second);
    assert!(inner.is_dropped(1));
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_went_with_the_stale_answer_is_not_under_way() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(SECOND).refresh_by_callers();
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    advance(SECOND).await;
    assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "old");
    assert_eq!(dedup.stats().in_flight, 1);
    advance(SECOND).await;
    let stats = dedup.stats();
    assert_eq!((stats.entries, stats.in_flight), (0, 0), "the refresh was held by what was kept");
    assert!(inner.is_dropped(1));
}

/// Time is the real one, and every answer stale at once.
#[test]
fn callers_fetch_the_new_answer_where_no_runtime_does() {
    let replay = Replay::ttl(Duration::from_nanos(1)).stale_while_revalidate(3_600 * SECOND);
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    for _ in 0..3 {
        assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "old");
        assert_eq!((inner.calls(), inner.is_dropped(1)), (2, false), "one call fetches the new one");
    }
    inner.answer(1, "new");
    assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "new");
}

/// One who drives a refresh and finds its answer has missed, or joined; he was served nothing stale.
#[tokio::test(start_paused = true)]
async fn refreshes_are_counted_apart_from_calls_that_wait() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(9 * SECOND).refresh_by_callers();
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    advance(SECOND).await;
    assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "old");
    let stats = dedup.stats();
    assert_eq!((stats.misses, stats.refreshes, stats.hits, stats.stale), (1, 1, 1, 1));
    inner.answer(1, "new");
    assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "new");
    let stats = dedup.stats();
    assert_eq!((stats.misses, stats.refreshes, stats.collapsed, stats.hits), (1, 1, 1, 1));

    advance(SECOND).await;
    let service = dedup.layer(|key: &&'static str| Some((*key).to_owned()));
    let mut at_once = service.layer(service_fn(async |_| Ok::<_, BoxError>("newest".to_owned())));
    assert_eq!(at_once.call("k").now_or_never().unwrap().unwrap(), "newest");
    let stats = dedup.stats();
    assert_eq!((stats.misses, stats.refreshes, stats.stale), (2, 1, 1), "it has waited for its own call");
}

#[tokio::test(start_paused = true)]
async fn an_error_is_not_kept_in_place_of_an_answer_that_is_served_still() {
    let replay = Replay::ttl(SECOND).stale_while_revalidate(9 * SECOND).negative_ttl(9 * SECOND);
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    advance(SECOND).await;
    for n in [1, 2] {
        assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "old");
        turns().await;
        inner.fail(n, "no");
        turns().await;
    }
    advance(9 * SECOND).await;
    let mut call = ask(&dedup, &inner, "k");
    assert_pending!(call.poll());
    inner.fail(3, "no");
    assert!(assert_ready!(call.poll()).is_err());
    assert!(assert_ready!(ask(&dedup, &inner, "k").poll()).is_err());
    assert_eq!(inner.calls(), 4, "now it is");
}

#[tokio::test(start_paused = true)]
async fn a_new_error_takes_the_place_of_an_old_one() {
    let dedup: Dedup<u8, u8> = Dedup::new(Replay::ttl(SECOND).negative_ttl(SECOND));
    let key = |fresh: &bool| Some(if *fresh { Identity::new(1).no_cache() } else { Identity::new(1) });
    let service = dedup.layer(key).layer(service_fn(async |_| Err::<u8, _>("no")));
    let ask = |fresh| service.clone().call(fresh).now_or_never().unwrap().unwrap_err();
    ask(false);
    advance(SECOND / 2).await;
    ask(true);
    advance(SECOND / 2).await;
    ask(false);
    assert_eq!((dedup.stats().hits, dedup.stats().misses), (1, 2), "it is kept from when it came");
}

#[tokio::test(start_paused = true)]
async fn an_answer_stands_in_for_an_error_while_it_may() {
    let (dedup, inner) = (Dedup::new(Replay::ttl(SECOND).stale_if_error(SECOND)), Inner::default());
    be_answered(&dedup, &inner, "old");
    for (n, stands_in) in [(1, true), (2, false)] {
        advance(SECOND).await;
        let mut calls = [0; 2].map(|_| ask(&dedup, &inner, "k"));
        calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
        inner.fail(n, "no");
        for call in &mut calls {
            assert_eq!(assert_ready!(call.poll()).is_ok(), stands_in);
        }
    }
    assert_eq!(dedup.stats().stale, 2);
}

#[tokio::test(start_paused = true)]
async fn an_error_for_which_something_stands_in_is_not_kept() {
    let replay = Replay::ttl(SECOND).stale_if_error(9 * SECOND).negative_ttl(9 * SECOND);
    let (dedup, inner) = (Dedup::new(replay), Inner::default());
    be_answered(&dedup, &inner, "old");
    advance(SECOND).await;
    for n in [1, 2] {
        let mut call = ask(&dedup, &inner, "k");
        assert_pending!(call.poll());
        inner.fail(n, "no");
        assert_eq!(assert_ready!(call.poll()).unwrap(), "old");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_was_invalidated_in_flight_is_not_kept() {
    let (dedup, inner) = (Dedup::new(Replay::ttl(SECOND)), Inner::default());
    for forget in [|dedup: &Words| dedup.invalidate(&"k".to_owned()), |dedup: &Words| dedup.clear()] {
        let mut old = ask(&dedup, &inner, "k");
        assert_pending!(old.poll());
        forget(&dedup);
        let mut new = ask(&dedup, &inner, "k");
        assert_pending!(new.poll());
        let calls = inner.calls();
        inner.answer(calls - 2, "old");
        assert_eq!(assert_ready!(old.poll()).unwrap(), "old");
        inner.answer(calls - 1, "new");
        assert_eq!(assert_ready!(new.poll()).unwrap(), "new");
        assert_eq!(assert_ready!(ask(&dedup, &inner, "k").poll()).unwrap(), "new");
        forget(&dedup);
    }
}

#[test]
fn one_that_is_not_to_be_answered_from_what_was_kept_asks_and_is_kept() {
    let dedup: Dedup<u8, usize> = Dedup::new(Replay::ttl(SECOND));
    let calls = Arc::new(AtomicUsize::new(0));
    let key = |fresh: &bool| Some(if *fresh { Identity::new(1).no_cache() } else { Identity::new(1) });
    let mut service = dedup.layer(key).layer(service_fn(move |_| {
        let n = calls.fetch_add(1, SeqCst);
        async move { Ok::<_, BoxError>(n) }
    }));
    let mut ask = |fresh| service.call(fresh).now_or_never().unwrap().unwrap();
    assert_eq!([ask(false), ask(false), ask(true), ask(false)], [0, 0, 1, 1]);
}

#[test]
fn another_payload_under_a_known_key_is_refused() {
    let dedup: Dedup<&str, u8> = Dedup::new(Replay::ttl(SECOND));
    let key = |payload: &u8| Some(Identity::new("k").fingerprint([*payload; 32]));
    let mut service = dedup.layer(key).layer(service_fn(async |payload| Ok::<_, BoxError>(payload)));
    assert_eq!(service.call(1).now_or_never().unwrap().unwrap(), 1);
    let error = service.call(2).now_or_never().unwrap().unwrap_err();
    assert_eq!(kind(&*error), Some(RejectionKind::Conflict));
    assert_eq!(dedup.stats().conflicts, 1);
}

/// An answer to another payload is none.
#[tokio::test(start_paused = true)]
async fn an_answer_stands_in_for_its_own_payload_only() {
    let dedup: Dedup<&str, u8> = Dedup::new(Replay::ttl(SECOND).stale_if_error(SECOND));
    let key = |(payload, _): &(u8, bool)| Some(Identity::new("k").fingerprint([*payload; 32]));
    let mut service = dedup.layer(key).layer(service_fn(async |(payload, fails)| match fails {
        true => Err("no"),
        false => Ok(payload),
    }));
    let mut ask = |payload, fails| service.call((payload, fails)).now_or_never().unwrap().ok();
    assert_eq!(ask(1, false), Some(1));
    advance(SECOND).await;
    assert_eq!([ask(2, true), ask(1, true)], [None, Some(1)]);
}

/// Whoever does not want what was kept gets the error; those who asked with him get what may stand in.
#[tokio::test(start_paused = true)]
async fn nothing_stands_in_for_one_who_is_not_to_be_answered_from_what_was_kept() {
    let (dedup, calls) =
        (Dedup::<u8, usize>::new(Replay::ttl(SECOND).stale_if_error(SECOND)), AtomicUsize::new(0));
    let calls = Arc::new(calls);
    let key = |fresh: &bool| Some(if *fresh { Identity::new(1).no_cache() } else { Identity::new(1) });
    let service = dedup.layer(key).layer(service_fn(move |_| {
        let n = calls.fetch_add(1, SeqCst);
        async move { if n == 0 { Ok(n) } else { Err("no") } }
    }));
    let ask = |fresh| service.clone().call(fresh).now_or_never().unwrap();
    assert_eq!(ask(false).unwrap(), 0);
    assert_eq!(ask(true).unwrap_err().to_string(), "no", "while it is fresh");
    advance(SECOND).await;
    for leads in [false, true] {
        let [first, second] = [leads, !leads].map(|fresh| (fresh, service.clone().call(fresh)));
        for (fresh, call) in [first, second] {
            assert_eq!(call.now_or_never().unwrap().is_err(), fresh);
        }
    }
}

#[test]
fn calls_without_a_key_are_made_by_themselves() {
    let (dedup, inner) = (none(), Inner::default());
    let mut calls = [0; 2].map(|_| ask(&dedup, &inner, ""));
    calls.iter_mut().for_each(|call| assert_pending!(call.poll()));
    assert_eq!((inner.calls(), dedup.stats().bypassed), (2, 2));
    assert_eq!(dedup.stats().hit_rate(), None);
}

#[test]
fn a_key_function_that_panics_leaves_nothing_behind() {
    let dedup: Dedup<u8, u8> = Dedup::new(Replay::none());
    let key = |key: &u8| {
        assert!(*key > 0, "the key function panics");
        Some(*key)
    };
    let mut service = dedup.layer(key).layer(service_fn(async |key| Ok::<_, BoxError>(key)));
    catch_unwind(AssertUnwindSafe(|| drop(service.call(0)))).unwrap_err();
    assert_eq!(service.call(1).now_or_never().unwrap().unwrap(), 1);
    assert_eq!(dedup.stats().misses, 1);
}

/// Threads that ask, and go at any time, leave nothing behind.
#[test]
fn many_threads_share_and_leave_no_trace() {
    let dedup: Dedup<u64, u64> = Dedup::new(Replay::ttl(Duration::from_micros(50)).max_entries(8));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let dedup = dedup.clone();
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
                let service = dedup.layer(|key: &u64| Some(*key)).layer(service_fn(|key: u64| async move {
                    tokio::task::consume_budget().await;
                    Ok::<_, BoxError>(key)
                }));
                runtime.block_on(async {
                    for n in 0..5_000 {
                        let key = (n * (thread + 1)) % 13;
                        let mut call = task::spawn(Box::pin(service.clone().oneshot(key)));
                        if n % 3 == 0 {
                            let _ = call.poll();
                            continue;
                        }
                        assert_eq!(call.into_inner().await.unwrap(), key);
                    }
                });
            });
        }
    });
    let stats = dedup.stats();
    assert_eq!(stats.in_flight, 0);
    assert_eq!(stats.hits + stats.misses + stats.collapsed, 20_000);
}
