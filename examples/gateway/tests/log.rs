//! What the log says of calls that failed.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use axum::{Router, body::Body};
use bartizan_provider::mock::{Mock, Script};
use gateway::{
    app::App,
    config::{Config, Environment},
};
use http::Request;
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tower::ServiceExt;
use tracing::subscriber::DefaultGuard;

/// What was logged on this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn listen(&self) -> DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).without_time().with_target(false);
        tracing::subscriber::set_default(subscriber.with_writer(move || log.clone()).finish())
    }

    /// The lines since the last time.
    fn lines(&self) -> Vec<String> {
        let bytes = std::mem::take(&mut *self.0.lock().unwrap());
        String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn mock() -> (Mock, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (mock, address) = (Mock::new(), listener.local_addr().unwrap());
    tokio::spawn(mock.serve(listener));
    (mock, address)
}

fn model(name: &str, upstream: SocketAddr, more: &str) -> String {
    format!(
        "[[model]]\nname = \"{name}\"\nupstream = \"openai\"\nbase_url = \"http://{upstream}/v1\"\n\
         api_key_env = \"UPSTREAM_KEY\"\n{more}\n"
    )
}

async fn gateway(text: &str) -> Router {
    let environment = Environment::from_iter([("UPSTREAM_KEY", "sk-upstream"), ("CLIENT_KEY", "sk-client")]);
    let config = Config::from_toml("test.toml", text, &environment).unwrap_or_else(|error| panic!("{error}"));
    App::new(config).await.unwrap().0.service()
}

async fn ask(gateway: &Router, model: &str, more: &str) {
    let body = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"private"}}]{more}}}"#);
    let request = Request::post("/v1/chat/completions")
        .header("authorization", "Bearer sk-client")
        .header("content-type", "application/json")
        .body(Body::from(body));
    let response = gateway.clone().oneshot(request.unwrap()).await.unwrap();
    _ = response.into_body().collect().await;
}

#[track_caller]
fn assert_lines(log: &Log, wanted: &[&str]) {
    let lines = log.lines();
    assert_eq!(lines.len(), wanted.len(), "{lines:#?}");
    for (line, wanted) in lines.iter().zip(wanted) {
        for part in wanted.split('|') {
            assert!(line.contains(part), "no {part:?} in {line:?}");
        }
        for secret in ["sk-", "private"] {
            assert!(!line.contains(secret), "{line}");
        }
    }
}

#[tokio::test]
async fn each_try_of_each_model_has_its_line() {
    // Nobody listens at a port that was free a moment ago.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (mock, upstream) = mock().await;
    let models = [
        model("dead", nobody, "retries = 1\nfallbacks = [\"ill\", \"well\"]\nmodel = \"dead-2\""),
        model("ill", upstream, ""),
        model("well", upstream, ""),
        "[[key]]\ntenant = \"acme\"\nkey_env = \"CLIENT_KEY\"\n".to_owned(),
    ];
    let gateway = gateway(&models.concat()).await;
    let said = r#"{"error":{"message":"no\nroom","type":"server_error","param":null,"code":null}}"#;
    mock.script_for("ill", Script::new().status(503).header("content-type", "application/json").body(said));
    let log = Log::default();
    let _guard = log.listen();
    ask(&gateway, "dead", "").await;
    let dead = format!(
        "WARN a call to an upstream failed model=\"dead\" upstream=\"http://{nobody}/v1\" tenant=\"acme\" error=cannot \
         connect: could not connect to {nobody}: |onnection refused|tcp connect error"
    );
    let ill = format!(
        "WARN a call to an upstream failed model=\"ill\" upstream=\"http://{upstream}/v1\" tenant=\"acme\" status=503 \
         error=upstream overloaded: no room"
    );
    assert_lines(&log, &[&dead, &dead, &ill, "INFO a model answered for another model=\"well\""]);

    // If nobody answers, each still has a line, and no other has.
    mock.script_for("well", Script::new().status(500).header("content-type", "application/json").body(said));
    ask(&gateway, "dead", "").await;
    let well = ill.replace("\"ill\"", "\"well\"").replace("503", "500").replace("overloaded", "failed");
    assert_lines(&log, &[&dead, &dead, &ill, &well]);

    // What goes well has none, nor what is refused before anybody is asked.
    mock.script_for("well", Script::new());
    ask(&gateway, "well", "").await;
    ask(&gateway, "nobody", "").await;
    assert_lines(&log, &[]);
}

#[tokio::test]
async fn an_answer_that_breaks_has_a_line() {
    let (mock, upstream) = mock().await;
    let models = [model("chat", upstream, ""), model("watched", upstream, "retries = 1")];
    let gateway = gateway(&models.concat()).await;
    let log = Log::default();
    let _guard = log.listen();
    mock.script_for("chat", Script::new().words(3).fail_after(1));
    ask(&gateway, "chat", r#","stream":true"#).await;
    ask(&gateway, "chat", "").await;
    assert_lines(&log, &["model=\"chat\"|was cut off"; 2]);

    // Before it has said anything it is a call that has failed, and is made again.
    mock.script_for("watched", Script::new().words(3).fail_after(0));
    ask(&gateway, "watched", r#","stream":true"#).await;
    assert_lines(&log, &["model=\"watched\"|before it had begun", "model=\"watched\"|before it had begun"]);
}

#[tokio::test]
async fn a_call_for_which_there_is_no_more_time_has_a_line() {
    let (mock, upstream) = mock().await;
    let models = [
        model("slow", upstream, "fallbacks = [\"other\"]"),
        model("other", upstream, ""),
        "[fallback]\nwithin_ms = 20\n".to_owned(),
    ];
    let gateway = gateway(&models.concat()).await;
    mock.script(Script::new().hang());
    let log = Log::default();
    let _guard = log.listen();
    ask(&gateway, "slow", "").await;
    assert_lines(&log, &["model=\"slow\"|error=given up, for the request had no more time"]);
}
