//! What becomes of the first answer: kept, released, unknown, or a tombstone.

use crate::harness::client::Raw;
use crate::harness::{World, eventually};
use crate::pay;
use serde_json::{Value, json};

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
async fn the_status_decides_what_is_kept() {
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
async fn a_rule_changes_what_is_kept() {
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

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_decides_by_a_header_that_the_client_never_sees() {
    let world = World::start(pay(json!({}))).await;
    let request = |key: &str, control: &str| {
        world
            .post("/pay")
            .key(key)
            .caller("alice")
            .json("{}")
            .header("x-origin-header", format!("idempotency-control: {control}"))
    };
    let first = request("a", "no-store").send().await;
    assert_eq!((first.status, first.header("idempotency-control")), (200, None));
    assert!(!request("a", "no-store").send().await.is_replay());
    assert_eq!(world.executions(), 2);
    request("b", "ttl=1").send().await;
    let retry = request("b", "ttl=1").send().await;
    assert_eq!((retry.is_replay(), retry.header("idempotency-control")), (true, None));
    eventually("the record is over", async || !request("b", "ttl=1").send().await.is_replay())
        .await;
    assert_eq!(world.executions(), 4);
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
async fn where_no_connection_stood_nothing_has_run() {
    let mut config = pay(json!({}));
    config["rules"][0]["match"] = json!({});
    let world = World::start(config).await;
    for path in ["/refused/a", "/refused/a"] {
        let answer = world.post(path).key("a").caller("alice").json("{}").send().await;
        assert_eq!((answer.status, answer.is_replay()), (503, false));
    }
    assert_eq!(world.counted("all", "executed").await + world.counted("pay", "executed").await, 2);
}

/// Executes once in doubt, and shows what happens to the key.
async fn in_doubt(path: &str, header: (&str, &str), status: Option<u16>) {
    let mut config = pay(json!({ "unknown_ttl": "2s" }));
    config["rules"][0]["match"] = json!({});
    let world = World::start(config).await;
    let request = world.post(path).key("a").caller("alice").json("{}");
    let first = request.clone().header(header.0, header.1).try_send().await;
    assert_eq!(first.ok().map(|answer| answer.status), status);
    // The record is written when Envoy knows; a client that was cut off may know before it.
    eventually("the key is in doubt", async || {
        request.clone().send().await.code() == "outcome-unknown"
    })
    .await;
    let retry = request.clone().send().await;
    assert_eq!((retry.status, retry.code().as_str()), (409, "outcome-unknown"));
    assert_eq!(retry.header("retry-after"), None);
    assert_eq!(world.executions(), 1);
    eventually("the next attempt takes over", async || request.clone().send().await.status == 200)
        .await;
    assert_eq!(world.executions(), 2);
    assert_eq!(world.origin.seen()[0].header("idempotency-attempt"), Some("1"));
    assert_eq!(world.origin.seen()[1].header("idempotency-attempt"), Some("2"));
    assert_eq!(world.envoy.stat("wasmcustom.idempotency_takeovers_total").await, Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_closes_before_its_answer_may_have_run() {
    in_doubt("/pay", ("x-origin-die", "before"), Some(503)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_dies_in_the_middle_of_its_answer_has_run() {
    in_doubt("/pay", ("x-origin-die", "middle"), None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_takes_too_long_may_have_run() {
    in_doubt("/impatient/pay", ("x-origin-delay-ms", "1000"), Some(504)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_puts_its_key_in_doubt() {
    let world = World::start(pay(json!({ "unknown_ttl": "2s" }))).await;
    let mut raw = Raw::connect(world.envoy.front).await.unwrap();
    raw.write(
        b"POST /pay HTTP/1.1\r\nhost: api.example.com\r\nidempotency-key: a\r\n\
          authorization: alice\r\nidempotency-attempt: 77\r\nx-origin-hold: it\r\n\
          content-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
    )
    .await
    .unwrap();
    eventually("the first runs", async || world.executions() == 1).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    assert_eq!(request.clone().send().await.code(), "in-progress");
    drop(raw);
    eventually("the key is in doubt", async || {
        request.clone().send().await.code() == "outcome-unknown"
    })
    .await;
    assert_eq!(world.executions(), 1);
    eventually("the next attempt takes over", async || request.clone().send().await.status == 200)
        .await;
    assert_eq!(world.executions(), 2);
    // What a client says about attempts does not count.
    assert_eq!(world.origin.seen()[0].header("idempotency-attempt"), Some("1"));
    assert_eq!(world.origin.seen()[1].header("idempotency-attempt"), Some("2"));
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
