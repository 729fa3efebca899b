//! A service with a state machine, called by many clients: a transition runs once for all of them.

use serde_json::json;
use testkit::World;

#[tokio::test(flavor = "multi_thread")]
async fn entity_7_goes_from_a_to_b_once_for_all_callers() {
    let config = json!({ "rules": [
        { "name": "order-transition",
          "match": { "methods": ["POST"], "path": "/orders/{order}/transitions" },
          "key": [ { "path": "order" }, { "json": "/from" }, { "json": "/to" } ],
          "caller": "anyone", "fingerprint": "none",
          "ongoing": { "wait": { "max": "15s" } }, "ttl": "1h" } ] });
    let world = World::start(config).await;
    let post = |order: &str, body: &str, client: &str| {
        world
            .post(&format!("/orders/{order}/transitions"))
            .header("x-client", client)
            .header("x-origin-hold", "all")
            .json(body)
    };
    // Many clients at once, each in its own words.
    let mut tasks = Vec::new();
    for number in 0..30 {
        let client = format!("client-{number}");
        let a_to_b = match number % 3 {
            0 => r#"{"from":"A","to":"B"}"#,
            1 => r#"{ "to" : "B", "from" : "A" }"#,
            _ => r#"{"to":"B","from":"A","note":"mine"}"#,
        };
        tasks.push(tokio::spawn(post("7", a_to_b, &client).send()));
        tasks.push(tokio::spawn(post("7", r#"{"from":"D","to":"B"}"#, &client).send()));
        tasks.push(tokio::spawn(post("8", a_to_b, &client).send()));
    }
    testkit::eventually("three run and the others wait", async || {
        world.envoy.stat("wasmcustom.idempotency_waiters").await == Some(87)
    })
    .await;
    world.origin.release("all");
    let mut first_answers = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        assert_eq!(answer.status, 200);
        first_answers += usize::from(!answer.is_replay());
    }
    assert_eq!((first_answers, world.executions()), (3, 3));
    let mut ran: Vec<_> = world
        .origin
        .seen()
        .iter()
        .map(|seen| {
            let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            format!("{} {}→{}", seen.path, body["from"], body["to"])
        })
        .collect();
    ran.sort();
    assert_eq!(
        ran,
        [
            "/orders/7/transitions \"A\"→\"B\"",
            "/orders/7/transitions \"D\"→\"B\"",
            "/orders/8/transitions \"A\"→\"B\"",
        ]
    );
    // Long after, a late client still gets the answer.
    let late = post("7", r#"{"from":"A","to":"B"}"#, "late").send().await;
    assert!(late.is_replay());
    // A transition needs its state.
    let lame = post("7", r#"{"to":"B"}"#, "lame").send().await;
    assert_eq!((lame.status, lame.code().as_str()), (400, "key-missing"));
    assert_eq!(world.executions(), 3);
}
