//! Everything between a request's command and its reply, without IO.
//!
//! A worker has one [`Front`]. It owns the table in this Envoy's memory, the Redis client, the coalesced
//! requests and the commands in flight. Facts go in, orders come out:
//!
//! ```text
//!   ask(request, command) ──▶ ┌───────┐ ──▶ the reply, if it is known here
//!   handle(fact)          ──▶ │ Front │
//!   work(): one step      ──▶ └───────┘ ──▶ orders: reply, open, write, close, call, wake, listen, …
//! ```
//!
//! The rule: *the host carries out the orders one after the other, in order, and none in the middle of
//! another.* [`Front::handle`] only stores a fact; [`Front::work`] handles its effects on requests, one step
//! at a time. So a request that asks again after a reply cannot overtake bytes that were written before, and
//! the host decides how many steps a callback takes.

use super::coalesced::{Coalesced, Groups, Turn};
use super::redis::{Call, Client, CommandId, Connection, Event};
use super::shared_data::{Executed, MemoryStore, SharedData, Tally};
use super::tiers::{Begun, Concluded, Tiers};
use super::{Command, CommandKind, Reply, ReplyKind, StoreError};
use crate::key::Key;
use crate::time::Timestamp;
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

/// The stores of one worker. `R` identifies a command of a request.
#[derive(Debug)]
pub struct Front<S, R> {
    store: Store<S, R>,
    orders: VecDeque<Order<R>>,
}

#[derive(Debug)]
enum Store<S, R> {
    /// Only the table.
    Memory(MemoryStore<S>),
    /// The table in front of Redis.
    Redis(Box<Redis<S, R>>),
}

#[derive(Debug)]
struct Redis<S, R> {
    tiers: Tiers<S>,
    client: Client,
    groups: Groups<R>,
    /// Commands in flight.
    asked: HashMap<CommandId, Asked<R>>,
    ids: u64,
    /// Events of Redis that are not handled yet.
    come: VecDeque<Come>,
    /// The next step takes a coalesced request, if there is one.
    groups_next: bool,
}

#[derive(Debug)]
struct Asked<R> {
    /// `None`: the front's own command, which gives a claim back.
    request: Option<R>,
    since: Timestamp,
}

#[derive(Debug)]
enum Come {
    Replied(CommandId, Box<(Command, Result<Reply, StoreError>)>),
    Ended(Key),
}

/// Something that has happened.
#[derive(Clone, Copy, Debug)]
pub enum Fact<'a> {
    /// A connection is open and takes bytes.
    Opened(Connection),
    /// Bytes were received.
    Received(Connection, &'a [u8]),
    /// A connection is closed, or could not be opened.
    Closed(Connection),
    /// The response of an HTTP call: status (0 for none) and body.
    Called(CommandId, u16, &'a [u8]),
    /// Another worker reports that the claim on this key has ended.
    Ended(Key),
    /// Another worker reports that the lookup of this key has its reply.
    Answered(Key),
    /// From now on, this worker receives [`Order::Wake`] of the others.
    Listening,
    /// The time of [`Front::alarm`] is reached.
    Tick,
}

/// What the host must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order<R> {
    /// The reply to this command.
    Reply(R, Result<Reply, StoreError>),
    /// Open this connection, then report [`Fact::Opened`] or [`Fact::Closed`].
    Open(Connection),
    /// Send these bytes on it.
    Write(Connection, Vec<u8>),
    /// Close it. No [`Fact::Closed`] is needed.
    Close(Connection),
    /// Make this HTTP call, then report [`Fact::Called`].
    Call(CommandId, Call),
    /// Send [`Fact::Ended`] to every worker of this Envoy, this one included.
    Wake(Key),
    /// Send [`Fact::Answered`] to every worker of this Envoy, this one included.
    WakeAskers(Key),
    /// The claim on this key has ended: wake the requests that wait for it in this worker.
    WakeHere(Key),
    /// Make sure that this worker receives [`Order::Wake`]; report [`Fact::Listening`] if that is new.
    Listen,
    /// Count this command and its reply.
    Count(CommandKind, ReplyKind),
    /// Time that Redis took to reply.
    Took(Duration),
    /// A warning for the log.
    Warn(String),
    /// A warning for the log, once per Envoy: every worker finds the same.
    WarnOnce(String),
}

impl<S: SharedData, R: Copy> Front<S, R> {
    /// The table is the store.
    pub fn memory(table: MemoryStore<S>) -> Self {
        Self { store: Store::Memory(table), orders: VecDeque::new() }
    }

    /// The table stands in front of Redis. `timeout`: how long a command may take.
    pub fn redis(tiers: Tiers<S>, client: Client, timeout: Duration) -> Self {
        let redis = Redis {
            tiers,
            client,
            groups: Groups::new(timeout),
            asked: HashMap::new(),
            ids: 0,
            come: VecDeque::new(),
            groups_next: false,
        };
        Self { store: Store::Redis(Box::new(redis)), orders: VecDeque::new() }
    }

