//! Envoy processes: started from the files in `envoy/`, ended by their id.

use super::process::{Process, Scratch, free_port};
use super::redis::{Redis, RedisCluster, Webdis};
use super::{PATIENCE, client, eventually, project_path};
use serde_json::{Value, json};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// The module that `make wasm` builds; `IDEMPOTENCY_MODULE` names another.
const MODULE: &str = "target/wasm32-wasip1/release/envoy_idempotency.wasm";

/// The module that `make trap` builds; `IDEMPOTENCY_TRAP_MODULE` names another.
const TRAP_MODULE: &str = "target/trap/wasm32-wasip1/release/envoy_idempotency.wasm";

/// The Envoy that `make setup` gets; `ENVOY_BIN` names another.
const ENVOY: &str = ".tools/envoy";

/// The name of the listener that clients connect to; others lead from Envoy to itself.
const FRONT: &str = "front";

/// A file that a variable names, or one of this project.
fn file(variable: &str, default: &str, made_by: &str) -> PathBuf {
    let named = std::env::var(variable).ok().filter(|path| !path.is_empty());
    let path = project_path(named.as_deref().unwrap_or(default));
    assert!(path.exists(), "{} is missing: run `{made_by}`", path.display());
    path
}

/// The file of the listeners that can be replaced.
const LISTENERS: &str = "listeners.json";

/// The name of the listener that leads from Envoy to itself, with the same filters.
const LOOPBACK: &str = "loopback";

fn module() -> PathBuf {
    file("IDEMPOTENCY_MODULE", MODULE, "make wasm")
}

/// The one of a list that has this name.
fn named<'a>(list: &'a mut Value, name: &str) -> &'a mut Value {
    let mut all = list.as_array_mut().unwrap().iter_mut();
    all.find(|one| one["name"] == name).unwrap_or_else(|| panic!("nothing is named {name}"))
}

/// A bootstrap file with its ports, paths and configuration replaced.
#[derive(Clone)]
pub struct Bootstrap {
    file: Value,
    /// Variables of the process's environment.
    environment: Vec<(String, String)>,
    /// The listeners come from a file that can be replaced while Envoy runs.
    replaceable: bool,
    /// Worker threads.
    workers: u32,
    /// Seconds that connections of replaced listeners still live.
    drain_seconds: u32,
}

impl Bootstrap {
    /// `envoy/demo.yaml`, on free ports.
    pub fn demo() -> Self {
        Self::read("demo.yaml")
    }

    /// A file of `envoy/`, on free ports.
    pub fn read(name: &str) -> Self {
        let path = project_path("envoy").join(name);
        let text = std::fs::read_to_string(&path).unwrap();
        let file: Value = serde_norway::from_str(&text).unwrap();
        let mut bootstrap = Self {
            file,
            environment: Vec::new(),
            replaceable: false,
            workers: 2,
            // A test's Envoy has nothing to drain when it ends.
            drain_seconds: 1,
        };
        bootstrap.file["admin"]["address"]["socket_address"]["port_value"] = json!(0);
        bootstrap.listener()["address"]["socket_address"]["port_value"] = json!(0);
        let module = module();
        bootstrap.plugin()["vm_config"]["code"]["local"]["filename"] = json!(module);
        if let Some(bridge) = bootstrap.bridge() {
            bridge["vm_config"]["code"]["local"]["filename"] = json!(module);
        }
        bootstrap
    }

    /// `envoy/redis.yaml`, with this Redis.
    pub fn redis(port: u16) -> Self {
        Self::read("redis.yaml").endpoints("redis", &[port])
    }

    /// `envoy/redis-tls.yaml`, with this Redis, its authority and its password.
    pub fn redis_tls(redis: &Redis) -> Self {
        let mut bootstrap = Self::read("redis-tls.yaml").endpoints("redis", &[redis.port()]);
        let tls = &mut bootstrap.cluster("redis")["transport_socket"]["typed_config"];
        tls["common_tls_context"]["validation_context"]["trusted_ca"]["filename"] =
            json!(redis.ca_path());
        bootstrap.env("REDIS_PASSWORD", redis.password().unwrap_or_default())
    }

    /// `envoy/redis-cluster.yaml`, with these nodes, which know the others.
    pub fn redis_cluster(cluster: &RedisCluster) -> Self {
        Self::read("redis-cluster.yaml").endpoints("redis_nodes", &cluster.ports())
    }

    /// `envoy/webdis.yaml`, with this Webdis.
    pub fn webdis(webdis: &Webdis) -> Self {
        Self::read("webdis.yaml").endpoints("redis", &[webdis.port()])
    }

    /// The listener that clients connect to.
    pub fn listener(&mut self) -> &mut Value {
        named(&mut self.file["static_resources"]["listeners"], FRONT)
    }

