use super::*;
use crate::key::Fingerprint;
use crate::record::Answer;
use crate::store::shared_data::Capacity;
use crate::store::shared_data::map::Map;
use crate::time::WallTime;

/// Of all requests but the one that differs.
const SAME: Fingerprint = Fingerprint([9; 32]);

/// One bucket, whose answers may take 16 KiB.
const CAPACITY: Capacity =
    Capacity { entries: 64, budget_bytes: 24 << 10, largest_answer: 64 << 10 };

const KEY: Key = Key([1; 32]);
const LEASE: Duration = Duration::from_secs(10);
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_millis(250);

/// Of a finished record at the shared store.
const TTL: Duration = Duration::from_secs(3600);

/// Of a copy of it.
const COPY: Duration = Duration::from_secs(60);

const COPY_MILLIS: u64 = 60_000;

fn at(millis: u64) -> Timestamp {
    Timestamp::from_millis(1_000_000_000 + millis)
}

const FIRST_SEEN: WallTime = WallTime::from_millis(7);

fn token(number: u8) -> Token {
    Token([number; 16])
}

fn claim(number: u8) -> Command {
    claim_of(KEY, number, false)
}

/// Of a request that waits.
fn watching(number: u8) -> Command {
    claim_of(KEY, number, true)
}

fn claim_of(key: Key, number: u8, watch: bool) -> Command {
    Command::Claim {
        key,
        token: token(number),
        fingerprint: SAME,
        first_seen: FIRST_SEEN,
        lease: LEASE,
        unknown_for: UNKNOWN_FOR,
        watch,
    }
}

fn extend(number: u8) -> Command {
    Command::Extend { key: KEY, token: token(number), lease: LEASE }
}

fn complete(number: u8, kept: Kept) -> Command {
    Command::Complete { key: KEY, token: token(number), status: 201, kept, ttl: TTL }
}

fn release(number: u8) -> Command {
    Command::Release { key: KEY, token: token(number) }
}

fn mark_unknown(number: u8) -> Command {
    Command::MarkUnknown { key: KEY, token: token(number), unknown_for: UNKNOWN_FOR }
}

fn answer(bytes: usize) -> Kept {
    let headers = vec![(b"content-type".to_vec(), b"text/plain".to_vec())];
    Kept::Answer(Answer { headers, body: vec![b'a'; bytes] })
}

/// A record of another Envoy, by token number 9.
fn elsewhere(state: State) -> Record {
    Record { token: token(9), fingerprint: SAME, attempt: 2, first_seen: FIRST_SEEN, state }
}

fn ongoing(lease_until: u64) -> Record {
    elsewhere(State::Ongoing { lease_until: at(lease_until), unknown_for: UNKNOWN_FOR })
}

fn finished(until: u64, kept: Kept) -> Record {
    elsewhere(State::Finished { until: at(until), status: 201, kept })
}

fn tiers(map: &Map) -> Tiers<Map> {
    Tiers::new(MemoryStore::open(map.clone(), "test", CAPACITY).unwrap(), COPY, TIMEOUT)
}

/// The record that answers a claim without the shared store; `None` if that is asked.
fn known(tiers: &Tiers<Map>, claim: &Command, millis: u64) -> Option<Record> {
    match tiers.begin(claim, at(millis)) {
        Begun::Answered(record) => Some(record),
        Begun::Undecided(until) => panic!("a lookup is in flight, until {until:?}"),
        Begun::AskShared => None,
    }
}

/// Until when a claim waits for another's lookup; `None` if it does not.
fn undecided(tiers: &Tiers<Map>, claim: &Command, millis: u64) -> Option<Timestamp> {
    match tiers.begin(claim, at(millis)) {
        Begun::Undecided(until) => Some(until),
        Begun::Answered(_) | Begun::AskShared => None,
    }
}

/// The claim asks the shared store, and gets this reply.
fn asks(
    tiers: &Tiers<Map>,
    claim: &Command,
    reply: Result<Reply, StoreError>,
    millis: u64,
) -> Concluded {
    assert_eq!(tiers.begin(claim, at(millis)), Begun::AskShared);
    tiers.apply_reply(claim, reply, at(millis))
}

