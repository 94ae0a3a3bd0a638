//! A layer on two routes of a served axum router, spoken to through real sockets.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::Request,
    middleware::{self, Next},
    routing::any,
};
use bartizan_core::RejectionLayer;
use http::{StatusCode, Uri, header::HOST};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime,
    sync::{Semaphore, watch},
    task::JoinSet,
    time,
};
use tower::{Layer, ServiceExt, layer::layer_fn};

use crate::{
    controlled::Then,
    subject::{Across, Sharing},
    wire::{Handle, Req, Wire},
};

/// Runs a check in real time, on one thread: once a later request was answered, what an earlier one could do by itself
/// is done.
pub(crate) fn served(check: impl Future<Output = Result<(), String>>) -> Result<(), String> {
    let runtime =
        runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    // Nothing here waits for time. Were an answer lost, this would end the check.
    let lost = Duration::from_secs(20);
    runtime.block_on(async {
        time::timeout(lost, check).await.unwrap_or_else(|_| Err("no answer came back".to_owned()))
    })
}

/// Whether exactly as many requests as may reach the handlers of the two routes do.
pub(crate) async fn shares(sharing: &Sharing) -> Result<(), String> {
    let handlers = Arc::new(Handlers::new(sharing.then));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(|error| error.to_string())?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let mut router = router(&sharing.handle, &handlers);
    if sharing.across == Across::Clones {
        // Or else axum makes the layer's service anew for every connection.
        router = router.with_state(());
    }
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { axum::serve(listener, router).await.map_err(|error| error.to_string()) });

    let routes: &[&str] = if sharing.across == Across::Handle { &["/a", "/b"] } else { &["/a"] };
    let made = sharing.reach + 2;
    for n in 0..made {
        let route = routes[n % routes.len()];
        let request = sharing.request.dress(n, Req::default());
        tasks.spawn(async move { send(address, route, request).await.map(drop) });
        let mut arrived = handlers.arrived.subscribe();
        arrived.wait_for(|arrived| *arrived > n).await.map_err(|error| error.to_string())?;
        for _ in 0..4 {
            send(address, "/ping", Req::default()).await?;
        }
    }
    match *handlers.reached.borrow() {
        reached if reached == sharing.reach => Ok(()),
        reached => Err(format!(
            "over {} routes {reached} of {made} requests reached the handlers instead of {}",
            routes.len(),
            sharing.reach
        )),
    }
}

/// What the handlers of a router share.
struct Handlers {
    then: Then,
    /// Requests that came in, before any layer.
    arrived: watch::Sender<usize>,
    /// Requests that came through the layer.
    reached: watch::Sender<usize>,
    /// Never has a permit: what a hanging handler waits for.
    never: Semaphore,
}

impl Handlers {
    fn new(then: Then) -> Self {
        Self {
            then,
            arrived: watch::Sender::new(0),
            reached: watch::Sender::new(0),
            never: Semaphore::new(0),
        }
    }

    async fn answer(self: Arc<Self>) -> StatusCode {
        self.reached.send_modify(|reached| *reached += 1);
        match self.then {
            Then::Resolve => StatusCode::OK,
            Then::Fail => StatusCode::INTERNAL_SERVER_ERROR,
            Then::Panic | Then::PanicInCall => panic!("the handler panics"),
            Then::Hang => {
                let _ = self.never.acquire().await;
                StatusCode::OK
            }
        }
    }
}

fn router(handle: &Handle, handlers: &Arc<Handlers>) -> Router {
    let route = || {
        let (handle, handlers) = (handle.clone(), handlers.clone());
        any(move || handlers.clone().answer()).layer(layer_fn(move |route: axum::routing::Route| {
            let route = Wire::new(ServiceExt::<Req>::map_err(route, |never: Infallible| match never {}));
            RejectionLayer::problem_json().layer(handle.layer().layer(route))
        }))
    };
    let handlers = handlers.clone();
    let arrive = move |request: Request, next: Next| {
        handlers.arrived.send_modify(|arrived| *arrived += 1);
        next.run(request)
    };
    Router::new()
        .route("/a", route())
        .route("/b", route())
        .layer(middleware::from_fn(arrive))
        .route("/ping", any(|| async {}))
}

/// Sends one request over a connection of its own.
async fn send(address: SocketAddr, path: &'static str, mut request: Req) -> Result<StatusCode, String> {
    *request.uri_mut() = Uri::from_static(path);
    request.headers_mut().insert(HOST, http::HeaderValue::from_static("localhost"));
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| error.to_string());
        drop(sender);
        response
    };
    let (response, _) = tokio::join!(exchange, connection);
    Ok(response?.status())
}
