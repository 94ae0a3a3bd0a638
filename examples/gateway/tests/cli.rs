//! The binary, as a shell sees it.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
};

/// With nothing in its environment that a test has not put there.
fn gateway(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gateway"));
    command.args(arguments).env_clear();
    command
}

/// A file of that name, which no other test uses.
fn file(name: &str, text: impl AsRef<[u8]>) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, text).unwrap();
    path.into_os_string().into_string().unwrap()
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Runs to a failure with the exit code, and returns what it says.
fn fails(code: i32, command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let stderr = text(stderr);
    assert_eq!(status.code(), Some(code), "{stderr}");
    assert_eq!(text(stdout), "");
    stderr
}

/// Checks a file that ought to be wrong, and returns what is said about it, without its path.
fn check_fails(name: &str, contents: impl AsRef<[u8]>) -> String {
    let path = file(name, contents);
    fails(2, &mut gateway(&["--config", &path, "--check"])).replace(&path, "FILE")
}

#[test]
fn a_good_file_is_summed_up() {
    let path = file(
        "good.toml",
        "[server]\nlisten = \"127.0.0.1:9\"\nworkers = 2\n\
         [[model]]\nname = \"a\"\nupstream = \"mock\"\n\
         [[model]]\nname = \"longer\"\nupstream = \"openai\"\napi_key_env = \"A_KEY\"\n",
    );
    let output = gateway(&["--config", &path, "--check"]).env("A_KEY", "sk-secret").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let expected = format!(
        "{path} is valid\nlisten: 127.0.0.1:9, 2 workers\nmodels:\n  a       the embedded mock\n  \
         longer  https://api.openai.com/v1 as longer, with the key in A_KEY\n"
    );
    assert_eq!(text(output.stdout), expected);
    assert_eq!(text(output.stderr), "");
}

#[test]
fn the_sample_is_good_as_it_is() {
    let sample = gateway(&["--sample"]).output().unwrap();
    let path = file("sample.toml", sample.stdout);
    for arguments in [&["--check", "--config", &path][..], &["--check"]] {
        assert!(gateway(arguments).output().unwrap().status.success());
    }
}

#[test]
fn an_unknown_key() {
    let message =
        check_fails("unknown.toml", "[server]\nmax_body = 5\n[[model]]\nname = \"m\"\nupstream = \"mock\"\n");
    assert_eq!(
        message,
        "error: FILE:2: unknown key \"max_body\" in [server]; did you mean \"max_body_bytes\"?\n"
    );
}

#[test]
fn a_missing_key() {
    let message = check_fails("missing.toml", "[[model]]\nname = \"m\"\n");
    assert_eq!(message, "error: FILE:1: missing key \"upstream\" in [[model]]: \"openai\" or \"mock\"\n");
}

#[test]
fn a_wrong_type() {
    let message = check_fails("type.toml", "[[model]]\nname = 5\nupstream = \"mock\"\n");
    assert_eq!(message, "error: FILE:2: \"name\" in [[model]] must be a string, not 5\n");
}

#[test]
fn a_value_out_of_range() {
    let message =
        check_fails("range.toml", "[limits]\nidle_ms = 0\n[[model]]\nname = \"m\"\nupstream = \"mock\"\n");
    assert_eq!(
        message,
        "error: FILE:2: \"idle_ms\" in [limits] must be an integer from 1 to 86400000, not 0\n"
    );
}

#[test]
fn several_mistakes_are_told_together() {
    let message = check_fails("several.toml", "[[model]]\nname = \"\"\nupstream = \"mock\"\n[limit]\n");
    let expected = "error: FILE:2: \"name\" in [[model]] is empty\n\
                    error: FILE:4: unknown section \"limit\"; did you mean [limits]?\n";
    assert_eq!(message, expected);
}

#[test]
fn a_key_that_is_not_there() {
    let message =
        check_fails("key.toml", "[[model]]\nname = \"m\"\nupstream = \"openai\"\napi_key_env = \"NO_KEY\"\n");
    let expected = "error: FILE:4: \"api_key_env\" in [[model]] names the environment variable NO_KEY, which is not \
                    set; put the key there\n";
    assert_eq!(message, expected);
}

