//! Two tiers: a table in this Envoy in front of a store that many Envoys share.
//!
//! Only the shared store decides who may run. The table keeps what this Envoy knows of its records, so that
//! duplicates that meet here cost the shared store nothing:
//!
//! | in the table ([`Kind`]) | what it is | good enough for |
//! |---|---|---|
//! | own claim | an execution of this Envoy | all requests: the shared store would say the same |
//! | snapshot | recent state of a claim or an unknown outcome that another Envoy owns | requests within ten milliseconds; waiting requests for a pause that grows |
//! | cached record | a finished record | all requests, for `ttl` and never past its own end |
//! | local-only record | decided here while the shared store was away | all requests |
//! | lookup ([`Asking`]), beside any of these | a request here is asking the shared store | no request: all wait for the reply |
//!
//! An entry stays in the table as long as the record itself lives, even if it is good enough only for a short
//! time. If the shared store fails and the rule says `local`, the entry decides.
//!
//! Claim first here, then in the shared store; end it first there, then here: a failure in between leaves the
//! stricter state.

use super::shared_data::{
    Asking, Executed, Judged, Kind, Knowledge, Known, Looked, MemoryStore, Put, Said, Says,
    SharedData, Tally, Wake,
};
use super::transitions::{self, Change, Verdict};
use super::{Command, Reply, StoreError};
use crate::key::Key;
use crate::record::{Answer, Head, Kept, Record, State, Token};
use crate::time::Timestamp;
use std::time::Duration;

/// How long a snapshot is good enough for a request that does not wait. It bounds the cost of a hot key to a
/// hundred commands to the shared store per second and Envoy. A client that has the first answer from one
/// Envoy and asks another within this time may still get `in-progress`.
const FRESH: Duration = Duration::from_millis(10);

/// The pause of a waiting request between two polls of a claim elsewhere: a quarter of the time for which
/// this Envoy has known the claim. So the last pause is short compared with the wait, and a long wait costs
/// few polls. It matters only without publish/subscribe; else the message comes first.
fn pause(known_for: Duration) -> Duration {
    /// The shortest time that a person notices.
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(1);
    (known_for / 4).clamp(SHORTEST, LONGEST)
}

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
    /// The record, good enough for this request.
    Answered(Record),
    /// Another request here is asking the shared store: start again when it has its reply, or at this time at
    /// the latest. The end of the lookup is announced like the end of a claim.
    Undecided(Timestamp),
    /// Nothing: ask the shared store, and pass its reply to [`Tiers::apply_reply`].
    AskShared,
}

/// What a reply of the shared store leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concluded {
    /// The reply, in this Envoy's time.
    pub reply: Result<Reply, StoreError>,
    /// Which waiting requests start again.
    pub wake: Wake,
    /// The claim that the shared store gave must be released: this Envoy has decided otherwise meanwhile.
    pub give_back: bool,
}

/// What [`Tiers::begin`] finds beside records.
enum Asked {
    Undecided(Timestamp),
    Shared,
}

impl<S: SharedData> Tiers<S> {
    /// `ttl`: how long a cached record may be replayed. `timeout`: how long the shared store may take.
    pub fn new(table: MemoryStore<S>, ttl: Duration, timeout: Duration) -> Self {
        // If the asking request dies, the others wait this long.
        Self { table, ttl, flight: timeout.saturating_mul(2) }
    }

    /// The prefix of all keys of the table.
    pub fn prefix(&self) -> &str {
        self.table.prefix()
    }

    /// Changes of the table since the last call.
    pub fn take_tally(&self) -> Tally {
        self.table.take_tally()
    }

    /// Runs a command only in the table: the shared store has failed, and the rule says `local`.
    ///
    /// # Errors
    ///
    /// Those of the table.
    pub fn local_only(&self, command: &Command, now: Timestamp) -> Result<Executed, StoreError> {
        self.table.execute(command, now)
    }