    /// A cluster of this name.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn cluster(&mut self, name: &str) -> &mut Value {
        named(&mut self.file["static_resources"]["clusters"], name)
    }

    /// Where a cluster's endpoints listen, all of them on this machine.
    #[must_use]
    pub fn endpoints(mut self, cluster: &str, ports: &[u16]) -> Self {
        let endpoints: Vec<Value> = ports
            .iter()
            .map(|port| {
                let address = json!({ "address": "127.0.0.1", "port_value": port });
                json!({ "endpoint": { "address": { "socket_address": address } } })
            })
            .collect();
        let assignment = &mut self.cluster(cluster)["load_assignment"]["endpoints"][0];
        assignment["lb_endpoints"] = json!(endpoints);
        self
    }

    /// The bridge to Redis, as Envoy's plugin config; `None` if the file has none.
    fn bridge(&mut self) -> Option<&mut Value> {
        let clusters = self.file["static_resources"]["clusters"].as_array_mut()?;
        let redis = clusters.iter_mut().find(|cluster| cluster["name"] == "redis")?;
        let options = redis.get_mut("typed_extension_protocol_options")?;
        let http = options.get_mut("envoy.extensions.upstreams.http.v3.HttpProtocolOptions")?;
        Some(&mut http.get_mut("http_filters")?[0]["typed_config"]["config"])
    }

    /// The HTTP connection manager.
    pub fn manager(&mut self) -> &mut Value {
        &mut self.listener()["filter_chains"][0]["filters"][0]["typed_config"]
    }

    /// The filter, as Envoy's plugin config.
    pub fn plugin(&mut self) -> &mut Value {
        &mut self.manager()["http_filters"][0]["typed_config"]["config"]
    }

    /// Replaces this filter by another.
    #[must_use]
    pub fn filter(mut self, filter: Value) -> Self {
        self.manager()["http_filters"][0] = filter;
        self
    }

    /// Removes the filter: plain Envoy.
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

    /// Other rules, and the rest of this configuration; the store stays the file's own if
    /// none is named.
    #[must_use]
    pub fn rules(mut self, config: &Value) -> Self {
        let text = self.plugin()["configuration"]["value"].as_str().unwrap();
        let mut all: Value = serde_json::from_str(text).unwrap();
        for (name, value) in config.as_object().unwrap() {
            all[name] = value.clone();
        }
        self.config(&all)
    }

    /// A variable of the environment that Envoy starts in.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs the module that stops on request, and that has a variable batch size.
    #[must_use]
    pub fn trap_module(mut self) -> Self {
        let module = file("IDEMPOTENCY_TRAP_MODULE", TRAP_MODULE, "make trap");
        self.plugin()["vm_config"]["code"]["local"]["filename"] = json!(module);
        self
    }

    /// Lets one callback handle this many streams; only [`Self::trap_module`] supports it.
    #[must_use]
    pub fn batch(self, streams: u32) -> Self {
        let mut all = self.trap_module();
        all.plugin()["vm_config"]["environment_variables"] =
            json!({ "key_values": { "DELIBERATE_BATCH": streams.to_string() } });
        all
    }

    /// Lets [`Envoy::replace`] replace these listeners.
    #[must_use]
    pub fn replaceable(mut self) -> Self {
        let port = free_port();
        self.listener()["address"]["socket_address"]["port_value"] = json!(port);
        self.replaceable = true;
        self
    }

    /// Starts Envoy with this many workers instead of two.
    #[must_use]
    pub fn workers(mut self, workers: u32) -> Self {
        self.workers = workers;
        self
    }

    /// Lets connections of replaced listeners live for this many seconds instead of one.
    #[must_use]
    pub fn drain_seconds(mut self, seconds: u32) -> Self {
        self.drain_seconds = seconds;
        self
    }

    /// The listeners as a resource of their own, out of this file.
    fn take_listeners(&mut self) -> String {
        let mut listeners = self.file["static_resources"]["listeners"].take();
        for listener in listeners.as_array_mut().unwrap() {
            listener["@type"] = json!("type.googleapis.com/envoy.config.listener.v3.Listener");
        }
        json!({ "resources": listeners }).to_string()
    }

    /// Changes anything else.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// The filter of the listener that leads back into this Envoy is the filter of the front, in the file by
    /// an alias: what a test has changed in one, it has changed in both.
    fn alias(mut self) -> Self {
        let filter = self.manager()["http_filters"][0].clone();
        let listeners = self.file["static_resources"]["listeners"].as_array_mut().unwrap();
        for listener in listeners.iter_mut().filter(|listener| listener["name"] == LOOPBACK) {
            let manager = &mut listener["filter_chains"][0]["filters"][0]["typed_config"];
            manager["http_filters"][0] = filter.clone();
        }
        self
    }

    /// The whole file.
    pub fn value(&mut self) -> &mut Value {
        &mut self.file
    }

    /// Where the origin listens.
    #[must_use]
    pub fn origin(mut self, port: u16) -> Self {
        // A slow answer of a busy machine must not count as an origin that is gone.
        self.cluster("origin")["connect_timeout"] = json!("10s");
        self.endpoints("origin", &[port])
    }
}

