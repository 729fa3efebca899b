//! JSON → validated rules.

mod check;
mod error;
mod matching;
mod options;
mod raw;
mod rule;
#[cfg(feature = "schema")]
mod schema;
mod select;
mod store;
mod unit;
mod validate;

pub use error::ConfigError;
pub use options::render_markdown;
pub use rule::{Detached, Limits, Matching, MissingKey, OnStoreError, Ongoing, Rule};
#[cfg(feature = "schema")]
pub use schema::render_schema;
pub use select::Selection;

use crate::key::Secret;
use crate::store::redis::{Settings, Transport};
use std::rc::Rc;
use std::time::Duration;

/// A configuration that can be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where records are kept.
    pub store: StoreConfig,
    /// Makes the digests keyed; from the variable that `secret_env` names.
    pub secret: Option<Secret>,
    /// Whether responses of protected requests carry `Idempotency-Status`. Default: no.
    pub status_header: bool,
    /// At least one; the first that matches a request protects it.
    pub rules: Vec<Rc<Rule>>,
}

/// Where records are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreConfig {
    /// In the memory of this Envoy.
    Memory(Table),
    /// In Redis, and what this Envoy knows of it in its memory.
    Redis(Redis),
}

/// A table in the memory of this Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// Records at the most, 64 to 1,048,576. Default: 16,384.
    pub entries: u32,
    /// Bytes at the most, 1 MiB to 1 GiB. Default: 64 MiB.
    pub budget_bytes: u64,
}

/// A Redis that many Envoys share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redis {
    /// The Envoy cluster that leads to it.
    pub cluster: String,
    /// How it is spoken to; its timeout is 10 ms to 5 s. Default: 250 ms, keys that begin with `idem:`.
    pub settings: Settings,
    /// How commands get there. Default: the pipe.
    pub transport: Transport,
    /// The table in front of it.
    pub local: Table,
    /// How long a copy of a finished record is replayed from that table, 1 s to 30 d. Default: 60 s.
    pub local_ttl: Duration,
}

impl Config {
    /// Reads a plugin configuration; `environment` looks up variables.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong, with its place. Never a variable's value.
    pub fn load(
        json: &[u8],
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        validate::config(raw::read(json)?, environment)
    }

    /// The largest body of an answer that any rule keeps, in bytes.
    pub fn largest_answer(&self) -> usize {
        self.rules.iter().map(|rule| rule.limits.response_body).max().unwrap_or(0)
    }
}