    /// Checks what is known here.
    pub fn begin(&self, command: &Command, now: Timestamp) -> Begun {
        let Command::Claim { key, token, lease, watch, .. } = command else {
            return Begun::AskShared;
        };
        let judge = |knowledge: &Knowledge| {
            if let Some(head) = self.good_enough(knowledge, *watch, now) {
                let ongoing = matches!(head.state, State::Ongoing { .. });
                return Judged { says: Says::Record(head), next: None, watch: *watch && ongoing };
            }
            match knowledge.asking {
                Some(asking) if asking.token != *token && now < asking.until => {
                    let says = Says::Other(Asked::Undecided(asking.until));
                    let asking = Some(Asking { met: true, ..asking });
                    let next = Knowledge { known: knowledge.known.clone(), asking };
                    Judged { says, next: Some(next), watch: false }
                }
                Some(_) | None => {
                    // A request that asks and dies has run nothing: the shared store knows which one did.
                    let until = now.after(self.flight.min(*lease));
                    let asking = Some(Asking { token: *token, until, met: false });
                    let next = Knowledge { known: knowledge.known.clone(), asking };
                    Judged { says: Says::Other(Asked::Shared), next: Some(next), watch: false }
                }
            }
        };
        match self.table.look(*key, &judge, now) {
            Ok(Looked { said: Said::Record(record), .. }) => Begun::Answered(record),
            Ok(Looked { said: Said::Other(Asked::Undecided(until)), .. }) => {
                Begun::Undecided(until)
            }
            Ok(Looked { said: Said::Other(Asked::Shared), .. })
            // A full or contended table is no reason to refuse a request.
            | Err(_) => Begun::AskShared,
        }
    }

    /// The known record, if it is good enough for a claim that `waits` or does not.
    fn good_enough(&self, knowledge: &Knowledge, waits: bool, now: Timestamp) -> Option<Head> {
        let known = knowledge.known.as_ref()?;
        let head = transitions::as_it_stands(&known.head, now)?;
        match (known.kind, &head.state) {
            // A claim with a lapsed lease may have been taken over elsewhere.
            (Kind::Own, State::Unknown { .. }) => None,
            (Kind::Own | Kind::LocalOnly, _) => Some(head),
            // The shared store has the answer; it was evicted from the table, or never fitted.
            (Kind::Cached, State::Finished { kept: Kept::Nothing, .. }) => None,
            (Kind::Cached | Kind::Snapshot, State::Finished { .. }) => {
                (now < known.seen_at.after(self.ttl)).then_some(head)
            }
            (Kind::Cached | Kind::Snapshot, State::Ongoing { .. } | State::Unknown { .. }) => {
                let good_for = if waits { pause(known.since.until(known.seen_at)) } else { FRESH };
                let good_until = known.seen_at.after(good_for);
                (now < good_until).then(|| until_then(head, good_until))
            }
        }
    }

    /// Takes the shared store's reply to a command.
    pub fn apply_reply(
        &self,
        command: &Command,
        reply: Result<Reply, StoreError>,
        now: Timestamp,
    ) -> Concluded {
        let key = command.key();
        match (command, reply) {
            (Command::Claim { .. }, Ok(Reply::Claimed { attempt })) => {
                self.claimed(command, attempt, now)
            }
            (Command::Claim { token, .. }, Ok(Reply::Exists(record))) => {
                self.exists(key, *token, record, now)
            }
            // No reply: the lookup is over, and the known record stays.
            (
                Command::Claim { token, .. },
                reply @ (Ok(Reply::Done | Reply::NotOwner) | Err(_)),
            ) => {
                let over = |knowledge: &Knowledge| {
                    (knowledge.known.clone(), without(knowledge.asking, *token))
                };
                concluded(reply, self.change(key, &over, now))
            }
            // The owner is alive, whatever the shared store says: duplicates here wait for it.
            (Command::Extend { .. }, reply @ (Ok(Reply::Done) | Err(_))) => {
                let alive = |knowledge: &Knowledge| self.transition(knowledge, command, now);
                concluded(reply, self.change(key, &alive, now))
            }
            // It ran, and duplicates here may learn that even before the shared store does.
            (Command::Complete { .. }, reply @ (Ok(Reply::Done) | Err(_))) => {
                let taken = reply.is_ok();
                concluded(reply, self.complete(command, taken, now))
            }
            (Command::MarkUnknown { .. }, reply @ Ok(Reply::Done)) => {
                let unknown = |knowledge: &Knowledge| self.transition(knowledge, command, now);
                concluded(reply, self.change(key, &unknown, now))
            }
            // It is ongoing there, so it is ongoing here until the lease is over.
            (Command::MarkUnknown { .. }, reply @ Err(_)) => concluded(reply, Wake::NOBODY),
            // A heartbeat that came behind the end of its own claim says nothing of that end.
            (Command::Extend { token, .. }, reply) => {
                let ongoing = |known: &Known| matches!(known.head.state, State::Ongoing { .. });
                concluded(reply, self.give_up(key, *token, &ongoing, now))
            }
            (
                Command::Release { token, .. }
                | Command::Complete { token, .. }
                | Command::MarkUnknown { token, .. },
                reply,
            ) => concluded(reply, self.give_up(key, *token, &|_| true, now)),
        }
    }