/// A running Envoy. Ends with this value; its log is printed if the test fails.
pub struct Envoy {
    /// Before the folder, whose log it prints.
    process: Process,
    scratch: Scratch,
    /// Where clients send their requests.
    pub front: SocketAddr,
    /// Envoy's admin port.
    pub admin: SocketAddr,
}

impl Envoy {
    /// Starts Envoy and waits until it is ready.
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
        let mut bootstrap = bootstrap.alias();
        let scratch = Scratch::new();
        if bootstrap.replaceable {
            let path = scratch.file(LISTENERS);
            std::fs::write(&path, bootstrap.take_listeners()).unwrap();
            bootstrap.file["node"] = json!({ "id": "test", "cluster": "test" });
            bootstrap.file["dynamic_resources"] = json!({
                "lds_config": { "path_config_source": { "path": path } } });
        }
        let config = scratch.file("envoy.json");
        std::fs::write(&config, bootstrap.file.to_string()).unwrap();
        let admin_path = scratch.file("admin");
        let mut command = Command::new(file("ENVOY_BIN", ENVOY, "make setup"));
        command
            .args(["--concurrency", &bootstrap.workers.to_string()])
            .args(["--disable-hot-restart", "--log-level", "info"])
            // They list this Envoy's extensions, several pages of them.
            .args(["--component-log-level", "main:warning,config:warning,upstream:warning"])
            .args(["--drain-time-s", &bootstrap.drain_seconds.to_string()])
            // Tests wait for lines of the access log; Envoy keeps them for ten seconds.
            .args(["--file-flush-interval-msec", "50"])
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin_path)
            .envs(bootstrap.environment);
        let mut process = Process::start("Envoy", &mut command, &scratch);
        let deadline = Instant::now() + 3 * PATIENCE;
        loop {
            if process.has_ended() || Instant::now() > deadline {
                process.kill();
                return Err(process.log());
            }
            let admin =
                std::fs::read_to_string(&admin_path).ok().and_then(|text| text.trim().parse().ok());
            if let Some(admin) = admin
                && client::get(admin, "/ready").await.is_some_and(|text| text.contains("LIVE"))
                && let Some(front) = front(admin).await
            {
                return Ok(Self { process, scratch, front, admin });
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Envoy's log so far, access log included.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// A number of Envoy's statistics; `None` if there is none of that name.
    pub async fn stat(&self, name: &str) -> Option<u64> {
        let text = client::get(self.admin, "/stats").await?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))?;
        line.trim().parse().ok()
    }

    /// `idempotency_requests_total` of a rule and outcome.
    pub async fn counted(&self, rule: &str, outcome: &str) -> u64 {
        let name = format!("idempotency_requests_total.rule.{rule}.outcome.{outcome}");
        self.stat(&format!("wasmcustom.{name}")).await.unwrap_or(0)
    }

    /// VMs that were created so far: one more than before means that one stopped and was replaced.
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
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id()));
        let line = status.unwrap_or_default();
        let line = line.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Replaces its listeners by those of this bootstrap, on the same port, as a control
    /// plane would.
    ///
    /// # Panics
    ///
    /// If it was not started with [`Bootstrap::replaceable`], or does not take them.
    pub async fn replace(&self, bootstrap: Bootstrap) {
        let mut bootstrap = bootstrap.alias();
        bootstrap.listener()["address"]["socket_address"]["port_value"] = json!(self.front.port());
        let updates = "listener_manager.lds.update_success";
        let before = self.stat(updates).await.unwrap();
        let next = self.scratch.file("next");
        std::fs::write(&next, bootstrap.take_listeners()).unwrap();
        // Envoy reads it when a file is moved there.
        std::fs::rename(next, self.scratch.file(LISTENERS)).unwrap();
        eventually("Envoy has taken the listeners", async || {
            self.stat(updates).await.unwrap() > before
        })
        .await;
    }

    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Freezes it: its connections stay open, its leases run out, its clock goes on.
    pub async fn freeze(&self) {
        self.process.freeze().await;
    }

    /// Lets it go on.
    pub async fn thaw(&self) {
        self.process.thaw().await;
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

async fn front(admin: SocketAddr) -> Option<SocketAddr> {
    let text = client::get(admin, "/listeners?format=json").await?;
    let listeners: Value = serde_json::from_str(&text).ok()?;
    let mut listeners = listeners["listener_statuses"].as_array()?.iter();
    let front = listeners.find(|listener| listener["name"] == FRONT)?;
    let address = &front["local_address"]["socket_address"];
    let port = u16::try_from(address["port_value"].as_u64()?).ok()?;
    Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
}
