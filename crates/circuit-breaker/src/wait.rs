//! When to come back, in one word.
//!
//! A call gets this or what it is admitted with, in the same place. Of other sizes than those of its words it would be
//! copied in parts that the processor has not written as such, and stand still for them: more than all the rest of a call.

use std::time::Duration;

use bartizan_core::RetryAfter;

use crate::window::nanos;

/// What a call is refused with: nanoseconds, or one of two numbers that stand for something else.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait(u64);

const NEVER: u64 = u64::MAX;
const UNKNOWN: u64 = u64::MAX - 1;

impl Wait {
    /// So many nanoseconds.
    pub(crate) fn of(nanos: u64) -> Self {
        Self(nanos.min(UNKNOWN - 1))
    }
}

impl From<RetryAfter> for Wait {
    fn from(retry_after: RetryAfter) -> Self {
        match retry_after {
            RetryAfter::After(wait) => Self::of(nanos(wait)),
            RetryAfter::Never => Self(NEVER),
            RetryAfter::Unknown => Self(UNKNOWN),
        }
    }
}

impl From<Wait> for RetryAfter {
    fn from(Wait(wait): Wait) -> Self {
        match wait {
            NEVER => Self::Never,
            UNKNOWN => Self::Unknown,
            nanos => Self::After(Duration::from_nanos(nanos)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_what_it_was_made_of() {
        let wait = |nanos| RetryAfter::After(Duration::from_nanos(nanos));
        for it in [RetryAfter::Never, RetryAfter::Unknown, wait(0), wait(1), wait(u64::MAX - 2)] {
            assert_eq!(RetryAfter::from(Wait::from(it)), it);
        }
        for too_long in [wait(u64::MAX - 1), wait(u64::MAX), RetryAfter::After(Duration::MAX)] {
            assert_eq!(RetryAfter::from(Wait::from(too_long)), wait(u64::MAX - 2));
        }
    }
}