    /// The claim on this key has ended elsewhere, or may have.
    pub fn ended(&self, key: Key, now: Timestamp) {
        let look_again = |knowledge: &Knowledge| {
            // The reply to a lookup may be older than the end: later requests ask again.
            let known = knowledge.known.clone().map(|known| match known.kind {
                Kind::Snapshot => Known { seen_at: Timestamp::default(), ..known },
                Kind::Own | Kind::LocalOnly | Kind::Cached => known,
            });
            (known, None)
        };
        // A snapshot that cannot be changed is soon too old anyway.
        self.change(key, &look_again, now);
    }

    /// The reply says that the claim is ours: this Envoy runs the request, unless it has decided otherwise
    /// meanwhile.
    fn claimed(&self, command: &Command, attempt: u32, now: Timestamp) -> Concluded {
        let Command::Claim { key, token, fingerprint, first_seen, lease, unknown_for, .. } =
            command
        else {
            return concluded(Ok(Reply::Claimed { attempt }), Wake::NOBODY);
        };
        let state = State::Ongoing { lease_until: now.after(*lease), unknown_for: *unknown_for };
        let (token, fingerprint, first_seen) = (*token, *fingerprint, *first_seen);
        let head = Head { token, fingerprint, attempt, first_seen, state };
        let judge = |knowledge: &Knowledge| {
            let asking = without(knowledge.asking, token);
            let attempt = attempt.max(attempts_here(knowledge, now).saturating_add(1));
            let decided =
                decided_here(knowledge, now).filter(|(known, _)| known.head.token != token);
            if let Some((_, head)) = decided {
                let next = Some(Knowledge { known: knowledge.known.clone(), asking });
                return Judged { says: Says::Record(head), next, watch: false };
            }
            let head = Head { attempt, ..head.clone() };
            let known = Known { kind: Kind::Own, head, seen_at: now, since: now };
            let next = Some(Knowledge { known: Some(known), asking });
            Judged { says: Says::Other(attempt), next, watch: false }
        };
        match self.table.look(*key, &judge, now) {
            Ok(Looked { said: Said::Record(record), wake }) => {
                Concluded { reply: Ok(Reply::Exists(record)), wake, give_back: true }
            }
            Ok(Looked { said: Said::Other(attempt), wake }) => {
                concluded(Ok(Reply::Claimed { attempt }), wake)
            }
            // A failure of the table costs the shared store a command, but no request a refusal.
            Err(_) => concluded(Ok(Reply::Claimed { attempt }), Wake::NOBODY),
        }
    }