    /// The prefix of all names in shared data.
    pub fn prefix(&self) -> &str {
        match &self.store {
            Store::Memory(table) => table.prefix(),
            Store::Redis(redis) => redis.tiers.prefix(),
        }
    }

    /// Changes of the table since the last call.
    pub fn take_tally(&self) -> Tally {
        match &self.store {
            Store::Memory(table) => table.take_tally(),
            Store::Redis(redis) => redis.tiers.take_tally(),
        }
    }

    /// Sends a command to the store. A reply that is known at once is returned; else it comes later as an
    /// [`Order::Reply`].
    pub fn ask(
        &mut self,
        request: R,
        command: Command,
        now: Timestamp,
    ) -> Option<Result<Reply, StoreError>> {
        let Self { store, orders } = self;
        match store {
            Store::Memory(table) => {
                let executed = table.execute(&command, now);
                Some(told(&command, executed, orders))
            }
            Store::Redis(redis) => {
                redis.begin(Coalesced { request, command, since: now }, now, orders)
            }
        }
    }

    /// Runs the command in this Envoy's memory only, whatever the store is.
    pub fn ask_here(&mut self, command: &Command, now: Timestamp) -> Result<Reply, StoreError> {
        let executed = match &self.store {
            Store::Memory(table) => table.execute(command, now),
            Store::Redis(redis) => redis.tiers.local_only(command, now),
        };
        told(command, executed, &mut self.orders)
    }

    /// From now on, [`Order::WakeHere`] when the claim on this key ends elsewhere, if Redis can publish that.
    pub fn watch(&mut self, key: Key, now: Timestamp) {
        if let Store::Redis(redis) = &mut self.store {
            let events = redis.client.watch(key, now);
            redis.absorb(events, &mut self.orders);
        }
    }

    /// Stops that.
    pub fn unwatch(&mut self, key: Key, now: Timestamp) {
        if let Store::Redis(redis) = &mut self.store {
            let events = redis.client.unwatch(key, now);
            redis.absorb(events, &mut self.orders);
        }
    }

    /// Takes a fact. [`Front::work`] handles its effects on requests.
    pub fn handle(&mut self, fact: Fact<'_>, now: Timestamp) {
        if let Fact::Ended(key) = fact {
            self.orders.push_back(Order::WakeHere(key));
        }
        if let Store::Redis(redis) = &mut self.store {
            let events = redis.handle(fact, now);
            redis.absorb(events, &mut self.orders);
        }
    }

    /// Handles one event, if there is one.
    pub fn work(&mut self, now: Timestamp) -> bool {
        match &mut self.store {
            Store::Memory(_) => false,
            Store::Redis(redis) => redis.work(now, &mut self.orders),
        }
    }

    /// [`Front::work`] has something to do now, whatever the time.
    pub fn has_work(&self) -> bool {
        match &self.store {
            Store::Memory(_) => false,
            Store::Redis(redis) => !redis.come.is_empty() || redis.groups.has_answered(),
        }
    }

    /// The next order to carry out.
    pub fn next_order(&mut self) -> Option<Order<R>> {
        self.orders.pop_front()
    }

    /// When it needs a [`Fact::Tick`] and [`Front::work`], if nothing comes before.
    pub fn alarm(&self) -> Option<Timestamp> {
        match &self.store {
            Store::Memory(_) => None,
            Store::Redis(redis) => {
                redis.client.alarm().into_iter().chain(redis.groups.alarm()).min()
            }
        }
    }
}

type Orders<R> = VecDeque<Order<R>>;

impl<S: SharedData, R: Copy> Redis<S, R> {
    fn handle(&mut self, fact: Fact<'_>, now: Timestamp) -> Vec<Event> {
        match fact {
            Fact::Opened(connection) => self.client.opened(connection, now),
            Fact::Received(connection, bytes) => self.client.received(connection, bytes, now),
            Fact::Closed(connection) => self.client.closed(connection, now),
            Fact::Called(id, status, body) => self.client.called(id, status, body, now),
            Fact::Tick => self.client.tick(now),
            Fact::Ended(key) | Fact::Answered(key) => {
                self.groups.answered(key, false);
                Vec::new()
            }
            Fact::Listening => {
                // This worker did not receive the messages about earlier ends.
                self.groups.look_now(now);
                Vec::new()
            }
        }
    }

    /// Takes the client's events. The host's part is ordered at once, in the order in which the client
    /// expects the replies.
    fn absorb(&mut self, events: Vec<Event>, orders: &mut Orders<R>) {
        for event in events {
            match event {
                Event::Open(connection) => orders.push_back(Order::Open(connection)),
                Event::Write(connection, bytes) => {
                    orders.push_back(Order::Write(connection, bytes))
                }
                Event::Close(connection) => orders.push_back(Order::Close(connection)),
                Event::Call(id, call) => orders.push_back(Order::Call(id, call)),
                Event::Warn(text) => orders.push_back(Order::Warn(text)),
                Event::WarnOnce(text) => orders.push_back(Order::WarnOnce(text)),
                Event::Replied(id, command, reply) => {
                    self.come.push_back(Come::Replied(id, Box::new((command, reply))));
                }
                Event::Ended(key) => self.come.push_back(Come::Ended(key)),
            }
        }
    }

