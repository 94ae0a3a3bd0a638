//! Rules that take their time.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use crate::rule::Findings;

/// What is asked about one subject: what rules found in it already, and the answers that are still to come.
pub(crate) struct Inquiring {
    findings: Findings,
    pending: Vec<Pending>,
}

/// A question that was asked, until it has its answer.
pub(crate) struct Pending {
    name: Arc<str>,
    state: State,
}

enum State {
    /// Nobody ever locks it: it makes the future `Sync`, as bodies are where it stands in one.
    #[cfg_attr(not(feature = "service"), expect(dead_code, reason = "there is nothing to ask"))]
    Asked(Mutex<Answering>),
    Answered(Findings),
    /// It panicked.
    Failed,
}

pub(crate) type Answering = Pin<Box<dyn Future<Output = Findings> + Send>>;

impl Pending {
    #[cfg(feature = "service")]
    pub(crate) fn new(name: Arc<str>, answering: Answering) -> Self {
        Self { name, state: State::Asked(Mutex::new(answering)) }
    }

    /// Whether it has its answer.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let State::Asked(answering) = &mut self.state else { return true };
        let answering = answering.get_mut().unwrap_or_else(PoisonError::into_inner);
        // What panicked is dropped and never seen again.
        self.state = match catch_unwind(AssertUnwindSafe(|| answering.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return false,
            Ok(Poll::Ready(findings)) => State::Answered(findings),
            Err(_) => State::Failed,
        };
        true
    }
}

impl Inquiring {
    pub(crate) const fn new(findings: Findings, pending: Vec<Pending>) -> Self {
        Self { findings, pending }
    }

    /// What was found.
    #[cfg(feature = "http")]
    pub(crate) fn into_findings(self) -> Findings {
        self.findings
    }

    /// What was found, once all have answered.
    pub(crate) fn take(&mut self) -> Findings {
        let nothing = self.findings.alike();
        std::mem::replace(&mut self.findings, nothing)
    }

    /// Waits for all answers, and adds what they say in the order of the rules.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // All of them, so that they answer side by side.
        let mut all = true;
        for pending in &mut self.pending {
            all &= pending.poll(cx);
        }
        if !all {
            return Poll::Pending;
        }
        for Pending { name, state } in self.pending.drain(..) {
            match state {
                State::Answered(findings) => self.findings.add_all(findings),
                State::Asked(_) | State::Failed => self.findings.failed(&name),
            }
        }
        Poll::Ready(())
    }
}