fn plain(reply: Result<Reply, StoreError>, wake: bool) -> Concluded {
    Concluded { reply, wake: Wake { askers: wake, ..Wake::NOBODY }, give_back: false }
}

/// Number 1 runs here, as its third attempt.
fn running(map: &Map) -> Tiers<Map> {
    let tiers = tiers(map);
    let concluded = asks(&tiers, &claim(1), Ok(Reply::Claimed { attempt: 3 }), 0);
    let wanted = plain(Ok(Reply::Claimed { attempt: 3 }), false);
    assert_eq!(concluded, wanted);
    tiers
}

/// The shared store has returned this record of another Envoy, at 0.
fn told(map: &Map, record: Record) -> Tiers<Map> {
    let tiers = tiers(map);
    asks(&tiers, &claim(1), Ok(Reply::Exists(record)), 0);
    tiers
}

fn lease_until(record: &Record) -> Timestamp {
    match record.state {
        State::Ongoing { lease_until, .. } => lease_until,
        State::Unknown { .. } | State::Finished { .. } => panic!("not ongoing: {record:?}"),
    }
}

fn kept(record: &Record) -> &Kept {
    match &record.state {
        State::Finished { kept, .. } => kept,
        State::Ongoing { .. } | State::Unknown { .. } => panic!("not finished: {record:?}"),
    }
}

fn is_ongoing(record: Option<&Record>) -> bool {
    record.is_some_and(|record| matches!(record.state, State::Ongoing { .. }))
}

const DOWN: StoreError = StoreError::Unanswered("down");

#[test]
fn a_duplicate_of_an_execution_here_costs_the_shared_store_nothing() {
    let map = Map::default();
    let tiers = running(&map);
    let record = known(&tiers, &claim(2), 9_999).unwrap();
    assert_eq!(lease_until(&record), at(10_000));
    assert_eq!((record.token, record.fingerprint), (token(1), SAME));
    assert_eq!(record.attempt, 3, "the shared store's count");
    assert_eq!(known(&tiers, &claim(2), 10_000), None, "the lease is over");
}

#[test]
fn while_one_asks_the_others_wait_for_its_answer() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    assert_eq!(undecided(&tiers, &claim(2), 100), Some(at(500)));
    assert_eq!(undecided(&tiers, &watching(3), 100), Some(at(500)));
    // The asking request has not come back in twice the time that it may take.
    assert_eq!(undecided(&tiers, &claim(3), 499), Some(at(500)));
    assert_eq!(known(&tiers, &claim(3), 500), None);
}

#[test]
fn a_request_that_asks_again_does_not_wait_for_itself() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    assert_eq!(known(&tiers, &claim(1), 1), None);
}

#[test]
fn only_claims_are_answered_here() {
    let map = Map::default();
    let tiers = running(&map);
    for command in [extend(1), complete(1, Kept::StatusOnly), release(1), mark_unknown(1)] {
        assert_eq!(tiers.begin(&command, at(0)), Begun::AskShared);
    }
}

#[test]
fn a_finished_record_is_replayed_from_its_copy_for_ttl() {
    for kept_there in [answer(100), Kept::StatusOnly] {
        let map = Map::default();
        let tiers = tiers(&map);
        let there = finished(3_600_000, kept_there.clone());
        let concluded = asks(&tiers, &claim(1), Ok(Reply::Exists(there.clone())), 0);
        assert_eq!(concluded.reply, Ok(Reply::Exists(there)), "as the shared store has it");
        let copy = known(&tiers, &claim(2), COPY_MILLIS - 1).unwrap();
        assert_eq!(copy, finished(3_600_000, kept_there), "with the first's fingerprint");
        assert_eq!(known(&tiers, &claim(2), COPY_MILLIS), None);
    }
}

#[test]
fn a_copy_is_never_replayed_past_its_records_own_end() {
    let map = Map::default();
    let tiers = told(&map, finished(5_000, answer(100)));
    assert_eq!(known(&tiers, &claim(2), 4_999), Some(finished(5_000, answer(100))));
    assert_eq!(known(&tiers, &claim(2), 5_000), None);
}

