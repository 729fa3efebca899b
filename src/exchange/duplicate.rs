//! What a record means for a duplicate (rows 9 to 13 of the README's table), and the refusals.

use crate::config::Rule;
use crate::key::Fingerprint;
use crate::record::{Kept, Record, State};
use crate::reply::{Code, LocalReply, Problem};
use crate::telemetry::{Outcome, header};
use crate::time::{Timestamp, WallTime};

/// `Retry-After` of a refusal, in seconds: the shortest time `Retry-After` can say
/// (RFC 9110 section 10.2.3), since most executions are over by then and the next refusal is cheap.
pub(super) const RETRY_AFTER_SECONDS: u64 = 1;

/// What a record means for a duplicate.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resolution {
    /// It can be answered now.
    Answer(Outcome, LocalReply),
    /// The first is running, at least until its lease ends; the rule says what then.
    Ongoing { lease_until: Timestamp, first_seen: WallTime },
}

/// Compares the fingerprint *before everything else*: a different request never learns what became
/// of the first one.
pub(super) fn resolve(record: Record, fingerprint: Fingerprint, waited: bool) -> Resolution {
    let first_seen = record.first_seen;
    if record.fingerprint != fingerprint {
        let problem = problem(
            Code::KeyReused,
            "The key was used before, for a different request.",
            first_seen,
        );
        return Resolution::Answer(Outcome::Mismatch, problem.into_reply());
    }
    let replayed = if waited { Outcome::Waited } else { Outcome::Replayed };
    match record.state {
        State::Ongoing { lease_until, .. } => Resolution::Ongoing { lease_until, first_seen },
        State::Unknown { .. } => {
            let detail = "The first request may have been executed, but its outcome is unknown. \
                          Find out before you send it again under another key.";
            let reply = problem(Code::OutcomeUnknown, detail, first_seen).into_reply();
            Resolution::Answer(Outcome::Unknown, reply)
        }
        State::Finished { status, kept: Kept::Answer(answer), .. } => {
            Resolution::Answer(replayed, replay(status, answer.headers, answer.body))
        }
        State::Finished { status, kept: Kept::StatusOnly, .. } => {
            Resolution::Answer(replayed, replay(status, Vec::new(), Vec::new()))
        }
        State::Finished { status, kept: Kept::Nothing, .. } => {
            let detail = "The first request was executed, but its answer was not kept.";
            let problem = Problem {
                original_status: Some(status),
                ..problem(Code::CompletedNotStored, detail, first_seen)
            };
            Resolution::Answer(Outcome::Tombstone, problem.into_reply())
        }
    }
}

/// Row 14, `reject`, and what the other answers come to in the end.
pub(super) fn in_progress(first_seen: WallTime, retry_after_seconds: u64) -> Problem {
    Problem {
        retry_after: Some(retry_after_seconds),
        ..problem(
            Code::InProgress,
            "The first request under this key is still running.",
            first_seen,
        )
    }
}

/// Row 15, `refuse`.
pub(super) fn store_unavailable(rule: &Rule) -> Problem {
    let detail = format!(
        "The rule {} protects this request, but its store cannot tell whether the request is new.",
        rule.name
    );
    Problem {
        retry_after: Some(RETRY_AFTER_SECONDS),
        ..Problem::new(Code::StoreUnavailable, detail)
    }
}

fn problem(code: Code, detail: &str, first_seen: WallTime) -> Problem {
    Problem { first_seen: Some(first_seen.to_string()), ..Problem::new(code, detail) }
}

fn replay(status: u16, mut headers: Vec<(Vec<u8>, Vec<u8>)>, body: Vec<u8>) -> LocalReply {
    headers.push((header::REPLAYED.into(), b"true".to_vec()));
    LocalReply { status, headers, body, details: "idempotency_replayed" }
}
