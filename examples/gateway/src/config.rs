//! What the gateway is told: a TOML file, environment variables, command line options.
//!
//! The later ones of these win. Every key stands once, in the table in `schema.rs`, from which come the checks, the
//! environment variables and the [sample file](sample()). Whatever is not known, missing, out of range or without effect is
//! an error that names its place and says what to do; all of them are found in one go.

use std::{
    collections::BTreeMap, ffi::OsString, fmt, net::SocketAddr, num::NonZeroUsize, path::Path, time::Duration,
};

use bartizan_circuit_breaker::{Settings, Window};
use bartizan_health::{Active, Passive};
use bartizan_rate_limit::Quota;
use http::{HeaderName, Uri};
use secrecy::SecretString;

pub use error::{ConfigError, Origin, Problem};
pub use rule::{Check, Moderation, Rule, Side};
pub(crate) use rule::{OWN_NAMES, members};
pub use sample::sample;
pub use validation::{Action, Guard, Validation};

use crate::server::ServerOptions;

mod batches;
mod breaker;
mod dedup;
mod error;
mod fallback;
mod health;
mod key;
mod load;
mod models;
mod rates;
mod rule;
mod sample;
mod schema;
mod section;
mod tenants;
mod validation;

/// A valid configuration. Its `Default` is what the gateway does without any: one embedded mock with a few models.
#[derive(Clone, Debug)]
pub struct Config {
    /// `[server]`.
    pub server: ServerConfig,
    /// `[limits]`, which the models' own limits already take into account.
    pub limits: Limits,
    /// `[rate_limits]` and `[total_rate_limits]`.
    pub rate_limits: RateLimits,
    /// `[circuit_breaker]`.
    pub circuit_breaker: CircuitBreaker,
    /// `[fallback]`, which the models' own already take into account.
    pub fallback: FallbackSettings,
    /// `[dedup]`.
    pub dedup: Dedup,
    /// `[health]`.
    pub health: Health,
    /// `[embedding_batches]`.
    pub embedding_batches: EmbeddingBatches,
    /// `[validation]` and `[[rule]]`.
    pub validation: Validation,
    /// `[[tenant]]`, each name once.
    pub tenants: Vec<Tenant>,
    /// `[[key]]`, each secret once. If there are any, a request needs one.
    pub keys: Vec<ClientKey>,
    /// `[[model]]`, in the order of the file, at least one, each name once.
    pub models: Vec<Model>,
}

/// `[server]`: how clients are served.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Whether `listen` may be anything but a loopback address.
    pub allow_remote: bool,
    /// Worker threads.
    pub workers: NonZeroUsize,
    /// Connections open at once.
    pub max_connections: NonZeroUsize,
    /// The largest request body.
    pub max_body_bytes: usize,
    /// How long a request's head may take to arrive.
    pub header_timeout: Duration,
    /// How long a request's body may take to arrive.
    pub body_timeout: Duration,
    /// How long a client may leave unread what it was sent.
    pub write_timeout: Duration,
    /// How long to go on between the signal and the shutdown.
    pub drain_delay: Duration,
    /// How long requests in flight may go on after the shutdown.
    pub drain_timeout: Duration,
    /// The request header that names the tenant.
    pub tenant_header: HeaderName,
    /// What the admin endpoints ask for; without it there are none.
    pub admin_token: Option<SecretString>,
}

/// `[limits]`: how long a call to an upstream may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Until there is a connection.
    pub connect: Duration,
    /// Until the response's head.
    pub head: Duration,
    /// From the head to the first frame of the body.
    pub first_frame: Duration,
    /// From one frame to the next.
    pub idle: Duration,
    /// For everything.
    pub total: Duration,
    /// How long a connection is kept between calls; zero keeps none.
    pub keep_idle: Duration,
}

