//! A ledger that sees all executions, and the invariants.

use crate::faults::Rule;
use envoy_idempotency::record::Token;
use envoy_idempotency::store::Command;
use envoy_idempotency::store::transitions::{Change, Verdict};

/// A rule and an id.
pub type Operation = (usize, u64);

/// One execution.
#[derive(Debug)]
struct Execution {
    operation: Operation,
    envoy: usize,
    token: Token,
    /// When its end was recorded, and how long that holds, by Redis.
    redis_free_at: Option<u64>,
    /// The lease as Redis counts it; `None` if Redis gave no claim.
    redis_lease_until: Option<u64>,
    /// The lease as its owner has asked for it.
    own_lease_until: u64,
    /// From then on it may run again in its own Envoy; `None` while nothing has ended it.
    own_free_at: Option<u64>,
    /// When its owner has asked its store for its end first.
    own_ended_at: Option<u64>,
    /// Its own Envoy knows of its end, whether or not Redis does.
    end_heard: bool,
    /// It ended with an outcome that nobody knows.
    is_unknown: bool,
    completed_until: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Ledger {
    executions: Vec<Execution>,
    /// When Redis gave which claim, and its lease.
    claims: Vec<(Token, u64, u64)>,
}

impl Ledger {
    fn of(&mut self, token: Token) -> Option<&mut Execution> {
        self.executions.iter_mut().rev().find(|execution| execution.token == token)
    }

    /// Redis has carried out a command.
    pub fn redis_did(&mut self, command: &Command, verdict: &Verdict, now: u64) {
        let token = command.token();
        match (command, verdict) {
            (Command::Claim { lease, .. }, Verdict::Claimed { change: Change::Put(_), .. }) => {
                self.claims.push((token, now, now + lease.as_millis() as u64));
            }
            (Command::Extend { lease, .. }, Verdict::Done(_)) => {
                let until = now + lease.as_millis() as u64;
                if let Some(claim) = self.claims.iter_mut().rev().find(|claim| claim.0 == token) {
                    claim.2 = until;
                }
                if let Some(execution) = self.of(token) {
                    execution.redis_lease_until = Some(until);
                }
            }
            (Command::Complete { ttl, .. }, Verdict::Done(Change::Put(_))) => {
                if let Some(execution) = self.of(token) {
                    execution.redis_free_at = Some(now + ttl.as_millis() as u64);
                }
            }
            (Command::Release { .. }, Verdict::Done(_)) => {
                if let Some(execution) = self.of(token) {
                    execution.redis_free_at = Some(now);
                }
            }
            (Command::MarkUnknown { unknown_for, .. }, Verdict::Done(_)) => {
                if let Some(execution) = self.of(token) {
                    execution.redis_free_at = Some(now + unknown_for.as_millis() as u64);
                }
            }
            _ => {}
        }
    }

    /// The owner of a claim asks its store for this.
    pub fn owner_asks(&mut self, command: &Command, unknown_for: u64, now: u64) {
        let Some(execution) = self.of(command.token()) else { return };
        if !matches!(command, Command::Claim { .. } | Command::Extend { .. }) {
            execution.own_ended_at.get_or_insert(now);
        }
        match command {
            Command::Claim { .. } => {}
            Command::Extend { lease, .. } => {
                execution.own_lease_until = now + lease.as_millis() as u64;
            }
            Command::Complete { ttl, .. } => {
                let until = now + ttl.as_millis() as u64;
                execution.own_free_at.get_or_insert(until);
                execution.completed_until = Some(until);
            }
            Command::Release { .. } => execution.own_free_at = Some(now),
            Command::MarkUnknown { .. } => {
                let from = now.min(execution.own_lease_until);
                execution.is_unknown = true;
                execution.own_free_at.get_or_insert(from + unknown_for);
            }
        }
    }

    /// Its worker is gone: its own Envoy may never have heard of the end.
    pub fn owner_dies(&mut self, token: Token) {
        if let Some(execution) = self.of(token).filter(|execution| !execution.end_heard) {
            execution.own_free_at = None;
        }
    }

    /// The owner has a reply.
    pub fn owner_hears(&mut self, token: Token) {
        if let Some(execution) = self.of(token) {
            execution.end_heard |= execution.own_free_at.is_some();
        }
    }

    /// Another request has taken over: later commands of the owner do not count.
    pub fn claim_lost(&mut self, token: Token, now: u64) {
        if let Some(execution) = self.of(token) {
            execution.own_free_at = Some(now.min(execution.own_free_at.unwrap_or(now)));
        }
    }

    /// A request runs.
    ///
    /// # Panics
    ///
    /// If an earlier execution of the same operation forbids it.
    pub fn executes(
        &mut self,
        operation: Operation,
        rule: &Rule,
        memory: bool,
        envoy: usize,
        token: Token,
        now: u64,
    ) {
        let claim = self.claims.iter().rev().find(|claim| claim.0 == token).copied();
        for earlier in self.executions.iter().filter(|earlier| earlier.operation == operation) {
            let lapses = |lease: u64| lease + rule.unknown_for;
            let by_redis = earlier.redis_free_at.or(earlier.redis_lease_until.map(lapses));
            // An end that is asked for when the claim has lapsed in Redis may find that it is taken over.
            let taken_over = earlier.redis_lease_until.map(lapses).is_some_and(|lapsed_at| {
                earlier.own_ended_at.is_some_and(|ended_at| lapsed_at <= ended_at)
            });
            let own_free_at = earlier.own_free_at.filter(|_| !taken_over);
            let own = own_free_at.unwrap_or(lapses(earlier.own_lease_until));
            // Redis may have missed heartbeats, so that the claim lapsed there before.
            let may_lapse = earlier.is_unknown || own_free_at.is_none();
            let by_owner = by_redis.filter(|_| may_lapse).map_or(own, |redis| own.min(redis));
            let (free_at, at) = match (rule.on_store_error, memory) {
                ("pass", false) => continue,
                // Duplicates that meet in one Envoy run once, whatever Redis does.
                ("local", false) | (_, true) => {
                    if earlier.envoy != envoy {
                        continue;
                    }
                    (by_owner, now)
                }
                // Redis's reply counts, not the time that it took to get here.
                _ => {
                    let (_, claimed_at, _) = claim.expect("executed without a claim of Redis");
                    (by_redis.expect("a claim has a lease"), claimed_at)
                }
            };
            assert!(
                free_at <= at,
                "operation {operation:?} runs again at {at} in Envoy {envoy}, and is not free until {free_at}: {earlier:?}"
            );
        }
        self.executions.push(Execution {
            operation,
            envoy,
            token,
            redis_free_at: None,
            redis_lease_until: claim.map(|(_, _, lease_until)| lease_until),
            own_lease_until: now + rule.lease,
            own_free_at: None,
            own_ended_at: None,
            end_heard: false,
            is_unknown: false,
            completed_until: None,
        });
    }

    /// A replay is of an execution that was completed; its record may end while the reply is on its way.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub fn replayed(&self, operation: Operation, slack: u64, now: u64) {
        let lives = |execution: &&Execution| {
            let until = execution.completed_until.max(execution.redis_free_at);
            execution.operation == operation && until.is_some_and(|until| now < until + slack)
        };
        let found = self.executions.iter().any(|execution| lives(&execution));
        assert!(found, "{operation:?} is replayed at {now} and not recorded");
    }
}
