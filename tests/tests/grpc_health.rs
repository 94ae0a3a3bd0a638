//! The health layer as gRPC's own health client for Python finds it. The client is in a virtual environment that
//! `scripts/test` makes.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use bartizan_core::{Class, RetryAfter};
use bartizan_health::{Health, Passive, Settings};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::TcpListener,
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};
use tokio_stream::wrappers::TcpListenerStream;

struct Client {
    _child: Child,
    stdin: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(address: SocketAddr) -> Self {
        let client = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/health_client.py");
        let mut child = Command::new(python())
            .arg("-I")
            .args([client.as_os_str(), address.to_string().as_ref()])
            // Whatever proxies there are, they are not the test's.
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the interpreter starts");
        let (stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Self { _child: child, stdin, lines: BufReader::new(stdout).lines() }
    }

    async fn tell(&mut self, command: &str) {
        self.stdin.write_all(format!("{command}\n").as_bytes()).await.unwrap();
    }

    /// What it sees next.
    async fn next(&mut self) -> Value {
        let line = timeout(Duration::from_secs(30), self.lines.next_line()).await;
        let line = line.expect("the client to say something").unwrap().expect("the client has not ended");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("the client said {line:?}"))
    }

    async fn check(&mut self, name: &str) -> Value {
        self.tell(&format!("check {name}")).await;
        let mut seen = self.next().await;
        assert_eq!(seen["check"], name, "{seen}");
        seen.as_object_mut().unwrap().retain(|key, _| key != "check");
        seen
    }
}

fn python() -> PathBuf {
    let python = std::env::var_os("BARTIZAN_PYTHON").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("target/python/bin/python3"),
        PathBuf::from,
    );
    assert!(
        python.exists(),
        "there is no {}: run scripts/test, which makes it and puts the client there",
        python.display()
    );
    python
}

#[tokio::test]
async fn check_and_watch() {
    let passive = Passive::new().window(Duration::from_secs(2)).min_requests(1).unhealthy(50);
    let health = Health::with(Settings::new().passive(passive));
    let it = health.component("weather.v1.Weather");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut client = Client::start(listener.local_addr().unwrap());
    let server = tonic::transport::Server::builder().add_service(health.grpc());
    let serving = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));

    assert_eq!(client.check("-").await, json!({"status": "SERVING"}));
    assert_eq!(client.check("weather.v1.Weather").await, json!({"status": "SERVING"}));
    assert_eq!(client.check("nobody").await, json!({"error": "NOT_FOUND"}));

    let watched = |name: &str, status: &str| json!({"watch": name, "status": status});
    client.tell("watch weather.v1.Weather").await;
    assert_eq!(client.next().await, watched("weather.v1.Weather", "SERVING"));
    client.tell("watch later").await;
    assert_eq!(client.next().await, watched("later", "SERVICE_UNKNOWN"));

    it.record(Class::Failure(RetryAfter::Unknown), Duration::ZERO, None);
    assert_eq!(client.next().await, watched("weather.v1.Weather", "NOT_SERVING"));
    // Time alone brings it back, and the other stream is still open.
    assert_eq!(client.next().await, watched("weather.v1.Weather", "SERVING"));
    health.component("later");
    assert_eq!(client.next().await, watched("later", "SERVING"));

    health.drain();
    let mut both = [client.next().await, client.next().await];
    both.sort_by_key(|seen| seen["watch"].to_string());
    assert_eq!(both, ["later", "weather.v1.Weather"].map(|name| watched(name, "NOT_SERVING")));
    assert_eq!(client.check("-").await, json!({"status": "NOT_SERVING"}));
    serving.abort();
}