/// What tenants may ask for, and what becomes of what they ask beyond.
#[derive(Clone, Copy, Debug)]
pub struct RateLimits {
    /// Of each tenant that has none of its own.
    pub tenant: Rates,
    /// Of all tenants together: requests and tokens a minute.
    pub total: Rates,
    /// How many requests of a tenant may wait for a limit; 0 refuses at once.
    pub max_queue: usize,
    /// How long one may wait.
    pub max_wait: Duration,
    /// Whether a model is left alone for as long as its upstream says.
    pub follow_upstreams: bool,
}

/// Limits of rates; `None` is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Without the burst.
    pub requests_per_minute: Option<Quota>,
    /// Requests an hour.
    pub requests_per_hour: Option<Quota>,
    /// Requests a day.
    pub requests_per_day: Option<Quota>,
    /// Tokens a minute.
    pub tokens_per_minute: Option<Quota>,
    /// Tokens an hour.
    pub tokens_per_hour: Option<Quota>,
    /// Tokens a day.
    pub tokens_per_day: Option<Quota>,
    /// Of `requests_per_minute`, which can have it; all of a minute at once if `None`.
    pub burst: Option<u64>,
}

/// `[circuit_breaker]`: when a model is asked for no more, and until when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Of models that do not say so themselves, whether they have one.
    pub enabled: bool,
    /// So many failures in a row are too many.
    pub failure_threshold: Option<u32>,
    /// What share of a window's calls must not fail.
    pub failure_percent: Option<u8>,
    /// What share of a window's calls must not be slow.
    pub slow_percent: Option<u8>,
    /// A call is slow that takes longer.
    pub slow: Duration,
    /// How long a window is.
    pub window: Duration,
    /// How many calls a window must hold for its shares to count.
    pub min_calls: u32,
    /// A client that goes unanswered after so long says that the model has failed.
    pub client_gone: Option<Duration>,
    /// How long a model is left alone at first.
    pub open: Duration,
    /// For how long at most, if it fails again and again.
    pub max_open: Duration,
    /// How many probes have to succeed.
    pub success_threshold: u32,
    /// How many may be under way at once.
    pub probes: u32,
}

/// `[fallback]`: who is asked when a model fails, and how much one request may cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FallbackSettings {
    /// Of models that do not say so themselves.
    pub usual: Fallbacks,
    /// How many calls may be made for one request.
    pub attempts: u32,
    /// How long one request may take until it is answered.
    pub within: Duration,
}

/// Who is asked when a model fails: models by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fallbacks {
    /// When it fails.
    pub models: Vec<String>,
    /// When the prompt is too long for it.
    pub context_length: Vec<String>,
    /// When its content filter refuses.
    pub content_policy: Vec<String>,
    /// How often it is asked again before.
    pub retries: u32,
}

impl Fallbacks {
    /// Whether there is nobody else, and no second time.
    pub fn are_none(&self) -> bool {
        self.retries == 0 && self.all().next().is_none()
    }

    /// The lists that hold for all models, for this one: it is not among its own.
    pub(crate) fn of(&self, model: &str) -> Self {
        let mut own = self.clone();
        own.lists().into_iter().for_each(|(_, list)| list.retain(|other| other != model));
        own
    }

    /// By their keys.
    fn lists(&mut self) -> [(&'static str, &mut Vec<String>); 3] {
        [
            ("fallbacks", &mut self.models),
            ("context_length_fallbacks", &mut self.context_length),
            ("content_policy_fallbacks", &mut self.content_policy),
        ]
    }

    /// Everybody who may be asked, those of more than one list more than once.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.models.iter().chain(&self.context_length).chain(&self.content_policy).map(String::as_str)
    }
}

/// `[dedup]`: which requests are not sent twice, and which answers are given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dedup {
    /// Of models that do not say so themselves, whether it is done.
    pub enabled: bool,
    /// How long an answer is given again; zero keeps none.
    pub ttl: Duration,
    /// How many answers are kept.
    pub max_entries: usize,
    /// How many bytes they may have together.
    pub max_bytes: u64,
    /// For how long after its time an answer is given while a new one is fetched.
    pub stale_while_revalidate: Duration,
    /// For how long after its time an answer is given in place of an error.
    pub stale_if_error: Duration,
}

