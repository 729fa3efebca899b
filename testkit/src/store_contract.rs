//! The contract of every store: one suite, run against each of them.

use envoy_idempotency::key::{Fingerprint, Key};
use envoy_idempotency::record::{Answer, Kept, Record, State, Token};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::time::WallTime;
use std::time::Duration;

/// A store under test, and its clock.
pub trait Store {
    /// Carries out a command now.
    fn execute(&self, command: Command) -> Result<Reply, StoreError>;
    /// Lets time pass, as the store sees it.
    fn advance(&self, time: Duration);
    /// Whether a claim is granted that was on its way for longer than its sender believes in it. `None` where
    /// commands do not travel.
    fn grants_late(&self, _claim: Command) -> Option<bool> {
        None
    }
}

/// Runs the whole suite; each case gets a store of its own.
pub fn run<S: Store>(new: impl Fn() -> S) {
    for (name, case) in CASES {
        eprintln!("case: {name}");
        case(&new());
    }
}

type Case = fn(&dyn Store);

const CASES: [(&str, Case); 17] = [
    ("of many claims one is granted", of_many_claims_one_is_granted),
    ("a retry of a claim recognises itself", a_retry_of_a_claim_recognises_itself),
    ("an existing record is returned with its fingerprint", an_existing_record_is_returned),
    ("a finished record keeps what it was given", a_finished_record_keeps_its_outcome),
    ("a finished record is over after its ttl", a_finished_record_is_over_after_its_ttl),
    ("a ttl of zero is over at once", a_ttl_of_zero_is_over_at_once),
    ("a retry of an end changes nothing", a_retry_of_an_end_changes_nothing),
    ("a released key is free", a_released_key_is_free),
    ("a heartbeat keeps a claim alive", a_heartbeat_keeps_a_claim_alive),
    (
        "a lapsed lease is unknown and then a takeover",
        a_lapsed_lease_is_unknown_and_then_a_takeover,
    ),
    ("an unknown_ttl of zero is taken over at once", an_unknown_ttl_of_zero_is_taken_over_at_once),
    ("a stolen token ends nothing", a_stolen_token_ends_nothing),
    ("an owner that comes late is still the owner", an_owner_that_comes_late_is_still_the_owner),
    ("an owner that comes too late changes nothing", an_owner_that_comes_too_late_changes_nothing),
    ("a release after a takeover keeps the count", a_release_after_a_takeover_keeps_the_count),
    ("a claim that comes after its release is not granted", a_claim_after_its_release),
    ("keys do not mix", keys_do_not_mix),
];

const LEASE: Duration = Duration::from_secs(10);
const UNKNOWN: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(3600);
const ALICE: Token = Token([1; 16]);
const BOB: Token = Token([2; 16]);

fn key(number: u8) -> Key {
    Key([number; 32])
}

fn claim(token: Token) -> Command {
    Command::Claim {
        key: key(7),
        token,
        fingerprint: Fingerprint([token.0[0]; 32]),
        first_seen: WallTime::default(),
        lease: LEASE,
        unknown_for: UNKNOWN,
        watch: false,
    }
}

fn extend(token: Token) -> Command {
    Command::Extend { key: key(7), token, lease: LEASE }
}

fn complete(token: Token, kept: Kept, ttl: Duration) -> Command {
    Command::Complete { key: key(7), token, status: 201, kept, ttl }
}

fn release(token: Token) -> Command {
    Command::Release { key: key(7), token }
}

fn mark_unknown(token: Token, unknown_for: Duration) -> Command {
    Command::MarkUnknown { key: key(7), token, unknown_for }
}

fn answer(body: &[u8]) -> Kept {
    let twice = |value: &[u8]| (b"x-twice".to_vec(), value.to_vec());
    Kept::Answer(Answer { headers: vec![twice(b"1"), twice(b"\xff")], body: body.to_vec() })
}

fn claimed(store: &dyn Store, token: Token, attempt: u32) {
    assert_eq!(store.execute(claim(token)), Ok(Reply::Claimed { attempt }));
}

fn done(store: &dyn Store, command: Command) {
    assert_eq!(store.execute(command), Ok(Reply::Done));
}

fn not_owner(store: &dyn Store, command: Command) {
    assert_eq!(store.execute(command), Ok(Reply::NotOwner));
}

