//! A worker's questions to the store and requests of its own: what is on its way, and who waits for it.

use super::Worker;
use crate::exchange::{Fetched, Headers, Input, StoreReply, WorkerFact};
use crate::host::abi;
use crate::host::backend::Asker;
use crate::host::calls::{self, Caller, Wanted};
use crate::host::journal;
use crate::host::lines::Did;
use crate::host::store::now;
use crate::key::Key;
use crate::store::coalesced::{Coalesced, Turn};
use crate::store::redis::{Call, Event, Line, Ticket};
use crate::store::shared_data::{Executed, INSERT};
use crate::store::tiers::Begun;
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::Incident;
use crate::time::Timestamp;

/// The status of a call that Envoy would not make, as if it had found no connection.
const NO_CONNECTION: u16 = 503;

/// The status of a call that has got none.
const NO_ANSWER: u16 = 0;

/// Something that has come, and that was not dealt with yet.
#[derive(Debug)]
pub(super) enum Fact {
    /// Redis has replied to a command, or has failed.
    RedisReplied(Ticket, Command, Result<Reply, StoreError>),
    /// A request of the worker's own has its answer.
    Fetched(Asker, Fetched),
    /// The claim on this key has ended in another Envoy, or may have.
    EndedElsewhere(Key),
}

/// Where facts for streams come from. A callback takes one of each in turn, so that no source waits for
/// another to run dry.
#[derive(Clone, Copy, Debug)]
enum Source {
    Facts,
    Waiters,
    Timers,
    Groups,
}

impl Source {
    const ALL: [Self; 4] = [Self::Facts, Self::Waiters, Self::Timers, Self::Groups];
}

impl Worker {
    /// A message of a stream to Redis.
    pub(in crate::host) fn grpc_message(&mut self, token: u32, size: usize) {
        self.budget.renew();
        let now = now();
        let Some(redis) = self.store.redis() else { return };
        let Some(line) = redis.lines.line(token) else { return };
        let events = redis.client.received(line, &abi::grpc_message(size), now);
        self.absorb(events, now);
        self.work_off();
    }

    /// A stream to Redis has ended.
    pub(in crate::host) fn grpc_closed(&mut self, token: u32) {
        let Some(redis) = self.store.redis() else { return };
        let Some(line) = redis.lines.forget(token) else { return };
        self.metrics.pipe(-1);
        self.line_closed(line);
        self.work_off();
    }

    /// An HTTP call has its response.
    pub(in crate::host) fn call_answered(&mut self, token: u32, headers: usize, size: usize) {
        let Some(caller) = self.calls.over(token) else { return };
        self.call_is_over(caller, calls::fetched(headers, size));
        self.work_off();
    }

    /// Deals with facts, as far as the callback's share goes.
    pub(super) fn work_off(&mut self) {
        let mut idle = false;
        while !idle {
            idle = true;
            for source in Source::ALL {
                if self.budget.is_spent() {
                    return;
                }
                if self.deal_with_one(source, now()) {
                    self.budget.spend();
                    idle = false;
                }
            }
        }
    }

    /// Whether the source had any.
    fn deal_with_one(&mut self, source: Source, now: Timestamp) -> bool {
        match source {
            Source::Facts => {
                let Some(fact) = self.facts.pop_front() else { return false };
                self.deal_with(fact, now);
            }
            Source::Waiters => {
                let Some(id) = self.waiters.take_woken() else { return false };
                self.come_back(id, Input::Worker(WorkerFact::Woken));
            }
            Source::Timers => {
                let Some(id) = self.timers.take_due(now) else { return false };
                self.come_back(id, Input::Worker(WorkerFact::Tick));
            }
            Source::Groups => {
                let turn = self.store.redis().and_then(|redis| redis.groups.take_turn(now));
                let Some(turn) = turn else { return false };
                self.take_turn(turn, now);
            }
        }
        true
    }