/// `[health]`: how models are judged, and who may see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Health {
    /// How long a call counts.
    pub window: Duration,
    /// How many calls a window must hold for its share to count.
    pub min_requests: u32,
    /// What share of failures is too much to be healthy.
    pub degraded_percent: Option<u8>,
    /// And below which share it is healthy again.
    pub degraded_exit_percent: u8,
    /// What share of failures is too much to be degraded.
    pub unhealthy_percent: Option<u8>,
    /// And below which share it is no more than degraded.
    pub unhealthy_exit_percent: u8,
    /// Whether a model is not asked while it is unhealthy.
    pub shed: bool,
    /// How often upstreams are probed, if they are.
    pub probe_every: Option<Duration>,
    /// How long a probe may take.
    pub probe_timeout: Duration,
    /// How many have to fail in a row.
    pub unhealthy_probes: u32,
    /// How many have to be good in a row.
    pub healthy_probes: u32,
    /// Who may see it.
    pub show_to: ShowTo,
}

/// Who may see how models fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShowTo {
    /// Everybody, if only this machine can reach the gateway, and else who has the admin token.
    Auto,
    /// Everybody.
    All,
    /// Who has the admin token.
    Admin,
}

/// `[embedding_batches]`: which embedding requests are sent together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmbeddingBatches {
    /// Whether any are.
    pub enabled: bool,
    /// How many at most.
    pub max_size: usize,
    /// How long the first of them waits at most.
    pub linger: Duration,
    /// How many batches of a model a worker may have under way.
    pub max_concurrent: usize,
    /// How many inputs the requests of a batch may have together.
    pub max_inputs: u64,
    /// Whether requests of different tenants may be sent together.
    pub across_tenants: bool,
}

/// `[[tenant]]`: one with limits of its own.
#[derive(Clone, Debug)]
pub struct Tenant {
    /// What its key or the tenant header says: up to 256 visible ASCII characters.
    pub name: String,
    /// Its limits, which already take into account those of all tenants.
    pub rates: Rates,
}

/// `[[key]]`: what a client shows.
#[derive(Clone, Debug)]
pub struct ClientKey {
    /// Whose it is.
    pub tenant: String,
    /// The key itself: visible ASCII. `Debug` does not show it.
    pub secret: SecretString,
}

/// `[[model]]`: a public model, and who answers for it.
#[derive(Clone, Debug)]
pub struct Model {
    /// The name that clients send: visible ASCII characters and spaces.
    pub name: String,
    /// Where it goes.
    pub upstream: Upstream,
    /// Its name there.
    pub model: String,
    /// The time limits of its calls.
    pub limits: Limits,
    /// Whether its failures are watched from the beginning.
    pub circuit_breaker: bool,
    /// Who is asked when it fails. It is not among them.
    pub fallbacks: Fallbacks,
    /// Whether its requests are deduplicated.
    pub dedup: bool,
    /// By what its requests and answers are checked.
    pub guard: Guard,
}

/// Who answers for a model.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Upstream {
    /// The mock inside the gateway.
    Mock,
    /// An API that speaks as OpenAI's does.
    OpenAi {
        /// The address that paths such as `/chat/completions` are appended to. It has no query, and its path has no
        /// slash at the end, but for a path that is nothing else.
        base_url: Uri,
        /// The key to send, if any.
        api_key: Option<ApiKey>,
    },
}

/// A key that was found in the environment.
#[derive(Clone, Debug)]
pub struct ApiKey {
    /// The variable it came from.
    pub variable: String,
    /// The key itself: visible ASCII, so that a header can carry it. `Debug` does not show it.
    pub secret: SecretString,
}

/// The environment variables that a configuration may refer to.
///
/// Taken once and passed on, so that nothing but its caller reads the process's own.
#[derive(Clone, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Those of this process. Variables whose names are not UTF-8 can be nobody's, and are left out.
    pub fn of_process() -> Self {
        Self(
            std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect(),
        )
    }
}

