//! What to protect, and how.

use crate::key::{KeyError, KeyPart, KeyPlan, LocationTemplate, PathTemplate};
use crate::record::headers::HeaderPolicy;
use crate::record::outcome::Outcomes;
use std::time::Duration;

/// What to protect, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `[a-z0-9_-]{1,64}`, unique: it is a metric's label.
    pub name: String,
    /// Which requests it protects.
    pub matching: Matching,
    /// How their key and fingerprint are made.
    pub key: KeyPlan,
    /// What becomes of a request without a key or a caller; `None`: by what is missing.
    pub missing_key: Option<MissingKey>,
    /// What a duplicate gets that meets a running first.
    pub ongoing: Ongoing,
    /// How long a finished record lives, 1 s to 30 d. A retry after it runs again.
    pub ttl: Duration,
    /// How long a claim lives without a heartbeat, 1 s to 10 min. Shorter: a dead worker's keys are
    /// unknown sooner. Longer: a worker may be busy for longer and keep them.
    pub lease: Duration,
    /// How long an outcome stays unknown before the next attempt takes over, 0 s to `ttl`.
    pub unknown_ttl: Duration,
    /// What is kept of which answer.
    pub outcomes: Outcomes,
    /// Which of an answer's headers are kept.
    pub replay_headers: HeaderPolicy,
    /// How much of a body is held or kept.
    pub limits: Limits,
    /// What becomes of a request when the store cannot tell whether it is new.
    pub on_store_error: OnStoreError,
    /// How an execution outlives its client; `None`: it does not.
    pub detached: Option<Detached>,
    /// Decide, count and record, but neither answer nor hold.
    pub shadow: bool,
}

/// Execution that outlives its client: the worker sends the request itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detached {
    /// When to give up waiting for the answer, 1 s to 1 h: what was sent may have run then.
    pub timeout: Duration,
    /// The Envoy cluster that leads back into a listener, where the route's policy applies; `None`: the
    /// route's own cluster, without that policy.
    pub via: Option<String>,
}

/// Which requests a rule protects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Matching {
    /// Lower case, without a port; `*.example.com` is any name below it. Empty: any host.
    pub hosts: Vec<String>,
    /// Methods, as sent; never empty.
    pub methods: Vec<String>,
    /// `None`: any path.
    pub path: Option<PathTemplate>,
}

/// What becomes of a request without a key or a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissingKey {
    /// It is left alone.
    Pass,
    /// It is refused.
    Reject,
}

/// What a duplicate gets that meets a running first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ongoing {
    /// 409.
    Reject,
    /// It is held until the first finishes, at most so long (1 s to 4 min), then 409.
    Wait {
        /// From the moment it meets the first.
        max: Duration,
    },
    /// 307.
    Redirect {
        /// Where to; `None`: to the request's own URL.
        to: Option<LocationTemplate>,
        /// What `Retry-After` says, 1 s to 1 h.
        after: Duration,
    },
    /// It goes to the tail and is looked at again, then 409.
    Requeue {
        /// Pause between two looks, 10 ms to 1 min; rounded up to the worker's tick of 20 ms.
        delay: Duration,
        /// Looks after the first, 1 to 100.
        attempts: u32,
    },
}

/// How much of a body is held or kept, in bytes, up to 8 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// A request whose body is needed and longer is refused with 413.
    pub request_body: usize,
    /// An answer that is longer leaves a tombstone; its client gets all of it.
    pub response_body: usize,
}

/// What becomes of a request when the store cannot tell whether it is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStoreError {
    /// 503: no double execution, ever.
    Refuse,
    /// This Envoy's memory decides alone.
    Local,
    /// It runs, unprotected.
    Pass,
}

impl Rule {
    /// Whether a request's body must be whole before anything can be decided or sent.
    pub fn needs_body(&self) -> bool {
        self.key.needs_body() || self.detached.is_some()
    }

    /// Whether a request with this fault is left alone rather than refused.
    ///
    /// By default a request without a client's key passes: clients that do not retry need none. Any
    /// other part, and the caller, is always there in a well-formed request.
    pub fn passes_without(&self, fault: &KeyError) -> bool {
        let default = match fault {
            KeyError::KeyMissing { part: KeyPart::KeyHeader(_) } => MissingKey::Pass,
            KeyError::KeyMissing {
                part:
                    KeyPart::Header(_)
                    | KeyPart::Query(_)
                    | KeyPart::Cookie(_)
                    | KeyPart::Path(_)
                    | KeyPart::Json(_)
                    | KeyPart::Form(_)
                    | KeyPart::Body,
            }
            | KeyError::CallerMissing => MissingKey::Reject,
            KeyError::KeyInvalid { .. } | KeyError::BodyInvalid { .. } => return false,
        };
        self.missing_key.unwrap_or(default) == MissingKey::Pass
    }
}
