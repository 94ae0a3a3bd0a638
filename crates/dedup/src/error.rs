use std::{error::Error, fmt, sync::Arc};

use bartizan_core::BoxError;

/// An error that several callers got: the one of the call that was made for all of them.
///
/// That error is the [`source`](Error::source). A caller who was alone gets it as it is.
#[derive(Clone)]
pub struct SharedError(Arc<BoxError>);

impl SharedError {
    pub(crate) fn new(error: BoxError) -> Self {
        Self(Arc::new(error))
    }

    /// The error for one caller: the original if nobody else has it.
    pub(crate) fn into_box(self) -> BoxError {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| Self(shared).into())
    }
}

impl fmt::Display for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the shared call failed: {}", self.0)
    }
}

impl fmt::Debug for SharedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedError").field(&self.0).finish()
    }
}

impl Error for SharedError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&**self.0)
    }
}
