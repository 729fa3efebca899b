//! Who waits for a key in this worker, and how word gets to the other workers.
//!
//! Every worker that ever had a waiter owns a queue; the queues' numbers stand in shared data. Who
//! ends a claim that somebody waits for puts the key into every queue, and Envoy wakes the workers. An
//! empty message is a worker's to itself: it asks for a callback of the root context.

use super::{abi, journal};
use crate::key::Key;
use crate::telemetry::Incident;
use crate::time::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

/// A queue whose worker has not shown itself for this long is forgotten: its worker is gone (its VM
/// was replaced), and its queue would grow for ever. Long beside the pause between two signs of life,
/// so that a worker that was merely busy is not cut off.
const SILENCE: Duration = Duration::from_secs(60);

/// Pause between two signs of life of a worker that has waiters.
const SIGN_OF_LIFE: Duration = Duration::from_secs(10);

/// Tries to change the list of queues before giving up until the next sign of life. Each lost try
/// means that another worker has put itself in, which it does once in [`SIGN_OF_LIFE`].
const TRIES: usize = 64;

/// The requests of this worker that wait.
#[derive(Debug)]
pub(super) struct Waiters {
    /// In the order they came.
    by_key: HashMap<Key, Vec<u32>>,
    queue_name: String,
    queue: Option<u32>,
    list: String,
    shown_at: Option<Timestamp>,
}

/// An entry of the list of queues: number and last sign of life, 4 and 8 bytes, big endian.
type Entry = (u32, Timestamp);
const ENTRY_BYTES: usize = 12;

impl Waiters {
    /// `prefix` is that of the store; `unique` tells this worker from all others.
    pub(super) fn new(prefix: &str, unique: &[u8]) -> Self {
        let unique: String = unique.iter().map(|byte| format!("{byte:02x}")).collect();
        Self {
            by_key: HashMap::new(),
            queue_name: format!("{prefix}/queue/{unique}"),
            queue: None,
            list: format!("{prefix}/queues"),
            shown_at: None,
        }
    }

    /// From now on `stream` is among those that [`Waiters::of`] names.
    pub(super) fn watch(&mut self, key: Key, stream: u32, now: Timestamp) {
        self.listen(now);
        self.by_key.entry(key).or_default().push(stream);
    }

    /// No longer.
    pub(super) fn unwatch(&mut self, key: Key, stream: u32) {
        if let Some(streams) = self.by_key.get_mut(&key) {
            streams.retain(|waiting| *waiting != stream);
            if streams.is_empty() {
                self.by_key.remove(&key);
            }
        }
    }

    /// Who waits for this key, in the order they came.
    pub(super) fn of(&self, key: Key) -> Vec<u32> {
        self.by_key.get(&key).cloned().unwrap_or_default()
    }

    /// Has Envoy call this worker's root context back, as soon as it is out of what it does.
    pub(super) fn call_back(&mut self) {
        // Without a queue, the next tick does it.
        if let Some(queue) = self.own_queue() {
            let _ = abi::enqueue(queue, &[]);
        }
    }

    fn own_queue(&mut self) -> Option<u32> {
        self.queue = self.queue.or_else(|| abi::register_queue(&self.queue_name).ok());
        self.queue
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Takes the messages out of this worker's queue: keys whose claim has ended.
    pub(super) fn ended(&self, queue: u32) -> Vec<Key> {
        let mut keys = Vec::new();
        if self.queue != Some(queue) {
            return keys;
        }
        while let Some(message) = abi::dequeue(queue) {
            keys.extend(message.try_into().map(Key));
        }
        keys
    }

    /// Tells every worker that the claim on `key` has ended.
    pub(super) fn broadcast(&self, key: Key) {
        let (list, _) = abi::shared_data(&self.list);
        for (queue, _) in entries(&list.unwrap_or_default()) {
            // A queue that is gone had a worker that is gone.
            let _ = abi::enqueue(queue, &key.0);
        }
    }

    /// Gives a sign of life, if one is due. Without waiters none is needed.
    pub(super) fn keep_alive(&mut self, now: Timestamp) {
        if !self.is_empty() {
            self.listen(now);
        }
    }

    /// Puts this worker's queue into the list, unless it has been put there lately: whether it was put.
    pub(super) fn listen(&mut self, now: Timestamp) -> bool {
        if self.shown_at.is_some_and(|shown| now < shown.after(SIGN_OF_LIFE)) {
            return false;
        }
        let Some(queue) = self.own_queue() else {
            let said = "no shared queue to be had: waiters are woken by time alone";
            journal::tell(Incident::Host, &said);
            return false;
        };
        for _ in 0..TRIES {
            let (list, cas) = abi::shared_data(&self.list);
            let list = with(&list.unwrap_or_default(), queue, now);
            // Absent: `u32::MAX` makes it an insertion, as the store proved at start.
            if abi::set_shared_data(&self.list, &list, cas.unwrap_or(u32::MAX)).is_ok() {
                self.shown_at = Some(now);
                return true;
            }
        }
        let said = "the list of queues is contended: waiters are woken by time for a while";
        journal::tell(Incident::Host, &said);
        false
    }
}

fn entries(list: &[u8]) -> impl Iterator<Item = Entry> {
    list.chunks_exact(ENTRY_BYTES).filter_map(|entry| {
        let (queue, shown) = entry.split_first_chunk::<4>()?;
        let shown = shown.first_chunk::<8>()?;
        Some((u32::from_be_bytes(*queue), Timestamp::from_millis(u64::from_be_bytes(*shown))))
    })
}

/// The list with `queue` seen `now`, and without those that are silent.
fn with(list: &[u8], queue: u32, now: Timestamp) -> Vec<u8> {
    let others =
        entries(list).filter(|(other, shown)| *other != queue && now < shown.after(SILENCE));
    let mut written = Vec::new();
    for (queue, shown) in others.chain([(queue, now)]) {
        written.extend_from_slice(&queue.to_be_bytes());
        written.extend_from_slice(&shown.as_millis().to_be_bytes());
    }
    written
}
