//! Claims in Redis: kept alive while the origin works, unknown when their Envoy is gone.

use crate::pay;
use serde_json::json;
use std::time::{Duration, Instant};
use testkit::{Fleet, Request, eventually};
use tokio::time::sleep;

fn a(request: Request) -> Request {
    request.key("a").caller("alice").json("{}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_outlives_an_origin_that_takes_four_leases() {
    let fleet = Fleet::start(pay(json!({ "lease": "1s" }))).await;
    let first = a(fleet.post(0, "/pay")).header("x-origin-delay-ms", "4500");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(4_000) {
        for envoy in 0..2 {
            assert_eq!(a(fleet.post(envoy, "/pay")).send().await.code(), "in-progress");
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(first.await.unwrap().status, 200);
    eventually("the other Envoy has the answer", async || {
        a(fleet.post(1, "/pay")).send().await.is_replay()
    })
    .await;
    assert_eq!(fleet.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_does_not_outlive_its_envoy_and_its_outcome_is_unknown_then() {
    let mut fleet = Fleet::start(pay(json!({ "lease": "1s", "unknown_ttl": "2s" }))).await;
    let first = a(fleet.post(0, "/pay")).header("x-origin-hold", "for ever");
    let first = tokio::spawn(first.try_send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    fleet.envoys[0].kill();
    assert!(first.await.unwrap().is_err());
    // First the lease has to lapse, then the time of the unknown outcome.
    assert_eq!(a(fleet.post(1, "/pay")).send().await.code(), "in-progress");
    eventually("the lease has lapsed", async || {
        let answer = a(fleet.post(1, "/pay")).send().await;
        assert_eq!(answer.status, 409);
        answer.code() == "outcome-unknown"
    })
    .await;
    assert_eq!(fleet.executions(), 1);
    eventually("the next attempt takes over", async || {
        let answer = a(fleet.post(1, "/pay")).send().await;
        assert!(answer.status == 200 || answer.code() == "outcome-unknown", "{}", answer.text());
        answer.status == 200
    })
    .await;
    assert_eq!(fleet.executions(), 2);
    assert_eq!(fleet.origin.seen()[1].header("idempotency-attempt"), Some("2"));
    assert_eq!(fleet.envoys[1].stat("wasmcustom.idempotency_takeovers_total").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_owner_that_wakes_up_does_not_overwrite_its_successor() {
    let fleet = Fleet::start(pay(json!({ "lease": "1s", "unknown_ttl": "0s" }))).await;
    let first = a(fleet.post(0, "/pay")).header("x-origin-hold", "first");
    let first = tokio::spawn(first.send());
    eventually("the first runs", async || fleet.executions() == 1).await;
    fleet.envoys[0].freeze().await;
    // Its origin is done while it sleeps.
    fleet.origin.release("first");
    eventually("the next attempt takes over", async || {
        let answer = a(fleet.post(1, "/pay")).send().await;
        assert!(answer.status == 200 || answer.status == 409, "{}", answer.text());
        answer.status == 200
    })
    .await;
    assert_eq!(fleet.executions(), 2);
    let key = fleet.redis.keys("idem:*").await.remove(0);
    let successors = fleet.redis.bytes(&key).await;
    fleet.envoys[0].thaw().await;
    // Its own client gets its own answer …
    let answer = first.await.unwrap();
    assert_eq!((answer.status, answer.json()["execution"].as_u64()), (200, Some(1)));
    // … and the successor's record is kept.
    assert_eq!(fleet.redis.bytes(&key).await, successors);
    eventually("both replay the successor's answer", async || {
        let mut same = true;
        for envoy in 0..2 {
            let replay = a(fleet.post(envoy, "/pay")).send().await;
            same &= replay.is_replay() && replay.json()["execution"] == 2;
        }
        same
    })
    .await;
    assert_eq!(fleet.executions(), 2);
}
