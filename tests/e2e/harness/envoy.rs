//! Envoy processes: started from the files in `envoy/`, ended by their id.

use super::{PATIENCE, client};
use serde_json::{Value, json};
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The module that `make wasm` builds; `IDEMPOTENCY_MODULE` names another.
const MODULE: &str = "target/wasm32-wasip1/release/envoy_idempotency.wasm";

/// The Envoy that `make setup` gets; `ENVOY_BIN` names another.
const ENVOY: &str = ".tools/envoy";

/// A file that a variable names, or one of this project.
fn file(variable: &str, default: &str, made_by: &str) -> PathBuf {
    let named = std::env::var(variable).ok().filter(|path| !path.is_empty());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(named.as_deref().unwrap_or(default));
    assert!(path.exists(), "{} is missing: run `{made_by}`", path.display());
    path
}

/// A bootstrap file with its ports, paths and configuration replaced.
#[derive(Clone)]
pub struct Bootstrap(Value);

impl Bootstrap {
    /// `envoy/demo.yaml`, on free ports.
    pub fn demo() -> Self {
        Self::read("demo.yaml")
    }

    /// A file of `envoy/`, on free ports.
    pub fn read(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let mut bootstrap: Value = serde_norway::from_str(&text).unwrap();
        bootstrap["admin"]["address"]["socket_address"]["port_value"] = json!(0);
        let mut bootstrap = Self(bootstrap);
        bootstrap.listener()["address"]["socket_address"]["port_value"] = json!(0);
        let module = file("IDEMPOTENCY_MODULE", MODULE, "make wasm");
        bootstrap.plugin()["vm_config"]["code"]["local"]["filename"] = json!(module);
        bootstrap
    }

    fn listener(&mut self) -> &mut Value {
        &mut self.0["static_resources"]["listeners"][0]
    }

    /// The HTTP connection manager.
    pub fn manager(&mut self) -> &mut Value {
        &mut self.listener()["filter_chains"][0]["filters"][0]["typed_config"]
    }

    /// The filter, as Envoy's plugin config.
    pub fn plugin(&mut self) -> &mut Value {
        &mut self.manager()["http_filters"][0]["typed_config"]["config"]
    }

    /// Puts another filter in the place of this one.
    #[must_use]
    pub fn filter(mut self, filter: Value) -> Self {
        self.manager()["http_filters"][0] = filter;
        self
    }

    /// Takes the filter out: plain Envoy.
    #[must_use]
    pub fn without_filter(mut self) -> Self {
        if let Some(filters) = self.manager()["http_filters"].as_array_mut() {
            filters.remove(0);
        }
        self
    }

    /// The filter's configuration, as JSON in a `StringValue`.
    #[must_use]
    pub fn config(self, config: &Value) -> Self {
        self.config_text(&config.to_string())
    }

    /// The filter's configuration, as any text.
    #[must_use]
    pub fn config_text(mut self, text: &str) -> Self {
        self.plugin()["configuration"]["value"] = json!(text);
        self
    }

    /// Changes anything else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The whole file.
    pub fn value(&mut self) -> &mut Value {
        &mut self.0
    }

    /// Where the origin listens.
    #[must_use]
    pub fn origin(mut self, port: u16) -> Self {
        let clusters = &mut self.0["static_resources"]["clusters"];
        clusters[0]["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
            ["socket_address"]["port_value"] = json!(port);
        self
    }
}

/// A running Envoy. Ends with this value; its log is printed if the test fails.
pub struct Envoy {
    child: Child,
    scratch: Scratch,
    /// Where clients send their requests.
    pub front: SocketAddr,
    /// Where Envoy tells about itself.
    pub admin: SocketAddr,
}

/// A folder of our own, removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("envoy-idempotency-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Envoy {
    /// Starts Envoy with two workers and waits until it is ready.
    ///
    /// # Panics
    ///
    /// With Envoy's log, if it does not come up.
    pub async fn start(bootstrap: Bootstrap) -> Self {
        match Self::try_start(bootstrap).await {
            Ok(envoy) => envoy,
            Err(log) => panic!("Envoy did not start:\n{log}"),
        }
    }

    /// The log of an Envoy that refuses this bootstrap.
    ///
    /// # Panics
    ///
    /// If it starts.
    pub async fn refuses(bootstrap: Bootstrap) -> String {
        match Self::try_start(bootstrap).await {
            Ok(_) => panic!("Envoy started"),
            Err(log) => log,
        }
    }

    async fn try_start(bootstrap: Bootstrap) -> Result<Self, String> {
        let scratch = Scratch::new();
        let config = scratch.0.join("envoy.json");
        std::fs::write(&config, bootstrap.0.to_string()).unwrap();
        let log = File::create(scratch.0.join("log")).unwrap();
        let admin_path = scratch.0.join("admin");
        let mut child = Command::new(file("ENVOY_BIN", ENVOY, "make setup"))
            .args(["--concurrency", "2", "--disable-hot-restart", "--log-level", "info"])
            // They list what this Envoy was built with, several pages of it.
            .args(["--component-log-level", "main:warning,config:warning,upstream:warning"])
            // A test's Envoy that is told to end has nothing to drain.
            .args(["--drain-time-s", "1"])
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            if child.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(std::fs::read_to_string(scratch.0.join("log")).unwrap_or_default());
            }
            let admin =
                std::fs::read_to_string(&admin_path).ok().and_then(|text| text.trim().parse().ok());
            if let Some(admin) = admin
                && client::get(admin, "/ready").await.is_some_and(|text| text.contains("LIVE"))
                && let Some(front) = front(admin).await
            {
                let envoy = Self { child, scratch, front, admin };
                return Ok(envoy);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What Envoy has logged so far, access log included.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.0.join("log")).unwrap_or_default()
    }

    /// A number of Envoy's statistics; `None` if there is none of that name.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let text = client::get(self.admin, "/stats").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        line.trim().parse().ok()
    }

    /// VMs that were made so far: one more than before is one that had stopped and was replaced.
    pub async fn vms_created(&self) -> u64 {
        self.stat("wasm.envoy.wasm.runtime.v8.created").await.unwrap()
    }

    /// Connections that each worker has taken on.
    pub async fn connections(&self) -> Vec<u64> {
        let text = client::get(self.admin, "/stats?filter=worker_.*downstream_cx_total").await;
        let text = text.unwrap_or_default();
        text.lines().filter_map(|line| line.rsplit_once(": ")?.1.parse().ok()).collect()
    }

    /// Bytes that Envoy has read from clients.
    pub async fn bytes_received(&self) -> u64 {
        self.stat("http.front.downstream_cx_rx_bytes_total").await.unwrap_or(0)
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let line = status.unwrap_or_default();
        let line = line.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn front(admin: SocketAddr) -> Option<SocketAddr> {
    let text = client::get(admin, "/listeners?format=json").await?;
    let listeners: Value = serde_json::from_str(&text).ok()?;
    let address = &listeners["listener_statuses"][0]["local_address"]["socket_address"];
    let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}

impl Drop for Envoy {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("---- Envoy's log ----\n{}---- end ----", self.log());
        }
    }
}
