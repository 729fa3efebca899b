//! The two Envoys, their Redis and their origin, seen from this machine.

use super::compose::Compose;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::RwLock;
use std::time::{Duration, Instant};
use testkit::{Request, client, eventually};
use tokio::time::sleep;

/// Ports of `envoy/redis.yaml` and of the origin, inside the containers.
const FRONT: u16 = 10_000;
const ADMIN: u16 = 9_901;
const ORIGIN: u16 = 9_000;

/// Connections that probe whether an Envoy serves again: both of its workers have some of them.
const PROBES: usize = 8;

pub(super) struct Node {
    pub(super) container: String,
    /// For clients, and the admin port.
    addresses: RwLock<(SocketAddr, SocketAddr)>,
}

impl Node {
    pub(super) fn front(&self) -> SocketAddr {
        self.addresses.read().unwrap().0
    }

    pub(super) fn admin(&self) -> SocketAddr {
        self.addresses.read().unwrap().1
    }
}

pub(super) struct Fleet {
    pub(super) compose: Compose,
    pub(super) envoys: [Node; 2],
    pub(super) redis: String,
    pub(super) origin: SocketAddr,
}

impl Fleet {
    pub(super) async fn start(compose: Compose) -> Self {
        compose.up().await;
        let mut envoys = Vec::new();
        for service in ["envoy1", "envoy2"] {
            let container = compose.container(service).await;
            let addresses = RwLock::new(addresses(&compose, &container).await);
            envoys.push(Node { container, addresses });
        }
        let redis = compose.container("redis").await;
        let origin = compose.container("origin").await;
        let origin = compose.port(&origin, ORIGIN).await;
        let Ok(envoys) = envoys.try_into() else { panic!("two services, two Envoys") };
        let fleet = Self { compose, envoys, redis, origin };
        eventually("the origin answers", async || client::get(origin, "/count").await.is_some())
            .await;
        for number in 0..2 {
            fleet.is_ready(number).await;
            fleet.serves_new_keys(number).await;
        }
        fleet
    }

    /// Waits until this Envoy takes requests.
    async fn is_ready(&self, number: usize) {
        let admin = self.envoys[number].admin();
        eventually("Envoy is ready", async || {
            client::get(admin, "/ready").await.is_some_and(|text| text.contains("LIVE"))
        })
        .await;
    }

    /// Starts an Envoy that was stopped, and waits until it takes requests.
    pub(super) async fn start_envoy(&self, number: usize) {
        let node = &self.envoys[number];
        self.compose.docker(&["start", &node.container]).await;
        let addresses = addresses(&self.compose, &node.container).await;
        *node.addresses.write().unwrap() = addresses;
        self.is_ready(number).await;
    }

    /// A payment under this key.
    pub(super) fn payment(&self, envoy: usize, key: &str) -> Request {
        self.payment_of(100, envoy, key)
    }

    /// … with another amount: another request.
    pub(super) fn payment_of(&self, amount: u32, envoy: usize, key: &str) -> Request {
        Request::new(self.envoys[envoy].front(), "POST", "/v1/payments")
            .caller("Bearer alice")
            .key(key)
            .json(&format!("{{\"amount\":{amount}}}"))
    }

    /// The time until this Envoy runs new keys, on several connections at once.
    pub(super) async fn serves_new_keys(&self, envoy: usize) -> Duration {
        let begun = Instant::now();
        let mut probes = Vec::new();
        for _ in 0..PROBES {
            // The origin's ledger judges their answers, like all others.
            let key = format!("probe-{envoy}-{:?}-{}", begun, probes.len());
            let key: String = key.chars().filter(|letter| letter.is_ascii_alphanumeric()).collect();
            let request = self.payment(envoy, &key);
            probes.push(tokio::spawn(async move {
                eventually("a new key runs", async || {
                    let answer = request.clone().try_send().await;
                    sleep(Duration::from_millis(20)).await;
                    answer.is_ok_and(|answer| answer.status == 201)
                })
                .await;
                begun.elapsed()
            }));
        }
        let mut longest = Duration::ZERO;
        for probe in probes {
            longest = longest.max(probe.await.unwrap());
        }
        longest
    }

    /// Releases the executions that the origin holds under this name.
    pub(super) async fn release(&self, name: &str) {
        Request::new(self.origin, "POST", &format!("/release/{name}")).send().await;
    }

    /// Waits until the origin runs this key.
    pub(super) async fn runs(&self, key: &str) {
        eventually("the origin runs the key", async || {
            self.ledger().await.executions.contains_key(key)
        })
        .await;
    }

    /// The executions at the origin.
    pub(super) async fn ledger(&self) -> Ledger {
        let log = Request::new(self.origin, "GET", "/log").send().await.json();
        let mut executions: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (number, execution) in (1..).zip(log["executions"].as_array().unwrap()) {
            let key = execution["key"].as_str().unwrap().trim_matches('"');
            executions.entry(key.to_owned()).or_default().push(number);
        }
        Ledger { began: log["began"].clone(), executions }
    }

    /// The filter's requests by rule and outcome, of this Envoy since its start, as Prometheus would read them.
    pub(super) async fn metrics(&self, envoy: usize) -> Vec<String> {
        let text = client::get(self.envoys[envoy].admin(), "/stats/prometheus").await;
        let text = text.unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("idempotency_requests_total{"));
        lines.filter(|line| !line.ends_with(" 0")).map(str::to_owned).collect()
    }
}

async fn addresses(compose: &Compose, container: &str) -> (SocketAddr, SocketAddr) {
    (compose.port(container, FRONT).await, compose.port(container, ADMIN).await)
}

/// The executions at the origin, as it reports them.
pub(super) struct Ledger {
    /// When its process began: if it was replaced, its count is lost.
    pub(super) began: Value,
    /// By key, the numbers of its executions.
    pub(super) executions: BTreeMap<String, Vec<u64>>,
}

impl Ledger {
    pub(super) fn total(&self) -> usize {
        self.executions.values().map(Vec::len).sum()
    }

    /// Executions of a key.
    pub(super) fn of(&self, key: &str) -> usize {
        self.executions.get(key).map_or(0, Vec::len)
    }

    /// The most executions of one key.
    pub(super) fn most(&self) -> usize {
        self.executions.values().map(Vec::len).max().unwrap_or(0)
    }
}
