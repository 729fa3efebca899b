//! Records as bytes: one codec for every store.
//!
//! A record is a head of [`HEAD_LEN`] bytes and, if an answer is kept, the answer:
//!
//! | bytes | what | |
//! |---|---|---|
//! | 0 | format version | [`VERSION`] |
//! | 1 | state | `o` ongoing, `u` unknown, `a` finished and its answer is kept, `s` its status alone, `t` nothing (tombstone) |
//! | 2–17 | token | |
//! | 18–49 | fingerprint | |
//! | 50–57 | deadline | ongoing: end of the lease; unknown: when the next may take over; finished: when the key is free. Milliseconds by the store's clock |
//! | 58–65 | unknown for | ongoing: milliseconds the key stays unknown if the lease lapses; else not read, written as 0 |
//! | 66–69 | attempt | |
//! | 70–77 | first seen | milliseconds since the Unix epoch |
//! | 78–79 | status | finished; else not read, written as 0 |
//! | 80… | answer | [postcard](https://postcard.jamesmunns.com/wire-format): a list of pairs of byte strings, a byte string |
//!
//! Numbers are big endian and have a fixed width, so that a script in the store can cut them out and compare
//! two deadlines as strings.

use crate::key::Fingerprint;
use crate::record::{Answer, Head, Kept, Record, State, Token};
use crate::time::{Timestamp, WallTime};
use serde::{Deserialize, Serialize};
use serde_bytes::Bytes;
use std::fmt;
use std::ops::Range;
use std::time::Duration;

/// The version that is written, and the only one that is read. It changes with any change in the table above.
pub const VERSION: u8 = 1;

/// Length of the head: a record is never shorter.
pub const HEAD_LEN: usize = STATUS.end;

/// Where the version stands.
pub const VERSION_AT: usize = 0;
/// Where the state stands: one of [`ONGOING`], [`UNKNOWN`], [`ANSWER`], [`STATUS_ONLY`], [`TOMBSTONE`].
pub const STATE_AT: usize = 1;
/// Where the token stands.
pub const TOKEN: Range<usize> = 2..18;
/// Where the fingerprint stands.
pub const FINGERPRINT: Range<usize> = 18..50;
/// Where the deadline stands.
pub const DEADLINE: Range<usize> = 50..58;
/// Where the time to stay unknown stands.
pub const UNKNOWN_FOR: Range<usize> = 58..66;
/// Where the number of attempts stands.
pub const ATTEMPT: Range<usize> = 66..70;
/// Where the time of the first request stands.
pub const FIRST_SEEN: Range<usize> = 70..78;
/// Where the answer's status code stands.
pub const STATUS: Range<usize> = 78..80;

/// State of a claim. The five are letters, so that people can read them in `redis-cli`.
pub const ONGOING: u8 = b'o';
/// State of a key whose outcome is unknown.
pub const UNKNOWN: u8 = b'u';
/// State of a finished record with its answer.
pub const ANSWER: u8 = b'a';
/// State of a finished record with its status alone.
pub const STATUS_ONLY: u8 = b's';
/// State of a finished record of which nothing is kept.
pub const TOMBSTONE: u8 = b't';

/// Why bytes are not a record. Never a miss: an unreadable record may be a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// Shorter than a head.
    Short,
    /// Written by another version.
    Version(u8),
    /// A state that does not exist.
    State(u8),
    /// The answer is incomplete or invalid.
    Answer,
    /// Bytes follow the record.
    Trailing,
}

impl CodecError {
    /// What is wrong, in words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Short => "the record is shorter than its head",
            Self::Version(_) => "the record was written by another version",
            Self::State(_) => "the record is in a state that does not exist",
            Self::Answer => "the record's answer is broken",
            Self::Trailing => "the record has trailing bytes",
        }
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version(found) => write!(f, "{}: found {found}, wanted {VERSION}", self.as_str()),
            Self::State(found) => write!(f, "{}: found {found}", self.as_str()),
            Self::Short | Self::Answer | Self::Trailing => f.write_str(self.as_str()),
        }
    }
}

impl std::error::Error for CodecError {}

/// The record as bytes.
pub fn encode(record: &Record) -> Vec<u8> {
    let mut bytes = encode_head(&record.head()).to_vec();
    if let State::Finished { kept: Kept::Answer(answer), .. } = &record.state {
        append_answer(answer, &mut bytes);
    }
    bytes
}

/// Decodes a record.
///
/// # Errors
///
/// A [`CodecError`] if the bytes are anything but exactly one record of this [`VERSION`].
pub fn decode(bytes: &[u8]) -> Result<Record, CodecError> {
    let (head, rest) = bytes.split_first_chunk().ok_or(CodecError::Short)?;
    let head = decode_head(head)?;
    let keeps_answer = matches!(head.state, State::Finished { kept: Kept::Answer(()), .. });
    if !keeps_answer && !rest.is_empty() {
        return Err(CodecError::Trailing);
    }
    head.try_complete(|| decode_answer(rest).map(Some))
}