    /// The reply says that the key is taken.
    fn exists(&self, key: Key, token: Token, record: Record, now: Timestamp) -> Concluded {
        let kind = match record.state {
            State::Finished { .. } => Kind::Cached,
            State::Ongoing { .. } | State::Unknown { .. } => Kind::Snapshot,
        };
        let here = |knowledge: &Knowledge, head: &Head| {
            let asking = without(knowledge.asking, token);
            if let Some((known, _)) = decided_here(knowledge, now) {
                return (Some(known.clone()), asking);
            }
            let same = knowledge.known.as_ref().filter(|known| known.head.token == head.token);
            let is_newer =
                same.is_some_and(|known| known.kind == Kind::Cached) && kind != Kind::Cached;
            if is_newer {
                return (knowledge.known.clone(), asking);
            }
            // The claim has ended since the lookup began, or may have: the reply may be older.
            let in_time = asking != knowledge.asking || kind == Kind::Cached;
            let seen_at = if in_time { now } else { Timestamp::default() };
            let since = same.map_or(now, |known| known.since);
            (Some(Known { kind, head: head.clone(), seen_at, since }), asking)
        };
        let head = record.head();
        if let State::Finished { kept: Kept::Answer(answer), .. } = &record.state {
            let change = |knowledge: &Knowledge| here(knowledge, &head);
            let tombstone = |knowledge: &Knowledge| here(knowledge, &without_answer(&head));
            let wake = self.keep(key, head.token, answer, &change, &tombstone, now);
            return concluded(Ok(Reply::Exists(record)), wake);
        }
        let judge = |knowledge: &Knowledge| {
            let (known, asking) = here(knowledge, &head);
            let known_for = known.as_ref().map(|known| known.since.until(now));
            let next = Some(Knowledge { known, asking });
            Judged { says: Says::Other(known_for), next, watch: false }
        };
        let (known_for, wake) = match self.table.look(key, &judge, now) {
            Ok(Looked { said: Said::Other(known_for), wake }) => (known_for, wake),
            Ok(Looked { said: Said::Record(_), .. }) | Err(_) => (None, Wake::NOBODY),
        };
        let look_again = now.after(pause(known_for.unwrap_or_default()));
        concluded(Ok(Reply::Exists(until_then(record, look_again))), wake)
    }

    /// The execution has ended; `taken`: the shared store has recorded it.
    fn complete(&self, command: &Command, taken: bool, now: Timestamp) -> Wake {
        let Command::Complete { key, token, kept, .. } = command else { return Wake::NOBODY };
        let kind = if taken { Kind::Cached } else { Kind::Own };
        let finished = |knowledge: &Knowledge| {
            let (known, asking) = self.transition(knowledge, command, now);
            (known.map(|known| of_kind(kind, known, *token)), asking)
        };
        let tombstone = |knowledge: &Knowledge| {
            let (known, asking) = finished(knowledge);
            let known = known.map(|known| Known { head: without_answer(&known.head), ..known });
            (known, asking)
        };
        match kept {
            Kept::Answer(answer) => self.keep(*key, *token, answer, &finished, &tombstone, now),
            Kept::StatusOnly | Kept::Nothing => self.change(*key, &finished, now),
        }
    }

    /// How a command of its owner changes the known record.
    fn transition(&self, knowledge: &Knowledge, command: &Command, now: Timestamp) -> Next {
        let known = knowledge.known.clone().and_then(|known| {
            let kind = match command {
                Command::MarkUnknown { .. } => Kind::Snapshot,
                Command::Claim { .. }
                | Command::Extend { .. }
                | Command::Complete { .. }
                | Command::Release { .. } => known.kind,
            };
            match transitions::apply(Some(&known.head), command, now) {
                Verdict::Done(Change::Put(head)) => {
                    Some(Known { kind, head, seen_at: now, since: known.since })
                }
                Verdict::Done(Change::Remove) => None,
                Verdict::Done(Change::Keep)
                | Verdict::Claimed { .. }
                | Verdict::Exists(_)
                | Verdict::NotOwner => Some(known),
            }
        });
        (known, knowledge.asking)
    }

    /// Nothing runs by this token any more. What is known of it is forgotten if it is `meant`, and unless
    /// the shared store has its answer or knows nothing of it.
    fn give_up(
        &self,
        key: Key,
        token: Token,
        meant: &dyn Fn(&Known) -> bool,
        now: Timestamp,
    ) -> Wake {
        let forget = |knowledge: &Knowledge| {
            let stays = |known: &Known| match known.kind {
                Kind::LocalOnly | Kind::Cached => true,
                Kind::Own | Kind::Snapshot => known.head.token != token || !meant(known),
            };
            (knowledge.known.clone().filter(stays), without(knowledge.asking, token))
        };
        self.change(key, &forget, now)
    }

    /// Changes the known record, and returns which waiting requests start again. A failure of the table costs
    /// the shared store a command, but no request a refusal.
    fn change(&self, key: Key, next: &dyn Fn(&Knowledge) -> Next, now: Timestamp) -> Wake {
        let judge = |knowledge: &Knowledge| {
            let (known, asking) = next(knowledge);
            let next = Some(Knowledge { known, asking });
            Judged { says: Says::Other(()), next, watch: false }
        };
        self.table.look(key, &judge, now).map_or(Wake::NOBODY, |looked| looked.wake)
    }

