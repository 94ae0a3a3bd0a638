//! A service that does as it is told.

use std::{
    collections::BTreeMap,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use axum::body::Body;
use bartizan_core::BoxError;
use tower_service::Service;

use crate::wire::{Req, Res};

/// What a call of a [`Controlled`] service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It answers 200.
    Resolve,
    /// It fails with an error.
    Fail,
    /// Its future panics when polled.
    Panic,
    /// `call` itself panics.
    PanicInCall,
    /// Its future is pending until it is told otherwise.
    Hang,
}

/// What `poll_ready` of a [`Controlled`] service says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `Ready`, as far as the capacity goes.
    Open,
    /// `Pending`.
    Shut,
    /// An error.
    Broken,
}

/// An innermost service whose every move is commanded through its [`Controls`].
///
/// It behaves as `ConcurrencyLimit` does: `Ready` takes one of `capacity` permits, which the call keeps until its future
/// is complete or dropped, and which a ready instance that is dropped gives back.
#[derive(Debug)]
pub struct Controlled {
    controls: Controls,
    id: u64,
    permit: Option<Permit>,
}

impl Controlled {
    /// A service with `capacity` permits, open, whose calls resolve; and what commands it.
    pub fn new(capacity: usize) -> (Self, Controls) {
        let state = State {
            capacity,
            free: capacity,
            gate: Gate::Open,
            then: Then::Resolve,
            ids: 0,
            calls: BTreeMap::new(),
            waiting: BTreeMap::new(),
        };
        let controls = Controls(Arc::new(Mutex::new(state)));
        (Self::instance(&controls), controls)
    }

    fn instance(controls: &Controls) -> Self {
        Self { controls: controls.clone(), id: controls.state().id(), permit: None }
    }
}

impl Clone for Controlled {
    fn clone(&self) -> Self {
        Self::instance(&self.controls)
    }
}

impl Drop for Controlled {
    fn drop(&mut self) {
        self.controls.state().waiting.remove(&self.id);
    }
}

impl Service<Req> for Controlled {
    type Response = Res;
    type Error = BoxError;
    type Future = Reply;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let mut state = self.controls.state();
        if state.gate == Gate::Broken {
            return Poll::Ready(Err("the controlled service is broken".into()));
        }
        if self.permit.is_none() {
            if state.gate == Gate::Shut || state.free == 0 {
                state.waiting.insert(self.id, cx.waker().clone());
                return Poll::Pending;
            }
            state.free -= 1;
            self.permit = Some(Permit(self.controls.clone()));
        }
        state.waiting.remove(&self.id);
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Reply {
        let permit = self.permit.take().expect("poll_ready said Ready");
        let mut state = self.controls.state();
        let then = state.then;
        if then == Then::PanicInCall {
            drop(state);
            panic!("the controlled service panics in call");
        }
        let id = state.id();
        state.calls.insert(id, Call { then, waker: None });
        drop(state);
        Reply { id, permit: Some(permit) }
    }
}

/// The response future of [`Controlled`].
#[derive(Debug)]
pub struct Reply {
    id: u64,
    /// Gone when the call is over.
    permit: Option<Permit>,
}

impl Future for Reply {
    type Output = Result<Res, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let permit = self.permit.as_ref().expect("polled after completion");
        let mut state = permit.0.state();
        let call = state.calls.get_mut(&self.id).expect("a call is known until it is over");
        let then = call.then;
        if then == Then::Hang {
            call.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.finish();
        match then {
            Then::Fail => Poll::Ready(Err("the controlled service fails".into())),
            Then::Resolve => Poll::Ready(Ok(Res::new(Body::empty()))),
            Then::Panic | Then::PanicInCall | Then::Hang => panic!("the controlled service panics in poll"),
        }
    }
}

