//! Counters, gauges and a histogram, defined once and found by value.

use super::abi::{self, MetricType};
use crate::config::Config;
use crate::store::shared_data::Tally;
use crate::store::{CommandKind, ReplyKind};
use crate::telemetry::{Counter, Gauge, Operation, OperationResult, Report, STORE_SECONDS};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// Envoy's numbers of our metrics. A metric that Envoy refuses to define is not counted.
#[derive(Debug)]
pub(super) struct Metrics {
    /// By rule and report, so that the counter of a request is found without building its name.
    requests: HashMap<String, Vec<(Report, u32)>>,
    operations: HashMap<(Operation, OperationResult), u32>,
    others: HashMap<Counter, u32>,
    waiters: Option<u32>,
    pipes: Option<u32>,
    entries: Option<u32>,
    bytes: Option<u32>,
    store_micros: Option<u32>,
}

impl Metrics {
    pub(super) fn define(config: &Config) -> Self {
        let counter = |counter: &Counter| abi::define_metric(MetricType::Counter, &counter.name());
        let gauge = |gauge: Gauge| abi::define_metric(MetricType::Gauge, gauge.name()).ok();
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
            waiters: gauge(Gauge::Waiters),
            pipes: gauge(Gauge::Pipes),
            entries: gauge(Gauge::Entries),
            bytes: gauge(Gauge::Bytes),
            store_micros: abi::define_metric(MetricType::Histogram, STORE_SECONDS).ok(),
        }
    }

    /// A request of a rule has this outcome.
    pub(super) fn request(&self, rule: &Rc<crate::config::Rule>, report: Report) {
        let ids = self.requests.get(&rule.name);
        let found = ids.and_then(|ids| ids.iter().find(|(known, _)| *known == report));
        add(found.map(|(_, id)| *id), 1);
    }

    /// An event.
    pub(super) fn count(&self, counter: &Counter) {
        add(self.others.get(counter).copied(), 1);
    }

    /// The table has changed by this.
    pub(super) fn table(&self, tally: Tally) {
        if tally != Tally::default() {
            let evictions = self.others.get(&Counter::Evictions).copied();
            add(evictions, i64::from(tally.evicted));
            add(self.entries, tally.entries);
            add(self.bytes, tally.bytes);
        }
    }

    /// A command to the store has this result.
    pub(super) fn operation(&self, command: CommandKind, reply: ReplyKind) {
        let operation = match command {
            CommandKind::Claim => Operation::Claim,
            CommandKind::Extend => Operation::Extend,
            CommandKind::Complete => Operation::Complete,
            CommandKind::Release => Operation::Release,
            CommandKind::MarkUnknown => Operation::MarkUnknown,
        };
        let result = match reply {
            ReplyKind::Ok => OperationResult::Ok,
            ReplyKind::Exists => OperationResult::Exists,
            ReplyKind::NotOwner => OperationResult::NotOwner,
            ReplyKind::Error => OperationResult::Error,
        };
        add(self.operations.get(&(operation, result)).copied(), 1);
    }

    /// A request began (+1) or stopped (-1) waiting.
    pub(super) fn waiting(&self, change: i64) {
        add(self.waiters, change);
    }

    /// The time that Redis took to reply.
    pub(super) fn store_took(&self, length: Duration) {
        if let Some(id) = self.store_micros {
            // As in `add`.
            let _ = abi::record_metric(id, u64::try_from(length.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// A connection to Redis began (+1) or ended (-1).
    pub(super) fn pipe(&self, change: i64) {
        add(self.pipes, change);
    }
}

fn add(metric: Option<u32>, change: i64) {
    if let Some(id) = metric.filter(|_| change != 0) {
        // A failed metric must not cost the request.
        let _ = abi::increment_metric(id, change);
    }
}
