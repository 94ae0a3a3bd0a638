//! What asks a model, whatever stands in it.

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use tower::{Service, ServiceExt, util::BoxCloneSyncService};

/// A service without the types of all below it.
pub(crate) type Ask = BoxCloneSyncService<Request<Bytes>, Response<AnswerBody>, BoxError>;

pub(crate) type AnswerBody = UnsyncBoxBody<Bytes, BoxError>;

/// Types that hold all below them double with every layer that a configuration can leave out, and so does what the compiler
/// makes of them. A box where one is chosen costs a request some ten nanoseconds.
pub(crate) fn erased<S, B>(service: S) -> Ask
where
    S: Service<Request<Bytes>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let erase = |response: Response<B>| response.map(|body| body.map_err(Into::into).boxed_unsync());
    Ask::new(service.map_response(erase).map_err(Into::into))
}
