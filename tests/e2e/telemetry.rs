//! What operators see: counters, the access log, the status header; and shadow mode.

use crate::harness::place::Store;
use crate::harness::{Place, Request, World, eventually};
use crate::pay;
use serde_json::json;

#[tokio::test(flavor = "multi_thread")]
async fn every_outcome_is_counted_logged_and_said_if_the_config_wants_it() {
    let mut config = pay(json!({}));
    config["status_header"] = json!(true);
    let world = World::start(config).await;
    let request = world.post("/pay").key("hush-key").caller("alice").json("{}");
    let said = async |request: Request| {
        request.send().await.header("idempotency-status").map(str::to_owned)
    };
    assert_eq!(said(request.clone()).await.as_deref(), Some("executed"));
    assert_eq!(said(request.clone()).await.as_deref(), Some("replayed"));
    assert_eq!(said(request.clone().key("other")).await.as_deref(), Some("invalid"));
    assert_eq!(said(request.clone().bytes("[1]")).await.as_deref(), Some("mismatch"));
    assert_eq!(said(world.post("/pay").caller("alice")).await.as_deref(), Some("bypassed"));
    assert_eq!(said(world.post("/other")).await, None);
    for (outcome, count) in
        [("executed", 1), ("replayed", 1), ("invalid", 1), ("mismatch", 1), ("bypassed", 1)]
    {
        assert_eq!(world.counted("pay", outcome).await, count, "{outcome}");
        eventually("the access log has it", async || {
            world.envoy.log().contains(&format!("outcome={outcome}\n"))
        })
        .await;
    }
    assert!(!world.envoy.log().contains("hush-key"));
}

/// What the status header says, which must be what the access log says and the counter counts.
async fn said(place: &Place, request: Request) -> String {
    let answer = request.key("a").caller("alice").json("{}").send().await;
    let said = answer.header("idempotency-status").unwrap().to_owned();
    eventually("it is logged and counted", async || {
        place.envoy().log().contains(&format!("outcome={said}\n"))
            && place.envoy().counted("pay", &said).await > 0
    })
    .await;
    said
}

async fn what_becomes_of_duplicates_is_said(store: Store) {
    let mut config = pay(json!({
        "scope": ["method"], "match": {}, "ongoing": { "wait": { "max": "1s" } },
        "limits": { "response_body": "1KiB" }, "unknown_ttl": "1s"
    }));
    config["status_header"] = json!(true);
    let mut place = Place::start(store, &config, |bootstrap| bootstrap).await;
    let first = place.post("/pay").key("a").caller("alice").json("{}");
    let first = first.header("x-origin-hold", "it").header("x-origin-status", "502").send();
    let first = tokio::spawn(first);
    eventually("the first runs", async || place.attempts("a").len() == 1).await;
    // Its `max` is over before the first has ended.
    assert_eq!(said(&place, place.post("/pay")).await, "rejected");
    let waits = place.post("/pay").key("a").caller("alice").json("{}").send();
    let waits = tokio::spawn(waits);
    eventually("one waits", async || {
        place.envoy().stat("wasmcustom.idempotency_waiters").await == Some(1)
    })
    .await;
    place.origin.release("it");
    assert_eq!(first.await.unwrap().header("idempotency-status"), Some("executed"));
    assert_eq!(waits.await.unwrap().header("idempotency-status"), Some("unknown"));
    assert_eq!(said(&place, place.post("/pay")).await, "unknown");
    eventually("the next attempt takes over", async || {
        let request = place.post("/pay").header("x-origin-bytes", "2000");
        said(&place, request).await == "executed"
    })
    .await;
    assert_eq!(said(&place, place.post("/pay")).await, "tombstone");
    if let Some(redis) = &mut place.redis {
        redis.stop();
        let request = place.post("/pay").key("b").caller("alice").json("{}").send().await;
        assert_eq!(request.header("idempotency-status"), Some("store_error"));
        eventually("it is logged", async || place.envoy().log().contains("outcome=store_error\n"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_duplicates_is_said_in_memory() {
    what_becomes_of_duplicates_is_said(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_duplicates_is_said_in_redis() {
    what_becomes_of_duplicates_is_said(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_gets_labels() {
    let world = World::start(pay(json!({}))).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    request.clone().send().await;
    request.send().await;
    let text = crate::harness::client::get(world.envoy.admin, "/stats/prometheus").await.unwrap();
    for line in [
        "idempotency_requests_total{rule=\"pay\",outcome=\"executed\"} 1",
        "idempotency_requests_total{rule=\"pay\",outcome=\"replayed\"} 1",
        "idempotency_store_operations_total{operation=\"claim\",result=\"exists\"} 1",
        "idempotency_store_operations_total{operation=\"complete\",result=\"ok\"} 1",
    ] {
        // Envoy sorts labels as it likes.
        let (name, labels) = line.split_once('{').unwrap();
        let (labels, value) = labels.split_once("} ").unwrap();
        let found = text.lines().any(|line| {
            line.contains(name)
                && labels.split(',').all(|label| line.contains(label))
                && line.ends_with(&format!(" {value}"))
        });
        let ours: Vec<_> = text.lines().filter(|line| line.contains("idempotency")).collect();
        assert!(found, "{line} is not among\n{}", ours.join("\n"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_shadow_everything_is_counted_and_nothing_is_done() {
    let mut config = pay(json!({ "shadow": true, "missing_key": "reject" }));
    config["status_header"] = json!(true);
    let world = World::start(config).await;
    let request = world.post("/pay").key("a").caller("alice");
    let first = request.clone().json(r#"{"amount":1}"#).send().await;
    let duplicate = request.clone().json(r#"{"amount":1}"#).send().await;
    let other = request.clone().json(r#"{"amount":2}"#).send().await;
    let without = world.post("/pay").caller("alice").json("{}").send().await;
    for answer in [&first, &duplicate, &other, &without] {
        assert_eq!((answer.status, answer.is_replay()), (200, false));
        assert_eq!(answer.header("idempotency-status"), None);
    }
    assert_ne!(first.body, duplicate.body);
    assert_eq!(world.executions(), 4);
    assert!(world.origin.seen().iter().all(|seen| seen.header("idempotency-attempt").is_none()));
    let held = world
        .post("/pay")
        .key("b")
        .caller("alice")
        .header("x-origin-hold", "it")
        .json(r#"{"amount":1}"#);
    let running = tokio::spawn(held.clone().send());
    eventually("one runs", async || world.executions() == 5).await;
    let second = tokio::spawn(held.send());
    eventually("so does its duplicate", async || world.executions() == 6).await;
    world.origin.release("it");
    assert_eq!(running.await.unwrap().status, 200);
    assert_eq!(second.await.unwrap().status, 200);
    for (outcome, count) in [
        ("shadow_executed", 2),
        ("shadow_replayed", 1),
        ("shadow_mismatch", 1),
        ("shadow_invalid", 1),
        ("shadow_rejected", 1),
        ("executed", 0),
    ] {
        assert_eq!(world.counted("pay", outcome).await, count, "{outcome}");
    }
}
