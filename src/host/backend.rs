//! The store as a worker has it: a table in shared data alone, or in front of Redis.

use super::lines::Lines;
use super::store::{EnvoySharedData, micros};
use crate::exchange::Question;
use crate::store::coalesced::Groups;
use crate::store::redis::{Client, Event, Ticket};
use crate::store::shared_data::{Executed, MemoryStore, Tally};
use crate::store::tiers::{Begun, Tiers};
use crate::store::{Command, StoreError};
use crate::time::Timestamp;
use std::collections::HashMap;
use std::time::Duration;

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
    /// Questions that wait for the answer to the same question.
    pub(super) groups: Groups<Asker>,
    /// Whose question each command is, and since when.
    asked: HashMap<Ticket, (Asker, Micros)>,
    tickets: u64,
}

/// Microseconds since the Unix epoch: the core's milliseconds are too coarse to time a Redis by.
pub(super) type Micros = u64;

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

    /// What has changed in this Envoy's memory since this was asked last.
    pub(super) fn take_tally(&self) -> Tally {
        match self {
            Self::Memory(table) => table.take_tally(),
            Self::Redis(redis) => redis.tiers.take_tally(),
        }
    }

    /// What this Envoy's memory says.
    pub(super) fn begin(&self, command: &Command, now: Timestamp) -> Result<Begun, StoreError> {
        match self {
            Self::Memory(table) => table.execute(command, now).map(Begun::Answered),
            Self::Redis(redis) => Ok(redis.tiers.begin(command, now)),
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
            Self::Redis(redis) => {
                redis.client.alarm().into_iter().chain(redis.groups.alarm()).min()
            }
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
    pub(super) fn new(
        tiers: Tiers<EnvoySharedData>,
        client: Client,
        lines: Lines,
        timeout: Duration,
    ) -> Self {
        let (groups, asked) = (Groups::new(timeout), HashMap::new());
        Self { tiers, client, lines, groups, asked, tickets: 0 }
    }

    /// Sends a command to Redis; what comes of it is an event with this number.
    pub(super) fn send(
        &mut self,
        asker: Asker,
        command: Command,
        now: Timestamp,
    ) -> (Ticket, Vec<Event>) {
        self.tickets = self.tickets.wrapping_add(1);
        let ticket = Ticket(self.tickets);
        self.asked.insert(ticket, (asker, micros()));
        (ticket, self.client.ask(ticket, command, now))
    }

    /// Whose command this was, and how long ago.
    pub(super) fn asker(&mut self, ticket: Ticket) -> Option<(Asker, Micros)> {
        let (asker, since) = self.asked.remove(&ticket)?;
        Some((asker, micros().saturating_sub(since)))
    }
}
