//! HTTP calls of the root context: commands to Webdis, and detached executions.

use super::request::StreamRequest;
use super::{abi, logging};
use crate::exchange::Fetched;
use crate::schedule::Budget;
use crate::store::redis::CommandId;
use crate::telemetry::Incident;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// What a call is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// A command to Redis, through Webdis.
    Store(CommandId),
    /// A stream's detached execution.
    Stream(StreamRequest),
}

/// A call that was not made yet. Only a callback of the root's own makes it: the answer comes to the context that
/// made the call, and a stream may be gone by then.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) purpose: Purpose,
    pub(super) cluster: String,
    pub(super) headers: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) body: Vec<u8>,
    pub(super) timeout: Duration,
}

/// The calls of one worker.
#[derive(Debug, Default)]
pub(super) struct Calls {
    wanted: VecDeque<Wanted>,
    under_way: HashMap<u32, Purpose>,
}

impl Calls {
    pub(super) fn want(&mut self, wanted: Wanted) {
        self.wanted.push_back(wanted);
    }

    /// Starts calls, as many as the budget allows: one that fails at once calls back nested, like an answer.
    /// Returns those that Envoy refuses.
    pub(super) fn as_root(&mut self, budget: &mut Budget) -> Vec<Purpose> {
        let mut refused = Vec::new();
        while !budget.is_spent()
            && let Some(wanted) = self.wanted.pop_front()
        {
            budget.spend();
            let Wanted { purpose, cluster, headers, body, timeout } = wanted;
            match abi::http_call(&cluster, &headers, &body, timeout) {
                Ok(token) => {
                    self.under_way.insert(token, purpose);
                }
                Err(why) => {
                    let said =
                        format_args!("Envoy refused to call the cluster {cluster:?}: {why:?}");
                    logging::log_incident(Incident::Host, &said);
                    refused.push(purpose);
                }
            }
        }
        refused
    }

    /// Calls are waiting to be started.
    pub(super) fn are_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The call is over; returns its purpose.
    pub(super) fn over(&mut self, token: u32) -> Option<Purpose> {
        self.under_way.remove(&token)
    }

    /// No call is waiting or in flight.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.under_way.is_empty()
    }
}

/// What a call has brought. Only in its callback. `headers` is their number: a reset in the middle of an
/// answer has none.
pub(super) fn fetched(headers: usize, body: usize) -> Fetched {
    match abi::call_response_headers() {
        Some(pairs) if headers > 0 && !pairs.is_empty() => {
            Fetched::Answer { headers: pairs, body: abi::call_response_body(body) }
        }
        Some(_) | None => Fetched::Broken,
    }
}
