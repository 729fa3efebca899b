//! Shards behind Envoy's Redis proxy that lose their scripts one after another.

use crate::pay;
use serde_json::json;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use testkit::{Bootstrap, Client, Envoy, Origin, RedisCluster, Request, eventually};

/// Requests that are under way at once: of each key one at each Envoy.
const KEYS: usize = 200;

const ROUNDS: usize = 15;

/// Two Envoys in front of the shards. A busy machine is no shard that fails.
async fn envoys(cluster: &RedisCluster, origin: &Origin) -> Vec<Envoy> {
    let mut rules = pay(json!({ "ongoing": { "wait": { "max": "15s" } } }));
    rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": "5s" } });
    let bootstrap = Bootstrap::redis_cluster(cluster)
        .rules(&rules)
        .origin(origin.address.port())
        .with(|bootstrap| {
            let listeners = bootstrap.value()["static_resources"]["listeners"].as_array_mut();
            let proxy = listeners.unwrap().iter_mut().find(|one| one["name"] == "redis_proxy");
            let filter = &mut proxy.unwrap()["filter_chains"][0]["filters"][0];
            filter["typed_config"]["settings"]["op_timeout"] = json!("4s");
        });
    vec![Envoy::start(bootstrap.clone()).await, Envoy::start(bootstrap).await]
}

fn post(envoy: &Envoy, key: &str) -> Request {
    let request = Request::new(envoy.front, "POST", &format!("/pay?of={key}")).http2();
    request.key(key).caller("alice").json("{}")
}

/// Takes the scripts from one shard after another until it is told to stop: how often it did.
async fn lose_scripts(cluster: &RedisCluster, stop: &AtomicBool) -> usize {
    let mut lost = 0;
    while !stop.load(Ordering::SeqCst) {
        for node in &cluster.nodes {
            assert_eq!(node.cli(&["SCRIPT", "FLUSH", "SYNC"]).await, "OK");
            lost += 1;
        }
    }
    lost
}

#[tokio::test(flavor = "multi_thread")]
async fn each_gets_the_answer_to_its_own_key_while_shards_lose_their_scripts() {
    let cluster = Arc::new(RedisCluster::start(3).await);
    let origin = Origin::start().await;
    let envoys = envoys(&cluster, &origin).await;
    let mut clients = Vec::new();
    for (number, envoy) in envoys.iter().enumerate() {
        // The proxy learns of the slots a moment after it has started.
        eventually("the cluster is known", async || {
            let probe = post(envoy, &format!("probe-{number}"));
            probe.header("x-origin-status", "429").send().await.status == 429
        })
        .await;
        let mut connections = Vec::new();
        for _ in 0..6 {
            connections.push(Arc::new(Client::connect(envoy.front, true).await.unwrap()));
        }
        clients.push(connections);
    }
    let probes = origin.executions();
    let stop = Arc::new(AtomicBool::new(false));
    let losing = tokio::spawn({
        let (cluster, stop) = (cluster.clone(), stop.clone());
        async move { lose_scripts(&cluster, &stop).await }
    });
    for round in 0..ROUNDS {
        let mut requests = Vec::new();
        for number in 0..KEYS {
            let key = format!("key-{round}-{number}");
            for (envoy, connections) in envoys.iter().zip(&clients) {
                let request = post(envoy, &key).header("x-origin-delay-ms", "5");
                let client = connections[number % connections.len()].clone();
                let sent = tokio::spawn(async move { client.send(request).await.unwrap() });
                requests.push((key.clone(), sent));
            }
        }
        let mut replays = 0;
        for (key, sent) in requests {
            let answer = sent.await.unwrap();
            assert_eq!(answer.status, 200, "{key}: {}", answer.text());
            assert_eq!(answer.json()["path"], format!("/pay?of={key}"));
            replays += usize::from(answer.is_replay());
        }
        assert_eq!(replays, KEYS);
    }
    stop.store(true, Ordering::SeqCst);
    let lost = losing.await.unwrap();
    assert!(lost > ROUNDS, "{lost}");
    // Each loss has cost the text of a script, sent again to the shard that lacked it.
    let texts = cluster.calls("eval").await;
    assert!(texts > 2 * ROUNDS as u64, "{texts} scripts were sent as text, {lost} losses");
    let mut executions = BTreeMap::new();
    for seen in &origin.seen()[probes..] {
        *executions.entry(seen.path.clone()).or_insert(0) += 1;
    }
    assert_eq!(executions.len(), ROUNDS * KEYS);
    assert!(executions.values().all(|number| *number == 1), "{executions:?}");
    for envoy in &envoys {
        assert!(!envoy.log().contains("Function: proxy_on"), "a trap");
    }
}
