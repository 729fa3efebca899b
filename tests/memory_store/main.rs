//! The table in shared data: the contract of every store, and its own tests.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

use envoy_idempotency::key::{Fingerprint, Key};
use envoy_idempotency::record::{Answer, Kept, State, Token};
use envoy_idempotency::store::shared_data::{
    Capacity, INSERT, MemoryStore, OpenError, SharedData, SharedDataError, Tally,
};
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::time::{Timestamp, WallTime};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use testkit::map::Map;
use testkit::store_contract as contract;

const CAPACITY: Capacity =
    Capacity { entries: 256, budget_bytes: 1 << 20, largest_answer: 64 << 10 };
const NOW: Timestamp = Timestamp::from_millis(1_000_000);
const LEASE: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(3600);

struct Timed {
    store: MemoryStore<Map>,
    now: Cell<Timestamp>,
}

impl contract::Store for Timed {
    fn execute(&self, command: Command) -> Result<Reply, StoreError> {
        self.store.execute(&command, self.now.get()).map(|executed| executed.reply)
    }

    fn advance(&self, time: Duration) {
        self.now.set(self.now.get().after(time));
    }
}

#[test]
fn the_table_keeps_the_contract_of_every_store() {
    contract::run(|| Timed {
        store: MemoryStore::open(Map::default(), "test", CAPACITY).unwrap(),
        now: Cell::new(NOW),
    });
}

fn key(number: u64) -> Key {
    // Spread over buckets as a digest would.
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    Key(bytes)
}

fn token(number: u64) -> Token {
    let mut bytes = [7; 16];
    bytes[..8].copy_from_slice(&number.to_be_bytes());
    Token(bytes)
}

fn claim(number: u64, owner: u64, watch: bool) -> Command {
    Command::Claim {
        key: key(number),
        token: token(owner),
        fingerprint: Fingerprint([0; 32]),
        first_seen: WallTime::default(),
        lease: LEASE,
        unknown_for: LEASE,
        watch,
    }
}

fn complete(number: u64, owner: u64, body: Vec<u8>) -> Command {
    let kept = Kept::Answer(Answer { headers: Vec::new(), body });
    Command::Complete { key: key(number), token: token(owner), status: 200, kept, ttl: TTL }
}

/// Another worker, and its action.
type Meddler = Box<dyn FnOnce()>;

/// Shared data that lets another worker act at one of its calls, and counts its bytes.
#[derive(Clone, Default)]
struct Meddled {
    map: Rc<Map>,
    calls: Rc<Cell<usize>>,
    at: Rc<Cell<Option<usize>>>,
    meddler: Rc<RefCell<Option<Meddler>>>,
}

impl Meddled {
    fn call(&self) {
        let call = self.calls.get();
        self.calls.set(call + 1);
        if self.at.get() == Some(call)
            && let Some(meddler) = self.meddler.take()
        {
            meddler();
        }
    }
}

impl SharedData for Meddled {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        self.call();
        self.map.load(key)
    }

    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError> {
        self.call();
        self.map.store(key, value, cas)
    }
}

/// Runs `first` with all of `second` between any two of its calls to shared data, for each such point,
/// and passes both replies and the store to `check`.
fn interleaved(
    prepare: &[(Command, Timestamp)],
    first: &(Command, Timestamp),
    second: &(Command, Timestamp),
    check: impl Fn(&MemoryStore<Meddled>, Reply, bool, Reply, bool),
) {
    for at in 0.. {
        let shared = Meddled::default();
        let store = MemoryStore::open(shared.clone(), "test", CAPACITY).unwrap();
        for (command, now) in prepare {
            store.execute(command, *now).unwrap();
        }
        let result = Rc::new(RefCell::new(None));
        let other = MemoryStore::open(shared.clone(), "test", CAPACITY).unwrap();
        let (kept, (command, now)) = (result.clone(), second.clone());
        *shared.meddler.borrow_mut() = Some(Box::new(move || {
            *kept.borrow_mut() = Some(other.execute(&command, now).unwrap());
        }));
        shared.calls.set(0);
        shared.at.set(Some(at));
        let executed = store.execute(&first.0, first.1).unwrap();
        let Some(meddled) = result.borrow_mut().take() else {
            // Every point was tried: the first makes no more calls.
            assert!(at > 1, "the first command calls nothing");
            return;
        };
        shared.at.set(None);
        check(&store, executed.reply, executed.wake, meddled.reply, meddled.wake);
    }
}

