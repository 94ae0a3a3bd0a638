//! The gateway's program: command line, logs, signals.

#![forbid(unsafe_code)]

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
};

use clap::Parser;
use gateway::{
    app::App,
    config::{Config, Environment, sample},
    server::Server,
};
use tokio::sync::oneshot;
use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// An LLM gateway that speaks OpenAI's API.
///
/// Without a configuration file it serves an embedded mock on 127.0.0.1:8080.
#[derive(Parser)]
#[command(version, after_help = HELP)]
struct Arguments {
    /// Read this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// Check the configuration, print what it says, and exit
    #[arg(long)]
    check: bool,

    /// Listen on this IP address and port, whatever the configuration says
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// Print a commented configuration file with every key and its default, and exit
    #[arg(long, exclusive = true)]
    sample: bool,
}

const HELP: &str = "\
Environment:
  GATEWAY_SERVER_<KEY>, GATEWAY_LIMITS_<KEY>,
  GATEWAY_RATE_LIMITS_<KEY>,
  GATEWAY_TOTAL_RATE_LIMITS_<KEY>,
  GATEWAY_CIRCUIT_BREAKER_<KEY>,
  GATEWAY_FALLBACK_<KEY>,
  GATEWAY_DEDUP_<KEY>,
  GATEWAY_EMBEDDING_BATCHES_<KEY>,
  GATEWAY_VALIDATION_<KEY>,
  GATEWAY_HEALTH_<KEY>             override the keys of [server], [limits] and so on,
                                   as GATEWAY_SERVER_WORKERS=2
  RUST_LOG                         which logs to write to stderr, as debug or
                                   warn,gateway=debug (default: info)

Signals:
  SIGINT, SIGTERM  stop accepting and finish what is in flight; a second one cuts it

Exit status:
  0 if all went well, 1 if the server could not run or nothing could be printed, 2 if the configuration or the command line is wrong";

/// The configuration or the command line is wrong, as clap says it too.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.sample {
        return end(print(&sample()));
    }
    let environment = Environment::of_process();
    let config = match Config::load(arguments.config.as_deref(), &environment, arguments.listen.as_deref()) {
        Ok(config) => config,
        Err(error) => {
            for problem in error.problems() {
                eprintln!("error: {problem}");
            }
            return ExitCode::from(WRONG);
        }
    };
    if arguments.check {
        let source =
            arguments.config.map_or("the built-in configuration".into(), |path| path.display().to_string());
        let server = &config.server;
        return end(print(&format!(
            "{source} is valid\nlisten: {}, {} workers\n{}",
            server.listen,
            server.workers,
            models(&config)
        )));
    }
    if let Err(error) = start_logs() {
        eprintln!("error: RUST_LOG: {error}");
        return ExitCode::from(WRONG);
    }
    end(run(config))
}

fn end(result: io::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start_logs() -> Result<(), Box<dyn std::error::Error>> {
    // An empty variable is as good as none.
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(std::env::var("RUST_LOG").unwrap_or_default())?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
    Ok(())
}

/// Serves until a signal. This thread only accepts; the workers have their own.
#[tokio::main(flavor = "current_thread")]
async fn run(config: Config) -> io::Result<()> {
    let listen = config.server.listen;
    let cannot_listen = |error| io::Error::other(format!("cannot listen on {listen}: {error}"));
    let server = Server::bind(listen, config.server.options()).await.map_err(cannot_listen)?;
    let mut signal = signals()?;
    // One future counts them, for two signals in quick succession look like one to whoever has not seen the first.
    let (stop, stopped) = oneshot::channel();
    let stopped_twice = async move {
        signal().await;
        let _ = stop.send(());
        signal().await;
    };
    let address = server.local_addr()?;
    let (app, beside) = App::new(config).await?;
    if let Err(error) = print(&greeting(app.config(), address)) {
        // Whom that served is not worth less for it.
        tracing::warn!(%error, "nobody was told where this listens");
    }

    let (draining, delay) = (app.clone(), app.config().server.drain_delay);
    let stopped = async move {
        _ = stopped.await;
        draining.drain();
        if !delay.is_zero() {
            tracing::info!(?delay, "not ready any more, and refusing connections after a delay");
            tokio::time::sleep(delay).await;
        }
    };
    tokio::select! {
        drained = server.run(move |_worker| app.service(), stopped) => drained.map(|_| ()),
        () = beside => Err(io::Error::other("the embedded mock stopped")),
        () = stopped_twice => {
            tracing::warn!("a second signal: cutting what is in flight");
            Ok(())
        }
    }
}

/// A function that waits for the next signal to stop.
#[cfg(unix)]
fn signals() -> io::Result<impl AsyncFnMut()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// A function that waits for the next signal to stop.
#[cfg(not(unix))]
fn signals() -> io::Result<impl AsyncFnMut()> {
    Ok(async || {
        let _ = tokio::signal::ctrl_c().await;
    })
}

/// What a newcomer needs: where it is, what it has, what to type.
fn greeting(config: &Config, address: SocketAddr) -> String {
    let mut greeting = format!("listening on http://{address}\n{}", models(config));
    // Nothing says what a model can do but, by custom, its name.
    if let Some(model) = config.models.iter().find(|model| !model.name.contains("embed")) {
        let body = serde_json::json!({
            "model": model.name,
            "messages": [{"role": "user", "content": "Hello"}],
        });
        let quoted = body.to_string().replace('\'', r"'\''");
        let key = if config.keys.is_empty() { "" } else { r#" -H "authorization: Bearer $YOUR_KEY""# };
        greeting += &format!(
            "try:\n  curl http://{}/v1/chat/completions -H 'content-type: application/json'{key} -d '{quoted}'\n",
            reachable(address)
        );
    }
    greeting
}

fn models(config: &Config) -> String {
    let width = config.models.iter().map(|model| model.name.chars().count()).max().unwrap_or(0);
    let lines = config.models.iter().map(|model| format!("  {:width$}  {model}\n", model.name));
    "models:\n".to_owned() + &lines.collect::<String>()
}

/// "Any address" is one to listen on, not one to connect to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

/// Unlike `print!`, does not panic: that nobody reads any more is no fault.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(io::Error::other(format!("cannot write to stdout: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use gateway::config::ClientKey;

    use super::*;

    #[test]
    fn the_greeting_can_be_pasted() {
        let mut config = Config::default();
        config.models.reverse();
        config.models[1].name = "it's".to_owned();
        let greeting = greeting(&config, "0.0.0.0:8080".parse().unwrap());
        assert!(greeting.starts_with("listening on http://0.0.0.0:8080\n"), "{greeting}");
        assert!(
            greeting.contains("\n  mock-embed  the embedded mock\n  it's        the embedded mock\n"),
            "{greeting}"
        );
        let curl = greeting.lines().last().unwrap();
        assert!(curl.starts_with("  curl http://127.0.0.1:8080/v1/chat/completions "), "{curl}");
        assert!(curl.ends_with(r#""model":"it'\''s"}'"#), "{curl}");
        assert!(!greeting.contains("authorization"), "{greeting}");
        config.keys.push(ClientKey { tenant: "a".to_owned(), secret: "sk-a".into() });
        let greeting = super::greeting(&config, "0.0.0.0:8080".parse().unwrap());
        assert!(greeting.contains(r#" -H "authorization: Bearer $YOUR_KEY" -d "#), "{greeting}");
    }

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
