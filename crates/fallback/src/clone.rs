use std::fmt;

/// How a request is copied, so that there is one left for the next target.
pub trait CloneRequest<Req> {
    /// A copy, or `None` if this one can be sent only once.
    fn clone_request(&self, request: &Req) -> Option<Req>;
}

/// Requests are `Clone`. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloned;

impl<Req: Clone> CloneRequest<Req> for Cloned {
    #[inline]
    fn clone_request(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

/// A function copies them: [`FallbackLayer::clone_request`](crate::FallbackLayer::clone_request).
#[derive(Clone, Copy)]
pub struct CloneWith<F>(pub(crate) F);

impl<Req, F: Fn(&Req) -> Option<Req>> CloneRequest<Req> for CloneWith<F> {
    #[inline]
    fn clone_request(&self, request: &Req) -> Option<Req> {
        (self.0)(request)
    }
}

impl<F> fmt::Debug for CloneWith<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CloneWith")
    }
}
