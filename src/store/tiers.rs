//! Two tiers: a table in this Envoy in front of a store that many Envoys share.
//!
//! The shared store alone says who may run. The table keeps what this Envoy knows of it, so that
//! duplicates that meet here cost the shared store nothing:
//!
//! | in the table | what it is | for whom it is good enough |
//! |---|---|---|
//! | a claim | an execution of this Envoy's | everybody: the shared store would say the same |
//! | a question | somebody here is asking the shared store | nobody: everybody waits for the answer |
//! | a mirror | a claim or a doubt elsewhere, as it was just now | who comes within ten milliseconds, and who waits for a pause that grows |
//! | a copy | a finished record | everybody, for `ttl` at the most and never past its own end |
//!
//! Claim here, then there; end it there, then here: a failure in between leaves the stricter state.

use super::life::{self, Change, Verdict};
use super::shared_data::{Executed, MemoryStore, SharedData, Tally};
use super::{Command, Reply, StoreError};
use crate::key::Key;
use crate::record::{Head, Kept, Record, State, Token};
use crate::time::Timestamp;
use std::time::Duration;

/// How long a mirror is good enough for a request that does not wait. It bounds what a hot key can cost
/// the shared store to a hundred commands a second and Envoy; and who has just had the first answer from
/// one Envoy and asks another within this time may still be told that the first is running.
const FRESH: Duration = Duration::from_millis(10);

/// How long a mirror stays. Its age is how much of that is over.
const MIRROR: Duration = Duration::from_secs(1);

/// The pause of who waits for a claim elsewhere, between two looks: a quarter of the time that the claim is
/// old, so that the last pause is short beside the wait, and looking at a long one costs little. It
/// matters where nobody tells of the end; else the word comes first.
fn pause(age: Duration) -> Duration {
    /// A person notices no less.
    const SHORTEST: Duration = Duration::from_millis(100);
    (age / 4).clamp(SHORTEST, MIRROR)
}

/// The attempt of what is no execution of this Envoy's: a mirror, or the question of who may run.
const NOT_HERE: u32 = 0;

/// The bit in the attempts of what was decided without the shared store: it knows nothing of that, so what
/// the table has of it is the truth. Nobody comes to two thousand million attempts.
const ALONE: u32 = 1 << 31;

/// The table in front.
#[derive(Debug)]
pub struct Tiers<S> {
    table: MemoryStore<S>,
    ttl: Duration,
    flight: Duration,
}

/// What is known before the shared store is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Begun {
    /// Everything.
    Answered(Executed),
    /// Somebody here is asking the shared store: begin again when they have been answered, at the latest
    /// then. Whoever ends the question tells, as who ends a claim does.
    Undecided(Timestamp),
    /// Nothing: ask the shared store, and bring its reply to [`Tiers::conclude`].
    AskShared,
}

/// What a reply of the shared store comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concluded {
    /// The reply, by this Envoy's clock.
    pub reply: Result<Reply, StoreError>,
    /// Somebody here waits for what has changed.
    pub wake: bool,
}

impl<S: SharedData> Tiers<S> {
    /// `ttl`: how long a copy of a finished record may be replayed. `timeout`: how long the shared store
    /// may take.
    pub fn new(table: MemoryStore<S>, ttl: Duration, timeout: Duration) -> Self {
        // Who asks and dies leaves the others waiting for so long.
        Self { table, ttl, flight: timeout.saturating_mul(2) }
    }

    /// What all keys of the table begin with.
    pub fn prefix(&self) -> &str {
        self.table.prefix()
    }

    /// What has changed in the table since this was asked last.
    pub fn take_tally(&self) -> Tally {
        self.table.take_tally()
    }

    /// Carries out a command in the table alone: the shared store has failed, and the rule says `local`.
    ///
    /// # Errors
    ///
    /// Those of the table.
    pub fn alone(&self, command: &Command, now: Timestamp) -> Result<Executed, StoreError> {
        let Command::Claim { key, watch, .. } = command else {
            return self.table.execute(command, now);
        };
        let judge = |head: Option<&Head>| match life::apply(head, command, now) {
            Verdict::Claimed { attempt, change: Change::Put(head) } => {
                let head = Head { attempt: attempt | ALONE, ..head };
                Verdict::Claimed { attempt: attempt & !ALONE, change: Change::Put(head) }
            }
            Verdict::Claimed { attempt, change: change @ (Change::Keep | Change::Remove) } => {
                Verdict::Claimed { attempt: attempt & !ALONE, change }
            }
            other @ (Verdict::Exists(_) | Verdict::Done(_) | Verdict::NotOwner) => other,
        };
        self.table.look(*key, &judge, *watch, now)
    }

