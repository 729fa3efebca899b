//! Envoy refuses to start with a configuration that cannot be meant, and says where it is wrong.

use crate::pay;
use envoy_idempotency::config::Config;
use serde_json::{Value, json};
use testkit::config_cases;
use testkit::{Bootstrap, World};

/// Envoy's log about a configuration.
async fn refusal(config: &str) -> String {
    let log = World::refuses(config).await;
    let line = log.lines().find_map(|line| line.split_once("configuration refused: "));
    line.unwrap_or_else(|| panic!("no reason in\n{log}")).1.to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_that_cannot_be_meant_is_refused_with_its_place() {
    for case in config_cases::of_each_kind() {
        let reason = refusal(&case.config).await;
        assert!(case.is_refused_by(&reason), "{}\n  is refused by {reason}", case.config);
        // The parser's own words, which the operator's tool prints before any Envoy does.
        let words = Config::load(case.config.as_bytes(), &|_| None).unwrap_err();
        assert_eq!(words.to_string(), reason, "{}", case.config);
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
