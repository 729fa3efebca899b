//! Every metric, header and word that operators and clients see, defined once.

mod limiter;

pub use limiter::{LINES, Limiter, WINDOW};

use log::Level;
use std::fmt;

/// Request and response header names this filter reads or writes, in lower case as on HTTP/2.
pub mod header {
    /// To the origin: the number of executions that have begun under this key, this one included. One sent by
    /// a client is removed.
    pub const ATTEMPT: &str = "idempotency-attempt";
    /// To the client: `true` on every answer that comes from a record.
    pub const REPLAYED: &str = "idempotent-replayed";
    /// To the client, when `status_header` is on: the [`Outcome`](super::Outcome).
    pub const STATUS: &str = "idempotency-status";
    /// From this filter to itself, on a detached request that goes `via` a listener: a number that only
    /// this process knows. A client's request with it is refused.
    pub const VIA: &str = "idempotency-via";
    /// From this filter to itself, on the answer to such a request: the source of the answer.
    pub const SOURCE: &str = "idempotency-source";
    /// From the origin: `no-store` or `ttl=SECONDS`; removed before the client sees it.
    pub const CONTROL: &str = "idempotency-control";
}

/// Filter state under which access logs find the [`Report`]:
/// `%FILTER_STATE(wasm.idempotency.outcome:PLAIN)%`.
pub const FILTER_STATE: &str = "idempotency.outcome";

/// The outcome of a request that a rule protects. One word each, for metric, header and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was new: the origin runs it.
    Executed,
    /// Answered from a record.
    Replayed,
    /// Answered from a record after waiting for the first to finish.
    Waited,
    /// Refused or redirected, because the first is still running.
    Rejected,
    /// Refused: the key belongs to a different request.
    Mismatch,
    /// Refused: the first may have run, and its outcome is unknown.
    Unknown,
    /// Refused: the first has run and its answer was not kept.
    Tombstone,
    /// Left alone, with a [`Bypass`] reason.
    Bypassed,
    /// Refused: the request itself is at fault.
    Invalid,
    /// The store failed; `on_store_error` decided.
    StoreError,
}

impl Outcome {
    /// In the order of the README's table.
    pub const ALL: [Self; 10] = [
        Self::Executed,
        Self::Replayed,
        Self::Waited,
        Self::Rejected,
        Self::Mismatch,
        Self::Unknown,
        Self::Tombstone,
        Self::Bypassed,
        Self::Invalid,
        Self::StoreError,
    ];

    /// The word for metrics, `Idempotency-Status` and access logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Executed => "executed",
            Self::Replayed => "replayed",
            Self::Waited => "waited",
            Self::Rejected => "rejected",
            Self::Mismatch => "mismatch",
            Self::Unknown => "unknown",
            Self::Tombstone => "tombstone",
            Self::Bypassed => "bypassed",
            Self::Invalid => "invalid",
            Self::StoreError => "store_error",
        }
    }
}

/// An outcome for metrics and logs: what happened, or (`shadow`) what would have happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Report {
    /// The outcome.
    pub outcome: Outcome,
    /// It only would have happened: the rule says `"shadow": true`.
    pub shadow: bool,
}

impl Report {
    /// Every possible report, to define the metrics.
    pub fn all() -> impl Iterator<Item = Self> {
        Outcome::ALL.into_iter().flat_map(|outcome| {
            [false, true].into_iter().map(move |shadow| Self { outcome, shadow })
        })
    }
}

/// The outcome's word, with `shadow_` in front if nothing was done.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.shadow { "shadow_" } else { "" })?;
        f.write_str(self.outcome.word())
    }
}

/// Why a request that a rule matches was left alone. Requests that match no rule are not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bypass {
    /// The connection is upgraded to another protocol (WebSocket, CONNECT).
    Upgrade,
    /// gRPC: its answer ends in trailers, which a replay cannot have.
    Grpc,
    /// The key is absent, and the rule lets such requests pass.
    KeyAbsent,
}

impl Bypass {
    /// The word for logs.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Grpc => "grpc",
            Self::KeyAbsent => "key-absent",
        }
    }
}

/// The kind of a log line. Lines of one kind share a limit, and begin with its word.
///
/// The log shows the first twelve digits of a key's digest, and nothing of headers, bodies and secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Incident {
    /// A request that a rule matches was left alone.
    Bypassed,
    /// An execution was finished after its client had left.
    Detached,
    /// The store could not decide whether a request may run; `on_store_error` decided.
    StoreFailed,
    /// An execution began after an earlier one whose outcome is unknown.
    Takeover,
    /// An execution lost its claim before its end was recorded: another request may have taken over.
    ClaimLost,
    /// The end of an execution could not be written at the first try; the filter tries again.
    RecordNotWritten,
    /// The end of an execution was never written, until the lease and `unknown_ttl` were over: another may run.
    RecordGivenUp,
    /// Envoy's configuration keeps the filter from its work.
    Misconfigured,
    /// Redis refuses something, is badly configured, or sends unexpected bytes.
    Redis,
    /// Envoy refused a host call.
    Host,
    /// A bug of ours.
    Unreachable,
}

impl Incident {
    /// Every variant, to define the metrics.
    pub const ALL: [Self; 11] = [
        Self::Bypassed,
        Self::Detached,
        Self::StoreFailed,
        Self::Takeover,
        Self::ClaimLost,
        Self::RecordNotWritten,
        Self::RecordGivenUp,
        Self::Misconfigured,
        Self::Redis,
        Self::Host,
        Self::Unreachable,
    ];