    /// Looks at what is known here.
    pub fn begin(&self, command: &Command, now: Timestamp) -> Begun {
        let Command::Claim { key, watch, .. } = command else { return Begun::AskShared };
        let judge = |head: Option<&Head>| self.judge(head, command, now);
        // A table that is full or contended is no reason to refuse anybody.
        let Ok(mut executed) = self.table.look(*key, &judge, *watch, now) else {
            return Begun::AskShared;
        };
        if question_of(&executed.reply).is_some() && !watch {
            // Now leave word, too: it may have been answered in between.
            match self.table.look(*key, &judge, true, now) {
                Ok(again) => executed = again,
                Err(_) => return Begun::AskShared,
            }
        }
        if let Some(until) = question_of(&executed.reply) {
            return Begun::Undecided(until);
        }
        let Reply::Exists(record) = &executed.reply else { return Begun::AskShared };
        match &record.state {
            State::Ongoing { .. } if is_mirror(&record.head()) => {
                let look_again = now.after(good_for(record.first_seen, *watch, now));
                let reply = Reply::Exists(until_then(record, look_again));
                Begun::Answered(Executed { reply, ..executed })
            }
            // It stays: should the shared store fail, it is all that is known of what ran.
            State::Finished { .. } if is_left_over(&record.head()) => Begun::AskShared,
            State::Ongoing { .. } | State::Unknown { .. } | State::Finished { .. } => {
                Begun::Answered(executed)
            }
        }
    }

    /// Whether what is in the table is good enough for this claim; else the question is put there.
    fn judge(&self, head: Option<&Head>, command: &Command, now: Timestamp) -> Verdict {
        let Command::Claim { token, fingerprint, lease, watch, .. } = command else {
            return Verdict::NotOwner;
        };
        let question = || {
            // Who asks and dies has run nothing: the shared store knows what did.
            let lease_until = now.after(self.flight.min(*lease));
            let state = State::Ongoing { lease_until, unknown_for: Duration::ZERO };
            let head = Head {
                token: *token,
                fingerprint: *fingerprint,
                attempt: NOT_HERE,
                first_seen: now,
                state,
            };
            Verdict::Claimed { attempt: NOT_HERE, change: Change::Put(head) }
        };
        let Some(head) = head else { return question() };
        if is_mirror(head) {
            let until = match head.state {
                State::Ongoing { lease_until: until, .. }
                | State::Unknown { until }
                | State::Finished { until, .. } => until,
            };
            let age = MIRROR.saturating_sub(now.until(until));
            return if age < good_for(head.first_seen, *watch, now) {
                Verdict::Exists(head.clone())
            } else {
                question()
            };
        }
        match life::apply(Some(head), command, now) {
            Verdict::Claimed { .. } => question(),
            exists @ (Verdict::Exists(_) | Verdict::Done(_) | Verdict::NotOwner) => exists,
        }
    }

    /// Takes the shared store's reply to a command.
    pub fn conclude(
        &self,
        command: &Command,
        reply: Result<Reply, StoreError>,
        now: Timestamp,
    ) -> Concluded {
        let (key, token) = (command.key(), command.token());
        let release = Command::Release { key, token };
        let reply = match (command, reply) {
            (Command::Claim { .. }, Ok(Reply::Exists(record))) => {
                return self.exists(key, token, record, now);
            }
            (_, reply) => reply,
        };
        let changed = match (command, &reply) {
            (Command::Claim { lease, .. }, Ok(Reply::Claimed { attempt })) => {
                self.runs(key, token, *attempt, now.after(*lease), now)
            }
            // The owner is alive, whatever the shared store says: who comes here waits for it.
            (Command::Extend { .. }, Ok(Reply::Done) | Err(_)) => self.table.execute(command, now),
            // It ran, and whoever comes here may be told so, even before the shared store is.
            (Command::Complete { .. }, Ok(Reply::Done) | Err(_)) => {
                self.table.execute_for(command, self.ttl, now)
            }
            // Ongoing there, so it is here until the lease is over.
            (Command::MarkUnknown { .. }, Err(_)) => return concluded(reply, None),
            (Command::MarkUnknown { .. } | Command::Release { .. }, _)
            | (
                Command::Claim { .. },
                Ok(Reply::Exists(_) | Reply::Done | Reply::NotOwner) | Err(_),
            )
            | (
                Command::Extend { .. } | Command::Complete { .. },
                Ok(Reply::NotOwner | Reply::Claimed { .. } | Reply::Exists(_)),
            ) => self.table.execute(&release, now),
        };
        // The table's own failures cost the shared store a command, and nobody a refusal.
        concluded(reply, changed.ok())
    }