    fn deal_with(&mut self, fact: Fact, now: Timestamp) {
        match fact {
            Fact::RedisReplied(ticket, command, reply) => {
                if let Some((asker, reply)) = self.conclude(ticket, &command, reply, now) {
                    self.answered(asker, reply);
                }
            }
            Fact::Fetched(Asker { stream, question }, fetched) => {
                self.come_back(
                    stream,
                    Input::Worker(WorkerFact::OriginReplied { question, fetched }),
                );
            }
            Fact::EndedElsewhere(key) => {
                if let Some(redis) = self.store.redis() {
                    redis.tiers.ended(key, now);
                    redis.groups.answered(key, false);
                }
                self.waiters.wake(key);
            }
        }
    }

    /// A question that has waited for another begins again, or fails as that one did.
    fn take_turn(&mut self, turn: Turn<Asker>, now: Timestamp) {
        let (asker, reply) = match turn {
            Turn::Begin(question) => {
                let asker = question.request;
                let Some(reply) = self.begin(question, now) else { return };
                (asker, reply)
            }
            Turn::Fail(Coalesced { request, command, .. }) => {
                let error = StoreError::Unavailable("the same question got no answer");
                (request, self.executed(&command, Err(error)))
            }
        };
        self.answered(asker, reply);
    }

    fn answered(&mut self, asker: Asker, reply: Result<Reply, StoreError>) {
        let Asker { stream, question } = asker;
        self.come_back(stream, Input::Store(StoreReply { question, reply }));
    }

    /// Asks the store. What it can say at once is returned; else it is a fact, later.
    pub(super) fn ask(
        &mut self,
        request: Asker,
        command: Command,
        now: Timestamp,
    ) -> Option<Result<Reply, StoreError>> {
        self.begin(Coalesced { request, command, since: now }, now)
    }

    fn begin(
        &mut self,
        question: Coalesced<Asker>,
        now: Timestamp,
    ) -> Option<Result<Reply, StoreError>> {
        let key = question.command.key();
        let mut begun = self.store.begin(&question.command, now);
        if matches!(begun, Ok(Begun::Undecided(_))) && self.queues.listen(now) {
            // The answer may have come before anybody knew that this worker listens.
            begun = self.store.begin(&question.command, now);
        }
        let executed = match begun {
            Ok(Begun::Answered(executed)) => Ok(executed),
            Err(error) => Err(error),
            Ok(Begun::Undecided(until)) => {
                if let Some(redis) = self.store.redis() {
                    redis.groups.park(question, until, now);
                }
                self.hurry(self.store.alarm(), now);
                return None;
            }
            Ok(Begun::AskShared) => {
                return self.send(question.request, question.command, now);
            }
        };
        if let Some(redis) = self.store.redis() {
            redis.groups.answered(key, false);
        }
        Some(self.executed(&question.command, executed))
    }

    /// Sends a command to Redis. The reply is returned if there is one already: Redis cannot be asked.
    fn send(
        &mut self,
        asker: Asker,
        command: Command,
        now: Timestamp,
    ) -> Option<Result<Reply, StoreError>> {
        let (ticket, mut events) = self.store.redis()?.send(asker, command, now);
        let own =
            |event: &mut Event| matches!(event, Event::Replied(other, ..) if *other == ticket);
        let refused = events.extract_if(.., own).next();
        self.absorb(events, now);
        match refused {
            Some(Event::Replied(ticket, command, reply)) => {
                self.conclude(ticket, &command, reply, now).map(|(_, reply)| reply)
            }
            Some(_) | None => None,
        }
    }

    /// A command was carried out in this Envoy's memory.
    pub(super) fn executed(
        &mut self,
        command: &Command,
        executed: Result<Executed, StoreError>,
    ) -> Result<Reply, StoreError> {
        let reply = executed.map(|executed| {
            self.changed(command.key(), executed.wake);
            executed.reply
        });
        self.metrics.operation(command, &reply);
        reply
    }

    fn changed(&self, key: Key, wake: bool) {
        if wake {
            self.queues.broadcast(key);
        }
    }

