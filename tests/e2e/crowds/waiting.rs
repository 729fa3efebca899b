//! All wait for one key.

use super::Scene;
use crate::pay;
use serde_json::{Value, json};
use std::time::Duration;
use testkit::crowd::Crowd;
use testkit::deployment::Store;
use testkit::eventually;
use tokio::time::{Instant, sleep_until};

fn rules(max: &str) -> Value {
    pay(json!({ "ongoing": { "wait": { "max": max } } }))
}

/// The first of this key, at the first Envoy, once it runs.
async fn first(scene: &Scene, headers: &[(&str, &str)]) -> Crowd {
    let mut request = scene.post(0, "/pay", "a").header("x-origin-hold", "first");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let first = scene.crowd(vec![request]).await;
    scene.run(1).await;
    first
}

/// This many that wait for it at each Envoy; one that runs instead is held once more.
async fn waiters(scene: &Scene, numbers: &[usize]) -> Vec<Crowd> {
    let mut crowds = Vec::new();
    for (envoy, number) in numbers.iter().enumerate() {
        let request = scene.post(envoy, "/pay", "a").header("x-origin-hold", "second");
        let to = scene.deployment.envoys[envoy].front;
        crowds.push(Crowd::send(to, vec![request; *number]).await);
        scene.wait(envoy, *number).await;
    }
    crowds
}

async fn all_get_the_answer(store: Store, numbers: &[usize]) {
    let scene = Scene::start(store, &rules("2m")).await;
    let first = first(&scene, &[]).await;
    let crowds = waiters(&scene, numbers).await;
    scene.deployment.origin.release("first");
    first.ends_in(&[("200", 1)]).await;
    for (crowd, number) in crowds.into_iter().zip(numbers) {
        crowd.ends_in(&[("200 replayed", *number)]).await;
    }
    assert_eq!(scene.executions(), 1);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_in_memory_get_the_answer() {
    all_get_the_answer(Store::Memory, &[10_000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_wait_at_each_of_two_envoys_get_the_answer() {
    all_get_the_answer(Store::Redis, &[3_000, 3_000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_with_redis_at_the_envoy_that_runs_it_get_the_answer() {
    all_get_the_answer(Store::Redis, &[10_000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_at_the_other_envoy_get_the_answer() {
    all_get_the_answer(Store::Redis, &[0, 10_000]).await;
}

/// The origin's answer that frees the key: it has done nothing.
const RELEASED: [(&str, &str); 2] =
    [("x-origin-status", "503"), ("x-origin-header", "retry-after: 1")];

async fn one_takes_over(store: Store, numbers: &[usize]) {
    let scene = Scene::start(store, &rules("2m")).await;
    let first = first(&scene, &RELEASED).await;
    let crowds = waiters(&scene, numbers).await;
    scene.deployment.origin.release("first");
    first.ends_in(&[("503", 1)]).await;
    scene.run(2).await;
    // The others go on waiting, wherever the one that runs has waited.
    let all: usize = numbers.iter().sum();
    eventually("the others wait", async || {
        let mut waiting = 0;
        for envoy in &scene.deployment.envoys {
            waiting += envoy.stat("wasmcustom.idempotency_waiters").await.unwrap_or(0);
        }
        waiting == all as u64 - 1
    })
    .await;
    scene.deployment.origin.release("second");
    let mut together = Crowd::at(scene.deployment.envoy().front).await;
    crowds.into_iter().for_each(|crowd| together.join(crowd));
    together.ends_in(&[("200", 1), ("200 replayed", all - 1)]).await;
    assert_eq!(scene.executions(), 2);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_ten_thousand_takes_over_in_memory_and_the_others_get_its_answer() {
    one_takes_over(Store::Memory, &[10_000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_three_thousand_at_each_envoy_takes_over_and_the_others_get_its_answer() {
    one_takes_over(Store::Redis, &[3_000, 3_000]).await;
}

/// All have waited too long when Envoy reads its clock again. It is stopped for less time than Redis has.
async fn all_are_refused(store: Store, numbers: &[usize]) {
    let mut rules = rules("6s");
    if store == Store::Redis {
        rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": "5s" } });
    }
    let scene = Scene::start(store, &rules).await;
    let first = first(&scene, &[]).await;
    let crowds = waiters(&scene, numbers).await;
    let last = Instant::now();
    sleep_until(last + Duration::from_secs(2)).await;
    for envoy in &scene.deployment.envoys {
        envoy.freeze().await;
    }
    sleep_until(last + Duration::from_secs(6)).await;
    for envoy in &scene.deployment.envoys {
        envoy.thaw().await;
    }
    for (crowd, number) in crowds.into_iter().zip(numbers) {
        crowd.ends_in(&[("409 in-progress", *number)]).await;
    }
    scene.deployment.origin.release("first");
    first.ends_in(&[("200", 1)]).await;
    assert_eq!(scene.executions(), 1);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_have_waited_too_long_in_one_moment_are_refused() {
    all_are_refused(Store::Memory, &[10_000]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_have_waited_too_long_at_the_other_envoy_are_refused() {
    all_are_refused(Store::Redis, &[0, 3_000]).await;
}
