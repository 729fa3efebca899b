//! One bucket of the table, as a value: entries in fixed places.

use super::Tally;
use crate::key::Key;
use crate::record::codec::{HEAD_LEN, decode_head, encode_head};
use crate::record::{Head, Kept, State, Token};
use crate::store::StoreError;
use crate::store::life::{Worth, worth};
use crate::time::Timestamp;

/// Key, head of the record, bytes of its answer, last use, watched. Free places are all zero.
pub(super) const ENTRY_BYTES: usize = USED_AT + 8 + 1;
const HEAD_AT: usize = 32;
const ANSWER_BYTES_AT: usize = HEAD_AT + HEAD_LEN;
const USED_AT: usize = ANSWER_BYTES_AT + 4;

/// The entries of one bucket, as they stand in shared data: most commands look at one of them, so the
/// others stay bytes. An entry keeps its place as long as it lives, for the place names the slot that its
/// answer stands in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    bytes: Vec<u8>,
    /// Since it was read; without what was evicted.
    changed: Tally,
}

/// A record of the table, without its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) head: Head,
    /// Bytes of the answer in the entry's slot.
    pub(super) answer_bytes: u32,
    /// The higher, the later it was used: a count within the bucket, so that no clock is needed to tell
    /// which of two entries of the same millisecond is older.
    pub(super) used: u64,
    /// Somebody waits for the end of the claim.
    pub(super) watched: bool,
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
        self.places().map(|entry| {
            let used = entry.get(USED_AT..).and_then(|rest| rest.first_chunk::<8>());
            used.map_or(0, |used| u64::from_be_bytes(*used))
        })
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
            .map(|(place, entry)| (worth(&entry.head, now), entry.used, place, entry))
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
                dropped.push(Dropped { place, token: entry.head.token, evicted: true });
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
        let evicted = worth(&entry.head, now) > Worth::Nothing;
        Some(Dropped { place, token: entry.head.token, evicted })
    }

    /// The entry that is worth least, and of those the one that was not used for longest.
    fn least(&self, now: Timestamp) -> Option<(usize, Worth)> {
        self.entries()
            .map(|(place, entry)| ((worth(&entry.head, now), entry.used), place))
            .filter(|((worth, _), _)| *worth < Worth::Claim)
            .min()
            .map(|((worth, _), place)| (place, worth))
    }
}

impl Entry {
    fn without_answer(self) -> Self {
        let head = match self.head.state {
            State::Finished { until, status, kept: Kept::Answer(()) } => {
                self.head.with_state(State::Finished { until, status, kept: Kept::Nothing })
            }
            State::Ongoing { .. }
            | State::Unknown { .. }
            | State::Finished { kept: Kept::StatusOnly | Kept::Nothing, .. } => self.head,
        };
        Self { head, answer_bytes: 0, ..self }
    }

    fn read(bytes: &[u8]) -> Result<Option<Self>, StoreError> {
        let unreadable = StoreError::Unreadable("an entry of the table is cut short");
        let parts = || {
            let (key, rest) = bytes.split_first_chunk::<32>()?;
            let (head, rest) = rest.split_first_chunk::<HEAD_LEN>()?;
            let (answer_bytes, rest) = rest.split_first_chunk::<4>()?;
            let (used, rest) = rest.split_first_chunk::<8>()?;
            let watched = *rest.first()?;
            Some((key, head, answer_bytes, used, watched))
        };
        let (key, head, answer_bytes, used, watched) = parts().ok_or(unreadable)?;
        if is_free(bytes) {
            return Ok(None);
        }
        Ok(Some(Self {
            key: Key(*key),
            head: decode_head(head).map_err(|error| StoreError::Unreadable(error.as_str()))?,
            answer_bytes: u32::from_be_bytes(*answer_bytes),
            used: u64::from_be_bytes(*used),
            watched: watched != 0,
        }))
    }

    fn write(&self, place: &mut [u8]) {
        let fields: [&[u8]; 5] = [
            &self.key.0,
            &encode_head(&self.head),
            &self.answer_bytes.to_be_bytes(),
            &self.used.to_be_bytes(),
            &[u8::from(self.watched)],
        ];
        for (to, from) in place.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
    }
}

/// Records in a place, one or none, and bytes of the answer in its slot.
fn holds(entry: &[u8]) -> (i64, i64) {
    if is_free(entry) {
        return (0, 0);
    }
    let bytes = entry.get(ANSWER_BYTES_AT..).and_then(|rest| rest.first_chunk::<4>());
    (1, bytes.map_or(0, |bytes| i64::from(u32::from_be_bytes(*bytes))))
}

/// A head begins with its version, which is never zero.
fn is_free(entry: &[u8]) -> bool {
    entry.get(HEAD_AT).is_none_or(|version| *version == 0)
}
