//! Every key there is: its name, type, range, default and meaning.

use std::{net::SocketAddr, num::NonZeroUsize, ops::RangeInclusive, time::Duration};

use http::{HeaderName, Uri, header, uri::Scheme};

use super::{
    Limits, ServerConfig,
    key::{Key, Kind, nearest},
    rates::secret,
};

/// The models of a gateway that is told nothing.
pub(super) const MOCK_MODELS: [&str; 3] = ["mock-small", "mock-large", "mock-embed"];

/// Where `upstream = "openai"` goes unless told otherwise.
pub(super) const OPENAI_URL: &str = "https://api.openai.com/v1";

/// A day: whoever wants a longer time limit wants none, which there is not.
pub(super) const MILLISECONDS: RangeInclusive<u64> = 1..=86_400_000;

pub(super) const SERVER: &[Key<ServerConfig>] = &[
    Key {
        name: "listen",
        kind: Kind::Text("an IP address and a port; port 0 takes any free one", |server, text| {
            server.listen = text.parse::<SocketAddr>().map_err(|_| {
                format!(
                    "must be an IP address and a port up to 65535, such as \"127.0.0.1:8080\", not {text:?}"
                )
            })?;
            Ok(())
        }),
        default: "\"127.0.0.1:8080\"",
        doc: "The address to listen on.",
    },
    Key {
        name: "allow_remote",
        kind: Kind::Flag(|server, flag| server.allow_remote = flag),
        default: "false",
        doc: "Whether `listen` may be an address that other machines can reach. Without a [[key]] the gateway asks nobody\n\
              for one and uses yours upstream, and it has no TLS, so this needs to be said.",
    },
    Key {
        name: "workers",
        kind: Kind::IntegerOr("auto", 1..=1024, |server, workers| {
            server.workers = workers.map_or_else(|| ServerConfig::default().workers, count);
            Ok(())
        }),
        default: "\"auto\"",
        doc: "Worker threads, each with connections of its own. \"auto\" is one for each core.",
    },
    Key {
        name: "max_connections",
        kind: Kind::Integer(1..=1_000_000, |server, connections| server.max_connections = count(connections)),
        default: "10_000",
        doc: "Client connections open at once; more wait until one closes. Each may need two file descriptors (see\n\
              `ulimit -n`).",
    },
    Key {
        name: "max_body_bytes",
        kind: Kind::Integer(1..=1 << 30, |server, bytes| {
            server.max_body_bytes = bytes.try_into().unwrap_or(usize::MAX);
        }),
        default: "10_485_760",
        doc: "The largest request body.",
    },
    Key {
        name: "header_timeout_ms",
        kind: Kind::Integer(MILLISECONDS, |server, ms| server.header_timeout = Duration::from_millis(ms)),
        default: "30_000",
        doc: "How long a client may take to send the head of a request, and may keep a connection open between two\n\
              requests.",
    },
    Key {
        name: "body_timeout_ms",
        kind: Kind::Integer(MILLISECONDS, |server, ms| server.body_timeout = Duration::from_millis(ms)),
        default: "30_000",
        doc: "How long a client may take to send the body of a request.",
    },
    Key {
        name: "write_timeout_ms",
        kind: Kind::Integer(MILLISECONDS, |server, ms| server.write_timeout = Duration::from_millis(ms)),
        default: "30_000",
        doc: "How long a client may leave unread what it was sent, before its connection is cut.",
    },
    Key {
        name: "drain_delay_ms",
        kind: Kind::Integer(0..=86_400_000, |server, ms| server.drain_delay = Duration::from_millis(ms)),
        default: "0",
        doc: "How long after SIGTERM or SIGINT to go on as before, but for a 503 from /readyz, so that a load balancer sees\n\
              it and sends no more. Then new connections are refused.",
    },
    Key {
        name: "drain_timeout_ms",
        kind: Kind::Integer(MILLISECONDS, |server, ms| server.drain_timeout = Duration::from_millis(ms)),
        default: "30_000",
        doc: "How long requests in flight may go on after that. A second signal cuts them at once.",
    },
    Key {
        name: "tenant_header",
        kind: Kind::Text("a header's name", |server, text| {
            let name: HeaderName = text.parse().map_err(|_| "must be a header's name".to_owned())?;
            if [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE].contains(&name) {
                return Err(format!(
                    "is {name}, which holds a secret and would end up in logs; name another header"
                ));
            }
            server.tenant_header = name;
            Ok(())
        }),
        default: "\"x-tenant-id\"",
        doc: "The request header that names the tenant, to be set by whoever authenticates clients before the gateway.\n\
              With a [[key]] the key names the tenant, and the header is ignored.",
    },
    Key {
        name: "admin_token",
        kind: Kind::Secret("a string", |server, text| {
            server.admin_token = Some(secret(text)?);
            Ok(())
        }),
        default: "",
        doc: "What to show as `Authorization: Bearer` to GET /admin/limits, GET /admin/breakers, GET /admin/fallbacks,\n\
              GET /admin/dedup, GET /admin/batches, POST /admin/breakers/MODEL/reset (or force-open, or disable),\n\
              POST /admin/dedup/clear and POST /admin/health/reset. Without it there are no such paths. Whether GET /health and\n\
              GET /metrics want it, too, says show_to in [health].",
    },
];

