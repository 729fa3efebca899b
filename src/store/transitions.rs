//! What each command does to a record: the one definition that every store must follow.

use super::Command;
use crate::record::{Head, Kept, State, Token};
use crate::time::Timestamp;
use std::time::Duration;

/// The result of a command. A `Change` says what happens to the record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The key is claimed.
    Claimed {
        /// Executions begun under the key, this one included.
        attempt: u32,
        /// What happens to the record.
        change: Change,
    },
    /// The key is taken by this record, as it stands now.
    Exists(Head),
    /// Done.
    Done(Change),
    /// The record belongs to another token; it stays as it is.
    NotOwner,
}

/// What happens to the record under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It stays as it is.
    Keep,
    /// This replaces it; an answer is the command's own.
    Put(Head),
    /// It is deleted.
    Remove,
}

/// A record as it stands at a point in time.
enum Standing<'a> {
    /// There is none, or it has expired.
    Absent,
    /// Its outcome was unknown, and `unknown_ttl` is over: the next attempt takes over.
    Over(&'a Head),
    /// A live claim.
    Ongoing(&'a Head),
    /// Its outcome is unknown until then.
    Unknown(&'a Head, Timestamp),
    /// It is finished.
    Finished(&'a Head),
}

fn standing(record: Option<&Head>, now: Timestamp) -> Standing<'_> {
    let Some(record) = record else { return Standing::Absent };
    // "Until" excludes its own moment: a remaining time of zero is over, never "for ever".
    match &record.state {
        State::Ongoing { lease_until, .. } if now < *lease_until => Standing::Ongoing(record),
        State::Ongoing { lease_until, unknown_for } => {
            let until = lease_until.after(*unknown_for);
            if now < until { Standing::Unknown(record, until) } else { Standing::Over(record) }
        }
        State::Unknown { until } if now < *until => Standing::Unknown(record, *until),
        State::Unknown { .. } => Standing::Over(record),
        State::Finished { until, .. } if now < *until => Standing::Finished(record),
        State::Finished { .. } => Standing::Absent,
    }
}

/// How little is lost when a record is evicted; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EvictionPriority {
    /// Finished and expired.
    Nothing,
    /// A lookup in flight to the shared store: only its coalescing is lost.
    Question,
    /// Unknown and past its time: only the count of its attempts is lost.
    Attempts,
    /// A snapshot of a claim elsewhere: a lookup is lost, or more if the shared store fails.
    Snapshot,
    /// Finished: a retry would run again.
    Answer,
    /// A claim, or its unknown outcome: never evicted.
    Claim,
}

/// What is lost when `record` is evicted.
pub fn eviction_priority(record: &Head, now: Timestamp) -> EvictionPriority {
    match standing(Some(record), now) {
        Standing::Absent => EvictionPriority::Nothing,
        Standing::Over(_) => EvictionPriority::Attempts,
        Standing::Finished(_) => EvictionPriority::Answer,
        Standing::Ongoing(_) | Standing::Unknown(..) => EvictionPriority::Claim,
    }
}

/// The record as a claim would find it now: `None` once its time is over.
pub fn as_it_stands(record: &Head, now: Timestamp) -> Option<Head> {
    match standing(Some(record), now) {
        Standing::Absent | Standing::Over(_) => None,
        Standing::Ongoing(record) | Standing::Finished(record) => Some(record.clone()),
        Standing::Unknown(record, until) => Some(record.with_state(State::Unknown { until })),
    }
}

/// Applies `command` to the record under its key.
pub fn apply(record: Option<&Head>, command: &Command, now: Timestamp) -> Verdict {
    match command {
        Command::Claim { token, fingerprint, first_seen, lease, unknown_for, .. } => {
            let claim = |attempt, first_seen| {
                let lease_until = now.after(*lease);
                let record = Head {
                    token: *token,
                    fingerprint: *fingerprint,
                    attempt,
                    first_seen,
                    state: State::Ongoing { lease_until, unknown_for: *unknown_for },
                };
                Verdict::Claimed { attempt, change: Change::Put(record) }
            };
            match standing(record, now) {
                Standing::Absent => claim(1, *first_seen),
                Standing::Over(record) => {
                    claim(record.attempt.saturating_add(1), record.first_seen)
                }
                // A retry of itself: its first reply was lost.
                Standing::Ongoing(record) if record.token == *token => {
                    Verdict::Claimed { attempt: record.attempt, change: Change::Keep }
                }
                Standing::Ongoing(record) | Standing::Finished(record) => {
                    Verdict::Exists(record.clone())
                }
                Standing::Unknown(record, until) => {
                    Verdict::Exists(record.with_state(State::Unknown { until }))
                }
            }
        }
        Command::Extend { token, lease, .. } => match owned(record, *token) {
            // Lapsed or not: no other request took over, and the owner is alive.
            Owned::Ongoing(record, unknown_for) => {
                put(record, State::Ongoing { lease_until: now.after(*lease), unknown_for })
            }
            Owned::Unknown(_) | Owned::Finished | Owned::ByNobodyOrAnother => Verdict::NotOwner,
        },
        Command::Complete { token, status, kept, ttl, .. } => match owned(record, *token) {
            Owned::Ongoing(record, _) | Owned::Unknown(record) => {
                let until = now.after(*ttl);
                put(record, State::Finished { until, status: *status, kept: kept.form() })
            }
            // A retry of itself: its first reply was lost.
            Owned::Finished => Verdict::Done(Change::Keep),
            Owned::ByNobodyOrAnother => Verdict::NotOwner,
        },
        Command::Release { token, .. } => match owned(record, *token) {
            Owned::Ongoing(record, _) | Owned::Unknown(record) if record.attempt > 1 => {
                // The attempts before this one may have run; this one has not.
                let before = Head { attempt: record.attempt.saturating_sub(1), ..record.clone() };
                put(&before, State::Unknown { until: now })
            }
            Owned::Ongoing(..) | Owned::Unknown(_) => Verdict::Done(Change::Remove),
            Owned::Finished | Owned::ByNobodyOrAnother => Verdict::NotOwner,
        },
        Command::MarkUnknown { token, unknown_for, .. } => match owned(record, *token) {
            Owned::Ongoing(record, _) | Owned::Unknown(record) => {
                put(record, State::Unknown { until: now.after(*unknown_for) })
            }
            Owned::Finished | Owned::ByNobodyOrAnother => Verdict::NotOwner,
        },
    }
}

/// A record as its owner sees it. Time does not matter: until another request takes over, it is still theirs.
enum Owned<'a> {
    Ongoing(&'a Head, Duration),
    Unknown(&'a Head),
    Finished,
    ByNobodyOrAnother,
}

fn owned(record: Option<&Head>, token: Token) -> Owned<'_> {
    let Some(record) = record.filter(|record| record.token == token) else {
        return Owned::ByNobodyOrAnother;
    };
    match &record.state {
        State::Ongoing { unknown_for, .. } => Owned::Ongoing(record, *unknown_for),
        State::Unknown { .. } => Owned::Unknown(record),
        State::Finished { kept: Kept::Answer(()) | Kept::StatusOnly | Kept::Nothing, .. } => {
            Owned::Finished
        }
    }
}

fn put(record: &Head, state: State<()>) -> Verdict {
    Verdict::Done(Change::Put(record.with_state(state)))
}
