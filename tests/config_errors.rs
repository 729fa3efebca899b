//! Every way to be wrong that the configuration knows, and the very words it is refused with.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::config::Config;
use serde_json::{Value, json};

fn refusal(config: &str) -> String {
    let environment = |name: &str| match name {
        "SHORT" => Some("secret".to_owned()),
        "PASSWORD" => Some("a password".to_owned()),
        _ => None,
    };
    match Config::load(config.as_bytes(), &environment) {
        Ok(_) => panic!("not refused: {config}"),
        Err(error) => error.to_string(),
    }
}

/// A rule that is right but for these fields, in a configuration with these others.
fn with(rule: Value, config: Value) -> String {
    let mut whole = json!({
        "name": "r", "key": [ { "key_header": "k" } ], "caller": "anyone"
    });
    whole.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
    let mut all = json!({ "rules": [whole] });
    all.as_object_mut().unwrap().extend(config.as_object().unwrap().clone());
    all.to_string()
}

#[test]
fn a_rule_is_refused_with_its_place_what_was_found_and_what_is_wanted() {
    for (rule, wanted) in [
        (json!({ "name": "" }), "rules[0].name: \"\", wanted 1 to 64 of a-z, 0-9, _ and -"),
        (json!({ "name": "A" }), "rules[0].name: \"A\", wanted 1 to 64 of a-z, 0-9, _ and -"),
        (
            json!({ "name": "off" }),
            "rules[0].name: \"off\" is what a route says to switch the filter off",
        ),
        (json!({ "key": [] }), "rules[0].key: empty, wanted at least one part"),
        (
            json!({ "key": [ { "header": "a b" } ] }),
            "rules[0].key[0].header: \"a b\" is no header name",
        ),
        (
            json!({ "key": [ { "query": "" } ] }),
            "rules[0].key[0].query: empty, wanted the name of a query parameter",
        ),
        (
            json!({ "key": [ { "cookie": "" } ] }),
            "rules[0].key[0].cookie: empty, wanted the name of a cookie",
        ),
        (
            json!({ "key": [ { "form": "" } ] }),
            "rules[0].key[0].form: empty, wanted the name of a form field",
        ),
        (
            json!({ "key": [ { "path": "id" } ] }),
            "rules[0].key[0].path: \"id\" is no capture of match.path, which has none",
        ),
        (
            json!({ "match": { "path": "/a/{b}" }, "key": [ { "path": "id" } ] }),
            "rules[0].key[0].path: \"id\" is no capture of match.path, wanted one of b",
        ),
        (json!({ "caller": { "header": "" } }), "rules[0].caller.header: \"\" is no header name"),
        (
            json!({ "caller": { "cookie": "" } }),
            "rules[0].caller.cookie: empty, wanted the name of a cookie",
        ),
        (
            json!({ "caller": { "metadata": ["jwt"] } }),
            "rules[0].caller.metadata: wanted a filter's name and the keys below it, e.g. \
             [\"envoy.filters.http.jwt_authn\", \"payload\", \"sub\"]",
        ),
        (
            json!({ "fingerprint": { "fields": [] } }),
            "rules[0].fingerprint.fields: empty, wanted at least one JSON pointer",
        ),
        (
            json!({ "match": { "methods": [] } }),
            "rules[0].match.methods: empty, wanted at least one method",
        ),
        (
            json!({ "match": { "methods": ["GET"] } }),
            "rules[0].match.methods[0]: \"GET\" changes nothing, or is no request to be repeated",
        ),
        (
            json!({ "match": { "methods": ["POST", "put"] } }),
            "rules[0].match.methods[1]: \"put\", wanted \"PUT\": methods are case-sensitive",
        ),
        (
            json!({ "match": { "methods": ["P T"] } }),
            "rules[0].match.methods[0]: \"P T\" is no method",
        ),
        (
            json!({ "match": { "hosts": ["a.example:80"] } }),
            "rules[0].match.hosts[0]: \"a.example:80\", wanted a host without a port, or \"*.\" and a host",
        ),
        (
            json!({ "match": { "hosts": ["*"] } }),
            "rules[0].match.hosts[0]: \"*\", wanted a host without a port, or \"*.\" and a host",
        ),
        (json!({ "ttl": "5" }), "rules[0].ttl: \"5\" has no unit, write \"5s\""),
        (json!({ "ttl": "0" }), "rules[0].ttl: \"0\" has no unit, write \"0s\""),
        (json!({ "ttl": "500ms" }), "rules[0].ttl: 500ms, wanted 1s to 30d"),
        (json!({ "ttl": "31d" }), "rules[0].ttl: 31d, wanted 1s to 30d"),
        (json!({ "lease": "11m" }), "rules[0].lease: 11m, wanted 1s to 10m"),
        (json!({ "lease": "999ms" }), "rules[0].lease: 999ms, wanted 1s to 10m"),
        (json!({ "ttl": "1h", "unknown_ttl": "2h" }), "rules[0].unknown_ttl: 2h, wanted 0s to 1h"),
        (
            json!({ "ongoing": { "wait": { "max": "1h" } } }),
            "rules[0].ongoing.wait.max: 1h, wanted 1s to 4m",
        ),
        (
            json!({ "ongoing": { "redirect": { "after": "2h" } } }),
            "rules[0].ongoing.redirect.after: 2h, wanted 1s to 1h",
        ),
        (
            json!({ "ongoing": { "redirect": { "to": "/x/{id}" } } }),
            "rules[0].ongoing.redirect.to: \"id\" is no capture of match.path, which has none",
        ),
        (
            json!({ "ongoing": { "requeue": { "delay": "1ms", "attempts": 1 } } }),
            "rules[0].ongoing.requeue.delay: 1ms, wanted 10ms to 1m",
        ),
        (
            json!({ "ongoing": { "requeue": { "delay": "1s", "attempts": 0 } } }),
            "rules[0].ongoing.requeue.attempts: 0, wanted 1 to 100",
        ),
        (
            json!({ "ongoing": { "requeue": { "delay": "1m", "attempts": 5 } } }),
            "rules[0].ongoing.requeue: 5 times 1m are 5m, wanted at most 4m, before Envoy ends the stream",
        ),
        (
            json!({ "outcomes": [ { "status": [], "do": "store" } ] }),
            "rules[0].outcomes[0].status: empty, wanted at least one status",
        ),
        (
            json!({ "outcomes": [ { "status": [404], "do": "release", "ttl": "1h" } ] }),
            "rules[0].outcomes[0].ttl: of no use: nothing is kept (unknown_ttl bounds what is in doubt)",
        ),
        (
            json!({ "replay_headers": { "deny": ["x y"] } }),
            "rules[0].replay_headers.deny[0]: \"x y\" is no header name",
        ),
        (
            json!({ "replay_headers": { "allow": [""] } }),
            "rules[0].replay_headers.allow[0]: \"\" is no header name",
        ),
        (
            json!({ "limits": { "request_body": "9MiB" } }),
            "rules[0].limits.request_body: 9MiB, wanted 0B to 8MiB",
        ),
        (
            json!({ "limits": { "response_body": "64" } }),
            "rules[0].limits.response_body: \"64\" has no unit, write \"64B\"",
        ),
        (
            json!({ "limits": { "response_body": "64KB" } }),
            "rules[0].limits.response_body: \"64KB\" is no size, wanted e.g. \"512B\", \"64KiB\", \"1MiB\" or \"1GiB\"",
        ),
        (
            json!({ "on_store_error": "local" }),
            "rules[0].on_store_error: \"local\" needs store.redis: without it, this Envoy's memory is the store",
        ),
        (
            json!({ "execution": { "detached": { "timeout": "5s" } } }),
            "rules[0].execution: not supported yet",
        ),
        (
            json!({ "execution": { "detached": { "timeout": "2h" } } }),
            "rules[0].execution.detached.timeout: 2h, wanted 1s to 1h",
        ),
    ] {
        assert_eq!(refusal(&with(rule.clone(), json!({}))), wanted, "{rule}");
    }
}

