//! A crowd loses its base: the configuration, the origin, the hosts of its cluster.

use super::Scene;
use crate::pay;
use serde_json::{Value, json};
use std::path::PathBuf;
use testkit::crowd::{Crowd, roomy};
use testkit::deployment::Store;
use testkit::{Bootstrap, Origin, Request, Scratch, eventually};

const NUMBER: usize = 3_000;

fn rules(more: Value) -> Value {
    let mut rule = json!({ "match": {}, "ongoing": { "wait": { "max": "2m" } } });
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    pay(rule)
}

fn held(requests: Vec<Request>) -> Vec<Request> {
    requests.into_iter().map(|request| request.header("x-origin-hold", "all")).collect()
}

/// The listeners with other rules.
async fn replace(scene: &mut Scene, rules: &Value) {
    let port = scene.deployment.origin.address.port();
    let bootstrap = roomy(Bootstrap::demo().rules(rules)).origin(port);
    scene.deployment.envoy().replace(bootstrap).await;
    // Envoy tries each configuration in a VM of its main thread.
    scene.vms[0] += 1;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_wait_while_the_configuration_is_replaced_get_the_answer() {
    let change = |bootstrap: Bootstrap| bootstrap.replaceable().drain_seconds(60);
    let mut scene = Scene::start_with(Store::Memory, &rules(json!({})), change).await;
    let crowd = scene.crowd(held(scene.requests("/pay", NUMBER, 1))).await;
    scene.wait(0, NUMBER - 1).await;
    replace(&mut scene, &rules(json!({ "ttl": "1h" }))).await;
    scene.deployment.origin.release("all");
    crowd.ends_in(&[("200", 1), ("200 replayed", NUMBER - 1)]).await;
    assert_eq!(scene.executions(), 1);
    scene.is_unharmed().await;
}

/// Their connections are closed when the time to drain is over.
async fn all_are_cut_off(keys: usize) {
    let change = |bootstrap: Bootstrap| bootstrap.replaceable();
    let mut scene = Scene::start_with(Store::Memory, &rules(json!({})), change).await;
    let crowd = scene.crowd(held(scene.requests("/pay", NUMBER, keys))).await;
    scene.run(keys).await;
    scene.wait(0, NUMBER - keys).await;
    replace(&mut scene, &rules(json!({ "ttl": "1h" }))).await;
    crowd.ends_in(&[("cut off", NUMBER)]).await;
    scene.deployment.origin.release("all");
    assert_eq!(scene.executions(), keys);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_run_when_their_configuration_ends_are_let_go() {
    all_are_cut_off(NUMBER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_wait_when_their_configuration_ends_are_let_go() {
    all_are_cut_off(1).await;
}

/// The origin dies while this many with this many keys run or wait.
async fn the_origin_dies(store: Store, number: usize, keys: usize) {
    let mut scene = Scene::start(store, &rules(json!({}))).await;
    let mut requests = held(scene.requests("/pay", number, keys));
    let others = requests.split_off(keys);
    let mut crowd = scene.crowd_that_runs(requests).await;
    crowd.add(others);
    scene.wait(0, number - keys).await;
    scene.deployment.origin.die().await;
    // The request that ran gets Envoy's own answer, and those that waited get `outcome-unknown`.
    crowd.ends_in(&[("503", keys), ("409 outcome-unknown", number - keys)]).await;
    assert_eq!(scene.executions(), keys);
    let port = scene.deployment.origin.address.port();
    scene.deployment.origin = Origin::start_on(port).await;
    // The request before the crowd is not counted any more.
    assert_eq!(scene.post(0, "/pay", "after").send().await.status, 200);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_whose_origin_dies_in_memory_are_answered() {
    the_origin_dies(Store::Memory, 10_000, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_whose_origin_dies_with_redis_are_answered() {
    the_origin_dies(Store::Redis, NUMBER, NUMBER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_wait_for_one_whose_origin_dies_are_answered() {
    the_origin_dies(Store::Memory, 10_000, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_that_go_on_in_one_moment_to_a_cluster_without_hosts_are_answered() {
    let mut rules = rules(json!({}));
    rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": "5s" } });
    let scene = Scene::start(Store::Redis, &rules).await;
    let redis = scene.deployment.redis.as_ref().unwrap();
    redis.freeze().await;
    // No more than 1,024 commands of a worker are under way.
    let crowd = scene.crowd(scene.requests("/empty/pay", 1_000, 1_000)).await;
    scene.come(1_000).await;
    scene.redis_wakes_up(1_000).await;
    crowd.ends_in(&[("503", 1_000)]).await;
    assert_eq!(scene.executions(), 0);
    scene.is_unharmed().await;
}

/// The hosts of a cluster, in a file that Envoy reads again when it is replaced.
struct Hosts(Scratch);

impl Hosts {
    fn path(&self) -> PathBuf {
        self.0.file("hosts.json")
    }

    /// Replaces the hosts by these ports of this machine.
    fn are(&self, ports: &[u16]) {
        let endpoints = ports.iter().map(|port| {
            let address = json!({ "address": "127.0.0.1", "port_value": port });
            json!({ "endpoint": { "address": { "socket_address": address } } })
        });
        let file = json!({ "resources": [{
            "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            "cluster_name": "changing",
            "endpoints": [{ "lb_endpoints": endpoints.collect::<Vec<_>>() }],
        }] });
        let next = self.0.file("next");
        std::fs::write(&next, file.to_string()).unwrap();
        std::fs::rename(next, self.path()).unwrap();
    }

    /// A cluster of these hosts beside the others, for `/changing/`.
    fn cluster(&self, bootstrap: Bootstrap) -> Bootstrap {
        bootstrap.with(|bootstrap| {
            let mut cluster = bootstrap.cluster("origin").clone();
            cluster["name"] = json!("changing");
            cluster["type"] = json!("EDS");
            cluster["eds_cluster_config"] = json!({ "eds_config": {
                "path_config_source": { "path": self.path() } } });
            cluster.as_object_mut().unwrap().remove("load_assignment");
            let file = bootstrap.value();
            file["node"] = json!({ "id": "test", "cluster": "test" });
            let clusters = file["static_resources"]["clusters"].as_array_mut().unwrap();
            clusters.push(cluster);
            let route =
                json!({ "match": { "prefix": "/changing/" }, "route": { "cluster": "changing" } });
            let hosts = bootstrap.manager()["route_config"]["virtual_hosts"].as_array_mut();
            hosts.unwrap()[0]["routes"].as_array_mut().unwrap().insert(0, route);
        })
    }
}

/// This many wait when the hosts of their cluster go; the first is released, and each that takes over finds
/// no host and is released in turn.
async fn each_takes_over_and_finds_no_host(store: Store, number: usize) {
    let hosts = Hosts(Scratch::new());
    hosts.are(&[]);
    let mut rules = rules(json!({}));
    if store == Store::Redis {
        rules["store"] = json!({ "redis": { "cluster": "redis", "timeout": "5s" } });
    }
    let scene = Scene::start_with(store, &rules, |bootstrap| hosts.cluster(bootstrap)).await;
    let membership = async |number: u64| {
        eventually("Envoy knows the hosts", async || {
            scene.deployment.envoy().stat("cluster.changing.membership_total").await == Some(number)
        })
        .await;
    };
    hosts.are(&[scene.deployment.origin.address.port()]);
    membership(1).await;
    let first = scene
        .post(0, "/changing/pay", "a")
        .header("x-origin-hold", "first")
        .header("x-origin-status", "503")
        .header("x-origin-header", "retry-after: 1");
    let first = scene.crowd(vec![first]).await;
    scene.run(1).await;
    let request = scene.post(0, "/changing/pay", "a");
    let crowd = Crowd::send(scene.deployment.envoy().front, vec![request; number]).await;
    scene.wait(0, number).await;
    hosts.are(&[]);
    membership(0).await;
    scene.deployment.origin.release("first");
    first.ends_in(&[("503", 1)]).await;
    crowd.ends_in(&[("503", number)]).await;
    assert_eq!(scene.executions(), 1);
    scene.is_unharmed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_that_take_over_in_turn_and_find_no_host_are_answered() {
    each_takes_over_and_finds_no_host(Store::Memory, 10_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_thousand_that_take_over_in_turn_with_redis_and_find_no_host_are_answered() {
    each_takes_over_and_finds_no_host(Store::Redis, NUMBER).await;
}
