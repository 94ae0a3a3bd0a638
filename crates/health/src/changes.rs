//! Telling of changes to whoever watches.

use std::sync::atomic::{Ordering::SeqCst, fence};

use tokio::sync::watch;

use crate::sync::takes_a_lock;

#[derive(Clone, Debug)]
pub(crate) struct Changes(watch::Sender<()>);

impl Changes {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(()))
    }

    /// Something has changed. When nobody watches there is no lock; who watches is a task to be woken, and neither the list
    /// of those nor the run queue of a runtime can be had without one.
    pub(crate) fn tell(&self) {
        // What has changed, then the count. Who begins to watch is counted and then looks: one sees the other.
        fence(SeqCst);
        if self.0.receiver_count() > 0 {
            takes_a_lock();
            self.0.send_replace(());
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        let receiver = self.0.subscribe();
        fence(SeqCst);
        receiver
    }
}
