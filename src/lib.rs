//! An idempotency filter for Envoy.
//!
//! A rule says which requests it protects and how to compute their key. Of all requests with the same key,
//! one runs; Envoy answers the others with its stored answer.
//!
//! # Rooms
//!
//! | room | content | may import |
//! |---|---|---|
//! | [`time`] | points in time; no clock | – |
//! | [`key`] | request → key, fingerprint, caller | `time` |
//! | [`record`] | what a store keeps under a key; one codec; which answers may be kept | `time`, `key` |
//! | [`store`] | commands, replies, errors; the table in Envoy's shared data; Redis; the two as tiers | `time`, `key`, `record` |
//! | [`reply`] | local answers: one mapping to HTTP | – |
//! | [`telemetry`] | every metric, header and log kind, once; the limit of log lines | `time` |
//! | [`schedule`] | which stream a worker handles next, and how many in one callback | `time`, `key` |
//! | [`config`] | JSON → validated rules | all above, except `telemetry` and `schedule` |
//! | [`exchange`] | the state machine of one request, without IO | all above, except `schedule` |
//! | `host` | proxy-wasm callbacks → inputs; orders → hostcalls. Decides nothing. wasm32 only | all |
//!
//! Other crates: `cli`, the operator's tool; `testkit`, shared by tests and tools; and `tools`, the demo, the
//! bench, the soak and the driver of containers.
//!
//! # The driving rule
//!
//! *The host carries out every order of a step before it feeds the next input; the last flow is what
//! the callback returns.*

pub mod config;
pub mod exchange;
#[cfg(target_arch = "wasm32")]
mod host;
pub mod key;
pub mod record;
pub mod reply;
pub mod schedule;
pub mod store;
pub mod telemetry;
pub mod time;
