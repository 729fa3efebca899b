//! When which stream wants its tick.

use crate::time::Timestamp;
use std::collections::{BTreeMap, HashMap};

/// At most one alarm a stream. Among those of one millisecond, the one set last comes last: a
/// requeued request goes to the tail.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    by_time: BTreeMap<(Timestamp, u64), u32>,
    by_stream: HashMap<u32, (Timestamp, u64)>,
    set: u64,
}

impl Alarms {
    /// Replaces the stream's alarm.
    pub(super) fn set(&mut self, stream: u32, time: Option<Timestamp>) {
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

    /// The earliest alarm.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.by_time.keys().next().map(|(time, _)| *time)
    }

    /// Takes out the streams whose time has come, in order.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<u32> {
        let mut due = Vec::new();
        while let Some(entry) = self.by_time.first_entry() {
            if entry.key().0 > now {
                break;
            }
            let stream = entry.remove();
            self.by_stream.remove(&stream);
            due.push(stream);
        }
        due
    }
}