    /// The word that its lines begin with.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Bypassed => "bypassed",
            Self::Detached => "detached",
            Self::StoreFailed => "store-failed",
            Self::Takeover => "takeover",
            Self::ClaimLost => "claim-lost",
            Self::RecordNotWritten => "record-not-written",
            Self::RecordGivenUp => "record-given-up",
            Self::Misconfigured => "misconfigured",
            Self::Redis => "redis",
            Self::Host => "host",
            Self::Unreachable => "unreachable",
        }
    }

    /// The level of its lines: debug for normal events, error for those that an operator must fix.
    pub const fn level(self) -> Level {
        match self {
            Self::Bypassed | Self::Detached => Level::Debug,
            Self::StoreFailed
            | Self::Takeover
            | Self::ClaimLost
            | Self::RecordNotWritten
            | Self::Redis => Level::Warn,
            Self::RecordGivenUp | Self::Misconfigured | Self::Host | Self::Unreachable => {
                Level::Error
            }
        }
    }
}

/// A number that only grows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Counter {
    /// Requests that a rule protects, by outcome.
    Requests {
        /// The rule's name.
        rule: String,
        /// The request's outcome.
        report: Report,
    },
    /// Commands to the store.
    StoreOperations {
        /// The command.
        operation: Operation,
        /// Its result.
        result: OperationResult,
    },
    /// Records dropped before their time, to make room.
    Evictions,
    /// Answers whose record could not be written at the first try.
    RecordWriteFailures,
    /// Executions that began after an earlier one whose outcome is unknown.
    Takeovers,
    /// Requests that only this Envoy's memory decided, because the store had failed.
    LocalFallbacks,
}

impl Counter {
    /// The metric's name for Envoy. The ABI has no labels: they are in the name, and `stats_tags`
    /// (see `envoy/demo.yaml`) extract them.
    pub fn name(&self) -> String {
        match self {
            Self::Requests { rule, report } => {
                format!("idempotency_requests_total.rule.{rule}.outcome.{report}")
            }
            Self::StoreOperations { operation, result } => format!(
                "idempotency_store_operations_total.operation.{}.result.{}",
                operation.word(),
                result.word()
            ),
            Self::Evictions => "idempotency_evictions_total".to_owned(),
            Self::RecordWriteFailures => "idempotency_record_write_failures_total".to_owned(),
            Self::Takeovers => "idempotency_takeovers_total".to_owned(),
            Self::LocalFallbacks => "idempotency_local_fallbacks_total".to_owned(),
        }
    }
}

/// A command to the store, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Claim a key, or read its record.
    Claim,
    /// Heartbeat.
    Extend,
    /// Record the end of an execution.
    Complete,
    /// Free a key.
    Release,
    /// Record an unknown outcome.
    MarkUnknown,
}

impl Operation {
    /// Every variant, to define the metrics.
    pub const ALL: [Self; 5] =
        [Self::Claim, Self::Extend, Self::Complete, Self::Release, Self::MarkUnknown];

    /// The word for metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Extend => "extend",
            Self::Complete => "complete",
            Self::Release => "release",
            Self::MarkUnknown => "mark_unknown",
        }
    }
}

/// The result of a command to the store, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OperationResult {
    /// Claimed, or done.
    Ok,
    /// To a claim: the key is taken.
    Exists,
    /// To the others: the record belongs to another owner by now.
    NotOwner,
    /// The store failed.
    Error,
}

impl OperationResult {
    /// Every variant, to define the metrics.
    pub const ALL: [Self; 4] = [Self::Ok, Self::Exists, Self::NotOwner, Self::Error];

    /// The word for metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Exists => "exists",
            Self::NotOwner => "not_owner",
            Self::Error => "error",
        }
    }
}

/// A histogram: time from a command to Redis's reply, only for commands that got one.
///
/// **In microseconds**, despite its name and Prometheus's convention: the ABI's histograms hold whole numbers,
/// and in whole seconds every reply would be zero. Divide by a million.
pub const STORE_SECONDS: &str = "idempotency_store_seconds";

/// A number that goes up and down. Each is a sum over the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Gauge {
    /// Requests that wait for a first one to finish.
    Waiters,
    /// Open connections to Redis.
    Pipes,
    /// Records in the tables of this Envoy's memory. An expired one counts until its slot is reused.
    Entries,
    /// Bytes of these tables: records and answers, without the names under which Envoy keeps them.
    Bytes,
}

impl Gauge {
    /// The metric's name for Envoy.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiters => "idempotency_waiters",
            Self::Pipes => "idempotency_pipes",
            Self::Entries => "idempotency_entries",
            Self::Bytes => "idempotency_bytes",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_carry_their_labels() {
        let report = Report { outcome: Outcome::Replayed, shadow: false };
        let requests = Counter::Requests { rule: "payments".to_owned(), report };
        assert_eq!(requests.name(), "idempotency_requests_total.rule.payments.outcome.replayed");
        let operations = Counter::StoreOperations {
            operation: Operation::MarkUnknown,
            result: OperationResult::NotOwner,
        };
        assert_eq!(
            operations.name(),
            "idempotency_store_operations_total.operation.mark_unknown.result.not_owner"
        );
    }

    #[test]
    fn an_outcome_that_only_would_have_happened_says_shadow() {
        let report = Report { outcome: Outcome::StoreError, shadow: true };
        assert_eq!(report.to_string(), "shadow_store_error");
        assert_eq!(Report::all().count(), 2 * Outcome::ALL.len());
    }
}
