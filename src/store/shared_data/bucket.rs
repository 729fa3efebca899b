//! One bucket of the table, as a value: entries in fixed places.

use super::Tally;
use super::entry::{ENTRY_BYTES, Entry, answer_bytes, is_free, used};
use crate::key::Key;
use crate::record::Token;
use crate::store::StoreError;
use crate::store::life::Worth;
use crate::time::Timestamp;

/// The entries of one bucket, as they stand in shared data: most commands look at one of them, so the
/// others stay bytes. An entry keeps its place as long as it lives, for the place names the slot that its
/// answer stands in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    bytes: Vec<u8>,
    /// Since it was read; without what was evicted.
    changed: Tally,
}

/// An entry that had to go, or its answer had; its slot is to be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) place: usize,
    pub(super) token: Token,
    /// It was dropped before its time.
    pub(super) evicted: bool,
}

impl Bucket {
    /// Takes what stands in shared data; nothing at all is an empty bucket.
    pub(super) fn read(bytes: Vec<u8>) -> Result<Self, StoreError> {
        if bytes.len().is_multiple_of(ENTRY_BYTES) {
            Ok(Self { bytes, changed: Tally::default() })
        } else {
            Err(StoreError::Unreadable("a bucket of the table is cut short"))
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What is more or less than it was when it was read.
    pub(super) fn changed(&self) -> Tally {
        self.changed
    }

    fn places(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(ENTRY_BYTES)
    }

    fn place_mut(&mut self, place: usize) -> Option<&mut [u8]> {
        self.bytes.chunks_exact_mut(ENTRY_BYTES).nth(place)
    }

    pub(super) fn find(&self, key: Key) -> Result<Option<(usize, Entry)>, StoreError> {
        // A free place is all zero, and so is no digest.
        let place = self.places().position(|entry| entry.starts_with(&key.0));
        let Some(place) = place else { return Ok(None) };
        let entry = self.places().nth(place).map(Entry::read).transpose()?.flatten();
        Ok(entry.map(|entry| (place, entry)))
    }

    /// All that can be read. What cannot is in nobody's way: it is found by its key, and told then.
    fn entries(&self) -> impl Iterator<Item = (usize, Entry)> {
        self.places()
            .enumerate()
            .filter_map(|(place, entry)| Some((place, Entry::read(entry).ok()??)))
    }

    /// The last uses of all entries; zero for free places.
    fn uses(&self) -> impl Iterator<Item = u64> {
        self.places().map(used)
    }

    /// What the last use of an entry used now is.
    pub(super) fn next_use(&self) -> u64 {
        self.uses().max().unwrap_or(0).saturating_add(1)
    }

    /// Whether an entry is so long unused that using it should be written down. Not at every use: a
    /// replay would cost a write. The older half is far enough from the end that goes first.
    pub(super) fn is_stale(&self, entry: &Entry) -> bool {
        let newer = self.uses().filter(|used| *used > entry.used).count();
        newer > self.bytes.len() / ENTRY_BYTES / 2
    }

    /// A free place, in a bucket of at most `ways`; if need be, that of the entry that is worth least.
    /// `None` when all of them are claims.
    pub(super) fn make_room(
        &mut self,
        ways: usize,
        now: Timestamp,
    ) -> Option<(usize, Option<Dropped>)> {
        if let Some(place) = self.places().position(is_free) {
            return Some((place, None));
        }
        // Over entries go before the bucket grows: what is over should not stay in memory.
        let least = self.least(now);
        let places = self.bytes.len() / ENTRY_BYTES;
        if places < ways && least.is_none_or(|(_, worth)| worth > Worth::Nothing) {
            self.bytes.resize(self.bytes.len() + ENTRY_BYTES, 0);
            self.changed.bytes += ENTRY_BYTES as i64;
            return Some((places, None));
        }
        let (place, _) = least?;
        Some((place, self.drop_entry(place, now)))
    }

    /// Frees answers until those of all but `keep` are within `bytes`. What is over goes whole; then the
    /// answers that were not used for longest go, and leave tombstones: it ran, and whoever asks again is
    /// told so instead of running it twice. A claim has no answer, so there is always enough to free.
    pub(super) fn make_bytes(&mut self, bytes: u64, keep: usize, now: Timestamp) -> Vec<Dropped> {
        let mut answers: Vec<_> = self
            .entries()
            .filter(|(place, entry)| *place != keep && entry.answer_bytes > 0)
            .map(|(place, entry)| (entry.knowledge.worth(now), entry.used, place, entry))
            .collect();
        answers.sort_unstable_by_key(|(worth, used, place, _)| (*worth, *used, *place));
        let mut taken: u64 =
            answers.iter().map(|(_, _, _, entry)| u64::from(entry.answer_bytes)).sum();
        let mut dropped = Vec::new();
        for (worth, _, place, entry) in answers {
            if taken <= bytes {
                break;
            }
            taken -= u64::from(entry.answer_bytes);
            if worth == Worth::Nothing {
                dropped.extend(self.drop_entry(place, now));
            } else {
                let token = entry.token();
                dropped.extend(token.map(|token| Dropped { place, token, evicted: true }));
                self.put(place, &entry.without_answer());
            }
        }
        dropped
    }

    /// Puts an entry into a place, whatever was there.
    pub(super) fn put(&mut self, place: usize, entry: &Entry) {
        if let Some(bytes) = self.place_mut(place) {
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

    pub(super) fn drop_entry(&mut self, place: usize, now: Timestamp) -> Option<Dropped> {
        let bytes = self.place_mut(place)?;
        let entry = Entry::read(bytes).ok()??;
        let before = holds(bytes);
        bytes.fill(0);
        self.replaced(before, (0, 0));
        let evicted = entry.knowledge.worth(now) > Worth::Question;
        Some(Dropped { place, token: entry.token()?, evicted })
    }

    /// The entry that is worth least, and of those the one that was not used for longest.
    fn least(&self, now: Timestamp) -> Option<(usize, Worth)> {
        self.entries()
            .map(|(place, entry)| ((entry.knowledge.worth(now), entry.used), place))
            .filter(|((worth, _), _)| *worth < Worth::Claim)
            .min()
            .map(|((worth, _), place)| (place, worth))
    }
}

/// Records in a place, one or none, and bytes of the answer in its slot.
fn holds(entry: &[u8]) -> (i64, i64) {
    if is_free(entry) { (0, 0) } else { (1, i64::from(answer_bytes(entry))) }
}
