use bartizan_core::{Classify, UntilResponse};

use crate::{Answered, Explain};

/// When a call is over: [`UntilResponse`] by default, or `UntilBodyEnd` (feature `http`).
///
/// It is more than an [`Extent`](bartizan_core::Extent), since it also measures when the first bytes of a body come.
pub trait Until<Res>: Clone + sealed::Sealed {
    /// Whether a call is over with its response.
    #[doc(hidden)]
    const ENDS_WITH_RESPONSE: bool;

    /// The response that leaves the layer.
    type Response<C: Classify<Res>, X: Explain<Res>>;

    /// Lets the response carry what is to be settled at its end, if anything is.
    #[doc(hidden)]
    fn hold<C: Classify<Res>, X: Explain<Res>>(
        &self,
        response: Res,
        answered: Option<Answered<C, X, Res>>,
    ) -> Self::Response<C, X>;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for bartizan_core::UntilResponse {}

    #[cfg(feature = "http")]
    impl Sealed for bartizan_core::UntilBodyEnd {}
}

impl<Res> Until<Res> for UntilResponse {
    const ENDS_WITH_RESPONSE: bool = true;

    type Response<C: Classify<Res>, X: Explain<Res>> = Res;

    #[inline]
    fn hold<C: Classify<Res>, X: Explain<Res>>(
        &self,
        response: Res,
        answered: Option<Answered<C, X, Res>>,
    ) -> Res {
        debug_assert!(answered.is_none(), "it is settled already");
        response
    }
}
