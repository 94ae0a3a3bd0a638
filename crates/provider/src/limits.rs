use std::{
    error, fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep};

use crate::{Class, Error};

/// How long the parts of an upstream call may take.
///
/// Each limit has its own clock. What is over fails with an [`Error`] of class [`Timeout`](Class::Timeout) that names
/// the limit: as the call's error before the response head, as the body's error after it. How long a connection may
/// take to open is the transport's business.
///
/// ```
/// use std::time::Duration;
/// use bartizan_provider::Limits;
///
/// let limits = Limits { first_frame: Duration::from_secs(20), ..Limits::default() };
/// assert_eq!(limits.idle, Duration::from_secs(60));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// From the call to the head of the response. Default: 120 s.
    pub head: Duration,
    /// From the head of the response to the first frame of its body. Default: 60 s.
    pub first_frame: Duration,
    /// From one frame to the next. A reader that takes its time is not the upstream's fault and is not counted; to
    /// bound that time is up to whoever writes to it. Default: 60 s.
    pub idle: Duration,
    /// From the call to the end of the body, seen whenever the body is polled. If the upstream has something to say even
    /// then, [`StillSending`] is the error's source. Default: 600 s.
    pub total: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(120),
            first_frame: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
        }
    }
}

/// The one timer of a call, and which limit it stands for.
///
/// The timer is moved only when it must ring earlier than it is set; when it rings too early it is set again. A call
/// whose bytes are all there when they are asked for never touches it after the head.
pub(crate) struct Watch {
    limits: Limits,
    timer: Pin<Box<Sleep>>,
    total_at: Instant,
    phase: Phase,
    /// When the phase is over; unknown until the first wait in it.
    due: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Head,
    FirstFrame,
    Idle,
}

impl Watch {
    pub(crate) fn start(limits: Limits) -> Self {
        let now = Instant::now();
        let total_at = later(now, limits.total);
        let due = later(now, limits.head).min(total_at);
        let timer = Box::pin(tokio::time::sleep_until(due));
        Self { limits, timer, total_at, phase: Phase::Head, due: Some(due) }
    }

    /// The head is there.
    pub(crate) fn head(&mut self) {
        self.phase = Phase::FirstFrame;
        self.due = None;
    }

    /// A frame is there.
    pub(crate) fn frame(&mut self) {
        self.phase = Phase::Idle;
        self.due = None;
    }

    /// All is there, but for the end of the body. That comes at once, or the connection is not worth more of a wait.
    pub(crate) fn closing(&mut self) {
        const CLOSING: Duration = Duration::from_millis(50);
        self.limits.idle = self.limits.idle.min(CLOSING);
        self.frame();
    }

    /// To be polled when the upstream has nothing: ready with an error when it had nothing for too long.
    pub(crate) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<Error> {
        let due = self.due();
        if due < self.timer.deadline() {
            self.timer.as_mut().reset(due);
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            // It may have been set for an earlier phase.
            if due <= self.timer.deadline() {
                return Poll::Ready(self.over());
            }
            self.timer.as_mut().reset(due);
        }
        Poll::Pending
    }

    /// The error of a call that has lasted too long, however busy it is.
    pub(crate) fn total_over(&mut self) -> Option<Error> {
        if Instant::now() < self.total_at {
            return None;
        }
        self.due = Some(self.total_at);
        Some(self.over().with_source(StillSending))
    }

    fn due(&mut self) -> Instant {
        *self.due.get_or_insert_with(|| {
            let limit = match self.phase {
                Phase::Head => self.limits.head,
                Phase::FirstFrame => self.limits.first_frame,
                Phase::Idle => self.limits.idle,
            };
            later(Instant::now(), limit).min(self.total_at)
        })
    }

    fn over(&self) -> Error {
        let message = match self.phase {
            _ if self.due == Some(self.total_at) => {
                format!("the upstream was not done within {:?}", self.limits.total)
            }
            Phase::Head => format!("no answer from the upstream within {:?}", self.limits.head),
            Phase::FirstFrame => {
                format!("the upstream sent nothing within {:?} of its answer's head", self.limits.first_frame)
            }
            Phase::Idle => format!("the upstream sent nothing more for {:?}", self.limits.idle),
        };
        Error::new(Class::Timeout, message)
    }
}

/// The source of the [`Error`] of a stream whose [total](Limits::total) time is over while its upstream has more to say: it
/// says much, or its reader takes its time. Either way the upstream works, which whoever counts its failures wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StillSending;

impl fmt::Display for StillSending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the upstream was still sending")
    }
}

impl error::Error for StillSending {}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch")
            .field("limits", &self.limits)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

/// As far in the future as the clock can tell, for limits that mean "never".
fn later(now: Instant, limit: Duration) -> Instant {
    const FAR: Duration = Duration::from_secs(60 * 60 * 24 * 365 * 30);
    now + limit.min(FAR)
}
