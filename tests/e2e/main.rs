//! The filter in a real Envoy, with two workers, in front of an origin that counts.

#![allow(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

mod bodies;
mod bypass;
mod configuration;
mod connections;
mod crowds;
mod dashboards;
mod detached;
mod duplicates;
mod fleet;
mod flood;
mod keys;
mod last_byte;
mod leases;
mod ongoing;
mod outcomes;
mod redis_away;
mod redis_harness;
mod redis_kinds;
mod replaced;
mod shards;
mod store;
mod telemetry;
mod transitions;
mod vm_death;

use serde_json::{Value, json};

/// A rule for `/pay`: a client's key, a caller, all else by default, and a test's own fields.
fn pay(more: Value) -> Value {
    let mut rule = json!({
        "name": "pay",
        "match": { "path": "/pay" },
        "key": [ { "key_header": "idempotency-key" } ],
        "caller": { "header": "authorization" }
    });
    if let (Some(rule), Value::Object(more)) = (rule.as_object_mut(), more) {
        rule.extend(more);
    }
    json!({ "rules": [rule] })
}