#[test]
fn a_record_without_an_answer_is_looked_up_each_time() {
    let map = Map::default();
    let tiers = told(&map, finished(3_600_000, Kept::Nothing));
    assert_eq!(known(&tiers, &claim(2), 1), None);
    assert!(undecided(&tiers, &claim(3), 1).is_some());
    // If the shared store fails now, only this is known of the execution.
    tiers.apply_reply(&claim(2), Err(DOWN), at(2));
    let reply = tiers.local_only(&claim(2), at(3)).unwrap().reply;
    assert!(matches!(reply, Reply::Exists(_)), "{reply:?}");
}

#[test]
fn an_answer_that_does_not_fit_is_not_kept_and_leaves_nothing_behind() {
    let map = Map::default();
    let there = finished(3_600_000, answer(100 << 10));
    let tiers = told(&map, there.clone());
    assert_eq!(known(&tiers, &claim(2), 1), None);
    assert!(undecided(&tiers, &claim(3), 1).is_some());
    let concluded = tiers.apply_reply(&claim(2), Ok(Reply::Exists(there.clone())), at(2));
    assert_eq!(concluded.reply, Ok(Reply::Exists(there)));
}

#[test]
fn an_answer_that_had_to_go_for_another_is_asked_for_again() {
    let map = Map::default();
    let tiers = told(&map, finished(3_600_000, answer(10 << 10)));
    assert!(known(&tiers, &claim(2), 1).is_some());
    let mut other = KEY;
    other.0[31] = 2;
    let claim_other = claim_of(other, 3, false);
    let there = finished(3_600_000, answer(11 << 10));
    let concluded = asks(&tiers, &claim_other, Ok(Reply::Exists(there.clone())), 2);
    assert!(concluded.reply.is_ok());
    assert_eq!(tiers.take_tally().evicted, 1);
    assert_eq!(known(&tiers, &claim_other, 3), Some(finished(3_600_000, answer(11 << 10))));
    assert_eq!(known(&tiers, &claim(2), 3), None);
    // The shared store still has it, even if it was evicted here; and then it is here again.
    let there = finished(3_600_000, answer(10 << 10));
    let concluded = tiers.apply_reply(&claim(2), Ok(Reply::Exists(there.clone())), at(4));
    assert_eq!(concluded.reply, Ok(Reply::Exists(there)));
    assert!(known(&tiers, &claim(2), 5).is_some());
}

#[test]
fn a_request_that_does_not_wait_may_use_a_snapshot_of_ten_milliseconds() {
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let record = known(&tiers, &claim(2), 9).unwrap();
    assert_eq!((record.token, record.fingerprint), (token(9), SAME));
    assert_eq!(record.first_seen, FIRST_SEEN);
    assert_eq!(known(&tiers, &claim(2), 10), None);
}

#[test]
fn waiters_look_again_at_a_claim_elsewhere_the_later_the_longer_it_is_known() {
    // How long the claim was known at the next lookup, and how long that lookup is good for.
    for (age, pause) in [(150, 100), (300, 100), (1_500, 375), (2_400, 600), (60_000, 1_000)] {
        let map = Map::default();
        let tiers = tiers(&map);
        asks(&tiers, &watching(1), Ok(Reply::Exists(ongoing(age + 8_000))), 0);
        let concluded = asks(&tiers, &watching(1), Ok(Reply::Exists(ongoing(age + 8_000))), age);
        let Ok(Reply::Exists(told)) = concluded.reply else { panic!("no record") };
        assert_eq!(lease_until(&told), at(age + pause), "when the first asker looks again");
        let before = known(&tiers, &watching(2), age + pause - 1);
        assert!(is_ongoing(before.as_ref()), "known for {age}");
        assert_eq!(known(&tiers, &watching(2), age + pause), None, "known for {age}");
    }
}

#[test]
fn a_waiter_asks_again_when_the_lease_elsewhere_is_over() {
    let map = Map::default();
    let tiers = tiers(&map);
    let concluded = asks(&tiers, &watching(1), Ok(Reply::Exists(ongoing(30))), 0);
    assert_eq!(concluded.reply, Ok(Reply::Exists(ongoing(30))));
}

#[test]
fn of_many_that_find_a_snapshot_too_old_one_asks() {
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let asks = |claim: &Command, millis| undecided(&tiers, claim, millis).is_none();
    assert_eq!((2..50).filter(|number| asks(&claim(*number), 10)).count(), 1);
    // And of waiting requests.
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let asks = |claim: &Command, millis| undecided(&tiers, claim, millis).is_none();
    assert_eq!((2..50).filter(|number| asks(&watching(*number), 150)).count(), 1);
}

