//! A duplicate that meets a running first: waits, goes to the tail, is redirected, or refused.

use crate::pay;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::{PATIENCE, World, eventually};

async fn waiters(world: &World, number: u64) {
    eventually("so many wait", async || {
        world.envoy.stat("wasmcustom.idempotency_waiters").await == Some(number)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_waits_too_long_is_refused() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "1s" } } }))).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-hold", "it");
    let first = tokio::spawn(request.clone().send());
    eventually("the first runs", async || world.executions() == 1).await;
    let begun = Instant::now();
    let waiter = request.send().await;
    assert_eq!((waiter.status, waiter.code().as_str()), (409, "in-progress"));
    assert_eq!(waiter.header("retry-after"), Some("1"));
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < PATIENCE);
    world.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(world.executions(), 1);
    waiters(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_leaves_does_no_harm() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-hold", "it");
    let first = tokio::spawn(request.clone().send());
    eventually("the first runs", async || world.executions() == 1).await;
    let leaves = tokio::spawn(request.clone().send());
    let stays = tokio::spawn(request.clone().send());
    waiters(&world, 2).await;
    leaves.abort();
    waiters(&world, 1).await;
    world.origin.release("it");
    assert!(!first.await.unwrap().is_replay());
    assert!(stays.await.unwrap().is_replay());
    assert_eq!(world.executions(), 1);
    waiters(&world, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_released_claim_passes_to_exactly_one_waiter() {
    let world = World::start(pay(json!({ "ongoing": { "wait": { "max": "15s" } } }))).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    // 429: the origin has done nothing, so the key is free again.
    let first = request.clone().header("x-origin-status", "429").header("x-origin-hold", "first");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || world.executions() == 1).await;
    let tasks: Vec<_> = (0..40)
        .map(|_| tokio::spawn(request.clone().header("x-origin-hold", "second").send()))
        .collect();
    waiters(&world, 40).await;
    world.origin.release("first");
    assert_eq!(first.await.unwrap().status, 429);
    eventually("one of them runs", async || world.executions() == 2).await;
    waiters(&world, 39).await;
    world.origin.release("second");
    let mut replays = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        assert_eq!(answer.status, 200);
        replays += usize::from(answer.is_replay());
    }
    assert_eq!((replays, world.executions()), (39, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_requeued_request_is_looked_at_again_and_then_refused() {
    let requeue = json!({ "ongoing": { "requeue": { "delay": "100ms", "attempts": 3 } } });
    let world = World::start(pay(requeue)).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-hold", "it");
    let first = tokio::spawn(request.clone().send());
    eventually("the first runs", async || world.executions() == 1).await;
    let begun = Instant::now();
    let refused = request.clone().send().await;
    assert_eq!((refused.status, refused.code().as_str()), (409, "in-progress"));
    assert!(begun.elapsed() >= Duration::from_millis(300));
    let claims = world
        .envoy
        .stat("wasmcustom.idempotency_store_operations_total.operation.claim.result.exists")
        .await;
    // The first lookup and three more.
    assert_eq!(claims, Some(4));
    let requeued = tokio::spawn(request.send());
    world.origin.release("it");
    assert_eq!(first.await.unwrap().status, 200);
    assert!(requeued.await.unwrap().is_replay());
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_duplicate_is_redirected_to_where_the_answer_will_be() {
    let rule = |name: &str, redirect: serde_json::Value| {
        json!({ "name": name, "match": { "path": format!("/{name}/{{id}}") },
                "key": [ { "path": "id" } ], "caller": "anyone",
                "ongoing": { "redirect": redirect } })
    };
    let config = json!({ "rules": [
        rule("jobs", json!({ "to": "/jobs/{id}/status", "after": "3s" })),
        rule("same", json!({})),
    ] });
    let world = World::start(config).await;
    for (path, location, after) in [
        ("/jobs/a%2Fb%0d%0a", "/jobs/a%2Fb%0D%0A/status", "3"),
        ("/same/7?x=1", "/same/7?x=1", "1"),
    ] {
        let executions = world.executions();
        let request = world.post(path).json("{}").header("x-origin-hold", path);
        let first = tokio::spawn(request.clone().send());
        eventually("the first runs", async || world.executions() == executions + 1).await;
        let duplicate = request.clone().send().await;
        assert_eq!(duplicate.status, 307);
        assert_eq!(duplicate.header("location"), Some(location));
        assert_eq!(duplicate.header("retry-after"), Some(after));
        assert_eq!(duplicate.code(), "in-progress");
        world.origin.release(path);
        assert_eq!(first.await.unwrap().status, 200);
        assert!(request.send().await.is_replay());
        assert_eq!(world.executions(), executions + 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_outlives_a_slow_origin() {
    let world = World::start(pay(json!({ "lease": "1s" }))).await;
    let request =
        world.post("/pay").key("a").caller("alice").json("{}").header("x-origin-delay-ms", "3500");
    let first = tokio::spawn(request.clone().send());
    eventually("the first runs", async || world.executions() == 1).await;
    let begun = Instant::now();
    let mut refused = 0;
    while begun.elapsed() < Duration::from_secs(3) {
        let duplicate = request.clone().send().await;
        assert_eq!((duplicate.status, duplicate.code().as_str()), (409, "in-progress"));
        refused += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(refused > 10, "{refused}");
    assert_eq!(first.await.unwrap().status, 200);
    assert!(request.send().await.is_replay());
    assert_eq!(world.executions(), 1);
}
