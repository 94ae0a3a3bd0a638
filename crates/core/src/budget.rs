use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Instant,
};

/// How many calls all layers together may make for one request, and until when.
///
/// Retries within fallbacks multiply, unless both draw from one budget. It rides in the request's extensions; its clones
/// are one budget. A layer that is about to call *again*, be it another target or the same one, asks [`again`](Self::again)
/// first: the first call is counted as made, whoever makes it.
///
/// ```
/// use bartizan_core::Budget;
///
/// let budget = Budget::new(3);
/// let of_another_layer = budget.clone();
/// assert!(budget.again() && of_another_layer.again());
/// assert!(!budget.again(), "three calls have been made");
/// ```
#[derive(Clone)]
pub struct Budget(Arc<Shared>);

struct Shared {
    further: AtomicU32,
    deadline: Option<Instant>,
}

impl Budget {
    /// So many calls in all, the first one included. Of 0 there is one all the same.
    pub fn new(calls: u32) -> Self {
        Self::of(calls, None)
    }

    /// So many calls in all, and no further one from `deadline` on.
    pub fn until(calls: u32, deadline: Instant) -> Self {
        Self::of(calls, Some(deadline))
    }

    fn of(calls: u32, deadline: Option<Instant>) -> Self {
        Self(Arc::new(Shared { further: AtomicU32::new(calls.saturating_sub(1)), deadline }))
    }

    /// Takes one further call. False if none is left.
    ///
    /// The clock is not read: what is over in time is for the layer to see.
    pub fn again(&self) -> bool {
        self.0.further.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
    }

    /// How many further calls may be made.
    pub fn left(&self) -> u32 {
        self.0.further.load(Relaxed)
    }

    /// When the time for this request is over, if there is such a time.
    pub fn deadline(&self) -> Option<Instant> {
        self.0.deadline
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget").field("left", &self.left()).field("deadline", &self.deadline()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn it_gives_no_more_than_it_has_to_all_threads_together() {
        let budget = Budget::new(1_000);
        let taken: u32 = thread::scope(|scope| {
            let take = || (0..1_000).filter(|_| budget.again()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(take)).collect();
            threads.into_iter().map(|it| u32::try_from(it.join().unwrap()).unwrap()).sum()
        });
        assert_eq!((taken, budget.left()), (999, 0));
    }

    #[test]
    fn none_is_left_of_none() {
        assert!(!Budget::new(0).again() && !Budget::new(1).again());
    }
}