#[test]
fn a_shape_that_does_not_fit_is_refused_with_its_place() {
    // The words are the parser's; place and culprit count.
    for (rule, place, culprit) in [
        (json!({ "leese": "5s" }), "rules[0]", "leese"),
        (json!({ "match": { "host": [] } }), "rules[0].match", "host"),
        (json!({ "ttl": 5 }), "rules[0].ttl", "a length of time as a string"),
        (json!({ "ttl": "5 parsecs" }), "rules[0].ttl", "parsecs"),
        (
            json!({ "limits": { "request_body": 64 } }),
            "rules[0].limits.request_body",
            "a size as a string",
        ),
        (json!({ "shadow": "yes" }), "rules[0].shadow", "yes"),
        (json!({ "caller": "everyone" }), "rules[0].caller", "everyone"),
        (json!({ "fingerprint": "all" }), "rules[0].fingerprint", "all"),
        (json!({ "key": [ "headers" ] }), "rules[0].key[0]", "headers"),
        (json!({ "key": [ { "json": "from" } ] }), "rules[0].key[0].json", "from"),
        (json!({ "scope": ["query"] }), "rules[0].scope[0]", "query"),
        (json!({ "missing_key": "ignore" }), "rules[0].missing_key", "ignore"),
        (json!({ "ongoing": "wait" }), "rules[0].ongoing", ""),
        (json!({ "ongoing": { "wait": {} } }), "rules[0].ongoing.wait", "max"),
        (
            json!({ "ongoing": { "requeue": { "delay": "1s", "attempts": 1.5 } } }),
            "rules[0].ongoing.requeue.attempts",
            "1.5",
        ),
        (
            json!({ "outcomes": [ { "status": [199], "do": "store" } ] }),
            "rules[0].outcomes[0].status[0]",
            "199",
        ),
        (
            json!({ "outcomes": [ { "status": ["6xx"], "do": "store" } ] }),
            "rules[0].outcomes[0].status[0]",
            "",
        ),
        (
            json!({ "outcomes": [ { "status": ["599-500"], "do": "store" } ] }),
            "rules[0].outcomes[0].status[0]",
            "",
        ),
        (
            json!({ "outcomes": [ { "status": [200], "do": "keep" } ] }),
            "rules[0].outcomes[0].do",
            "keep",
        ),
        (json!({ "match": { "path": "orders" } }), "rules[0].match.path", "orders"),
        (json!({ "match": { "path": "/a/{b" } }), "rules[0].match.path", "{b"),
        (json!({ "match": { "path": "/{*all}/b" } }), "rules[0].match.path", "all"),
    ] {
        let refusal = refusal(&with(rule.clone(), json!({})));
        assert!(refusal.starts_with(place), "{rule}: {refusal}");
        assert!(refusal.contains(culprit), "{rule}: {refusal}");
    }
}

