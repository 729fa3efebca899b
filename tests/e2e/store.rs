//! A store that has no room: nothing runs twice, and no claim goes for another.

use crate::pay;
use serde_json::{Value, json};
use testkit::{Answer, World, eventually};
use tokio::task::JoinHandle;

/// The smallest table, and more claims at once than it holds.
async fn overfilled(more: Value) -> (World, Vec<JoinHandle<Answer>>) {
    let mut config = pay(more);
    config["store"] = json!({ "memory": { "entries": 64, "budget": "1MiB" } });
    let world = World::start(config).await;
    let tasks = (0..150)
        .map(|number| {
            let request = world.post("/pay").key(&format!("key-{number}")).caller("alice");
            tokio::spawn(request.json("{}").header("x-origin-hold", "all").send())
        })
        .collect();
    (world, tasks)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_full_of_running_claims_refuses_more_and_drops_none() {
    let (world, tasks) = overfilled(json!({})).await;
    eventually("each runs or is refused", async || {
        world.executions() as u64 + world.counted("pay", "store_error").await == 150
    })
    .await;
    let ran = world.executions();
    assert!(0 < ran && ran <= 64, "{ran}");
    // While they run, each is in the table …
    for seen in world.origin.seen() {
        let key = seen.header("idempotency-key").unwrap();
        let duplicate = world.post("/pay").key(key).caller("alice").json("{}").send().await;
        assert_eq!(duplicate.code(), "in-progress");
    }
    world.origin.release("all");
    let mut refused = 0;
    for task in tasks {
        let answer = task.await.unwrap();
        if answer.status == 503 {
            assert_eq!(answer.code(), "store-unavailable");
            refused += 1;
        } else {
            assert_eq!((answer.status, answer.is_replay()), (200, false));
        }
    }
    // … and none has made room for another.
    assert_eq!((refused, world.executions()), (150 - ran, ran));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rule_may_let_a_request_pass_for_which_there_is_no_room() {
    let (world, tasks) = overfilled(json!({ "on_store_error": "pass" })).await;
    eventually("all run", async || world.executions() == 150).await;
    world.origin.release("all");
    for task in tasks {
        assert_eq!(task.await.unwrap().status, 200);
    }
    let unprotected = world.counted("pay", "store_error").await;
    assert!((150 - 64..150).contains(&unprotected), "{unprotected}");
    assert_eq!(world.counted("pay", "executed").await, 150 - unprotected);
}
