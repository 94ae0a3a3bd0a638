//! The gateway, as its binary: what a user runs is what is measured.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::process::{Child, Scratch, free_address};
use crate::{BoxError, Proxy};

pub(crate) fn start(upstream: SocketAddr, scratch: &Scratch) -> Result<Proxy, BoxError> {
    let binary = match std::env::var_os("BENCH_GATEWAY") {
        Some(path) => PathBuf::from(path),
        None => build()?,
    };
    let dir = scratch.subdirectory("gateway")?;
    let address = free_address()?;
    let config = dir.join("gateway.toml");
    std::fs::write(&config, configuration(address, upstream))?;

    let mut command = Command::new(&binary);
    // Quiet like the others. The key is one for the mock, should a model want one.
    command.arg("--config").arg(&config).env("RUST_LOG", "warn").env("OPENAI_API_KEY", "bench");
    let child = Child::supervised(&command, address, &dir.join("output"))?;
    child.wait_until_listening(Some("/livez"))?;
    Ok(Proxy { key: "gateway", title: "gateway", address, child: Some(child) })
}

fn configuration(address: SocketAddr, upstream: SocketAddr) -> String {
    format!(
        "\
[server]
listen = \"{address}\"

[[model]]
name = \"bench\"
upstream = \"openai\"
base_url = \"http://{upstream}/v1\"
"
    )
}

/// Builds the gateway beside this program, so that what is measured is what the sources say now.
fn build() -> Result<PathBuf, BoxError> {
    // target/release/deps/proxies-0123
    let this = std::env::current_exe()?;
    let (Some(release), Some(target)) = (this.ancestors().nth(2), this.ancestors().nth(3)) else {
        return Err("this program is not in a target directory: set BENCH_GATEWAY".into());
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--release", "--package", "gateway", "--target-dir"])
        .arg(target)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")))
        .stdin(Stdio::null())
        .status()?;
    let binary = release.join("gateway");
    if !status.success() || !binary.is_file() {
        return Err(format!("cargo build made no {}: set BENCH_GATEWAY", binary.display()).into());
    }
    Ok(binary)
}
