//! Redis, a Redis Cluster, and Webdis: real processes on ports of their own.

use super::process::{Process, Scratch, free_port};
use super::{PATIENCE, client, eventually};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tokio::time::{sleep, timeout};

/// How often a server that finds its port taken starts again on another.
const ATTEMPTS: usize = 5;

/// How a Redis of a test differs from another.
#[derive(Clone, Default)]
struct Setup {
    arguments: Vec<String>,
    password: Option<String>,
    tls: bool,
    /// It is a node of a cluster.
    node: bool,
}

/// A Redis without persistence: its data is gone when it starts again. Ends with this value.
pub struct Redis {
    /// Before the folder, whose log it prints.
    process: Process,
    scratch: Scratch,
    setup: Setup,
    port: u16,
    /// The port of the cluster bus.
    bus_port: u16,
}

impl Redis {
    /// Starts one without a password.
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts one with these additional arguments. [`Self::cli`] uses a `--requirepass` among them.
    pub async fn with(arguments: &[&str]) -> Self {
        let password = arguments.windows(2).find(|pair| pair[0] == "--requirepass");
        Self::set_up(Setup {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            password: password.map(|pair| pair[1].to_owned()),
            ..Setup::default()
        })
        .await
    }

    /// Starts one that speaks only TLS, with a certificate for `localhost` and 127.0.0.1, and requires this
    /// password.
    pub async fn tls(password: &str) -> Self {
        Self::set_up(Setup {
            arguments: vec!["--requirepass".to_owned(), password.to_owned()],
            password: Some(password.to_owned()),
            tls: true,
            ..Setup::default()
        })
        .await
    }

    async fn set_up(setup: Setup) -> Self {
        let scratch = Scratch::new();
        if setup.tls {
            make_certificates(&scratch);
        }
        let (port, bus_port) = (free_port(), free_port());
        let process = launch(&setup, &scratch, port, bus_port);
        let mut redis = Self { process, scratch, setup, port, bus_port };
        for _ in 0..ATTEMPTS {
            if redis.is_up().await {
                return redis;
            }
            assert!(redis.log().contains("in use"), "Redis did not start: {}", redis.log());
            (redis.port, redis.bus_port) = (free_port(), free_port());
            redis.process = launch(&redis.setup, &redis.scratch, redis.port, redis.bus_port);
        }
        panic!("Redis found no free port: {}", redis.log());
    }

