//! A desk with few seats that takes few calls in a window of time, and refuses the others.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bartizan_core::{BoxError, Rejected, RejectionKind};
use bartizan_tests::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Impossible, Panicking, Readiness, Refusal, Sharing},
    wire::{Handle, Req, Res},
};
use tokio::time::Instant;
use tower::{Layer, Service};

/// What is wrong with a desk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    CallsAClone,
    KeepsTheGrant,
    RefusesInPollReady,
    HoardsGrants,
    IgnoresTheInner,
    LosesTheSeatOnDrop,
    WakesItself,
    LosesTheWaker,
    KeepsTheFirstWaker,
    PollsTwice,
    StatePerClone,
    StatePerService,
    StatePerLayer,
    RealClock,
    AcceptsZero,
    DividesByZero,
    Spawns,
    LockedInTheClosure,
    RemembersEveryCall,
}

#[derive(Clone)]
pub(crate) struct Desk {
    shared: Arc<Shared>,
    flaw: Option<Flaw>,
}

struct Shared {
    limits: Limits,
    window: Mutex<Window>,
    taken: AtomicUsize,
    began: std::time::Instant,
}

#[derive(Clone, Copy)]
struct Limits {
    calls: usize,
    per: Duration,
    seats: usize,
}

struct Window {
    since: Instant,
    calls: usize,
    remembered: Vec<Instant>,
}

impl Shared {
    #[expect(clippy::disallowed_methods, reason = "one of the flaws is to read this clock")]
    fn new(limits: Limits) -> Self {
        let window = Window { since: Instant::now(), calls: 0, remembered: Vec::new() };
        let began = std::time::Instant::now();
        Self { limits, window: window.into(), taken: AtomicUsize::new(0), began }
    }
}

impl Desk {
    fn new(calls: usize, per: Duration, seats: usize, flaw: Option<Flaw>) -> Self {
        if flaw == Some(Flaw::DividesByZero) {
            let _every = per.as_nanos() / calls as u128;
        }
        assert!(calls > 0 || flaw == Some(Flaw::AcceptsZero), "a desk that takes no call is of no use");
        let limits = Limits { calls, per, seats };
        Self { shared: Arc::new(Shared::new(limits)), flaw }
    }

    fn layer(&self) -> Self {
        if self.flaw == Some(Flaw::StatePerLayer) { self.fresh() } else { self.clone() }
    }

    fn fresh(&self) -> Self {
        Self { shared: Arc::new(Shared::new(self.shared.limits)), flaw: self.flaw }
    }

    fn spent(&self) -> bool {
        let window = self.shared.window.lock().unwrap();
        window.calls >= self.shared.limits.calls && window.since.elapsed() < self.shared.limits.per
    }

    /// Takes a place in the window and a seat.
    fn admit(&self, request: &Req) -> Option<Seat> {
        let limits = self.shared.limits;
        let locked =
            (self.flaw == Some(Flaw::LockedInTheClosure)).then(|| self.shared.window.lock().unwrap());
        if !users_closure(request) {
            return None;
        }
        drop(locked);
        let mut window = self.shared.window.lock().unwrap();
        let over = match self.flaw {
            Some(Flaw::RealClock) => self.shared.began.elapsed() >= limits.per,
            _ => window.since.elapsed() >= limits.per,
        };
        if over {
            (window.since, window.calls) = (Instant::now(), 0);
        }
        if window.calls >= limits.calls || self.shared.taken.load(SeqCst) >= limits.seats {
            return None;
        }
        window.calls += 1;
        if self.flaw == Some(Flaw::RemembersEveryCall) {
            window.remembered.push(Instant::now());
        }
        self.shared.taken.fetch_add(1, SeqCst);
        Some(Seat(self.shared.clone()))
    }
}

/// What a user would pass in: it says who is let in, and has a bug.
fn users_closure(request: &Req) -> bool {
    assert!(!request.headers().contains_key("x-panic"), "the user's closure panics");
    !request.headers().contains_key("x-refuse")
}

struct Seat(Arc<Shared>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, SeqCst);
    }
}

impl<S> Layer<S> for Desk {
    type Service = AtDesk<S>;

    fn layer(&self, inner: S) -> AtDesk<S> {
        let desk = if self.flaw == Some(Flaw::StatePerService) { self.fresh() } else { self.clone() };
        AtDesk { inner, desk, hoard: Vec::new() }
    }
}

pub(crate) struct AtDesk<S> {
    inner: S,
    desk: Desk,
    hoard: Vec<S>,
}

impl<S: Clone> Clone for AtDesk<S> {
    fn clone(&self) -> Self {
        let desk =
            if self.desk.flaw == Some(Flaw::StatePerClone) { self.desk.fresh() } else { self.desk.clone() };
        Self { inner: self.inner.clone(), desk, hoard: Vec::new() }
    }
}

