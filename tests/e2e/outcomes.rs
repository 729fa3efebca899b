//! The outcome of the first answer: kept, released, unknown, or a tombstone.

mod aborts;
mod client_disconnects;
mod response_source;
mod upstreams;

use crate::pay;
use serde_json::{Value, json};
use testkit::deployment::Store;
use testkit::{Deployment, World, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_is_over_after_its_ttl() {
    let world = World::start(pay(json!({ "ttl": "1s", "unknown_ttl": "1s" }))).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    request.clone().send().await;
    assert!(request.clone().send().await.is_replay());
    eventually("the record is over", async || !request.clone().send().await.is_replay()).await;
    assert_eq!(world.executions(), 2);
    assert_eq!(world.origin.seen()[1].header("idempotency-attempt"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_decides_whether_an_answer_is_kept() {
    let world = World::start(pay(json!({}))).await;
    let kept = [200, 201, 302, 400, 404, 409, 422, 500, 501, 505];
    let released = [401, 403, 407, 408, 421, 425, 429];
    let unknown = [502, 503, 504];
    for (statuses, retried) in
        [(&kept[..], "replay"), (&released[..], "again"), (&unknown[..], "unknown")]
    {
        for status in statuses {
            let request = world
                .post("/pay")
                .key(&format!("key-{status}"))
                .caller("alice")
                .json("{}")
                .header("x-origin-status", status.to_string());
            let executions = world.executions();
            let first = request.clone().send().await;
            let retry = request.send().await;
            assert_eq!((first.status, first.is_replay()), (*status, false));
            let ran = world.executions() - executions;
            match retried {
                "replay" => assert_eq!((retry.status, retry.is_replay(), ran), (*status, true, 1)),
                "again" => assert_eq!((retry.status, retry.is_replay(), ran), (*status, false, 2)),
                _ => assert_eq!(
                    (retry.status, retry.code().as_str(), ran),
                    (409, "outcome-unknown", 1),
                    "{status}"
                ),
            }
        }
    }
    // 503 with Retry-After says that nothing was done.
    let request = world
        .post("/pay")
        .key("busy")
        .caller("alice")
        .json("{}")
        .header("x-origin-status", "503")
        .header("x-origin-header", "retry-after: 1");
    let executions = world.executions();
    request.clone().send().await;
    assert_eq!(request.send().await.status, 503);
    assert_eq!(world.executions(), executions + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_changes_which_answers_are_kept() {
    let outcomes = json!({ "outcomes": [
        { "status": [404], "do": "release" },
        { "status": ["5xx"], "do": "unknown" },
        { "status": [202, "210-219"], "do": "status" },
        { "status": [429], "do": "store", "ttl": "1h" },
    ] });
    let world = World::start(pay(outcomes)).await;
    let request = |status: u16| {
        world
            .post("/pay")
            .key(&format!("key-{status}"))
            .caller("alice")
            .json("{}")
            .header("x-origin-status", status.to_string())
            .header("x-origin-header", "x-kept: yes")
            .send()
    };
    for status in [404, 500, 202, 215, 429] {
        request(status).await;
    }
    assert_eq!(world.executions(), 5);
    for status in [202, 215] {
        let retry = request(status).await;
        assert_eq!((retry.status, retry.is_replay(), retry.body.len()), (status, true, 0));
        assert_eq!(retry.header("x-kept"), None);
    }
    assert!(request(429).await.is_replay());
    assert_eq!(request(500).await.code(), "outcome-unknown");
    assert_eq!(world.executions(), 5);
    assert!(!request(404).await.is_replay());
    assert_eq!(world.executions(), 6);
}

async fn the_origin_decides_how_long_its_answer_is_kept(store: Store) {
    let deployment = Deployment::start(store, &pay(json!({})), |bootstrap| bootstrap).await;
    let request = |control: &str| {
        let request = deployment.post("/pay").key("a").caller("alice").json("{}");
        request.header("x-origin-header", format!("idempotency-control: {control}"))
    };
    let first = request("no-store").send().await;
    assert_eq!((first.status, first.header("idempotency-control")), (200, None));
    assert_eq!(deployment.attempts("a"), ["1"]);
    let second = request("ttl=1").send().await;
    assert_eq!((second.is_replay(), second.header("idempotency-control")), (false, None));
    let replay = request("").send().await;
    assert_eq!((replay.is_replay(), replay.header("idempotency-control")), (true, None));
    assert_eq!(deployment.attempts("a"), ["1", "1"]);
    eventually("the record is over", async || {
        let retry = deployment.elsewhere("/pay").key("a").caller("alice").json("{}").send().await;
        !retry.is_replay()
    })
    .await;
    assert_eq!(deployment.attempts("a"), ["1", "1", "1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_decides_how_long_its_answer_is_kept_in_memory() {
    the_origin_decides_how_long_its_answer_is_kept(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_decides_how_long_its_answer_is_kept_in_redis() {
    the_origin_decides_how_long_its_answer_is_kept(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_reaches_its_client_and_leaves_a_tombstone() {
    let world = World::start(pay(json!({}))).await;
    let request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .json("{}")
        .header("x-origin-stream", "3")
        .header("x-origin-header", "content-type: text/event-stream");
    assert_eq!(request.clone().send().await.body.len(), 3_000);
    let retry = request.send().await;
    assert_eq!((retry.status, retry.code().as_str()), (409, "completed-not-stored"));
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_an_unknown_ttl_of_zero_the_next_attempt_takes_over_at_once() {
    let world = World::start(pay(json!({ "unknown_ttl": "0s" }))).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    let first: Value = request.clone().header("x-origin-status", "502").send().await.json();
    assert_eq!(first["execution"], 1);
    let second = request.send().await;
    assert_eq!((second.status, second.is_replay()), (200, false));
    assert_eq!(world.origin.seen()[1].header("idempotency-attempt"), Some("2"));
}
