use std::{error::Error, fmt, sync::Arc};

use bartizan_core::{BoxError, Rejected, RejectionKind};

/// The service below failed a batch as a whole: what each of its members gets.
///
/// The error of the service is the [`source`](Error::source), shared by all of them. A refusal of a layer below is found
/// by [`Rejected::find`].
#[derive(Clone, Debug)]
pub struct BatchFailed(Arc<dyn Error + Send + Sync>);

impl BatchFailed {
    pub(crate) fn new(error: BoxError) -> Self {
        Self(error.into())
    }
}

impl fmt::Display for BatchFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the batch failed as a whole")
    }
}

impl Error for BatchFailed {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.0)
    }
}

/// The service below gave more or fewer results than the batch had members, so nobody can say whose they are: the source
/// of a refusal of the kind `Protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrongCount {
    /// How many items the service was given.
    pub items: usize,
    /// How many results it gave.
    pub results: usize,
}

impl fmt::Display for WrongCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} results for a batch of {}", self.results, self.items)
    }
}

impl Error for WrongCount {}

/// Why none of a batch's members gets a result of its own.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    Service(BatchFailed),
    WrongCount(WrongCount),
    Panicked,
    Deadline,
    Closed,
}

impl From<Failure> for BoxError {
    fn from(failure: Failure) -> Self {
        let kind = match failure {
            Failure::Service(failed) => return failed.into(),
            Failure::WrongCount(count) => {
                return Rejected::new(RejectionKind::Protocol, crate::NAME).with_source(count).into();
            }
            Failure::Panicked => RejectionKind::Panicked,
            Failure::Deadline => RejectionKind::Deadline,
            Failure::Closed => RejectionKind::Closed,
        };
        Rejected::new(kind, crate::NAME).into()
    }
}
