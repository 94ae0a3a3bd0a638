use std::{
    fmt,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    task::{Context, Poll},
};

use tokio::time::{Sleep, sleep_until};

use crate::{CircuitBreaker, circuit::Circuit, clock, machine::Look};

/// What `poll_ready` does while the breaker is not closed: [`Refuse`] or [`Backpressure`].
pub trait Mode {
    /// Whether a call needs the inner service to be ready before. Pending if no call can pass.
    #[doc(hidden)]
    fn poll(&mut self, breaker: &CircuitBreaker, cx: &mut Context<'_>) -> Poll<bool>;
}

/// It is ready at once, and `call` refuses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Refuse;

impl Mode for Refuse {
    #[inline]
    fn poll(&mut self, breaker: &CircuitBreaker, _: &mut Context<'_>) -> Poll<bool> {
        Poll::Ready(breaker.circuit.passes())
    }
}

/// It waits until a call can pass. [`CircuitBreakerLayer::backpressure`](crate::CircuitBreakerLayer::backpressure) makes
/// one.
#[derive(Default)]
pub struct Backpressure {
    sleep: Option<Pin<Box<Sleep>>>,
    place: Option<Place>,
}

/// Where a service waits for news.
struct Place {
    circuit: &'static Circuit,
    id: u64,
}

impl Place {
    fn new(circuit: &'static Circuit) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { circuit, id: NEXT.fetch_add(1, Relaxed) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.circuit.leave(self.id);
    }
}

impl Mode for Backpressure {
    #[inline]
    fn poll(&mut self, breaker: &CircuitBreaker, cx: &mut Context<'_>) -> Poll<bool> {
        if breaker.circuit.passes() && self.place.is_none() {
            return Poll::Ready(true);
        }
        self.poll_slowly(breaker, cx)
    }
}

impl Backpressure {
    #[cold]
    fn poll_slowly(&mut self, breaker: &CircuitBreaker, cx: &mut Context<'_>) -> Poll<bool> {
        let circuit = breaker.circuit;
        loop {
            let place = self.place.get_or_insert_with(|| Place::new(circuit));
            let (look, at) = circuit.look_or_wait(clock::now(), place.id, cx.waker());
            if let Look { passes: true, .. } = look {
                (self.place, self.sleep) = (None, None);
                return Poll::Ready(true);
            }
            let Some(at) = at else {
                self.sleep = None;
                return Poll::Pending;
            };
            let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

impl Clone for Backpressure {
    /// A clone waits for itself.
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Backpressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backpressure").field("waits", &self.place.is_some()).finish()
    }
}
