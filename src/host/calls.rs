//! HTTP calls of the root context: commands to Webdis, and detached executions.

use super::worker::StreamRequest;
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
    /// A command to Redis, by way of Webdis.
    Store(CommandId),
    /// A stream's detached execution.
    Stream(StreamRequest),
}

/// A call that was not made yet: only a callback of the root's own may, for the SDK hands what comes to
/// whoever was active then, and drops it if that is gone.
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

    /// Makes calls, as many as the budget allows: one that fails at once comes back nested, as an answer
    /// does. Those that Envoy will not make are given back.
    pub(super) fn as_root(&mut self, budget: &mut Budget) -> Vec<Purpose> {
        let mut refused = Vec::new();
        while !budget.is_spent()
            && let Some(wanted) = self.wanted.pop_front()
        {
            budget.spend();
            let Wanted { purpose, cluster, headers, body, timeout } = wanted;
            match call(&cluster, &headers, &body, timeout) {
                Ok(token) => {
                    self.under_way.insert(token, purpose);
                }
                Err(why) => {
                    let said = format_args!("Envoy refused to call the cluster {cluster:?}: {why}");
                    logging::log_incident(Incident::Host, &said);
                    refused.push(purpose);
                }
            }
        }
        refused
    }

    /// Calls are still to be made.
    pub(super) fn are_wanted(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// The call is over: whose it was.
    pub(super) fn over(&mut self, token: u32) -> Option<Purpose> {
        self.under_way.remove(&token)
    }

    /// Nobody waits for a call.
    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.under_way.is_empty()
    }
}

fn call(
    cluster: &str,
    headers: &[(Vec<u8>, Vec<u8>)],
    body: &[u8],
    timeout: Duration,
) -> Result<u32, String> {
    let text = |bytes| std::str::from_utf8(bytes).map_err(|_| "a header is not UTF-8".to_owned());
    let mut pairs = Vec::with_capacity(headers.len());
    for (name, value) in headers {
        pairs.push((text(name)?, text(value)?));
    }
    // Zero is no timeout at all.
    let timeout = timeout.max(Duration::from_millis(1));
    let body = (!body.is_empty()).then_some(body);
    proxy_wasm::hostcalls::dispatch_http_call(cluster, pairs, body, Vec::new(), timeout)
        .map_err(|status| format!("{status:?}"))
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