#[test]
fn an_unknown_outcome_elsewhere_is_cached_too_and_never_longer_than_it_lasts() {
    let map = Map::default();
    let tiers = told(&map, elsewhere(State::Unknown { until: at(30_000) }));
    let record = known(&tiers, &claim(2), 9).unwrap();
    assert!(matches!(record.state, State::Unknown { .. }), "{record:?}");
    assert_eq!(record.fingerprint, SAME);
    assert_eq!(known(&tiers, &claim(2), 10), None);
    let map = Map::default();
    let tiers = told(&map, elsewhere(State::Unknown { until: at(5) }));
    assert_eq!(known(&tiers, &claim(2), 5), None);
}

#[test]
fn a_message_about_an_end_removes_a_snapshot_of_another_envoys_claim() {
    let map = Map::default();
    let mirror = told(&map, ongoing(8_000));
    mirror.ended(KEY, at(1));
    assert_eq!(known(&mirror, &watching(2), 1), None);
    // That was a lookup, whose reply may be older than the end.
    mirror.ended(KEY, at(2));
    assert_eq!(known(&mirror, &watching(3), 2), None);
    let map = Map::default();
    let unknown = told(&map, elsewhere(State::Unknown { until: at(30_000) }));
    unknown.ended(KEY, at(1));
    assert_eq!(known(&unknown, &claim(2), 1), None);
}

#[test]
fn a_message_about_an_end_removes_neither_a_claim_of_this_envoy_nor_a_copy() {
    let map = Map::default();
    let tiers = running(&map);
    tiers.ended(KEY, at(1));
    assert!(is_ongoing(known(&tiers, &claim(2), 2).as_ref()));
    let map = Map::default();
    let tiers = told(&map, finished(3_600_000, answer(10)));
    tiers.ended(KEY, at(1));
    assert!(known(&tiers, &claim(2), 2).is_some());
}

#[test]
fn a_reply_that_may_be_older_than_the_end_is_not_mirrored() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    tiers.ended(KEY, at(1));
    let concluded = tiers.apply_reply(&claim(1), Ok(Reply::Exists(ongoing(8_000))), at(2));
    assert!(matches!(concluded.reply, Ok(Reply::Exists(_))), "{concluded:?}");
    assert_eq!(known(&tiers, &claim(2), 2), None);
    // Nor does a still later one replace the second's lookup.
    tiers.apply_reply(&claim(1), Ok(Reply::Exists(ongoing(8_000))), at(3));
    assert!(undecided(&tiers, &claim(3), 3).is_some());
}

#[test]
fn a_store_that_fails_ends_the_lookup_and_wakes_coalesced_requests() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    // Whether it would wait for a first or not.
    assert!(undecided(&tiers, &claim(2), 1).is_some());
    let concluded = tiers.apply_reply(&claim(1), Err(DOWN), at(2));
    assert_eq!(concluded, plain(Err(DOWN), true));
    assert_eq!(known(&tiers, &claim(2), 3), None);
}

#[test]
fn a_coalesced_request_is_woken_by_the_reply() {
    for reply in [
        Reply::Exists(finished(3_600_000, answer(10))),
        Reply::Exists(finished(3_600_000, Kept::StatusOnly)),
        Reply::Exists(finished(3_600_000, Kept::Nothing)),
        Reply::Exists(finished(3_600_000, answer(100 << 10))),
        Reply::Exists(elsewhere(State::Unknown { until: at(30_000) })),
        Reply::Exists(ongoing(8_000)),
        Reply::Claimed { attempt: 1 },
    ] {
        for waits in [claim(2), watching(2)] {
            let map = Map::default();
            let tiers = tiers(&map);
            assert_eq!(known(&tiers, &claim(1), 0), None);
            assert!(undecided(&tiers, &waits, 1).is_some());
            let concluded = tiers.apply_reply(&claim(1), Ok(reply.clone()), at(2));
            assert!(concluded.wake.askers, "{reply:?}");
        }
    }
}