impl<K: Into<String>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Shows how many there are: their values are full of secrets.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment").field("variables", &self.0.len()).finish()
    }
}

impl Config {
    /// Reads the file, if there is one, and applies the environment and the value of `--listen` over it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with any of them.
    pub fn load(
        file: Option<&Path>,
        environment: &Environment,
        listen: Option<&str>,
    ) -> Result<Self, ConfigError> {
        let Some(path) = file else { return load::load(None, environment, listen) };
        let name = path.display().to_string();
        let unreadable = |origin, message| ConfigError { problems: vec![Problem { origin, message }] };
        let bytes =
            std::fs::read(path).map_err(|error| unreadable(None, format!("cannot read {name}: {error}")))?;
        let text = str::from_utf8(&bytes).map_err(|error| {
            let line = load::line_of(&bytes, error.valid_up_to());
            unreadable(Some(Origin::File { path: name.clone(), line }), "is not UTF-8 text".to_owned())
        })?;
        load::load(Some((&name, text)), environment, listen)
    }

    /// As [`load`](Self::load), from the text of a file. `path` is what errors call it.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text or the environment.
    pub fn from_toml(path: &str, text: &str, environment: &Environment) -> Result<Self, ConfigError> {
        load::load(Some((path, text)), environment, None)
    }
}

impl Default for Config {
    fn default() -> Self {
        let (limits, circuit_breaker) = (Limits::default(), CircuitBreaker::default());
        let dedup = Dedup::default();
        let mock = |name: &str| Model {
            name: name.to_owned(),
            upstream: Upstream::Mock,
            model: name.to_owned(),
            limits,
            circuit_breaker: circuit_breaker.enabled,
            fallbacks: Fallbacks::default(),
            dedup: dedup.enabled,
            guard: Validation::default().usual,
        };
        Self {
            server: ServerConfig::default(),
            limits,
            rate_limits: RateLimits::default(),
            circuit_breaker,
            fallback: FallbackSettings::default(),
            dedup,
            health: Health::default(),
            embedding_batches: EmbeddingBatches::default(),
            validation: Validation::default(),
            tenants: Vec::new(),
            keys: Vec::new(),
            models: schema::MOCK_MODELS.map(mock).into(),
        }
    }
}

impl Default for ServerConfig {
    fn default() -> Self {
        let options = ServerOptions::default();
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 8080)),
            allow_remote: false,
            workers: options.workers,
            max_connections: options.max_connections,
            max_body_bytes: 10 * 1024 * 1024,
            header_timeout: options.header_timeout,
            body_timeout: Duration::from_secs(30),
            write_timeout: options.write_timeout,
            drain_delay: Duration::ZERO,
            drain_timeout: options.drain_timeout,
            tenant_header: HeaderName::from_static("x-tenant-id"),
            admin_token: None,
        }
    }
}

impl ServerConfig {
    /// The part of it that the [server](crate::server::Server) acts on.
    pub fn options(&self) -> ServerOptions {
        ServerOptions {
            workers: self.workers,
            max_connections: self.max_connections,
            header_timeout: self.header_timeout,
            write_timeout: self.write_timeout,
            drain_timeout: self.drain_timeout,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            head: Duration::from_secs(120),
            first_frame: Duration::from_secs(60),
            idle: Duration::from_secs(60),
            total: Duration::from_secs(600),
            keep_idle: Duration::from_secs(4),
        }
    }
}

impl Default for RateLimits {
    fn default() -> Self {
        let (tenant, total) = (Rates::default(), Rates::default());
        Self { tenant, total, max_queue: 0, max_wait: Duration::from_secs(10), follow_upstreams: false }
    }
}

impl Default for CircuitBreaker {
    fn default() -> Self {
        Self {
            enabled: true,
            failure_threshold: Some(5),
            failure_percent: None,
            slow_percent: None,
            slow: Duration::from_secs(60),
            window: Duration::from_secs(60),
            min_calls: 20,
            client_gone: None,
            open: Duration::from_secs(30),
            max_open: Duration::from_secs(300),
            success_threshold: 1,
            probes: 1,
        }
    }
}

