//! Envoy refuses to start with a configuration that cannot be meant, and says where it is wrong.

use crate::harness::{Bootstrap, World};
use crate::pay;
use serde_json::{Value, json};

/// What Envoy's log says of a configuration.
async fn refusal(config: &str) -> String {
    let log = World::refuses(config).await;
    let line = log.lines().find_map(|line| line.split_once("configuration refused: "));
    line.unwrap_or_else(|| panic!("no reason in\n{log}")).1.to_owned()
}

fn rule(more: Value) -> String {
    pay(more).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_meant_is_refused_with_its_place() {
    let cases = [
        ("not json".to_owned(), "line 1"),
        ("{}".to_owned(), "rules"),
        (json!({ "rules": [] }).to_string(), "rules"),
        (rule(json!({ "lease": "5" })), "rules[0].lease: \"5\" has no unit, write \"5s\""),
        (rule(json!({ "leese": "5s" })), "leese"),
        (rule(json!({ "ttl": "31d" })), "rules[0].ttl"),
        (rule(json!({ "unknown_ttl": "2h", "ttl": "1h" })), "rules[0].unknown_ttl"),
        (rule(json!({ "match": { "methods": ["GET"] } })), "rules[0].match.methods[0]"),
        (rule(json!({ "match": { "path": "pay" } })), "rules[0].match.path"),
        (rule(json!({ "key": [] })), "rules[0].key"),
        (rule(json!({ "key": [ { "path": "order" } ] })), "rules[0].key[0]"),
        (rule(json!({ "key": [ { "json": "from" } ] })), "rules[0].key[0]"),
        (rule(json!({ "name": "Pay" })), "rules[0].name"),
        (rule(json!({ "limits": { "request_body": "9MiB" } })), "rules[0].limits.request_body"),
        (rule(json!({ "ongoing": { "wait": { "max": "1h" } } })), "rules[0].ongoing.wait.max"),
        (rule(json!({ "on_store_error": "local" })), "rules[0].on_store_error"),
        (json!({ "rules": [ { "name": "a", "key": [ "body" ] } ] }).to_string(), "caller"),
        (
            rule(json!({ "execution": { "detached": { "timeout": "5" } } })),
            "rules[0].execution.detached.timeout: \"5\" has no unit, write \"5s\"",
        ),
    ];
    let mut unset = pay(json!({}));
    unset["secret_env"] = json!("NO_SUCH_VARIABLE");
    let mut twice = pay(json!({}));
    twice["rules"] = json!([twice["rules"][0], twice["rules"][0]]);
    let more = [(unset.to_string(), "secret_env"), (twice.to_string(), "rules[1].name")];
    for (config, place) in cases.into_iter().chain(more) {
        let reason = refusal(&config).await;
        assert!(reason.contains(place), "{config}\n  is refused by {reason}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_struct_is_as_good_as_a_string() {
    // Numbers, booleans and nested lists: a Struct has its own idea of each.
    let config = json!({
        "@type": "type.googleapis.com/google.protobuf.Struct",
        "value": pay(json!({
            "shadow": false,
            "outcomes": [ { "status": [404, "5xx"], "do": "release" } ]
        }))
    });
    let bootstrap =
        Bootstrap::demo().with(|bootstrap| bootstrap.plugin()["configuration"] = config);
    let world = World::start_with(bootstrap).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    request.clone().send().await;
    assert!(request.send().await.is_replay());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_config_of_the_readme_works() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/envoy/minimal.yaml"));
    let mut filter: Value = serde_norway::from_str(&text.unwrap()).unwrap();
    let module = Bootstrap::demo().plugin()["vm_config"]["code"].clone();
    filter["typed_config"]["config"]["vm_config"]["code"] = module;
    let world = World::start_with(Bootstrap::demo().filter(filter)).await;
    let request = world.post("/v1/payments").key("a").caller("alice").json("{}");
    request.clone().send().await;
    assert!(request.send().await.is_replay());
    assert_eq!(world.executions(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_comes_from_the_environment_and_shows_nowhere() {
    let mut config = pay(json!({}));
    config["secret_env"] = json!("IDEMPOTENCY_SECRET");
    let bootstrap = Bootstrap::demo().config(&config).with(|bootstrap| {
        let values =
            json!({ "key_values": { "IDEMPOTENCY_SECRET": "hush-0123456789abcdef0123456789" } });
        bootstrap.plugin()["vm_config"]["environment_variables"] = values;
    });
    let world = World::start_with(bootstrap).await;
    let request = world.post("/pay").key("a").caller("alice").json("{}");
    request.clone().send().await;
    assert!(request.send().await.is_replay());
    assert_eq!(world.executions(), 1);
    assert!(!world.envoy.log().contains("hush-"));
}
