//! The harness itself: a server that it starts is the one that a test expects.

use crate::pay;
use serde_json::json;
use std::time::Duration;
use testkit::{Bootstrap, Redis, RedisCluster, Request, Webdis, World, eventually};
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_keeps_bytes_counts_calls_and_forgets_all_when_it_starts_again() {
    let mut redis = Redis::start().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    assert_eq!(redis.cli(&["SET", "idem:a", "1", "PX", "60000"]).await, "OK");
    redis.set_bytes("idem:a", &bytes).await;
    assert_eq!(redis.bytes("idem:a").await, bytes);
    assert!((1..=60_000).contains(&redis.ttl_millis("idem:a").await));
    assert_eq!(redis.cli(&["EVAL", "return 1", "0"]).await, "1");
    assert_eq!((redis.script_calls().await, redis.calls("GET").await), (1, 1));
    assert_eq!(redis.clients(None).await, 0);
    let port = redis.port();
    redis.restart().await;
    assert_eq!((redis.port(), redis.keys("*").await.len()), (port, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_redis_answers_when_it_is_thawed_and_not_before() {
    let redis = Redis::start().await;
    redis.freeze().await;
    {
        let ping = redis.cli(&["PING"]);
        tokio::pin!(ping);
        assert!(timeout(Duration::from_millis(200), &mut ping).await.is_err());
        redis.thaw().await;
        assert_eq!(ping.await, "PONG");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_with_tls_is_reached_by_its_authority_and_password() {
    let mut redis = Redis::tls("open sesame").await;
    assert!(redis.ca_path().exists());
    assert_eq!(redis.cli(&["PING"]).await, "PONG");
    redis.restart().await;
    assert_eq!(redis.cli(&["SET", "a", "1"]).await, "OK");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_spreads_keys_and_is_ill_while_a_node_is_gone() {
    let mut cluster = RedisCluster::start(3).await;
    for number in 0..30 {
        cluster.cli(&["SET", &format!("key-{number}"), "1"]).await;
    }
    let keys = cluster.keys_per_node().await;
    assert!(keys.iter().all(|&keys| keys > 0) && keys.iter().sum::<usize>() == 30, "{keys:?}");
    cluster.nodes[2].stop();
    eventually("the cluster is ill", async || {
        cluster.nodes[0].cli(&["CLUSTER", "INFO"]).await.contains("cluster_state:fail")
    })
    .await;
    cluster.nodes[2].restart().await;
    cluster.is_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webdis_answers_with_and_without_its_redis() {
    let mut redis = Redis::with(&["--requirepass", "x"]).await;
    let webdis = Webdis::with(redis.port(), redis.password()).await;
    let ask = || Request::new(webdis.address(), "GET", "/ECHO/hello.raw").send();
    assert_eq!(ask().await.text(), "$5\r\nhello\r\n");
    redis.stop();
    eventually("Webdis says that Redis is gone", async || ask().await.status == 503).await;
}

/// The filter with its records in memory, and nothing but the file's own listeners and clusters.
async fn starts(bootstrap: Bootstrap) -> World {
    let mut config = pay(json!({}));
    config["store"] = json!({ "memory": {} });
    let world = World::start_with(bootstrap.rules(&config).with(|file| {
        // With records in memory, the bridge has nothing to do.
        let filters = "/typed_extension_protocol_options\
            /envoy.extensions.upstreams.http.v3.HttpProtocolOptions/http_filters";
        if let Some(filters) = file.cluster("redis").pointer_mut(filters) {
            filters.as_array_mut().unwrap().remove(0);
        }
    }))
    .await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    assert_eq!(request.send().await.status, 200);
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstraps_for_redis_start() {
    starts(Bootstrap::redis(1)).await;
    starts(Bootstrap::redis_tls(&Redis::tls("open sesame").await)).await;
    starts(Bootstrap::webdis(&Webdis::start(1).await)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_for_a_cluster_starts_and_finds_its_nodes() {
    let cluster = RedisCluster::start(3).await;
    let world = starts(Bootstrap::redis_cluster(&cluster)).await;
    eventually("Envoy knows the nodes", async || {
        world.envoy.stat("cluster.redis_nodes.membership_healthy").await == Some(3)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_envoy_goes_on_where_it_stood() {
    let world = World::start(pay(json!({}))).await;
    world.envoy.freeze().await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    let answer = tokio::spawn(request.send());
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((answer.is_finished(), world.executions()), (false, 0));
    world.envoy.thaw().await;
    assert_eq!(answer.await.unwrap().status, 200);
}
