//! Configurations that are replaced while requests wait: nothing is left of those that are gone.

use crate::pay;
use serde_json::{Value, json};
use std::cell::Cell;
use testkit::crowd::{Crowd, roomy};
use testkit::deployment::Store;
use testkit::scene::Scene;
use testkit::{Bootstrap, Envoy, Origin, Redis, Request, eventually};

/// Claims that end in each round. A request waits for each of them, so each end puts a message into every queue.
const KEYS: usize = 400;

/// The table is filled before memory is compared: from then on, records do not grow it.
const RECORDS: usize = 4_096;

const ROUNDS: usize = 20;

/// Memory is compared from this round on: by then, allocators have what they keep.
const SETTLED: usize = 5;

/// What may differ by chance.
const TOLERANCE: u64 = 6 << 20;

/// Rules that are others in each round.
fn rules(round: usize) -> Value {
    let ttl = format!("{}m", 60 + round);
    let mut rules = pay(json!({ "match": {}, "ttl": ttl, "ongoing": { "wait": { "max": "2m" } } }));
    rules["store"] = json!({ "memory": { "entries": RECORDS } });
    rules
}

/// Waits until the configurations before are gone.
async fn stands_alone(envoy: &Envoy) {
    eventually("the configurations before are gone", async || {
        envoy.stat("listener_manager.total_filter_chains_draining").await == Some(0)
            && envoy.stat("listener_manager.total_listeners_draining").await == Some(0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_stays_flat_over_twenty_configurations_that_end_while_requests_wait() {
    // Longer than a round takes on a busy machine: nobody is cut off.
    let change = |bootstrap: Bootstrap| bootstrap.replaceable().workers(2).drain_seconds(3);
    let scene = Scene::start_with(Store::Memory, &rules(0), change).await;
    let port = scene.deployment.origin.address.port();
    let others = (0..2 * RECORDS).map(|other| scene.post(0, "/pay", &format!("other-{other}")));
    for some in others.collect::<Vec<_>>().chunks(KEYS) {
        scene.crowd(some.to_vec()).await.ends_in(&[("200", some.len())]).await;
    }
    let mut resident = Vec::new();
    for round in 1..=ROUNDS {
        let requests = |hold: bool| {
            let requests = (0..KEYS).map(|key| scene.post(0, "/pay", &format!("{round}-{key}")));
            let name = format!("round-{round}");
            requests
                .map(|request| if hold { request.header("x-origin-hold", &name) } else { request })
                .collect::<Vec<_>>()
        };
        let before = scene.executions();
        let mut crowd = Crowd::at(scene.deployment.envoy().front).await;
        crowd.add(requests(true));
        scene.run(before + KEYS).await;
        crowd.add(requests(false));
        scene.wait(0, KEYS).await;
        scene
            .deployment
            .envoy()
            .replace(roomy(Bootstrap::demo().rules(&rules(round))).origin(port))
            .await;
        // Those of the next configuration wait for executions of this one.
        crowd.join(scene.crowd(requests(false)).await);
        scene.wait(0, 2 * KEYS).await;
        scene.deployment.origin.release(&format!("round-{round}"));
        crowd.ends_in(&[("200", KEYS), ("200 replayed", 2 * KEYS)]).await;
        assert_eq!(scene.executions(), before + KEYS);
        stands_alone(scene.deployment.envoy()).await;
        resident.push(scene.deployment.envoy().resident_bytes());
    }
    let envoy = scene.deployment.envoy();
    stands_alone(envoy).await;
    assert_eq!(envoy.stat("wasm.idempotency.vm_reload").await, Some(0));
    let log = envoy.log();
    assert!(!log.contains("Function: proxy_on") && !log.contains("RangeError"), "a trap");
    let (settled, last) = (resident[SETTLED - 1], resident[ROUNDS - 1]);
    assert!(last < settled + TOLERANCE, "resident after each round: {resident:?}");
}

/// The gauge, and what Redis says.
async fn pipes(envoy: &Envoy, redis: &Redis) -> (u64, u64) {
    let gauge = envoy.stat("wasmcustom.idempotency_pipes").await.unwrap();
    (gauge, redis.clients(None).await as u64)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauge_of_connections_is_right_after_configurations_were_replaced() {
    const WORKERS: u64 = 2;
    let redis = Redis::start().await;
    let origin = Origin::start().await;
    let bootstrap = |round: usize| {
        let mut rules = rules(round);
        rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": "3s" } });
        Bootstrap::redis(redis.port()).rules(&rules).origin(origin.address.port())
    };
    let envoy = Envoy::start(bootstrap(0).replaceable().drain_seconds(2)).await;
    let post = |key: &str| {
        let request = Request::new(envoy.front, "POST", "/pay").key(key).caller("alice").json("{}");
        request.http2()
    };
    let all_are_open = async |round: usize| {
        let number = Cell::new(0);
        eventually("each worker has its connection", async || {
            number.set(number.get() + 1);
            assert_eq!(post(&format!("{round}-{}", number.get())).send().await.status, 200);
            pipes(&envoy, &redis).await == (WORKERS, WORKERS)
        })
        .await;
    };
    all_are_open(0).await;
    for round in 1..=5 {
        let name = format!("held-{round}");
        let executions = origin.executions();
        let first = tokio::spawn(post(&name).header("x-origin-hold", &name).send());
        eventually("one runs", async || origin.executions() > executions).await;
        let waiters: Vec<_> = (0..8).map(|_| tokio::spawn(post(&name).send())).collect();
        eventually("all wait", async || {
            envoy.stat("wasmcustom.idempotency_waiters").await == Some(8)
        })
        .await;
        // Those who wait have a connection more in each worker; the gauge is right in between as well.
        eventually("the gauge is right", async || {
            let (gauge, open) = pipes(&envoy, &redis).await;
            gauge == open && open > WORKERS
        })
        .await;
        envoy.replace(bootstrap(round)).await;
        origin.release(&name);
        assert_eq!(first.await.unwrap().status, 200);
        for waiter in waiters {
            assert!(waiter.await.unwrap().is_replay());
        }
        stands_alone(&envoy).await;
        all_are_open(round).await;
    }
}