#[test]
fn a_waiter_is_woken_by_the_end_of_an_execution_and_by_no_heartbeat() {
    let map = Map::default();
    let tiers = running(&map);
    assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
    let concluded = tiers.apply_reply(&extend(1), Ok(Reply::Done), at(2));
    assert_eq!(concluded.wake, Wake::NOBODY);
    let concluded = tiers.apply_reply(&complete(1, answer(10)), Ok(Reply::Done), at(3));
    assert!(concluded.wake.waiters);
}

#[test]
fn an_execution_here_is_replayed_here_for_ttl() {
    let map = Map::default();
    let tiers = running(&map);
    let concluded = tiers.apply_reply(&complete(1, answer(10)), Ok(Reply::Done), at(100));
    assert_eq!(concluded, plain(Ok(Reply::Done), false));
    let record = known(&tiers, &claim(2), 100 + COPY_MILLIS - 1).unwrap();
    assert_eq!((kept(&record), record.attempt), (&answer(10), 3));
    assert_eq!(record.fingerprint, SAME);
    assert_eq!(known(&tiers, &claim(2), 100 + COPY_MILLIS), None);
}

#[test]
fn an_execution_here_is_replayed_here_though_the_shared_store_has_no_record() {
    let map = Map::default();
    let tiers = running(&map);
    let concluded = tiers.apply_reply(&complete(1, answer(10)), Err(DOWN), at(100));
    assert_eq!(concluded.reply, Err(DOWN));
    assert_eq!(kept(&known(&tiers, &claim(2), 200).unwrap()), &answer(10));
    // It gets the record at the second try, which changes nothing here.
    tiers.apply_reply(&complete(1, answer(10)), Ok(Reply::Done), at(300));
    assert_eq!(kept(&known(&tiers, &claim(2), 400).unwrap()), &answer(10));
}

#[test]
fn a_heartbeat_counts_here_though_the_shared_store_fails() {
    for reply in [Ok(Reply::Done), Err(DOWN)] {
        let map = Map::default();
        let tiers = running(&map);
        tiers.apply_reply(&extend(1), reply, at(8_000));
        assert!(is_ongoing(known(&tiers, &claim(2), 17_999).as_ref()));
        assert_eq!(known(&tiers, &claim(2), 18_000), None);
    }
}

#[test]
fn a_claim_lost_there_is_lost_here() {
    for command in [extend(1), complete(1, answer(10)), release(1), mark_unknown(1)] {
        let map = Map::default();
        let tiers = running(&map);
        assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
        let concluded = tiers.apply_reply(&command, Ok(Reply::NotOwner), at(2));
        assert_eq!(concluded.reply, Ok(Reply::NotOwner), "{command:?}");
        assert!(concluded.wake.waiters, "{command:?}");
        assert_eq!(known(&tiers, &claim(3), 3), None, "{command:?}");
    }
}

#[test]
fn a_key_that_is_free_there_is_free_here() {
    for reply in [Ok(Reply::Done), Err(DOWN)] {
        let map = Map::default();
        let tiers = running(&map);
        assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
        let concluded = tiers.apply_reply(&release(1), reply, at(2));
        assert!(concluded.wake.waiters);
        assert_eq!(known(&tiers, &claim(3), 3), None);
    }
}

#[test]
fn an_unknown_outcome_is_unknown_here_and_looked_up_again() {
    let map = Map::default();
    let tiers = running(&map);
    assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
    let concluded = tiers.apply_reply(&mark_unknown(1), Ok(Reply::Done), at(2));
    assert!(concluded.wake.waiters);
    let record = known(&tiers, &claim(3), 3).unwrap();
    assert_eq!(record.state, State::Unknown { until: at(60_002) });
    assert_eq!(known(&tiers, &claim(3), 12), None);
}

#[test]
fn an_unknown_outcome_that_the_shared_store_has_not_recorded_is_ongoing_until_the_lease_is_over() {
    let map = Map::default();
    let tiers = running(&map);
    let concluded = tiers.apply_reply(&mark_unknown(1), Err(DOWN), at(1));
    assert_eq!(concluded, plain(Err(DOWN), false));
    assert!(is_ongoing(known(&tiers, &claim(2), 9_999).as_ref()));
    assert_eq!(known(&tiers, &claim(2), 10_000), None);
}

