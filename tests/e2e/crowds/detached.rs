//! All are detached: the worker sends them itself, and has all their answers.

use super::Scene;
use crate::pay;
use serde_json::{Value, json};
use testkit::Bootstrap;
use testkit::crowd::roomy;
use testkit::deployment::Store;

fn rules(more: Value) -> Value {
    let mut rule = json!({
        "match": {},
        "lease": "2m",
        "ongoing": { "wait": { "max": "2m" } },
        "execution": { "detached": { "timeout": "2m" } },
    });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let mut rules = pay(rule);
    rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": "5s" } });
    rules
}

/// The same, in memory.
fn in_memory() -> Value {
    let mut rules = rules(json!({}));
    rules["store"] = json!({ "memory": {} });
    rules
}

/// This many with this many keys run; the origin answers all of them at once.
async fn all_get_the_answer(scene: Scene, number: usize, keys: usize) {
    let requests = scene.requests("/pay", number, keys).into_iter();
    let mut requests: Vec<_> =
        requests.map(|request| request.header("x-origin-hold", "all")).collect();
    let others = requests.split_off(keys);
    let mut crowd = scene.crowd_that_runs(requests).await;
    crowd.add(others);
    scene.wait(0, number - keys).await;
    scene.deployment.origin.release("all");
    crowd.ends_in(&[("200", keys), ("200 replayed", number - keys)]).await;
    assert_eq!(scene.executions(), keys);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_detached_in_memory_get_their_answers() {
    all_get_the_answer(Scene::start(Store::Memory, &in_memory()).await, 10_000, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_detached_with_redis_get_their_answers() {
    let scene = Scene::start(Store::Redis, &rules(json!({}))).await;
    all_get_the_answer(scene, 3_000, 3_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_for_a_detached_one_get_its_answer() {
    all_get_the_answer(Scene::start(Store::Memory, &in_memory()).await, 10_000, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_detached_through_a_listener_get_their_answers() {
    let mut rules = in_memory();
    rules["rules"][0]["execution"]["detached"]["via"] = json!("loopback");
    let through = |_| roomy(Bootstrap::read("detached.yaml").rules(&rules));
    let scene = Scene::start_with(Store::Memory, &rules, through).await;
    all_get_the_answer(scene, 3_000, 3_000).await;
}

/// All have their claim in one moment, and are sent to a cluster without hosts. No more than 1,024 commands
/// of a worker are under way.
async fn nobody_is_there(path: &str, outcome: &str) {
    const NUMBER: usize = 1_000;
    let scene = Scene::start(Store::Redis, &rules(json!({}))).await;
    let redis = scene.deployment.redis.as_ref().unwrap();
    redis.freeze().await;
    let crowd = scene.crowd(scene.requests(path, NUMBER, NUMBER)).await;
    scene.come(NUMBER).await;
    scene.redis_wakes_up(NUMBER as u64).await;
    crowd.ends_in(&[(outcome, NUMBER)]).await;
    assert_eq!(scene.executions(), 0);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_detached_to_a_cluster_without_hosts_are_refused() {
    nobody_is_there("/empty/pay", "503 origin-unreachable").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_detached_to_a_closed_port_are_refused() {
    // Envoy's own answer.
    nobody_is_there("/closed/pay", "503").await;
}
