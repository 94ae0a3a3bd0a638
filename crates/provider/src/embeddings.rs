use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Request, Response, response::Parts};
use http_body::Body;
use http_body_util::{BodyExt, Full};
use tower_service::Service;

use crate::{Class, Error};

mod answer;
mod request;

pub use request::Embedding;

/// Sends the embedding requests of a list as one, and takes the answer apart.
///
/// It is what stands below a batch layer: a service of `Vec<Request<Bytes>>` that gives a result for each, in order, above
/// a [`Provider`](crate::Provider), or whatever stands on one and takes single requests. A batch layer's key is
/// [`Embedding::like`], since only requests that differ in nothing but their inputs can share a call, and its weight
/// [`Embedding::inputs`], since APIs take so many (OpenAI's 2,048). An `Embedding` in the extensions of a request spares
/// reading it again, as long as its body is the one that was read.
///
/// # Behaviour
///
/// Ready when the service below is. The request that is sent has the URL, the method and the `openai-` headers that its
/// members share, and the inputs of all of them. Each member's answer has its own vectors, counted from 0, and its share
/// of the tokens, in proportion to the length of its inputs, so that the shares add up to what the upstream counted; it is
/// in the JSON and in a [`UsageReport`](crate::UsageReport). All else is the upstream's. A list of one travels as it came, and so does its
/// answer.
///
/// Errors are kept apart. If the upstream refuses what was asked for (an input that is too long, empty or not allowed),
/// each member is sent once more, alone, and gets the answer to that. Any other error response is about none of them in
/// particular: all get it. Lists that cannot be one request are sent alone as well.
///
/// # Errors
///
/// Those of the service below, as the error of the whole list; and an [`Error`] of class
/// [`Malformed`](Class::Malformed) if there are not as many embeddings as inputs.
///
/// # Example
///
/// ```
/// use bartizan_core::BoxError;
/// use bartizan_provider::{EmbeddingBatches, Error, UsageReport};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{Service, ServiceExt, service_fn};
///
/// let upstream = service_fn(|request: Request<Bytes>| async move {
///     assert_eq!(request.body(), &br#"{"model":"m","input":["Hello","Bonjour","Hallo"]}"#[..]);
///     let vectors = r#"[{"index":0,"embedding":[1]},{"index":1,"embedding":[2]},{"index":2,"embedding":[3]}]"#;
///     let body = format!(r#"{{"data":{vectors},"usage":{{"prompt_tokens":20,"total_tokens":20}}}}"#);
///     Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body)))
/// });
/// # tokio_test::block_on(async {
/// let ask = |input| {
///     Request::post("/v1/embeddings").body(Bytes::from(format!(r#"{{"model":"m","input":{input}}}"#))).unwrap()
/// };
/// let mut batches = EmbeddingBatches::new(upstream);
/// let both = vec![ask(r#""Hello""#), ask(r#"["Bonjour","Hallo"]"#)];
/// let [hello, others] = batches.ready().await?.call(both).await?.try_into().unwrap();
///
/// let body = hello?.into_body().collect().await?.to_bytes();
/// assert_eq!(body, r#"{"data":[{"index":0,"embedding":[1]}],"usage":{"prompt_tokens":5,"total_tokens":5}}"#);
/// assert_eq!(others?.extensions().get::<UsageReport>().unwrap().get().unwrap().total_tokens, 15);
///
/// // What an upstream makes of it that leaves one out is nobody's.
/// let forgets = service_fn(|_| async { Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(r#"{"data":[]}"#))) });
/// let error = EmbeddingBatches::new(forgets).oneshot(vec![ask("\"a\""), ask("\"b\"")]).await.unwrap_err();
/// assert_eq!(Error::find(&*error).unwrap().message(), "the upstream gave 0 embeddings for 2 inputs");
/// # Ok::<(), BoxError>(())
/// # }).unwrap();
/// ```
#[derive(Clone, Debug)]
pub struct EmbeddingBatches<S> {
    inner: S,
}

