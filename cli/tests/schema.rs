//! The JSON Schema of the configuration: it is current, accepts what the parser accepts, and refuses what a
//! schema can refuse.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::config::{Config, render_schema};
use jsonschema::Validator;
use proptest::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use testkit::config_cases::{self, every_field, junk, places};
use testkit::project_path;

fn schema() -> Validator {
    jsonschema::draft202012::new(&serde_json::from_str(&render_schema()).unwrap()).unwrap()
}

fn loads(config: &Value) -> bool {
    let any = |_: &str| Some("0123456789abcdef".to_owned());
    Config::load(config.to_string().as_bytes(), &any).is_ok()
}

/// Errors that only the parser finds: it knows lengths as numbers, and the rest of the configuration.
const BEYOND_A_SCHEMA: [&str; 16] = [
    // Lengths and sizes are strings.
    "wanted 1s to",
    "wanted 0s to",
    "wanted 10ms to",
    "wanted 1MiB to",
    "wanted 0B to",
    "wanted at most 4m",
    "wanted 1B to 8MiB",
    "runs backwards",
    // Names and parts that must fit each other.
    "is not a capture of match.path",
    "is the name of rules[0], too",
    "a body is never both",
    "has no effect",
    "needs store.redis",
    "needs a password_env",
    // The environment.
    "secret_env: ",
    // Syntaxes of our own.
    "rules[0].match.path: ",
];

#[test]
fn the_committed_schema_is_the_parsers_own() {
    let committed = include_str!("../../config.schema.json");
    assert!(committed == render_schema(), "config.schema.json is old: run `make schema`");
}

#[test]
fn the_schema_refuses_what_the_parser_refuses_as_far_as_a_schema_can() {
    let schema = schema();
    let mut refused = 0;
    let mut used = [false; BEYOND_A_SCHEMA.len()];
    for case in config_cases::all() {
        let Ok(config) = serde_json::from_str::<Value>(&case.config) else { continue };
        if !schema.is_valid(&config) {
            refused += 1;
            continue;
        }
        let loaded = Config::load(case.config.as_bytes(), &config_cases::environment);
        let said = loaded.unwrap_err().to_string();
        let known = BEYOND_A_SCHEMA.iter().position(|words| said.contains(words));
        let known = known.unwrap_or_else(|| panic!("{}\n  {said}", case.config));
        used[known] = true;
    }
    assert!(refused > 50, "{refused}");
    // A case that the schema refuses must leave the list.
    let unused: Vec<_> = BEYOND_A_SCHEMA
        .iter()
        .zip(used)
        .filter(|(_, used)| !used)
        .map(|(words, _)| words)
        .collect();
    assert_eq!(unused, Vec::<&&str>::new());
}

/// Every configuration in a document, wherever it is in it.
fn configurations(value: &Value, found: &mut Vec<Value>) {
    if value.get("root_id").is_some_and(|root| root == "idempotency") {
        let text = value["configuration"]["value"].as_str().unwrap();
        found.push(serde_json::from_str(text).unwrap());
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|inner| configurations(inner, found)),
        Value::Array(items) => items.iter().for_each(|inner| configurations(inner, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_configuration_that_is_shown_is_valid() {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(project_path("envoy")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let text = std::fs::read_to_string(path).unwrap();
            for document in serde_norway::Deserializer::from_str(&text) {
                configurations(&Value::deserialize(document).unwrap(), &mut found);
            }
        }
    }
    // A file with two listeners has two.
    assert!(found.len() > 6, "{}", found.len());
    let schema = schema();
    for config in found {
        assert!(schema.is_valid(&config), "{config}");
        assert!(loads(&config), "{config}");
    }
}

#[test]
fn every_field_and_every_choice_is_valid() {
    let schema = schema();
    for (rule, more) in [
        (
            json!({}),
            json!({ "store": { "redis": { "cluster": "r", "prefix": "a:", "timeout": "1s",
            "username": "u", "password_env": "P", "transport": "pipe",
            "local": { "entries": 64.0, "budget": "1MiB", "ttl": "0.5 h" } } } }),
        ),
        (
            json!({ "ongoing": { "wait": { "max": "1m 30s" } }, "scope": [] }),
            json!({ "store": null }),
        ),
        (json!({ "ongoing": { "redirect": {} }, "caller": "peer" }), json!({ "secret_env": null })),
        (json!({ "ongoing": { "requeue": { "delay": "10ms", "attempts": 100 } } }), json!({})),
        (json!({ "execution": { "detached": { "timeout": "1h", "via": "loop" } } }), json!({})),
        (
            json!({ "key": [ { "form": "a" }, { "query": "q" }, { "cookie": "c" }, { "header": "h" } ],
            "fingerprint": "none", "caller": { "cookie": "c" } }),
            json!({}),
        ),
        (json!({ "fingerprint": { "fields": ["", "/a~1b"] }, "ttl": null }), json!({})),
        (
            json!({ "match": { "hosts": ["*.A_b.example.", "[::1]"], "methods": ["M-SEARCH"] } }),
            json!({}),
        ),
        (json!({ "replay_headers": { "deny": [] }, "outcomes": [] }), json!({})),
    ] {
        let config: Value = serde_json::from_str(&config_cases::with(rule, more)).unwrap();
        assert!(loads(&config), "{config}");
        let wrong: Vec<_> = schema.iter_errors(&config).map(|error| error.to_string()).collect();
        assert_eq!(wrong, Vec::<String>::new(), "{config}");
    }
    assert!(schema.is_valid(&every_field()));
}

proptest! {
    #[test]
    fn whatever_the_parser_takes_the_schema_takes(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), junk()), 1..4),
    ) {
        let mut config = every_field();
        for (index, junk) in changes {
            let mut found = Vec::new();
            places(&config, "", &mut found);
            *config.pointer_mut(found[index.index(found.len())].as_str()).unwrap() = junk;
        }
        if loads(&config) {
            prop_assert!(schema().is_valid(&config), "{config}");
        }
    }
}
