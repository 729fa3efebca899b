//! Each has its own key, or few share one, while Redis hangs, dies, and comes back.

use super::Scene;
use crate::pay;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::deployment::Store;
use testkit::eventually;

/// Rules with this time for Redis: with the longest there is, a whole crowd has asked before any is late.
fn rules(timeout: &str) -> Value {
    let mut rules = pay(json!({ "lease": "2m", "ongoing": { "wait": { "max": "2m" } } }));
    rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": timeout } });
    rules
}

/// Shorter, for tests that wait for it.
const TIMEOUT: Duration = Duration::from_secs(2);

const REFUSED: &str = "503 store-unavailable";

/// This many with this many keys ask a Redis that hangs until all of them are late in one moment; then it wakes up.
async fn it_hangs(number: usize, keys: usize) {
    let scene = Scene::start(Store::Redis, &rules("2s")).await;
    let redis = scene.deployment.redis.as_ref().unwrap();
    redis.freeze().await;
    let crowd = scene.crowd(scene.requests("/pay", number, keys)).await;
    scene.come(number).await;
    scene.freeze_for(TIMEOUT).await;
    crowd.ends_in(&[(REFUSED, number)]).await;
    assert_eq!(scene.executions(), 0);
    redis.thaw().await;
    scene.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_ask_a_redis_that_hangs_are_refused() {
    it_hangs(10_000, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_of_two_hundred_keys_that_ask_a_redis_that_hangs_are_refused() {
    it_hangs(3_000, 200).await;
}

/// This many with this many keys ask a Redis that is frozen and then killed.
async fn it_dies(number: usize, keys: usize) {
    let mut scene = Scene::start(Store::Redis, &rules("5s")).await;
    scene.redis().freeze().await;
    let crowd = scene.crowd(scene.requests("/pay", number, keys)).await;
    scene.come(number).await;
    scene.redis().stop();
    crowd.ends_in(&[(REFUSED, number)]).await;
    assert_eq!(scene.executions(), 0);
    scene.redis().restart().await;
    scene.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_ask_a_redis_that_dies_are_refused() {
    it_dies(3_000, 3_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_of_two_hundred_keys_that_ask_a_redis_that_dies_are_refused() {
    it_dies(3_000, 200).await;
}

/// This many with this many keys ask a Redis that is frozen and then wakes up: each key runs once. No more than
/// 1,024 commands of a worker are under way.
async fn it_wakes_up(number: usize, keys: usize) {
    let scene = Scene::start(Store::Redis, &rules("5s")).await;
    let redis = scene.deployment.redis.as_ref().unwrap();
    redis.freeze().await;
    let crowd = scene.crowd(scene.requests("/pay", number, keys)).await;
    scene.come(number).await;
    scene.redis_wakes_up(keys as u64).await;
    crowd.ends_in(&[("200", keys), ("200 replayed", number - keys)]).await;
    assert_eq!(scene.executions(), keys);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_that_ask_a_redis_that_wakes_up_run() {
    it_wakes_up(1_000, 1_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_of_two_hundred_keys_that_ask_a_redis_that_wakes_up_run_once_a_key() {
    it_wakes_up(3_000, 200).await;
}

/// The fault of Redis while the crowd runs.
#[derive(PartialEq)]
enum Fate {
    Dies,
    Hangs,
}

/// This many run when Redis goes away; the origin answers them all; Redis comes back.
async fn it_goes_while_they_run(number: usize, fate: Fate) {
    let mut scene = Scene::start(Store::Redis, &rules("2s")).await;
    let requests = scene.requests("/pay", number, number).into_iter();
    let held = requests.map(|request| request.header("x-origin-hold", "all")).collect();
    let crowd = scene.crowd_that_runs(held).await;
    match fate {
        Fate::Dies => scene.redis().stop(),
        Fate::Hangs => scene.redis().freeze().await,
    }
    scene.deployment.origin.release("all");
    if fate == Fate::Hangs {
        eventually("Envoy has all answers", async || {
            let active = scene.deployment.envoy().stat("cluster.origin.upstream_rq_active").await;
            active == Some(0)
        })
        .await;
        scene.freeze_for(TIMEOUT).await;
    }
    crowd.ends_in(&[("200", number)]).await;
    assert_eq!(scene.executions(), number);
    match fate {
        Fate::Dies => scene.redis().restart().await,
        Fate::Hangs => scene.redis().thaw().await,
    }
    scene.recovers().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_run_while_redis_dies_get_their_answers() {
    it_goes_while_they_run(10_000, Fate::Dies).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_run_while_redis_hangs_get_their_answers() {
    it_goes_while_they_run(3_000, Fate::Hangs).await;
}
