use std::{error::Error, fmt, sync::Arc};

use bartizan_core::{BoxError, Budget, Class, Classify, errors, headers};
use http::{Extensions, HeaderMap, Request, Response, StatusCode, response::Parts};
use http_body_util::Either;

use crate::{Attempt, Cloned, Fallback, FallbackLayer, Form, Nobody, Skipped, Unite};

impl Fallback {
    /// As [`layer`](Self::layer), for HTTP: targets may have response bodies of different types, responses are judged by
    /// [`http_failures`], and [`FallbackLayer::served_by`] says who has answered.
    ///
    /// # Panics
    ///
    /// If there is no target of this name.
    #[cfg_attr(docsrs, doc(cfg(feature = "http")))]
    pub fn http_layer(&self, first: &str) -> FallbackLayer<Nobody, HttpFailures, Cloned, Http> {
        FallbackLayer::new(self.clone(), self.place(first), http_failures(), Http::default())
    }
}

/// Requests and responses are HTTP's. [`Fallback::http_layer`] makes layers with it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Http {
    pub(crate) marks: bool,
    pub(crate) lends: bool,
}

impl<A, B> Unite<Response<A>, Response<B>> for Http {
    type Response = Response<Either<A, B>>;

    #[inline]
    fn first(response: Response<A>) -> Self::Response {
        response.map(Either::Left)
    }

    #[inline]
    fn second(response: Response<B>) -> Self::Response {
        response.map(Either::Right)
    }
}

impl<A, B> Form<Request<A>, Response<B>> for Http {
    #[inline]
    fn budget(&self, request: &Request<A>) -> Option<Budget> {
        request.extensions().get().cloned()
    }

    #[inline]
    fn lends(&self) -> bool {
        self.lends
    }

    fn lend(&self, request: &mut Request<A>, budget: Budget) {
        request.extensions_mut().insert(budget);
    }

    #[inline]
    fn marks(&self) -> bool {
        self.marks
    }

    fn mark(
        &self,
        response: &mut Response<B>,
        name: &Arc<str>,
        attempts: Vec<Attempt>,
        skipped: Vec<Skipped>,
    ) {
        let before = (!attempts.is_empty() || !skipped.is_empty()).then(|| Arc::new((attempts, skipped)));
        response.extensions_mut().insert(ServedBy { name: name.clone(), before });
    }

    fn failed(&self, response: Response<B>) -> BoxError {
        FailedResponse { head: Box::new(response.into_parts().0) }.into()
    }
}

/// Who has answered a request, and what was tried before: in the extensions of responses, if
/// [asked for](FallbackLayer::served_by).
#[derive(Clone, Debug)]
pub struct ServedBy {
    name: Arc<str>,
    before: Option<Arc<(Vec<Attempt>, Vec<Skipped>)>>,
}

impl ServedBy {
    /// The target that has answered.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Those that were asked before, and failed, in order.
    pub fn attempts(&self) -> &[Attempt] {
        self.before.as_ref().map_or(&[], |before| &before.0)
    }

    /// Those that were not asked although it was their turn.
    pub fn skipped(&self) -> &[Skipped] {
        self.before.as_ref().map_or(&[], |before| &before.1)
    }
}

/// The cause where a response counts as a failure: its head. The body was dropped.
#[derive(Debug)]
pub struct FailedResponse {
    head: Box<Parts>,
}

impl FailedResponse {
    /// Its status.
    pub fn status(&self) -> StatusCode {
        self.head.status
    }

    /// Its headers.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Its extensions, in which inner layers may have said more.
    pub fn extensions(&self) -> &Extensions {
        &self.head.extensions
    }
}

impl fmt::Display for FailedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the response's status is {}", self.head.status)
    }
}

impl Error for FailedResponse {}

/// Errors move on, and so do responses with the statuses 401, 403, 404, 408, 425, 429 and 5xx: another target may have
/// other credentials, other models, or time. All other responses are answers, 400 and 422 among them: what is wrong with
/// the request is wrong everywhere.
///
/// A failure carries the upstream's `Retry-After`, in any of the forms that [`headers::retry_after`] reads.
///
/// ```
/// use bartizan_core::{Class, Classify};
/// use bartizan_fallback::http_failures;
/// use http::Response;
///
/// let judge = |status: u16| http_failures().classify(Ok(&Response::builder().status(status).body(()).unwrap()));
/// assert!(matches!(judge(503), Class::Failure(_)) && matches!(judge(401), Class::Failure(_)));
/// assert_eq!((judge(200), judge(422)), (Class::Success, Class::Success));
/// ```
pub const fn http_failures() -> HttpFailures {
    HttpFailures
}

/// The classifier made by [`http_failures`].
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpFailures;

impl<B> Classify<Response<B>> for HttpFailures {
    #[inline]
    fn classify(&self, result: Result<&Response<B>, &(dyn Error + 'static)>) -> Class {
        match result {
            Ok(response) if moves_on(response.status()) => {
                Class::Failure(headers::retry_after(response.headers()))
            }
            Ok(_) => Class::Success,
            Err(error) => Classify::<Response<B>>::classify(&errors(), Err(error)),
        }
    }
}

fn moves_on(status: StatusCode) -> bool {
    matches!(status.as_u16(), 401 | 403 | 404 | 408 | 425 | 429 | 500..=599)
}
