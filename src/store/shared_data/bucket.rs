//! One bucket of the table, as a value: entries in fixed places.

use super::Tally;
use super::entry::{ENTRY_BYTES, Entry, answer_bytes, is_free, used};
use crate::key::Key;
use crate::record::Token;
use crate::store::StoreError;
use crate::store::transitions::EvictionPriority;
use crate::time::Timestamp;

/// The entries of one bucket, as bytes from shared data: most commands use one of them, so the others are not
/// decoded. An entry keeps its place as long as it lives, because the place names the slot of its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    bytes: Vec<u8>,
    /// Changes since it was read, except evictions.
    changed: Tally,
}

/// An entry that was dropped, or only its answer; its slot must be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) index: usize,
    pub(super) token: Token,
    /// It was dropped before its time.
    pub(super) evicted: bool,
}

impl Bucket {
    /// Takes the value from shared data; no value is an empty bucket.
    pub(super) fn read(bytes: Vec<u8>) -> Result<Self, StoreError> {
        if bytes.len().is_multiple_of(ENTRY_BYTES) {
            Ok(Self { bytes, changed: Tally::default() })
        } else {
            Err(StoreError::Unreadable("a table bucket is incomplete"))
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The difference to the bucket as it was read.
    pub(super) fn changed(&self) -> Tally {
        self.changed
    }

    fn slots(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(ENTRY_BYTES)
    }

    fn slot_mut(&mut self, index: usize) -> Option<&mut [u8]> {
        self.bytes.chunks_exact_mut(ENTRY_BYTES).nth(index)
    }

    pub(super) fn find(&self, key: Key) -> Result<Option<(usize, Entry)>, StoreError> {
        // A free place is all zero; no digest is.
        let index = self.slots().position(|entry| entry.starts_with(&key.0));
        let Some(index) = index else { return Ok(None) };
        let entry = self.slots().nth(index).map(Entry::read).transpose()?.flatten();
        Ok(entry.map(|entry| (index, entry)))
    }

    /// All readable entries. An unreadable one harms no other: it is found by its key, and reported then.
    fn entries(&self) -> impl Iterator<Item = (usize, Entry)> {
        self.slots()
            .enumerate()
            .filter_map(|(index, entry)| Some((index, Entry::read(entry).ok()??)))
    }

    /// The last uses of all entries; zero for free places.
    fn uses(&self) -> impl Iterator<Item = u64> {
        self.slots().map(used)
    }

    /// The value of "last use" for an entry that is used now.
    pub(super) fn next_use(&self) -> u64 {
        self.uses().max().unwrap_or(0).saturating_add(1)
    }

    /// Whether an entry is unused for so long that this use should be written. Not every use is written,
    /// because a replay would cost a write. The older half is still far from being evicted.
    pub(super) fn is_stale(&self, entry: &Entry) -> bool {
        let newer = self.uses().filter(|used| *used > entry.used).count();
        newer > self.bytes.len() / ENTRY_BYTES / 2
    }

    /// A free place, in a bucket of at most `ways`; if necessary, that of the least valuable entry. `None` if
    /// all of them are claims.
    pub(super) fn make_room(
        &mut self,
        ways: usize,
        now: Timestamp,
    ) -> Option<(usize, Option<Dropped>)> {
        if let Some(index) = self.slots().position(is_free) {
            return Some((index, None));
        }
        // Expired entries go before the bucket grows: they should not stay in memory.
        let least = self.least(now);
        let slots = self.bytes.len() / ENTRY_BYTES;
        if slots < ways && least.is_none_or(|(_, priority)| priority > EvictionPriority::Nothing) {
            self.bytes.resize(self.bytes.len() + ENTRY_BYTES, 0);
            self.changed.bytes += ENTRY_BYTES as i64;
            return Some((slots, None));
        }
        let (index, _) = least?;
        Some((index, self.drop_entry(index, now)))
    }

    /// Frees answers until those of all but `keep` fit into `bytes`. Expired entries are dropped whole. Then
    /// the least recently used answers go and leave tombstones, so that a later duplicate gets
    /// `completed-not-stored` instead of a second execution. A claim has no answer, so there is always enough
    /// to free.
    pub(super) fn make_bytes(&mut self, bytes: u64, keep: usize, now: Timestamp) -> Vec<Dropped> {
        let mut answers: Vec<_> = self
            .entries()
            .filter(|(index, entry)| *index != keep && entry.answer_bytes > 0)
            .map(|(index, entry)| {
                (entry.knowledge.eviction_priority(now), entry.used, index, entry)
            })
            .collect();
        answers.sort_unstable_by_key(|(priority, used, index, _)| (*priority, *used, *index));
        let mut taken: u64 =
            answers.iter().map(|(_, _, _, entry)| u64::from(entry.answer_bytes)).sum();
        let mut dropped = Vec::new();
        for (priority, _, index, entry) in answers {
            if taken <= bytes {
                break;
            }
            taken -= u64::from(entry.answer_bytes);
            if priority == EvictionPriority::Nothing {
                dropped.extend(self.drop_entry(index, now));
            } else {
                let token = entry.token();
                dropped.extend(token.map(|token| Dropped { index, token, evicted: true }));
                self.put(index, &entry.without_answer());
            }
        }
        dropped
    }

    /// Puts an entry into a place, and replaces any other.
    pub(super) fn put(&mut self, index: usize, entry: &Entry) {
        if let Some(bytes) = self.slot_mut(index) {
            let before = holds(bytes);
            entry.write(bytes);
            let after = holds(bytes);
            self.replaced(before, after);
        }
    }

    fn replaced(&mut self, before: (i64, i64), after: (i64, i64)) {
        self.changed.entries += after.0 - before.0;
        self.changed.bytes += after.1 - before.1;
    }

    pub(super) fn drop_entry(&mut self, index: usize, now: Timestamp) -> Option<Dropped> {
        let bytes = self.slot_mut(index)?;
        let entry = Entry::read(bytes).ok()??;
        let before = holds(bytes);
        bytes.fill(0);
        self.replaced(before, (0, 0));
        let evicted = entry.knowledge.eviction_priority(now) > EvictionPriority::Question;
        Some(Dropped { index, token: entry.token()?, evicted })
    }

    /// The least valuable entry; of several, the least recently used.
    fn least(&self, now: Timestamp) -> Option<(usize, EvictionPriority)> {
        self.entries()
            .map(|(index, entry)| ((entry.knowledge.eviction_priority(now), entry.used), index))
            .filter(|((priority, _), _)| *priority < EvictionPriority::Claim)
            .min()
            .map(|((priority, _), index)| (index, priority))
    }
}

/// Records in a place, one or none, and bytes of the answer in its slot.
fn holds(entry: &[u8]) -> (i64, i64) {
    if is_free(entry) { (0, 0) } else { (1, i64::from(answer_bytes(entry))) }
}
