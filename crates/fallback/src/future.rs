use std::{
    any::Any,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bartizan_core::{BoxError, Classify};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{CloneRequest, Form, Panicked, Targets, Trial, Why, lanes::Lane, service::Shared, way::Way};

pin_project! {
    /// The response future of [`FallbackService`](crate::FallbackService).
    pub struct ResponseFuture<T, C, K, F, Req>
    where
        T: Targets<Req>,
    {
        #[pin]
        stage: Stage<T::Trial>,
        #[pin]
        timer: Option<Sleep>,
        way: Way<T, C, K, F, Req>,
    }
}

pin_project! {
    #[project = StageProjection]
    enum Stage<T> {
        Choose,
        Try { #[pin] trial: T, target: usize, called: bool, ready_by: Option<Instant> },
        Done,
    }
}

impl<T: Targets<Req>, C, K, F, Req> ResponseFuture<T, C, K, F, Req> {
    #[inline]
    pub(crate) fn new(shared: Lane<Shared<T, C, K, F>>, request: Req) -> Self {
        Self { stage: Stage::Choose, timer: None, way: Way::new(shared, request) }
    }
}

impl<T, C, K, F, Req> Future for ResponseFuture<T, C, K, F, Req>
where
    T: Targets<Req>,
    C: Classify<T::Response>,
    K: CloneRequest<Req>,
    F: Form<Req, T::Response>,
{
    type Output = Result<T::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let way = this.way;
        let result = loop {
            match this.stage.as_mut().project() {
                StageProjection::Choose => match way.choose() {
                    Ok(target) => {
                        let trial = way.begin(target);
                        this.stage.set(Stage::Try { trial, target, called: false, ready_by: None });
                    }
                    Err(why) => break Err(way.refuse(why)),
                },
                StageProjection::Try { mut trial, target, called, ready_by } => {
                    let target = *target;
                    if !*called {
                        let readying = guarded(|| trial.as_mut().poll_ready(cx));
                        let error = match readying.unwrap_or_else(|panicked| Poll::Ready(Err(panicked))) {
                            Poll::Ready(Ok(())) => None,
                            Poll::Ready(Err(error)) => Some(Some(error)),
                            Poll::Pending => {
                                ready!(way.poll_patience(ready_by, this.timer.as_mut(), cx));
                                Some(None)
                            }
                        };
                        if let Some(error) = error {
                            // What it holds is given back before anybody else is asked.
                            this.stage.set(Stage::Choose);
                            way.leave_out(target, error);
                            continue;
                        }
                    }
                    let calling = if *called {
                        guarded(|| trial.poll(cx))
                    } else {
                        let request = match way.send(target) {
                            Ok(request) => request,
                            Err(why) => break Err(way.refuse(why)),
                        };
                        *called = true;
                        guarded(|| {
                            trial.as_mut().call(request);
                            trial.poll(cx)
                        })
                    };
                    let result = match calling.unwrap_or_else(|panicked| Poll::Ready(Err(panicked))) {
                        Poll::Ready(result) => result,
                        Poll::Pending => {
                            let Some(deadline) = way.deadline() else { return Poll::Pending };
                            ready!(poll_until(deadline, this.timer.as_mut(), cx));
                            break Err(way.refuse(Why::Deadline));
                        }
                    };
                    this.stage.set(Stage::Choose);
                    if let Some(result) = way.settle(target, result) {
                        break result;
                    }
                }
                StageProjection::Done => panic!("polled after completion"),
            }
        };
        this.stage.set(Stage::Done);
        Poll::Ready(result)
    }
}

impl<T, C, K, F, Req> Way<T, C, K, F, Req> {
    /// Whether a target has had its time to become ready, or the request all of its own.
    fn poll_patience(
        &self,
        ready_by: &mut Option<Instant>,
        timer: Pin<&mut Option<Sleep>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let patience = self.patience();
        if patience.is_zero() {
            return Poll::Ready(());
        }
        let ready_by = *ready_by.get_or_insert_with(|| later(Instant::now(), patience));
        poll_until(self.deadline().map_or(ready_by, |deadline| deadline.min(ready_by)), timer, cx)
    }
}

/// A call has one timer, and sets it when there is something to wait for.
fn poll_until(at: Instant, mut timer: Pin<&mut Option<Sleep>>, cx: &mut Context<'_>) -> Poll<()> {
    match timer.as_mut().as_pin_mut() {
        Some(sleep) if sleep.deadline() == at => {}
        Some(sleep) => sleep.reset(at),
        None => timer.set(Some(sleep_until(at))),
    }
    timer.as_pin_mut().expect("it was set just now").poll(cx)
}

/// As far in the future as the clock can tell.
pub(crate) fn later(now: Instant, time: Duration) -> Instant {
    now + time.min(Duration::from_secs(30 * 365 * 24 * 3600))
}

/// Runs what is a target's own. Whoever panics there has failed, and is not asked again.
#[inline]
fn guarded<R>(run: impl FnOnce() -> R) -> Result<R, BoxError> {
    catch_unwind(AssertUnwindSafe(run)).map_err(|panic| panicked(&*panic))
}

#[cold]
fn panicked(panic: &(dyn Any + Send)) -> BoxError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let message = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    Panicked { message }.into()
}

impl<T: Targets<Req>, C, K, F, Req> fmt::Debug for ResponseFuture<T, C, K, F, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match self.stage {
            Stage::Choose => "choosing",
            Stage::Try { called: false, .. } => "readying",
            Stage::Try { .. } => "calling",
            Stage::Done => "done",
        };
        f.debug_struct("ResponseFuture").field("stage", &stage).finish_non_exhaustive()
    }
}
