//! Many requests that are under way at once, with one worker.

use super::client::{Answer, Client, Request};
use super::envoy::Bootstrap;
use serde_json::json;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::timeout_at;

/// Connections that share a crowd: each carries as many as a client's own limits allow.
const CONNECTIONS: usize = 10;

/// More than any crowd here, for each of Envoy's own limits.
const LIMIT: u32 = 100_000;

/// Time from the end of the wait until the last of a crowd has an answer. Far above the normal: a request without one by
/// then never gets one.
const IN_TIME: Duration = Duration::from_secs(20);

/// Requests that are under way at once.
pub struct Crowd {
    clients: Vec<Arc<Client>>,
    tasks: Vec<JoinHandle<(String, Instant)>>,
}

impl Crowd {
    /// None yet, with connections to this Envoy.
    pub async fn at(front: SocketAddr) -> Self {
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            clients.push(Arc::new(Client::connect(front, true).await.unwrap()));
        }
        Self { clients, tasks: Vec::new() }
    }

    /// Sends these to this Envoy.
    pub async fn send(front: SocketAddr, requests: impl IntoIterator<Item = Request>) -> Self {
        let mut crowd = Self::at(front).await;
        crowd.add(requests);
        crowd
    }

    /// Sends these too.
    pub fn add(&mut self, requests: impl IntoIterator<Item = Request>) {
        for (client, request) in self.clients.iter().cycle().zip(requests) {
            let client = client.clone();
            self.tasks.push(tokio::spawn(async move {
                (outcome(client.exchange(request).await), Instant::now())
            }));
        }
    }

    /// How many were sent.
    pub fn size(&self) -> usize {
        self.tasks.len()
    }

    /// Adds another crowd.
    pub fn join(&mut self, other: Self) {
        self.clients.extend(other.clients);
        self.tasks.extend(other.tasks);
    }

    /// When the last of them had its answer.
    ///
    /// # Panics
    ///
    /// If they do not end in these outcomes, with these numbers, and in time.
    pub async fn ends_in(self, expected: &[(&str, usize)]) -> Instant {
        let (outcomes, last) = self.outcomes().await;
        let expected = expected.iter().filter(|(_, number)| *number > 0);
        let expected: BTreeMap<_, _> =
            expected.map(|(outcome, number)| ((*outcome).to_owned(), *number)).collect();
        assert_eq!(outcomes, expected);
        last
    }

    /// How many of them end in what, and when the last of them had its answer.
    pub async fn outcomes(self) -> (BTreeMap<String, usize>, Instant) {
        let mut last = Instant::now();
        let deadline = (last + IN_TIME).into();
        let mut outcomes = BTreeMap::new();
        for task in self.tasks {
            let outcome = match timeout_at(deadline, task).await {
                Ok(answered) => {
                    let (outcome, at) = answered.unwrap();
                    last = last.max(at);
                    outcome
                }
                Err(_) => "no answer".to_owned(),
            };
            *outcomes.entry(outcome).or_insert(0) += 1;
        }
        (outcomes, last)
    }
}

/// The status; the code of a problem; whether it was replayed, or whether none came.
fn outcome(answer: io::Result<Answer>) -> String {
    match answer {
        Err(_) => "cut off".to_owned(),
        Ok(answer) if answer.is_replay() => format!("{} replayed", answer.status),
        Ok(answer) => format!("{} {}", answer.status, answer.code()).trim_end().to_owned(),
    }
}

/// One worker, and none of Envoy's own limits below the crowd. `/empty/` leads to a cluster without hosts, and
/// `/closed/` to a port where no server listens.
pub fn roomy(bootstrap: Bootstrap) -> Bootstrap {
    bootstrap.workers(1).with(|bootstrap| {
        let http2 = json!({ "max_concurrent_streams": LIMIT, "max_outbound_frames": 10 * LIMIT });
        let manager = bootstrap.manager();
        manager["http2_protocol_options"] = http2.clone();
        manager["access_log"] = json!([]);
        let hosts = manager["route_config"]["virtual_hosts"].as_array_mut().unwrap();
        let routes = hosts[0]["routes"].as_array_mut().unwrap();
        for cluster in ["empty", "closed"] {
            let prefix = format!("/{cluster}/");
            routes.insert(
                0,
                json!({ "match": { "prefix": prefix }, "route": { "cluster": cluster } }),
            );
        }
        let clusters = bootstrap.value()["static_resources"]["clusters"].as_array_mut().unwrap();
        clusters.push(json!({ "name": "empty", "load_assignment": { "cluster_name": "empty" } }));
        let address = json!({ "address": "127.0.0.1", "port_value": 1 });
        let endpoint = json!({ "endpoint": { "address": { "socket_address": address } } });
        clusters.push(json!({ "name": "closed", "load_assignment": {
            "cluster_name": "closed", "endpoints": [{ "lb_endpoints": [endpoint] }] } }));
        for cluster in clusters {
            cluster["circuit_breakers"] = json!({ "thresholds": [{
                "max_connections": LIMIT, "max_pending_requests": LIMIT, "max_requests": LIMIT }] });
        }
        bootstrap.cluster("origin")["typed_extension_protocol_options"] = json!({
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": { "http2_protocol_options": http2 },
            }
        });
    })
}
