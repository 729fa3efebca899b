//! The other ways to Redis: TLS, a Redis Cluster behind Envoy's proxy, Webdis.

use crate::pay;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use testkit::{Bootstrap, Envoy, Origin, Redis, RedisCluster, Request, Webdis, eventually};

/// Two Envoys before one origin, whatever is behind them.
struct Pair {
    envoys: Vec<Envoy>,
    origin: Origin,
}

impl Pair {
    async fn start(bootstrap: Bootstrap, config: &Value) -> Self {
        let origin = Origin::start().await;
        let bootstrap = bootstrap.rules(config).origin(origin.address.port());
        let envoys = vec![Envoy::start(bootstrap.clone()).await, Envoy::start(bootstrap).await];
        Self { envoys, origin }
    }

    fn post(&self, envoy: usize, key: &str) -> Request {
        Request::new(self.envoys[envoy].front, "POST", "/pay").key(key).caller("alice").json("{}")
    }

    /// Every way to Redis must pass this.
    async fn works(&self) {
        let before = self.origin.executions();
        let executions = || self.origin.executions() - before;
        // One of each key runs, whichever Envoy it comes to.
        let tasks: Vec<_> = (0..60)
            .map(|number| {
                let request = self.post(number % 2, &format!("race-{}", number / 2));
                tokio::spawn(request.header("x-origin-delay-ms", "20").send())
            })
            .collect();
        for task in tasks {
            let answer = task.await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(executions(), 30);
        // A request that waits at the other Envoy is answered soon.
        let first = tokio::spawn(self.post(0, "slow").header("x-origin-hold", "it").send());
        eventually("the first runs", async || executions() == 31).await;
        let waiter = tokio::spawn(self.post(1, "slow").send());
        eventually("it waits", async || {
            self.envoys[1].stat("wasmcustom.idempotency_waiters").await == Some(1)
        })
        .await;
        self.origin.release("it");
        assert_eq!(first.await.unwrap().status, 200);
        let ended = Instant::now();
        assert!(waiter.await.unwrap().is_replay());
        assert!(ended.elapsed() < Duration::from_secs(2), "{:?}", ended.elapsed());
        // A large answer comes back whole.
        for envoy in 0..2 {
            let request = self.post(envoy, "large").header("x-origin-bytes", "900000");
            let answer = request.send().await;
            assert_eq!((answer.status, answer.is_replay()), (200, envoy == 1), "{}", answer.text());
            assert_eq!(answer.body.len(), 900_000);
        }
        assert_eq!(executions(), 32);
    }
}

fn config() -> Value {
    pay(json!({ "ongoing": { "wait": { "max": "15s" } }, "limits": { "response_body": "1MiB" } }))
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_a_password() {
    let redis = Redis::tls("open sesame").await;
    let pair = Pair::start(Bootstrap::redis_tls(&redis), &config()).await;
    pair.works().await;
    assert_eq!(redis.keys("idem:*").await.len(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_redis_cluster_with_keys_on_every_node() {
    let cluster = RedisCluster::start(3).await;
    let pair = Pair::start(Bootstrap::redis_cluster(&cluster), &config()).await;
    // The proxy learns of the slots a moment after it has started.
    for envoy in 0..2 {
        eventually("the cluster is known", async || {
            let probe = pair.post(envoy, "probe").header("x-origin-status", "429");
            probe.send().await.status == 429
        })
        .await;
    }
    pair.works().await;
    let keys = cluster.keys_per_node().await;
    assert!(keys.iter().all(|keys| *keys > 0), "{keys:?}");
    assert_eq!(keys.iter().sum::<usize>(), 32);
}

#[tokio::test(flavor = "multi_thread")]
async fn by_way_of_webdis() {
    let mut redis = Redis::start().await;
    let webdis = Webdis::start(redis.port()).await;
    let pair = Pair::start(Bootstrap::webdis(&webdis), &config()).await;
    pair.works().await;
    assert_eq!(redis.keys("idem:*").await.len(), 32);
    redis.stop();
    let begun = Instant::now();
    let refused = pair.post(0, "away").send().await;
    assert_eq!((refused.status, refused.code().as_str()), (503, "store-unavailable"));
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    redis.restart().await;
    eventually("service is back", async || {
        pair.post(0, "back").header("x-origin-status", "429").send().await.status == 429
    })
    .await;
}
