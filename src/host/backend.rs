//! The store as a worker has it: a table in shared data alone, or in front of Redis.

use super::lines::Lines;
use super::store::EnvoySharedData;
use crate::exchange::Question;
use crate::store::redis::{Client, Event, Ticket};
use crate::store::shared_data::{Executed, MemoryStore};
use crate::store::tiers::{Begun, Tiers};
use crate::store::{Command, StoreError};
use crate::time::Timestamp;
use std::collections::HashMap;

/// Where records are kept.
#[derive(Debug)]
pub(super) enum Backend {
    Memory(MemoryStore<EnvoySharedData>),
    Redis(Box<Redis>),
}

/// The two tiers, and the way to the far one.
#[derive(Debug)]
pub(super) struct Redis {
    pub(super) tiers: Tiers<EnvoySharedData>,
    pub(super) client: Client,
    pub(super) lines: Lines,
    /// Whose question each command is.
    asked: HashMap<Ticket, Asker>,
    tickets: u64,
}

/// A question of a stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asker {
    pub(super) stream: u32,
    pub(super) question: Question,
}

impl Backend {
    /// What all names in shared data begin with.
    pub(super) fn prefix(&self) -> &str {
        match self {
            Self::Memory(table) => table.prefix(),
            Self::Redis(redis) => redis.tiers.prefix(),
        }
    }

    /// What this Envoy's memory says, if that is enough.
    pub(super) fn known(
        &self,
        command: &Command,
        now: Timestamp,
    ) -> Option<Result<Executed, StoreError>> {
        match self {
            Self::Memory(table) => Some(table.execute(command, now)),
            Self::Redis(redis) => match redis.tiers.begin(command, now) {
                Begun::Answered(executed) => Some(Ok(executed)),
                Begun::AskShared => None,
            },
        }
    }

    /// Asks this Envoy's memory alone.
    pub(super) fn ask_here(
        &self,
        command: &Command,
        now: Timestamp,
    ) -> Result<Executed, StoreError> {
        match self {
            Self::Memory(table) => table.execute(command, now),
            Self::Redis(redis) => redis.tiers.alone(command, now),
        }
    }

    /// When the way to Redis wants a tick.
    pub(super) fn alarm(&self) -> Option<Timestamp> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => redis.client.alarm(),
        }
    }

    pub(super) fn redis(&mut self) -> Option<&mut Redis> {
        match self {
            Self::Memory(_) => None,
            Self::Redis(redis) => Some(redis),
        }
    }
}

impl Redis {
    pub(super) fn new(tiers: Tiers<EnvoySharedData>, client: Client, lines: Lines) -> Self {
        Self { tiers, client, lines, asked: HashMap::new(), tickets: 0 }
    }

    /// Sends a command to Redis; what comes of it is an event.
    pub(super) fn send(&mut self, asker: Asker, command: Command, now: Timestamp) -> Vec<Event> {
        self.tickets = self.tickets.wrapping_add(1);
        let ticket = Ticket(self.tickets);
        self.asked.insert(ticket, asker);
        self.client.ask(ticket, command, now)
    }

    /// Whose command this was.
    pub(super) fn asker(&mut self, ticket: Ticket) -> Option<Asker> {
        self.asked.remove(&ticket)
    }
}
