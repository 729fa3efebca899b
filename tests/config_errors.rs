//! Every way to be wrong that the configuration knows, and the very words it is refused with.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::config::Config;
use proptest::prelude::*;
use serde_json::json;
use testkit::config_cases::{self, environment, every_field, junk, places, with};

fn refusal(config: &str) -> String {
    match Config::load(config.as_bytes(), &environment) {
        Ok(_) => panic!("not refused: {config}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn an_invalid_configuration_is_refused_with_place_found_and_wanted() {
    for case in config_cases::all() {
        let said = refusal(&case.config);
        assert!(case.is_refused_by(&said), "{}\n  is refused by {said}", case.config);
    }
}

#[test]
fn a_secret_is_never_shown() {
    assert!(!refusal(&with(json!({}), json!({ "secret_env": "SHORT" }))).contains("secret\""));
}

#[test]
fn the_example_of_a_state_machine_is_a_configuration() {
    let json = br#"{ "rules": [
      { "name": "payments",
        "match": { "hosts": ["api.example.com", "*.example.org"], "methods": ["POST"],
                   "path": "/v1/payments/{id}/capture" },
        "key": [ { "key_header": "Idempotency-Key" } ],
        "caller": { "header": "authorization" } },
      { "name": "order-transition",
        "match": { "methods": ["POST"], "path": "/orders/{order}/transitions" },
        "key": [ { "path": "order" }, { "json": "/from" }, { "json": "/to" } ],
        "caller": "anyone", "fingerprint": "none",
        "ongoing": { "wait": { "max": "10s" } }, "ttl": "1h" } ] }"#;
    let config = Config::load(json, &|_| None).unwrap();
    assert_eq!(config.rules.len(), 2);
}

#[test]
fn a_rule_that_needs_no_body_may_refuse_all() {
    let headers_alone = json!({ "limits": { "request_body": "0B" }, "fingerprint": "none" });
    assert!(Config::load(with(headers_alone, json!({})).as_bytes(), &|_| None).is_ok());
}

#[test]
fn a_name_that_no_request_can_carry_is_refused() {
    for host in ["", "*.", "*", "a..b", "-a.example", "a]b", "[]", "[::1", "[a]", "*.[::1]", "a b"]
    {
        let config = with(json!({ "match": { "hosts": [host] } }), json!({}));
        let wanted = "wanted a host without a port, or \"*.\" and a host";
        assert_eq!(refusal(&config), format!("rules[0].match.hosts[0]: {host:?}, {wanted}"));
    }
    for host in ["a", "A_b.example", "a.example.", "*.a.example", "127.0.0.1", "[2001:DB8::1]"] {
        let config = with(json!({ "match": { "hosts": [host] } }), json!({}));
        assert!(Config::load(config.as_bytes(), &|_| None).is_ok(), "{host}");
    }
    let none = with(json!({ "match": { "hosts": [] } }), json!({}));
    assert_eq!(
        refusal(&none),
        "rules[0].match.hosts: empty, wanted at least one host, or no hosts for any"
    );
    let cookie = with(json!({ "caller": { "cookie": "a=b; c" } }), json!({}));
    assert_eq!(refusal(&cookie), "rules[0].caller.cookie: \"a=b; c\" is not a cookie name");
}

fn secret(_: &str) -> Option<String> {
    Some("0123456789abcdef".to_owned())
}

#[test]
fn a_configuration_with_every_field_is_one() {
    let loaded = Config::load(every_field().to_string().as_bytes(), &secret);
    assert!(loaded.is_ok(), "{loaded:?}");
}

proptest! {
    #[test]
    fn a_mutated_configuration_is_loaded_or_refused_and_never_panics(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), junk()), 1..4),
    ) {
        let mut config = every_field();
        for (index, junk) in changes {
            let mut found = Vec::new();
            places(&config, "", &mut found);
            *config.pointer_mut(found[index.index(found.len())].as_str()).unwrap() = junk;
        }
        if let Err(error) = Config::load(config.to_string().as_bytes(), &secret) {
            prop_assert!(!error.path.is_empty() && !error.problem.is_empty());
            // It is JSON, whatever else it is.
            prop_assert!(!error.problem.contains("not JSON"), "{config}: {error}");
        }
    }

    #[test]
    fn any_bytes_are_refused_and_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        prop_assert!(Config::load(&bytes, &secret).is_err());
    }
}
