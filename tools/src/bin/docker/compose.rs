//! The engine: the containers of `envoy/docker/compose.yaml`, with a project name for this run.

use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};
use testkit::project_path;

const FILE: &str = "envoy/docker/compose.yaml";

/// Commands for the engine, one after the other.
#[derive(Clone)]
pub(super) struct Compose {
    /// `docker compose` or `docker-compose`, as make found it.
    command: Vec<String>,
    project: String,
    /// An interrupted run removes its containers; the command under way must be over by then.
    one_by_one: Arc<Mutex<()>>,
}

impl Compose {
    pub(super) fn new() -> Self {
        let command = std::env::var("COMPOSE").unwrap_or_else(|_| "docker compose".to_owned());
        // Process ids repeat, on machines that share an engine or after a run that was killed.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Self {
            command: command.split_whitespace().map(str::to_owned).collect(),
            project: format!("idempotency-{}-{}", std::process::id(), now.subsec_micros()),
            one_by_one: Arc::default(),
        }
    }

    pub(super) fn project(&self) -> &str {
        &self.project
    }

    pub(super) async fn up(&self) {
        self.compose(&["up", "-d"]).await;
    }

    /// Removes containers, networks and volumes; returns the error if it cannot.
    pub(super) async fn down(&self) -> Result<(), String> {
        self.try_compose(&["down", "--volumes", "--timeout", "2"]).await.map(drop)
    }

    /// The last lines that each container wrote, without Envoy's access log.
    pub(super) async fn log(&self) -> String {
        // An error here must not keep the containers from being removed.
        let log = self.try_compose(&["logs", "--no-color", "--tail", "200"]).await;
        let log = log.unwrap_or_else(|why| why);
        let lines: Vec<_> = log.lines().filter(|line| !line.contains(" access ")).collect();
        lines.join("\n")
    }

    /// The id of a service's container.
    pub(super) async fn container(&self, service: &str) -> String {
        self.compose(&["ps", "-q", service]).await.trim().to_owned()
    }

    /// The address of a container's port on this machine. The engine chooses a new one when the container
    /// starts again.
    pub(super) async fn port(&self, container: &str, port: u16) -> SocketAddr {
        let text = self.docker(&["port", container, &port.to_string()]).await;
        text.lines().next().and_then(|line| line.parse().ok()).unwrap_or_else(|| {
            panic!("the engine says that port {port} of {container} is at {text:?}")
        })
    }

    /// Disconnects a container from the network that leads to Redis.
    pub(super) async fn cut_off(&self, container: &str) {
        self.docker(&["network", "disconnect", &self.redis_network(), container]).await;
    }

    /// Connects it again.
    pub(super) async fn reconnect(&self, container: &str) {
        self.docker(&["network", "connect", &self.redis_network(), container]).await;
    }

    fn redis_network(&self) -> String {
        format!("{}_redis", self.project)
    }

    /// Runs `docker` with these arguments.
    pub(super) async fn docker(&self, arguments: &[&str]) -> String {
        self.run("docker", arguments).await.unwrap_or_else(|why| panic!("{why}"))
    }

    async fn compose(&self, arguments: &[&str]) -> String {
        self.try_compose(arguments).await.unwrap_or_else(|why| panic!("{why}"))
    }

    async fn try_compose(&self, arguments: &[&str]) -> Result<String, String> {
        let (program, first) = self.command.split_first().unwrap();
        let mut all: Vec<&str> = first.iter().map(String::as_str).collect();
        let file = project_path(FILE).display().to_string();
        all.extend(["-f", &file, "-p", &self.project]);
        all.extend(arguments);
        self.run(program, &all).await
    }

    /// The output of a command, or its error.
    async fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(program);
        // In a process group of its own, or a Ctrl-C would end it half-way.
        command.args(arguments).process_group(0);
        let one_by_one = self.one_by_one.clone();
        let run = move || {
            let _alone = one_by_one.lock();
            command.output()
        };
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let output = output.map_err(|error| format!("{program}: {error}"))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} {}: {why}", arguments.join(" ")))
    }
}
