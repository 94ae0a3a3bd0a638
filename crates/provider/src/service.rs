use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bartizan_core::BoxError;
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri,
    header::{
        ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST,
        PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, VIA,
    },
    uri::PathAndQuery,
};
use http_body::Body;
use http_body_util::Full;
use secrecy::{ExposeSecret, SecretString};
use tower_service::Service;

use crate::{Class, Error, Facts, Limits, Operation, ResponseBody, ResponseFuture, future::Expected};

/// An OpenAI-compatible upstream: OpenAI, Azure, vLLM, Ollama, Groq, Mistral and many more.
///
/// Requests are `http::Request<Bytes>` in OpenAI's JSON to paths below `/v1/`; responses come back byte for byte, event
/// streams included. What changes on the way out is the URL, the authorization and, with [`model`](Self::model), the
/// model's name, spliced into the body without parsing it a second time when the request carries its [`Facts`].
/// The headers with the caller's own credentials, cookies and whereabouts stay behind, and those of the connection; so do
/// the upstream's cookies.
///
/// `T` is any HTTP transport; `HttpTransport` (feature `client`) is the one made for it.
///
/// # Behaviour
///
/// Ready when the transport is. An answer that is no event stream is read whole, up to a bound, before the call
/// resolves, so one that is cut or garbled becomes an error instead of a broken 200: it must be JSON from its first byte to
/// its last, or at paths of which no [`Operation`] is known begin and end as JSON does.
///
/// A stream resolves with its head and passes on every whole event at once, all that arrived together in one frame. It
/// never ends silently: where the upstream stops without `data: [DONE]`, breaks off, stalls, sends what is no event or one
/// that is an error, the body ends with an [`Error`] ([`ErrorEventsLayer`](crate::ErrorEventsLayer) turns that into an event
/// for the client, or back into it). `data: [DONE]` is the last event, whatever the upstream sends behind it: the body of the
/// transport has 50 ms to end there, for its connection to be used again, and is let go.
///
/// Dropping the future or the body drops the transport's, which closes the connection.
///
/// # Errors
///
/// [`Error`], by [`Class`]: the request's address cannot be built, the transport failed, a [limit](Limits) is over, the
/// answer is malformed. An error *response* of the upstream is no error but a response with its status, as with any
/// HTTP service; the [`Error`] that it means rides in its extensions as `Arc<Error>`, so nobody has to parse it again.
/// Keys that an error response quotes are taken out.
///
/// Of chats and embeddings it is known what an answer looks like. One of 200 that is `{"error":{..}}` is such an error
/// response, with the status of its class. Malformed are 204, 205 and 206, a stream of embeddings and, where the request
/// carries its [`Facts`], a stream that nobody asked for, or none where it was asked for: neither is what the client reads.
///
/// # Example
///
/// ```
/// use bartizan_provider::{Class, Error, Provider};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use std::sync::Arc;
/// use tower::{Service, ServiceExt, service_fn};
///
/// // Any service that speaks HTTP will do as a transport.
/// let transport = service_fn(|request: Request<Full<Bytes>>| async move {
///     assert_eq!(request.uri(), "https://llm.example/openai/v1/chat/completions");
///     assert_eq!(request.headers()["authorization"], "Bearer sk-ours");
///     let body = request.into_body().collect().await?.to_bytes();
///     let response = Response::builder().header("content-type", "application/json");
///     Ok::<_, std::convert::Infallible>(match &body[..] {
///         br#"{"model":"big-2025"}"# => response.body(Full::from(r#"{"id":"1"}"#)).unwrap(),
///         _ => response.status(404).body(Full::from(r#"{"error":{"message":"no such model","code":"model_not_found"}}"#)).unwrap(),
///     })
/// });
/// # tokio_test::block_on(async {
/// let mut provider = Provider::new(transport, "https://llm.example/openai/v1")?.api_key("sk-ours".into()).model("big-2025");
///
/// let ask = |model: &str| {
///     let body = Bytes::from(format!(r#"{{"model":"{model}"}}"#));
///     Request::post("/v1/chat/completions").header("authorization", "Bearer the-callers").body(body).unwrap()
/// };
/// let response = provider.ready().await?.call(ask("big")).await?;
/// assert_eq!(response.into_body().collect().await?.to_bytes(), r#"{"id":"1"}"#);
///
/// let mut provider = provider.model("typo");
/// let response = provider.ready().await?.call(ask("big")).await?;
/// assert_eq!(response.status(), 404);
/// assert_eq!(response.extensions().get::<Arc<Error>>().unwrap().class(), Class::NotFound);
/// # Ok::<(), bartizan_core::BoxError>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct Provider<T> {
    transport: T,
    upstream: Arc<Upstream>,
}

