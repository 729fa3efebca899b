//! Streams that wait for the end of a claim, in one line per key.

use crate::key::Key;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// The lines of one worker.
///
/// The end of a claim wakes only the first in its line. When that one leaves the line (it has its answer,
/// runs, or is gone), the next is woken. If the key is free, the first runs it, the second finds the new
/// claim, and no other makes a lookup; if there is an answer, each finds it in its turn. Waking all at once
/// would cost a lookup per waiting stream each time a claim is released.
#[derive(Debug, Default)]
pub struct Waiters {
    by_key: HashMap<Key, BTreeMap<u64, u32>>,
    by_stream: HashMap<u32, Place>,
    /// Streams to wake, in order. Some may have left meanwhile.
    woken: VecDeque<u32>,
    joined: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    key: Key,
    number: u64,
    wake: Wake,
}

/// Whether a stream knows that the claim it waits for has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// Nothing has ended.
    Asleep,
    /// It will be woken.
    Due,
    /// It was woken: when it leaves, the next in line is woken.
    Told,
}

impl Waiters {
    /// The stream goes to the end of the key's line. It is in one line at most.
    pub fn join(&mut self, key: Key, stream: u32) {
        self.leave(stream);
        self.joined = self.joined.wrapping_add(1);
        let place = Place { key, number: self.joined, wake: Wake::Asleep };
        self.by_key.entry(key).or_default().insert(place.number, stream);
        self.by_stream.insert(stream, place);
    }

    /// The stream leaves its line, if it is in one.
    pub fn leave(&mut self, stream: u32) {
        let Some(Place { key, number, wake }) = self.by_stream.remove(&stream) else { return };
        if let Some(line) = self.by_key.get_mut(&key) {
            line.remove(&number);
            if line.is_empty() {
                self.by_key.remove(&key);
            }
        }
        match wake {
            Wake::Asleep => {}
            Wake::Due | Wake::Told => self.wake(key),
        }
    }

    /// A claim on this key has ended, or may have: the first in line will be woken.
    pub fn wake(&mut self, key: Key) {
        let first = self.by_key.get(&key).and_then(|line| line.values().next());
        let Some(place) = first.and_then(|stream| self.by_stream.get_mut(stream)) else { return };
        match place.wake {
            Wake::Due => {}
            Wake::Asleep | Wake::Told => {
                place.wake = Wake::Due;
                self.woken.extend(first);
            }
        }
    }

    /// The next stream to wake.
    pub fn take_woken(&mut self) -> Option<u32> {
        while let Some(stream) = self.woken.pop_front() {
            if let Some(place) = self.by_stream.get_mut(&stream)
                && place.wake == Wake::Due
            {
                place.wake = Wake::Told;
                return Some(stream);
            }
        }
        None
    }

    /// A stream is to be woken.
    pub fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// No stream waits.
    pub fn is_empty(&self) -> bool {
        self.by_stream.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Key = Key([1; 32]);
    const B: Key = Key([2; 32]);

    fn woken(waiters: &mut Waiters) -> Vec<u32> {
        std::iter::from_fn(|| waiters.take_woken()).collect()
    }

    fn three_wait() -> Waiters {
        let mut waiters = Waiters::default();
        (1..=3).for_each(|stream| waiters.join(A, stream));
        waiters.join(B, 9);
        waiters
    }

    #[test]
    fn an_end_wakes_the_first_and_each_that_leaves_wakes_the_next() {
        let mut waiters = three_wait();
        waiters.wake(A);
        assert_eq!(woken(&mut waiters), [1]);
        waiters.leave(1);
        assert_eq!(woken(&mut waiters), [2]);
        waiters.leave(2);
        assert_eq!(woken(&mut waiters), [3]);
        waiters.leave(3);
        assert!(woken(&mut waiters).is_empty());
        assert!(!waiters.is_empty() && !waiters.has_woken());
    }

    #[test]
    fn one_that_goes_on_waiting_keeps_the_others_asleep() {
        let mut waiters = three_wait();
        waiters.wake(A);
        assert_eq!(woken(&mut waiters), [1]);
        assert!(woken(&mut waiters).is_empty());
        // The next end wakes it again.
        waiters.wake(A);
        waiters.wake(A);
        assert_eq!(woken(&mut waiters), [1]);
    }

    #[test]
    fn one_that_leaves_before_it_was_woken_wakes_the_next() {
        let mut waiters = three_wait();
        waiters.wake(A);
        waiters.leave(1);
        assert_eq!(woken(&mut waiters), [2]);
        // A stream that was not woken wakes no other.
        waiters.leave(3);
        assert!(woken(&mut waiters).is_empty());
    }

    #[test]
    fn lines_of_other_keys_sleep_on() {
        let mut waiters = three_wait();
        waiters.wake(B);
        waiters.wake(Key([3; 32]));
        assert_eq!(woken(&mut waiters), [9]);
        waiters.leave(9);
        assert!(woken(&mut waiters).is_empty());
    }

    #[test]
    fn a_stream_that_joins_again_goes_to_the_end() {
        let mut waiters = three_wait();
        waiters.join(A, 1);
        waiters.wake(A);
        assert_eq!(woken(&mut waiters), [2]);
    }
}
