//! What a configuration file may say, and what is said about one that may not.

use std::time::Duration;

use bartizan_rate_limit::Quota;
use bartizan_validate::{Level, Severity};
use gateway::{
    app::App,
    config::{
        Action, Check, CircuitBreaker, Config, Dedup, EmbeddingBatches, Environment, FallbackSettings,
        Fallbacks, Guard, Health, ShowTo, Side, Upstream, sample,
    },
};
use secrecy::ExposeSecret;

const MOCK: &str = "[[model]]\nname = \"m\"\nupstream = \"mock\"\n";

fn environment(variables: &[(&str, &str)]) -> Environment {
    variables.iter().copied().collect()
}

fn load(text: &str) -> Config {
    Config::from_toml("g.toml", text, &Environment::default()).unwrap()
}

/// All that is wrong with the text, a line each.
fn wrong_with(text: &str, variables: &[(&str, &str)]) -> String {
    Config::from_toml("g.toml", text, &environment(variables)).unwrap_err().to_string()
}

/// All that is wrong with a file of a good model and this text after it, which begins on line 4.
fn wrong(text: &str) -> String {
    wrong_with(&format!("{MOCK}{text}"), &[])
}

fn openai(rest: &str) -> String {
    format!("[[model]]\nname = \"m\"\nupstream = \"openai\"\n{rest}\n")
}

#[test]
fn the_sample_file_is_up_to_date() {
    let file = include_str!("../gateway.toml");
    assert!(file == sample(), "run `cargo run -p gateway -- --sample > examples/gateway/gateway.toml`");
}

/// Whoever adds a path for operators says so where they look for it.
#[test]
fn the_sample_names_what_the_admin_token_opens() {
    let routes = [include_str!("../src/app/admin.rs"), include_str!("../src/app/status.rs")].concat();
    let sample = sample();
    let told =
        sample.split("Bearer` to ").nth(1).unwrap().split("Without").next().unwrap().replace("\n# ", " ");
    let mut named = 0;
    for path in routes.split(".route(\"").skip(1).filter_map(|route| route.split('"').next()) {
        if path.starts_with("/admin/") {
            let path = path.replace("{*which}", "MODEL/reset");
            assert!(told.split([' ', ',', '.']).any(|word| word == path), "{path} is not in {told}");
            named += 1;
        }
    }
    assert_eq!(named, told.matches("/admin/").count(), "{told}");
}

#[test]
fn the_sample_shows_the_defaults() {
    let defaults = format!("{:?}", Config::default());
    let sample = sample();
    assert_eq!(format!("{:?}", load(&sample)), defaults);

    // A key has no space after the `#`, prose has.
    let mut uncommented = 0;
    let lines = sample.lines().map(|line| match line.strip_prefix('#') {
        Some(key) if !key.is_empty() && !key.starts_with(' ') => {
            uncommented += 1;
            format!("{key}\n")
        }
        _ => format!("{line}\n"),
    });
    let text: String = lines.collect();
    assert_eq!(uncommented, 82);
    assert_eq!(format!("{:?}", load(&text)), defaults);
}

#[test]
fn the_examples_in_the_sample_are_right() {
    // Those stand two spaces further in than the prose, and each begins with a table.
    let sample = sample();
    let mut example = String::new();
    let mut inside = false;
    for line in sample.lines() {
        match line.strip_prefix("#   ") {
            Some(line) => {
                inside |= line.starts_with("[[");
                if inside {
                    example += &format!("{line}\n");
                }
            }
            None => inside &= line == "#",
        }
    }
    let variables = environment(&[("OPENAI_API_KEY", "sk-1"), ("ACME_KEY", "sk-acme")]);
    let config = Config::from_toml("sample", &example, &variables).unwrap();
    assert_eq!((config.models.len(), config.tenants.len(), config.keys.len()), (2, 1, 1));
    let Upstream::OpenAi { base_url, .. } = &config.models[0].upstream else { panic!() };
    assert!(sample.contains(&format!("Default: \"{base_url}\"")));
}

