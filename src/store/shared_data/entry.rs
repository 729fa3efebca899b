//! The table's entry for a key, as a value and as bytes.

use crate::key::Key;
use crate::record::codec::{HEAD_LEN, decode_head, encode_head};
use crate::record::{Head, Kept, State, Token};
use crate::store::StoreError;
use crate::store::transitions::{EvictionPriority, eviction_priority};
use crate::time::Timestamp;

/// Why the table has a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It was decided here, and no other store knows it: the table is the only store, or the shared store has
    /// failed and the rule says `local`. Authoritative as long as it lives.
    LocalOnly,
    /// A claim that the shared store gave to a request of this Envoy, or its end that the shared store has
    /// not taken yet. Authoritative as long as it lives.
    Own,
    /// A claim or an unknown outcome at the shared store, at the time of the last lookup.
    Snapshot,
    /// A finished record of the shared store.
    Cached,
}

impl Kind {
    const ALL: [Self; 4] = [Self::LocalOnly, Self::Own, Self::Snapshot, Self::Cached];

    const fn letter(self) -> u8 {
        match self {
            Self::LocalOnly => b'l',
            Self::Own => b'o',
            Self::Snapshot => b's',
            Self::Cached => b'c',
        }
    }
}

/// A record, without its answer, and why it is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Why it is here.
    pub kind: Kind,
    /// The record. Its deadline is its own: when a snapshot or a cached record is no longer good enough, this
    /// Envoy still uses it if the shared store fails.
    pub head: Head,
    /// The time of the shared store's reply. Not read for [`Kind::LocalOnly`].
    pub seen_at: Timestamp,
    /// Since when this Envoy knows this claim. Not read for [`Kind::LocalOnly`].
    pub since: Timestamp,
}

/// A lookup in flight to the shared store. It stands beside the known record and never replaces it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asking {
    /// The token of the claim that asks.
    pub token: Token,
    /// When other requests stop waiting for it: its request may have died.
    pub until: Timestamp,
    /// Another request waits for its reply.
    pub met: bool,
}

/// Which waiting requests check again, because what they wait for has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake {
    /// Requests that wait for the end of a claim.
    pub waiters: bool,
    /// Requests that wait for the reply to a lookup. A different group: a request that waits for a claim must
    /// not be woken by every lookup, because when it is woken it looks up the key itself.
    pub askers: bool,
}

impl Wake {
    /// None.
    pub const NOBODY: Self = Self { waiters: false, askers: false };
}

/// Everything that the table has under a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Knowledge {
    /// The record.
    pub known: Option<Known>,
    /// The lookup in flight.
    pub asking: Option<Asking>,
}

impl Knowledge {
    /// The record's head.
    pub fn head(&self) -> Option<&Head> {
        self.known.as_ref().map(|known| &known.head)
    }

    /// Neither record nor lookup is left.
    pub fn is_empty(&self) -> bool {
        self.known.is_none() && self.asking.is_none()
    }

    /// What is lost when it is evicted.
    pub(super) fn eviction_priority(&self, now: Timestamp) -> EvictionPriority {
        let known = self.known.as_ref().map_or(EvictionPriority::Nothing, |known| {
            match (eviction_priority(&known.head, now), known.kind) {
                (EvictionPriority::Claim, Kind::Snapshot | Kind::Cached) => {
                    EvictionPriority::Snapshot
                }
                (priority, _) => priority,
            }
        });
        let asking = self.asking.filter(|asking| now < asking.until);
        known.max(asking.map_or(EvictionPriority::Nothing, |_| EvictionPriority::Question))
    }

    /// Which waiting requests, if any, have a reason to check again when `next` replaces it.
    pub(super) fn wakes(&self, next: &Self) -> Wake {
        let claim = |knowledge: &Self| match knowledge.head() {
            Some(head @ Head { state: State::Ongoing { .. }, .. }) => {
                Some((head.token, head.attempt))
            }
            Some(_) | None => None,
        };
        // A heartbeat, and a newer snapshot of the same claim, change nothing for them.
        let same =
            self.head() == next.head() || (claim(self).is_some() && claim(self) == claim(next));
        let token = |knowledge: &Self| knowledge.asking.map(|asking| asking.token);
        let met = self.asking.is_some_and(|asking| asking.met);
        Wake { waiters: !same, askers: met && token(self) != token(next) }
    }
}

