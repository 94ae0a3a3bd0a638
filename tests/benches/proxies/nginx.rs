//! nginx as a reverse proxy, with a configuration and a directory of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::{Child, Scratch, free_address};
use crate::{BoxError, Proxy};

/// nginx on this machine. Debian puts it where an ordinary user's PATH does not look.
pub(crate) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = PathBuf::from("/usr/sbin");
    std::env::split_paths(&path).chain([usual]).map(|dir| dir.join("nginx")).find(|file| file.is_file())
}

pub(crate) fn start(nginx: &Path, upstream: SocketAddr, scratch: &Scratch) -> Result<Proxy, BoxError> {
    let dir = scratch.subdirectory("nginx")?;
    let address = free_address()?;
    let config = dir.join("nginx.conf");
    std::fs::write(&config, configuration(&dir, address, upstream))?;

    let mut command = Command::new(nginx);
    command.arg("-p").arg(&dir).arg("-c").arg(&config);
    let child = Child::supervised(&command, address, &dir.join("output"))?;
    child.wait_until_listening(None)?;
    Ok(Proxy { key: "nginx", title: "nginx", address, child: Some(child) })
}

fn configuration(dir: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "\
daemon off;
worker_processes 2;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body;
  proxy_temp_path {dir}/proxy;
  fastcgi_temp_path {dir}/fastcgi;
  uwsgi_temp_path {dir}/uwsgi;
  scgi_temp_path {dir}/scgi;
  keepalive_requests 1000000000;
  upstream mock {{
    server {upstream};
    keepalive 1024;
    keepalive_requests 1000000000;
  }}
  server {{
    listen {address};
    location / {{
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
    }}
  }}
}}
"
    )
}
