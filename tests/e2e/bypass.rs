//! Requests that the filter leaves alone.

use crate::pay;
use serde_json::json;
use testkit::client::Raw;
use testkit::{Bootstrap, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_no_rule_matches_passes_untouched() {
    let world = World::start(pay(json!({}))).await;
    let protected = world.post("/pay").key("a").caller("alice").json("{}");
    for _ in 0..2 {
        let get = protected.clone().method("GET").header("idempotency-attempt", "7").send().await;
        assert_eq!((get.status, get.is_replay()), (200, false));
        let put = protected.clone().method("PUT").send().await;
        assert_eq!((put.status, put.is_replay()), (200, false));
        let elsewhere = world.post("/elsewhere").key("a").caller("alice").json("{}").send().await;
        assert_eq!((elsewhere.status, elsewhere.is_replay()), (200, false));
    }
    assert_eq!(world.executions(), 6);
    assert_eq!(world.origin.seen()[0].header("idempotency-attempt"), Some("7"));
    assert_eq!(world.origin.seen()[1].header("idempotency-attempt"), None);
    assert_eq!(world.counted("pay", "bypassed").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_passes() {
    let world = World::start(pay(json!({}))).await;
    let request = world
        .post("/pay")
        .key("a")
        .caller("alice")
        .header("content-type", "application/grpc+proto")
        .bytes(vec![0, 0, 0, 0, 0])
        .http2();
    request.clone().send().await;
    request.send().await;
    assert_eq!(world.executions(), 2);
    assert_eq!(world.counted("pay", "bypassed").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_passes() {
    let bootstrap = Bootstrap::demo().config(&pay(json!({}))).with(|bootstrap| {
        bootstrap.manager()["upgrade_configs"] = json!([ { "upgrade_type": "websocket" } ]);
    });
    let world = World::start_with(bootstrap).await;
    for _ in 0..2 {
        let mut raw = Raw::connect(world.envoy.front).await.unwrap();
        raw.write(
            b"POST /pay HTTP/1.1\r\nhost: h\r\nidempotency-key: a\r\nauthorization: alice\r\n\
              connection: upgrade\r\nupgrade: websocket\r\nx-origin-status: 404\r\n\r\n",
        )
        .await
        .unwrap();
        let answer = raw.read_until("\r\n\r\n").await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404") && !answer.contains("replayed"), "{answer}");
    }
    assert_eq!(world.executions(), 2);
    assert_eq!(world.counted("pay", "bypassed").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_chooses_a_rule_or_switches_the_filter_off() {
    let config = json!({ "rules": [
        { "name": "all", "key": [ { "key_header": "idempotency-key" } ], "caller": "anyone",
          "missing_key": "reject" },
        { "name": "payments", "match": { "hosts": ["nobody.example.com"], "path": "/nowhere" },
          "key": [ { "header": "x-payment" } ], "caller": "anyone" },
    ] });
    let world = World::start(config).await;
    let off = world.post("/unprotected/x").key("a").json("{}");
    off.clone().send().await;
    assert!(!off.send().await.is_replay());
    assert_eq!(world.executions(), 2);

    // Neither host nor path of the chosen rule match; the route decides.
    let chosen = world.post("/chosen/x").header("x-payment", "1").json("{}");
    assert_eq!(chosen.clone().send().await.status, 200);
    assert!(chosen.clone().send().await.is_replay());
    assert_eq!(world.counted("payments", "executed").await, 1);
    // Its methods still do, and no other rule steps in.
    assert_eq!(chosen.method("PUT").send().await.status, 200);
    assert_eq!(world.executions(), 4);
    assert_eq!(world.counted("all", "invalid").await, 0);

    let dangling = world.post("/dangling/x").key("a").json("{}").send().await;
    assert_eq!((dangling.status, dangling.code().as_str()), (500, "misconfigured"));
    assert_eq!(world.executions(), 4);
    assert!(world.envoy.log().contains("no-such-rule"));
}
