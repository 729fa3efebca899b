//! A whole world in a line: a real Envoy with the module, an origin that counts, and clients.
//!
//! ```ignore
//! let world = World::start(config).await;
//! let request = world.post("/pay").key("a").caller("alice").json("{}");
//! assert!(!request.clone().send().await.is_replay() && request.send().await.is_replay());
//! assert_eq!(world.executions(), 1);
//! ```
//!
//! Several Envoys that share a Redis are a [`Fleet`]. Beside these: the contract of every store
//! ([`store_contract`]) with what it is run on ([`map`], [`redis_store`]), and configurations that are
//! refused ([`config_cases`]).

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::new_without_default,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "tests and tools share it, and a world that does not come up ends them"
)]
#![allow(missing_docs, reason = "most names say it all")]

pub mod client;
pub mod config_cases;
pub mod crowd;
pub mod deployment;
pub mod envoy;
pub mod map;
pub mod origin;
pub mod process;
pub mod redis;
pub mod redis_store;
pub mod scene;
pub mod store_contract;

pub use client::{Answer, Client, Request};
pub use deployment::Deployment;
pub use envoy::{Bootstrap, Envoy};
pub use origin::Origin;
pub use process::Scratch;
pub use redis::{Redis, RedisCluster, Webdis};

use serde_json::Value;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a test waits for something that must come. Far above the time on a busy machine, and
/// it is reached only by a failure.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A file or folder of this project, named from the root of its tree.
pub fn project_path(path: impl AsRef<Path>) -> PathBuf {
    let member = Path::new(env!("CARGO_MANIFEST_DIR"));
    member.parent().unwrap_or(member).join(path)
}

/// An Envoy with the filter in front of an origin.
pub struct World {
    pub envoy: Envoy,
    pub origin: Origin,
}

impl World {
    /// Starts `envoy/demo.yaml` with this configuration of the filter.
    pub async fn start(config: Value) -> Self {
        Self::start_with(Bootstrap::demo().config(&config)).await
    }

    /// Starts a bootstrap that a test has changed further.
    pub async fn start_with(bootstrap: Bootstrap) -> Self {
        let origin = Origin::start().await;
        let envoy = Envoy::start(bootstrap.origin(origin.address.port())).await;
        Self { envoy, origin }
    }

    /// The log of an Envoy that refuses to start with this configuration of the filter.
    ///
    /// # Panics
    ///
    /// If it starts.
    pub async fn refuses(config: &str) -> String {
        Envoy::refuses(Bootstrap::demo().config_text(config)).await
    }

    /// A POST to this path, over HTTP/1.1, on a connection of its own.
    pub fn post(&self, path: &str) -> Request {
        Request::new(self.envoy.front, "POST", path)
    }

    /// Executions at the origin, of all paths.
    pub fn executions(&self) -> usize {
        self.origin.executions()
    }

    /// `idempotency_requests_total` of a rule and outcome.
    pub async fn counted(&self, rule: &str, outcome: &str) -> u64 {
        self.envoy.counted(rule, outcome).await
    }
}

impl World {
    /// Writes these bytes and waits until Envoy has read them, by themselves.
    ///
    /// # Panics
    ///
    /// If it never does, or if the connection is gone.
    pub async fn write(&self, to: &mut client::Raw, bytes: &[u8]) {
        let before = self.envoy.bytes_received().await;
        to.write(bytes).await.unwrap();
        eventually("Envoy has read the bytes", async || {
            self.envoy.bytes_received().await >= before + bytes.len() as u64
        })
        .await;
    }
}

/// Envoys, two workers each, that share a Redis in front of an origin.
pub struct Fleet {
    pub envoys: Vec<Envoy>,
    pub origin: Origin,
    pub redis: Redis,
}

impl Fleet {
    /// Starts two Envoys with `envoy/redis.yaml` and these rules. Redis has more time than in the file:
    /// on a busy machine, a test that is not about time must not fail because of it.
    pub async fn start(rules: Value) -> Self {
        Self::start_as_it_is(patient(&rules)).await
    }

    /// Starts two Envoys with `envoy/redis.yaml` and these rules, and all else as in the file.
    pub async fn start_as_it_is(rules: Value) -> Self {
        let redis = Redis::start().await;
        let bootstrap = Bootstrap::redis(redis.port()).rules(&rules);
        Self::start_with(redis, vec![bootstrap; 2]).await
    }

    /// Starts an Envoy for each of these bootstraps, which lead to this Redis.
    pub async fn start_with(redis: Redis, bootstraps: Vec<Bootstrap>) -> Self {
        let origin = Origin::start().await;
        let mut envoys = Vec::new();
        for bootstrap in bootstraps {
            envoys.push(Envoy::start(bootstrap.origin(origin.address.port())).await);
        }
        Self { envoys, origin, redis }
    }

    /// A POST to this path of one of the Envoys, over HTTP/1.1, on a connection of its own.
    pub fn post(&self, envoy: usize, path: &str) -> Request {
        Request::new(self.envoys[envoy].front, "POST", path)
    }

    /// Executions at the origin, of all paths and all Envoys.
    pub fn executions(&self) -> usize {
        self.origin.executions()
    }

    /// `idempotency_requests_total` of a rule and outcome, of all Envoys together.
    pub async fn counted(&self, rule: &str, outcome: &str) -> u64 {
        let mut count = 0;
        for envoy in &self.envoys {
            count += envoy.counted(rule, outcome).await;
        }
        count
    }
}

/// These rules, with more time for Redis than by default, unless they say how much.
pub fn patient(rules: &Value) -> Value {
    let mut rules = rules.clone();
    if rules.get("store").is_none() {
        rules["store"] = serde_json::json!({ "redis": { "cluster": "redis", "timeout": "3s" } });
    }
    rules
}

/// Waits until `what` is true.
///
/// # Panics
///
/// When it never is.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut is_so: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "it never came true that {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
