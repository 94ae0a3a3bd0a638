//! A line in the log for each call to an upstream that has failed.
//!
//! Inside of retries, fallbacks and deduplication, so that each try of each model has its line however the request ends; and
//! outside of what holds a stream back until it has begun. A call that goes well costs two counts of references, up and down.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bartizan_core::{BoxError, Budget, Ending, Guard, GuardedBody, chain};
use bartizan_provider::{Error, Facts, Tenant};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::Service;

/// Logs the failures of `inner`, which asks `upstream` for `model`.
pub(crate) fn logged<S>(model: &str, upstream: &str, inner: S) -> Logged<S> {
    Logged { inner, whom: Arc::new(Whom { model: model.to_owned(), upstream: upstream.to_owned() }) }
}

#[derive(Debug)]
struct Whom {
    model: String,
    upstream: String,
}

/// The service that [`logged`] makes.
#[derive(Clone, Debug)]
pub(crate) struct Logged<S> {
    inner: S,
    whom: Arc<Whom>,
}

/// Whom a call asks, and for whom.
#[derive(Debug)]
pub(crate) struct Call {
    whom: Arc<Whom>,
    tenant: Option<Tenant>,
}

impl Guard for Call {
    fn settle(self, ending: Ending<'_>) {
        if let Ending::Failed(error) = ending {
            self.failed(error, None);
        }
    }
}

impl Call {
    /// `answered` is the upstream's status, if it has answered.
    fn failed(&self, error: &(dyn StdError + 'static), answered: Option<StatusCode>) {
        let Whom { model, upstream } = &*self.whom;
        tracing::warn!(
            model,
            upstream,
            tenant = self.tenant.as_ref().map(Tenant::as_str),
            status = answered.map(|status| status.as_u16()),
            error = %Causes(error),
            "a call to an upstream failed"
        );
    }
}

/// An error and what it came from. Whoever repeats its source in its own words is not made to say it twice.
struct Causes<'a>(&'a (dyn StdError + 'static));

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = String::new();
        for error in chain(self.0) {
            let says = error.to_string();
            if !said.contains(&says) {
                said += if said.is_empty() { "" } else { ": " };
                said += &says;
            }
        }
        // Whatever an upstream says is one line.
        f.write_str(&said.replace(char::is_control, " "))
    }
}

impl<S, B> Service<Request<Bytes>> for Logged<S>
where
    S: Service<Request<Bytes>, Response = Response<B>>,
    S::Error: Into<BoxError>,
    B: Body,
{
    type Response = Response<GuardedBody<B, Call>>;
    type Error = BoxError;
    type Future = LoggedFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let tenant = request.extensions().get().and_then(Facts::tenant).cloned();
        let until = request.extensions().get().and_then(Budget::deadline);
        let call = Some(Call { whom: self.whom.clone(), tenant });
        LoggedFuture { inner: self.inner.call(request), call, until }
    }
}

pin_project! {
    /// The response future of [`Logged`].
    pub(crate) struct LoggedFuture<F> {
        #[pin]
        inner: F,
        call: Option<Call>,
        // When the request that it is made for has no more time.
        until: Option<Instant>,
    }

    impl<F> PinnedDrop for LoggedFuture<F> {
        // A fallback that runs out of time drops the call that is under way, as a client does that goes.
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if let (Some(call), Some(until)) = (this.call.take(), *this.until)
                && now() >= until
            {
                call.failed(&*BoxError::from("given up, for the request had no more time"), None);
            }
        }
    }
}

fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

impl<F, B, E> Future for LoggedFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Into<BoxError>,
    B: Body,
{
    type Output = Result<Response<GuardedBody<B, Call>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answered = ready!(this.inner.poll(cx));
        let call = this.call.take().expect("polled after completion");
        Poll::Ready(match answered {
            Ok(response) => {
                if let Some(error) = response.extensions().get::<Arc<Error>>() {
                    call.failed(&**error, error.answered());
                }
                Ok(response.map(|body| GuardedBody::new(body, call)))
            }
            Err(error) => {
                let error = error.into();
                call.failed(&*error, None);
                Err(error)
            }
        })
    }
}