/// An entry of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: Key,
    pub(super) knowledge: Knowledge,
    /// Bytes of the answer in the entry's slot.
    pub(super) answer_bytes: u32,
    /// The higher, the later it was used: a count within the bucket, so that the order of two uses in one
    /// millisecond is known without a clock.
    pub(super) used: u64,
    /// A request waits for the end of the claim.
    pub(super) watched: bool,
}

/// Length of an entry. Free places are all zero.
pub(super) const ENTRY_BYTES: usize = WATCHED_AT + 1;

/// Offsets of an entry's fields: key, letter of the kind, head of the record, when it was seen and since
/// when, token and end of the lookup and whether another request waits for it, bytes of the answer, last use,
/// watched. Numbers are big endian, times in microseconds.
const KIND_AT: usize = 32;
const HEAD_AT: usize = KIND_AT + 1;
const SEEN_AT: usize = HEAD_AT + HEAD_LEN;
const ASKING_AT: usize = SEEN_AT + 16;
const ANSWER_BYTES_AT: usize = ASKING_AT + 25;
const USED_AT: usize = ANSWER_BYTES_AT + 4;
const WATCHED_AT: usize = USED_AT + 8;

impl Entry {
    /// The token of the record whose answer stands in the slot.
    pub(super) fn token(&self) -> Option<Token> {
        self.knowledge.head().map(|head| head.token)
    }

    /// The same without its answer: a tombstone.
    pub(super) fn without_answer(mut self) -> Self {
        if let Some(Known { head, .. }) = &mut self.knowledge.known
            && let State::Finished { kept: kept @ Kept::Answer(()), .. } = &mut head.state
        {
            *kept = Kept::Nothing;
        }
        Self { answer_bytes: 0, ..self }
    }

    /// The entry in a place; `None` if the place is free.
    pub(super) fn read(bytes: &[u8]) -> Result<Option<Self>, StoreError> {
        if is_free(bytes) {
            return Ok(None);
        }
        let cut = || StoreError::Unreadable("a table entry is incomplete");
        let known = match field(bytes, KIND_AT).ok_or_else(cut)? {
            [0] => None,
            [letter] => {
                let kind = Kind::ALL.into_iter().find(|kind| kind.letter() == letter);
                let kind = kind.ok_or(StoreError::Unreadable("a table record has no kind"))?;
                let head = decode_head(&field(bytes, HEAD_AT).ok_or_else(cut)?)
                    .map_err(|error| StoreError::Unreadable(error.as_str()))?;
                let time =
                    |at| field(bytes, at).map(u64::from_be_bytes).map(Timestamp::from_micros);
                let seen_at = time(SEEN_AT).ok_or_else(cut)?;
                let since = time(SEEN_AT + 8).ok_or_else(cut)?;
                Some(Known { kind, head, seen_at, since })
            }
        };
        let entry = || {
            let until = u64::from_be_bytes(field(bytes, ASKING_AT + 16)?);
            let token = Token(field(bytes, ASKING_AT)?);
            let met = field(bytes, ASKING_AT + 24)? != [0];
            let until = (until > 0).then(|| Timestamp::from_micros(until));
            let asking = until.map(|until| Asking { token, until, met });
            Some(Self {
                key: Key(field(bytes, 0)?),
                knowledge: Knowledge { known, asking },
                answer_bytes: u32::from_be_bytes(field(bytes, ANSWER_BYTES_AT)?),
                used: u64::from_be_bytes(field(bytes, USED_AT)?),
                watched: field(bytes, WATCHED_AT)? != [0],
            })
        };
        entry().ok_or_else(cut).map(Some)
    }

    /// Writes the entry into a place of [`ENTRY_BYTES`].
    pub(super) fn write(&self, index: &mut [u8]) {
        let Knowledge { known, asking } = &self.knowledge;
        let letter = known.as_ref().map_or(0, |known| known.kind.letter());
        let head = known.as_ref().map_or([0; HEAD_LEN], |known| encode_head(&known.head));
        let time = |time: Timestamp| time.as_micros().to_be_bytes();
        let seen_at = known.as_ref().map_or([0; 8], |known| time(known.seen_at));
        let since = known.as_ref().map_or([0; 8], |known| time(known.since));
        let token = asking.map_or([0; 16], |asking| asking.token.0);
        let until = asking.map_or([0; 8], |asking| time(asking.until));
        let met = asking.is_some_and(|asking| asking.met);
        let fields: [&[u8]; 11] = [
            &self.key.0,
            &[letter],
            &head,
            &seen_at,
            &since,
            &token,
            &until,
            &[u8::from(met)],
            &self.answer_bytes.to_be_bytes(),
            &self.used.to_be_bytes(),
            &[u8::from(self.watched)],
        ];
        for (to, from) in index.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
    }
}