/// Both when it is only checked and when it is to be served: nothing listens with half of its rules.
#[test]
fn rules_that_cannot_be_used() {
    let schema =
        file("networked.json", r#"{"properties": {"user": {"$ref": "http://127.0.0.1:9/user.json"}}}"#);
    let rule = |name: &str, more: &str| format!("[[rule]]\nname = \"{name}\"\nside = \"request\"\n{more}\n");
    let rules = [
        rule("a", "schema = \"networked.json\""),
        rule("b", "terms_file = \"missing.txt\""),
        rule("c", "deny = '('"),
        rule("d", r"deny = '(\w{1000}){1000}'"),
        rule("e", "pii = [\"names\"]"),
    ];
    let path =
        file("rules.toml", format!("[[model]]\nname = \"m\"\nupstream = \"mock\"\n{}", rules.concat()));
    let missing = schema.replace("networked.json", "missing.txt");
    let told = fails(2, &mut gateway(&["--config", &path, "--check"]));
    assert_eq!(fails(2, &mut gateway(&["--config", &path])), told);
    let lines: Vec<_> = told.lines().collect();
    let [a, b, c, d, e] = lines[..] else { panic!("{told}") };
    assert!(a.starts_with(&format!(
        "error: {path}:7: \"schema\" in [[rule]] names {schema}, which cannot be used: "
    )));
    assert!(a.contains("/properties/user/$ref"), "{a}");
    assert!(b.starts_with(&format!(
        "error: {path}:11: \"terms_file\" in [[rule]] names {missing}, which cannot be read"
    )));
    assert!(
        c.starts_with(&format!("error: {path}:15: \"deny\" in [[rule]] is no regular expression")),
        "{c}"
    );
    assert!(
        d.starts_with(&format!("error: {path}:19: \"deny\" in [[rule]] is no regular expression")),
        "{d}"
    );
    assert!(e.starts_with(&format!("error: {path}:23: \"pii\" in [[rule]] must be a list of ")), "{e}");
}

#[test]
fn what_is_not_toml_or_not_text() {
    let message = check_fails("not-toml.toml", "[[model]]\nname = \n");
    assert!(message.starts_with("error: FILE:2: "), "{message}");
    assert_eq!(check_fails("not-text.toml", b"\n# \xff\n"), "error: FILE:2: is not UTF-8 text\n");
}

#[test]
fn a_file_that_is_not_there() {
    let message = fails(2, &mut gateway(&["--config", "/does/not/exist.toml"]));
    assert_eq!(message, "error: cannot read /does/not/exist.toml: No such file or directory (os error 2)\n");
}

#[test]
fn a_variable_or_an_option_that_is_wrong() {
    let message = fails(2, gateway(&["--check"]).env("GATEWAY_LIMITS_TOTAL", "5"));
    let expected =
        "error: GATEWAY_LIMITS_TOTAL: unknown environment variable; did you mean GATEWAY_LIMITS_TOTAL_MS?\n";
    assert_eq!(message, expected);
    let message = fails(2, &mut gateway(&["--check", "--listen", "localhost"]));
    let expected = "error: --listen: \"listen\" in [server] must be an IP address and a port up to 65535, such as \
                    \"127.0.0.1:8080\", not \"localhost\"\n";
    assert_eq!(message, expected);
    let message = fails(2, &mut gateway(&["--chekc"]));
    assert!(message.contains("--check"), "{message}");
    let message = fails(2, gateway(&["--listen", "127.0.0.1:0"]).env("RUST_LOG", "gateway=loud"));
    assert!(message.starts_with("error: RUST_LOG: "), "{message}");
}

#[test]
fn an_address_that_is_taken() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let message = fails(1, &mut gateway(&["--listen", &address]));
    assert!(message.starts_with(&format!("error: cannot listen on {address}: ")), "{message}");
}

/// A running gateway with one worker, the lines it prints, and its address.
#[cfg(unix)]
fn serve(more: &[&str]) -> (Child, impl Iterator<Item = String> + use<>, String) {
    start(gateway(&["--listen", "127.0.0.1:0"]).args(more))
}