/// What is known of the upstream before the first call.
#[derive(Clone)]
pub(crate) struct Upstream {
    base: Base,
    auth: Option<Auth>,
    model: Option<Arc<str>>,
    pub(crate) limits: Limits,
    pub(crate) max_response: u64,
}

#[derive(Clone)]
struct Base {
    /// Scheme and authority.
    origin: Uri,
    /// Without the slash at the end.
    path: String,
}

#[derive(Clone)]
pub(crate) struct Auth {
    name: HeaderName,
    value: HeaderValue,
    pub(crate) key: SecretString,
}

impl<T> Provider<T> {
    /// An upstream whose API begins at `base_url`, version included: `https://api.openai.com/v1`.
    ///
    /// # Errors
    ///
    /// Of class [`BadRequest`](Class::BadRequest) when `base_url` is no absolute `http` or `https` URL, or has a query
    /// or credentials in it.
    pub fn new(transport: T, base_url: &str) -> Result<Self, Error> {
        let base = Base::parse(base_url)?;
        let limits = Limits::default();
        let upstream = Upstream { base, auth: None, model: None, limits, max_response: 64 * 1024 * 1024 };
        Ok(Self { transport, upstream: Arc::new(upstream) })
    }

    /// Sends `Authorization: Bearer` with this key. Default: no authorization.
    ///
    /// # Panics
    ///
    /// If the key cannot stand in a header: it has control characters in it.
    #[must_use]
    pub fn api_key(self, key: SecretString) -> Self {
        let value = format!("Bearer {}", key.expose_secret());
        self.authorize(AUTHORIZATION, &value, key)
    }

    /// Sends this key in a header of its own, as Azure's `api-key`. Default: no authorization.
    ///
    /// # Panics
    ///
    /// If the key cannot stand in a header: it has control characters in it.
    #[must_use]
    pub fn api_key_in(self, name: HeaderName, key: SecretString) -> Self {
        let value = key.expose_secret().to_owned();
        self.authorize(name, &value, key)
    }

    fn authorize(mut self, name: HeaderName, value: &str, key: SecretString) -> Self {
        let mut value = HeaderValue::from_str(value).expect("an API key has no control characters");
        value.set_sensitive(true);
        self.upstream_mut().auth = Some(Auth { name, value, key });
        self
    }

    /// Asks for this model, whatever the request names. Default: the request's.
    ///
    /// A request with a body that names no model, whatever its path, is then an [`Error`] of class
    /// [`BadRequest`](Class::BadRequest).
    #[must_use]
    pub fn model(mut self, model: impl Into<Arc<str>>) -> Self {
        self.upstream_mut().model = Some(model.into());
        self
    }

    /// Limits the time of each call. Default: [`Limits::default`].
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.upstream_mut().limits = limits;
        self
    }

    /// The longest answer, in bytes, that is read whole. Default: 64 MiB; a longer one is an error of class
    /// [`Malformed`](Class::Malformed). Streams have no such bound.
    #[must_use]
    pub fn max_response(mut self, bytes: u64) -> Self {
        self.upstream_mut().max_response = bytes;
        self
    }

    fn upstream_mut(&mut self) -> &mut Upstream {
        Arc::make_mut(&mut self.upstream)
    }
}

impl<T, B> Service<Request<Bytes>> for Provider<T>
where
    T: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone,
    T::Error: Into<BoxError>,
    B: Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Response = Response<ResponseBody<B>>;
    type Error = Error;
    type Future = ResponseFuture<T::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        self.transport.poll_ready(cx).map_err(|error| of_transport(error.into()))
    }

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let expected = Expected::of(&request);
        match self.upstream.outgoing(request) {
            Ok(request) => ResponseFuture::new(self.transport.call(request), expected, self.upstream.clone()),
            Err(error) => {
                // Gives back what the transport granted: a call that is not made must not keep a permit.
                self.transport = self.transport.clone();
                ResponseFuture::failed(error, expected, self.upstream.clone())
            }
        }
    }
}

impl<T> fmt::Debug for Provider<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("origin", &self.upstream.base.origin)
            .field("path", &self.upstream.base.path)
            .field("model", &self.upstream.model)
            .field("limits", &self.upstream.limits)
            .finish_non_exhaustive()
    }
}

impl Upstream {
    fn outgoing(&self, request: Request<Bytes>) -> Result<Request<Full<Bytes>>, Error> {
        let (mut parts, mut body) = request.into_parts();
        if let Some(model) = &self.model
            && !body.is_empty()
        {
            body = match parts.extensions.get::<Facts>() {
                Some(facts) if facts.describe(&body) => facts.rename(&body, model),
                // Nobody has read this body, or somebody has changed it. Whatever the path, it names its model as a
                // chat does, or it does not go out: not with our key and a model of the caller's choice.
                _ => Facts::read(Operation::Chat, &body)?.rename(&body, model),
            };
        }
        parts.uri = self.base.join(&parts.uri)?;
        clean_request(&mut parts.headers);
        if let Some(Auth { name, value, .. }) = &self.auth {
            parts.headers.insert(name, value.clone());
        }
        Ok(Request::from_parts(parts, Full::new(body)))
    }

