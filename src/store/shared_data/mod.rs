//! Records in Envoy's shared data: a fixed set-associative table, changed by compare-and-swap alone.

mod bucket;
mod geometry;

pub use geometry::{Capacity, TooManyEntries};

use super::life::{self, Change, Verdict};
use super::{Command, Reply, StoreError};
use crate::key::Key;
use crate::record::codec::{append_answer, decode_answer};
use crate::record::{Answer, Head, Kept, State, Token};
use crate::time::Timestamp;
use bucket::{Bucket, Dropped, Entry};
use geometry::Geometry;
use std::cell::Cell;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

/// Envoy's shared data: one map of the process, whose values have versions.
pub trait SharedData {
    /// A value and its version. An empty value is `(None, Some(version))`, an absent one `(None, None)`.
    fn load(&self, key: &str) -> (Option<Vec<u8>>, Option<u32>);

    /// Writes the value if its version still is `cas`; [`INSERT`] if there is none.
    ///
    /// # Errors
    ///
    /// [`SharedDataError`]; the value has not changed then.
    fn store(&self, key: &str, value: &[u8], cas: u32) -> Result<(), SharedDataError>;
}

/// Why a value was not written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedDataError {
    /// Somebody else wrote it since it was read.
    CasMismatch,
    /// The host failed.
    Failed,
}

/// The version that no value has: written with it, a key is inserted if it is absent. The ABI does not
/// promise that, so [`MemoryStore::open`] proves it once.
pub const INSERT: u32 = u32::MAX;

/// Tries of one command before it is given up as contended. Each lost try means that another command
/// on the same bucket got through; with a worker a core, that many in a row do not happen.
const TRIES: usize = 64;

/// The embedded store: the records of one Envoy process, shared by its workers.
#[derive(Debug)]
pub struct MemoryStore<S> {
    shared: S,
    prefix: String,
    geometry: Geometry,
    tally: Cell<Tally>,
}

/// What commands have changed in the table, for metrics. Each change is counted by whoever made it, when
/// it is in force: the sum over all workers is what stands in the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records more, or less. One that is over counts until its place is taken.
    pub entries: i64,
    /// Bytes of buckets and answers more, or less.
    pub bytes: i64,
    /// Records dropped before their time, or their answers: those records are tombstones now.
    pub evicted: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.evicted += other.evicted;
    }
}

/// What a command came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Executed {
    /// The store's word.
    pub reply: Reply,
    /// The command ended a claim that somebody watches, or another has taken its place.
    pub wake: bool,
}

/// Why the table could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// The capacity contradicts itself.
    Capacity(TooManyEntries),
    /// This host's shared data has no atomic insertion, or no compare-and-swap.
    NotAtomic,
    /// The host would not write.
    Failed,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Capacity(error) => error.fmt(f),
            Self::NotAtomic => f.write_str("this host's shared data cannot compare and swap"),
            Self::Failed => f.write_str("this host's shared data cannot be written"),
        }
    }
}

impl std::error::Error for OpenError {}

/// A key's bucket as it was read, and the key's entry in it.
struct Opened {
    number: u32,
    bucket: Bucket,
    cas: u32,
    found: Option<(usize, Entry)>,
}

/// One try of a command.
enum Try<T> {
    Executed(T),
    Again,
}

impl<S: SharedData> MemoryStore<S> {
    /// Opens the table of this plugin, and makes it if it is new.
    ///
    /// Its keys name the product, the version of its format, the plugin and its shape, and not the
    /// configuration: rules may change and the records stay.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: nothing can be kept, and the filter must not start.
    pub fn open(shared: S, plugin: &str, capacity: Capacity) -> Result<Self, OpenError> {
        let geometry = Geometry::of(capacity).map_err(OpenError::Capacity)?;
        let Geometry { buckets, ways, answer_bytes } = geometry;
        let prefix = format!("envoy-idempotency/1/{plugin}/{buckets}x{ways}x{answer_bytes}");
        let store = Self { shared, prefix, geometry, tally: Cell::default() };
        store.prove_atomicity()?;
        for bucket in 0..buckets {
            store.create(&store.bucket_name(bucket))?;
            for place in 0..ways {
                store.create(&store.slot_name(bucket, place))?;
            }
        }
        Ok(store)
    }

