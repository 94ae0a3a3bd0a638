//! The one type under which every layer is examined: HTTP in, HTTP out, errors boxed.

use std::{fmt, sync::Arc};

use axum::body::{Body, Bytes};
use bartizan_core::BoxError;
use http::{Request, Response};
use tower::{
    Layer, Service, ServiceExt,
    layer::layer_fn,
    util::{BoxCloneSyncService, BoxCloneSyncServiceLayer},
};

use crate::probe::{Counts, Probe};

/// The request that every subject takes. The body is axum's, so that a route is an inner service as it stands.
pub type Req = Request<Body>;
/// The response that every subject gives.
pub type Res = Response<Body>;
/// Any service, erased.
pub type Wire = BoxCloneSyncService<Req, Res, BoxError>;
/// Any layer, erased.
pub type WireLayer = BoxCloneSyncServiceLayer<Wire, Req, Res, BoxError>;

/// A layer's handle, erased: all that the laws need of it is that it makes layers that share its state.
///
/// Making one is law `bounds`, because it compiles only if the layer's service is `Clone + Send + Sync` and its future
/// `Send`:
///
/// ```
/// use bartizan_tests::wire::Handle;
/// use tower::timeout::TimeoutLayer;
///
/// Handle::new(|| TimeoutLayer::new(std::time::Duration::from_secs(30)));
/// ```
///
/// A service that is not `Clone` does not get this far,
///
/// ```compile_fail,E0277
/// # use bartizan_tests::wire::{Handle, Wire};
/// use tower::{layer::layer_fn, util::BoxService};
///
/// Handle::new(|| layer_fn(|inner: Wire| BoxService::new(inner)));
/// ```
///
/// nor one that is not `Sync`,
///
/// ```compile_fail,E0277
/// # use bartizan_tests::wire::{Handle, Wire};
/// use tower::{layer::layer_fn, util::BoxCloneService};
///
/// Handle::new(|| layer_fn(|inner: Wire| BoxCloneService::new(inner)));
/// ```
///
/// nor one whose future is not `Send`,
///
/// ```compile_fail
/// # use bartizan_tests::wire::{Handle, Req, Wire};
/// use std::rc::Rc;
/// use tower::{ServiceExt, layer::layer_fn, service_fn};
///
/// Handle::new(|| layer_fn(|inner: Wire| service_fn(move |request: Req| {
///     let inner = inner.clone();
///     async move {
///         let held = Rc::new(());
///         let response = inner.oneshot(request).await;
///         drop(held);
///         response
///     }
/// })));
/// ```
///
/// nor a layer that axum could not clone.
///
/// ```compile_fail,E0277
/// # use bartizan_tests::wire::{Handle, Wire};
/// struct Once;
///
/// impl<S> tower::Layer<S> for Once {
///     type Service = S;
///
///     fn layer(&self, inner: S) -> S {
///         inner
///     }
/// }
///
/// Handle::new(|| Once);
/// ```
#[derive(Clone)]
pub struct Handle {
    make: Arc<dyn Fn() -> WireLayer + Send + Sync>,
    seams: Vec<Counts>,
}

impl Handle {
    /// Erases a handle: `make` is its `layer()`.
    ///
    /// A layer whose inner service is no [`Wire`] (batch's takes a `Vec`) says here how the two meet: `make` may return
    /// any [`Layer`] from a [`Wire`] to a service of HTTP requests.
    pub fn new<L, B>(make: impl Fn() -> L + Send + Sync + 'static) -> Self
    where
        L: Layer<Wire> + Clone + Send + Sync + 'static,
        L::Service: Service<Req, Response = Response<B>> + Clone + Send + Sync + 'static,
        <L::Service as Service<Req>>::Error: Into<BoxError>,
        <L::Service as Service<Req>>::Future: Send,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let make = move || {
            let layer = make();
            WireLayer::new(layer_fn(move |inner: Wire| {
                layer.layer(inner).map_response(|response| response.map(Body::new)).map_err(Into::into)
            }))
        };
        Self { make: Arc::new(make), seams: Vec::new() }
    }

    /// One layer more over the handle's state.
    pub fn layer(&self) -> WireLayer {
        (self.make)()
    }

    /// This handle's layers over `inner`'s, with a [`Probe`] in the seam.
    pub fn over(self, inner: Self) -> Self {
        let seam = Counts::default();
        let mut seams = self.seams.clone();
        seams.extend(inner.seams.iter().cloned());
        seams.push(seam.clone());
        let make = move || {
            let (outer, inner, seam) = (self.layer(), inner.layer(), seam.clone());
            WireLayer::new(layer_fn(move |innermost: Wire| {
                outer.layer(Wire::new(Probe::new(inner.layer(innermost), seam.clone())))
            }))
        };
        Self { make: Arc::new(make), seams }
    }

    /// What the probes between stacked layers have seen.
    pub fn seams(&self) -> &[Counts] {
        &self.seams
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("seams", &self.seams).finish_non_exhaustive()
    }
}
