//! When each stream needs its tick.

use crate::time::Timestamp;
use std::collections::{BTreeMap, HashMap};

/// At most one timer per stream. Of several in one millisecond, the last one set is due last: a requeued
/// request goes to the end.
#[derive(Debug, Default)]
pub struct Timers {
    by_time: BTreeMap<(Timestamp, u64), u32>,
    by_stream: HashMap<u32, (Timestamp, u64)>,
    set: u64,
}

impl Timers {
    /// Replaces the stream's timer.
    pub fn set(&mut self, stream: u32, time: Option<Timestamp>) {
        let before = self.by_stream.get(&stream).copied();
        if before.map(|(time, _)| time) == time {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&before);
            self.by_stream.remove(&stream);
        }
        if let Some(time) = time {
            self.set = self.set.wrapping_add(1);
            self.by_time.insert((time, self.set), stream);
            self.by_stream.insert(stream, (time, self.set));
        }
    }

    /// The earliest timer.
    pub fn next(&self) -> Option<Timestamp> {
        self.by_time.first_key_value().map(|((time, _), _)| *time)
    }

    /// Takes out one due stream: the one that has waited longest.
    pub fn take_due(&mut self, now: Timestamp) -> Option<u32> {
        let entry = self.by_time.first_entry().filter(|entry| entry.key().0 <= now)?;
        let stream = entry.remove();
        self.by_stream.remove(&stream);
        Some(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    #[test]
    fn streams_are_due_in_the_order_of_their_times_and_then_of_their_setting() {
        let mut timers = Timers::default();
        for (stream, time) in [(1, 20), (2, 10), (3, 10), (4, 30), (2, 10)] {
            timers.set(stream, Some(at(time)));
        }
        timers.set(4, None);
        assert_eq!(timers.next(), Some(at(10)));
        let due: Vec<_> = std::iter::from_fn(|| timers.take_due(at(20))).collect();
        assert_eq!(due, [2, 3, 1]);
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn no_stream_is_due_before_its_time() {
        let mut timers = Timers::default();
        timers.set(1, Some(at(20)));
        assert_eq!(timers.take_due(at(19)), None);
        timers.set(1, Some(at(30)));
        assert_eq!((timers.take_due(at(29)), timers.take_due(at(30))), (None, Some(1)));
    }
}