fn record(store: &dyn Store, asks: Token) -> Record {
    match store.execute(claim(asks)) {
        Ok(Reply::Exists(record)) => record,
        other => panic!("no record: {other:?}"),
    }
}

fn is_ongoing(record: &Record) -> bool {
    matches!(record.state, State::Ongoing { .. })
}

fn is_unknown(record: &Record) -> bool {
    matches!(record.state, State::Unknown { .. })
}

fn of_many_claims_one_is_granted(store: &dyn Store) {
    claimed(store, ALICE, 1);
    for number in 2..50 {
        let record = record(store, Token([number; 16]));
        assert!(is_ongoing(&record));
        assert_eq!((record.token, record.attempt), (ALICE, 1));
    }
}

fn a_retry_of_a_claim_recognises_itself(store: &dyn Store) {
    claimed(store, ALICE, 1);
    claimed(store, ALICE, 1);
    done(store, release(ALICE));
    claimed(store, BOB, 1);
}

fn an_existing_record_is_returned(store: &dyn Store) {
    claimed(store, ALICE, 1);
    assert_eq!(record(store, BOB).fingerprint, Fingerprint([1; 32]));
    done(store, complete(ALICE, answer(b"x"), TTL));
    assert_eq!(record(store, BOB).fingerprint, Fingerprint([1; 32]));
}

fn a_finished_record_keeps_its_outcome(store: &dyn Store) {
    for kept in [answer(b"a body"), answer(b""), Kept::StatusOnly, Kept::Nothing] {
        claimed(store, ALICE, 1);
        done(store, complete(ALICE, kept.clone(), TTL));
        match record(store, BOB).state {
            State::Finished { status, kept: found, .. } => {
                assert_eq!((status, found), (201, kept));
            }
            other => panic!("not finished: {other:?}"),
        }
        store.advance(TTL);
    }
}

fn a_finished_record_is_over_after_its_ttl(store: &dyn Store) {
    claimed(store, ALICE, 1);
    done(store, complete(ALICE, answer(b"x"), TTL));
    store.advance(TTL - Duration::from_millis(50));
    record(store, BOB);
    store.advance(Duration::from_millis(50));
    claimed(store, BOB, 1);
}

fn a_ttl_of_zero_is_over_at_once(store: &dyn Store) {
    claimed(store, ALICE, 1);
    done(store, complete(ALICE, answer(b"x"), Duration::ZERO));
    claimed(store, BOB, 1);
}

fn a_retry_of_an_end_changes_nothing(store: &dyn Store) {
    claimed(store, ALICE, 1);
    done(store, complete(ALICE, answer(b"first"), TTL));
    done(store, complete(ALICE, answer(b"second"), TTL));
    match record(store, BOB).state {
        State::Finished { kept, .. } => assert_eq!(kept, answer(b"first")),
        other => panic!("not finished: {other:?}"),
    }
    not_owner(store, release(ALICE));
    not_owner(store, mark_unknown(ALICE, UNKNOWN));
    not_owner(store, extend(ALICE));
    record(store, BOB);
}

fn a_released_key_is_free(store: &dyn Store) {
    claimed(store, ALICE, 1);
    done(store, release(ALICE));
    not_owner(store, complete(ALICE, answer(b"x"), TTL));
    claimed(store, BOB, 1);
    // The loser's clean-up must not take the winner's claim.
    not_owner(store, release(ALICE));
    assert_eq!(record(store, ALICE).token, BOB);
}

fn a_heartbeat_keeps_a_claim_alive(store: &dyn Store) {
    claimed(store, ALICE, 1);
    for _ in 0..5 {
        store.advance(LEASE - Duration::from_millis(50));
        done(store, extend(ALICE));
    }
    assert!(is_ongoing(&record(store, BOB)));
}

fn a_lapsed_lease_is_unknown_and_then_a_takeover(store: &dyn Store) {
    claimed(store, ALICE, 1);
    let first_seen = record(store, BOB).first_seen;
    store.advance(LEASE);
    assert!(is_unknown(&record(store, BOB)));
    store.advance(UNKNOWN - Duration::from_millis(50));
    assert!(is_unknown(&record(store, BOB)));
    store.advance(Duration::from_millis(50));
    claimed(store, BOB, 2);
    let taken = record(store, ALICE);
    assert_eq!((taken.token, taken.attempt, taken.first_seen), (BOB, 2, first_seen));
}