/// Only the head.
pub(crate) fn encode_head(head: &Head) -> [u8; HEAD_LEN] {
    let (state, deadline, unknown_for, status) = match &head.state {
        State::Ongoing { lease_until, unknown_for } => (ONGOING, *lease_until, *unknown_for, 0),
        State::Unknown { until } => (UNKNOWN, *until, Duration::ZERO, 0),
        State::Finished { until, status, kept } => {
            let state = match kept {
                Kept::Answer(()) => ANSWER,
                Kept::StatusOnly => STATUS_ONLY,
                Kept::Nothing => TOMBSTONE,
            };
            (state, *until, Duration::ZERO, *status)
        }
    };
    // Saturates like Timestamp does: a span that is too long to write never ends. It must not wrap to zero.
    let unknown_for = u64::try_from(unknown_for.as_millis()).unwrap_or(u64::MAX);
    let mut bytes = [0; HEAD_LEN];
    let fields: [&[u8]; 9] = [
        &[VERSION],
        &[state],
        &head.token.0,
        &head.fingerprint.0,
        &deadline.as_millis().to_be_bytes(),
        &unknown_for.to_be_bytes(),
        &head.attempt.to_be_bytes(),
        &head.first_seen.as_millis().to_be_bytes(),
        &status.to_be_bytes(),
    ];
    for (place, byte) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
        *place = *byte;
    }
    bytes
}

/// Decodes a head.
pub(crate) fn decode_head(bytes: &[u8; HEAD_LEN]) -> Result<Head, CodecError> {
    let [version] = field(bytes, VERSION_AT..STATE_AT)?;
    if version != VERSION {
        return Err(CodecError::Version(version));
    }
    let [state] = field(bytes, STATE_AT..TOKEN.start)?;
    let millis = |range| field(bytes, range).map(u64::from_be_bytes);
    let deadline = Timestamp::from_millis(millis(DEADLINE)?);
    let status = u16::from_be_bytes(field(bytes, STATUS)?);
    let finished = |kept| State::Finished { until: deadline, status, kept };
    Ok(Head {
        token: Token(field(bytes, TOKEN)?),
        fingerprint: Fingerprint(field(bytes, FINGERPRINT)?),
        attempt: u32::from_be_bytes(field(bytes, ATTEMPT)?),
        first_seen: WallTime::from_millis(millis(FIRST_SEEN)?),
        state: match state {
            ONGOING => State::Ongoing {
                lease_until: deadline,
                unknown_for: Duration::from_millis(millis(UNKNOWN_FOR)?),
            },
            UNKNOWN => State::Unknown { until: deadline },
            ANSWER => finished(Kept::Answer(())),
            STATUS_ONLY => finished(Kept::StatusOnly),
            TOMBSTONE => finished(Kept::Nothing),
            other => return Err(CodecError::State(other)),
        },
    })
}

/// Appends the answer to `bytes`.
pub(crate) fn append_answer(answer: &Answer, bytes: &mut Vec<u8>) {
    let wire = AnswerOnTheWire {
        headers: answer
            .headers
            .iter()
            .map(|(name, value)| (Bytes::new(name), Bytes::new(value)))
            .collect(),
        body: Bytes::new(&answer.body),
    };
    // A Vec takes everything and all lengths are known, so this cannot fail. If it did, the record would be
    // empty, and readers would refuse it: a needless 503, but no double execution.
    *bytes = postcard::to_extend(&wire, std::mem::take(bytes)).unwrap_or_default();
}

/// Decodes an answer.
pub(crate) fn decode_answer(bytes: &[u8]) -> Result<Answer, CodecError> {
    let (wire, rest): (AnswerOnTheWire<'_>, _) =
        postcard::take_from_bytes(bytes).map_err(|_| CodecError::Answer)?;
    if !rest.is_empty() {
        return Err(CodecError::Trailing);
    }
    let headers =
        wire.headers.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    Ok(Answer { headers, body: wire.body.to_vec() })
}

/// Borrows, so that a body is copied once; [`Bytes`], so that it is copied whole and not byte by byte.
#[derive(Serialize, Deserialize)]
struct AnswerOnTheWire<'a> {
    #[serde(borrow)]
    headers: Vec<(&'a Bytes, &'a Bytes)>,
    #[serde(borrow)]
    body: &'a Bytes,
}

fn field<const N: usize>(head: &[u8; HEAD_LEN], at: Range<usize>) -> Result<[u8; N], CodecError> {
    head.get(at).and_then(|bytes| bytes.try_into().ok()).ok_or(CodecError::Short)
}