    /// Somebody elsewhere has ended the claim on this key, or may have.
    pub fn ended(&self, key: Key, now: Timestamp) {
        let forget = |head: Option<&Head>| match head {
            // A question as well: its reply may be older than the end.
            Some(head) if head.attempt == NOT_HERE => Verdict::Done(Change::Remove),
            Some(_) | None => Verdict::Done(Change::Keep),
        };
        // A mirror that cannot be removed is too old soon.
        let _ = self.table.change(key, &forget, now);
    }

    /// The question is answered: this Envoy runs it.
    fn runs(
        &self,
        key: Key,
        token: Token,
        attempt: u32,
        lease_until: Timestamp,
        now: Timestamp,
    ) -> Result<Executed, StoreError> {
        let ours = |head: Option<&Head>| match head {
            Some(head) if head.token == token => {
                let state = State::Ongoing { lease_until, unknown_for: Duration::ZERO };
                Verdict::Done(Change::Put(Head { attempt, ..head.with_state(state) }))
            }
            Some(_) | None => Verdict::NotOwner,
        };
        self.table.change(key, &ours, now)
    }

    /// The question is answered: the key is taken, and what is known of that takes the question's place.
    fn exists(&self, key: Key, token: Token, record: Record, now: Timestamp) -> Concluded {
        let mirrored_until = now.after(MIRROR);
        let (here, answer) = match &record.state {
            State::Finished { until, status, kept } => {
                let until = (*until).min(now.after(self.ttl));
                let state = State::Finished { until, status: *status, kept: kept.form() };
                let answer = match kept {
                    Kept::Answer(answer) => Some(answer),
                    Kept::StatusOnly | Kept::Nothing => None,
                };
                (record.with_state(state), answer)
            }
            State::Ongoing { .. } => {
                // The time after the mirror is over tells it from a question, and is never waited for.
                let state = State::Ongoing { lease_until: mirrored_until, unknown_for: MIRROR };
                (Head { attempt: NOT_HERE, ..record.with_state(state) }, None)
            }
            State::Unknown { until } => {
                let state = State::Unknown { until: mirrored_until.min(*until) };
                (Head { attempt: NOT_HERE, ..record.with_state(state) }, None)
            }
        };
        let instead_of =
            |head: &Head| head.token == token || (head.token == record.token && is_left_over(head));
        let changed = match self.table.replace(key, &instead_of, &here, answer, now) {
            Ok(Some(executed)) => Ok(executed),
            // It does not fit, or the question is not there any more.
            Ok(None) | Err(_) => self.table.execute(&Command::Release { key, token }, now),
        };
        let look_again = now.after(pause(record.first_seen.until(now)));
        let record = match &record.state {
            State::Ongoing { .. } => until_then(&record, look_again),
            State::Unknown { .. } | State::Finished { .. } => record,
        };
        concluded(Ok(Reply::Exists(record)), changed.ok())
    }
}

/// Until when at the latest somebody here is asking, if that is what a look has met.
fn question_of(reply: &Reply) -> Option<Timestamp> {
    let Reply::Exists(record) = reply else { return None };
    match record.state {
        State::Ongoing { lease_until, .. }
            if record.attempt == NOT_HERE && !is_mirror(&record.head()) =>
        {
            Some(lease_until)
        }
        State::Ongoing { .. } | State::Unknown { .. } | State::Finished { .. } => None,
    }
}

/// Whether it stands for something elsewhere.
fn is_mirror(head: &Head) -> bool {
    head.attempt == NOT_HERE
        && match head.state {
            State::Ongoing { unknown_for, .. } => !unknown_for.is_zero(),
            State::Unknown { .. } | State::Finished { .. } => true,
        }
}

/// Whether the shared store has more to say: its answer had to go from the table, or never fitted.
fn is_left_over(head: &Head) -> bool {
    let kept_here = head.attempt & ALONE != 0;
    !kept_here && matches!(head.state, State::Finished { kept: Kept::Nothing, .. })
}

/// How old a mirror may be.
fn good_for(first_seen: Timestamp, watch: bool, now: Timestamp) -> Duration {
    if watch { pause(first_seen.until(now)) } else { FRESH }
}

/// The record of a claim elsewhere, as if its lease ended when it is time to look again.
fn until_then(record: &Record, look_again: Timestamp) -> Record {
    match record.state {
        State::Ongoing { lease_until, unknown_for } => {
            let lease_until = lease_until.min(look_again);
            record.with_state(State::Ongoing { lease_until, unknown_for })
        }
        State::Unknown { .. } | State::Finished { .. } => record.clone(),
    }
}

fn concluded(reply: Result<Reply, StoreError>, changed: Option<Executed>) -> Concluded {
    Concluded { reply, wake: changed.is_some_and(|changed| changed.wake) }
}

#[cfg(test)]
mod tests;
