//! The gateway, started inside the test, with upstreams of the test's own.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use bartizan_provider::mock::Mock;
use gateway::{
    app::App,
    config::{Config, Environment},
    server::{Drained, Server},
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};

/// What the gateway shows to upstreams, and to nobody else.
pub(crate) const UPSTREAM_KEY: &str = "sk-upstream-4Vd93kQzT7";

/// How soon an upstream must learn that its client has gone.
pub(crate) const SOON: Duration = Duration::from_millis(100);

/// More than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running gateway. Dropped in the middle of a test that fails, it is cut off by the end of the runtime.
pub(crate) struct Gateway {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<io::Result<Drained>>,
}

impl Gateway {
    /// `server` has further lines of `[server]`; for the models there is [`model`].
    pub(crate) async fn start(server: &str, models: &[String]) -> Self {
        let workers = if server.contains("workers") { "" } else { "workers = 2\n" };
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n{workers}drain_timeout_ms = 5000\n{server}\n{}",
            models.concat()
        );
        let environment = Environment::from_iter([("UPSTREAM_KEY", UPSTREAM_KEY)]);
        let config = Config::from_toml("test.toml", &text, &environment)
            .unwrap_or_else(|error| panic!("the test's configuration is wrong: {error}\n{text}"));
        let server = Server::bind(config.server.listen, config.server.options()).await.unwrap();
        let address = server.local_addr().unwrap();
        // No model asks for the embedded mock, so there is none to run.
        let (app, _) = App::new(config).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(move |_worker| app.service(), stopped));
        Self { address, stop, running }
    }

    /// Stops it. Whatever the test did, it must have left no request behind.
    pub(crate) async fn stop(self) {
        self.stop.send(()).expect("the gateway stopped by itself");
        let drained = within("the gateway to stop", self.running).await.unwrap().unwrap();
        assert_eq!(drained.cut, 0, "a request was still being worked on when all clients had gone");
    }
}

/// A `[[model]]` that is asked with [`UPSTREAM_KEY`]; `more` has further lines of it.
pub(crate) fn model(name: &str, upstream: SocketAddr, more: &str) -> String {
    format!(
        "[[model]]\nname = \"{name}\"\nupstream = \"openai\"\nbase_url = \"http://{upstream}/v1\"\n\
         api_key_env = \"UPSTREAM_KEY\"\n{more}\n"
    )
}

/// A mock that is served on loopback, for as long as the test runs.
pub(crate) async fn mock() -> (Mock, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mock = Mock::new();
    tokio::spawn(mock.serve(listener));
    (mock, address)
}

/// Waits for what is bound to happen.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} in vain for {what}"))
}

/// Waits for what has to happen [`SOON`].
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(SOON, future).await.unwrap_or_else(|_| panic!("after {SOON:?} still no sign of {what}"))
}
