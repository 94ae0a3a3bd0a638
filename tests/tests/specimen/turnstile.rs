//! A limit on calls at once that remembers only who came last: the lost wake-up that tower's own limit does not have.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker, ready},
};

use bartizan_core::BoxError;
use bartizan_tests::{
    Subject,
    controlled::Then,
    subject::{Across, Dress, Readiness, Sharing},
    wire::{Handle, Req, Res},
};
use tower::{Service, layer::layer_fn};

#[derive(Clone)]
struct Turnstile(Arc<Mutex<State>>);

struct State {
    free: usize,
    waiting: Option<Waker>,
}

impl Turnstile {
    fn new(free: usize) -> Self {
        Self(Arc::new(Mutex::new(State { free, waiting: None })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    fn poll_enter(&self, cx: &Context<'_>) -> Poll<Turn> {
        let mut state = self.state();
        if state.free == 0 {
            state.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.free -= 1;
        Poll::Ready(Turn(self.clone()))
    }
}

struct Turn(Turnstile);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.free += 1;
        let next = state.waiting.take();
        drop(state);
        next.into_iter().for_each(Waker::wake);
    }
}

struct Turned<S> {
    inner: S,
    turnstile: Turnstile,
    turn: Option<Turn>,
}

impl<S: Clone> Clone for Turned<S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), turnstile: self.turnstile.clone(), turn: None }
    }
}

impl<S> Service<Req> for Turned<S>
where
    S: Service<Req, Response = Res, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Res;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Res, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.turn.is_none() {
            self.turn = Some(ready!(self.turnstile.poll_enter(cx)));
        }
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let (turn, answer) = (self.turn.take(), self.inner.call(request));
        Box::pin(async move {
            let answer = answer.await;
            drop(turn);
            answer
        })
    }
}

/// The turnstile under examination. It has nothing else.
pub(crate) struct Turning;

impl Turning {
    fn handle(places: usize) -> Handle {
        let turnstile = Turnstile::new(places);
        Handle::new(move || {
            let turnstile = turnstile.clone();
            layer_fn(move |inner| Turned { inner, turnstile: turnstile.clone(), turn: None })
        })
    }
}

impl Subject for Turning {
    fn name(&self) -> String {
        "turnstile that is wrong".to_owned()
    }

    fn open(&self) -> Handle {
        Self::handle(1024)
    }

    fn readiness(&self) -> Readiness {
        Readiness::PassThrough
    }

    fn sharings(&self) -> Vec<Sharing> {
        vec![Sharing {
            what: "2 places",
            handle: Self::handle(2),
            across: Across::Handle,
            then: Then::Hang,
            request: Dress::any(),
            reach: 2,
        }]
    }
}
