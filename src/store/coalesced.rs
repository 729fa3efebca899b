//! Requests that wait for the reply to a lookup of the same key, which is on its way to the shared store.

use super::Command;
use crate::key::Key;
use crate::time::Timestamp;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::Duration;

/// When a group starts again by itself, in case the message about the first reply was lost: a fraction of the
/// shortest time that a person notices.
const LOST_MESSAGE: Duration = Duration::from_millis(50);

/// A coalesced request. `R` identifies it.
#[derive(Debug, PartialEq, Eq)]
pub struct Coalesced<R> {
    /// The request.
    pub request: R,
    /// Its command.
    pub command: Command,
    /// When it first asked, even if it started again since.
    pub since: Timestamp,
}

/// What a request does when its turn comes.
#[derive(Debug, PartialEq, Eq)]
pub enum Turn<R> {
    /// It starts again.
    Begin(Coalesced<R>),
    /// It fails: the lookup that it waited for has failed, or it has waited too long.
    Fail(Coalesced<R>),
}

/// The coalesced requests of one worker, one group per key.
///
/// A group that receives no message lets only its first request start again: a crowd costs one lookup per key
/// and pause. Once the key's lookup has its reply, all take their turn, one at a time.
#[derive(Debug)]
pub struct Groups<R> {
    by_key: HashMap<Key, Group<R>>,
    /// When each group starts again by itself.
    looks: BTreeSet<(Timestamp, Key)>,
    /// Groups whose lookup has its reply; whether it failed.
    answered: VecDeque<(VecDeque<Coalesced<R>>, bool)>,
    timeout: Duration,
}

#[derive(Debug)]
struct Group<R> {
    /// The oldest first.
    waiting: VecDeque<Coalesced<R>>,
    look_at: Timestamp,
}

impl<R> Groups<R> {
    /// No request waits longer than `timeout`.
    pub fn new(timeout: Duration) -> Self {
        Self { by_key: HashMap::new(), looks: BTreeSet::new(), answered: VecDeque::new(), timeout }
    }

    /// The request waits for the lookup that is in flight. That one is over at `until`, whatever happens.
    pub fn park(&mut self, question: Coalesced<R>, until: Timestamp, now: Timestamp) {
        let key = question.command.key();
        let group = self.by_key.entry(key).or_insert_with(|| {
            let look_at = until.min(now.after(LOST_MESSAGE));
            self.looks.insert((look_at, key));
            Group { waiting: VecDeque::new(), look_at }
        });
        // A request that has started again in vain keeps its place.
        let first = group.waiting.front().map(|first| first.since);
        if question.since < now && first.is_some_and(|first| question.since <= first) {
            group.waiting.push_front(question);
        } else {
            group.waiting.push_back(question);
        }
    }

    /// The lookup of this key has its reply, or has `failed`: all that wait for it take their turn.
    pub fn answered(&mut self, key: Key, failed: bool) {
        if let Some(Group { waiting, look_at }) = self.by_key.remove(&key) {
            self.looks.remove(&(look_at, key));
            self.answered.push_back((waiting, failed));
        }
    }

    /// Takes out the next request whose turn it is.
    pub fn take_turn(&mut self, now: Timestamp) -> Option<Turn<R>> {
        while let Some((group, failed)) = self.answered.front_mut() {
            let failed = *failed;
            if let Some(question) = group.pop_front() {
                let fails = failed || self.is_late(&question, now);
                return Some(if fails { Turn::Fail(question) } else { Turn::Begin(question) });
            }
            self.answered.pop_front();
        }
        self.take_look(now)
    }