impl Reply {
    fn finish(&mut self) {
        if let Some(permit) = self.permit.take() {
            permit.0.state().calls.remove(&self.id);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Commands a [`Controlled`] service, and all its clones.
#[derive(Clone, Debug)]
pub struct Controls(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    capacity: usize,
    free: usize,
    gate: Gate,
    then: Then,
    ids: u64,
    calls: BTreeMap<u64, Call>,
    waiting: BTreeMap<u64, Waker>,
}

#[derive(Debug)]
struct Call {
    then: Then,
    waker: Option<Waker>,
}

impl State {
    fn id(&mut self) -> u64 {
        self.ids += 1;
        self.ids
    }
}

impl Controls {
    /// What the calls from now on do.
    pub fn then(&self, then: Then) {
        self.state().then = then;
    }

    /// What `poll_ready` says from now on.
    pub fn gate(&self, gate: Gate) {
        let mut state = self.state();
        state.gate = gate;
        let woken = mem::take(&mut state.waiting);
        drop(state);
        woken.into_values().for_each(Waker::wake);
    }

    /// What the oldest call under way does now. False if there is none.
    pub fn finish(&self, then: Then) -> bool {
        let mut state = self.state();
        let Some(call) = state.calls.values_mut().find(|call| call.then == Then::Hang) else { return false };
        call.then = then;
        let waker = call.waker.take();
        drop(state);
        waker.into_iter().for_each(Waker::wake);
        true
    }

    /// What every call under way does now.
    pub fn finish_all(&self, then: Then) {
        while self.finish(then) {}
    }

    /// Permits that nobody holds.
    pub fn free(&self) -> usize {
        self.state().free
    }

    /// Permits in all.
    pub fn capacity(&self) -> usize {
        self.state().capacity
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics under this lock")
    }
}

#[derive(Debug)]
struct Permit(Controls);

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.free += 1;
        let woken = mem::take(&mut state.waiting);
        drop(state);
        woken.into_values().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tower::ServiceExt;

    use super::*;
    use crate::watch::Watched;

    #[test]
    fn a_held_ready_takes_the_permit() {
        let (first, controls) = Controlled::new(1);
        let mut second = first.clone();
        let mut first = Watched::new(first.ready_oneshot());
        let Poll::Ready(Ok(first)) = first.poll() else { panic!("there is a permit") };
        assert_eq!(controls.free(), 0);

        let mut waits = Watched::new(second.ready());
        assert!(waits.poll().is_pending());
        assert_eq!(waits.fault(), None);
        drop(first);
        assert!(waits.is_woken());
        assert!(waits.poll().is_ready());
        drop(waits);
        drop(second);
        assert_eq!(controls.free(), controls.capacity());
    }

    #[test]
    fn calls_do_as_they_are_told() {
        let (service, controls) = Controlled::new(1);
        let call = || Watched::new(service.clone().oneshot(Req::default()));
        for (then, good) in [(Then::Resolve, true), (Then::Fail, false)] {
            controls.then(then);
            assert!(matches!(call().poll(), Poll::Ready(result) if result.is_ok() == good));

            controls.then(Then::Hang);
            let mut hangs = call();
            assert!(hangs.poll().is_pending());
            assert_eq!(controls.free(), 0);
            assert!(controls.finish(then));
            assert!(hangs.is_woken());
            assert!(matches!(hangs.poll(), Poll::Ready(result) if result.is_ok() == good));
        }
        for then in [Then::Panic, Then::PanicInCall] {
            controls.then(then);
            catch_unwind(AssertUnwindSafe(|| call().poll().is_ready())).unwrap_err();
            assert_eq!(controls.free(), 1, "{then:?}");
        }
        assert!(!controls.finish(Then::Resolve), "no call is under way");
    }

    #[test]
    fn readiness_is_as_it_is_told() {
        let (mut service, controls) = Controlled::new(1);
        controls.gate(Gate::Broken);
        assert!(matches!(Watched::new(service.ready()).poll(), Poll::Ready(Err(_))));
        controls.gate(Gate::Shut);
        let mut ready = Watched::new(service.ready());
        assert!(ready.poll().is_pending());
        controls.gate(Gate::Open);
        assert!(ready.is_woken());
        assert!(matches!(ready.poll(), Poll::Ready(Ok(_))));
    }
}
