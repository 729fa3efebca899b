//! NGINX with a Lua script that does the same, for comparison, if both are installed.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testkit::process::{Process, Scratch, free_port};
use testkit::{PATIENCE, client};
use tokio::time::sleep;

/// Debian's folder of NGINX's modules.
const MODULES: &str = "/usr/lib/nginx/modules";

const CONFIG: &str = include_str!("nginx.conf");

/// A running NGINX. Ends with this value.
pub(super) struct Nginx {
    pub(super) front: SocketAddr,
    process: Process,
    scratch: Scratch,
}

impl Nginx {
    /// The packages that it needs.
    pub(super) const WANTED: &str =
        "install Debian's nginx-light, libnginx-mod-http-lua and lua-resty-core";

    /// Starts one; `None` if it is not installed.
    ///
    /// # Panics
    ///
    /// If it is installed but does not come up.
    pub(super) async fn start(origin: u16, redis: u16) -> Option<Self> {
        let version = Command::new("nginx").arg("-v").stderr(Stdio::null()).status();
        if version.is_err() || !Path::new(MODULES).join("ngx_http_lua_module.so").exists() {
            return None;
        }
        let scratch = Scratch::new();
        let port = free_port();
        let config = CONFIG
            .replace("MODULES", MODULES)
            .replace("SCRATCH", &scratch.path().display().to_string())
            .replace("ORIGIN", &origin.to_string())
            .replace("REDIS", &redis.to_string())
            .replace("FRONT", &port.to_string());
        std::fs::write(scratch.file("nginx.conf"), config).unwrap();
        let mut process = Process::start("NGINX", &mut command(&scratch), &scratch);
        let front = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let deadline = Instant::now() + PATIENCE;
        while client::get(front, "/origin/").await.is_none() {
            assert!(!process.has_ended() && Instant::now() < deadline, "NGINX: {}", process.log());
            sleep(Duration::from_millis(10)).await;
        }
        Some(Self { front, process, scratch })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its workers would outlive a master that is killed.
        let _ = command(&self.scratch).args(["-s", "stop"]).stderr(Stdio::null()).status();
        let deadline = Instant::now() + PATIENCE;
        while !self.process.has_ended() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn command(scratch: &Scratch) -> Command {
    let mut command = Command::new("nginx");
    command.arg("-p").arg(scratch.path()).arg("-c").arg(scratch.file("nginx.conf"));
    command
}
