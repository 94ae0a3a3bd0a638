use std::{
    collections::VecDeque,
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::{
    Call, Ended,
    script::{End, Script},
};

const GARBAGE: &[u8] = b"data: {\"choices\":[{\xff\xfe\x00<html>]\n\n";

/// The body of a [`MockService`](super::MockService)'s response.
pub struct MockBody {
    events: VecDeque<Bytes>,
    /// The rest of an event that is chopped.
    rest: Bytes,
    chop: usize,
    end: End,
    /// What is left to send, where the length may be known beforehand.
    exact: Option<u64>,
    schedule: Option<Schedule>,
    /// Whether the server had a chance to write before the body fails.
    flushed: bool,
    /// `None` once the body has come to its end.
    call: Option<Call>,
}

/// When the events are due.
struct Schedule {
    next: Instant,
    pace: Duration,
    /// Made when somebody first has to wait.
    timer: Option<Pin<Box<Sleep>>>,
}

impl MockBody {
    /// `plain` tells whether the length of the body is known from the start.
    pub(super) fn new(mut events: VecDeque<Bytes>, plain: bool, script: &Script, call: Call) -> Self {
        let whole: usize = events.iter().map(Bytes::len).sum();
        if let Some(n) = script.garbage {
            events.insert(n.min(events.len()), Bytes::from_static(GARBAGE));
        }
        let mut end = End::Clean;
        if let Some((n, how)) = script.end {
            events.truncate(n);
            end = how;
        }
        // A cut or stalled body still promised all of it. One that ends early on purpose must not, nor one whose
        // length the script tells: servers take the header for the truth only if the body knows no better.
        let tells = script.headers.contains_key(http::header::CONTENT_LENGTH)
            || script.garbage.is_some()
            || matches!(script.end, Some((_, End::Clean)));
        let schedule = (!script.pace.is_zero() || !script.first_frame_delay.is_zero()).then(|| Schedule {
            next: Instant::now() + script.first_frame_delay,
            pace: script.pace,
            timer: None,
        });
        let mut body = Self {
            events,
            rest: Bytes::new(),
            chop: script.chop.unwrap_or(usize::MAX),
            end,
            exact: (plain && !tells).then_some(whole as u64),
            schedule,
            flushed: false,
            call: Some(call),
        };
        body.settle_at_end();
        body
    }

    /// Servers drop a body that reports its end without asking for `None`: it is over with its last frame.
    fn settle_at_end(&mut self) {
        if self.is_end_stream()
            && let Some(call) = self.call.take()
        {
            call.end(Ended::Completed);
        }
    }

    /// Waits until the next event is due.
    fn poll_due(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(schedule) = &mut self.schedule else { return Poll::Ready(()) };
        if Instant::now() < schedule.next {
            let timer = schedule.timer.get_or_insert_with(|| Box::pin(sleep_until(schedule.next)));
            if timer.deadline() != schedule.next {
                timer.as_mut().reset(schedule.next);
            }
            ready!(timer.as_mut().poll(cx));
        }
        schedule.next += schedule.pace;
        Poll::Ready(())
    }
}

impl Body for MockBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.rest.is_empty() && !this.events.is_empty() {
            ready!(this.poll_due(cx));
            this.rest = this.events.pop_front().unwrap_or_default();
        }
        if !this.rest.is_empty() {
            let frame = this.rest.split_to(this.rest.len().min(this.chop));
            this.exact = this.exact.map(|left| left.saturating_sub(frame.len() as u64));
            this.settle_at_end();
            return Poll::Ready(Some(Ok(Frame::data(frame))));
        }
        match this.end {
            // Nobody will wake this, as scripted.
            End::Hang => Poll::Pending,
            // A server writes when it has to wait. Failing at once would cut off what was sent before as well.
            End::Fail if !this.flushed => {
                this.flushed = true;
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            End::Fail => match this.call.take() {
                Some(call) => {
                    call.end(Ended::Failed);
                    let error =
                        io::Error::new(io::ErrorKind::ConnectionReset, "the script cuts the body off here");
                    Poll::Ready(Some(Err(error)))
                }
                None => Poll::Ready(None),
            },
            End::Clean => {
                this.settle_at_end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.events.is_empty() && self.end == End::Clean
    }

    fn size_hint(&self) -> SizeHint {
        self.exact.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl fmt::Debug for MockBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockBody")
            .field("events", &self.events.len())
            .field("end", &self.end)
            .finish_non_exhaustive()
    }
}