    /// The first request of the group that starts again by itself now.
    fn take_look(&mut self, now: Timestamp) -> Option<Turn<R>> {
        let (look_at, key) = self.looks.first().copied().filter(|(look_at, _)| *look_at <= now)?;
        self.looks.remove(&(look_at, key));
        let mut group = self.by_key.remove(&key)?;
        let question = group.waiting.pop_front()?;
        let late = self.is_late(&question, now);
        if !group.waiting.is_empty() {
            // Those behind a late request may be late too: they take their turn next.
            group.look_at = if late { now } else { now.after(LOST_MESSAGE) };
            self.looks.insert((group.look_at, key));
            self.by_key.insert(key, group);
        }
        Some(if late { Turn::Fail(question) } else { Turn::Begin(question) })
    }

    /// Every group starts again now: a message may have come before this worker received messages.
    pub fn look_now(&mut self, now: Timestamp) {
        self.looks = self.by_key.keys().map(|key| (now, *key)).collect();
        for group in self.by_key.values_mut() {
            group.look_at = now;
        }
    }

    /// Some requests whose lookup has its reply have not taken their turn yet.
    pub fn has_answered(&self) -> bool {
        !self.answered.is_empty()
    }

    /// When the first group starts again by itself.
    pub fn alarm(&self) -> Option<Timestamp> {
        self.looks.first().map(|(look_at, _)| *look_at)
    }

    fn is_late(&self, question: &Coalesced<R>, now: Timestamp) -> bool {
        question.since.after(self.timeout) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Token;

    const TIMEOUT: Duration = Duration::from_millis(250);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_millis(millis)
    }

    fn question(key: u8, request: u32, since: u64) -> Coalesced<u32> {
        let command = Command::Release { key: Key([key; 32]), token: Token([0; 16]) };
        Coalesced { request, command, since: at(since) }
    }

    fn turns(groups: &mut Groups<u32>, now: u64) -> Vec<(u32, bool)> {
        std::iter::from_fn(|| groups.take_turn(at(now)))
            .map(|turn| match turn {
                Turn::Begin(question) => (question.request, true),
                Turn::Fail(question) => (question.request, false),
            })
            .collect()
    }

    fn groups(questions: impl IntoIterator<Item = Coalesced<u32>>) -> Groups<u32> {
        let mut groups = Groups::new(TIMEOUT);
        for question in questions {
            let since = question.since;
            groups.park(question, at(10_000), since);
        }
        groups
    }

    #[test]
    fn an_answer_gives_all_of_its_key_their_turn_in_order() {
        let mut groups =
            groups([question(1, 1, 0), question(2, 9, 0), question(1, 2, 1), question(1, 3, 2)]);
        assert!(!groups.has_answered() && turns(&mut groups, 3).is_empty());
        groups.answered(Key([1; 32]), false);
        assert!(groups.has_answered());
        assert_eq!(turns(&mut groups, 3), [(1, true), (2, true), (3, true)]);
        groups.answered(Key([2; 32]), true);
        assert_eq!(turns(&mut groups, 3), [(9, false)]);
        assert_eq!(groups.alarm(), None);
    }

    #[test]
    fn a_crowd_that_hears_nothing_looks_once_a_pause() {
        let mut groups = groups((0..10_000).map(|request| question(1, request, 0)));
        let mut looks = 0;
        for now in 0..200 {
            for turn in std::iter::from_fn(|| groups.take_turn(at(now))).collect::<Vec<_>>() {
                let Turn::Begin(first) = turn else { panic!("late at {now}") };
                assert_eq!(first.request, 0);
                looks += 1;
                groups.park(first, at(10_000), at(now));
            }
        }
        assert_eq!(looks, 3);
    }

    #[test]
    fn a_request_that_waits_too_long_fails_and_so_do_all_as_old() {
        let mut groups = groups([question(1, 1, 0), question(1, 2, 0), question(1, 3, 200)]);
        assert_eq!(turns(&mut groups, 250), [(1, false), (2, false), (3, true)]);
    }

    #[test]
    fn a_question_that_is_over_earlier_is_not_waited_for() {
        let mut groups = Groups::new(TIMEOUT);
        groups.park(question(1, 1, 0), at(20), at(0));
        assert_eq!(groups.alarm(), Some(at(20)));
    }
}