/// The same of a command that runs one.
#[cfg(unix)]
fn start(command: &mut Command) -> (Child, impl Iterator<Item = String> + use<>, String) {
    let mut child = command
        .env("GATEWAY_SERVER_WORKERS", "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = lines.next().unwrap().strip_prefix("listening on http://").unwrap().to_owned();
    (child, lines, address)
}

#[cfg(unix)]
fn is_alive(address: &str) {
    let answer = exchange(address, "GET /livez HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[cfg(unix)]
fn exchange(address: &str, request: &str) -> String {
    let mut connection = TcpStream::connect(address).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

#[cfg(unix)]
fn signal(child: &Child, signal: &str) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn it_says_where_it_is_serves_and_drains_on_sigterm() {
    let (child, mut lines, address) = serve(&[]);
    let curl = lines.find(|line| line.starts_with("  curl ")).unwrap();
    assert!(curl.contains(&format!("http://{address}/v1/chat/completions")), "{curl}");
    assert!(curl.contains(r#""model":"mock-small""#), "{curl}");
    is_alive(&address);
    signal(&child, "-TERM");
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let logs = text(stderr);
    assert_eq!(status.code(), Some(0), "{logs}");
    assert!(logs.contains("drained"), "{logs}");
}

/// A load balancer has to see that it is to send no more, which it cannot where it is refused.
#[cfg(unix)]
#[test]
fn it_is_not_ready_for_a_while_before_it_drains() {
    let path = file(
        "delay.toml",
        "[server]\ndrain_delay_ms = 60_000\n[[model]]\nname = \"m\"\nupstream = \"mock\"\n",
    );
    let (mut child, _lines, address) = serve(&["--config", &path]);
    let ready = || exchange(&address, "GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    assert!(ready().starts_with("HTTP/1.1 200 "));
    let mut logs = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    signal(&child, "-TERM");
    assert!(logs.any(|line| line.contains("not ready any more")));
    assert!(ready().starts_with("HTTP/1.1 503 "));
    is_alive(&address);
    signal(&child, "-TERM");
    assert!(logs.any(|line| line.contains("a second signal")));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[cfg(unix)]
#[test]
fn a_second_signal_cuts() {
    let (mut child, _lines, address) = serve(&[]);
    // Half a head keeps a connection busy for the 30 seconds of the header timeout. It has been read once a later
    // connection of the same worker is answered.
    let mut half = TcpStream::connect(&address).unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nhost: te").unwrap();
    is_alive(&address);
    let mut logs = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    signal(&child, "-INT");
    assert!(logs.any(|line| line.contains("draining")));
    signal(&child, "-INT");
    assert!(logs.any(|line| line.contains("a second signal")));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// A line for every change, and none for every request that is refused because of it.
#[cfg(unix)]
#[test]
fn circuit_breakers_are_logged() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let path = file(
        "breaker.toml",
        format!(
            "[server]\nadmin_token = \"adm\"\n[circuit_breaker]\nfailure_threshold = 1\n\
             [[model]]\nname = \"m\"\nupstream = \"openai\"\nbase_url = \"http://{nobody}/v1\"\n"
        ),
    );
    let (mut child, _lines, address) = serve(&["--config", &path]);
    let mut logs = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut next = || logs.find(|line| line.contains(" gateway::circuit_breakers: ")).unwrap();
    let body = r#"{"model":"m","messages":[]}"#;
    let ask = || {
        let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
                    content-type: application/json\r\ncontent-length";
        exchange(&address, &format!("{head}: {}\r\n\r\n{body}", body.len()))
    };
    assert!(ask().starts_with("HTTP/1.1 502 "));
    let opened = next();
    let told = r#" model="m" from="closed" to="open" reason="too many calls failed or were slow" failures=1 calls=1"#;
    assert!(opened.contains(" INFO ") && opened.contains(told), "{opened}");
    assert!(ask().starts_with("HTTP/1.1 503 "));
    let command = "POST /admin/breakers/m/reset HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\
                   authorization: Bearer adm\r\n\r\n";
    assert!(exchange(&address, command).starts_with("HTTP/1.1 200 "));
    // Two threads tell these, in either order.
    let mut by_hand = [next(), next()];
    by_hand.sort_by_key(|line| line.contains("commanded"));
    assert!(by_hand[0].contains(r#"from="open" to="closed" reason="by hand""#), "{by_hand:?}");
    assert!(by_hand[1].contains(r#"commanded by hand model="m" command="reset""#), "{by_hand:?}");
    signal(&child, "-TERM");
    assert!(child.wait().unwrap().success());
    assert!(!logs.any(|line| line.contains("refused") || line.contains("circuit")));
}

/// That it has no file descriptor left is not its upstreams' fault, and it says so.
#[cfg(unix)]
#[test]
fn out_of_descriptors() {
    let upstream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let to = upstream.local_addr().unwrap();
    std::thread::spawn(move || {
        // A connection each, so that each call needs a descriptor of its own.
        for connection in upstream.incoming() {
            let mut connection = connection.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"[]}") {
                let mut some = [0; 4096];
                let read = connection.read(&mut some).unwrap();
                request.extend_from_slice(&some[..read]);
            }
            let answer = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{}";
            connection.write_all(answer.as_bytes()).unwrap();
        }
    });
    let path = file(
        "descriptors.toml",
        format!(
            "[circuit_breaker]\nfailure_threshold = 2\n[health]\nmin_requests = 1\n\
             [[model]]\nname = \"m\"\nupstream = \"openai\"\nbase_url = \"http://{to}/v1\"\n"
        ),
    );
    let script =
        format!("ulimit -n 40; exec {} --listen 127.0.0.1:0 --config {path}", env!("CARGO_BIN_EXE_gateway"));
    let (child, _lines, address) = start(Command::new("sh").args(["-c", &script]).env_clear());

    let ask = |connection: &mut TcpStream, head: &str, body: &str| {
        let request = format!(
            "{head} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        loop {
            let mut some = [0; 65536];
            let read = connection.read(&mut some).unwrap();
            assert_ne!(read, 0, "{answer}");
            answer += str::from_utf8(&some[..read]).unwrap();
            // Heads and bodies of JSON end like this, and these nowhere else.
            if answer.split_once("\r\n\r\n").is_some_and(|(_, body)| body.ends_with('}')) {
                return answer;
            }
        }
    };
    let chat = |connection: &mut TcpStream| {
        ask(connection, "POST /v1/chat/completions", r#"{"model":"m","messages":[]}"#)
    };
    let mut held = Vec::new();
    let refused = loop {
        let mut connection = TcpStream::connect(&address).unwrap();
        let answer = chat(&mut connection);
        held.push(connection);
        if !answer.starts_with("HTTP/1.1 200 ") {
            break answer;
        }
    };
    let told = format!("could not connect to {to}: Too many open files (os error 24)");
    for _ in 0..5 {
        let answer = chat(held.last_mut().unwrap());
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains(&told), "{answer}");
        assert!(answer.contains(r#""code":"out_of_descriptors""#), "{answer}");
    }
    assert!(refused.contains(&told), "{refused}");
    let health = ask(held.last_mut().unwrap(), "GET /health", "");
    assert!(health.starts_with("HTTP/1.1 200 ") && health.contains(r#""status":"healthy""#), "{health}");

    // When one is free again it goes on.
    held.remove(0);
    while !chat(held.last_mut().unwrap()).starts_with("HTTP/1.1 200 ") {}
    drop(held);
    signal(&child, "-TERM");
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    let logs = text(stderr);
    assert!(status.success() && logs.contains("WARN") && logs.contains(&told), "{logs}");
}

/// A configuration that is cut short where the disk is full must not look like one that was written.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    for arguments in [&["--sample"][..], &["--check"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = gateway(arguments)
            .stdout(full)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
            .wait_with_output()
            .unwrap();
        let said = text(output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said, "error: cannot write to stdout: No space left on device (os error 28)\n");
    }
}
