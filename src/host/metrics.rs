//! Counters and gauges, defined once and found by value.

use super::abi::{self, MetricType};
use crate::config::Config;
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::{Counter, Gauge, Operation, OperationResult, Report};
use std::collections::HashMap;
use std::rc::Rc;

/// Envoy's numbers for our metrics. One that Envoy would not define is not counted.
#[derive(Debug)]
pub(super) struct Metrics {
    /// By rule and report, so that the counter of every request is found without making its name.
    requests: HashMap<String, Vec<(Report, u32)>>,
    operations: HashMap<(Operation, OperationResult), u32>,
    others: HashMap<Counter, u32>,
    waiters: Option<u32>,
    pipes: Option<u32>,
}

impl Metrics {
    pub(super) fn define(config: &Config) -> Self {
        let counter = |counter: &Counter| abi::define_metric(MetricType::Counter, &counter.name());
        let reports = |rule: &str| {
            Report::all()
                .filter_map(|report| {
                    let id = counter(&Counter::Requests { rule: rule.to_owned(), report }).ok()?;
                    Some((report, id))
                })
                .collect()
        };
        let operations = Operation::ALL.into_iter().flat_map(|operation| {
            OperationResult::ALL.into_iter().map(move |result| (operation, result))
        });
        Self {
            requests: config
                .rules
                .iter()
                .map(|rule| (rule.name.clone(), reports(&rule.name)))
                .collect(),
            operations: operations
                .filter_map(|(operation, result)| {
                    let id = counter(&Counter::StoreOperations { operation, result }).ok()?;
                    Some(((operation, result), id))
                })
                .collect(),
            others: [
                Counter::Evictions,
                Counter::RecordWriteFailures,
                Counter::Takeovers,
                Counter::LocalFallbacks,
            ]
            .into_iter()
            .filter_map(|other| counter(&other).ok().map(|id| (other, id)))
            .collect(),
            waiters: abi::define_metric(MetricType::Gauge, Gauge::Waiters.name()).ok(),
            pipes: abi::define_metric(MetricType::Gauge, Gauge::Pipes.name()).ok(),
        }
    }

    /// One request of a rule came to this.
    pub(super) fn request(&self, rule: &Rc<crate::config::Rule>, report: Report) {
        let ids = self.requests.get(&rule.name);
        let found = ids.and_then(|ids| ids.iter().find(|(known, _)| *known == report));
        add(found.map(|(_, id)| *id), 1);
    }

    /// Something happened once.
    pub(super) fn count(&self, counter: &Counter) {
        add(self.others.get(counter).copied(), 1);
    }

    /// Records were dropped to make room.
    pub(super) fn evicted(&self, records: u32) {
        if records > 0 {
            add(self.others.get(&Counter::Evictions).copied(), i64::from(records));
        }
    }

    /// A command to the store went like this.
    pub(super) fn operation(&self, command: &Command, reply: &Result<Reply, StoreError>) {
        let operation = match command {
            Command::Claim { .. } => Operation::Claim,
            Command::Extend { .. } => Operation::Extend,
            Command::Complete { .. } => Operation::Complete,
            Command::Release { .. } => Operation::Release,
            Command::MarkUnknown { .. } => Operation::MarkUnknown,
        };
        let result = match reply {
            Ok(Reply::Claimed { .. } | Reply::Done) => OperationResult::Ok,
            Ok(Reply::Exists(_)) => OperationResult::Exists,
            Ok(Reply::NotOwner) => OperationResult::NotOwner,
            Err(_) => OperationResult::Error,
        };
        add(self.operations.get(&(operation, result)).copied(), 1);
    }

    /// A request began (+1) or ceased (-1) to wait.
    pub(super) fn waiting(&self, change: i64) {
        add(self.waiters, change);
    }
}

impl Metrics {
    /// A connection to Redis began (+1) or ended (-1).
    pub(super) fn pipe(&self, change: i64) {
        add(self.pipes, change);
    }
}

fn add(metric: Option<u32>, change: i64) {
    if let Some(id) = metric {
        // A metric that cannot be counted must not cost the request.
        let _ = abi::increment_metric(id, change);
    }
}