    /// Waits until it answers; false if it has ended.
    async fn is_up(&mut self) -> bool {
        // Another Redis may have been faster to take the port.
        let wanted = format!("process_id:{}\r", self.process.id());
        let deadline = Instant::now() + PATIENCE;
        while !self.process.has_ended() {
            let info = self.output(&["INFO", "server"], None).await;
            if String::from_utf8_lossy(&info.stdout).contains(&wanted) {
                return true;
            }
            assert!(Instant::now() < deadline, "Redis never answered: {}", self.log());
            sleep(Duration::from_millis(5)).await;
        }
        false
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of the authority that a TLS client is to trust.
    pub fn ca_path(&self) -> PathBuf {
        self.scratch.file("ca.crt")
    }

    /// The password that it requires.
    pub fn password(&self) -> Option<&str> {
        self.setup.password.as_deref()
    }

    /// Ends it at once, as a crash would: connections are reset, and new ones refused.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Starts it again on its port, empty, after it was stopped or instead of it.
    ///
    /// # Panics
    ///
    /// If it does not come up.
    pub async fn restart(&mut self) {
        self.stop();
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.process = launch(&self.setup, &self.scratch, self.port, self.bus_port);
            if self.is_up().await {
                return;
            }
            assert!(Instant::now() < deadline, "Redis did not come back: {}", self.process.log());
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Freezes it: its connections stay open, and it does not answer.
    pub async fn freeze(&self) {
        self.process.freeze().await;
    }

    /// Lets it go on, with all bytes that were sent to it meanwhile.
    pub async fn thaw(&self) {
        self.process.thaw().await;
    }

    /// Redis's log so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The output of `redis-cli` for this command, without the last line's end. An error is its text.
    ///
    /// # Panics
    ///
    /// If it cannot be reached, or does not answer within [`PATIENCE`].
    pub async fn cli(&self, command: &[&str]) -> String {
        String::from_utf8_lossy(&self.bytes_of(command, None).await).into_owned()
    }

    /// The keys of this pattern, sorted; they must be text.
    pub async fn keys(&self, pattern: &str) -> Vec<String> {
        let mut keys: Vec<_> =
            self.cli(&["--scan", "--pattern", pattern]).await.lines().map(str::to_owned).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The value of a key; empty if there is none.
    pub async fn bytes(&self, key: &str) -> Vec<u8> {
        self.bytes_of(&["GET", key], None).await
    }

    /// Gives a key another value. Its time to live stays.
    pub async fn set_bytes(&self, key: &str, value: &[u8]) {
        let set = ["-X", "the-value", "SET", key, "the-value", "KEEPTTL"];
        assert_eq!(self.bytes_of(&set, Some(value)).await, b"OK");
    }

    /// Milliseconds that a key still lives; negative if there is none, or if it lives for ever.
    pub async fn ttl_millis(&self, key: &str) -> i64 {
        self.cli(&["PTTL", key]).await.parse().unwrap()
    }

    /// Connections of clients except the one that asks; only those with this prefix of the name, if one is given.
    pub async fn clients(&self, name: Option<&str>) -> usize {
        let list = self.cli(&["CLIENT", "LIST"]).await;
        let name = format!(" name={}", name.unwrap_or_default());
        let others = list.lines().filter(|line| !line.contains(" cmd=client|list "));
        others.filter(|line| line.contains(&name)).count()
    }

    /// How often a command was called, as `evalsha` or `client|list`, by clients or by scripts.
    pub async fn calls(&self, command: &str) -> u64 {
        let stats = self.cli(&["INFO", "commandstats"]).await;
        let start = format!("cmdstat_{}:calls=", command.to_lowercase());
        let calls = stats.lines().find_map(|line| line.strip_prefix(&start)?.split(',').next());
        calls.map_or(0, |calls| calls.parse().unwrap())
    }

    /// Calls of the commands that the filter sends, all together: scripts, by text and by digest.
    pub async fn script_calls(&self) -> u64 {
        self.calls("eval").await + self.calls("evalsha").await
    }

    async fn bytes_of(&self, command: &[&str], input: Option<&[u8]>) -> Vec<u8> {
        let output = self.output(command, input).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "redis-cli {command:?}: {errors}");
        let mut bytes = output.stdout;
        if bytes.last() == Some(&b'\n') {
            bytes.pop();
        }
        bytes
    }

    async fn output(&self, arguments: &[&str], input: Option<&[u8]>) -> Output {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        if let Some(password) = &self.setup.password {
            command.args(["--no-auth-warning", "-a", password]);
        }
        if self.setup.tls {
            command.arg("--tls").arg("--cacert").arg(self.ca_path());
        }
        command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let input = input.unwrap_or_default().to_vec();
        let answer = tokio::task::spawn_blocking(move || {
            let mut child = command.spawn().expect("redis-cli is missing: run `make setup`");
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(&input).unwrap();
            }
            child.wait_with_output().unwrap()
        });
        match timeout(PATIENCE, answer).await {
            Ok(output) => output.unwrap(),
            Err(_) => panic!("Redis did not answer {arguments:?}"),
        }
    }
}

fn launch(setup: &Setup, scratch: &Scratch, port: u16, bus_port: u16) -> Process {
    let named = std::env::var("REDIS_SERVER_BIN").ok().filter(|path| !path.is_empty());
    let mut command = Command::new(named.as_deref().unwrap_or("redis-server"));
    command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    // A store of claims must refuse writes when it is full: evicting a claim would let a duplicate run.
    command.args(["--maxmemory-policy", "noeviction"]);
    command.arg("--dir").arg(scratch.path());
    if setup.tls {
        command.args(["--port", "0", "--tls-port", &port.to_string()]);
        command.args(["--tls-auth-clients", "no"]);
        command.arg("--tls-cert-file").arg(scratch.file("server.crt"));
        command.arg("--tls-key-file").arg(scratch.file("server.key"));
        command.arg("--tls-ca-cert-file").arg(scratch.file("ca.crt"));
    } else {
        command.args(["--port", &port.to_string()]);
    }
    if setup.node {
        // The default, 10,000 above the port, may be the port of another server.
        command.args(["--cluster-enabled", "yes", "--cluster-port", &bus_port.to_string()]);
        command.args(["--cluster-announce-ip", "127.0.0.1"]);
        // A node counts as gone after a second, so that a test of that is short.
        command.args(["--cluster-config-file", "nodes.conf", "--cluster-node-timeout", "1000"]);
    }
    command.args(&setup.arguments);
    Process::start("Redis", &mut command, scratch)
}

/// An authority, and a certificate of it for this machine.
fn make_certificates(scratch: &Scratch) {
    const CONFIG: &str = "\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = DNS:localhost,IP:127.0.0.1
";
    std::fs::write(scratch.file("openssl.cnf"), CONFIG).unwrap();
    let request = "req -x509 -config openssl.cnf -days 2 -nodes -newkey ec \
                   -pkeyopt ec_paramgen_curve:prime256v1";
    for certificate in [
        "-extensions authority -subj /CN=authority -keyout ca.key -out ca.crt",
        "-extensions server -subj /CN=localhost -CA ca.crt -CAkey ca.key -keyout server.key -out server.crt",
    ] {
        let output = Command::new("openssl")
            .args(request.split_whitespace())
            .args(certificate.split(' '))
            .current_dir(scratch.path())
            .output()
            .expect("openssl is missing: run `make setup`");
        assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A Redis Cluster: only primaries, which share the slots evenly. Ends with this value.
pub struct RedisCluster {
    pub nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Slots of every Redis Cluster.
    const SLOTS: usize = 16_384;

    /// Starts this many nodes, joins them, and waits until each reports that the cluster is up.
    pub async fn start(nodes: usize) -> Self {
        let mut cluster = Self { nodes: Vec::new() };
        for number in 0..nodes {
            let node = Redis::set_up(Setup { node: true, ..Setup::default() }).await;
            let first = (number * Self::SLOTS / nodes).to_string();
            let last = ((number + 1) * Self::SLOTS / nodes - 1).to_string();
            assert_eq!(node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await, "OK");
            // Nodes that all say 0 would first have to agree on an epoch.
            let epoch = (number + 1).to_string();
            assert_eq!(node.cli(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await, "OK");
            if let Some(seed) = cluster.nodes.first() {
                let (port, bus_port) = (seed.port.to_string(), seed.bus_port.to_string());
                let meet = ["CLUSTER", "MEET", "127.0.0.1", &port, &bus_port];
                assert_eq!(node.cli(&meet).await, "OK");
            }
            cluster.nodes.push(node);
        }
        cluster.is_well().await;
        cluster
    }

    /// Waits until each node knows all the others, and that all slots are served.
    pub async fn is_well(&self) {
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        for node in &self.nodes {
            eventually("the cluster is well", async || {
                let info = node.cli(&["CLUSTER", "INFO"]).await;
                info.contains("cluster_state:ok") && info.contains(&known)
            })
            .await;
        }
    }

    pub fn ports(&self) -> Vec<u16> {
        self.nodes.iter().map(Redis::port).collect()
    }

    /// How many keys each node holds.
    pub async fn keys_per_node(&self) -> Vec<usize> {
        let mut keys = Vec::new();
        for node in &self.nodes {
            keys.push(node.cli(&["DBSIZE"]).await.parse().unwrap());
        }
        keys
    }

    /// The output of `redis-cli` for this command, sent to the node that serves its key.
    pub async fn cli(&self, command: &[&str]) -> String {
        self.nodes[0].cli(&[&["-c"], command].concat()).await
    }

    /// How often a command was called, on all nodes together.
    pub async fn calls(&self, command: &str) -> u64 {
        let mut calls = 0;
        for node in &self.nodes {
            calls += node.calls(command).await;
        }
        calls
    }
}

/// A Webdis, Redis over HTTP. Ends with this value.
pub struct Webdis {
    process: Process,
    _scratch: Scratch,
    port: u16,
}

impl Webdis {
    /// Starts one in front of a Redis, and waits until it answers, with whatever status.
    pub async fn start(redis_port: u16) -> Self {
        Self::with(redis_port, None).await
    }

    /// Starts one in front of a Redis that requires a password.
    pub async fn with(redis_port: u16, password: Option<&str>) -> Self {
        for _ in 0..ATTEMPTS {
            let scratch = Scratch::new();
            let port = free_port();
            let config = serde_json::json!({
                "redis_host": "127.0.0.1", "redis_port": redis_port, "redis_auth": password,
                "http_host": "127.0.0.1", "http_port": port, "threads": 2, "daemonize": false,
                "database": 0, "acl": [], "verbosity": 3, "logfile": scratch.file("log"),
            });
            let path = scratch.file("webdis.json");
            std::fs::write(&path, config.to_string()).unwrap();
            let process = Process::start("Webdis", Command::new("webdis").arg(path), &scratch);
            let mut webdis = Self { process, _scratch: scratch, port };
            let deadline = Instant::now() + PATIENCE;
            while !webdis.process.has_ended() {
                if client::get(webdis.address(), "/PING").await.is_some() {
                    return webdis;
                }
                assert!(Instant::now() < deadline, "Webdis: {}", webdis.process.log());
                sleep(Duration::from_millis(5)).await;
            }
            assert!(webdis.process.log().contains("in use"), "Webdis: {}", webdis.process.log());
        }
        panic!("Webdis found no free port");
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Ends it at once, as a crash would.
    pub fn stop(&mut self) {
        self.process.kill();
    }

    /// Freezes it.
    pub async fn freeze(&self) {
        self.process.freeze().await;
    }

    /// Lets it go on.
    pub async fn thaw(&self) {
        self.process.thaw().await;
    }
}