#[test]
fn of_two_claims_that_meet_anywhere_one_is_granted() {
    interleaved(&[], &(claim(1, 1, false), NOW), &(claim(1, 2, false), NOW), |_, a, _, b, _| {
        let granted = |reply: &Reply| matches!(reply, Reply::Claimed { .. });
        assert!(granted(&a) != granted(&b), "{a:?} {b:?}");
    });
}

#[test]
fn a_watcher_is_seen_or_sees_the_end_wherever_it_comes() {
    let prepare = [(claim(1, 1, false), NOW)];
    let end = (complete(1, 1, b"body".to_vec()), NOW);
    let watch = (claim(1, 2, true), NOW);
    let check = |watched: &Reply, wake: bool| match watched {
        Reply::Exists(record) => {
            let ongoing = matches!(record.state, State::Ongoing { .. });
            assert!(!ongoing || wake, "no end will wake the waiter");
        }
        other => panic!("{other:?}"),
    };
    interleaved(&prepare, &end, &watch, |_, _, wake, watched, _| check(&watched, wake));
    // The other way round the waiter keeps the record that it saw last.
    interleaved(&prepare, &watch, &end, |_, watched, _, _, wake| check(&watched, wake));
}

#[test]
fn an_owner_that_comes_too_late_spoils_no_answer_wherever_it_comes() {
    let late = NOW.after(LEASE * 3);
    let prepare = [(claim(1, 1, false), NOW), (claim(1, 2, false), late)];
    let successor = (complete(1, 2, b"successor".to_vec()), late);
    let owner = (complete(1, 1, b"late".to_vec()), late);
    let check = |store: &MemoryStore<Meddled>| match store
        .execute(&claim(1, 3, false), late)
        .unwrap()
        .reply
    {
        Reply::Exists(record) => match record.state {
            State::Finished { kept: Kept::Answer(answer), .. } => {
                assert_eq!(answer.body, b"successor");
            }
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    };
    interleaved(&prepare, &successor, &owner, |store, _, _, _, _| check(store));
    interleaved(&prepare, &owner, &successor, |store, _, _, _, _| check(store));
}

#[test]
fn a_takeover_in_the_middle_of_a_late_end_leaves_one_owner() {
    let late = NOW.after(LEASE * 3);
    let prepare = [(claim(1, 1, false), NOW)];
    let owner = (complete(1, 1, b"late".to_vec()), late);
    let successor = (claim(1, 2, false), late);
    interleaved(&prepare, &owner, &successor, |store, ended, _, taken, _| {
        let took_over = matches!(taken, Reply::Claimed { .. });
        // The end came first and the claim found the answer, or the claim came first and the end is void.
        assert_eq!(took_over, ended == Reply::NotOwner, "{ended:?} {taken:?}");
        let now = store.execute(&complete(1, 2, b"successor".to_vec()), late).unwrap().reply;
        assert_eq!(took_over, now == Reply::Done);
    });
}

#[test]
fn a_flood_takes_no_more_than_its_budget_and_no_claim() {
    let capacity = Capacity { entries: 4_096, budget_bytes: 4 << 20, largest_answer: 16 << 10 };
    let map = Rc::new(Map::default());
    let shared = Meddled { map: map.clone(), ..Meddled::default() };
    let store = MemoryStore::open(shared, "test", capacity).unwrap();
    store.execute(&claim(u64::MAX, 1, false), NOW).unwrap();
    let mut most = 0;
    for number in 0..100_000 {
        let executed = store.execute(&claim(number, number, false), NOW).unwrap();
        assert_eq!(executed.reply, Reply::Claimed { attempt: 1 });
        let body = vec![number as u8; (number % 5_000) as usize];
        store.execute(&complete(number, number, body), NOW).unwrap();
        if number % 1_000 == 0 {
            most = most.max(map.bytes());
        }
    }
    assert!(most <= 4 << 20, "{most}");
    for number in 99_900..100_000 {
        match store.execute(&claim(number, 1, false), NOW).unwrap().reply {
            Reply::Exists(record) => match record.state {
                State::Finished { kept: Kept::Answer(answer), .. } => {
                    assert_eq!(answer.body, vec![number as u8; (number % 5_000) as usize]);
                }
                other => panic!("{number}: {other:?}"),
            },
            other => panic!("{number}: {other:?}"),
        }
    }
    let claim = store.execute(&claim(u64::MAX, 2, false), NOW).unwrap().reply;
    assert!(
        matches!(claim, Reply::Exists(record) if matches!(record.state, State::Ongoing { .. }))
    );
}

/// One bucket, so that everything meets, with room for few answers of a kilobyte.
const CROWDED: Capacity =
    Capacity { entries: 64, budget_bytes: 24 << 10, largest_answer: 64 << 10 };

fn kept(store: &MemoryStore<Map>, number: u64) -> Kept {
    match store.execute(&claim(number, 999, false), NOW).unwrap().reply {
        Reply::Exists(record) => match record.state {
            State::Finished { kept, .. } => kept,
            other => panic!("{number} has not finished: {other:?}"),
        },
        other => panic!("{number} would run again: {other:?}"),
    }
}

#[test]
fn a_new_answer_takes_the_bytes_of_old_ones_and_leaves_their_records() {
    let store = MemoryStore::open(Map::default(), "test", CROWDED).unwrap();
    for number in 0..60 {
        store.execute(&claim(number, number, false), NOW).unwrap();
        let end = if number == 0 {
            let (key, token, kept) = (key(number), token(number), Kept::StatusOnly);
            Command::Complete { key, token, status: 500, kept, ttl: TTL }
        } else {
            complete(number, number, vec![number as u8; 1_000])
        };
        store.execute(&end, NOW).unwrap();
    }
    let evicted = store.take_tally().evicted;
    assert_eq!(kept(&store, 0), Kept::StatusOnly);
    let lost = (1..60).filter(|number| kept(&store, *number) == Kept::Nothing).count();
    assert!(lost > 0 && lost < 59, "{lost}");
    assert_eq!(lost, evicted as usize);
    // The oldest went, the newest stayed whole.
    assert_eq!(kept(&store, 1), Kept::Nothing);
    let newest = Answer { headers: Vec::new(), body: vec![59; 1_000] };
    assert_eq!(kept(&store, 59), Kept::Answer(newest));
}

#[test]
fn a_key_with_unknown_outcome_survives_a_flood() {
    let store = MemoryStore::open(Map::default(), "test", CROWDED).unwrap();
    store.execute(&claim(1_000, 1, false), NOW).unwrap();
    let unknown = Command::MarkUnknown { key: key(1_000), token: token(1), unknown_for: LEASE };
    store.execute(&unknown, NOW).unwrap();
    for number in 0..500 {
        store.execute(&claim(number, number, false), NOW).unwrap();
        store.execute(&complete(number, number, vec![1; 100]), NOW).unwrap();
    }
    match store.execute(&claim(1_000, 2, false), NOW).unwrap().reply {
        Reply::Exists(record) => assert!(matches!(record.state, State::Unknown { .. })),
        other => panic!("{other:?}"),
    }
}

/// A host that overwrites a value without a check of its version.
#[derive(Debug, Default)]
struct Overwrites(Map);

impl SharedData for Overwrites {
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>) {
        self.0.load(key)
    }

    fn store(&self, key: &str, value: &[u8], _: u32) -> Result<(), SharedDataError> {
        let (_, version) = self.0.load(key);
        self.0.store(key, value, version.unwrap_or(INSERT))
    }
}