fn an_unknown_ttl_of_zero_is_taken_over_at_once(store: &dyn Store) {
    claimed(store, ALICE, 1);
    done(store, mark_unknown(ALICE, Duration::ZERO));
    claimed(store, BOB, 2);
}

fn a_stolen_token_ends_nothing(store: &dyn Store) {
    claimed(store, ALICE, 1);
    for command in [
        extend(BOB),
        complete(BOB, answer(b"forged"), TTL),
        complete(BOB, Kept::Nothing, TTL),
        release(BOB),
        mark_unknown(BOB, UNKNOWN),
    ] {
        not_owner(store, command);
        let record = record(store, BOB);
        assert!(is_ongoing(&record) && record.token == ALICE);
    }
    done(store, complete(ALICE, answer(b"true"), TTL));
}

fn an_owner_that_comes_late_is_still_the_owner(store: &dyn Store) {
    claimed(store, ALICE, 1);
    store.advance(LEASE + UNKNOWN / 2);
    assert!(is_unknown(&record(store, BOB)));
    done(store, extend(ALICE));
    assert!(is_ongoing(&record(store, BOB)));
    store.advance(LEASE);
    done(store, complete(ALICE, answer(b"late"), TTL));
    match record(store, BOB).state {
        State::Finished { kept, .. } => assert_eq!(kept, answer(b"late")),
        other => panic!("not finished: {other:?}"),
    }
}

fn an_owner_that_comes_too_late_changes_nothing(store: &dyn Store) {
    claimed(store, ALICE, 1);
    store.advance(LEASE + UNKNOWN);
    claimed(store, BOB, 2);
    for command in [
        extend(ALICE),
        complete(ALICE, answer(b"late"), TTL),
        release(ALICE),
        mark_unknown(ALICE, UNKNOWN),
    ] {
        not_owner(store, command);
    }
    done(store, complete(BOB, answer(b"successor"), TTL));
    not_owner(store, complete(ALICE, answer(b"late"), TTL));
    match record(store, ALICE).state {
        State::Finished { kept, .. } => assert_eq!(kept, answer(b"successor")),
        other => panic!("not finished: {other:?}"),
    }
}

fn a_release_after_a_takeover_keeps_the_count(store: &dyn Store) {
    claimed(store, ALICE, 1);
    done(store, mark_unknown(ALICE, Duration::ZERO));
    claimed(store, BOB, 2);
    done(store, release(BOB));
    // The second has not run: there is one attempt before this that may have.
    claimed(store, ALICE, 2);
    done(store, mark_unknown(ALICE, Duration::ZERO));
    claimed(store, BOB, 3);
}

/// The network delayed a claim, and its sender has released it meanwhile. If the store granted it now, no request
/// would own it: the key would be in progress, and then unknown, although nothing runs.
fn a_claim_after_its_release(store: &dyn Store) {
    not_owner(store, release(ALICE));
    if let Some(granted) = store.grants_late(claim(ALICE)) {
        assert!(!granted);
    }
    claimed(store, BOB, 1);
}

fn keys_do_not_mix(store: &dyn Store) {
    let body = |number: u8| vec![number; 100 + usize::from(number)];
    for number in 0..60 {
        let token = Token([number; 16]);
        let claim = Command::Claim {
            key: key(number),
            token,
            fingerprint: Fingerprint([number; 32]),
            first_seen: WallTime::default(),
            lease: LEASE,
            unknown_for: UNKNOWN,
            watch: false,
        };
        assert_eq!(store.execute(claim), Ok(Reply::Claimed { attempt: 1 }));
        let kept = answer(&body(number));
        done(store, Command::Complete { key: key(number), token, status: 200, kept, ttl: TTL });
    }
    for number in 0..60 {
        let claim = Command::Claim {
            key: key(number),
            token: Token([99; 16]),
            fingerprint: Fingerprint([number; 32]),
            first_seen: WallTime::default(),
            lease: LEASE,
            unknown_for: UNKNOWN,
            watch: false,
        };
        match store.execute(claim) {
            Ok(Reply::Exists(Record {
                state: State::Finished { kept: Kept::Answer(answer), .. },
                ..
            })) => assert_eq!(answer.body, body(number)),
            other => panic!("{number}: {other:?}"),
        }
    }
}
