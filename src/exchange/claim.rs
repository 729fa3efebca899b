//! The right to execute, as a value that is used up.

use super::{Context, Order, RequestId, Whom};
use crate::config::Rule;
use crate::key::Key;
use crate::record::{Kept, Token};
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::Incident;
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
    in_flight: Option<InFlight>,
}

/// A heartbeat that has no reply yet.
#[derive(Debug)]
struct InFlight {
    question: RequestId,
    asked_at: Timestamp,
}

/// What a reply means for a claim that is alive.
pub(super) enum Heartbeat {
    /// It lives on.
    Alive,
    /// Another request has taken over; this is to be logged.
    Lost(Order),
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
            in_flight: None,
        }
    }

    pub(super) fn key(&self) -> Key {
        self.key
    }

    /// The store that granted it.
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
        self.in_flight = Some(InFlight { question, asked_at: now });
        self.heartbeat_at = now.after(self.lease / HEARTBEATS_PER_LEASE);
        Some(order)
    }

    /// What a reply of the store means for the claim: it may be the one to the heartbeat in flight.
    pub(super) fn heartbeat_replied(
        &mut self,
        rule: &Rule,
        question: RequestId,
        reply: Result<Reply, StoreError>,
    ) -> Heartbeat {
        let in_flight = self.in_flight.take_if(|in_flight| in_flight.question == question);
        let Some(InFlight { asked_at, .. }) = in_flight else { return Heartbeat::Alive };
        match reply {
            Ok(Reply::Done) => {
                self.lease_until = asked_at.after(self.lease);
                Heartbeat::Alive
            }
            Ok(Reply::NotOwner) => {
                let key = self.key;
                let said = format!("{} {key}: the claim was lost while the origin ran", rule.name);
                Heartbeat::Lost(Order::Log(Incident::ClaimLost, said))
            }
            // The next one is due as planned.
            Ok(Reply::Claimed { .. } | Reply::Exists(_)) | Err(_) => Heartbeat::Alive,
        }
    }

    /// It ran, and this is kept.
    pub(super) fn complete(self, status: u16, kept: Kept, ttl: Duration) -> Command {
        Command::Complete { key: self.key, token: self.token, status, kept, ttl }
    }

    /// Nothing ran.
    pub(super) fn release(self) -> Command {
        Command::Release { key: self.key, token: self.token }
    }

    /// It may have run: its outcome is unknown.
    pub(super) fn mark_unknown(self, unknown_for: Duration) -> Command {
        Command::MarkUnknown { key: self.key, token: self.token, unknown_for }
    }
}
