//! Who is asked next: one request's way through the targets. No service and no clock is in here.

use std::time::Duration;

use tokio::time::Instant;

/// The most targets that a request can have.
pub(crate) const MOST: usize = 64;

/// What has become of a request so far.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Course {
    asked: Set,
    /// Not asked, and not to be asked any more: not ready.
    unready: Set,
    /// Not asked, unless nobody else is left: they are to be left alone.
    aside: Set,
    /// Somebody was asked.
    begun: bool,
    attempts: u32,
}

/// What a request is bound by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) attempts: u32,
    pub(crate) deadline: Option<Instant>,
    pub(crate) min_attempt: Duration,
}

/// What the targets are like just now.
pub(crate) trait Field {
    /// At most [`MOST`].
    fn len(&self) -> usize;

    /// Whether this one takes over from what has failed last.
    fn takes(&self, target: usize) -> bool;

    /// Until when this one is to be left alone, if that is later than now.
    fn aside(&self, target: usize, now: &mut Now<impl FnMut() -> Instant>) -> Option<Instant>;
}

/// The time, read once and only if something depends on it.
pub(crate) struct Now<F> {
    read: F,
    now: Option<Instant>,
}

impl<F: FnMut() -> Instant> Now<F> {
    pub(crate) const fn new(read: F) -> Self {
        Self { read, now: None }
    }

    pub(crate) fn get(&mut self) -> Instant {
        *self.now.get_or_insert_with(&mut self.read)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Ask(usize),
    Stop(Stop),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Nobody is left.
    NobodyLeft,
    /// As many were asked as may be.
    Attempts,
    /// The time is over, or too little is left.
    Deadline,
}

impl Course {
    /// Whom to ask. What comes of it is to be told: [`called`](Self::called) or [`unready`](Self::unready).
    #[inline]
    pub(crate) fn next(
        &mut self,
        field: &impl Field,
        bounds: &Bounds,
        now: &mut Now<impl FnMut() -> Instant>,
    ) -> Next {
        let seen = Set(self.asked.0 | self.unready.0 | self.aside.0);
        for target in Set::of(field.len()).without(seen).targets() {
            if !field.takes(target) {
                continue;
            }
            if field.aside(target, now).is_some() {
                self.aside.add(target);
                continue;
            }
            return self.ask(target, bounds, now);
        }
        if self.begun {
            return Next::Stop(Stop::NobodyLeft);
        }
        // The least bad: whoever may be asked again first. One that may by now comes before all others.
        match self.aside.targets().min_by_key(|target| field.aside(*target, now)) {
            Some(target) => self.ask(target, bounds, now),
            None => Next::Stop(Stop::NobodyLeft),
        }
    }

    fn ask(&self, target: usize, bounds: &Bounds, now: &mut Now<impl FnMut() -> Instant>) -> Next {
        if self.attempts >= bounds.attempts {
            return Next::Stop(Stop::Attempts);
        }
        if let Some(deadline) = bounds.deadline {
            let left = deadline.saturating_duration_since(now.get());
            if left.is_zero() || left < bounds.min_attempt {
                return Next::Stop(Stop::Deadline);
            }
        }
        Next::Ask(target)
    }

    /// This one was called.
    pub(crate) fn called(&mut self, target: usize) {
        self.aside.remove(target);
        self.asked.add(target);
        self.begun = true;
        self.attempts += 1;
    }

    /// This one is not ready, and is left out.
    pub(crate) fn unready(&mut self, target: usize) {
        self.aside.remove(target);
        self.unready.add(target);
    }

    /// Whether anybody was asked.
    pub(crate) const fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether a further target may be asked, should this one fail: whether the request has to be kept.
    pub(crate) fn may_go_on(&self, target: usize, targets: usize, bounds: &Bounds) -> bool {
        let others = Set::of(targets).without(Set(self.asked.0 | self.unready.0 | 1 << target));
        others != Set::default() && self.attempts + 1 < bounds.attempts
    }

    /// Those that were to be left alone and were not asked, in order.
    #[inline]
    pub(crate) fn left_alone(&self) -> impl Iterator<Item = usize> + use<> {
        self.aside.targets()
    }
}

/// Some of the targets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Set(u64);

impl Set {
    /// The first `n`, up to [`MOST`].
    #[inline]
    const fn of(n: usize) -> Self {
        Self(if n >= MOST { u64::MAX } else { (1 << n) - 1 })
    }

    #[inline]
    const fn without(self, others: Self) -> Self {
        Self(self.0 & !others.0)
    }

    /// In order.
    #[inline]
    fn targets(self) -> impl Iterator<Item = usize> + use<> {
        let Self(mut left) = self;
        std::iter::from_fn(move || {
            let target = left.trailing_zeros() as usize;
            left &= left.wrapping_sub(1);
            (target < MOST).then_some(target)
        })
    }

    const fn add(&mut self, target: usize) {
        self.0 |= 1 << target;
    }

    const fn remove(&mut self, target: usize) {
        self.0 &= !(1 << target);
    }
}

#[cfg(test)]
mod tests;