    /// Keeps an answer, or only its record if the answer does not fit.
    fn keep(
        &self,
        key: Key,
        token: Token,
        answer: &Answer,
        whole: &dyn Fn(&Knowledge) -> Next,
        tombstone: &dyn Fn(&Knowledge) -> Next,
        now: Timestamp,
    ) -> Wake {
        let judge = |knowledge: &Knowledge| {
            let (known, asking) = whole(knowledge);
            let is_it = |known: &Known| {
                let kept =
                    matches!(known.head.state, State::Finished { kept: Kept::Answer(()), .. });
                kept && known.head.token == token
            };
            let next = Knowledge { known, asking };
            (next != *knowledge && next.known.as_ref().is_some_and(is_it)).then_some(next)
        };
        match self.table.put(key, token, answer, &judge, now) {
            Ok(Put::Kept { wake }) => wake,
            Ok(Put::DoesNotFit) | Err(_) => self.change(key, tombstone, now),
            // The answer is here already, or the known record belongs to another token.
            Ok(Put::Refused) => self.change(
                key,
                &|knowledge| {
                    let (known, asking) = whole(knowledge);
                    // Without its answer, the record would be a tombstone.
                    let known = known.filter(|known| known.head.token != token);
                    (known.or_else(|| knowledge.known.clone()), asking)
                },
                now,
            ),
        }
    }
}

/// A record that was decided here and that the shared store does not know, as it stands now: from the time
/// when the store was away, or an execution whose end it has not taken. It stays, whatever the shared store
/// says.
fn decided_here(knowledge: &Knowledge, now: Timestamp) -> Option<(&Known, Head)> {
    let known = knowledge.known.as_ref()?;
    let decided = match known.kind {
        Kind::LocalOnly => true,
        // A claim that has lapsed may have been taken over.
        Kind::Own => matches!(known.head.state, State::Finished { .. }),
        Kind::Snapshot | Kind::Cached => false,
    };
    let head = transitions::as_it_stands(&known.head, now)?;
    decided.then_some((known, head))
}

/// Attempts that began here while the shared store was away, and may have run: the shared store cannot count them.
fn attempts_here(knowledge: &Knowledge, now: Timestamp) -> u32 {
    let known = knowledge.known.as_ref().filter(|known| known.kind == Kind::LocalOnly);
    let head = known.map(|known| &known.head);
    let may_have_run = head.filter(|head| match head.state {
        State::Ongoing { .. } | State::Unknown { .. } => {
            transitions::as_it_stands(head, now).is_none()
        }
        State::Finished { .. } => false,
    });
    may_have_run.map_or(0, |head| head.attempt)
}

/// What replaces the known record and the lookup.
type Next = (Option<Known>, Option<Asking>);

/// The lookup, unless it is this claim's.
fn without(asking: Option<Asking>, token: Token) -> Option<Asking> {
    asking.filter(|asking| asking.token != token)
}

/// The known record of this token, as another kind.
fn of_kind(kind: Kind, known: Known, token: Token) -> Known {
    if known.head.token == token && known.kind != Kind::LocalOnly {
        Known { kind, ..known }
    } else {
        known
    }
}

/// The head of the same record without its answer, which is not here.
fn without_answer(head: &Head) -> Head {
    match &head.state {
        State::Finished { until, status, kept: Kept::Answer(()) } => {
            head.with_state(State::Finished { until: *until, status: *status, kept: Kept::Nothing })
        }
        State::Finished { .. } | State::Ongoing { .. } | State::Unknown { .. } => head.clone(),
    }
}

/// The record of a claim elsewhere, with the lease ending at the time of the next poll.
fn until_then<A>(record: Record<A>, look_again: Timestamp) -> Record<A> {
    let state = match record.state {
        State::Ongoing { lease_until, unknown_for } => {
            State::Ongoing { lease_until: lease_until.min(look_again), unknown_for }
        }
        other @ (State::Unknown { .. } | State::Finished { .. }) => other,
    };
    Record { state, ..record }
}

fn concluded(reply: Result<Reply, StoreError>, wake: Wake) -> Concluded {
    Concluded { reply, wake, give_back: false }
}

#[cfg(test)]
mod tests;
