//! The codec against golden records (written by another implementation), and against noise.

#![allow(
    clippy::panic,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::key::Fingerprint;
use envoy_idempotency::record::codec::{self, CodecError};
use envoy_idempotency::record::{Answer, Kept, Record, State, Token};
use envoy_idempotency::time::{Timestamp, WallTime};
use proptest::collection::vec;
use proptest::prelude::*;
use serde::Deserialize;
use std::time::Duration;

#[derive(Deserialize)]
struct Vectors {
    records: Vec<Golden>,
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Golden {
    name: String,
    state: char,
    token: String,
    fingerprint: String,
    deadline_ms: u64,
    unknown_for_ms: u64,
    attempt: u32,
    first_seen_ms: u64,
    status: u16,
    #[serde(default)]
    headers: Vec<(String, String)>,
    #[serde(default)]
    body: String,
    bytes: String,
}

#[derive(Deserialize)]
struct Refused {
    name: String,
    bytes: String,
    error: String,
}

impl Golden {
    fn record(&self) -> Record {
        let deadline = Timestamp::from_millis(self.deadline_ms);
        let finished = |kept| State::Finished { until: deadline, status: self.status, kept };
        let state = match self.state {
            'o' => State::Ongoing {
                lease_until: deadline,
                unknown_for: Duration::from_millis(self.unknown_for_ms),
            },
            'u' => State::Unknown { until: deadline },
            'a' => finished(Kept::Answer(Answer {
                headers: self
                    .headers
                    .iter()
                    .map(|(name, value)| (name.clone().into_bytes(), bytes(value)))
                    .collect(),
                body: bytes(&self.body),
            })),
            's' => finished(Kept::StatusOnly),
            't' => finished(Kept::Nothing),
            other => panic!("{}: no state {other}", self.name),
        };
        Record {
            token: Token(bytes(&self.token).try_into().unwrap()),
            fingerprint: Fingerprint(bytes(&self.fingerprint).try_into().unwrap()),
            attempt: self.attempt,
            first_seen: WallTime::from_millis(self.first_seen_ms),
            state,
        }
    }
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("vectors/records.json")).unwrap()
}

fn bytes(hex: &str) -> Vec<u8> {
    assert_eq!(hex.len() % 2, 0, "{hex}");
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn golden_records_are_written_byte_for_byte() {
    for golden in vectors().records {
        assert_eq!(codec::encode(&golden.record()), bytes(&golden.bytes), "{}", golden.name);
    }
}

#[test]
fn golden_records_are_read() {
    for golden in vectors().records {
        let read = codec::decode(&bytes(&golden.bytes));
        assert_eq!(read, Ok(golden.record()), "{}", golden.name);
    }
}

#[test]
fn bytes_that_are_not_a_record_are_an_error_and_never_a_miss() {
    for refused in vectors().refused {
        let error = codec::decode(&bytes(&refused.bytes)).unwrap_err();
        assert_eq!(format!("{error:?}"), refused.error, "{}", refused.name);
    }
}

#[test]
fn every_prefix_of_a_record_is_refused() {
    for golden in vectors().records {
        let whole = bytes(&golden.bytes);
        for length in 0..whole.len() {
            let error = codec::decode(&whole[..length]).unwrap_err();
            let wanted =
                if length < codec::HEAD_LEN { CodecError::Short } else { CodecError::Answer };
            assert_eq!(error, wanted, "{}, {length} bytes", golden.name);
        }
    }
}

#[test]
fn fields_stand_where_scripts_look_for_them() {
    for golden in vectors().records {
        let whole = bytes(&golden.bytes);
        assert_eq!(whole[codec::VERSION_AT], codec::VERSION);
        assert_eq!(whole[codec::STATE_AT], golden.state as u8);
        assert_eq!(whole[codec::TOKEN], bytes(&golden.token));
        assert_eq!(whole[codec::FINGERPRINT], bytes(&golden.fingerprint));
        assert_eq!(whole[codec::DEADLINE], golden.deadline_ms.to_be_bytes());
        assert_eq!(whole[codec::UNKNOWN_FOR], golden.unknown_for_ms.to_be_bytes());
        assert_eq!(whole[codec::ATTEMPT], golden.attempt.to_be_bytes());
        assert_eq!(whole[codec::FIRST_SEEN], golden.first_seen_ms.to_be_bytes());
        assert_eq!(whole[codec::STATUS], golden.status.to_be_bytes());
    }
}

fn states() -> impl Strategy<Value = State> {
    let time = || any::<u64>().prop_map(Timestamp::from_millis);
    let text = || vec(any::<u8>(), 0..40);
    let answer = (vec((text(), text()), 0..6), vec(any::<u8>(), 0..400))
        .prop_map(|(headers, body)| Kept::Answer(Answer { headers, body }));
    let kept = prop_oneof![answer, Just(Kept::StatusOnly), Just(Kept::Nothing)];
    prop_oneof![
        (time(), any::<u64>()).prop_map(|(lease_until, unknown)| State::Ongoing {
            lease_until,
            unknown_for: Duration::from_millis(unknown)
        }),
        time().prop_map(|until| State::Unknown { until }),
        (time(), any::<u16>(), kept).prop_map(|(until, status, kept)| State::Finished {
            until,
            status,
            kept
        }),
    ]
}

fn records() -> impl Strategy<Value = Record> {
    (any::<[u8; 16]>(), any::<[u8; 32]>(), any::<u32>(), any::<u64>(), states()).prop_map(
        |(token, fingerprint, attempt, first_seen, state)| Record {
            token: Token(token),
            fingerprint: Fingerprint(fingerprint),
            attempt,
            first_seen: WallTime::from_millis(first_seen),
            state,
        },
    )
}

proptest! {
    #[test]
    fn a_written_record_is_read_back(record in records()) {
        prop_assert_eq!(codec::decode(&codec::encode(&record)), Ok(record));
    }

    #[test]
    fn a_record_and_anything_behind_it_is_refused(record in records(), more in vec(any::<u8>(), 1..9)) {
        let mut bytes = codec::encode(&record);
        bytes.extend(more);
        prop_assert_eq!(codec::decode(&bytes), Err(CodecError::Trailing));
    }

    #[test]
    fn noise_is_read_or_refused(noise in vec(any::<u8>(), 0..400)) {
        let _ = codec::decode(&noise);
    }

    #[test]
    fn a_damaged_record_is_read_or_refused(
        record in records(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = codec::encode(&record);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(read) = codec::decode(&bytes) {
            prop_assert_eq!(codec::decode(&codec::encode(&read)), Ok(read));
        }
    }
}
