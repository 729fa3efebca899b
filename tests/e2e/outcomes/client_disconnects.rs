//! The client leaves: the origin may have run, unless its request never left this Envoy.

use serde_json::json;
use testkit::client::Raw;
use testkit::deployment::Store;
use testkit::{Deployment, Request, eventually};

/// `/pay` needs the request's body for its fingerprint, `/stream` does not.
async fn deployment(store: Store) -> Deployment {
    let rule = |path: &str, fingerprint: &str| {
        json!({
            "name": path.trim_start_matches('/'), "match": { "path": path },
            "key": [ { "key_header": "idempotency-key" } ], "caller": { "header": "authorization" },
            "fingerprint": fingerprint, "unknown_ttl": "2s"
        })
    };
    let rules = json!({ "rules": [rule("/pay", "body"), rule("/stream", "none")] });
    Deployment::start(store, &rules, |bootstrap| bootstrap).await
}

/// A client that has sent this much of a request with the key `a`.
async fn client(
    deployment: &Deployment,
    path: &str,
    headers: &str,
    length: usize,
    body: &str,
) -> Raw {
    let mut raw = Raw::connect(deployment.envoy().front).await.unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: api.example.com\r\nidempotency-key: a\r\n\
         authorization: alice\r\nidempotency-attempt: 77\r\ncontent-type: application/json\r\n\
         {headers}content-length: {length}\r\n\r\n{body}"
    );
    raw.write(request.as_bytes()).await.unwrap();
    raw
}

fn retry(deployment: &Deployment, path: &str) -> Request {
    deployment.elsewhere(path).key("a").caller("alice").json("{}")
}

/// Unknown after that client has left, for a while, and then taken over.
async fn in_doubt(deployment: &Deployment, path: &str, gone: Raw, runs: usize) {
    let in_progress = retry(deployment, path).send().await;
    assert_eq!(in_progress.code(), "in-progress");
    drop(gone);
    eventually("the outcome is unknown", async || {
        let retry = retry(deployment, path).send().await;
        assert_eq!(retry.status, 409);
        retry.code() == "outcome-unknown"
    })
    .await;
    assert_eq!(deployment.attempts("a"), vec!["1"; runs]);
    eventually("the next attempt takes over", async || {
        let retry = retry(deployment, path).send().await;
        assert!(retry.status == 200 || retry.code() == "outcome-unknown", "{}", retry.text());
        retry.status == 200
    })
    .await;
    // A client's own attempt header does not count.
    let mut attempts = vec!["1"; runs];
    attempts.push("2");
    assert_eq!(deployment.attempts("a"), attempts);
}

async fn before_the_answer(store: Store) {
    let deployment = deployment(store).await;
    let client = client(&deployment, "/pay", "x-origin-hold: for ever\r\n", 2, "{}").await;
    eventually("the first runs", async || deployment.attempts("a").len() == 1).await;
    in_doubt(&deployment, "/pay", client, 1).await;
}

async fn in_the_middle_of_the_answer(store: Store) {
    let deployment = deployment(store).await;
    let headers = "x-origin-stream: 2\r\nx-origin-hold-stream: for ever\r\n";
    let mut client = client(&deployment, "/pay", headers, 2, "{}").await;
    client.read_until("sss").await.unwrap();
    in_doubt(&deployment, "/pay", client, 1).await;
}

async fn while_its_body_streams_to_the_origin(store: Store) {
    let deployment = deployment(store).await;
    let client = client(&deployment, "/stream", "", 100, "{ \"half\":").await;
    eventually("the request is on its way", async || {
        deployment.envoy().stat("cluster.origin.upstream_rq_active").await == Some(1)
    })
    .await;
    // The origin counts whole requests; another might act on half a body.
    in_doubt(&deployment, "/stream", client, 0).await;
}

async fn while_its_body_is_held_here(store: Store) {
    let deployment = deployment(store).await;
    let before = deployment.envoy().bytes_received().await;
    let client = client(&deployment, "/pay", "", 100, "{ \"half\":").await;
    eventually("Envoy has it", async || deployment.envoy().bytes_received().await > before).await;
    drop(client);
    eventually("Envoy knows that it left", async || {
        deployment.envoy().stat("http.front.downstream_rq_rx_reset").await == Some(1)
    })
    .await;
    let answer = retry(&deployment, "/pay").send().await;
    assert_eq!((answer.status, answer.is_replay()), (200, false));
    assert_eq!(deployment.attempts("a"), ["1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_answer_makes_the_outcome_unknown_in_memory() {
    before_the_answer(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_before_its_answer_makes_the_outcome_unknown_in_redis() {
    before_the_answer(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_its_answer_makes_the_outcome_unknown_in_memory() {
    in_the_middle_of_the_answer(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_in_the_middle_of_its_answer_makes_the_outcome_unknown_in_redis() {
    in_the_middle_of_the_answer(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_body_streams_makes_the_outcome_unknown_in_memory() {
    while_its_body_streams_to_the_origin(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_body_streams_makes_the_outcome_unknown_in_redis() {
    while_its_body_streams_to_the_origin(Store::Redis).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_body_is_held_has_claimed_nothing_in_memory() {
    while_its_body_is_held_here(Store::Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_while_its_body_is_held_has_claimed_nothing_in_redis() {
    while_its_body_is_held_here(Store::Redis).await;
}
