use super::*;
use crate::key::Fingerprint;
use crate::record::Answer;
use crate::store::shared_data::{Capacity, INSERT, SharedDataError};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;

/// Envoy's shared data, as a map: values with their versions.
#[derive(Debug, Default)]
struct Map {
    values: RefCell<HashMap<String, (Vec<u8>, u32)>>,
    broken: Cell<bool>,
}

impl SharedData for &Map {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        match self.values.borrow().get(key) {
            Some((value, cas)) => ((!value.is_empty()).then(|| value.clone()), Some(*cas)),
            None => (None, None),
        }
    }

    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        if self.broken.get() {
            return Err(SharedDataError::Failed);
        }
        let mut values = self.values.borrow_mut();
        let next = match values.get(key) {
            Some((_, version)) if *version == cas => version + 1,
            None if cas == INSERT => 1,
            Some(_) | None => return Err(SharedDataError::CasMismatch),
        };
        values.insert(key.to_owned(), (value.to_vec(), next));
        Ok(())
    }
}

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

fn token(number: u8) -> Token {
    Token([number; 16])
}

fn claim(number: u8) -> Command {
    claim_of(KEY, number, false)
}

/// Of one who waits.
fn watching(number: u8) -> Command {
    claim_of(KEY, number, true)
}

fn claim_of(key: Key, number: u8, watch: bool) -> Command {
    Command::Claim {
        key,
        token: token(number),
        fingerprint: SAME,
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

/// A record of another Envoy's, by token number 9.
fn elsewhere(state: State) -> Record {
    Record { token: token(9), fingerprint: SAME, attempt: 2, first_seen: at(0), state }
}

fn ongoing(lease_until: u64) -> Record {
    elsewhere(State::Ongoing { lease_until: at(lease_until), unknown_for: UNKNOWN_FOR })
}

fn finished(until: u64, kept: Kept) -> Record {
    elsewhere(State::Finished { until: at(until), status: 201, kept })
}

fn tiers(map: &Map) -> Tiers<&Map> {
    Tiers::new(MemoryStore::open(map, "test", CAPACITY).unwrap(), COPY, TIMEOUT)
}

/// The record that a claim is answered by without the shared store; `None` if that is asked.
fn known(tiers: &Tiers<&Map>, claim: &Command, millis: u64) -> Option<Record> {
    match tiers.begin(claim, at(millis)) {
        Begun::Answered(Executed { reply: Reply::Exists(record), .. }) => Some(record),
        Begun::Answered(executed) => panic!("nothing but a record can be known: {executed:?}"),
        Begun::Undecided(until) => panic!("somebody asks, until {until}"),
        Begun::AskShared => None,
    }
}

/// Until when a claim waits for another's question; `None` if it does not.
fn undecided(tiers: &Tiers<&Map>, claim: &Command, millis: u64) -> Option<Timestamp> {
    match tiers.begin(claim, at(millis)) {
        Begun::Undecided(until) => Some(until),
        Begun::Answered(_) | Begun::AskShared => None,
    }
}

/// The claim asks the shared store, and gets this reply.
fn asks(
    tiers: &Tiers<&Map>,
    claim: &Command,
    reply: Result<Reply, StoreError>,
    millis: u64,
) -> Concluded {
    assert_eq!(tiers.begin(claim, at(millis)), Begun::AskShared);
    tiers.conclude(claim, reply, at(millis))
}

/// Number 1 runs here, as its third attempt.
fn running(map: &Map) -> Tiers<&Map> {
    let tiers = tiers(map);
    let concluded = asks(&tiers, &claim(1), Ok(Reply::Claimed { attempt: 3 }), 0);
    let wanted = Concluded { reply: Ok(Reply::Claimed { attempt: 3 }), wake: false };
    assert_eq!(concluded, wanted);
    tiers
}

/// The shared store has told of this record elsewhere, at 0.
fn told(map: &Map, record: Record) -> Tiers<&Map> {
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
fn a_duplicate_of_what_runs_here_costs_the_shared_store_nothing() {
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
    // Who asked has not come back in twice the time that it may take.
    assert_eq!(undecided(&tiers, &claim(3), 499), Some(at(500)));
    assert_eq!(known(&tiers, &claim(3), 500), None);
}

#[test]
fn who_asks_again_is_not_kept_waiting_by_itself() {
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
        assert_eq!(copy, finished(COPY_MILLIS, kept_there), "with the first's fingerprint");
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
    assert_eq!(known(&tiers, &claim(3), 1), None);
    // Should the shared store fail now, this is all that is known of what ran.
    tiers.conclude(&claim(2), Err(DOWN), at(2));
    let reply = tiers.alone(&claim(2), at(3)).unwrap().reply;
    assert!(matches!(reply, Reply::Exists(_)), "{reply:?}");
}

#[test]
fn an_answer_that_does_not_fit_is_not_kept_and_leaves_nothing_behind() {
    let map = Map::default();
    let there = finished(3_600_000, answer(100 << 10));
    let tiers = told(&map, there.clone());
    assert_eq!(known(&tiers, &claim(2), 1), None);
    assert!(undecided(&tiers, &claim(3), 1).is_some());
    let concluded = tiers.conclude(&claim(2), Ok(Reply::Exists(there.clone())), at(2));
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
    assert_eq!(known(&tiers, &claim_other, 3), Some(finished(COPY_MILLIS + 2, answer(11 << 10))));
    assert_eq!(known(&tiers, &claim(2), 3), None);
    // The shared store still has it, whatever was left of it here; and then it is here again.
    let there = finished(3_600_000, answer(10 << 10));
    let concluded = tiers.conclude(&claim(2), Ok(Reply::Exists(there.clone())), at(4));
    assert_eq!(concluded.reply, Ok(Reply::Exists(there)));
    assert!(known(&tiers, &claim(2), 5).is_some());
}

#[test]
fn who_does_not_wait_sees_a_claim_elsewhere_as_it_was_ten_milliseconds_ago() {
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let record = known(&tiers, &claim(2), 9).unwrap();
    assert_eq!((record.token, record.fingerprint), (token(9), SAME));
    assert_eq!(record.first_seen, at(0));
    assert_eq!(known(&tiers, &claim(2), 10), None);
}

#[test]
fn who_waits_for_a_claim_elsewhere_looks_again_the_later_the_longer_it_runs() {
    // Age of the claim when it was mirrored, and how long the mirror is good for.
    for (age, pause) in [(0, 100), (300, 100), (1_500, 500), (2_400, 800), (60_000, 1_000)] {
        let map = Map::default();
        let tiers = tiers(&map);
        let there = ongoing(age + 8_000);
        let concluded = asks(&tiers, &watching(1), Ok(Reply::Exists(there)), age);
        let Ok(Reply::Exists(told)) = concluded.reply else { panic!("no record") };
        let shortest = (age / 4).clamp(100, 1_000);
        assert_eq!(lease_until(&told), at(age + shortest), "when the first asker looks again");
        let before = known(&tiers, &watching(2), age + pause - 1);
        assert!(is_ongoing(before.as_ref()), "claim of age {age}");
        assert_eq!(known(&tiers, &watching(2), age + pause), None, "claim of age {age}");
    }
}

#[test]
fn who_waits_is_back_when_the_lease_elsewhere_is_over() {
    let map = Map::default();
    let tiers = tiers(&map);
    let concluded = asks(&tiers, &watching(1), Ok(Reply::Exists(ongoing(30))), 0);
    assert_eq!(concluded.reply, Ok(Reply::Exists(ongoing(30))));
}

#[test]
fn of_many_who_find_a_mirror_too_old_one_asks() {
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let asks = |claim: &Command, millis| undecided(&tiers, claim, millis).is_none();
    assert_eq!((2..50).filter(|number| asks(&claim(*number), 10)).count(), 1);
    // And of those who wait.
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let asks = |claim: &Command, millis| undecided(&tiers, claim, millis).is_none();
    assert_eq!((2..50).filter(|number| asks(&watching(*number), 150)).count(), 1);
}

#[test]
fn a_doubt_elsewhere_is_mirrored_too_and_never_longer_than_it_lasts() {
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
fn word_of_an_end_removes_what_is_not_of_this_envoy() {
    let map = Map::default();
    let mirror = told(&map, ongoing(8_000));
    mirror.ended(KEY, at(1));
    assert_eq!(known(&mirror, &watching(2), 1), None);
    // That was a question, whose reply may be older than the end.
    mirror.ended(KEY, at(2));
    assert_eq!(known(&mirror, &watching(3), 2), None);
    let map = Map::default();
    let doubt = told(&map, elsewhere(State::Unknown { until: at(30_000) }));
    doubt.ended(KEY, at(1));
    assert_eq!(known(&doubt, &claim(2), 1), None);
}

#[test]
fn word_of_an_end_removes_neither_a_claim_of_this_envoy_nor_a_copy() {
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
    let concluded = tiers.conclude(&claim(1), Ok(Reply::Exists(ongoing(8_000))), at(2));
    assert!(matches!(concluded.reply, Ok(Reply::Exists(_))), "{concluded:?}");
    assert_eq!(known(&tiers, &claim(2), 2), None);
    // Nor does a still later one take the place of the second's question.
    tiers.conclude(&claim(1), Ok(Reply::Exists(ongoing(8_000))), at(3));
    assert!(undecided(&tiers, &claim(3), 3).is_some());
}

#[test]
fn a_store_that_fails_frees_the_question_and_wakes_who_met_it() {
    let map = Map::default();
    let tiers = tiers(&map);
    assert_eq!(known(&tiers, &claim(1), 0), None);
    // Whether it would wait for a first or not.
    assert!(undecided(&tiers, &claim(2), 1).is_some());
    let concluded = tiers.conclude(&claim(1), Err(DOWN), at(2));
    assert_eq!(concluded, Concluded { reply: Err(DOWN), wake: true });
    assert_eq!(known(&tiers, &claim(2), 3), None);
}

#[test]
fn who_waits_for_a_question_is_woken_by_its_answer() {
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
            let concluded = tiers.conclude(&claim(1), Ok(reply.clone()), at(2));
            assert!(concluded.wake, "{reply:?}");
        }
    }
}

#[test]
fn who_waits_for_an_execution_is_woken_by_its_end_and_by_no_heartbeat() {
    let map = Map::default();
    let tiers = running(&map);
    assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
    let concluded = tiers.conclude(&extend(1), Ok(Reply::Done), at(2));
    assert!(!concluded.wake);
    let concluded = tiers.conclude(&complete(1, answer(10)), Ok(Reply::Done), at(3));
    assert!(concluded.wake);
}

#[test]
fn what_ran_here_is_replayed_here_for_ttl() {
    let map = Map::default();
    let tiers = running(&map);
    let concluded = tiers.conclude(&complete(1, answer(10)), Ok(Reply::Done), at(100));
    assert_eq!(concluded, Concluded { reply: Ok(Reply::Done), wake: false });
    let record = known(&tiers, &claim(2), 100 + COPY_MILLIS - 1).unwrap();
    assert_eq!((kept(&record), record.attempt), (&answer(10), 3));
    assert_eq!(record.fingerprint, SAME);
    assert_eq!(known(&tiers, &claim(2), 100 + COPY_MILLIS), None);
}

#[test]
fn what_ran_here_is_replayed_here_though_the_shared_store_was_not_told() {
    let map = Map::default();
    let tiers = running(&map);
    let concluded = tiers.conclude(&complete(1, answer(10)), Err(DOWN), at(100));
    assert_eq!(concluded.reply, Err(DOWN));
    assert_eq!(kept(&known(&tiers, &claim(2), 200).unwrap()), &answer(10));
    // It is told at the second try, which changes nothing here.
    tiers.conclude(&complete(1, answer(10)), Ok(Reply::Done), at(300));
    assert_eq!(kept(&known(&tiers, &claim(2), 400).unwrap()), &answer(10));
}

#[test]
fn a_heartbeat_counts_here_though_the_shared_store_fails() {
    for reply in [Ok(Reply::Done), Err(DOWN)] {
        let map = Map::default();
        let tiers = running(&map);
        tiers.conclude(&extend(1), reply, at(8_000));
        assert!(is_ongoing(known(&tiers, &claim(2), 17_999).as_ref()));
        assert_eq!(known(&tiers, &claim(2), 18_000), None);
    }
}

#[test]
fn who_has_lost_the_claim_there_has_lost_it_here() {
    for command in [extend(1), complete(1, answer(10)), release(1), mark_unknown(1)] {
        let map = Map::default();
        let tiers = running(&map);
        assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
        let concluded = tiers.conclude(&command, Ok(Reply::NotOwner), at(2));
        assert_eq!(concluded.reply, Ok(Reply::NotOwner), "{command:?}");
        assert!(concluded.wake, "{command:?}");
        assert_eq!(known(&tiers, &claim(3), 3), None, "{command:?}");
    }
}

#[test]
fn a_key_that_is_free_or_in_doubt_there_is_not_ongoing_here() {
    for (command, reply) in
        [(release(1), Ok(Reply::Done)), (release(1), Err(DOWN)), (mark_unknown(1), Ok(Reply::Done))]
    {
        let map = Map::default();
        let tiers = running(&map);
        assert!(is_ongoing(known(&tiers, &watching(2), 1).as_ref()));
        let concluded = tiers.conclude(&command, reply, at(2));
        assert!(concluded.wake, "{command:?}");
        assert_eq!(known(&tiers, &claim(3), 3), None, "{command:?}");
    }
}

#[test]
fn a_doubt_that_the_shared_store_was_not_told_of_is_ongoing_until_the_lease_is_over() {
    let map = Map::default();
    let tiers = running(&map);
    let concluded = tiers.conclude(&mark_unknown(1), Err(DOWN), at(1));
    assert_eq!(concluded, Concluded { reply: Err(DOWN), wake: false });
    assert!(is_ongoing(known(&tiers, &claim(2), 9_999).as_ref()));
    assert_eq!(known(&tiers, &claim(2), 10_000), None);
}

#[test]
fn alone_the_table_grants_claims_and_keeps_what_it_is_told_for_the_whole_ttl() {
    let map = Map::default();
    let tiers = tiers(&map);
    let alone = |command: Command, millis| tiers.alone(&command, at(millis)).unwrap().reply;
    assert_eq!(alone(claim(1), 0), Reply::Claimed { attempt: 1 });
    assert!(matches!(alone(claim(2), 1), Reply::Exists(_)));
    assert!(is_ongoing(known(&tiers, &claim(2), 1).as_ref()), "the shared store is back");
    assert_eq!(alone(complete(1, answer(10)), 2), Reply::Done);
    let record = known(&tiers, &claim(2), 3_000_000).unwrap();
    assert_eq!(kept(&record), &answer(10));
    assert_eq!(known(&tiers, &claim(2), 3_600_002), None);
}

#[test]
fn what_was_decided_alone_is_the_truth_here_when_the_shared_store_is_back() {
    let map = Map::default();
    let tiers = tiers(&map);
    let alone = |command: Command, millis| tiers.alone(&command, at(millis)).unwrap().reply;
    assert_eq!(alone(claim(1), 0), Reply::Claimed { attempt: 1 });
    assert_eq!(alone(mark_unknown(1), 1), Reply::Done);
    let Reply::Exists(record) = alone(claim(2), 2) else { panic!("it is in doubt") };
    assert_eq!(record.state, State::Unknown { until: at(60_001) });
    // The shared store knows nothing of it, and would let it run again.
    let record = known(&tiers, &claim(2), 2).unwrap();
    assert_eq!(record.state, State::Unknown { until: at(60_001) });
    assert_eq!(alone(claim(3), 60_001), Reply::Claimed { attempt: 2 });
    // More than fits: a tombstone, and no reason to ask who does not know.
    assert_eq!(alone(complete(3, answer(100 << 10)), 60_002), Reply::Done);
    let record = known(&tiers, &claim(4), 60_003).unwrap();
    assert!(matches!(record.state, State::Finished { kept: Kept::Nothing, .. }), "{record:?}");
}

#[test]
fn a_request_that_differs_is_not_what_others_are_compared_with_while_it_asks() {
    let map = Map::default();
    let tiers = tiers(&map);
    let Command::Claim { key, token, lease, unknown_for, watch, .. } = claim(1) else { panic!() };
    let fingerprint = Fingerprint([7; 32]);
    let differs = Command::Claim { key, token, fingerprint, lease, unknown_for, watch };
    assert_eq!(known(&tiers, &differs, 0), None);
    // One of the two is the first, and the shared store alone knows which.
    assert!(undecided(&tiers, &claim(2), 0).is_some());
    tiers.conclude(&differs, Ok(Reply::Exists(ongoing(8_000))), at(1));
    assert_eq!(known(&tiers, &claim(3), 2).unwrap().fingerprint, SAME);
}

#[test]
fn alone_a_claim_elsewhere_that_was_just_seen_is_not_granted() {
    let map = Map::default();
    let tiers = told(&map, ongoing(8_000));
    let reply = tiers.alone(&claim(2), at(500)).unwrap().reply;
    assert!(matches!(reply, Reply::Exists(_)), "{reply:?}");
}

#[test]
fn a_table_that_cannot_be_written_refuses_nobody() {
    let map = Map::default();
    let tiers = tiers(&map);
    map.broken.set(true);
    let concluded = asks(&tiers, &claim(1), Ok(Reply::Claimed { attempt: 1 }), 0);
    assert_eq!(concluded.reply, Ok(Reply::Claimed { attempt: 1 }));
    let there = Ok(Reply::Exists(finished(3_600_000, answer(10))));
    assert_eq!(asks(&tiers, &claim(2), there.clone(), 1).reply, there);
    assert_eq!(
        tiers.conclude(&complete(1, answer(10)), Ok(Reply::Done), at(2)).reply,
        Ok(Reply::Done)
    );
    tiers.ended(KEY, at(3));
}
