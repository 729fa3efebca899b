//! Records in Envoy's shared data: a fixed set-associative table, changed only by compare-and-swap.

mod bucket;
mod entry;
mod layout;
mod look;
#[cfg(test)]
pub(crate) mod map;

pub use entry::{Asking, Kind, Knowledge, Known, Wake};
pub use layout::{Capacity, TooManyEntries};
pub use look::{Executed, Judged, Looked, OpenError, Put, Said, Says};

use super::transitions::{self, Change, Verdict};
use super::{Command, Reply, StoreError};
use crate::key::Key;
use crate::record::codec::{append_answer, decode_answer};
use crate::record::{Answer, Head, Kept, Record, State, Token};
use crate::time::Timestamp;
use bucket::{Bucket, Dropped};
use entry::Entry;
use layout::Layout;
use std::cell::Cell;
use std::ops::AddAssign;

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
    /// Another worker wrote it since it was read.
    CasMismatch,
    /// The host failed.
    Failed,
}

/// The version that no value has: a write with it inserts a key if it is absent. The ABI does not promise
/// that, so [`MemoryStore::open`] checks it once.
pub const INSERT: u32 = u32::MAX;

/// Tries of one command before it fails as contended. Each lost try means that another command on the same
/// bucket succeeded; with one worker per core, that many in a row do not happen.
const TRIES: usize = 64;

/// The embedded store: the records of one Envoy process, shared by its workers.
#[derive(Debug)]
pub struct MemoryStore<S> {
    shared: S,
    prefix: String,
    layout: Layout,
    tally: Cell<Tally>,
}

/// How commands have changed the table, for metrics. The worker that makes a change counts it when it is in
/// force: the sum over all workers is the content of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Change in the number of records. An expired record counts until its slot is reused.
    pub entries: i64,
    /// Change in the bytes of buckets and answers.
    pub bytes: i64,
    /// Records, or only their answers, dropped before their time: the latter records are tombstones now.
    pub evicted: u32,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.evicted += other.evicted;
    }
}

/// A key's bucket as it was read, and the key's entry in it.
struct Opened {
    number: u32,
    bucket: Bucket,
    cas: u32,
    found: Option<(usize, Entry)>,
}

/// One try of a lookup or a change.
enum Try<T> {
    Done(T),
    /// Another worker has changed the bucket meanwhile.
    Again,
}

impl<S: SharedData> MemoryStore<S> {
    /// Opens the table of this plugin, and creates it if it is new.
    ///
    /// Its keys name the product, the version of its format, the plugin and its layout, but not the
    /// configuration: rules may change and the records stay.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: nothing can be kept, and the filter must not start.
    pub fn open(shared: S, plugin: &str, capacity: Capacity) -> Result<Self, OpenError> {
        let layout = Layout::of(capacity).map_err(OpenError::Capacity)?;
        let Layout { buckets, ways, answer_bytes } = layout;
        let prefix = format!("envoy-idempotency/2/{plugin}/{buckets}x{ways}x{answer_bytes}");
        let store = Self { shared, prefix, layout, tally: Cell::default() };
        store.prove_atomicity()?;
        for bucket in 0..buckets {
            store.create(&store.bucket_name(bucket))?;
            for index in 0..ways {
                store.create(&store.slot_name(bucket, index))?;
            }
        }
        Ok(store)
    }

    /// The prefix of all keys of this store.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Changes since the last call.
    pub fn take_tally(&self) -> Tally {
        self.tally.take()
    }

