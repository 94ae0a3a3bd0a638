use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::Waker,
};

use tokio::sync::Semaphore;

use crate::sync::{Mutex, lock};

/// What the handle, the services and the worker of one queue have of each other, whatever it is a queue of.
pub(crate) struct Control {
    /// Places to wait in. Closed when nothing is accepted any more.
    pub(crate) places: Arc<Semaphore>,
    /// Whoever has something for the worker to do wakes it.
    bell: Mutex<Option<Waker>>,
    /// How many items wait, as it was when the queue was last changed.
    pub(crate) waiting: AtomicUsize,
}

impl Control {
    pub(crate) fn new(max_pending: usize) -> Self {
        let places = Semaphore::new(max_pending.min(Semaphore::MAX_PERMITS));
        Self { places: Arc::new(places), bell: Mutex::new(None), waiting: AtomicUsize::new(0) }
    }

    /// Has the worker's task woken by the next ring. The worker listens before it looks.
    pub(crate) fn listen(&self, waker: &Waker) {
        let mut bell = lock(&self.bell);
        if bell.as_ref().is_some_and(|known| known.will_wake(waker)) {
            return;
        }
        let old = bell.replace(waker.clone());
        drop(bell);
        drop(old);
    }

    pub(crate) fn ring(&self) {
        let waker = lock(&self.bell).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Accepts nothing more, and has the worker send what waits.
    pub(crate) fn close(&self) {
        self.places.close();
        self.ring();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.places.is_closed()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("waiting", &self.waiting())
            .field("closed", &self.is_closed())
            .finish_non_exhaustive()
    }
}