    /// What all keys of this store begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What has changed since this was asked last.
    pub fn take_tally(&self) -> Tally {
        self.tally.take()
    }

    /// Carries out a command.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn execute(&self, command: &Command, now: Timestamp) -> Result<Executed, StoreError> {
        self.execute_for(command, Duration::MAX, now)
    }

    /// Carries out a command, and keeps what is finished no longer than `longest`.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn execute_for(
        &self,
        command: &Command,
        longest: Duration,
        now: Timestamp,
    ) -> Result<Executed, StoreError> {
        let key = command.key();
        let judge = |head: Option<&Head>| match life::apply(head, command, now) {
            Verdict::Done(Change::Put(head)) => {
                Verdict::Done(Change::Put(shorten(head, now.after(longest))))
            }
            verdict @ (Verdict::Done(Change::Keep | Change::Remove)
            | Verdict::Claimed { .. }
            | Verdict::Exists(_)
            | Verdict::NotOwner) => verdict,
        };
        match command {
            Command::Complete { token, kept: Kept::Answer(answer), .. } => {
                match self.put(key, &slot(*token, answer), *token, &judge, now)? {
                    Some(executed) => Ok(executed),
                    // More than can be kept here: it ran, and that is what is kept.
                    None => self.execute_for(&tombstone(command), longest, now),
                }
            }
            Command::Claim { watch, .. } => self.look(key, &judge, *watch, now),
            Command::Extend { .. }
            | Command::Complete { kept: Kept::StatusOnly | Kept::Nothing, .. }
            | Command::Release { .. }
            | Command::MarkUnknown { .. } => self.change(key, &judge, now),
        }
    }

    fn create(&self, key: &str) -> Result<(), OpenError> {
        match self.shared.store(key, &[], INSERT) {
            // It was there: another VM was faster, or the configuration is a new one.
            Ok(()) | Err(SharedDataError::CasMismatch) => Ok(()),
            Err(SharedDataError::Failed) => Err(OpenError::Failed),
        }
    }

    fn prove_atomicity(&self) -> Result<(), OpenError> {
        let probe = format!("{}/probe", self.prefix);
        self.create(&probe)?;
        let twice = self.shared.store(&probe, b"1", INSERT);
        let (_, Some(cas)) = self.shared.load(&probe) else { return Err(OpenError::NotAtomic) };
        // Other VMs prove the same at this moment, so the first write may lose; a stale one must.
        let _ = self.shared.store(&probe, b"2", cas);
        let stale = self.shared.store(&probe, b"3", cas);
        match (twice, stale) {
            (Err(SharedDataError::CasMismatch), Err(SharedDataError::CasMismatch)) => Ok(()),
            (Ok(()) | Err(SharedDataError::CasMismatch | SharedDataError::Failed), _) => {
                Err(OpenError::NotAtomic)
            }
        }
    }

    fn bucket_of(&self, key: Key) -> u32 {
        let [a, b, c, d, ..] = key.0;
        // The key is a digest: any bits of it are as good as others.
        u32::from_be_bytes([a, b, c, d]) & (self.geometry.buckets - 1)
    }

    fn bucket_name(&self, bucket: u32) -> String {
        format!("{}/{bucket}", self.prefix)
    }

    fn slot_name(&self, bucket: u32, place: usize) -> String {
        format!("{}/{bucket}/{place}", self.prefix)
    }

    fn read(&self, number: u32, key: Key) -> Result<Opened, StoreError> {
        let (bytes, Some(cas)) = self.shared.load(&self.bucket_name(number)) else {
            return Err(StoreError::Unavailable("the table is gone from shared data"));
        };
        let bucket = Bucket::read(bytes.unwrap_or_default())?;
        let found = bucket.find(key)?;
        Ok(Opened { number, bucket, cas, found })
    }

    fn swap(&self, opened: &Opened) -> Result<bool, StoreError> {
        let name = self.bucket_name(opened.number);
        match self.shared.store(&name, opened.bucket.bytes(), opened.cas) {
            Ok(()) => Ok(true),
            Err(SharedDataError::CasMismatch) => Ok(false),
            Err(SharedDataError::Failed) => {
                Err(StoreError::Unavailable("shared data could not be written"))
            }
        }
    }

    /// Puts `record`, and the answer it keeps, in the place of one that it may stand for; `None` if there is
    /// none of that kind, or the record does not fit.
    ///
    /// It is how a copy of what another store keeps comes here, so nothing is left in its place that
    /// would not be true: no tombstone for an answer that is too large.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn replace(
        &self,
        key: Key,
        instead_of: &dyn Fn(&Head) -> bool,
        record: &Head,
        answer: Option<&Answer>,
        now: Timestamp,
    ) -> Result<Option<Executed>, StoreError> {
        let ours = |head: Option<&Head>| match head {
            Some(head) if instead_of(head) => Verdict::Done(Change::Put(record.clone())),
            Some(_) | None => Verdict::NotOwner,
        };
        let executed = match answer {
            Some(answer) => self.put(key, &slot(record.token, answer), record.token, &ours, now)?,
            None => Some(self.change(key, &ours, now)?),
        };
        Ok(executed.filter(|executed| executed.reply == Reply::Done))
    }

    /// Looks at the record under `key` as `judge` says; `watch` leaves word, as a claim's does.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn look(
        &self,
        key: Key,
        judge: &dyn Fn(Option<&Head>) -> Verdict,
        watch: bool,
        now: Timestamp,
    ) -> Result<Executed, StoreError> {
        self.until_done(|| self.transition(key, judge, watch, now))
    }

    /// Changes the record under `key` as `judge` says, which may be asked more than once.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn change(
        &self,
        key: Key,
        judge: &dyn Fn(Option<&Head>) -> Verdict,
        now: Timestamp,
    ) -> Result<Executed, StoreError> {
        self.look(key, judge, false, now)
    }

    fn until_done<T>(
        &self,
        mut attempt: impl FnMut() -> Result<Try<T>, StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            match attempt()? {
                Try::Executed(executed) => return Ok(executed),
                Try::Again => {}
            }
        }
        Err(StoreError::Contended)
    }

    /// Every transition but the one that brings an answer along.
    fn transition(
        &self,
        key: Key,
        judge: &dyn Fn(Option<&Head>) -> Verdict,
        watch: bool,
        now: Timestamp,
    ) -> Result<Try<Executed>, StoreError> {
        let mut opened = self.read(self.bucket_of(key), key)?;
        let head = opened.found.as_ref().map(|(_, entry)| &entry.head);
        match judge(head) {
            Verdict::NotOwner => Ok(done(Reply::NotOwner, false)),
            Verdict::Exists(head) => self.exists(opened, &head, watch),
            Verdict::Claimed { attempt, change } => {
                self.put_head(opened, key, change, now, Reply::Claimed { attempt })
            }
            Verdict::Done(Change::Remove) => {
                let Some((place, entry)) = opened.found.take() else {
                    return Ok(done(Reply::Done, false));
                };
                // It goes because it is to go.
                let removed = opened.bucket.drop_entry(place, now);
                let removed = removed.map(|removed| Dropped { evicted: false, ..removed });
                self.finish(&opened, removed.as_slice(), Reply::Done, entry.watched)
            }
            Verdict::Done(change) => self.put_head(opened, key, change, now, Reply::Done),
        }
    }

    fn put_head(
        &self,
        mut opened: Opened,
        key: Key,
        change: Change,
        now: Timestamp,
        reply: Reply,
    ) -> Result<Try<Executed>, StoreError> {
        let head = match change {
            Change::Put(head) => head,
            Change::Keep | Change::Remove => return Ok(done(reply, false)),
        };
        let used = opened.bucket.next_use();
        let before = opened.found.as_ref().map(|(_, entry)| (entry.head.token, entry.head.attempt));
        let (place, dropped, watched) = match opened.found.take() {
            Some((place, entry)) => {
                // A record that was over may leave an answer behind.
                let stale = (entry.answer_bytes > 0).then_some(Dropped {
                    place,
                    token: entry.head.token,
                    evicted: false,
                });
                (place, stale, entry.watched)
            }
            None => match opened.bucket.make_room(self.geometry.ways, now) {
                Some((place, dropped)) => (place, dropped, false),
                None => return Err(StoreError::Full),
            },
        };
        // Who waits is told of every change but a heartbeat.
        let same_claim = before.is_some_and(|(token, attempt)| {
            (token, attempt) == (head.token, head.attempt)
                && matches!(head.state, State::Ongoing { .. })
        });
        let (wake, watched) = (watched && !same_claim, watched && same_claim);
        let entry = Entry { key, head, answer_bytes: 0, used, watched };
        opened.bucket.put(place, &entry);
        self.finish(&opened, dropped.as_slice(), reply, wake)
    }

    /// Swaps the bucket and clears the slots of what was dropped: in this order, so that an answer goes
    /// only when nobody can find it any more.
    fn finish(
        &self,
        opened: &Opened,
        dropped: &[Dropped],
        reply: Reply,
        wake: bool,
    ) -> Result<Try<Executed>, StoreError> {
        if !self.swap(opened)? {
            return Ok(Try::Again);
        }
        let mut tally = self.tally.get();
        tally += opened.bucket.changed();
        for dropped in dropped {
            tally.evicted += u32::from(dropped.evicted);
        }
        self.tally.set(tally);
        for dropped in dropped {
            self.clear_slot(opened.number, dropped.place, dropped.token);
        }
        Ok(done(reply, wake))
    }

    /// Somebody has the key: reads their answer, and leaves word if the command wants to be woken.
    fn exists(
        &self,
        mut opened: Opened,
        head: &Head,
        watch: bool,
    ) -> Result<Try<Executed>, StoreError> {
        let Some((place, entry)) = opened.found.take() else { return Ok(Try::Again) };
        let ongoing = matches!(head.state, State::Ongoing { .. });
        if ongoing && watch && !entry.watched {
            // In the same swap as the look: an end that comes between the two makes it fail.
            opened.bucket.put(place, &Entry { watched: true, ..entry.clone() });
            if !self.swap(&opened)? {
                return Ok(Try::Again);
            }
        } else if opened.bucket.is_stale(&entry) {
            let used = opened.bucket.next_use();
            opened.bucket.put(place, &Entry { used, ..entry.clone() });
            // Lost: somebody else changed the bucket, and the use is not written down this time.
            let _ = self.swap(&opened)?;
        }
        let mut moved = false;
        let record = head.try_complete(|| {
            let answer = self.read_slot(opened.number, place, entry.head.token)?;
            moved = answer.is_none();
            Ok::<_, StoreError>(answer)
        })?;
        if moved {
            // The slot has another answer by now, so the bucket has changed, too: look again. A slot
            // that was lost for good is a tombstone.
            let now_there = self.read(opened.number, entry.key)?.found;
            let same = now_there.is_some_and(|(at, now_there)| {
                at == place && now_there.head.token == entry.head.token
            });
            if !same {
                return Ok(Try::Again);
            }
        }
        Ok(done(Reply::Exists(record), false))
    }

    /// Writes an answer into its slot and then its record, as `judge` says, into the bucket; `None` if the
    /// answer does not fit.
    fn put(
        &self,
        key: Key,
        slot: &[u8],
        token: Token,
        judge: &dyn Fn(Option<&Head>) -> Verdict,
        now: Timestamp,
    ) -> Result<Option<Executed>, StoreError> {
        let room = self.geometry.answer_bytes.checked_sub(slot.len() as u64);
        let (Some(room), Ok(answer_bytes)) = (room, u32::try_from(slot.len())) else {
            return Ok(None);
        };
        self.until_done(|| self.try_put(key, slot, (token, answer_bytes, room), judge, now))
            .map(Some)
    }

    /// The slot's version is read *before* the bucket is: who still owns the bucket's record then writes
    /// over nothing that a successor wrote since.
    fn try_put(
        &self,
        key: Key,
        slot: &[u8],
        (token, answer_bytes, room): (Token, u32, u64),
        judge: &dyn Fn(Option<&Head>) -> Verdict,
        now: Timestamp,
    ) -> Result<Try<Executed>, StoreError> {
        let number = self.bucket_of(key);
        let Some((place, _)) = self.read(number, key)?.found else {
            return Ok(done(Reply::NotOwner, false));
        };
        let (_, slot_cas) = self.shared.load(&self.slot_name(number, place));
        let mut opened = self.read(number, key)?;
        let Some((found_at, entry)) = opened.found.take() else {
            return Ok(done(Reply::NotOwner, false));
        };
        let head = match judge(Some(&entry.head)) {
            Verdict::Done(Change::Put(head)) => head,
            Verdict::Done(Change::Keep | Change::Remove) => {
                return Ok(done(Reply::Done, false));
            }
            Verdict::NotOwner | Verdict::Exists(_) | Verdict::Claimed { .. } => {
                return Ok(done(Reply::NotOwner, false));
            }
        };
        let (Some(slot_cas), true) = (slot_cas, found_at == place) else { return Ok(Try::Again) };
        let dropped = opened.bucket.make_bytes(room, place, now);
        match self.shared.store(&self.slot_name(number, place), slot, slot_cas) {
            Ok(()) => {}
            Err(SharedDataError::CasMismatch) => return Ok(Try::Again),
            Err(SharedDataError::Failed) => {
                return Err(StoreError::Unavailable("shared data could not be written"));
            }
        }
        let used = opened.bucket.next_use();
        let wake = entry.watched;
        let finished = Entry { key: entry.key, head, answer_bytes, used, watched: false };
        opened.bucket.put(place, &finished);
        let tried = self.finish(&opened, &dropped, Reply::Done, wake)?;
        if matches!(tried, Try::Again) {
            // Whether the record is still ours shows when it is tried again; until then, the slot is
            // no one's.
            self.clear_slot(number, place, token);
        }
        Ok(tried)
    }

    fn read_slot(
        &self,
        bucket: u32,
        place: usize,
        token: Token,
    ) -> Result<Option<Answer>, StoreError> {
        let (slot, _) = self.shared.load(&self.slot_name(bucket, place));
        let slot = slot.unwrap_or_default();
        match slot.split_first_chunk::<16>() {
            Some((owner, answer)) if *owner == token.0 => decode_answer(answer)
                .map(Some)
                .map_err(|error| StoreError::Unreadable(error.as_str())),
            Some(_) | None => Ok(None),
        }
    }

    /// Empties a slot, unless a successor has written into it.
    fn clear_slot(&self, bucket: u32, place: usize, token: Token) {
        let name = self.slot_name(bucket, place);
        let (slot, cas) = self.shared.load(&name);
        if let (Some(slot), Some(cas)) = (slot, cas)
            && slot.starts_with(&token.0)
        {
            // Lost: a successor was faster, and its answer is not ours to clear.
            let _ = self.shared.store(&name, &[], cas);
        }
    }
}

/// An answer as it stands in its slot: behind the token of its record.
fn slot(token: Token, answer: &Answer) -> Vec<u8> {
    let mut slot = token.0.to_vec();
    append_answer(answer, &mut slot);
    slot
}

fn done(reply: Reply, wake: bool) -> Try<Executed> {
    Try::Executed(Executed { reply, wake })
}

/// The same record, over at `longest` if it is finished.
fn shorten(head: Head, longest: Timestamp) -> Head {
    match &head.state {
        State::Finished { until, status, kept } => {
            let until = (*until).min(longest);
            head.with_state(State::Finished { until, status: *status, kept: kept.clone() })
        }
        State::Ongoing { .. } | State::Unknown { .. } => head,
    }
}

/// The same command without its answer, which is not copied.
fn tombstone(command: &Command) -> Command {
    match command {
        Command::Complete { key, token, status, kept: _, ttl } => Command::Complete {
            key: *key,
            token: *token,
            status: *status,
            kept: Kept::Nothing,
            ttl: *ttl,
        },
        Command::Claim { .. }
        | Command::Extend { .. }
        | Command::Release { .. }
        | Command::MarkUnknown { .. } => command.clone(),
    }
}