impl<S> Service<Req> for AtDesk<S>
where
    S: Service<Req, Response = Res, Error = BoxError> + Clone,
    S::Future: Send + 'static,
{
    type Response = Res;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self.desk.flaw {
            Some(Flaw::RefusesInPollReady) if self.desk.spent() => return Poll::Ready(Err(refused())),
            Some(Flaw::HoardsGrants) => {
                let mut another = self.inner.clone();
                ready!(another.poll_ready(cx))?;
                self.hoard.push(another);
            }
            Some(Flaw::IgnoresTheInner) => return Poll::Ready(Ok(())),
            _ => {}
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Answer {
        let flaw = self.desk.flaw;
        let Some(seat) = self.desk.admit(&request) else {
            if flaw != Some(Flaw::KeepsTheGrant) {
                self.inner = self.inner.clone();
            }
            return Answer { inner: Box::pin(async { Err(refused()) }), seat: None, first: None, flaw };
        };
        let inner: Calling = match flaw {
            Some(Flaw::CallsAClone) => Box::pin(self.inner.clone().call(request)),
            Some(Flaw::Spawns) => {
                let task = tokio::spawn(self.inner.call(request));
                Box::pin(async { task.await? })
            }
            _ => Box::pin(self.inner.call(request)),
        };
        Answer { inner, seat: Some(seat), first: None, flaw }
    }
}

fn refused() -> BoxError {
    Rejected::new(RejectionKind::RateLimited, "desk").into()
}

type Calling = Pin<Box<dyn Future<Output = Result<Res, BoxError>> + Send>>;

pub(crate) struct Answer {
    inner: Calling,
    seat: Option<Seat>,
    first: Option<Waker>,
    flaw: Option<Flaw>,
}

impl Future for Answer {
    type Output = Result<Res, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let waker = match self.flaw {
            Some(Flaw::LosesTheWaker) => Waker::noop().clone(),
            Some(Flaw::KeepsTheFirstWaker) => self.first.get_or_insert_with(|| cx.waker().clone()).clone(),
            _ => cx.waker().clone(),
        };
        let cx = &mut Context::from_waker(&waker);
        let mut polled = self.inner.as_mut().poll(cx);
        if polled.is_pending() {
            match self.flaw {
                Some(Flaw::WakesItself) => waker.wake(),
                Some(Flaw::PollsTwice) => polled = self.inner.as_mut().poll(cx),
                _ => {}
            }
        }
        let result = ready!(polled);
        self.seat = None;
        Poll::Ready(result)
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.flaw == Some(Flaw::LosesTheSeatOnDrop) {
            mem::forget(self.seat.take());
        }
    }
}

/// The desk under examination.
pub(crate) struct Specimen(pub(crate) Option<Flaw>);

const MINUTE: Duration = Duration::from_secs(60);

impl Specimen {
    fn handle(&self, calls: usize, seats: usize) -> Handle {
        let desk = Desk::new(calls, MINUTE, seats, self.0);
        Handle::new(move || desk.layer())
    }

    fn with(header: &'static str) -> Dress {
        Dress::new(move |_, mut request| {
            request.headers_mut().insert(header, http::HeaderValue::from_static("1"));
            request
        })
    }
}

impl Subject for Specimen {
    fn name(&self) -> String {
        self.0.map_or_else(|| "specimen-desk".to_owned(), |flaw| format!("desk that is wrong: {flaw:?}"))
    }

    fn open(&self) -> Handle {
        self.handle(usize::MAX, usize::MAX)
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn refusals(&self) -> Vec<Refusal> {
        let refusal = |what, handle, warm_up, request, lifts| {
            let (then, readiness) = (Then::Resolve, Readiness::PassThrough);
            Refusal { what, handle, warm_up, then, request, readiness, lifts }
        };
        vec![
            refusal("2 calls a minute", self.handle(2, 9), 2, Dress::any(), Some(MINUTE)),
            refusal("not let in", self.handle(9, 9), 0, Self::with("x-refuse"), None),
        ]
    }

    fn sharings(&self) -> Vec<Sharing> {
        let sharing = |what, handle, then| Sharing {
            what,
            handle,
            across: Across::Handle,
            then,
            request: Dress::any(),
            reach: 3,
        };
        vec![
            sharing("3 calls a minute", self.handle(3, 9), Then::Resolve),
            sharing("3 seats", self.handle(usize::MAX, 3), Then::Hang),
        ]
    }

    fn impossible(&self) -> Vec<Impossible> {
        let flaw = self.0;
        vec![Impossible::new("no calls a minute", move || Desk::new(0, MINUTE, 9, flaw))]
    }

    fn panicking(&self) -> Vec<Panicking> {
        vec![Panicking { what: "who is let in", handle: self.open(), request: Self::with("x-panic") }]
    }
}
