//! One bucket of the table, as a value: entries in fixed places.

use crate::key::Key;
use crate::record::codec::{HEAD_LEN, decode_head, encode_head};
use crate::record::{Head, Token};
use crate::store::StoreError;
use crate::store::life::{Worth, worth};
use crate::time::Timestamp;

/// Key, head of the record, bytes of its answer, last use, watched. Free places are all zero.
pub(super) const ENTRY_BYTES: usize = 32 + HEAD_LEN + 4 + 8 + 1;

/// The entries of one bucket. An entry keeps its place as long as it lives, for the place names the slot
/// that its answer stands in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    places: Vec<Option<Entry>>,
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

/// An entry that had to go, and whose slot is to be cleared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub(super) place: usize,
    pub(super) token: Token,
    /// It was dropped before its time.
    pub(super) evicted: bool,
}

impl Bucket {
    /// Reads what [`Bucket::write`] wrote; nothing at all is an empty bucket.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, StoreError> {
        let unreadable = StoreError::Unreadable("a bucket of the table is cut short");
        let mut places = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
        let mut entries = bytes.chunks_exact(ENTRY_BYTES);
        for entry in &mut entries {
            places.push(Entry::read(entry)?);
        }
        if entries.remainder().is_empty() { Ok(Self { places }) } else { Err(unreadable) }
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.places.len() * ENTRY_BYTES);
        for place in &self.places {
            match place {
                Some(entry) => entry.write(&mut bytes),
                None => bytes.resize(bytes.len() + ENTRY_BYTES, 0),
            }
        }
        bytes
    }

    pub(super) fn find(&self, key: Key) -> Option<(usize, &Entry)> {
        self.entries().find(|(_, entry)| entry.key == key)
    }

    pub(super) fn entry_mut(&mut self, place: usize) -> Option<&mut Entry> {
        self.places.get_mut(place)?.as_mut()
    }

    fn entries(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.places.iter().enumerate().filter_map(|(place, entry)| Some((place, entry.as_ref()?)))
    }

    /// What the last use of an entry used now is.
    pub(super) fn next_use(&self) -> u64 {
        let last = self.entries().map(|(_, entry)| entry.used).max().unwrap_or(0);
        last.saturating_add(1)
    }

    /// Whether an entry is so long unused that using it should be written down. Not at every use: a
    /// replay would cost a write. The older half is far enough from the end that goes first.
    pub(super) fn is_stale(&self, entry: &Entry) -> bool {
        let newer = self.entries().filter(|(_, other)| other.used > entry.used).count();
        newer > self.places.len() / 2
    }

    /// A free place, in a bucket of at most `ways`; if need be, that of the entry that is worth least.
    /// `None` when all of them are claims.
    pub(super) fn make_room(
        &mut self,
        ways: usize,
        now: Timestamp,
    ) -> Option<(usize, Option<Dropped>)> {
        if let Some(place) = self.places.iter().position(Option::is_none) {
            return Some((place, None));
        }
        // Over entries go before the bucket grows: what is over should not stay in memory.
        let least = self.least(now, None);
        if self.places.len() < ways && least.is_none_or(|(_, worth)| worth > Worth::Nothing) {
            self.places.push(None);
            return Some((self.places.len() - 1, None));
        }
        let (place, _) = least?;
        Some((place, self.drop_entry(place, now)))
    }

    /// Drops what is worth least until the answers of all but `keep` are within `bytes`. `None` when
    /// that is not to be had: nothing is dropped then.
    pub(super) fn make_bytes(
        &mut self,
        bytes: u64,
        keep: usize,
        now: Timestamp,
    ) -> Option<Vec<Dropped>> {
        let before = self.clone();
        let mut dropped = Vec::new();
        loop {
            let taken: u64 = self
                .entries()
                .filter(|(place, _)| *place != keep)
                .map(|(_, entry)| u64::from(entry.answer_bytes))
                .sum();
            if taken <= bytes {
                return Some(dropped);
            }
            let Some((place, _)) = self.least(now, Some(keep)) else {
                *self = before;
                return None;
            };
            dropped.extend(self.drop_entry(place, now));
        }
    }

    /// Puts an entry into a free place.
    pub(super) fn put(&mut self, place: usize, entry: Entry) {
        if let Some(free) = self.places.get_mut(place) {
            *free = Some(entry);
        }
    }

    pub(super) fn drop_entry(&mut self, place: usize, now: Timestamp) -> Option<Dropped> {
        let entry = self.places.get_mut(place)?.take()?;
        let evicted = worth(&entry.head, now) > Worth::Nothing;
        Some(Dropped { place, token: entry.head.token, evicted })
    }

    /// The entry that is worth least, and of those the one that was not used for longest.
    fn least(&self, now: Timestamp, keep: Option<usize>) -> Option<(usize, Worth)> {
        self.entries()
            .filter(|(place, _)| Some(*place) != keep)
            .map(|(place, entry)| ((worth(&entry.head, now), entry.used), place))
            .filter(|((worth, _), _)| *worth < Worth::Claim)
            .min()
            .map(|((worth, _), place)| (place, worth))
    }
}

impl Entry {
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
        // A head begins with its version, which is never zero.
        if head.first() == Some(&0) {
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

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.key.0);
        bytes.extend_from_slice(&encode_head(&self.head));
        bytes.extend_from_slice(&self.answer_bytes.to_be_bytes());
        bytes.extend_from_slice(&self.used.to_be_bytes());
        bytes.push(u8::from(self.watched));
    }
}
