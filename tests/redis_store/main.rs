//! The records in a real Redis: the contract of every store, and Redis's own tests.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::key::{Fingerprint, Key};
use envoy_idempotency::record::codec::HEAD_LEN;
use envoy_idempotency::record::{Answer, Kept, State, Token};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::time::WallTime;
use std::cell::Cell;
use std::time::Duration;
use testkit::redis_store::{Server, Store, now};
use testkit::store_contract;

fn claim(number: u8, token: u8) -> Command {
    Command::Claim {
        key: Key([number; 32]),
        token: Token([token; 16]),
        fingerprint: Fingerprint([number; 32]),
        first_seen: WallTime::default(),
        lease: Duration::from_secs(10),
        unknown_for: Duration::from_secs(60),
        watch: false,
    }
}

fn complete(number: u8, token: u8, body: Vec<u8>) -> Command {
    let headers = vec![(b"x-binary".to_vec(), b"\xff\r\n".to_vec())];
    Command::Complete {
        key: Key([number; 32]),
        token: Token([token; 16]),
        status: 200,
        kept: Kept::Answer(Answer { headers, body }),
        ttl: Duration::from_secs(3600),
    }
}

fn name(number: u8) -> String {
    format!("idem:{}", format!("{number:02x}").repeat(32))
}

#[test]
fn the_records_in_redis_meet_the_contract() {
    let server = Server::start();
    let count = Cell::new(0);
    store_contract::run(|| {
        count.set(count.get() + 1);
        Store::new(&server, &format!("case{}:", count.get()))
    });
}

#[test]
fn commands_share_a_connection_and_their_replies_come_back_in_order() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    let claims = (0..200).map(|number| claim(number, number)).collect();
    // The first of them meet a Redis that does not know the script yet.
    for reply in store.pipelined(claims) {
        assert_eq!(reply, Ok(Reply::Claimed { attempt: 1 }));
    }
    let body = |number: u8| vec![number; 10 * usize::from(number)];
    let ends = (0..200).map(|number| complete(number, number, body(number))).collect();
    for reply in store.pipelined(ends) {
        assert_eq!(reply, Ok(Reply::Done));
    }
    let looks = (0..200).map(|number| claim(number, 255)).collect();
    for (number, reply) in (0..200).zip(store.pipelined(looks)) {
        match reply {
            Ok(Reply::Exists(record)) => match record.state {
                State::Finished { kept: Kept::Answer(answer), .. } => {
                    assert_eq!(answer.body, body(number));
                }
                other => panic!("{number}: {other:?}"),
            },
            other => panic!("{number}: {other:?}"),
        }
    }
    assert_eq!(store.integer(&[b"DBSIZE"]), 200);
}

#[test]
fn redis_may_forget_the_scripts_at_any_time() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    for number in 0..3 {
        store.raw(&[b"SCRIPT", b"FLUSH"]);
        let reply = store.pipelined(vec![claim(number, 1), complete(number, 1, vec![])]);
        // Known by its digest or sent as text: the order of the two may change, so the end of a claim
        // may find no claim yet. The reply says so, and the record is never lost.
        assert_eq!(reply[0], Ok(Reply::Claimed { attempt: 1 }));
        assert!([Ok(Reply::Done), Ok(Reply::NotOwner)].contains(&reply[1]), "{reply:?}");
    }
}

#[test]
fn an_unreadable_record_is_an_error_and_stays_as_it_is() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    let mut record = vec![0; HEAD_LEN];
    record[0] = 9;
    for (garbage, wanted) in [
        (b"".to_vec(), "the record is shorter than its head"),
        (b"garbage".to_vec(), "the record is shorter than its head"),
        (record.clone(), "the record was written by another version"),
        (
            [vec![1, b'x'], vec![0; HEAD_LEN - 2]].concat(),
            "the record is in a state that does not exist",
        ),
        // A finished record whose answer is cut short.
        ([vec![1, b'a'], vec![0xff; HEAD_LEN - 2]].concat(), "the record's answer is broken"),
        // A claim, and something behind it.
        ([vec![1, b'o'], vec![0x7f; HEAD_LEN]].concat(), "the record has trailing bytes"),
    ] {
        store.raw(&[b"SET", name(7).as_bytes(), &garbage]);
        // For GETRANGE an empty value is an absent one: there is nothing to end.
        let reply = store.pipelined(vec![claim(7, 1)]).remove(0);
        assert_eq!(reply, Err(StoreError::Unreadable(wanted)), "{garbage:?}");
        store.pipelined(vec![complete(7, 1, vec![])]);
        assert_eq!(store.bulk(&[b"GET", name(7).as_bytes()]), garbage);
    }
    store.raw(&[b"DEL", name(7).as_bytes()]);
    store.raw(&[b"LPUSH", name(7).as_bytes(), b"a list"]);
    let another = Err(StoreError::Unreadable("the key holds another type of value"));
    for command in [claim(7, 1), complete(7, 1, vec![])] {
        assert_eq!(store.pipelined(vec![command]).remove(0), another);
    }
    assert_eq!(store.integer(&[b"LLEN", name(7).as_bytes()]), 1);
}

#[test]
fn every_record_ends_by_itself() {
    const DAY: i64 = 24 * 3600 * 1000;
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    let lives = |number: u8, millis: i64| {
        let left = store.integer(&[b"PTTL", name(number).as_bytes()]);
        assert!((millis - 5_000..=millis).contains(&left), "{number}: {left}, wanted {millis}");
    };
    let key = |number| Key([number; 32]);
    let token = Token([1; 16]);
    let unknown_for = Duration::from_secs(300);
    store.pipelined((0..5).map(|number| claim(number, 1)).collect());
    lives(0, DAY + 70_000);
    let lease = Duration::from_secs(600);
    store.pipelined(vec![
        Command::Extend { key: key(1), token, lease },
        complete(2, 1, vec![1; 100]),
        Command::MarkUnknown { key: key(3), token, unknown_for },
        Command::Release { key: key(4), token },
    ]);
    lives(1, DAY + 660_000);
    lives(2, 3_600_000);
    lives(3, DAY + 300_000);
    assert_eq!(store.integer(&[b"EXISTS", name(4).as_bytes()]), 0);
}

#[test]
fn a_deadline_is_reported_by_the_callers_clock() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    let before = now();
    store.pipelined(vec![claim(1, 1)]);
    match store.pipelined(vec![claim(1, 2)]).remove(0) {
        Ok(Reply::Exists(record)) => match record.state {
            State::Ongoing { lease_until, .. } => {
                let left = before.until(lease_until);
                assert!(left >= Duration::from_secs(10) && left < Duration::from_secs(15));
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_eviction_policy_that_drops_claims_is_logged_once() {
    let server = Server::start();
    let store = Store::new(&server, "idem:");
    store.raw(&[b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru"]);
    for number in 0..3 {
        store.pipelined(vec![claim(number, 1)]);
    }
    let warnings = store.warnings.borrow();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("allkeys-lru") && warnings[0].contains("noeviction"));
}
