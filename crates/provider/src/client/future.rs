use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header::HOST};
use http_body_util::Full;
use tower_service::Service;

use super::{
    Key, Shared,
    body::DrivenBody,
    connection::{Connection, Sent, no_waker},
    not_connected, root_cause,
};
use crate::{Class, Error};

/// The response future of [`HttpTransport`](super::HttpTransport).
pub struct Exchange {
    transport: Arc<Shared>,
    /// Where to; taken by the response.
    key: Option<Key>,
    state: State,
}

enum State {
    Start(Box<Request<Full<Bytes>>>),
    Connecting { connect: Connect, request: Box<Request<Full<Bytes>>> },
    Waiting { connection: Option<Box<Connection>>, sent: Sent, reused: bool },
    Done,
}

type Connect = Pin<Box<dyn Future<Output = Result<Box<Connection>, Error>> + Send>>;

impl Exchange {
    pub(super) fn new(transport: Arc<Shared>, mut request: Request<Full<Bytes>>) -> Self {
        let uri = std::mem::take(request.uri_mut()).into_parts();
        // Credentials in an address would end up in messages and in `Host`.
        let authority = uri.authority.filter(|authority| !authority.as_str().contains('@'));
        let key = uri.scheme.zip(authority);
        if let Some((_, authority)) = &key {
            if !request.headers().contains_key(HOST)
                && let Ok(host) = HeaderValue::from_str(authority.as_str())
            {
                request.headers_mut().insert(HOST, host);
            }
            // Origin form: what a server that is no proxy expects.
            *request.uri_mut() = uri.path_and_query.map(Uri::from).unwrap_or_default();
        }
        Self { transport, key, state: State::Start(Box::new(request)) }
    }
}

impl Future for Exchange {
    type Output = Result<Response<DrivenBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.state, State::Done) {
                State::Start(request) => {
                    let Some(key) = &this.key else {
                        let message =
                            "the upstream's address is no absolute http or https URL without credentials";
                        return Poll::Ready(Err(Error::new(Class::Connect, message)));
                    };
                    this.state = match this.transport.pool.take(key, cx) {
                        Some(mut connection) => {
                            let sent = connection.send(*request);
                            State::Waiting { connection: Some(connection), sent, reused: true }
                        }
                        None => State::Connecting { connect: connect(&this.transport, key), request },
                    };
                }
                State::Connecting { mut connect, request } => {
                    let Poll::Ready(connected) = connect.as_mut().poll(cx) else {
                        this.state = State::Connecting { connect, request };
                        return Poll::Pending;
                    };
                    let mut connection = connected?;
                    let sent = connection.send(*request);
                    this.state = State::Waiting { connection: Some(connection), sent, reused: false };
                }
                State::Waiting { mut connection, mut sent, reused } => {
                    // The connection first: it is what fulfils `sent`.
                    let closed = connection.as_mut().is_none_or(|connection| connection.poll(cx).is_ready());
                    if closed {
                        connection = None;
                    }
                    match sent.as_mut().poll(&mut no_waker()) {
                        Poll::Pending if closed => {
                            let message = "the upstream closed the connection without an answer";
                            return Poll::Ready(Err(Error::new(Class::Upstream, message)));
                        }
                        Poll::Pending => {
                            this.state = State::Waiting { connection, sent, reused };
                            return Poll::Pending;
                        }
                        Poll::Ready(Ok(response)) => {
                            let key = this.key.take().expect("a request was sent somewhere");
                            let pool = this.transport.pool.clone();
                            let response =
                                response.map(|incoming| DrivenBody::new(incoming, connection, pool, key, cx));
                            return Poll::Ready(Ok(response));
                        }
                        Poll::Ready(Err(mut error)) => {
                            // Not a byte of it was written, and the next connection may be fresh.
                            if reused && let Some(request) = error.take_message() {
                                this.state = State::Start(Box::new(request));
                                continue;
                            }
                            return Poll::Ready(Err(broken(error.into_error())));
                        }
                    }
                }
                State::Done => panic!("polled after completion"),
            }
        }
    }
}

fn connect(transport: &Shared, (scheme, authority): &Key) -> Connect {
    let mut connector = transport.connector.clone();
    let within = transport.connect_within;
    let uri = Uri::builder().scheme(scheme.clone()).authority(authority.clone()).path_and_query("/").build();
    let host = authority.clone();
    Box::pin(async move {
        let failed = |error: BoxError| not_connected(&host, error);
        let uri = uri.map_err(|error| failed(error.into()))?;
        let connecting = tokio::time::timeout(within, connector.call(uri)).await;
        let io = connecting
            .map_err(|_| failed(format!("no connection within {within:?}").into()))?
            .map_err(failed)?;
        Connection::open(io).await.map_err(|error| failed(error.into()))
    })
}

fn broken(error: hyper::Error) -> Error {
    let message = if error.is_incomplete_message() {
        "the upstream closed the connection without an answer".into()
    } else if error.is_parse() {
        format!("the upstream's answer is not HTTP: {}", root_cause(&error))
    } else {
        format!("the connection to the upstream broke: {}", root_cause(&error))
    };
    let class = if error.is_parse() { Class::Malformed } else { Class::Upstream };
    Error::new(class, message).with_source(error)
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange").field("to", &self.key).finish_non_exhaustive()
    }
}
