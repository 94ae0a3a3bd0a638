use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::sleep;
use tower_service::Service;

use super::{
    Call, Ended, MockBody, MockRequest, Shared,
    answer::{Asked, answer},
    script::NoHead,
};

/// The response future of [`MockService`].
pub type MockFuture = Pin<Box<dyn Future<Output = io::Result<Response<MockBody>>> + Send>>;

/// A [`Mock`](super::Mock) as a service. Always ready.
///
/// It fails only where a [`Script`](super::Script) says so, or if the request's body does.
#[derive(Clone)]
pub struct MockService {
    shared: Arc<Shared>,
}

impl MockService {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

impl fmt::Debug for MockService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockService").finish_non_exhaustive()
    }
}

impl<B> Service<Request<B>> for MockService
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    type Response = Response<MockBody>;
    type Error = io::Error;
    type Future = MockFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> MockFuture {
        // Counted here, so that a call that is never polled is seen as cancelled.
        let call = Call::new(self.shared.clone());
        Box::pin(run(call, request))
    }
}

async fn run<B>(call: Call, request: Request<B>) -> io::Result<Response<MockBody>>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (head, body) = request.into_parts();
    let body: Bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            call.end(Ended::Failed);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
        }
    };
    let asked = Asked::read(&head.method, head.uri.path(), &body);
    let script = call.shared.take_script(asked.model(), || MockRequest::new(&head, body.clone()));
    if !script.latency.is_zero() {
        sleep(script.latency).await;
    }
    match script.head {
        None => {
            let mut answer = answer(asked, call.shared.models.as_deref(), &script, call.number);
            let plain = !answer.streamed;
            // Halves, if the script has a use for them.
            if plain && script.frames.is_none() && script.tells_events_apart() {
                let half = answer.events.pop_front().unwrap_or_default();
                answer.events.push_front(half.slice(half.len() / 2..));
                answer.events.push_front(half.slice(..half.len() / 2));
            }
            Ok(answer.head.map(|()| MockBody::new(answer.events, plain, &script, call)))
        }
        Some(NoHead::Hang) => std::future::pending().await,
        Some(NoHead::Fail) => {
            call.end(Ended::Failed);
            Err(io::Error::new(io::ErrorKind::ConnectionReset, "the script cuts the connection off here"))
        }
    }
}