pub(super) const LIMITS: &[Key<Limits>] = &[
    Key {
        name: "connect_ms",
        kind: Kind::Integer(MILLISECONDS, |limits, ms| limits.connect = Duration::from_millis(ms)),
        default: "5_000",
        doc: "Until there is a connection, TLS included.",
    },
    Key {
        name: "head_ms",
        kind: Kind::Integer(MILLISECONDS, |limits, ms| limits.head = Duration::from_millis(ms)),
        default: "120_000",
        doc: "Until the head of the response. An answer that is not streamed is computed before its head is sent.",
    },
    Key {
        name: "first_frame_ms",
        kind: Kind::Integer(MILLISECONDS, |limits, ms| limits.first_frame = Duration::from_millis(ms)),
        default: "60_000",
        doc: "From the head to the first bytes of the body.",
    },
    Key {
        name: "idle_ms",
        kind: Kind::Integer(MILLISECONDS, |limits, ms| limits.idle = Duration::from_millis(ms)),
        default: "60_000",
        doc: "From some bytes of the body to the next.",
    },
    Key {
        name: "total_ms",
        kind: Kind::Integer(MILLISECONDS, |limits, ms| limits.total = Duration::from_millis(ms)),
        default: "600_000",
        doc: "For the whole call. No other limit may be set above it, where it could never be reached.",
    },
    Key {
        name: "keep_idle_ms",
        kind: Kind::Integer(0..=86_400_000, |limits, ms| limits.keep_idle = Duration::from_millis(ms)),
        default: "4_000",
        doc: "How long a connection to an upstream is kept for the next call, outside of all calls; 0 keeps none. To be less\n\
              than the upstream keeps it: a call on its way while the upstream closes has failed, and may have been read. Many\n\
              servers close after 5 seconds, as vLLM's does; others keep them for a minute and more, and spare TLS handshakes.",
    },
];