#[test]
fn a_file_is_read() {
    let text = r#"
        limits = { idle_ms = 0x3E8, total_ms = 20_000 }

        [server]
        listen = "[::1]:0"
        workers = 3
        max_connections = 5
        max_body_bytes = 1024
        header_timeout_ms = 1
        body_timeout_ms = 2
        write_timeout_ms = 4
        drain_delay_ms = 5
        drain_timeout_ms = 3
        tenant_header = "X-Org"

        [[model]]
        name = "fast"
        upstream = "openai"
        base_url = "http://127.0.0.1:11434/v1/"
        api_key_env = "LOCAL_KEY"
        model = "qwen3:8b"
        head_ms = 7_000
        total_ms = 8_000

        [[model]]
        name = "bare"
        upstream = "openai"
    "#;
    let config = Config::from_toml("g.toml", text, &environment(&[("LOCAL_KEY", "sk-secret")])).unwrap();
    let server = &config.server;
    assert_eq!(server.listen.to_string(), "[::1]:0");
    assert_eq!((server.workers.get(), server.max_connections.get(), server.max_body_bytes), (3, 5, 1024));
    assert_eq!(server.tenant_header, "x-org");
    let options = server.options();
    assert_eq!(
        [
            options.header_timeout,
            server.body_timeout,
            options.drain_timeout,
            options.write_timeout,
            server.drain_delay,
        ]
        .map(|timeout| timeout.as_millis()),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(config.limits.idle, Duration::from_secs(1));

    let [fast, bare] = &config.models[..] else { panic!() };
    assert_eq!((fast.name.as_str(), fast.model.as_str()), ("fast", "qwen3:8b"));
    assert_eq!(fast.limits.idle, Duration::from_secs(1));
    assert_eq!(fast.limits.total, Duration::from_secs(8));
    let Upstream::OpenAi { base_url, api_key: Some(key) } = &fast.upstream else { panic!() };
    assert_eq!(base_url.to_string(), "http://127.0.0.1:11434/v1");
    assert_eq!(key.secret.expose_secret(), "sk-secret");
    assert_eq!(fast.to_string(), "http://127.0.0.1:11434/v1 as qwen3:8b, with the key in LOCAL_KEY");

    assert_eq!(bare.model, "bare");
    assert_eq!(bare.limits, config.limits);
    assert_eq!(bare.to_string(), "https://api.openai.com/v1 as bare, without a key");
}

#[test]
fn secrets_are_not_shown() {
    let environment = environment(&[("KEY", "sk-secret")]);
    let config = Config::from_toml("g.toml", &openai("api_key_env = \"KEY\""), &environment).unwrap();
    assert!(!format!("{config:?} {environment:?} {}", config.models[0]).contains("sk-secret"));
}

#[test]
fn the_environment_overrides_the_file() {
    let text = format!("[server]\nworkers = 2\n[limits]\nidle_ms = 10\n{MOCK}head_ms = 30\n");
    let variables = environment(&[
        ("GATEWAY_SERVER_WORKERS", "4"),
        ("GATEWAY_SERVER_LISTEN", "0.0.0.0:1"),
        ("GATEWAY_SERVER_ALLOW_REMOTE", "true"),
        ("GATEWAY_LIMITS_IDLE_MS", "2_000"),
        ("GATEWAY_LIMITS_HEAD_MS", "3_000"),
        ("OTHER", "x"),
    ]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    assert_eq!(config.server.workers.get(), 4);
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:1");
    assert_eq!(config.limits.idle.as_millis(), 2_000);
    assert_eq!(config.models[0].limits.idle.as_millis(), 2_000);
    assert_eq!(config.models[0].limits.head.as_millis(), 30, "a model's own limit stays");

    let config = Config::load(None, &variables, Some("127.0.0.1:2")).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:2");
    assert_eq!(config.models[0].limits.idle.as_millis(), 2_000);
    assert_eq!(config.models.len(), 3);
}

#[test]
fn every_mistake_is_told_in_the_order_of_the_file() {
    let text = r#"
[server]
listen = "127.0.0.1:80800"
max_body = 5
workers = 0

[limits]
idle_ms = "1s"

[[model]]
upstream = "mock"
base_url = "http://h"

[[model]]
name = ""
upstream = "opnai"
"#;
    let expected = r#"
g.toml:3: "listen" in [server] must be an IP address and a port up to 65535, such as "127.0.0.1:8080", not "127.0.0.1:80800"
g.toml:4: unknown key "max_body" in [server]; did you mean "max_body_bytes"?
g.toml:5: "workers" in [server] must be "auto" or an integer from 1 to 1024, not 0
g.toml:8: "idle_ms" in [limits] must be an integer from 1 to 86400000, not "1s"
g.toml:10: missing key "name" in [[model]]: what clients ask for
g.toml:12: "base_url" in [[model]] has no effect with upstream = "mock"; remove it, or set upstream = "openai"
g.toml:15: "name" in [[model]] is empty
g.toml:16: "upstream" in [[model]] must be "openai" or "mock", not "opnai"; did you mean "openai"?
GATEWAY_SERVER_LISTN: unknown environment variable; did you mean GATEWAY_SERVER_LISTEN?
GATEWAY_SERVER_WORKERS: "workers" in [server] must be "auto" or an integer from 1 to 1024, not "many""#;
    let variables = [("GATEWAY_SERVER_LISTN", "x"), ("GATEWAY_SERVER_WORKERS", "many")];
    assert_eq!(wrong_with(text, &variables), expected.trim_start());
}

#[test]
fn unknown_keys_come_with_advice() {
    let cases = [
        ("[servr]", r#"g.toml:4: unknown section "servr"; did you mean [server]?"#),
        ("[[models]]", r#"g.toml:4: unknown section "models"; did you mean [[model]]?"#),
        (
            "[zzz]",
            r#"g.toml:4: unknown section "zzz"; there are [server], [limits], [rate_limits], [total_rate_limits], [circuit_breaker], [fallback], [dedup], [health], [embedding_batches], [validation], [[rule]], [[tenant]], [[key]], [[model]]"#,
        ),
        (
            "[server]\nconnect_ms = 5",
            r#"g.toml:5: unknown key "connect_ms" in [server]; it belongs in [limits]"#,
        ),
        (
            "[limits]\nzzz = 5",
            r#"g.toml:5: unknown key "zzz" in [limits]; its keys are connect_ms, head_ms, first_frame_ms, idle_ms, total_ms, keep_idle_ms"#,
        ),
        ("total_msec = 5", r#"g.toml:4: unknown key "total_msec" in [[model]]; did you mean "total_ms"?"#),
        (
            "api_key = \"sk-1\"",
            r#"g.toml:4: unknown key "api_key" in [[model]]; did you mean "api_key_env"?"#,
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(wrong(text), expected);
    }
    let top = format!("listen = \"127.0.0.1:1\"\n{MOCK}");
    assert_eq!(wrong_with(&top, &[]), r#"g.toml:1: unknown key "listen"; it belongs in [server]"#);
}

#[test]
fn sections_have_their_shape() {
    assert_eq!(wrong("[[server]]"), r#"g.toml:4: "server" must be written as [server]"#);
    let expected = r#"g.toml:1: "model" must be written as [[model]]"#;
    assert_eq!(wrong_with("[model]\nname = \"m\"", &[]), expected);
    assert_eq!(wrong_with("model = [\"m\"]", &[]), expected);
    for nothing in ["", "model = []", "[server]"] {
        assert!(wrong_with(nothing, &[]).starts_with("g.toml:1: there is no [[model]]"));
    }
}

#[test]
fn values_have_their_type_and_range() {
    let must = |key: &str, what: &str| format!("g.toml:5: \"{key}\" in [server] must be {what}");
    let address = "an IP address and a port; port 0 takes any free one";
    let cases = [
        ("allow_remote = 1", must("allow_remote", "true or false, not 1")),
        ("allow_remote = \"true\"", must("allow_remote", "true or false, not \"true\"")),
        ("listen = 8080", must("listen", &format!("{address}, not 8080"))),
        ("workers = \"two\"", must("workers", "\"auto\" or an integer from 1 to 1024, not \"two\"")),
        ("workers = -1", must("workers", "\"auto\" or an integer from 1 to 1024, not -1")),
        ("workers = 2.5", must("workers", "\"auto\" or an integer from 1 to 1024, not 2.5")),
        ("max_connections = 0", must("max_connections", "an integer from 1 to 1000000, not 0")),
        ("max_body_bytes = [1]", must("max_body_bytes", "an integer from 1 to 1073741824, not an array")),
        (
            "drain_timeout_ms = 99999999999999999999",
            must("drain_timeout_ms", "an integer from 1 to 86400000, not 99999999999999999999"),
        ),
        ("header_timeout_ms = 0", must("header_timeout_ms", "an integer from 1 to 86400000, not 0")),
        (
            "body_timeout_ms = 1979-05-27",
            must("body_timeout_ms", "an integer from 1 to 86400000, not a date"),
        ),
        ("tenant_header = \"a b\"", must("tenant_header", "a header's name")),
    ];
    for (text, expected) in cases {
        assert_eq!(wrong(&format!("[server]\n{text}")), expected);
    }
    assert!(wrong("[server]\ntenant_header = \"Authorization\"").contains("holds a secret"));
}

#[test]
fn remote_addresses_have_to_be_allowed() {
    for address in ["0.0.0.0:80", "[::]:80", "192.168.0.1:80", "[::ffff:10.0.0.1]:80"] {
        let message = wrong(&format!("[server]\nlisten = \"{address}\""));
        assert!(
            message.starts_with(&format!("g.toml:5: \"listen\" in [server] is {address}, ")),
            "{message}"
        );
        assert!(message.contains("allow_remote = true"));
        load(&format!("{MOCK}[server]\nlisten = \"{address}\"\nallow_remote = true"));
    }
    for address in ["127.0.0.2:80", "[::1]:80", "[::ffff:127.0.0.1]:80"] {
        load(&format!("{MOCK}[server]\nlisten = \"{address}\""));
    }
    let message = wrong_with(MOCK, &[("GATEWAY_SERVER_LISTEN", "0.0.0.0:80")]);
    assert!(
        message.starts_with("GATEWAY_SERVER_LISTEN: \"listen\" in [server] is 0.0.0.0:80, "),
        "{message}"
    );
    let error = Config::load(None, &Environment::default(), Some("0.0.0.0:80")).unwrap_err();
    assert!(error.to_string().starts_with("--listen: \"listen\" in [server] is 0.0.0.0:80, "), "{error}");
}

#[test]
fn limits_above_the_total_are_never_reached() {
    let message = |line: u8, section: &str, total: u64| {
        format!(
            "g.toml:{line}: \"head_ms\" in {section} is 700000, which is never reached: \"total_ms\" is {total}; \
             lower the one or raise the other"
        )
    };
    assert_eq!(wrong("[limits]\nhead_ms = 700_000"), message(5, "[limits]", 600_000));
    assert_eq!(wrong("head_ms = 700_000"), message(4, "[[model]]", 600_000));
    assert_eq!(wrong("head_ms = 700_000\ntotal_ms = 5"), message(4, "[[model]]", 5));
    // A lower total is enough by itself.
    load(&format!("{MOCK}total_ms = 5\n[limits]\nhead_ms = 10"));
    // One mistake, one message.
    assert_eq!(wrong("head_ms = 700_000\ntotal_ms = 0").lines().count(), 1);
}

#[test]
fn base_urls_are_checked_and_not_repeated() {
    let cases = [
        ("", "is not a URL"),
        ("api.openai.com/v1", "is not a URL"),
        ("api.openai.com", "must begin with http:// or https://"),
        ("/v1", "must begin with http:// or https://"),
        ("ftp://secret.example/v1", "must begin with http:// or https://"),
        ("http://", "is not a URL"),
        ("http://:80/v1", "has no host"),
        ("https://secret.example/v1?key=secret", "must not have a query or a fragment"),
        ("https://secret.example/v1#secret", "must not have a query or a fragment"),
        ("https://user:secret@host/v1", "must not hold a user or a password"),
        ("https://secret.example:99999/v1", "has a port that is not one"),
        ("https://secret exam.ple/v1", "is not a URL"),
    ];
    for (url, expected) in cases {
        let message = wrong_with(&openai(&format!("base_url = \"{url}\"")), &[]);
        assert!(
            message.starts_with(&format!("g.toml:4: \"base_url\" in [[model]] {expected}")),
            "{url}: {message}"
        );
        assert!(!message.contains("secret"), "{message}");
    }
    for url in ["http://localhost", "https://h:8443/a/b", "http://[::1]:80/v1"] {
        load(&openai(&format!("base_url = \"{url}\"")));
    }
}

#[test]
fn keys_are_looked_up_and_not_repeated() {
    let with = |name: &str, variables: &[(&str, &str)]| {
        wrong_with(&openai(&format!("api_key_env = \"{name}\"")), variables)
    };
    let message =
        |what: &str| format!("g.toml:4: \"api_key_env\" in [[model]] names {what}; put the key there");
    assert_eq!(with("A_KEY", &[]), message("the environment variable A_KEY, which is not set"));
    assert_eq!(with("A_KEY", &[("A_KEY", "")]), message("the environment variable A_KEY, which is empty"));
    for key in ["sk secret", "sk-secret\n", "schlüssel-secret"] {
        let text = with("A_KEY", &[("A_KEY", key)]);
        assert!(text.contains("cannot carry") && !text.contains("secret"), "{text}");
    }
    // The key itself, in the place of its variable's name.
    assert!(with("sk-secret", &[]).contains("and not the key itself"));
    for pasted in ["sk-secret", "skSecret123", ""] {
        let text = with(pasted, &[]);
        assert!(!text.to_lowercase().contains("secret"), "{text}");
    }
    // And in a line that is not even TOML.
    assert!(!wrong("api_key_env = sk-secret").contains("secret"));
}

#[test]
fn names_are_unique_and_tidy() {
    assert_eq!(
        wrong(&format!("\n{MOCK}")),
        "g.toml:6: \"name\" in [[model]] is \"m\", as at g.toml:2; each needs a name of its own"
    );
    for name in [" m", "m ", "m\\n", "a\\u0007b"] {
        assert!(wrong_with(&MOCK.replace("\"m\"", &format!("\"{name}\"")), &[]).contains("white space"));
    }
    assert_eq!(wrong("model = \"\""), "g.toml:4: \"model\" in [[model]] is empty");
    // Answers say it in their heads, where nothing but ASCII is sure to arrive. What its upstream calls it stays there.
    assert_eq!(
        wrong_with(&MOCK.replace("\"m\"", "\"größe\""), &[]),
        "g.toml:2: \"name\" in [[model]] must be of visible ASCII characters and spaces, as it goes into headers, not \
         \"größe\"; \"model\" may be what its upstream calls it"
    );
    assert_eq!(load(&format!("{MOCK}model = \"größe\"")).models[0].model, "größe");
}

#[test]
fn what_is_not_toml_names_its_lines() {
    let message = wrong("[server\nworkers = = 2\n");
    let lines: Vec<_> = message.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["g.toml:4", "g.toml:5"], "{message}");
    assert!(wrong("upstream = \"mock\"").starts_with("g.toml:4: duplicate key"));
}

#[test]
fn variables_that_kubernetes_sets_are_not_meant_for_us() {
    let links = [
        ("GATEWAY_SERVICE_HOST", "10.0.0.1"),
        ("GATEWAY_SERVICE_PORT", "80"),
        ("GATEWAY_SERVICE_PORT_HTTP", "80"),
        ("GATEWAY_PORT", "tcp://10.0.0.1:80"),
        ("GATEWAY_PORT_80_TCP", "tcp://10.0.0.1:80"),
        ("GATEWAY_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("GATEWAY_SERVER_SERVICE_HOST", "10.0.0.2"),
    ];
    Config::load(None, &environment(&links), None).unwrap();
    let error = Config::load(None, &environment(&[("GATEWAY_PORT", "80")]), None).unwrap_err();
    assert!(error.to_string().starts_with("GATEWAY_PORT: unknown environment variable; "), "{error}");
}

/// How many a limit lets pass, and in how many seconds.
fn rate(quota: Option<Quota>) -> Option<(u64, u64)> {
    quota.map(|quota| (quota.rate().0, quota.rate().1.as_secs()))
}

#[test]
fn tenants_have_limits_of_their_own_over_those_of_all() {
    let text = format!(
        r#"{MOCK}
        [rate_limits]
        requests_per_minute = 60
        tokens_per_hour = 1_000_000
        burst = 5
        max_queue = 10
        max_wait_ms = 300
        [total_rate_limits]
        tokens_per_minute = 7
        [[tenant]]
        name = "acme"
        requests_per_minute = 600
        requests_per_day = 9
        burst = "auto"
        tokens_per_hour = "unlimited"
        [[tenant]]
        name = "plain"
        "#
    );
    let variables = environment(&[("GATEWAY_RATE_LIMITS_REQUESTS_PER_HOUR", "70")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let limits = &config.rate_limits;
    assert_eq!((limits.max_queue, limits.max_wait), (10, Duration::from_millis(300)));
    assert_eq!(rate(limits.total.tokens_per_minute), Some((7, 60)));
    assert_eq!(limits.total.requests_per_minute, None);
    let [acme, plain] = &config.tenants[..] else { panic!() };
    assert_eq!((acme.name.as_str(), plain.name.as_str()), ("acme", "plain"));
    assert_eq!(plain.rates, limits.tenant);
    assert_eq!((rate(plain.rates.requests_per_minute), plain.rates.burst), (Some((60, 60)), Some(5)));
    let acme = &acme.rates;
    assert_eq!((rate(acme.requests_per_minute), acme.burst), (Some((600, 60)), None));
    assert_eq!(rate(acme.requests_per_hour), Some((70, 3_600)));
    assert_eq!(rate(acme.requests_per_day), Some((9, 86_400)));
    assert_eq!(acme.tokens_per_hour, None);
}

#[test]
fn limits_that_cannot_be_are_refused() {
    let range = "must be \"unlimited\" or an integer from 1 to 1000000000000, not";
    for wrong_value in ["0", "-1", "1.5", "1000000000001", "99999999999999999999", "\"lots\"", "true"] {
        assert_eq!(
            wrong(&format!("[rate_limits]\ntokens_per_day = {wrong_value}")),
            format!("g.toml:5: \"tokens_per_day\" in [rate_limits] {range} {wrong_value}")
        );
    }
    assert_eq!(
        wrong("[[tenant]]\nname = \"a\"\nrequests_per_minute = 0"),
        format!("g.toml:6: \"requests_per_minute\" in [[tenant]] {range} 0")
    );
    assert_eq!(
        wrong("[rate_limits]\nburst = 5"),
        "g.toml:5: \"burst\" in [rate_limits] has no effect without requests_per_minute; set that, or remove this"
    );
    assert_eq!(
        wrong("[rate_limits]\nrequest_per_minute = 5"),
        "g.toml:5: unknown key \"request_per_minute\" in [rate_limits]; did you mean \"requests_per_minute\"?"
    );
    assert_eq!(
        wrong("[limits]\nrequests_per_day = 5"),
        "g.toml:5: unknown key \"requests_per_day\" in [limits]; it belongs in [rate_limits]"
    );
    assert!(wrong("[total_rate_limits]\nburst = 5").ends_with("it belongs in [rate_limits]"));
    assert!(wrong("[rate_limits]\nmax_queue = -1").contains("an integer from 0 to 1000000, not -1"));
    assert!(wrong("[rate_limits]\nmax_wait_ms = 0").contains("an integer from 1 to"));
}

#[test]
fn tenants_are_known_and_tidy() {
    assert_eq!(
        wrong("[[tenant]]\nburst = \"auto\""),
        "g.toml:4: missing key \"name\" in [[tenant]]: who is limited"
    );
    assert_eq!(
        wrong("[[tenant]]\nname = \"a\"\n[[tenant]]\nname = \"a\""),
        "g.toml:7: \"name\" in [[tenant]] is \"a\", as at g.toml:5; each needs a name of its own"
    );
    assert_eq!(wrong("[tenant]\nname = \"a\""), "g.toml:4: \"tenant\" must be written as [[tenant]]");
    for name in ["", " a", "a\\n", "caf\u{e9}", &"x".repeat(257)] {
        let text = wrong(&format!("[[tenant]]\nname = \"{name}\""));
        assert!(text.starts_with("g.toml:5: \"name\" in [[tenant]] "), "{text}");
    }
    assert_eq!(
        wrong("[[tenant]]\nname = \"acme\"\n[[key]]\ntenant = \"acne\"\nkey = \"k\""),
        "g.toml:5: \"name\" in [[tenant]] is \"acme\", which has no effect: no [[key]] is of that tenant; did you mean \
         \"acne\"?"
    );
}

#[test]
fn client_keys_are_found_and_never_shown() {
    let text = format!(
        "{MOCK}[server]\nadmin_token = \"sk-secret-0\"\n[[key]]\ntenant = \"a\"\nkey_env = \"A_KEY\"\n\
         [[key]]\ntenant = \"a\"\nkey = \"sk-secret-2\"\n"
    );
    let variables = environment(&[("A_KEY", "sk-secret-1")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let secrets: Vec<_> = config.keys.iter().map(|key| key.secret.expose_secret()).collect();
    assert_eq!(secrets, ["sk-secret-1", "sk-secret-2"]);
    assert!(!format!("{config:?}").contains("secret-"), "{config:?}");
    let variables = environment(&[("GATEWAY_SERVER_ADMIN_TOKEN", "sk-secret-3")]);
    let config = Config::load(None, &variables, None).unwrap();
    assert_eq!(config.server.admin_token.unwrap().expose_secret(), "sk-secret-3");

    let wrong = |text: &str| {
        let text = wrong_with(&format!("{MOCK}{text}"), &[("BAD", "sk-secret x"), ("EMPTY", "")]);
        assert!(!text.contains("sk-secret") && !text.contains("5555"), "{text}");
        text
    };
    let key = |rest: &str| wrong(&format!("[[key]]\ntenant = \"a\"\n{rest}"));
    assert_eq!(
        key(""),
        "g.toml:4: missing key \"key_env\" in [[key]]: the environment variable that holds the key"
    );
    assert_eq!(wrong("[[key]]\nkey = \"k\""), "g.toml:4: missing key \"tenant\" in [[key]]: whose key it is");
    assert_eq!(key("key = \"\""), "g.toml:6: \"key\" in [[key]] is empty");
    assert_eq!(key("key = 5555"), "g.toml:6: \"key\" in [[key]] must be a string");
    assert!(key("key = \"sk-secret x\"").contains("a header cannot carry"));
    assert!(key("key_env = \"sk-secret\"").contains("and not the key itself"));
    assert!(
        key("key_env = \"NOT_SET\"")
            .ends_with("the environment variable NOT_SET, which is not set; put the key there")
    );
    assert!(key("key_env = \"BAD\"").contains("which holds white space"));
    assert!(key("key_env = \"EMPTY\"").contains("which is empty"));
    assert!(key("key_env = \"EMPTY\"\nkey = \"k\"").contains("no effect beside \"key\""));
    assert_eq!(
        key("key = \"sk-secret\"\n[[key]]\ntenant = \"b\"\nkey = \"sk-secret\""),
        "g.toml:7: [[key]] is the same key as at g.toml:4; each can be of one tenant"
    );
    for token in ["\"\"", "5555", "\"sk-secret x\"", "\"sk-secret\u{e9}\""] {
        assert!(
            wrong(&format!("[server]\nadmin_token = {token}"))
                .starts_with("g.toml:5: \"admin_token\" in [server] ")
        );
    }
}

#[test]
fn circuit_breakers_are_on_unless_told_otherwise() {
    assert!(load(MOCK).models[0].circuit_breaker);
    let text = format!(
        r#"{MOCK}
        [[model]]
        name = "watched"
        upstream = "mock"
        circuit_breaker = true
        [circuit_breaker]
        enabled = false
        failure_threshold = "off"
        failure_percent = 50
        slow_percent = 80
        slow_ms = 2_000
        window_ms = 10_000
        min_calls = 7
        client_gone_ms = 9_000
        open_ms = 300
        max_open_ms = 300
        success_threshold = 3
        "#
    );
    let variables = environment(&[("GATEWAY_CIRCUIT_BREAKER_PROBES", "2")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let expected = CircuitBreaker {
        enabled: false,
        failure_threshold: None,
        failure_percent: Some(50),
        slow_percent: Some(80),
        slow: Duration::from_secs(2),
        window: Duration::from_secs(10),
        min_calls: 7,
        client_gone: Some(Duration::from_secs(9)),
        open: Duration::from_millis(300),
        max_open: Duration::from_millis(300),
        success_threshold: 3,
        probes: 2,
    };
    assert_eq!(config.circuit_breaker, expected);
    assert_eq!(config.models.iter().map(|model| model.circuit_breaker).collect::<Vec<_>>(), [false, true]);

    let variables = environment(&[("GATEWAY_CIRCUIT_BREAKER_ENABLED", "false")]);
    let config = Config::load(None, &variables, None).unwrap();
    assert!(config.models.iter().all(|model| !model.circuit_breaker));
}

/// The extremes of the ranges can be built, so that nothing that was loaded panics later.
#[tokio::test]
async fn circuit_breakers_at_their_bounds() {
    for text in [
        "failure_threshold = 1\nopen_ms = 1\nmax_open_ms = 1",
        "failure_threshold = 1_000_000\nopen_ms = 86_400_000\nmax_open_ms = 86_400_000",
        "failure_percent = 1\nwindow_ms = 1\nmin_calls = 1\nsuccess_threshold = 4_095\nprobes = 4_095",
        "slow_percent = 100\nslow_ms = 86_400_000\nwindow_ms = 86_400_000\nmin_calls = 1_000_000",
    ] {
        let config = load(&format!("{MOCK}total_ms = 1\n[circuit_breaker]\n{text}"));
        let (app, _) = App::new(config).await.unwrap();
        drop(app.service());
    }
}

#[test]
fn embedding_requests_are_sent_together_if_told_so() {
    assert!(!load(MOCK).embedding_batches.enabled);
    let text = format!(
        r#"{MOCK}
        [embedding_batches]
        max_size = 100
        linger_ms = 0
        max_concurrent = 1
        max_inputs = 100
        across_tenants = true
        "#
    );
    let variables = environment(&[("GATEWAY_EMBEDDING_BATCHES_ENABLED", "true")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let expected = EmbeddingBatches {
        enabled: true,
        max_size: 100,
        linger: Duration::ZERO,
        max_concurrent: 1,
        max_inputs: 100,
        across_tenants: true,
    };
    assert_eq!(config.embedding_batches, expected);
}

#[tokio::test]
async fn embedding_batches_at_their_bounds() {
    for text in [
        "max_size = 2\nlinger_ms = 0\nmax_concurrent = 1\nmax_inputs = 2",
        "max_size = 2_048\nlinger_ms = 10_000\nmax_concurrent = 10_000\nmax_inputs = 1_000_000",
    ] {
        let config = load(&format!("{MOCK}[embedding_batches]\nenabled = true\n{text}"));
        let (app, _) = App::new(config).await.unwrap();
        drop(app.service());
    }
}

#[test]
fn embedding_batches_that_cannot_be_or_have_no_effect_are_refused() {
    let batches = |text: &str| wrong(&format!("[embedding_batches]\n{text}"));
    for (key, must) in [
        ("max_size", "an integer from 2 to 2048"),
        ("linger_ms", "an integer from 0 to 10000"),
        ("max_concurrent", "an integer from 1 to 10000"),
        ("max_inputs", "an integer from 1 to 1000000"),
    ] {
        for value in ["-1", "0.5", "86400001", "\"1 s\""] {
            let expected = format!("g.toml:5: {key:?} in [embedding_batches] must be {must}, not {value}");
            assert_eq!(batches(&format!("{key} = {value}")), expected);
        }
    }
    for (key, value) in [
        ("max_size", "33"),
        ("linger_ms", "6"),
        ("max_concurrent", "9"),
        ("max_inputs", "99"),
        ("across_tenants", "true"),
    ] {
        let expected = format!(
            "g.toml:5: {key:?} in [embedding_batches] has no effect without enabled = true; set that, or remove this"
        );
        assert_eq!(batches(&format!("{key} = {value}")), expected);
    }
    assert_eq!(
        batches("max_sise = 3"),
        r#"g.toml:5: unknown key "max_sise" in [embedding_batches]; did you mean "max_size"?"#
    );
    assert_eq!(
        wrong("[embeding_batches]"),
        r#"g.toml:4: unknown section "embeding_batches"; did you mean [embedding_batches]?"#
    );
    assert_eq!(
        batches("enabled = true\nmax_inputs = 31"),
        r#"g.toml:6: "max_size" in [embedding_batches] is 32, which is never reached: "max_inputs" is 31, and each request has one at least; lower the one or raise the other"#
    );
}

#[test]
fn circuit_breakers_that_cannot_be_are_refused() {
    let breaker = |text: &str| {
        let text = wrong(&format!("[circuit_breaker]\n{text}"));
        text.strip_prefix("g.toml:5: ").unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    for (key, must) in [
        ("failure_threshold", "\"off\" or an integer from 1 to 1000000"),
        ("failure_percent", "\"off\" or an integer from 1 to 100"),
        ("slow_percent", "\"off\" or an integer from 1 to 100"),
        ("slow_ms", "an integer from 1 to 86400000"),
        ("window_ms", "an integer from 1 to 86400000"),
        ("min_calls", "an integer from 1 to 1000000"),
        ("client_gone_ms", "\"off\" or an integer from 1 to 86400000"),
        ("open_ms", "an integer from 1 to 86400000"),
        ("max_open_ms", "an integer from 1 to 86400000"),
        ("success_threshold", "an integer from 1 to 4095"),
        ("probes", "an integer from 1 to 4095"),
    ] {
        for value in ["0", "-1", "0.5", "86400001", "99999999999999999999", "\"1 s\""] {
            let expected = format!("{key:?} in [circuit_breaker] must be {must}, not {value}");
            assert_eq!(breaker(&format!("{key} = {value}")), expected);
        }
    }
    assert!(breaker("failure_percent = 101").ends_with("from 1 to 100, not 101"));
    assert!(breaker("enabled = \"yes\"").ends_with("must be true or false, not \"yes\""));

    let cases = [
        (
            "failure_threshold = \"off\"",
            "\"failure_threshold\" in [circuit_breaker] is \"off\" as are failure_percent and slow_percent, so it would \
             never open; set one of them, or enabled = false",
        ),
        (
            "min_calls = 5",
            "\"min_calls\" in [circuit_breaker] has no effect without failure_percent or slow_percent; set that, or \
             remove this",
        ),
        (
            "slow_ms = 5\nfailure_percent = 50",
            "\"slow_ms\" in [circuit_breaker] has no effect without slow_percent; set that, or remove this",
        ),
        (
            "max_open_ms = 29_999",
            "\"max_open_ms\" in [circuit_breaker] cannot be: the open period must grow by a factor of at least 1, to at \
             least its first length (open_ms is 30000, max_open_ms is 29999)",
        ),
        (
            "open_ms = 300_001",
            "\"open_ms\" in [circuit_breaker] cannot be: the open period must grow by a factor of at least 1, to at \
             least its first length (open_ms is 300001, max_open_ms is 300000)",
        ),
        (
            "probes = 2",
            "\"probes\" in [circuit_breaker] is 2, which is never reached: \"success_threshold\" is 1, and more probes \
             are not needed; lower the one or raise the other",
        ),
        (
            "failure_treshold = 3",
            "unknown key \"failure_treshold\" in [circuit_breaker]; did you mean \"failure_threshold\"?",
        ),
        ("idle_ms = 3", "unknown key \"idle_ms\" in [circuit_breaker]; it belongs in [limits]"),
    ];
    for (text, expected) in cases {
        assert_eq!(breaker(text), expected);
    }
    // One mistake, one message.
    assert!(breaker("open_ms = 0\nmax_open_ms = 5").lines().count() == 1);
    assert_eq!(
        wrong("[circuit_breakers]"),
        "g.toml:4: unknown section \"circuit_breakers\"; did you mean [circuit_breaker]?"
    );
    assert_eq!(
        wrong("open_ms = 5"),
        "g.toml:4: unknown key \"open_ms\" in [[model]]; it belongs in [circuit_breaker]"
    );
    assert_eq!(
        wrong_with(MOCK, &[("GATEWAY_CIRCUIT_BREAKER_OPEN_MS", "0")]),
        "GATEWAY_CIRCUIT_BREAKER_OPEN_MS: \"open_ms\" in [circuit_breaker] must be an integer from 1 to 86400000, not \
         \"0\""
    );
    assert_eq!(
        wrong("circuit_breaker = \"on\""),
        "g.toml:4: \"circuit_breaker\" in [[model]] must be true or false, not \"on\""
    );
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn fallbacks_are_of_all_models_or_of_one() {
    assert!(load(MOCK).models[0].fallbacks.are_none());
    let text = format!(
        r#"{MOCK}
        [[model]]
        name = "own"
        upstream = "mock"
        fallbacks = ["m"]
        retries = 1
        [[model]]
        name = "alone"
        upstream = "mock"
        fallbacks = []
        context_length_fallbacks = []
        content_policy_fallbacks = []
        retries = 0
        [[model]]
        name = "large"
        upstream = "mock"
        [fallback]
        fallbacks = ["own", "m"]
        context_length_fallbacks = ["large"]
        content_policy_fallbacks = ["own"]
        retries = 2
        within_ms = 5_000
        "#
    );
    let variables = environment(&[("GATEWAY_FALLBACK_ATTEMPTS", "7")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let usual = Fallbacks {
        models: names(&["own", "m"]),
        context_length: names(&["large"]),
        content_policy: names(&["own"]),
        retries: 2,
    };
    let expected = FallbackSettings { usual: usual.clone(), attempts: 7, within: Duration::from_secs(5) };
    assert_eq!(config.fallback, expected);
    let [m, own, alone, large] = &config.models[..] else { panic!("four models") };
    // Nobody falls back to itself.
    assert_eq!(m.fallbacks, Fallbacks { models: names(&["own"]), ..usual.clone() });
    let of_own = Fallbacks { models: names(&["m"]), content_policy: Vec::new(), retries: 1, ..usual.clone() };
    assert_eq!(own.fallbacks, of_own);
    assert!(alone.fallbacks.are_none());
    assert_eq!(large.fallbacks, Fallbacks { context_length: Vec::new(), ..usual });

    // A list in a variable has commas.
    for (variable, expected) in [("m, own,alone", &["m", "own", "alone"][..]), ("", &[])] {
        let variables = environment(&[("GATEWAY_FALLBACK_FALLBACKS", variable)]);
        let config = Config::from_toml("g.toml", &text, &variables).unwrap();
        assert_eq!(config.fallback.usual.models, names(expected));
    }
    let variables = environment(&[("GATEWAY_FALLBACK_FALLBACKS", "mock-large")]);
    let config = Config::load(None, &variables, None).unwrap();
    let lists: Vec<_> = config.models.iter().map(|model| model.fallbacks.models.len()).collect();
    assert_eq!(lists, [1, 0, 1]);
}

#[test]
fn fallbacks_that_cannot_be_are_refused() {
    for (text, expected) in [
        (
            "fallbacks = [\"n\"]",
            r#"g.toml:4: "fallbacks" in [[model]] names "n", which is no [[model]]; there are m, other"#,
        ),
        (
            "fallbacks = [\"othr\"]",
            r#"g.toml:4: "fallbacks" in [[model]] names "othr", which is no [[model]]; did you mean "other"?"#,
        ),
        (
            "content_policy_fallbacks = [\"m\"]",
            r#"g.toml:4: "content_policy_fallbacks" in [[model]] names "m", which is this model itself"#,
        ),
        (
            "context_length_fallbacks = [\"other\", \"other\"]",
            r#"g.toml:4: "context_length_fallbacks" in [[model]] names "other", and does so twice"#,
        ),
        (
            "fallbacks = \"other\"",
            r#"g.toml:4: "fallbacks" in [[model]] must be a list of models' names, not "other""#,
        ),
        (
            "fallbacks = [7]",
            r#"g.toml:4: "fallbacks" in [[model]] must be a list of models' names, not an array"#,
        ),
        ("fallback = []", r#"g.toml:4: unknown key "fallback" in [[model]]; did you mean "fallbacks"?"#),
        ("attempts = 3", r#"g.toml:4: unknown key "attempts" in [[model]]; it belongs in [fallback]"#),
        ("retries = 21", r#"g.toml:4: "retries" in [[model]] must be an integer from 0 to 20, not 21"#),
        (
            "[fallback]\nfallbacks = [\"zz\"]",
            r#"g.toml:5: "fallbacks" in [fallback] names "zz", which is no [[model]]; there are m, other"#,
        ),
        (
            "[fallback]\nwithin_ms = 7",
            r#"g.toml:5: "within_ms" in [fallback] has no effect: no model has fallbacks or retries; give it some, or remove this"#,
        ),
        (
            "[fallback]\nattempts = 0",
            r#"g.toml:5: "attempts" in [fallback] must be an integer from 1 to 100, not 0"#,
        ),
        ("[fallbacks]", r#"g.toml:4: unknown section "fallbacks"; did you mean [fallback]?"#),
    ] {
        let other = "\n[[model]]\nname = \"other\"\nupstream = \"mock\"\n";
        assert_eq!(wrong(&format!("{text}\n{other}")), expected);
    }
    let many: Vec<_> = (0..64).map(|n| format!("f{n}")).collect();
    let models: String =
        many.iter().map(|name| format!("[[model]]\nname = \"{name}\"\nupstream = \"mock\"\n")).collect();
    let text = wrong(&format!("fallbacks = {many:?}\n{models}"));
    assert_eq!(
        text,
        r#"g.toml:4: "fallbacks" in [[model]] names more than 63 models with those of the other lists"#
    );

    let variables = [("GATEWAY_FALLBACK_FALLBACKS", "mock-larg")];
    let text = Config::load(None, &environment(&variables), None).unwrap_err().to_string();
    let expected = r#"GATEWAY_FALLBACK_FALLBACKS: "fallbacks" in [fallback] names "mock-larg", which is no [[model]]; did you mean "mock-large"?"#;
    assert_eq!(text, expected);
}

#[test]
fn deduplication_is_off_unless_told_otherwise() {
    assert!(!load(MOCK).models[0].dedup);
    let text = format!(
        r#"{MOCK}
        [[model]]
        name = "own"
        upstream = "mock"
        dedup = false
        [dedup]
        enabled = true
        ttl_ms = 60_000
        max_entries = 5
        max_bytes = 6_000
        stale_while_revalidate_ms = 7
        "#
    );
    let variables = environment(&[("GATEWAY_DEDUP_STALE_IF_ERROR_MS", "2_592_000_000")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let expected = Dedup {
        enabled: true,
        ttl: Duration::from_secs(60),
        max_entries: 5,
        max_bytes: 6_000,
        stale_while_revalidate: Duration::from_millis(7),
        stale_if_error: Duration::from_secs(30 * 24 * 60 * 60),
    };
    assert_eq!(config.dedup, expected);
    assert_eq!(config.models.iter().map(|model| model.dedup).collect::<Vec<_>>(), [true, false]);
    // One model is enough.
    let config = load(&format!("{MOCK}dedup = true\n[dedup]\nttl_ms = 1"));
    assert!(config.models[0].dedup && !config.dedup.enabled);

    let variables = environment(&[("GATEWAY_DEDUP_ENABLED", "true")]);
    let config = Config::load(None, &variables, None).unwrap();
    assert!(config.models.iter().all(|model| model.dedup));
}

/// The extremes of the ranges can be built, so that nothing that was loaded panics later.
#[tokio::test]
async fn deduplication_at_its_bounds() {
    for text in [
        "",
        "ttl_ms = 1\nmax_entries = 1\nmax_bytes = 1\nstale_while_revalidate_ms = 1\nstale_if_error_ms = 1",
        "ttl_ms = 2_592_000_000\nmax_entries = 10_000_000\nmax_bytes = 1_099_511_627_776\n\
         stale_while_revalidate_ms = 2_592_000_000\nstale_if_error_ms = 2_592_000_000",
    ] {
        let config = load(&format!("{MOCK}[dedup]\nenabled = true\n{text}"));
        let (app, _) = App::new(config).await.unwrap();
        drop(app.service());
    }
}

#[test]
fn deduplication_that_cannot_be_is_refused() {
    let dedup = |text: &str| {
        let text = wrong(&format!("[dedup]\n{text}"));
        text.strip_prefix("g.toml:5: ").unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    for (key, must, values) in [
        ("ttl_ms", "an integer from 0 to 2592000000", ["-1", "2592000001", "\"1 h\""]),
        ("max_entries", "an integer from 1 to 10000000", ["0", "10000001", "1.5"]),
        ("max_bytes", "an integer from 1 to 1099511627776", ["0", "1099511627777", "\"64 MiB\""]),
        ("stale_while_revalidate_ms", "an integer from 0 to 2592000000", ["-1", "2592000001", "true"]),
        ("stale_if_error_ms", "an integer from 0 to 2592000000", ["-1", "2592000001", "[]"]),
    ] {
        for value in values {
            let told = dedup(&format!("{key} = {value}"));
            assert!(told.starts_with(&format!("{key:?} in [dedup] must be {must}, not ")), "{told}");
            let told = dedup(&format!("{key} = 5"));
            let off = "has no effect without enabled = true, or dedup = true in a [[model]]; set that, or remove this";
            assert_eq!(told, format!("{key:?} in [dedup] {off}"));
        }
        if key != "ttl_ms" {
            assert_eq!(
                dedup(&format!("{key} = 5\nenabled = true")),
                format!("{key:?} in [dedup] has no effect without ttl_ms; set that, or remove this")
            );
        }
    }
    assert_eq!(dedup("tll_ms = 5"), "unknown key \"tll_ms\" in [dedup]; did you mean \"ttl_ms\"?");
    assert_eq!(wrong("[dedupe]"), "g.toml:4: unknown section \"dedupe\"; did you mean [dedup]?");
    assert_eq!(wrong("ttl_ms = 5"), "g.toml:4: unknown key \"ttl_ms\" in [[model]]; it belongs in [dedup]");
    assert_eq!(wrong("dedup = \"on\""), "g.toml:4: \"dedup\" in [[model]] must be true or false, not \"on\"");
}

#[test]
fn how_models_are_judged() {
    assert_eq!(load(MOCK).health, Health::default());
    let text = r#"
        [health]
        window_ms = 1_000
        min_requests = 3
        degraded_percent = 20
        degraded_exit_percent = 10
        unhealthy_percent = "off"
        shed = true
        probe_every_ms = 500
        probe_timeout_ms = 100
        unhealthy_probes = 1
        show_to = "all"
    "#;
    let variables = environment(&[("GATEWAY_HEALTH_HEALTHY_PROBES", "4")]);
    let config = Config::from_toml("g.toml", &format!("{MOCK}{text}"), &variables).unwrap();
    let millis = Duration::from_millis;
    let expected = Health {
        window: millis(1_000),
        min_requests: 3,
        degraded_percent: Some(20),
        degraded_exit_percent: 10,
        unhealthy_percent: None,
        unhealthy_exit_percent: 30,
        shed: true,
        probe_every: Some(millis(500)),
        probe_timeout: millis(100),
        unhealthy_probes: 1,
        healthy_probes: 4,
        show_to: ShowTo::All,
    };
    assert_eq!(config.health, expected);
    assert!(config.health.settings().check().is_ok());
    // A share below the usual exit is its own exit.
    assert!(
        load(&format!("{MOCK}[health]\ndegraded_percent = 1\nunhealthy_percent = 2"))
            .health
            .settings()
            .check()
            .is_ok()
    );
}

#[test]
fn health_settings_that_cannot_be_are_refused() {
    let health = |text: &str| {
        let text = wrong(&format!("[health]\n{text}"));
        text.strip_prefix("g.toml:5: ").unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    for (text, expected) in [
        ("window_ms = 0", "\"window_ms\" in [health] must be an integer from 1 to 86400000, not 0"),
        (
            "min_requests = 100_001",
            "\"min_requests\" in [health] must be an integer from 1 to 100000, not 100001",
        ),
        (
            "degraded_percent = 0",
            "\"degraded_percent\" in [health] must be \"off\" or an integer from 1 to 100, not 0",
        ),
        (
            "degraded_exit_percent = 11",
            "\"degraded_exit_percent\" in [health] is 11, above degraded_percent, which is 10; lower the one or raise the \
             other",
        ),
        (
            "probe_timeout_ms = 1",
            "\"probe_timeout_ms\" in [health] has no effect without probe_every_ms; set that, or remove this",
        ),
        (
            "show_to = \"admin\"",
            "\"show_to\" in [health] is \"admin\", and nobody can be that without admin_token in [server]; set that too",
        ),
        (
            "show_to = \"al\"",
            "\"show_to\" in [health] must be \"auto\", \"all\" or \"admin\", not \"al\"; did you mean \"all\"?",
        ),
        ("sched = true", "unknown key \"sched\" in [health]; did you mean \"shed\"?"),
        ("open_ms = 3", "unknown key \"open_ms\" in [health]; it belongs in [circuit_breaker]"),
    ] {
        assert_eq!(health(text), expected);
    }
    let exit = wrong("[health]\nunhealthy_exit_percent = 3\nunhealthy_percent = \"off\"");
    assert_eq!(
        exit,
        "g.toml:5: \"unhealthy_exit_percent\" in [health] has no effect while unhealthy_percent is \"off\"; set that, or \
         remove this"
    );
    assert_eq!(wrong("[healt]"), "g.toml:4: unknown section \"healt\"; did you mean [health]?");
    assert_eq!(
        wrong_with(MOCK, &[("GATEWAY_HEALTH_SHED", "yes")]),
        "GATEWAY_HEALTH_SHED: \"shed\" in [health] must be true or false, not \"yes\""
    );
}

fn rule(more: &str) -> String {
    format!("[[rule]]\nname = \"r\"\nside = \"request\"\n{more}\n")
}

#[test]
fn what_is_checked_is_of_all_models_or_of_one() {
    assert!(load(MOCK).validation.rules.is_empty());
    let text = format!(
        r#"{MOCK}
        validation_level = "strict"
        validation_rules = ["b"]
        [[model]]
        name = "usual"
        upstream = "mock"
        [[model]]
        name = "off"
        upstream = "mock"
        validation = false
        validation_action = "report"
        structured_output = false
        [validation]
        rules = ["a"]
        level = "lenient"
        structured_output = true
        window_bytes = 1
        overlap_bytes = 5
        window_ms = 7
        max_answer_bytes = 9
        [[rule]]
        name = "a"
        side = "both"
        severity = "safety"
        terms = ["xy"]
        inside_words = true
        [[rule]]
        name = "b"
        side = "request"
        require = '^a'
        at = "/user"
        "#
    );
    let variables = environment(&[("GATEWAY_VALIDATION_MAX_JSON_DEPTH", "127")]);
    let config = Config::from_toml("g.toml", &text, &variables).unwrap();
    let validation = &config.validation;
    assert_eq!((validation.window_bytes, validation.overlap_bytes), (1, 5));
    assert_eq!((validation.window, validation.max_answer_bytes), (Duration::from_millis(7), 9));
    assert_eq!(validation.max_json_depth, 127);
    let guard = |level, action, rule: &str, structured_output, enabled| Guard {
        enabled,
        level,
        action,
        rules: Some(names(&[rule])),
        structured_output,
    };
    let guards: Vec<_> = config.models.iter().map(|model| model.guard.clone()).collect();
    let expected = [
        guard(Level::Strict, Action::Reject, "b", true, true),
        guard(Level::Lenient, Action::Reject, "a", true, true),
        guard(Level::Lenient, Action::Report, "a", false, false),
    ];
    assert_eq!(guards, expected);
    let [a, b] = &validation.rules[..] else { panic!("{validation:?}") };
    assert_eq!(
        (a.name.as_str(), a.side, a.severity, a.at.as_deref()),
        ("a", Side::Both, Severity::Safety, None)
    );
    assert_eq!((b.side, b.severity, b.at.as_deref()), (Side::Request, Severity::Error, Some("/user")));
    assert!(matches!((&a.check, &b.check), (Check::Terms(_), Check::Require(_))));

    let all = load(&format!("{MOCK}{}", rule("pii = [\"emails\", \"phones\", \"cards\", \"secrets\"]")));
    assert_eq!(all.models[0].guard.rules, None);
    // The mocks of a gateway without a file obey the environment, too.
    let variables =
        [("GATEWAY_VALIDATION_STRUCTURED_OUTPUT", "true"), ("GATEWAY_VALIDATION_LEVEL", "strict")];
    let config = Config::load(None, &environment(&variables), None).unwrap();
    assert!(config.models.iter().all(|model| model.guard.structured_output));
    // Switched off, whatever stands there may stay.
    load(&format!("{MOCK}[validation]\nenabled = false\nlevel = \"strict\"\n"));
}

/// The extremes of the ranges can be built, so that nothing that was loaded panics later.
#[tokio::test]
async fn rules_at_their_bounds() {
    let rules = rule("max_bytes = 1") + &rule("max_bytes = 1_073_741_824").replace("\"r\"", "\"s\"");
    for text in [
        "window_bytes = 1\noverlap_bytes = 1\nwindow_ms = 1\nmax_answer_bytes = 1\nmax_json_depth = 1",
        "window_bytes = 1_048_576\noverlap_bytes = 1_048_576\nwindow_ms = 10_000\nmax_answer_bytes = 67_108_864\n\
         max_json_depth = 127\nstructured_output = true",
    ] {
        let terms = "[[rule]]\nname = \"t\"\nside = \"both\"\nterms = [\"x\"]\n";
        let config = load(&format!("{MOCK}{rules}{terms}[validation]\n{text}"));
        let (app, _) = App::new(config).await.unwrap();
        drop(app.service());
    }
}

#[test]
fn rules_that_cannot_be_are_refused() {
    // The rule's keys begin on line 7.
    let line = |text: &str, line: usize| {
        let told = wrong(&rule(text));
        told.strip_prefix(&format!("g.toml:{line}: ")).unwrap_or_else(|| panic!("{told}")).to_owned()
    };
    let seventh = |text: &str| line(text, 7);
    let in_rule = |text: &str| seventh(text).replace(" in [[rule]]", "");

    assert_eq!(in_rule("deny = '('"), "\"deny\" is no regular expression that can be used: unclosed group");
    assert_eq!(
        in_rule("deny = '(?=x)'"),
        "\"deny\" is no regular expression that can be used: look-around, including look-ahead and look-behind, is not \
         supported"
    );
    assert_eq!(
        in_rule(r"deny = '(\w{1000}){1000}'"),
        "\"deny\" is no regular expression that can be used: Compiled regex exceeds size limit of 1048576 bytes."
    );
    assert_eq!(
        in_rule("pii = [\"emails\", \"card\"]"),
        "\"pii\" must be a list of \"emails\", \"phones\", \"cards\" and \"secrets\", not \"card\"; did you mean \"cards\"?"
    );
    assert_eq!(in_rule("pii = []"), "\"pii\" is empty");
    assert_eq!(
        in_rule("pii = \"cards\""),
        "\"pii\" must be a list of \"emails\", \"phones\", \"cards\" and \"secrets\", not \"cards\""
    );
    assert_eq!(in_rule("terms = []"), "\"terms\" has no terms");
    assert_eq!(in_rule("terms = [5]"), "\"terms\" must be a list of terms, not an array");
    assert_eq!(in_rule("terms = [\"a\", \"\"]"), "\"terms\" cannot be used: term 1 is empty");
    assert_eq!(in_rule("terms_file = \"\""), "\"terms_file\" is empty");
    assert_eq!(in_rule("max_bytes = 0"), "\"max_bytes\" must be an integer from 1 to 1073741824, not 0");
    assert_eq!(in_rule("require = 'x'"), "\"require\" needs \"at\": in which strings it must match");
    assert_eq!(
        line("deny = 'x'\nat = \"messages\"", 8),
        "\"at\" in [[rule]] must be a JSON pointer, which begins with \"/\", as \"/messages/*/content\", not \"messages\""
    );
    assert_eq!(
        line("deny = 'x'\npii = [\"cards\"]", 8),
        "\"pii\" in [[rule]] has no effect beside \"deny\": give it a [[rule]] of its own"
    );
    assert_eq!(
        line("deny = 'x'\ninside_words = true", 8),
        "\"inside_words\" in [[rule]] has no effect beside \"deny\": remove it"
    );
    assert_eq!(
        line("max_bytes = 5\nat = \"/user\"", 8),
        "\"at\" in [[rule]] has no effect beside \"max_bytes\", which looks at all of it: remove it"
    );
    assert_eq!(in_rule("denny = 'x'\nmax_bytes = 5"), "unknown key \"denny\"; did you mean \"deny\"?");

    for key in ["moderation_key_env = \"A\"", "moderation_model = \"m\"", "deadline_ms = 5"] {
        let told = line(&format!("pii = [\"cards\"]\n{key}"), 8);
        let name = key.split(' ').next().unwrap();
        assert_eq!(told, format!("{name:?} in [[rule]] has no effect without \"moderation_url\": remove it"));
    }
    assert_eq!(
        line("moderation_url = \"http://h/v1\"\nmoderation_key_env = \"NO_KEY\"", 8),
        "\"moderation_key_env\" in [[rule]] names the environment variable NO_KEY, which is not set; put the key there"
    );
    assert_eq!(
        line("moderation_url = \"http://h/v1\"\nat = \"/user\"", 8),
        "\"at\" in [[rule]] has no effect beside \"moderation_url\", which looks at all of it: remove it"
    );
    // What stands in a URL, or in place of a variable's name, may be a secret.
    let told = seventh("moderation_url = \"http://user:sk-secret@h/v1\"");
    assert!(told.contains("must not hold a user or a password") && !told.contains("sk-secret"), "{told}");
    let told = line("moderation_url = \"http://h/v1\"\nmoderation_key_env = \"sk-secret\"", 8);
    assert!(
        told.contains("must be the name of an environment variable") && !told.contains("sk-secret"),
        "{told}"
    );
    assert_eq!(
        in_rule("moderation_url = \"ftp://h\""),
        "\"moderation_url\" must begin with http:// or https://; write it as \"https://api.openai.com/v1\""
    );

    let missing = "g.toml:4: missing what it checks in [[rule]]: one of terms, terms_file, deny, require, pii, schema, \
                   max_bytes, moderation_url";
    assert_eq!(wrong(&rule("")), missing);
    assert_eq!(
        wrong("[[rule]]\nmax_bytes = 5"),
        "g.toml:4: missing key \"name\" in [[rule]]: what reports call it\n\
         g.toml:4: missing key \"side\" in [[rule]]: \"request\", \"answer\" or \"both\""
    );
    assert_eq!(
        wrong("[[rule]]\nname = \"r\"\nside = \"both\"\ndeny = 'x'\nat = \"/user\""),
        "g.toml:6: \"side\" in [[rule]] is \"both\", but what it looks at is in requests or in answers; make two rules of it"
    );
    assert_eq!(
        wrong("[[rule]]\nname = \"r\"\nside = \"response\"\nmax_bytes = 5\nseverity = \"errors\""),
        "g.toml:6: \"side\" in [[rule]] must be \"request\", \"answer\" or \"both\", not \"response\"\n\
         g.toml:8: \"severity\" in [[rule]] must be \"warn\", \"error\" or \"safety\", not \"errors\"; did you mean \"error\"?"
    );
    for name in ["", "a b", "Grüße", &"x".repeat(65), "json", "structured_output"] {
        let told = wrong(&rule("max_bytes = 5").replace("\"r\"", &format!("{name:?}")));
        assert!(told.starts_with("g.toml:5: \"name\" in [[rule]] "), "{told}");
    }
    let twice = wrong(&(rule("max_bytes = 5") + &rule("max_bytes = 6")));
    assert_eq!(
        twice,
        "g.toml:9: \"name\" in [[rule]] is \"r\", as at g.toml:5; each needs a name of its own"
    );
    assert_eq!(wrong("[rule]"), "g.toml:4: \"rule\" must be written as [[rule]]");
    assert_eq!(wrong("[[rules]]"), "g.toml:4: unknown section \"rules\"; did you mean [[rule]]?");
}

/// Files are looked for beside the configuration; whatever is wrong with one is told with its path.
#[test]
fn files_of_rules_that_are_wrong() {
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("rules");
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("g.toml").to_str().unwrap().to_owned();
    let told = |key: &str, name: &str, contents: Option<&[u8]>| {
        let path = folder.join(name);
        match contents {
            Some(contents) => std::fs::write(&path, contents).unwrap(),
            None => _ = std::fs::remove_file(&path),
        }
        let text = format!("{MOCK}{}", rule(&format!("{key} = \"{name}\"")));
        match Config::from_toml(&config, &text, &Environment::default()) {
            Ok(_) => "fine".to_owned(),
            Err(error) => {
                let (error, path) = (error.to_string(), path.to_str().unwrap());
                let told =
                    error.strip_prefix(&format!("{config}:7: {key:?} in [[rule]] names {path}, which "));
                told.unwrap_or_else(|| panic!("{error}")).to_owned()
            }
        }
    };
    assert_eq!(told("terms_file", "good.txt", Some(b"# a comment\r\n\r\nred door\r\n")), "fine");
    assert_eq!(
        told("terms_file", "none.txt", None),
        "cannot be read: No such file or directory (os error 2)"
    );
    assert_eq!(told("terms_file", "empty.txt", Some(b"# nothing\n\n")), "has no terms");
    assert_eq!(told("terms_file", "latin.txt", Some(b"a\nT\xfcrmchen\n")), "is not UTF-8 text (line 2)");
    assert_eq!(told("terms_file", ".", None), "cannot be read: Is a directory (os error 21)");
    let long = vec![b'x'; (16 << 20) + 1];
    assert_eq!(told("terms_file", "long.txt", Some(&long)), "is longer than 16777216 bytes");
    std::fs::remove_file(folder.join("long.txt")).unwrap();

    assert_eq!(told("schema", "good.json", Some(br##"{"$defs": {"a": {}}, "$ref": "#/$defs/a"}"##)), "fine");
    assert_eq!(told("schema", "none.json", None), "cannot be read: No such file or directory (os error 2)");
    let no_json = told("schema", "no.json", Some(b"{\n\"type\": }"));
    assert_eq!(no_json, "is not JSON: expected value at line 2 column 9");
    for (name, schema, words) in [
        ("type.json", r#"{"type": "no type"}"#, "/type"),
        (
            "remote.json",
            r#"{"properties": {"a": {"$ref": "http://127.0.0.1:9/a.json"}}}"#,
            "/properties/a/$ref",
        ),
        ("beside.json", r#"{"$ref": "good.json"}"#, "/$ref"),
        ("around.json", r#"{"properties": {"a": {"pattern": "(?=x)"}}}"#, "/properties/a/pattern"),
        ("list.json", "[]", "cannot be used: "),
    ] {
        let told = told("schema", name, Some(schema.as_bytes()));
        assert!(told.starts_with("cannot be used: ") && told.contains(words), "{told}");
    }
}

#[test]
fn rules_that_nobody_has_and_names_that_are_none() {
    let rules = rule("terms = [\"nightfall\"]");
    let of_model = |text: &str| wrong(&format!("{text}\n{rules}"));
    assert_eq!(
        of_model("validation_rules = [\"r\", \"r\"]"),
        "g.toml:4: \"validation_rules\" in [[model]] names \"r\", and does so twice"
    );
    assert_eq!(
        of_model("validation_rules = [\"s\", \"r\"]"),
        "g.toml:4: \"validation_rules\" in [[model]] names \"s\", which is no [[rule]]; there are r"
    );
    assert_eq!(
        wrong("validation_rules = [\"s\"]"),
        "g.toml:4: \"validation_rules\" in [[model]] names \"s\", which is no [[rule]]; there is none"
    );
    assert_eq!(
        of_model("validation_rules = []"),
        "g.toml:5: the [[rule]] \"r\" has no effect: no model has it; name it in \"rules\" or \"validation_rules\", or \
         remove it"
    );
    assert_eq!(
        of_model("validation_level = \"strickt\""),
        "g.toml:4: \"validation_level\" in [[model]] must be \"strict\", \"moderate\" or \"lenient\", not \"strickt\"; did \
         you mean \"strict\"?"
    );
    assert_eq!(
        wrong(&format!("[validation]\nrules = [\"cart\"]\n{}", rules.replace("\"r\"", "\"carts\""))),
        "g.toml:5: \"rules\" in [validation] names \"cart\", which is no [[rule]]; did you mean \"carts\"?\n\
         g.toml:6: the [[rule]] \"carts\" has no effect: no model has it; name it in \"rules\" or \"validation_rules\", or \
         remove it"
    );
    let nothing = "has no effect without a [[rule]], or structured_output = true; add one, or remove this";
    for (key, value) in [
        ("level", "\"strict\""),
        ("action", "\"report\""),
        ("window_bytes", "5"),
        ("overlap_bytes", "5"),
        ("window_ms", "5"),
        ("max_answer_bytes", "5"),
        ("max_json_depth", "5"),
    ] {
        let told = wrong(&format!("[validation]\n{key} = {value}"));
        assert_eq!(told, format!("g.toml:5: {key:?} in [validation] {nothing}"));
    }
    let told = wrong(&format!("[validation]\non_error = \"pass\"\n{}", rule("max_bytes = 5")));
    let without = "has no effect without a [[rule]] with moderation_url; add one, or remove this";
    assert_eq!(told, format!("g.toml:5: \"on_error\" in [validation] {without}"));
    let told = wrong("[validation]\non_error = \"fail\"");
    assert!(
        told.starts_with("g.toml:5: \"on_error\" in [validation] must be \"auto\", \"refuse\" or \"pass\""),
        "{told}"
    );
    let told = wrong("validation_action = \"report\"");
    assert_eq!(told, format!("g.toml:4: \"validation_action\" in [[model]] {nothing}"));

    // In streams it could be missed.
    let long = rule(&format!("terms = [\"{}\"]", "x".repeat(300))).replace("\"request\"", "\"answer\"");
    assert_eq!(
        wrong(&long),
        "g.toml:4: the [[rule]] \"r\" has a term of 300 bytes, which would be missed in streams: \"overlap_bytes\" in \
         [validation] is 256; raise that, or shorten the term"
    );
    load(&format!("{MOCK}{long}[validation]\noverlap_bytes = 300"));
    load(&format!("{MOCK}{}", long.replace("\"answer\"", "\"request\"")));
    assert_eq!(
        wrong("[validation]\nlevels = 5"),
        "g.toml:5: unknown key \"levels\" in [validation]; did you mean \"level\"?"
    );
}
