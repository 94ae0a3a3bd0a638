//! One request among its targets: what it is bound by, what has failed, what comes next.

use std::{
    error::Error,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bartizan_core::{BoxError, Budget, Class, Classify, Rejected, RejectionKind, RetryAfter};
use tokio::time::Instant;

use crate::{
    Attempt, CloneRequest, Exhausted, Form, Settings, Skipped, Targets, Why,
    choice::{Bounds, Course, Field, Next, Now, Stop},
    fallback::Known,
    future::later,
    lanes::Lane,
    service::Shared,
};

pub(crate) struct Way<T, C, K, F, Req> {
    shared: Lane<Shared<T, C, K, F>>,
    /// What the next target gets.
    request: Option<Req>,
    begun: bool,
    course: Course,
    deadline: Option<Instant>,
    budget: Option<Budget>,
    /// There is none as long as all goes well.
    trail: Option<Box<Trail>>,
}

/// The service below the layer.
const FIRST: usize = 0;

/// What has gone wrong so far.
#[derive(Default)]
struct Trail {
    attempts: Vec<Attempt>,
    /// Targets that were not ready, and their errors.
    unready: Vec<(usize, Option<Arc<dyn Error + Send + Sync>>)>,
}

impl<T, C, K, F, Req> Way<T, C, K, F, Req> {
    #[inline]
    pub(crate) fn new(shared: Lane<Shared<T, C, K, F>>, request: Req) -> Self {
        Self {
            shared,
            request: Some(request),
            begun: false,
            course: Course::default(),
            deadline: None,
            budget: None,
            trail: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    pub(crate) fn patience(&self) -> Duration {
        self.shared.fallback.settings().ready_within
    }

    #[inline]
    fn bounds(&self) -> Bounds {
        let Settings { attempts, min_attempt, .. } = *self.shared.fallback.settings();
        Bounds { attempts, deadline: self.deadline, min_attempt }
    }

    fn known(&self, target: usize) -> &Known {
        self.shared.fallback.known(self.shared.links[target].place)
    }
}

impl<T, C, K, F, Req> Way<T, C, K, F, Req>
where
    T: Targets<Req>,
    C: Classify<T::Response>,
    K: CloneRequest<Req>,
    F: Form<Req, T::Response>,
{
    /// Whom to ask next.
    #[inline]
    pub(crate) fn choose(&mut self) -> Result<usize, Why> {
        let mut now = Now::new(Instant::now);
        if !self.begun {
            self.begun = true;
            self.bind(&mut now);
            // Most often there is nothing to weigh up: the first one takes whatever comes, and one call is always allowed.
            if self.deadline.is_none() && self.shared.fallback.is_free(self.shared.links[FIRST].place) {
                return Ok(FIRST);
            }
        }
        let bounds = self.bounds();
        let failed = self.trail.as_ref().and_then(|trail| trail.attempts.last()).map(Attempt::cause);
        let targets = Chain { shared: &self.shared, failed };
        match self.course.next(&targets, &bounds, &mut now) {
            Next::Ask(_) if self.is_spent() => Err(Why::Attempts),
            Next::Ask(_) if self.request.is_none() => Err(Why::NotCloned),
            Next::Ask(target) => Ok(target),
            Next::Stop(Stop::Attempts) => Err(Why::Attempts),
            Next::Stop(Stop::Deadline) => Err(Why::Deadline),
            Next::Stop(Stop::NobodyLeft) if self.course.has_begun() => Err(Why::Failed),
            Next::Stop(Stop::NobodyLeft) => Err(Why::NoTarget),
        }
    }

    /// Finds out what the request is bound by.
    #[inline]
    fn bind(&mut self, now: &mut Now<impl FnMut() -> Instant>) {
        let Shared { fallback, form, .. } = &*self.shared;
        let within = fallback.settings().within;
        let request = self.request.as_mut().expect("nobody was asked yet");
        self.budget = form.budget(request);
        self.deadline = within.map(|within| later(now.get(), within));
        if let Some(deadline) = self.budget.as_ref().and_then(Budget::deadline) {
            let deadline = Instant::from_std(deadline);
            self.deadline = Some(self.deadline.map_or(deadline, |ours| ours.min(deadline)));
        }
        if self.budget.is_none() && form.lends() {
            let calls = fallback.settings().attempts;
            let budget = match self.deadline {
                Some(deadline) => Budget::until(calls, deadline.into_std()),
                None => Budget::new(calls),
            };
            form.lend(request, budget.clone());
            self.budget = Some(budget);
        }
    }

    /// Whether others have made the calls that were left.
    fn is_spent(&self) -> bool {
        self.course.has_begun() && self.budget.as_ref().is_some_and(|budget| budget.left() == 0)
    }

    #[inline]
    pub(crate) fn begin(&self, target: usize) -> T::Trial {
        self.shared.targets.begin(target)
    }

    /// This one was not ready in time, or failed to be.
    #[cold]
    pub(crate) fn leave_out(&mut self, target: usize, error: Option<BoxError>) {
        self.course.unready(target);
        self.known(target).skipped.fetch_add(1, Relaxed);
        self.trail.get_or_insert_default().unready.push((target, error.map(Arc::from)));
    }

    /// The request, for a target that is about to be called.
    #[inline]
    pub(crate) fn send(&mut self, target: usize) -> Result<Req, Why> {
        if self.course.has_begun() && self.budget.as_ref().is_some_and(|budget| !budget.again()) {
            return Err(Why::Attempts);
        }
        let request = self.request.take().expect("it was looked for just now");
        if self.course.may_go_on(target, self.shared.links.len(), &self.bounds()) {
            self.request = self.shared.clone.clone_request(&request);
        }
        self.course.called(target);
        Ok(request)
    }

    /// What a target has answered. `None` if somebody else is to be asked.
    #[inline]
    pub(crate) fn settle(
        &mut self,
        target: usize,
        result: Result<T::Response, BoxError>,
    ) -> Option<Result<T::Response, BoxError>> {
        let class = match &result {
            Ok(response) => self.shared.classify.classify(Ok(response)),
            Err(error) => self.shared.classify.classify(Err(&**error)),
        };
        let refusal = result.as_ref().err().and_then(|error| Rejected::find(&**error));
        let retry_after = match (class, refusal) {
            // Whoever refuses may do so again, at no cost: nobody is left alone for that.
            (Class::Failure(_), Some(refusal)) => refusal.retry_after(),
            (Class::Ignore, Some(refusal)) if !is_of_the_request(refusal.kind()) => refusal.retry_after(),
            (Class::Failure(retry_after), None) => {
                self.leave_alone(target, retry_after);
                retry_after
            }
            (Class::Success | Class::Ignore, _) => return Some(self.answer(target, result)),
        };
        self.fail(target, result, retry_after);
        None
    }

    #[inline]
    fn answer(
        &mut self,
        target: usize,
        mut result: Result<T::Response, BoxError>,
    ) -> Result<T::Response, BoxError> {
        // The first one to be asked counts nothing: to write what all calls share is dear.
        if self.trail.is_some() || self.course.left_alone().next().is_some() {
            self.count_left_alone();
            self.known(target).took_over.fetch_add(1, Relaxed);
        }
        if let Ok(response) = &mut result
            && self.shared.form.marks()
        {
            let (attempts, skipped) = (self.take_attempts(), self.skipped());
            self.shared.form.mark(response, &self.known(target).name, attempts, skipped);
        }
        result
    }

    #[cold]
    fn leave_alone(&self, target: usize, retry_after: RetryAfter) {
        if let RetryAfter::After(wait) = retry_after {
            let fallback = &self.shared.fallback;
            let wait = wait.min(fallback.settings().longest_retry_after);
            fallback.leave_alone(self.shared.links[target].place, Instant::now(), wait);
        }
    }

    #[cold]
    fn fail(&mut self, target: usize, result: Result<T::Response, BoxError>, retry_after: RetryAfter) {
        let cause = match result {
            Ok(response) => self.shared.form.failed(response),
            Err(error) => error,
        };
        let known = self.known(target);
        known.failed.fetch_add(1, Relaxed);
        let name = known.name.clone();
        let attempt = Attempt { name, cause: cause.into(), retry_after };
        self.trail.get_or_insert_default().attempts.push(attempt);
    }

    fn take_attempts(&mut self) -> Vec<Attempt> {
        self.trail.as_mut().map(|trail| std::mem::take(&mut trail.attempts)).unwrap_or_default()
    }

    /// Those that were left alone have been skipped, now that it is known that nobody has come back to them.
    #[cold]
    fn count_left_alone(&self) {
        for target in self.course.left_alone() {
            self.known(target).skipped.fetch_add(1, Relaxed);
        }
    }

    /// Who was not asked, in the order of the targets.
    fn skipped(&self) -> Vec<Skipped> {
        let skipped = |target, aside, error| {
            let name = self.known(target).name.clone();
            (target, Skipped { name, aside, error })
        };
        let aside = self.course.left_alone().map(|target| skipped(target, true, None));
        let unready = self.trail.iter().flat_map(|trail| &trail.unready);
        let unready = unready.map(|(target, error)| skipped(*target, false, error.clone()));
        let mut all: Vec<_> = aside.chain(unready).collect();
        all.sort_by_key(|(target, _)| *target);
        all.into_iter().map(|(_, skipped)| skipped).collect()
    }

    /// The request goes unanswered.
    #[cold]
    pub(crate) fn refuse(&mut self, why: Why) -> BoxError {
        let unanswered = self.shared.fallback.unanswered();
        let (kind, counter) = match why {
            Why::Deadline => (RejectionKind::Deadline, &unanswered.out_of_time),
            Why::NoTarget => (RejectionKind::Unhealthy, &unanswered.no_target),
            Why::Failed | Why::Attempts | Why::NotCloned => (RejectionKind::Exhausted, &unanswered.exhausted),
        };
        counter.fetch_add(1, Relaxed);
        self.count_left_alone();
        let (attempts, skipped) = (self.take_attempts(), self.skipped());
        let retry_after = soonest(attempts.iter().map(Attempt::retry_after));
        let detail = Exhausted { why, attempts, skipped };
        Rejected::new(kind, crate::NAME).with_retry_after(retry_after).with_source(detail).into()
    }
}

/// Refusals that every other target would have to make, too.
fn is_of_the_request(kind: RejectionKind) -> bool {
    matches!(kind, RejectionKind::Invalid | RejectionKind::Conflict)
}

/// When the first of them may be asked again, if one of them has said; never, if all say never.
fn soonest(waits: impl Iterator<Item = RetryAfter>) -> RetryAfter {
    let mut soonest = None;
    for wait in waits {
        soonest = Some(match (soonest, wait) {
            (None | Some(RetryAfter::Never), wait) | (Some(wait), RetryAfter::Never) => wait,
            (Some(RetryAfter::After(one)), RetryAfter::After(other)) => RetryAfter::After(one.min(other)),
            (Some(RetryAfter::After(wait)), RetryAfter::Unknown)
            | (Some(RetryAfter::Unknown), RetryAfter::After(wait)) => RetryAfter::After(wait),
            (Some(RetryAfter::Unknown), RetryAfter::Unknown) => RetryAfter::Unknown,
        });
    }
    soonest.unwrap_or(RetryAfter::Unknown)
}

/// The targets as the choice sees them.
struct Chain<'a, T, C, K, F> {
    shared: &'a Shared<T, C, K, F>,
    failed: Option<&'a (dyn Error + 'static)>,
}

impl<T, C, K, F> Field for Chain<'_, T, C, K, F> {
    fn len(&self) -> usize {
        self.shared.links.len()
    }

    #[inline]
    fn takes(&self, target: usize) -> bool {
        match &self.shared.links[target].takes {
            None => true,
            Some(takes) => takes(self.failed),
        }
    }

    #[inline]
    fn aside(&self, target: usize, now: &mut Now<impl FnMut() -> Instant>) -> Option<Instant> {
        self.shared.fallback.until(self.shared.links[target].place, || now.get())
    }
}