#[test]
fn a_host_that_cannot_compare_and_swap_is_refused() {
    let error = MemoryStore::open(Overwrites::default(), "test", CAPACITY).unwrap_err();
    assert_eq!(error, OpenError::NotAtomic);
}

#[test]
fn an_answer_that_fits_nowhere_is_a_tombstone() {
    let store = MemoryStore::open(Map::default(), "test", CAPACITY).unwrap();
    store.execute(&claim(1, 1, false), NOW).unwrap();
    let end = store.execute(&complete(1, 1, vec![0; 2 << 20]), NOW).unwrap();
    assert_eq!(end.reply, Reply::Done);
    match store.execute(&claim(1, 2, false), NOW).unwrap().reply {
        Reply::Exists(record) => {
            assert!(matches!(
                record.state,
                State::Finished { status: 200, kept: Kept::Nothing, .. }
            ));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_table_full_of_claims_refuses_and_drops_none() {
    let capacity = Capacity { entries: 64, budget_bytes: 1 << 20, largest_answer: 1 << 10 };
    let store = MemoryStore::open(Map::default(), "test", capacity).unwrap();
    let granted: Vec<u64> = (0..200)
        .filter(|number| match store.execute(&claim(*number, *number, false), NOW) {
            Ok(executed) => executed.reply == Reply::Claimed { attempt: 1 },
            Err(error) => {
                assert_eq!(error, StoreError::Full);
                false
            }
        })
        .collect();
    assert!(!granted.is_empty() && granted.len() <= 64, "{}", granted.len());
    for number in granted {
        let end = store.execute(&complete(number, number, Vec::new()), NOW).unwrap();
        assert_eq!(end.reply, Reply::Done, "{number}");
    }
}

#[test]
fn an_unreadable_record_is_an_error_and_never_a_miss() {
    let map = Rc::new(Map::default());
    let shared = Meddled { map: map.clone(), ..Meddled::default() };
    let store = MemoryStore::open(shared, "test", CAPACITY).unwrap();
    store.execute(&claim(1, 1, false), NOW).unwrap();
    map.spoil();
    let error = store.execute(&claim(1, 2, false), NOW).unwrap_err();
    assert!(matches!(error, StoreError::Unreadable(_)), "{error}");
}

#[test]
fn a_second_opening_finds_the_records_of_the_first() {
    let shared = Meddled::default();
    let first = MemoryStore::open(shared.clone(), "test", CAPACITY).unwrap();
    first.execute(&claim(1, 1, false), NOW).unwrap();
    let second = MemoryStore::open(shared.clone(), "test", CAPACITY).unwrap();
    let reply = second.execute(&claim(1, 2, false), NOW).unwrap().reply;
    assert!(matches!(reply, Reply::Exists(_)), "{reply:?}");
    let other_plugin = MemoryStore::open(shared, "other", CAPACITY).unwrap();
    let reply = other_plugin.execute(&claim(1, 2, false), NOW).unwrap().reply;
    assert_eq!(reply, Reply::Claimed { attempt: 1 });
}

/// The content of shared data, counted from the outside: records and bytes, buckets and answers.
fn stands(map: &Map, entry_bytes: usize) -> (i64, i64) {
    let (mut entries, mut bytes) = (0, 0);
    for (name, value) in map.values() {
        let parts: Vec<_> = name.split('/').skip(4).collect();
        if parts.iter().any(|part| part.parse::<u32>().is_err()) {
            // The probe.
            continue;
        }
        bytes += i64::try_from(value.len()).unwrap();
        if parts.len() == 1 {
            let places = value.chunks_exact(entry_bytes);
            entries += places.filter(|place| place.iter().any(|byte| *byte != 0)).count();
        }
    }
    (i64::try_from(entries).unwrap(), bytes)
}

/// Adds up the changes that workers report, and checks them against the table.
struct Ledger {
    shared: Meddled,
    entry_bytes: usize,
    total: Tally,
}

impl Ledger {
    fn check(&mut self, workers: &[MemoryStore<Meddled>]) {
        for worker in workers {
            self.total += worker.take_tally();
        }
        let told = (self.total.entries, self.total.bytes);
        assert_eq!(told, stands(&self.shared.map, self.entry_bytes));
    }
}

/// Two workers of one Envoy, and their ledger.
fn workers(capacity: Capacity) -> ([MemoryStore<Meddled>; 2], Ledger) {
    let shared = Meddled::default();
    let open = || MemoryStore::open(shared.clone(), "test", capacity).unwrap();
    let workers = [open(), open()];
    workers[0].execute(&claim(u64::MAX, 1, false), NOW).unwrap();
    let tally = workers[0].take_tally();
    assert_eq!((tally.entries, tally.evicted), (1, 0));
    // One record is all there is: its bytes are those of an entry.
    let entry_bytes = usize::try_from(tally.bytes).unwrap();
    (workers, Ledger { shared, entry_bytes, total: tally })
}

#[test]
fn the_changes_that_workers_report_add_up_to_the_table() {
    let (workers, mut ledger) = workers(CROWDED);
    let other = |number: u64| &workers[usize::try_from(number % 2).unwrap()];
    // Claims of one worker ended by the other, records that are over, and more than there is room for.
    for number in 0..300 {
        let now = NOW.after(TTL * u32::try_from(number / 100).unwrap());
        other(number).execute(&claim(number, number, number % 3 == 0), now).unwrap();
        let (key, token) = (key(number), token(number));
        let end = match number % 5 {
            0 => Command::Release { key, token },
            1 => Command::MarkUnknown { key, token, unknown_for: LEASE },
            2 => Command::Complete { key, token, status: 500, kept: Kept::StatusOnly, ttl: LEASE },
            3 => complete(number, number, vec![1; 2 << 20]),
            _ => complete(number, number, vec![1; 100 * (number % 30) as usize]),
        };
        other(number + 1).execute(&end, now).unwrap();
        // A release that comes twice, and a takeover of a claim with an unknown outcome.
        other(number).execute(&end, now).unwrap();
        other(number).execute(&claim(number, 1_000 + number, true), now.after(LEASE * 2)).unwrap();
        ledger.check(&workers);
    }
    assert!(ledger.total.evicted > 0 && ledger.total.entries > 0, "{:?}", ledger.total);
}

#[test]
fn a_command_that_changes_nothing_reports_no_change() {
    let (workers, mut ledger) = workers(CAPACITY);
    let store = &workers[0];
    store.execute(&claim(1, 1, false), NOW).unwrap();
    store.execute(&complete(1, 1, vec![1; 1_000]), NOW).unwrap();
    ledger.check(&workers);
    for command in [claim(1, 2, false), claim(1, 3, true), complete(1, 9, vec![2; 500])] {
        store.execute(&command, NOW).unwrap();
        assert_eq!(store.take_tally(), Tally::default());
    }
    ledger.check(&workers);
}

#[test]
fn a_change_that_two_workers_undo_is_reported_by_neither() {
    let late = NOW.after(LEASE * 3);
    let prepare = [(claim(1, 1, false), NOW), (claim(1, 2, false), late)];
    let pairs = [
        ((complete(1, 2, vec![1; 300]), late), (complete(1, 1, vec![2; 70]), late)),
        ((claim(2, 1, true), late), (claim(2, 2, false), late)),
        (
            (complete(1, 2, vec![1; 300]), late),
            (Command::Release { key: key(1), token: token(2) }, late),
        ),
    ];
    for (first, second) in &pairs {
        for at in 0..40 {
            let (workers, mut ledger) = workers(CROWDED);
            for (command, now) in &prepare {
                workers[0].execute(command, *now).unwrap();
            }
            let [store, other] = workers;
            ledger.total += store.take_tally();
            let told = Rc::new(Cell::new(Tally::default()));
            let (meddling, command, now) = (told.clone(), second.0.clone(), second.1);
            // The other worker acts at some call of the first's to shared data.
            let meddler: Meddler = Box::new(move || {
                other.execute(&command, now).unwrap();
                meddling.set(other.take_tally());
            });
            *ledger.shared.meddler.borrow_mut() = Some(meddler);
            ledger.shared.calls.set(0);
            ledger.shared.at.set(Some(at));
            store.execute(&first.0, first.1).unwrap();
            ledger.total += store.take_tally();
            ledger.total += told.get();
            let stands = stands(&ledger.shared.map, ledger.entry_bytes);
            assert_eq!((ledger.total.entries, ledger.total.bytes), stands, "{at}");
        }
    }
}