#[test]
fn local_only_the_table_grants_claims_and_keeps_records_for_the_whole_ttl() {
    let map = Map::default();
    let tiers = tiers(&map);
    let local_only =
        |command: Command, millis| tiers.local_only(&command, at(millis)).unwrap().reply;
    assert_eq!(local_only(claim(1), 0), Reply::Claimed { attempt: 1 });
    assert!(matches!(local_only(claim(2), 1), Reply::Exists(_)));
    assert!(is_ongoing(known(&tiers, &claim(2), 1).as_ref()), "the shared store is back");
    assert_eq!(local_only(complete(1, answer(10)), 2), Reply::Done);
    let record = known(&tiers, &claim(2), 3_000_000).unwrap();
    assert_eq!(kept(&record), &answer(10));
    assert_eq!(known(&tiers, &claim(2), 3_600_002), None);
}

#[test]
fn a_local_only_decision_stays_valid_here_when_the_shared_store_is_back() {
    let map = Map::default();
    let tiers = tiers(&map);
    let local_only =
        |command: Command, millis| tiers.local_only(&command, at(millis)).unwrap().reply;
    assert_eq!(local_only(claim(1), 0), Reply::Claimed { attempt: 1 });
    assert_eq!(local_only(mark_unknown(1), 1), Reply::Done);
    let Reply::Exists(record) = local_only(claim(2), 2) else { panic!("its outcome is unknown") };
    assert_eq!(record.state, State::Unknown { until: at(60_001) });
    // The shared store knows nothing of it, and would let it run again.
    let record = known(&tiers, &claim(2), 2).unwrap();
    assert_eq!(record.state, State::Unknown { until: at(60_001) });
    assert_eq!(local_only(claim(3), 60_001), Reply::Claimed { attempt: 2 });
    // More than fits: a tombstone, and no reason to ask a store that does not know it.
    assert_eq!(local_only(complete(3, answer(100 << 10)), 60_002), Reply::Done);
    let record = known(&tiers, &claim(4), 60_003).unwrap();
    assert!(matches!(record.state, State::Finished { kept: Kept::Nothing, .. }), "{record:?}");
}

#[test]
fn others_are_not_compared_with_a_different_request_while_it_asks() {
    let map = Map::default();
    let tiers = tiers(&map);
    let mut differs = claim(1);
    if let Command::Claim { fingerprint, .. } = &mut differs {
        *fingerprint = Fingerprint([7; 32]);
    }
    assert_eq!(known(&tiers, &differs, 0), None);
    // One of the two is the first, and only the shared store knows which.
    assert!(undecided(&tiers, &claim(2), 0).is_some());
    tiers.apply_reply(&differs, Ok(Reply::Exists(ongoing(8_000))), at(1));
    assert_eq!(known(&tiers, &claim(3), 2).unwrap().fingerprint, SAME);
}

#[test]
fn local_only_a_claim_elsewhere_is_not_granted_as_long_as_it_would_live() {
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    // Its lease, and then the time for which its outcome is unknown.
    for millis in [500, 7_999, 8_000, 67_999] {
        let reply = tiers.local_only(&claim(2), at(millis)).unwrap().reply;
        assert!(matches!(reply, Reply::Exists(_)), "{millis}: {reply:?}");
    }
    let reply = tiers.local_only(&claim(2), at(68_000)).unwrap().reply;
    assert_eq!(reply, Reply::Claimed { attempt: 3 });
}

#[test]
fn a_table_that_cannot_be_written_refuses_no_request() {
    let map = Map::default();
    let tiers = tiers(&map);
    map.broken.set(true);
    let concluded = asks(&tiers, &claim(1), Ok(Reply::Claimed { attempt: 1 }), 0);
    assert_eq!(concluded.reply, Ok(Reply::Claimed { attempt: 1 }));
    let there = Ok(Reply::Exists(finished(3_600_000, answer(10))));
    assert_eq!(asks(&tiers, &claim(2), there.clone(), 1).reply, there);
    assert_eq!(
        tiers.apply_reply(&complete(1, answer(10)), Ok(Reply::Done), at(2)).reply,
        Ok(Reply::Done)
    );
    tiers.ended(KEY, at(3));
}