/// A `[[model]]` while it is read.
#[derive(Default)]
pub(super) struct RawModel {
    pub(super) name: Option<String>,
    pub(super) upstream: Option<UpstreamKind>,
    pub(super) base_url: Option<Uri>,
    pub(super) api_key_env: Option<String>,
    pub(super) model: Option<String>,
    pub(super) circuit_breaker: bool,
    pub(super) dedup: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum UpstreamKind {
    OpenAi,
    Mock,
}

/// The keys of a `[[model]]`, which also takes those of [`LIMITS`].
pub(super) const MODEL: &[Key<RawModel>] = &[
    Key {
        name: "name",
        kind: Kind::Text("a string", |model, text| {
            model.name = Some(public_name(text)?);
            Ok(())
        }),
        default: "",
        doc: "Required. What clients send as \"model\", of visible ASCII characters and spaces.",
    },
    Key {
        name: "upstream",
        kind: Kind::Text("\"openai\" or \"mock\"", |model, text| {
            model.upstream = Some(match text {
                "openai" => UpstreamKind::OpenAi,
                "mock" => UpstreamKind::Mock,
                _ => {
                    let hint = match nearest(text, ["openai", "mock"]) {
                        Some(near) => format!("did you mean {near:?}?"),
                        None => "\"openai\" is right for whatever speaks OpenAI's API".to_owned(),
                    };
                    return Err(format!("must be \"openai\" or \"mock\", not {text:?}; {hint}"));
                }
            });
            Ok(())
        }),
        default: "",
        doc: "Required. \"openai\" for an API that speaks as OpenAI's does, \"mock\" for the embedded mock.",
    },
    Key {
        name: "base_url",
        kind: Kind::Text("an http or https URL", |model, text| {
            model.base_url = Some(base_url(text)?);
            Ok(())
        }),
        default: "\"https://api.openai.com/v1\"",
        doc: "Where that API is: what stands before `/chat/completions`. Only for \"openai\".",
    },
    Key {
        name: "api_key_env",
        kind: Kind::Text("the name of an environment variable", |model, text| {
            model.api_key_env = Some(variable_name(text)?);
            Ok(())
        }),
        default: "",
        doc: "The environment variable that holds the API's key; without it no key is sent. Only for \"openai\".",
    },
    Key {
        name: "model",
        kind: Kind::Text("a string", |model, text| {
            model.model = Some(model_name(text)?);
            Ok(())
        }),
        default: "",
        doc: "What the model is called there. Default: the same name.",
    },
    Key {
        name: "circuit_breaker",
        kind: Kind::Flag(|model, flag| model.circuit_breaker = flag),
        default: "",
        doc: "Whether it has a circuit breaker. Default: as in [circuit_breaker].",
    },
    Key {
        name: "dedup",
        kind: Kind::Flag(|model, flag| model.dedup = flag),
        default: "",
        doc: "Whether its requests are deduplicated. Default: as in [dedup].",
    },
];

/// The name of a variable that holds a key.
pub(super) fn variable_name(text: &str) -> Result<String, String> {
    let mut bytes = text.bytes();
    let is_name = bytes.next().is_some_and(|first| first == b'_' || first.is_ascii_alphabetic())
        && bytes.all(|byte| byte == b'_' || byte.is_ascii_alphanumeric());
    if !is_name {
        // What stands here may well be the key, so it is not repeated.
        return Err("must be the name of an environment variable that holds the key, such as \"OPENAI_API_KEY\", and \
                    not the key itself"
            .to_owned());
    }
    Ok(text.to_owned())
}

fn count(value: u64) -> NonZeroUsize {
    value.try_into().ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN)
}

fn model_name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("is empty".to_owned());
    }
    if text.trim() != text || text.contains(char::is_control) {
        return Err(format!(
            "must not begin or end with white space or contain control characters, as {text:?} does"
        ));
    }
    Ok(text.to_owned())
}

/// One that answers say in their heads, where structured fields hold nothing but ASCII.
fn public_name(text: &str) -> Result<String, String> {
    let name = model_name(text)?;
    if !name.is_ascii() {
        return Err(format!(
            "must be of visible ASCII characters and spaces, as it goes into headers, not {text:?}; \"model\" may be \
             what its upstream calls it"
        ));
    }
    Ok(name)
}

/// What stands in a URL may be a secret, so no message repeats it.
pub(super) fn base_url(text: &str) -> Result<Uri, String> {
    let example = format!("write it as {OPENAI_URL:?}");
    // The parser drops a fragment and leaves a user's name in the authority.
    if text.contains(['?', '#']) {
        return Err(format!("must not have a query or a fragment; {example}"));
    }
    let url: Uri = text.parse().map_err(|error| format!("is not a URL ({error}); {example}"))?;
    if url.scheme() != Some(&Scheme::HTTP) && url.scheme() != Some(&Scheme::HTTPS) {
        return Err(format!("must begin with http:// or https://; {example}"));
    }
    let host = url.host().unwrap_or_default();
    let authority = url.authority().map_or("", |authority| authority.as_str());
    if authority.contains('@') {
        return Err(
            "must not hold a user or a password; put the key into an environment variable and name that in \
                    api_key_env"
                .to_owned(),
        );
    }
    if host.is_empty() {
        return Err(format!("has no host; {example}"));
    }
    if authority.len() > host.len() && url.port_u16().is_none() {
        return Err(format!("has a port that is not one; {example}"));
    }
    Ok(text.trim_end_matches('/').parse().unwrap_or(url))
}
