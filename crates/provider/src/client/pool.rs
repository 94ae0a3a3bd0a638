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

/// Connections that wait for their next request.
pub(super) struct Pool {
    idle: Mutex<Hosts>,
    max_idle: usize,
    idle_for: Duration,
}

#[derive(Default)]
struct Hosts {
    /// The youngest at the back.
    idle: HashMap<Key, VecDeque<Idle>>,
    /// When to look at hosts that nobody asks for any more.
    sweep_at: Option<Instant>,
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
            let mut idle = self.lock().idle.get_mut(key)?.pop_back()?;
            if idle.since.elapsed() > self.idle_for {
                // All before it are older. Sockets are closed once the lock is released.
                let too_old = self.lock().idle.remove(key);
                drop(too_old);
                return None;
            }
            if idle.connection.is_still_reusable(cx) {
                return Some(idle.connection);
            }
        }
    }

    pub(super) fn put(&self, key: Key, connection: Box<Connection>) {
        if self.max_idle == 0 {
            return;
        }
        let now = Instant::now();
        let mut hosts = self.lock();
        let mut closed = if hosts.sweep_at.is_some_and(|at| now < at) {
            Vec::new()
        } else {
            hosts.sweep_at = Some(now + self.idle_for);
            hosts.remove_older(now, self.idle_for)
        };
        let host = hosts.idle.entry(key).or_default();
        if host.len() == self.max_idle {
            closed.extend(host.pop_front());
        }
        host.push_back(Idle { connection, since: now });
        drop(hosts);
        // Closing a socket is a system call: not under the lock.
        drop(closed);
    }

    /// Those that could be taken, as far as one can tell without looking at them.
    pub(super) fn len(&self) -> usize {
        let now = Instant::now();
        let hosts = self.lock();
        let idle = hosts.idle.values().flatten();
        idle.filter(|idle| now.duration_since(idle.since) <= self.idle_for).count()
    }

    fn lock(&self) -> MutexGuard<'_, Hosts> {
        // No code that can panic runs under the lock.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hosts {
    fn remove_older(&mut self, now: Instant, idle_for: Duration) -> Vec<Idle> {
        let mut removed = Vec::new();
        self.idle.retain(|_, host| {
            let old = host.partition_point(|idle| now.duration_since(idle.since) > idle_for);
            removed.extend(host.drain(..old));
            !host.is_empty()
        });
        removed
    }
}
