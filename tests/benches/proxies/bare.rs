//! The yardstick: the pass-through proxy that an axum user writes.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::serve::ListenerExt;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;

use crate::process::Child;
use crate::{BoxError, Proxy};

type Client = hyper_util::client::legacy::Client<HttpConnector, Body>;

/// On which runtime it runs.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    TwoWorkers,
    OneThread,
}

impl Shape {
    pub(crate) fn role(self) -> &'static str {
        match self {
            Shape::TwoWorkers => "bare",
            Shape::OneThread => "bare1",
        }
    }
}

pub(crate) fn start(
    key: &'static str,
    title: &'static str,
    shape: Shape,
    upstream: SocketAddr,
) -> Result<Proxy, BoxError> {
    let child = Child::of_role_to(shape.role(), upstream)?;
    Ok(Proxy { key, title, address: child.address, child: Some(child) })
}

pub(crate) async fn serve(listener: TcpListener, upstream: SocketAddr) -> std::io::Result<()> {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(connector);
    let app = Router::new().fallback(proxy).with_state((client, upstream));
    let listener = listener.tap_io(|stream| {
        // As nginx does by default. A failure costs time and nothing else.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await
}

async fn proxy(
    State((client, upstream)): State<(Client, SocketAddr)>,
    mut request: Request,
) -> Result<Response, StatusCode> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let uri = Uri::try_from(format!("http://{upstream}{path}")).map_err(|_| StatusCode::BAD_REQUEST)?;
    *request.uri_mut() = uri;
    Ok(client.request(request).await.map_err(|_| StatusCode::BAD_GATEWAY)?.into_response())
}
