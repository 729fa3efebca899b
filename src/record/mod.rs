//! The record that a store keeps under a key.

pub mod codec;
pub mod headers;
pub mod outcome;

use crate::key::Fingerprint;
use crate::time::{Timestamp, WallTime};
use std::time::Duration;

/// 16 random bytes that prove a claim: the fencing token that every transition compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub [u8; 16]);

/// The record that a store keeps under a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<A = Answer> {
    /// Proves the claim that made this record.
    pub token: Token,
    /// Must be equal in a duplicate.
    pub fingerprint: Fingerprint,
    /// Executions begun under this key, this one included: 1, or more after takeovers.
    pub attempt: u32,
    /// When the first request under the key was seen; survives takeovers.
    pub first_seen: WallTime,
    /// The state of the execution.
    pub state: State<A>,
}

/// A record without its answer: all that transitions need, and of a fixed size.
pub type Head = Record<()>;

/// The state of an execution.
///
/// ```text
///             claim                    complete(answer | status | too large)
///   absent ──────────▶ ongoing(token, lease) ──────────▶ finished | tombstone ──ttl──▶ absent
///      ▲                 │  ▲   │       │ heartbeat: lease again
///      └── release ──────┘  └───┘       └── mark unknown, or the lease lapses ──▶ unknown ──unknown_ttl──▶ absent
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State<A = Answer> {
    /// It runs, as far as is known.
    Ongoing {
        /// From then on, without a heartbeat, the outcome is unknown.
        lease_until: Timestamp,
        /// How long the key stays [`State::Unknown`] if the lease lapses.
        unknown_for: Duration,
    },
    /// It may have run; the outcome is unknown. At `until` the next attempt takes over.
    Unknown {
        /// From then on the key may be claimed again.
        until: Timestamp,
    },
    /// It ran; the record lives until `until`.
    Finished {
        /// From then on the key is free.
        until: Timestamp,
        /// The answer's status code.
        status: u16,
        /// The kept part of the answer.
        kept: Kept<A>,
    },
}

/// The kept part of a first answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept<A = Answer> {
    /// Everything that may be replayed.
    Answer(A),
    /// Only the status: the rule says `"do": "status"`.
    StatusOnly,
    /// Nothing: a tombstone. It finished; the answer was too large to keep, or a stream.
    Nothing,
}

/// An answer as it will be replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Names in lower case and values, in order, duplicates kept.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The body, byte for byte.
    pub body: Vec<u8>,
}

impl<A> Record<A> {
    /// The record without its answer.
    pub fn head(&self) -> Head {
        let state = match &self.state {
            State::Ongoing { lease_until, unknown_for } => {
                State::Ongoing { lease_until: *lease_until, unknown_for: *unknown_for }
            }
            State::Unknown { until } => State::Unknown { until: *until },
            State::Finished { until, status, kept } => {
                State::Finished { until: *until, status: *status, kept: kept.form() }
            }
        };
        self.with_state(state)
    }

    /// The same record in another state.
    pub(crate) fn with_state<B>(&self, state: State<B>) -> Record<B> {
        Record {
            token: self.token,
            fingerprint: self.fingerprint,
            attempt: self.attempt,
            first_seen: self.first_seen,
            state,
        }
    }
}

impl Head {
    /// The whole record again. `answer` is called only if the head says that an answer is kept; if it returns
    /// none, the record is a tombstone: finished, and never a miss.
    ///
    /// # Errors
    ///
    /// Those of `answer`.
    pub(crate) fn try_complete<E>(
        &self,
        answer: impl FnOnce() -> Result<Option<Answer>, E>,
    ) -> Result<Record, E> {
        let state = match self.state {
            State::Ongoing { lease_until, unknown_for } => {
                State::Ongoing { lease_until, unknown_for }
            }
            State::Unknown { until } => State::Unknown { until },
            State::Finished { until, status, kept: Kept::Answer(()) } => {
                let kept = answer()?.map_or(Kept::Nothing, Kept::Answer);
                State::Finished { until, status, kept }
            }
            State::Finished { until, status, kept: Kept::StatusOnly } => {
                State::Finished { until, status, kept: Kept::StatusOnly }
            }
            State::Finished { until, status, kept: Kept::Nothing } => {
                State::Finished { until, status, kept: Kept::Nothing }
            }
        };
        Ok(self.with_state(state))
    }
}

impl<A> Kept<A> {
    /// Which of the three it is, without the answer.
    pub fn form(&self) -> Kept<()> {
        match self {
            Self::Answer(_) => Kept::Answer(()),
            Self::StatusOnly => Kept::StatusOnly,
            Self::Nothing => Kept::Nothing,
        }
    }
}