    /// Carries out a command, as the only store.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn execute(&self, command: &Command, now: Timestamp) -> Result<Executed, StoreError> {
        let key = command.key();
        if let Command::Complete { token, kept: Kept::Answer(answer), .. } = command {
            let judge = |knowledge: &Knowledge| local(knowledge, command, now).next;
            return match self.put(key, *token, answer, &judge, now)? {
                Put::Kept { wake } => Ok(Executed { reply: Reply::Done, wake: wake.waiters }),
                // The answer is too large for this table: the record keeps only that it ran. That also holds
                // if the record has ended already, or belongs to another token.
                Put::DoesNotFit | Put::Refused => self.execute(&tombstone(command), now),
            };
        }
        let looked = self.look(key, &|knowledge| local(knowledge, command, now), now)?;
        let reply = match looked.said {
            Said::Record(record) => Reply::Exists(record),
            Said::Other(reply) => reply,
        };
        Ok(Executed { reply, wake: looked.wake.waiters })
    }

    fn create(&self, key: &str) -> Result<(), OpenError> {
        match self.shared.store(key, &[], INSERT) {
            // It exists: another VM was faster, or the configuration is a new one.
            Ok(()) | Err(SharedDataError::CasMismatch) => Ok(()),
            Err(SharedDataError::Failed) => Err(OpenError::Failed),
        }
    }

    fn prove_atomicity(&self) -> Result<(), OpenError> {
        let probe = format!("{}/probe", self.prefix);
        self.create(&probe)?;
        let twice = self.shared.store(&probe, b"1", INSERT);
        let (_, Some(cas)) = self.shared.load(&probe) else { return Err(OpenError::NotAtomic) };
        // Other VMs do the same check at this moment, so the first write may lose; a stale one must.
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
        // The key is a digest: any of its bits will do.
        u32::from_be_bytes([a, b, c, d]) & (self.layout.buckets - 1)
    }

    fn bucket_name(&self, bucket: u32) -> String {
        format!("{}/{bucket}", self.prefix)
    }

    fn slot_name(&self, bucket: u32, index: usize) -> String {
        format!("{}/{bucket}/{index}", self.prefix)
    }

    fn read(&self, number: u32, key: Key) -> Result<Opened, StoreError> {
        let (bytes, Some(cas)) = self.shared.load(&self.bucket_name(number)) else {
            return Err(StoreError::Unavailable("the table is missing in shared data"));
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

    /// Looks up what is known of `key`, and changes it as `judge` says; `judge` may be called more than once.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn look<T>(
        &self,
        key: Key,
        judge: &dyn Fn(&Knowledge) -> Judged<T>,
        now: Timestamp,
    ) -> Result<Looked<T>, StoreError> {
        self.until_done(|| self.try_look(key, judge, now))
    }

    /// Keeps `answer`, of the record with which `judge` replaces the known entry.
    ///
    /// # Errors
    ///
    /// [`StoreError`]; nothing was changed then.
    pub fn put(
        &self,
        key: Key,
        token: Token,
        answer: &Answer,
        judge: &dyn Fn(&Knowledge) -> Option<Knowledge>,
        now: Timestamp,
    ) -> Result<Put, StoreError> {
        let slot = slot(token, answer);
        let room = self.layout.answer_bytes.checked_sub(slot.len() as u64);
        let (Some(room), Ok(answer_bytes)) = (room, u32::try_from(slot.len())) else {
            return Ok(Put::DoesNotFit);
        };
        self.until_done(|| self.try_put(key, &slot, (token, answer_bytes, room), judge, now))
    }

    fn until_done<T>(
        &self,
        mut attempt: impl FnMut() -> Result<Try<T>, StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            match attempt()? {
                Try::Done(done) => return Ok(done),
                Try::Again => {}
            }
        }
        Err(StoreError::Contended)
    }

    fn try_look<T>(
        &self,
        key: Key,
        judge: &dyn Fn(&Knowledge) -> Judged<T>,
        now: Timestamp,
    ) -> Result<Try<Looked<T>>, StoreError> {
        let mut opened = self.read(self.bucket_of(key), key)?;
        let nothing = Knowledge::default();
        let before = opened.found.as_ref().map_or(&nothing, |(_, entry)| &entry.knowledge);
        let Judged { says, next, watch } = judge(before);
        let changed = match next.filter(|next| next != before) {
            Some(next) => self.change(&mut opened, key, next, watch, now)?,
            None => self.touch(&mut opened, watch)?,
        };
        let Try::Done(wake) = changed else { return Ok(Try::Again) };
        let said = match says {
            Says::Other(said) => Said::Other(said),
            Says::Record(head) => match self.complete(&opened, &head)? {
                Some(record) => Said::Record(record),
                None => return Ok(Try::Again),
            },
        };
        Ok(Try::Done(Looked { said, wake }))
    }

    /// Replaces the known entry by `next`, and returns which waiting requests check again.
    fn change(
        &self,
        opened: &mut Opened,
        key: Key,
        next: Knowledge,
        watch: bool,
        now: Timestamp,
    ) -> Result<Try<Wake>, StoreError> {
        let used = opened.bucket.next_use();
        let Some((index, entry)) = opened.found.take() else {
            let Some((index, dropped)) = opened.bucket.make_room(self.layout.ways, now) else {
                return Err(StoreError::Full);
            };
            let entry = Entry { key, knowledge: next, answer_bytes: 0, used, watched: watch };
            opened.bucket.put(index, &entry);
            opened.found = Some((index, entry));
            return self.finish(opened, dropped.as_slice(), Wake::NOBODY);
        };
        let wake = woken(&entry, &next);
        if next.is_empty() {
            // This drop is intended, so it is no eviction.
            let removed = opened.bucket.drop_entry(index, now);
            let removed = removed.map(|removed| Dropped { evicted: false, ..removed });
            return self.finish(opened, removed.as_slice(), wake);
        }
        let keeps_answer = |head: &Head| {
            let kept = matches!(head.state, State::Finished { kept: Kept::Answer(()), .. });
            kept && entry.token() == Some(head.token)
        };
        let keeps_answer = next.head().is_some_and(keeps_answer);
        // An expired record may leave an answer behind.
        let stale = (entry.answer_bytes > 0 && !keeps_answer)
            .then(|| entry.token().map(|token| Dropped { index, token, evicted: false }));
        let watched = (entry.watched && !wake.waiters) || watch;
        let answer_bytes = if keeps_answer { entry.answer_bytes } else { 0 };
        let entry = Entry { key, knowledge: next, answer_bytes, used, watched };
        opened.bucket.put(index, &entry);
        opened.found = Some((index, entry));
        self.finish(opened, stale.flatten().as_slice(), wake)
    }

    /// The known entry stays; a new watcher is written, and now and then the last use.
    fn touch(&self, opened: &mut Opened, watch: bool) -> Result<Try<Wake>, StoreError> {
        let Some((index, entry)) = opened.found.clone() else { return Ok(Try::Done(Wake::NOBODY)) };
        if watch && !entry.watched {
            // In the same swap as the lookup: an end that comes between the two makes it fail.
            opened.bucket.put(index, &Entry { watched: true, ..entry });
            if !self.swap(opened)? {
                return Ok(Try::Again);
            }
        } else if opened.bucket.is_stale(&entry) {
            let used = opened.bucket.next_use();
            opened.bucket.put(index, &Entry { used, ..entry });
            // Lost: another worker changed the bucket, and the use is not written this time.
            let _ = self.swap(opened)?;
        }
        Ok(Try::Done(Wake::NOBODY))
    }

    /// Swaps the bucket and clears the slots of dropped answers: in this order, so that an answer is cleared
    /// only when no record leads to it any more.
    fn finish(
        &self,
        opened: &Opened,
        dropped: &[Dropped],
        wake: Wake,
    ) -> Result<Try<Wake>, StoreError> {
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
            self.clear_slot(opened.number, dropped.index, dropped.token);
        }
        Ok(Try::Done(wake))
    }

    /// The record with its answer; `None` if the answer has moved since the bucket was read.
    fn complete(&self, opened: &Opened, head: &Head) -> Result<Option<Record>, StoreError> {
        let Some((index, entry)) = &opened.found else {
            return head.try_complete(|| Ok(None)).map(Some);
        };
        let mut missing = false;
        let record = head.try_complete(|| {
            let answer = self.read_slot(opened.number, *index, head.token)?;
            missing = answer.is_none();
            Ok::<_, StoreError>(answer)
        })?;
        if missing {
            // The slot has another answer by now, so the bucket has changed too: look it up again. A slot
            // that was lost for good is a tombstone.
            let now_there = self.read(opened.number, entry.key)?.found;
            let same = now_there
                .is_some_and(|(at, now_there)| at == *index && now_there.token() == entry.token());
            if !same {
                return Ok(None);
            }
        }
        Ok(Some(record))
    }

    /// Writes an answer into its slot and then its record, as `judge` says, into the bucket.
    ///
    /// The slot's version is read *before* the bucket: so the owner of the bucket's record cannot overwrite
    /// anything that a successor wrote since.
    fn try_put(
        &self,
        key: Key,
        slot: &[u8],
        (token, answer_bytes, room): (Token, u32, u64),
        judge: &dyn Fn(&Knowledge) -> Option<Knowledge>,
        now: Timestamp,
    ) -> Result<Try<Put>, StoreError> {
        let number = self.bucket_of(key);
        let Some((index, _)) = self.read(number, key)?.found else {
            return Ok(Try::Done(Put::Refused));
        };
        let (_, slot_cas) = self.shared.load(&self.slot_name(number, index));
        let mut opened = self.read(number, key)?;
        let Some((found_at, entry)) = opened.found.take() else {
            return Ok(Try::Done(Put::Refused));
        };
        let Some(knowledge) = judge(&entry.knowledge) else {
            return Ok(Try::Done(Put::Refused));
        };
        let (Some(slot_cas), true) = (slot_cas, found_at == index) else { return Ok(Try::Again) };
        let dropped = opened.bucket.make_bytes(room, index, now);
        match self.shared.store(&self.slot_name(number, index), slot, slot_cas) {
            Ok(()) => {}
            Err(SharedDataError::CasMismatch) => return Ok(Try::Again),
            Err(SharedDataError::Failed) => {
                return Err(StoreError::Unavailable("shared data could not be written"));
            }
        }
        let used = opened.bucket.next_use();
        let wake = woken(&entry, &knowledge);
        let finished = Entry { key: entry.key, knowledge, answer_bytes, used, watched: false };
        opened.bucket.put(index, &finished);
        match self.finish(&opened, &dropped, wake)? {
            Try::Done(wake) => Ok(Try::Done(Put::Kept { wake })),
            Try::Again => {
                // The next try shows whether the record is still ours; until then, the slot belongs to no
                // record.
                self.clear_slot(number, index, token);
                Ok(Try::Again)
            }
        }
    }

    fn read_slot(
        &self,
        bucket: u32,
        index: usize,
        token: Token,
    ) -> Result<Option<Answer>, StoreError> {
        let (slot, _) = self.shared.load(&self.slot_name(bucket, index));
        let slot = slot.unwrap_or_default();
        match slot.split_first_chunk::<16>() {
            Some((owner, answer)) if *owner == token.0 => decode_answer(answer)
                .map(Some)
                .map_err(|error| StoreError::Unreadable(error.as_str())),
            Some(_) | None => Ok(None),
        }
    }

    /// Empties a slot, unless a successor has written into it.
    fn clear_slot(&self, bucket: u32, index: usize, token: Token) {
        let name = self.slot_name(bucket, index);
        let (slot, cas) = self.shared.load(&name);
        if let (Some(slot), Some(cas)) = (slot, cas)
            && slot.starts_with(&token.0)
        {
            // Lost: a successor was faster, and its answer is not ours to clear.
            let _ = self.shared.store(&name, &[], cas);
        }
    }
}