/// Records that must still be known when the shared store has failed: they decide then.
fn local_only_says(tiers: &Tiers<Map>, millis: u64) -> Reply {
    tiers.local_only(&claim(50), at(millis)).unwrap().reply
}

#[test]
fn a_message_of_an_end_does_not_cost_a_claim_that_is_being_asked_for() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    tiers.ended(KEY, at(1));
    let concluded = tiers.apply_reply(&claim(1), Ok(Reply::Claimed { attempt: 1 }), at(2));
    assert_eq!(concluded.reply, Ok(Reply::Claimed { attempt: 1 }));
    assert!(is_ongoing(known(&tiers, &claim(2), 3).as_ref()));
    assert!(matches!(local_only_says(&tiers, 3), Reply::Exists(_)));
}

#[test]
fn a_finished_record_outlives_its_time_to_be_replayed() {
    let map = Map::default();
    let tiers = running(&map);
    tiers.apply_reply(&complete(1, answer(10)), Ok(Reply::Done), at(100));
    assert_eq!(known(&tiers, &claim(2), 3_000_000), None, "the shared store is asked");
    tiers.apply_reply(&claim(2), Err(DOWN), at(3_000_001));
    let Reply::Exists(record) = local_only_says(&tiers, 3_000_002) else { panic!("it runs again") };
    assert_eq!(kept(&record), &answer(10));
}

#[test]
fn an_unknown_outcome_is_not_forgotten_when_the_shared_store_has_it() {
    let map = Map::default();
    let tiers = running(&map);
    tiers.apply_reply(&mark_unknown(1), Ok(Reply::Done), at(100));
    assert!(matches!(local_only_says(&tiers, 60_099), Reply::Exists(_)));
    assert_eq!(local_only_says(&tiers, 60_100), Reply::Claimed { attempt: 4 });
}

#[test]
fn a_lookup_stands_beside_the_known_record() {
    for known_here in [ongoing(8_000), finished(3_600_000, answer(10))] {
        let map = Map::default();
        let tiers = told(&map, known_here);
        assert_eq!(known(&tiers, &claim(2), COPY_MILLIS), None, "it asks");
        assert!(undecided(&tiers, &claim(3), COPY_MILLIS + 1).is_some());
        tiers.apply_reply(&claim(2), Err(DOWN), at(COPY_MILLIS + 2));
        assert!(matches!(local_only_says(&tiers, COPY_MILLIS + 3), Reply::Exists(_)));
    }
}

#[test]
fn a_claim_that_comes_when_this_envoy_has_decided_goes_back() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    assert_eq!(tiers.local_only(&claim(2), at(1)).unwrap().reply, Reply::Claimed { attempt: 1 });
    let concluded = tiers.apply_reply(&claim(1), Ok(Reply::Claimed { attempt: 1 }), at(2));
    assert!(concluded.give_back);
    let Ok(Reply::Exists(record)) = concluded.reply else { panic!("both run") };
    assert_eq!(record.token, token(2));
    assert!(is_ongoing(known(&tiers, &claim(3), 3).as_ref()));
}

#[test]
fn a_heartbeat_that_comes_behind_the_end_of_its_claim_costs_nothing_that_is_known() {
    // Redis had forgotten the script of the heartbeat: sent again as text, it comes last.
    for end in [complete(1, answer(10)), mark_unknown(1)] {
        let map = Map::default();
        let tiers = running(&map);
        tiers.apply_reply(&end, Ok(Reply::Done), at(100));
        tiers.apply_reply(&extend(1), Ok(Reply::NotOwner), at(101));
        assert!(matches!(local_only_says(&tiers, 102), Reply::Exists(_)), "{end:?}");
    }
}

#[test]
fn an_attempt_that_the_shared_store_knows_nothing_of_counts_all_the_same() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(tiers.local_only(&claim(1), at(0)).unwrap().reply, Reply::Claimed { attempt: 1 });
    assert_eq!(tiers.local_only(&mark_unknown(1), at(1)).unwrap().reply, Reply::Done);
    let concluded = asks(&tiers, &claim(2), Ok(Reply::Claimed { attempt: 1 }), 60_001);
    assert_eq!(concluded.reply, Ok(Reply::Claimed { attempt: 2 }));
    assert_eq!(known(&tiers, &claim(3), 60_002).unwrap().attempt, 2);
}
