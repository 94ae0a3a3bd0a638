//! A store of rate limits that is far away: it answers later, and can fail, or not answer at all.

use std::{
    collections::HashMap,
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bartizan_core::{BoxError, RetryAfter};
use bartizan_rate_limit::{Ask, Limit, Measure, RateLimiter, Store, Verdict};
use tokio::time::sleep;

/// A store in memory that takes its time.
#[derive(Clone)]
pub struct Remote(Arc<Mutex<State>>);

struct State {
    limits: HashMap<(String, Measure), RateLimiter<String>>,
    latency: Duration,
    mood: Mood,
    trips: usize,
}

/// How a store behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It answers.
    Well,
    /// It fails, at once.
    Failing,
    /// It never answers.
    Silent,
}

impl Remote {
    /// Each trip takes `latency`.
    pub fn new(latency: Duration) -> Self {
        let state = State { limits: HashMap::new(), latency, mood: Mood::Well, trips: 0 };
        Self(Arc::new(Mutex::new(state)))
    }

    /// From now on it behaves like this.
    pub fn set_mood(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// How often it was asked.
    pub fn trips(&self) -> usize {
        self.state().trips
    }

    /// What is left of a key; `None` if the limit was never asked for.
    pub fn available(&self, limit: &str, key: &str) -> Option<i64> {
        let state = self.state();
        let (_, limiter) = state.limits.iter().find(|((name, _), _)| name == limit)?;
        Some(limiter.stats_of(key).available)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn limiter(&mut self, ask: &Ask) -> &RateLimiter<String> {
        let limit: Limit = match ask.measure() {
            Measure::Quota(quota) => quota.into(),
            Measure::Window(window) => window.into(),
        };
        let make = || RateLimiter::keyed(limit.max_keys(256));
        self.limits.entry((ask.limit().to_owned(), ask.measure())).or_insert_with(make)
    }

    /// All or nothing: nobody else sees it halfway, since it is locked.
    fn take(&mut self, asks: &[Ask]) -> Verdict {
        let taken: Vec<_> =
            asks.iter().map(|ask| self.limiter(ask).try_acquire(ask.key(), ask.cost())).collect();
        let wait = |n: usize| match taken[n].as_ref().err()?.retry_after() {
            RetryAfter::After(wait) => Some((wait, n)),
            RetryAfter::Never | RetryAfter::Unknown => Some((Duration::MAX, n)),
        };
        let Some((wait, ask)) = (0..asks.len()).filter_map(wait).max() else { return Verdict::Admitted };
        for (ask, _) in asks.iter().zip(&taken).filter(|(_, taken)| taken.is_ok()) {
            self.limiter(ask).settle(ask.key(), ask.cost(), 0);
        }
        Verdict::Denied { ask, retry_after: (wait < Duration::MAX).then_some(wait) }
    }
}

impl Store for Remote {
    type Take = Pin<Box<dyn Future<Output = Result<Verdict, BoxError>> + Send>>;

    fn take(&self, asks: Arc<[Ask]>) -> Self::Take {
        let this = self.clone();
        Box::pin(async move {
            let (latency, mood) = {
                let mut state = this.state();
                state.trips += 1;
                (state.latency, state.mood)
            };
            match mood {
                Mood::Well => {}
                Mood::Failing => return Err("connection refused".into()),
                Mood::Silent => return pending().await,
            }
            if !latency.is_zero() {
                sleep(latency).await;
            }
            Ok(this.state().take(&asks))
        })
    }

    fn settle(&self, ask: &Ask, actual: u64) {
        let mut state = self.state();
        if state.mood == Mood::Well {
            state.limiter(ask).settle(ask.key(), ask.cost(), actual);
        }
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("mood", &self.state().mood).finish_non_exhaustive()
    }
}
