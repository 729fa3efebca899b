//! Questions that wait for the answer to the same question, which is on its way to Redis already.

use super::backend::Asker;
use crate::key::Key;
use crate::store::Command;
use crate::time::Timestamp;
use std::collections::HashMap;

/// One that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) asker: Asker,
    pub(super) command: Command,
    /// Since when, however often it had to begin again.
    pub(super) since: Timestamp,
    /// When it begins again without a word.
    again_at: Timestamp,
}

/// Those of one worker.
#[derive(Debug, Default)]
pub(super) struct Parked {
    /// In the order they came.
    by_key: HashMap<Key, Vec<Waiting>>,
}

impl Parked {
    pub(super) fn park(
        &mut self,
        asker: Asker,
        command: Command,
        since: Timestamp,
        again_at: Timestamp,
    ) {
        let waiting = Waiting { asker, again_at, since, command };
        self.by_key.entry(waiting.command.key()).or_default().push(waiting);
    }

    /// Takes out those that wait for this key.
    pub(super) fn of(&mut self, key: Key) -> Vec<Waiting> {
        self.by_key.remove(&key).unwrap_or_default()
    }

    /// Takes out those whose time has come.
    pub(super) fn due(&mut self, now: Timestamp) -> Vec<Waiting> {
        let due = |waiting: &mut Waiting| waiting.again_at <= now;
        let taken = self.by_key.values_mut().flat_map(|all| all.extract_if(.., due)).collect();
        self.by_key.retain(|_, all| !all.is_empty());
        taken
    }

    /// When the first of them begins again.
    pub(super) fn alarm(&self) -> Option<Timestamp> {
        self.by_key.values().flatten().map(|waiting| waiting.again_at).min()
    }
}