    /// Takes Redis's reply to a command: whose question it was, and what it comes to.
    fn conclude(
        &mut self,
        ticket: Ticket,
        command: &Command,
        reply: Result<Reply, StoreError>,
        now: Timestamp,
    ) -> Option<(Asker, Result<Reply, StoreError>)> {
        let redis = self.store.redis()?;
        let (asker, took) = redis.asker(ticket)?;
        if reply.is_ok() {
            // What fails is counted elsewhere: at once, or after the time-out, it says nothing of Redis.
            self.metrics.store_took(took);
        }
        let concluded = redis.tiers.conclude(command, reply, now);
        redis.groups.answered(command.key(), concluded.reply.is_err());
        self.changed(command.key(), concluded.wake);
        self.metrics.operation(command, &concluded.reply);
        Some((asker, concluded.reply))
    }

    /// Takes what the way to Redis wants. Bytes are written at once, in the order in which the client
    /// expects their replies; what concerns streams is kept for [`Worker::work_off`].
    pub(super) fn absorb(&mut self, events: Vec<Event>, now: Timestamp) {
        for event in events {
            let Some(redis) = self.store.redis() else { return };
            match event {
                Event::Open(line) => {
                    redis.lines.want(line);
                    self.queues.call_back();
                }
                Event::Call(ticket, Call { method, path, body, timeout }) => {
                    let cluster = redis.lines.cluster().to_owned();
                    let headers = [
                        (":method", method.to_owned()),
                        (":path", path),
                        (":authority", cluster.clone()),
                        ("content-length", body.len().to_string()),
                    ];
                    let bytes = |(name, value): (&str, String)| (name.into(), value.into_bytes());
                    let headers = headers.map(bytes).into();
                    let caller = Caller::Store(ticket);
                    self.calls.want(Wanted { caller, cluster, headers, body, timeout });
                    self.queues.call_back();
                }
                Event::Write(line, bytes) => redis.lines.write(line, bytes),
                Event::Close(line) => {
                    redis.lines.close(line);
                    self.metrics.pipe(-1);
                }
                Event::Replied(ticket, command, reply) => {
                    self.facts.push_back(Fact::RedisReplied(ticket, command, reply));
                }
                Event::Ended(key) => self.facts.push_back(Fact::EndedElsewhere(key)),
                Event::Warn(text) => journal::tell(Incident::Redis, &text),
                Event::WarnOnce(text) => {
                    let said = format!("{}/said/{text}", redis.tiers.prefix());
                    // An insertion: of all workers, one is first.
                    if abi::set_shared_data(&said, b"1", INSERT).is_ok() {
                        journal::tell(Incident::Redis, &text);
                    }
                }
            }
        }
        self.hurry(self.store.alarm(), now);
    }

    /// What only a callback of the root's own may do.
    pub(super) fn as_root(&mut self) {
        for caller in self.calls.as_root(&mut self.budget) {
            self.call_is_over(caller, Fetched::NotSent);
        }
        let Some(redis) = self.store.redis() else { return };
        for did in redis.lines.as_root() {
            match did {
                Did::Opened(line) => {
                    self.metrics.pipe(1);
                    let Some(redis) = self.store.redis() else { return };
                    let now = now();
                    let events = redis.client.opened(line, now);
                    self.absorb(events, now);
                }
                Did::Failed(line) => self.line_closed(line),
            }
        }
    }

    fn call_is_over(&mut self, caller: Caller, fetched: Fetched) {
        match caller {
            Caller::Stream(asker) => self.facts.push_back(Fact::Fetched(asker, fetched)),
            Caller::Store(ticket) => {
                let Some(redis) = self.store.redis() else { return };
                let (status, body) = match fetched {
                    Fetched::NotSent => (NO_CONNECTION, Vec::new()),
                    Fetched::Broken => (NO_ANSWER, Vec::new()),
                    Fetched::Answer { headers, body } => (status(&headers), body),
                };
                let now = now();
                let events = redis.client.called(ticket, status, &body, now);
                self.absorb(events, now);
            }
        }
    }

    fn line_closed(&mut self, line: Line) {
        let Some(redis) = self.store.redis() else { return };
        let now = now();
        let events = redis.client.closed(line, now);
        self.absorb(events, now);
    }
}

/// The status of a response; zero if it has none.
fn status(headers: &Headers) -> u16 {
    let status = headers.iter().find(|(name, _)| name == b":status");
    status.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(NO_ANSWER)
}