impl<S> EmbeddingBatches<S> {
    /// Batches for `inner`.
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }
}

/// A member's answer.
type Answer = Result<Response<Full<Bytes>>, BoxError>;

impl<S, B> Service<Vec<Request<Bytes>>> for EmbeddingBatches<S>
where
    S: Service<Request<Bytes>, Response = Response<B>> + Clone + Send + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Vec<Answer>;
    type Error = BoxError;
    type Future = EmbeddingBatchesFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut requests: Vec<Request<Bytes>>) -> Self::Future {
        let others = self.inner.clone();
        let future: Pin<Box<dyn Future<Output = _> + Send>> = match request::taken_apart(&requests) {
            _ if requests.len() == 1 => {
                let only = self.inner.call(requests.remove(0));
                Box::pin(async { Ok(vec![whole(only).await]) })
            }
            Some(members) => {
                let together = self.inner.call(request::merge(&requests, &members));
                Box::pin(async move {
                    let (head, body) = whole(together).await?.into_parts();
                    let body = body.collect().await?.to_bytes();
                    if head.status.is_success() {
                        return answer::split(&head, &body, &members);
                    }
                    if may_be_one_of_them(&head) {
                        return Ok(alone(others, requests).await);
                    }
                    let copy = || Ok(Response::from_parts(head.clone(), Full::new(body.clone())));
                    Ok(requests.iter().map(|_| copy()).collect())
                })
            }
            None => {
                // Nothing is sent with what was made ready: it is given back.
                self.inner = others.clone();
                Box::pin(async { Ok(alone(others, requests).await) })
            }
        };
        EmbeddingBatchesFuture(future)
    }
}

/// The response future of [`EmbeddingBatches`].
pub struct EmbeddingBatchesFuture(Pin<Box<dyn Future<Output = Result<Vec<Answer>, BoxError>> + Send>>);

impl Future for EmbeddingBatchesFuture {
    type Output = Result<Vec<Answer>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for EmbeddingBatchesFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EmbeddingBatchesFuture")
    }
}

/// Whether an error response says that something is wrong with what was asked for, which may be one member's alone.
fn may_be_one_of_them(head: &Parts) -> bool {
    let class = match head.extensions.get::<Arc<Error>>() {
        Some(error) => error.class(),
        None => Class::of_status(head.status),
    };
    matches!(class, Class::ContextLength | Class::ContentPolicy | Class::BadRequest | Class::TooLarge)
}

/// Sends each by itself, all at once.
async fn alone<S, B>(inner: S, requests: Vec<Request<Bytes>>) -> Vec<Answer>
where
    S: Service<Request<Bytes>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    let mut calls: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let mut inner = inner.clone();
            Box::pin(async move {
                poll_fn(|cx| inner.poll_ready(cx)).await.map_err(Into::into)?;
                whole(inner.call(request)).await
            })
        })
        .collect();
    let mut answers: Vec<Option<Answer>> = calls.iter().map(|_| None).collect();
    poll_fn(|cx| {
        let mut all = true;
        for (call, answer) in calls.iter_mut().zip(&mut answers) {
            if answer.is_none() {
                match call.as_mut().poll(cx) {
                    Poll::Ready(ready) => *answer = Some(ready),
                    Poll::Pending => all = false,
                }
            }
        }
        if all { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    answers.into_iter().map(|answer| answer.expect("all have ended")).collect()
}

/// A response with all of its body.
async fn whole<B, E>(call: impl Future<Output = Result<Response<B>, E>>) -> Answer
where
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
    E: Into<BoxError>,
{
    let (head, body) = call.await.map_err(Into::into)?.into_parts();
    let body = body.collect().await.map_err(Into::into)?.to_bytes();
    Ok(Response::from_parts(head, Full::new(body)))
}