/// Which waiting requests check again when `next` replaces the entry.
fn woken(entry: &Entry, next: &Knowledge) -> Wake {
    let wake = entry.knowledge.wakes(next);
    Wake { waiters: wake.waiters && entry.watched, ..wake }
}

/// An answer in its slot, behind the token of its record.
fn slot(token: Token, answer: &Answer) -> Vec<u8> {
    let mut slot = token.0.to_vec();
    append_answer(answer, &mut slot);
    slot
}

/// How `command` changes the known entry, when no other store is asked.
pub(super) fn local(knowledge: &Knowledge, command: &Command, now: Timestamp) -> Judged<Reply> {
    let next = |change| match change {
        Change::Keep => None,
        Change::Put(head) => {
            let known = Known { kind: Kind::LocalOnly, head, seen_at: now, since: now };
            Some(Knowledge { known: Some(known), asking: knowledge.asking })
        }
        Change::Remove => Some(Knowledge { known: None, asking: knowledge.asking }),
    };
    let (says, next) = match transitions::apply(knowledge.head(), command, now) {
        Verdict::Claimed { attempt, change } => {
            (Says::Other(Reply::Claimed { attempt }), next(change))
        }
        Verdict::Exists(head) => (Says::Record(head), None),
        Verdict::Done(change) => (Says::Other(Reply::Done), next(change)),
        Verdict::NotOwner => (Says::Other(Reply::NotOwner), None),
    };
    let watch = match (command, &says) {
        (Command::Claim { watch, .. }, Says::Record(head)) => {
            *watch && matches!(head.state, State::Ongoing { .. })
        }
        _ => false,
    };
    Judged { says, next, watch }
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