    /// What must not come back from the upstream in a message.
    pub(crate) fn secret(&self) -> Option<&str> {
        self.auth.as_ref().map(|auth| auth.key.expose_secret())
    }
}

impl Base {
    fn parse(base_url: &str) -> Result<Self, Error> {
        // The URL is not quoted: whoever puts a key into one does not want to read it in a log.
        let wrong = |what: &str| Error::new(Class::BadRequest, format!("the base URL {what}"));
        let uri: Uri =
            base_url.parse().map_err(|error| wrong("is no URL").with_source(BoxError::from(error)))?;
        let parts = uri.into_parts();
        let (Some(scheme), Some(authority)) = (parts.scheme, parts.authority) else {
            return Err(wrong("is not absolute: it wants https://, a host and a path"));
        };
        if !matches!(scheme.as_str(), "http" | "https") {
            return Err(wrong("is neither http nor https"));
        }
        if authority.as_str().contains('@') {
            return Err(wrong("has credentials in it: they belong in the API key"));
        }
        let path = parts.path_and_query.unwrap_or(PathAndQuery::from_static("/"));
        if path.query().is_some() {
            return Err(wrong("has a query"));
        }
        let path = path.path().trim_end_matches('/').to_owned();
        let origin = Uri::builder().scheme(scheme).authority(authority).path_and_query("/").build();
        Ok(Self { origin: origin.map_err(|_| wrong("is no URL"))?, path })
    }

    /// The upstream's URL for a path below `/v1`.
    fn join(&self, uri: &Uri) -> Result<Uri, Error> {
        let asked = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let rest = asked.strip_prefix("/v1").filter(|rest| rest.starts_with('/') && stays_below(rest));
        let Some(rest) = rest else {
            return Err(Error::new(Class::NotFound, "there is no such path in this API"));
        };
        let mut parts = self.origin.clone().into_parts();
        let joined = PathAndQuery::from_maybe_shared(Bytes::from([self.path.as_str(), rest].concat()));
        parts.path_and_query = Some(joined.map_err(|error| {
            Error::new(Class::NotFound, "the path does not fit into a URL").with_source(BoxError::from(error))
        })?);
        Uri::from_parts(parts).map_err(|error| {
            Error::new(Class::NotFound, "the path does not fit into a URL").with_source(BoxError::from(error))
        })
    }
}

/// Whether a path leads nowhere but down, also for servers that decode it before they look at its segments.
fn stays_below(path_and_query: &str) -> bool {
    let path = path_and_query.split('?').next().unwrap_or_default();
    let hides_a_slash = path.contains('\\')
        || path
            .as_bytes()
            .windows(3)
            .any(|at| at.eq_ignore_ascii_case(b"%2f") || at.eq_ignore_ascii_case(b"%5c"));
    !hides_a_slash && !path.split('/').any(|segment| matches!(dots(segment), Some(1 | 2)))
}

/// How many dots a segment is made of, if of nothing else.
fn dots(segment: &str) -> Option<usize> {
    let mut rest = segment.as_bytes();
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        dots += 1;
    }
    Some(dots)
}

/// Headers about the connection, not the message.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// What the caller tells us and not the upstream: whom it is, where it is, whom it pays.
const OURS: [HeaderName; 19] = [
    HOST,
    CONTENT_LENGTH,
    EXPECT,
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    FORWARDED,
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-goog-api-key"),
    VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-forwarded-proto"),
    HeaderName::from_static("x-forwarded-port"),
    HeaderName::from_static("x-real-ip"),
    // With another's key these name an account that the key is not of.
    HeaderName::from_static("openai-organization"),
    HeaderName::from_static("openai-project"),
    // Events cannot be seen through compression.
    ACCEPT_ENCODING,
];

fn clean_request(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    for name in &OURS {
        headers.remove(name);
    }
}

pub(crate) fn clean_response(headers: &mut HeaderMap) {
    remove_hop_by_hop(headers);
    // The length follows from the body, a cookie or another address is between us and the upstream.
    for name in [CONTENT_LENGTH, SET_COOKIE, HeaderName::from_static("alt-svc")] {
        headers.remove(name);
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The transport's own error if it is one of ours.
pub(crate) fn of_transport(error: BoxError) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => *error,
        Err(error) => Error::new(Class::Connect, "the upstream could not be reached").with_source(error),
    }
}
