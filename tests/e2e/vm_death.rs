//! A bug that traps costs the requests of one worker, once, and frees no claim.
//!
//! Envoy makes a new VM for the worker (`failure_policy: FAIL_RELOAD`) with the first request that comes
//! its pause, a second by default, after the last VM was made; until then the worker answers 503. So it
//! does to requests that are under way, when their origin answers. Their claims are not ended: they lapse
//! into unknown outcomes, as they would if the whole Envoy had died.

use crate::pay;
use serde_json::json;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use testkit::deployment::Store;
use testkit::{Answer, Bootstrap, Client, Deployment, Request, eventually};

/// Stops the VM that sees it, in a request or in an origin's response.
const HEADER: &str = "x-deliberate-trap";

async fn deployment(store: Store) -> Deployment {
    let rules = pay(json!({ "lease": "2s", "unknown_ttl": "2s" }));
    Deployment::start(store, &rules, Bootstrap::trap_module).await
}

fn with(request: Request, key: &str) -> Request {
    request.key(key).caller("alice").json("{}")
}

/// Envoy's own answer to a request that the VM it needs is gone for: no body, nothing of ours.
fn is_envoys_503(answer: &Answer) -> bool {
    answer.status == 503 && answer.body.is_empty() && answer.header("idempotency-status").is_none()
}

/// Waits until this worker serves again, and sees that it is by a new VM.
async fn comes_back(deployment: &Deployment, client: &Client, vms: u64) {
    let tries = Cell::new(0);
    eventually("the worker serves again", async || {
        tries.set(tries.get() + 1);
        let key = format!("after-{vms}-{}", tries.get());
        let answer = client.send(with(deployment.post("/pay"), &key)).await.unwrap();
        assert!(answer.status == 200 || is_envoys_503(&answer), "{answer:?}");
        answer.status == 200
    })
    .await;
    assert_eq!(deployment.envoy().vms_created().await, vms + 1);
}

/// A claim whose owner is gone: in progress until its lease is over, then unknown, then taken over,
/// and at no time simply free.
async fn lapses(deployment: &Deployment, key: &str) {
    let retry = async || {
        let answer = with(deployment.elsewhere("/pay"), key).send().await;
        (answer.status, answer.code())
    };
    let in_progress = (409, "in-progress".to_owned());
    let in_doubt = (409, "outcome-unknown".to_owned());
    // With one Envoy, half of all connections come to the worker that has no VM yet.
    let gone = (503, String::new());
    let seen = RefCell::new(Vec::new());
    eventually("the lease is over", async || {
        let found = retry().await;
        assert!([&in_progress, &in_doubt, &gone].contains(&&found), "{key}: {found:?}");
        seen.borrow_mut().push(found.clone());
        found == in_doubt
    })
    .await;
    let seen = seen.into_inner();
    assert!(seen.contains(&in_progress), "{key} was unknown before its lease was over: {seen:?}");
    assert_eq!(deployment.attempts(key), ["1"]);
    eventually("the next attempt takes over", async || {
        let found = retry().await;
        assert!(found.0 == 200 || [&in_doubt, &gone].contains(&&found), "{key}: {found:?}");
        found.0 == 200
    })
    .await;
    assert_eq!(deployment.attempts(key), ["1", "2"]);
}

/// Its outcome, as Envoy logged it.
async fn is_logged(deployment: &Deployment, what: &str) {
    eventually("the request is logged", async || deployment.envoy().log().contains(what)).await;
}

async fn a_trap_beside_a_running_request(store: Store) {
    let deployment = deployment(store).await;
    // On one connection, so that all of it is in one worker.
    let client = Arc::new(Client::connect(deployment.envoy().front, true).await.unwrap());
    let before = client.send(with(deployment.post("/pay"), "before")).await.unwrap();
    assert_eq!(before.status, 200);
    let vms = deployment.envoy().vms_created().await;
    let held = with(deployment.post("/pay"), "held").header("x-origin-hold", "it");
    let running = tokio::spawn({
        let client = client.clone();
        async move { client.send(held).await }
    });
    eventually("it runs", async || deployment.attempts("held") == ["1"]).await;
    let trapped = with(deployment.post("/pay"), "trapped").header(HEADER, "now");
    assert!(is_envoys_503(&client.send(trapped).await.unwrap()));
    assert!(deployment.attempts("trapped").is_empty());
    // The other one hears of it when its origin answers, and does not get the answer.
    deployment.origin.release("it");
    assert!(is_envoys_503(&running.await.unwrap().unwrap()));
    lapses(&deployment, "held").await;
    comes_back(&deployment, &client, vms).await;
    // Earlier records are still there, and a key that was never claimed is free.
    let replay = client.send(with(deployment.post("/pay"), "before")).await.unwrap();
    assert!(replay.is_replay());
    assert_eq!((replay.status, replay.body), (200, before.body));
    assert_eq!(client.send(with(deployment.post("/pay"), "trapped")).await.unwrap().status, 200);
    assert_eq!(deployment.attempts("trapped"), ["1"]);
    is_logged(&deployment, "proxy_on_request_headers failed").await;
}

async fn a_trap_at_the_origins_answer(store: Store) {
    let deployment = deployment(store).await;
    let client = Client::connect(deployment.envoy().front, true).await.unwrap();
    assert_eq!(client.send(with(deployment.post("/pay"), "before")).await.unwrap().status, 200);
    let vms = deployment.envoy().vms_created().await;
    let first =
        with(deployment.post("/pay"), "a").header("x-origin-header", format!("{HEADER}: now"));
    let first = client.send(first).await.unwrap();
    assert!(is_envoys_503(&first), "{first:?}");
    lapses(&deployment, "a").await;
    comes_back(&deployment, &client, vms).await;
    assert!(client.send(with(deployment.post("/pay"), "before")).await.unwrap().is_replay());
    is_logged(&deployment, "proxy_on_response_headers failed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_frees_no_claim_of_its_worker_in_memory() {
    a_trap_beside_a_running_request(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_frees_no_claim_of_its_worker_in_redis() {
    a_trap_beside_a_running_request(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_at_an_answer_leaves_its_outcome_unknown_in_memory() {
    a_trap_at_the_origins_answer(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trap_at_an_answer_leaves_its_outcome_unknown_in_redis() {
    a_trap_at_the_origins_answer(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_come_back_leave_no_connections_to_redis_behind() {
    let deployment = deployment(Store::Redis).await;
    let client = Client::connect(deployment.envoy().front, true).await.unwrap();
    let redis = deployment.redis.as_ref().unwrap();
    for _ in 0..3 {
        let vms = deployment.envoy().vms_created().await;
        let key = format!("trap-{vms}");
        client.send(with(deployment.post("/pay"), &key).header(HEADER, "now")).await.unwrap();
        comes_back(&deployment, &client, vms).await;
    }
    // This worker's; no other has had a request.
    eventually("one connection is left", async || redis.clients(None).await == 1).await;
}