    fn work(&mut self, now: Timestamp, orders: &mut Orders<R>) -> bool {
        let groups_first = std::mem::replace(&mut self.groups_next, false);
        if groups_first && self.work_on_group(now, orders) {
            return true;
        }
        match self.come.pop_front() {
            Some(Come::Replied(id, replied)) => {
                let (command, reply) = *replied;
                self.groups_next = true;
                if let Some((request, reply)) = self.apply_reply(id, &command, reply, now, orders) {
                    orders.push_back(Order::Reply(request, reply));
                }
                true
            }
            Some(Come::Ended(key)) => {
                self.groups_next = true;
                self.tiers.ended(key, now);
                self.groups.answered(key, false);
                orders.push_back(Order::WakeHere(key));
                true
            }
            None => !groups_first && self.work_on_group(now, orders),
        }
    }

    /// A coalesced request starts again, or fails with the error of the one that it waited for.
    fn work_on_group(&mut self, now: Timestamp, orders: &mut Orders<R>) -> bool {
        let (request, reply) = match self.groups.take_turn(now) {
            None => return false,
            Some(Turn::Begin(question)) => {
                let request = question.request;
                let Some(reply) = self.begin(question, now, orders) else { return true };
                (request, reply)
            }
            Some(Turn::Fail(Coalesced { request, command, .. })) => {
                let error = StoreError::Unavailable("the coalesced command got no reply");
                (request, told(&command, Err(error), orders))
            }
        };
        orders.push_back(Order::Reply(request, reply));
        true
    }

    fn begin(
        &mut self,
        question: Coalesced<R>,
        now: Timestamp,
        orders: &mut Orders<R>,
    ) -> Option<Result<Reply, StoreError>> {
        match self.tiers.begin(&question.command, now) {
            Begun::Answered(record) => {
                let executed = Executed { reply: Reply::Exists(record), wake: false };
                self.groups.answered(question.command.key(), false);
                Some(told(&question.command, Ok(executed), orders))
            }
            Begun::Undecided(until) => {
                self.groups.park(question, until, now);
                orders.push_back(Order::Listen);
                None
            }
            Begun::AskShared => self.send(Some(question.request), question.command, now, orders),
        }
    }

    /// Sends a command to Redis. The reply is returned if it is there already, because Redis cannot be
    /// reached.
    fn send(
        &mut self,
        request: Option<R>,
        command: Command,
        now: Timestamp,
        orders: &mut Orders<R>,
    ) -> Option<Result<Reply, StoreError>> {
        self.ids = self.ids.wrapping_add(1);
        let id = CommandId(self.ids);
        self.asked.insert(id, Asked { request, since: now });
        let mut events = self.client.ask(id, command, now);
        let own = |event: &mut Event| matches!(event, Event::Replied(other, ..) if *other == id);
        let refused = events.extract_if(.., own).next();
        self.absorb(events, orders);
        let Some(Event::Replied(id, command, reply)) = refused else { return None };
        self.apply_reply(id, &command, reply, now, orders).map(|(_, reply)| reply)
    }

    /// Takes Redis's reply to a command: the request that it belongs to, and the result.
    fn apply_reply(
        &mut self,
        id: CommandId,
        command: &Command,
        reply: Result<Reply, StoreError>,
        now: Timestamp,
        orders: &mut Orders<R>,
    ) -> Option<(R, Result<Reply, StoreError>)> {
        let Asked { request, since } = self.asked.remove(&id)?;
        if reply.is_ok() {
            // Failures are counted elsewhere: they come at once or after the timeout, and say nothing about
            // Redis's speed.
            orders.push_back(Order::Took(since.until(now)));
        }
        let (key, token) = (command.key(), command.token());
        let Concluded { reply, wake, give_back } = self.tiers.apply_reply(command, reply, now);
        self.groups.answered(key, reply.is_err());
        if wake.waiters {
            orders.push_back(Order::Wake(key));
        } else if wake.askers {
            orders.push_back(Order::WakeAskers(key));
        }
        orders.push_back(Order::Count(command.kind(), ReplyKind::of(&reply)));
        if give_back {
            self.send(None, Command::Release { key, token }, now, orders);
        }
        Some((request?, reply))
    }
}

/// A command was carried out in this Envoy's memory, or not at all.
fn told<R>(
    command: &Command,
    executed: Result<Executed, StoreError>,
    orders: &mut Orders<R>,
) -> Result<Reply, StoreError> {
    let reply = executed.map(|Executed { reply, wake }| {
        if wake {
            orders.push_back(Order::Wake(command.key()));
        }
        reply
    });
    orders.push_back(Order::Count(command.kind(), ReplyKind::of(&reply)));
    reply
}

#[cfg(test)]
mod tests;
