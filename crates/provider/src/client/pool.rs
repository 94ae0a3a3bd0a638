use std::{
    collections::{HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    task::Context,
    time::Duration,
};

use http::uri::{Authority, Scheme};
use tokio::time::Instant;

use super::connection::Connection;

pub(super) type Key = (Scheme, Authority);

/// Connections that wait for their next request, the youngest at the back.
pub(super) struct Pool {
    idle: Mutex<HashMap<Key, VecDeque<Idle>>>,
    max_idle: usize,
    idle_for: Duration,
}

struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Default for Pool {
    fn default() -> Self {
        Self::new(256, Duration::from_secs(60))
    }
}

impl Pool {
    pub(super) fn new(max_idle: usize, idle_for: Duration) -> Self {
        Self { idle: Mutex::default(), max_idle, idle_for }
    }

    /// The connection used last, if there is one that is neither too old nor closed by its server.
    pub(super) fn take(&self, key: &Key, cx: &mut Context<'_>) -> Option<Box<Connection>> {
        loop {
            let mut idle = self.lock().get_mut(key)?.pop_back()?;
            if idle.since.elapsed() > self.idle_for {
                // All before it are older.
                self.lock().remove(key);
                return None;
            }
            if idle.connection.is_reusable(cx) {
                return Some(idle.connection);
            }
        }
    }

    pub(super) fn put(&self, key: Key, connection: Box<Connection>) {
        if self.max_idle == 0 {
            return;
        }
        let now = Instant::now();
        let mut evicted = None;
        let mut hosts = self.lock();
        let host = hosts.entry(key).or_default();
        let too_old = |oldest: &Idle| now.duration_since(oldest.since) > self.idle_for;
        if host.len() == self.max_idle || host.front().is_some_and(too_old) {
            evicted = host.pop_front();
        }
        host.push_back(Idle { connection, since: now });
        drop(hosts);
        // Closing a socket is a system call: not under the lock.
        drop(evicted);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().values().map(VecDeque::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, VecDeque<Idle>>> {
        // No code that can panic runs under the lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