impl Default for FallbackSettings {
    fn default() -> Self {
        Self { usual: Fallbacks::default(), attempts: 4, within: Duration::from_secs(600) }
    }
}

impl Default for Dedup {
    fn default() -> Self {
        Self {
            enabled: false,
            ttl: Duration::ZERO,
            max_entries: 10_000,
            max_bytes: 64 << 20,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
        }
    }
}

impl Default for EmbeddingBatches {
    fn default() -> Self {
        Self {
            enabled: false,
            max_size: 32,
            linger: Duration::from_millis(5),
            max_concurrent: 8,
            max_inputs: 2_048,
            across_tenants: false,
        }
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(60),
            min_requests: 10,
            degraded_percent: Some(10),
            degraded_exit_percent: 5,
            unhealthy_percent: Some(50),
            unhealthy_exit_percent: 30,
            shed: false,
            probe_every: None,
            probe_timeout: Duration::from_secs(5),
            unhealthy_probes: 3,
            healthy_probes: 2,
            show_to: ShowTo::Auto,
        }
    }
}

impl Health {
    /// The settings of the components.
    pub fn settings(&self) -> bartizan_health::Settings {
        let mut passive = Passive::none().window(self.window).min_requests(self.min_requests);
        if let Some(percent) = self.degraded_percent {
            passive = passive.degraded(percent).degraded_exit(self.degraded_exit_percent.min(percent));
        }
        if let Some(percent) = self.unhealthy_percent {
            passive = passive.unhealthy(percent).unhealthy_exit(self.unhealthy_exit_percent.min(percent));
        }
        let active = Active::new()
            .unhealthy_after(self.unhealthy_probes)
            .healthy_after(self.healthy_probes)
            .timeout(self.probe_timeout);
        bartizan_health::Settings::new().passive(passive).active(active)
    }
}

impl CircuitBreaker {
    /// The settings of a breaker for calls with these time limits.
    pub fn settings(&self, limits: &Limits) -> Settings {
        let window = (self.failure_percent.is_some() || self.slow_percent.is_some()).then(|| {
            let mut window = Window::of_time(self.window).min_calls(self.min_calls);
            if let Some(percent) = self.failure_percent {
                window = window.failures(percent);
            }
            match self.slow_percent {
                Some(percent) => window.slow(self.slow, percent),
                None => window,
            }
        });
        let settings = match (self.failure_threshold, window) {
            (Some(failures), None) => Settings::consecutive(failures),
            (Some(failures), Some(window)) => Settings::consecutive(failures).or_window(window),
            (None, Some(window)) => Settings::window(window),
            // That is, never.
            (None, None) => Settings::consecutive(u32::MAX),
        };
        let settings = match self.client_gone {
            Some(time) => settings.count_cancelled_after(time),
            None => settings,
        };
        settings
            .open_for(self.open)
            .growing(2.0, self.max_open)
            // Several gateways in front of one upstream need not try it in the same moment.
            .jitter(0.1)
            .successes(self.success_threshold)
            .probes(self.probes)
            // A probe may take as long as any call, and whoever reads its answer slowly does not hold up the others.
            .probe_timeout(limits.total)
    }
}

impl Model {
    /// The key of its upstream, if it has one.
    pub fn api_key(&self) -> Option<SecretString> {
        match &self.upstream {
            Upstream::Mock => None,
            Upstream::OpenAi { api_key, .. } => api_key.as_ref().map(|key| key.secret.clone()),
        }
    }
}

/// Where the model goes, in words.
impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.upstream {
            Upstream::Mock => f.write_str("the embedded mock"),
            Upstream::OpenAi { base_url, api_key } => {
                write!(f, "{base_url} as {}", self.model)?;
                match api_key {
                    Some(key) => write!(f, ", with the key in {}", key.variable),
                    None => f.write_str(", without a key"),
                }
            }
        }
    }
}
