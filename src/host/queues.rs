//! How the other workers of this Envoy learn that a claim has ended.
//!
//! Every worker that ever had a waiting request owns a queue; the queues' numbers are in shared data. When a
//! claim ends that a request waits for, the worker puts the key into every queue, and Envoy wakes the
//! workers. The same happens when the lookup of a key has its reply and coalesced requests wait for it. An
//! empty message is a worker's message to itself: it requests a callback of the root context.

use super::{abi, logging};
use crate::key::Key;
use crate::telemetry::Incident;
use crate::time::Timestamp;
use std::time::Duration;

/// A queue without a sign of life for this long is removed: its worker is gone (its VM was replaced), and its
/// queue would grow for ever. It is long compared with the pause between two signs of life, so that a worker
/// that was only busy stays in the list.
const SILENCE: Duration = Duration::from_secs(60);

/// Pause between two signs of life of a worker that has waiters.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Tries to change the list of queues before giving up until the next sign of life. Each lost try means that
/// another worker has written its own entry, which it does once per [`SIGN_OF_LIFE`].
const TRIES: usize = 64;

/// Messages that one callback takes out of the queue. Envoy makes one callback per message, so all are taken
/// in the end; more than one at a time catches up with messages that came before the first callback.
const MESSAGES: usize = 32;

/// Messages that are freed when the worker leaves. Most are taken by then; more would take too long for one
/// callback.
const LEFT_BEHIND: usize = 4_096;

/// This worker's queue, and the list of all.
#[derive(Debug)]
pub(super) struct Queues {
    name: String,
    own: Option<u32>,
    list: String,
    shown_at: Option<Timestamp>,
    /// A message to itself is in flight.
    called_back: bool,
}

/// A message to the other workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// The claim on this key has ended.
    Ended(Key),
    /// The lookup of this key has its reply.
    Answered(Key),
}

impl Message {
    /// The key, and a letter for the kind.
    fn write(self) -> Vec<u8> {
        let (Key(key), letter) = match self {
            Self::Ended(key) => (key, b'e'),
            Self::Answered(key) => (key, b'a'),
        };
        [&key[..], &[letter]].concat()
    }

    fn read(bytes: &[u8]) -> Option<Self> {
        let (key, letter) = bytes.split_first_chunk::<32>()?;
        match letter {
            b"e" => Some(Self::Ended(Key(*key))),
            b"a" => Some(Self::Answered(Key(*key))),
            _ => None,
        }
    }
}

/// An entry of the list of queues: number and time of the last sign of life, 4 and 8 bytes, big endian.
type Entry = (u32, Timestamp);
const ENTRY_BYTES: usize = 12;

impl Queues {
    /// `prefix` is that of the store; `unique` distinguishes this worker from all others.
    pub(super) fn new(prefix: &str, unique: &[u8]) -> Self {
        let unique: String = unique.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            name: format!("{prefix}/queue/{unique}"),
            own: None,
            list: format!("{prefix}/queues"),
            shown_at: None,
            called_back: false,
        }
    }

    /// Makes Envoy call this worker's root context, as soon as the current callback is over.
    pub(super) fn call_back(&mut self) {
        if self.called_back {
            return;
        }
        // Without a queue, the next tick does it.
        if let Some(queue) = self.own() {
            self.called_back = abi::enqueue(queue, &[]).is_ok();
        }
    }

    /// The root context was called.
    pub(super) fn is_called_back(&mut self) {
        self.called_back = false;
    }

    fn own(&mut self) -> Option<u32> {
        self.own = self.own.or_else(|| abi::register_queue(&self.name).ok());
        self.own
    }

    /// Takes some messages out of this worker's queue.
    pub(super) fn take(&mut self, queue: u32) -> Vec<Message> {
        if self.own != Some(queue) {
            return Vec::new();
        }
        let messages = std::iter::from_fn(|| abi::dequeue(queue)).take(MESSAGES);
        messages.filter_map(|message| Message::read(&message)).collect()
    }

    /// Puts a message into the queue of every worker.
    pub(super) fn broadcast(&self, message: Message, now: Timestamp) {
        let message = message.write();
        let (list, _) = abi::shared_data(&self.list);
        let list = list.unwrap_or_default();
        for (queue, _) in entries(&list).filter(|(_, shown)| now < shown.after(SILENCE)) {
            // If the queue is gone, so is its worker.
            let _ = abi::enqueue(queue, &message);
        }
    }

    /// Removes this worker's queue from the list and empties it: no worker reads it any more, and Envoy frees
    /// its messages only with the last VM.
    pub(super) fn leave(&mut self) {
        let Some(queue) = self.own else { return };
        for _ in 0..TRIES {
            let (list, cas) = abi::shared_data(&self.list);
            let Some(cas) = cas else { break };
            let list = list.unwrap_or_default();
            let others = entries(&list).filter(|(other, _)| *other != queue);
            if abi::set_shared_data(&self.list, &written(others), cas).is_ok() {
                break;
            }
        }
        for _ in 0..LEFT_BEHIND {
            if abi::dequeue(queue).is_none() {
                return;
            }
        }
    }

    /// Takes the messages that came after Envoy stopped announcing them, some at a time.
    pub(super) fn take_own(&mut self) -> Vec<Message> {
        self.own.map(|queue| self.take(queue)).unwrap_or_default()
    }

    /// Puts this worker's queue into the list, unless that was done lately. Returns whether it was put there.
    pub(super) fn listen(&mut self, now: Timestamp) -> bool {
        if self.shown_at.is_some_and(|shown| now < shown.after(SIGN_OF_LIFE)) {
            return false;
        }
        let Some(queue) = self.own() else {
            let said = "Envoy gave no shared queue: waiting requests only poll";
            logging::log_incident(Incident::Host, &said);
            return false;
        };
        for _ in 0..TRIES {
            let (list, cas) = abi::shared_data(&self.list);
            let list = with(&list.unwrap_or_default(), queue, now);
            // Absent: `u32::MAX` makes it an insertion, as the store has checked at start.
            if abi::set_shared_data(&self.list, &list, cas.unwrap_or(u32::MAX)).is_ok() {
                self.shown_at = Some(now);
                return true;
            }
        }
        let said = "the list of queues is contended: waiting requests only poll for a while";
        logging::log_incident(Incident::Host, &said);
        false
    }
}

fn entries(list: &[u8]) -> impl Iterator<Item = Entry> {
    list.chunks_exact(ENTRY_BYTES).filter_map(|entry| {
        let (queue, shown) = entry.split_first_chunk::<4>()?;
        let shown = shown.first_chunk::<8>()?;
        Some((u32::from_be_bytes(*queue), Timestamp::from_micros(u64::from_be_bytes(*shown))))
    })
}

/// The list with `queue` seen `now`, and without silent queues.
fn with(list: &[u8], queue: u32, now: Timestamp) -> Vec<u8> {
    let others =
        entries(list).filter(|(other, shown)| *other != queue && now < shown.after(SILENCE));
    written(others.chain([(queue, now)]))
}

fn written(list: impl Iterator<Item = Entry>) -> Vec<u8> {
    let mut written = Vec::new();
    for (queue, shown) in list {
        written.extend_from_slice(&queue.to_be_bytes());
        written.extend_from_slice(&shown.as_micros().to_be_bytes());
    }
    written
}