fn field<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Last use of an entry; zero for a free place.
pub(super) fn used(bytes: &[u8]) -> u64 {
    field(bytes, USED_AT).map_or(0, u64::from_be_bytes)
}

/// Bytes of the answer in an entry's slot.
pub(super) fn answer_bytes(bytes: &[u8]) -> u32 {
    field(bytes, ANSWER_BYTES_AT).map_or(0, u32::from_be_bytes)
}

/// An entry in use has a kind or a lookup.
pub(super) fn is_free(bytes: &[u8]) -> bool {
    field(bytes, KIND_AT).is_none_or(|kind| kind == [0])
        && field(bytes, ASKING_AT + 16).is_none_or(|until| until == [0; 8])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Fingerprint;
    use crate::time::WallTime;
    use std::time::Duration;

    fn known(kind: Kind) -> Known {
        let state = State::Ongoing {
            lease_until: Timestamp::from_millis(7),
            unknown_for: Duration::from_millis(8),
        };
        let head = Head {
            token: Token([1; 16]),
            fingerprint: Fingerprint([2; 32]),
            attempt: 3,
            first_seen: WallTime::from_millis(4),
            state,
        };
        let (seen_at, since) = (Timestamp::from_micros(5), Timestamp::from_micros(6));
        Known { kind, head, seen_at, since }
    }

    #[test]
    fn an_entry_is_read_as_it_was_written() {
        let until = Timestamp::from_micros(10);
        let asking = Asking { token: Token([9; 16]), until, met: true };
        let all = Kind::ALL.map(|kind| Some(known(kind))).into_iter().chain([None]);
        for (known, asking) in all.flat_map(|known| [(known.clone(), None), (known, Some(asking))])
        {
            let knowledge = Knowledge { known, asking };
            let is_empty = knowledge.is_empty();
            let entry =
                Entry { key: Key([3; 32]), knowledge, answer_bytes: 4, used: 5, watched: true };
            let mut bytes = [0; ENTRY_BYTES];
            entry.write(&mut bytes);
            let read = Entry::read(&bytes).unwrap();
            assert_eq!(read, (!is_empty).then_some(entry));
            assert_eq!((used(&bytes), answer_bytes(&bytes)), (5, 4));
        }
        assert_eq!(Entry::read(&[0; ENTRY_BYTES]), Ok(None));
    }

    #[test]
    fn an_entry_without_a_known_kind_is_an_error() {
        let mut bytes = [0; ENTRY_BYTES];
        bytes[KIND_AT] = b'?';
        assert!(Entry::read(&bytes).is_err());
    }

    #[test]
    fn waiters_are_woken_by_changes_and_coalesced_requests_by_the_end_of_their_lookup() {
        let asking = |met| Asking { token: Token([9; 16]), until: Timestamp::from_micros(10), met };
        let knows = |known: Option<Known>, asking| Knowledge { known, asking };
        let claim = known(Kind::Own);
        let mut longer = claim.clone();
        longer.head.state = State::Ongoing {
            lease_until: Timestamp::from_millis(9),
            unknown_for: Duration::from_millis(8),
        };
        let mut over = claim.clone();
        over.head.state = State::Unknown { until: Timestamp::from_millis(9) };
        let before = knows(Some(claim.clone()), None);
        let waiters = Wake { waiters: true, askers: false };
        assert_eq!(before.wakes(&knows(Some(longer), None)), Wake::NOBODY);
        assert_eq!(before.wakes(&knows(Some(claim.clone()), Some(asking(true)))), Wake::NOBODY);
        assert_eq!(before.wakes(&knows(Some(over), None)), waiters);
        assert_eq!(before.wakes(&knows(None, None)), waiters);
        // A lookup with no new result wakes only the requests that wait for it.
        for met in [false, true] {
            let asked = knows(Some(claim.clone()), Some(asking(met)));
            let wake = asked.wakes(&knows(Some(claim.clone()), None));
            assert_eq!(wake, Wake { waiters: false, askers: met });
        }
    }
}
