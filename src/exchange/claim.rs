//! The right to execute, as a value that is used up.

use super::{Context, Order, Question, Whom};
use crate::key::Key;
use crate::record::{Kept, Token};
use crate::store::Command;
use crate::time::Timestamp;
use std::time::Duration;

/// Heartbeats in a lease. With three, two may be lost before the claim lapses; more would only
/// load the store.
const HEARTBEATS_PER_LEASE: u32 = 3;

/// The right to execute. Cannot be cloned; the commands that end it consume it, so that no way out
/// can end it twice.
#[derive(Debug)]
pub(super) struct Claim {
    whom: Whom,
    key: Key,
    token: Token,
    lease: Duration,
    lease_until: Timestamp,
    heartbeat_at: Timestamp,
    heartbeat: Option<Heartbeat>,
}

#[derive(Debug)]
struct Heartbeat {
    question: Question,
    asked_at: Timestamp,
}

impl Claim {
    /// A claim that `whom` gave, and that was asked for at `asked_at`: the store counted the lease from then or later, so
    /// what is believed here ends no later than what is true there.
    pub(super) fn new(
        whom: Whom,
        key: Key,
        token: Token,
        lease: Duration,
        asked_at: Timestamp,
    ) -> Self {
        Self {
            whom,
            key,
            token,
            lease,
            lease_until: asked_at.after(lease),
            heartbeat_at: asked_at.after(lease / HEARTBEATS_PER_LEASE),
            heartbeat: None,
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// Who keeps it.
    pub(super) fn whom(&self) -> Whom {
        self.whom
    }

    /// Until when the claim lives for sure.
    pub(super) fn lease_until(&self) -> Timestamp {
        self.lease_until
    }

    /// When the next heartbeat is due.
    pub(super) fn heartbeat_at(&self) -> Timestamp {
        self.heartbeat_at
    }

    /// The heartbeat, if it is due.
    pub(super) fn beat(&mut self, context: &mut Context, now: Timestamp) -> Option<Order> {
        if now < self.heartbeat_at {
            return None;
        }
        let command = Command::Extend { key: self.key, token: self.token, lease: self.lease };
        let (question, order) = context.ask(self.whom, command);
        self.heartbeat = Some(Heartbeat { question, asked_at: now });
        self.heartbeat_at = now.after(self.lease / HEARTBEATS_PER_LEASE);
        Some(order)
    }

    /// Whether `question` is the heartbeat in flight.
    pub(super) fn is_heartbeat(&self, question: Question) -> bool {
        self.heartbeat.as_ref().is_some_and(|heartbeat| heartbeat.question == question)
    }

    /// The heartbeat in flight was heard.
    pub(super) fn heard(&mut self) {
        if let Some(heartbeat) = self.heartbeat.take() {
            self.lease_until = heartbeat.asked_at.after(self.lease);
        }
    }

    /// The heartbeat in flight was not heard; the next one is due as planned.
    pub(super) fn unheard(&mut self) {
        self.heartbeat = None;
    }

    /// It ran, and this is kept.
    pub(super) fn complete(self, status: u16, kept: Kept, ttl: Duration) -> Command {
        Command::Complete { key: self.key, token: self.token, status, kept, ttl }
    }

    /// Nothing ran.
    pub(super) fn release(self) -> Command {
        Command::Release { key: self.key, token: self.token }
    }

    /// It may have run.
    pub(super) fn mark_unknown(self, unknown_for: Duration) -> Command {
        Command::MarkUnknown { key: self.key, token: self.token, unknown_for }
    }
}