#[test]
fn what_stands_beside_the_rules_is_refused_with_its_place() {
    for (config, wanted) in [
        (json!({ "rules": [] }), "rules: empty, wanted at least one rule"),
        (
            json!({ "secret_env": "UNSET" }),
            "secret_env: the environment variable \"UNSET\" is not set or empty; hand it to the module by \
             vm_config.environment_variables",
        ),
        (
            json!({ "secret_env": "SHORT" }),
            "secret_env: the variable \"SHORT\" is shorter than 16 bytes",
        ),
        (
            json!({ "store": { "memory": { "entries": 63 } } }),
            "store.memory.entries: 63, wanted 64 to 1048576",
        ),
        (
            json!({ "store": { "memory": { "budget": "2GiB" } } }),
            "store.memory.budget: 2GiB, wanted 1MiB to 1GiB",
        ),
        (json!({ "store": { "redis": { "cluster": "redis" } } }), "store.redis: not supported yet"),
        (
            json!({ "store": { "redis": { "cluster": "" } } }),
            "store.redis.cluster: empty, wanted the name of an Envoy cluster",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "timeout": "6s" } } }),
            "store.redis.timeout: 6s, wanted 10ms to 5s",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "username": "u" } } }),
            "store.redis.username: there is a user and no password_env for it",
        ),
        (
            json!({ "store": { "redis": { "cluster": "r", "local": { "entries": 1 } } } }),
            "store.redis.local.entries: 1, wanted 64 to 1048576",
        ),
    ] {
        assert_eq!(refusal(&with(json!({}), config.clone())), wanted, "{config}");
    }
}

#[test]
fn two_rules_of_one_name_are_refused() {
    let rule = json!({ "name": "r", "key": ["body"], "caller": "anyone" });
    let config = json!({ "rules": [rule, rule] }).to_string();
    assert_eq!(refusal(&config), "rules[1].name: \"r\" is the name of rules[0], too");
}

#[test]
fn a_rule_without_a_caller_is_told_to_choose() {
    let refusal = refusal(r#"{ "rules": [ { "name": "r", "key": ["body"] } ] }"#);
    assert!(
        refusal.starts_with("rules[0]: missing field `caller`, wanted who may share an answer")
    );
}

#[test]
fn what_is_no_json_is_refused() {
    for text in ["", "rules", "{\"rules\": [}", "{} {}", "\n", "\u{0}"] {
        let refusal = refusal(text);
        assert!(refusal.starts_with("configuration: "), "{text:?}: {refusal}");
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
