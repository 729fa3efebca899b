//! A worker's questions to the store and requests of its own: what is on its way, and who waits for it.

use super::Worker;
use crate::exchange::{Fetched, Headers, Input, Question};
use crate::host::abi;
use crate::host::backend::Asker;
use crate::host::calls::{self, Caller, Wanted};
use crate::host::journal;
use crate::host::lines::Did;
use crate::host::parked::Waiting;
use crate::host::store::now;
use crate::key::Key;
use crate::store::redis::{Call, Event, Line};
use crate::store::shared_data::{Executed, INSERT};
use crate::store::tiers::Begun;
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::Incident;
use crate::time::Timestamp;
use std::time::Duration;

/// The status of a call that Envoy would not make, as if it had found no connection.
const NO_CONNECTION: u16 = 503;

/// The status of a call that has got none.
const NO_ANSWER: u16 = 0;

/// When a question that waits for another looks by itself, should the word get lost: a fraction of the
/// shortest time a person notices.
const LOST_WORD: Duration = Duration::from_millis(50);

impl Worker {
    /// A message of a stream to Redis.
    pub(in crate::host) fn grpc_message(&mut self, token: u32, size: usize) {
        let Some(redis) = self.store.redis() else { return };
        let Some(line) = redis.lines.line(token) else { return };
        let events = redis.client.received(line, &abi::grpc_message(size), now());
        self.perform(events);
        self.deliver();
    }

    /// A stream to Redis has ended.
    pub(in crate::host) fn grpc_closed(&mut self, token: u32) {
        let Some(redis) = self.store.redis() else { return };
        let Some(line) = redis.lines.forget(token) else { return };
        self.metrics.pipe(-1);
        self.line_closed(line);
        self.deliver();
    }

    /// An HTTP call has its response.
    pub(in crate::host) fn call_answered(&mut self, token: u32, headers: usize, size: usize) {
        let Some(caller) = self.calls.over(token) else { return };
        self.call_is_over(caller, calls::fetched(headers, size));
        self.as_root();
        self.deliver();
    }

    pub(super) fn ask(&mut self, asker: Asker, command: Command, now: Timestamp) {
        self.begin(asker, command, now, now);
    }

    /// Begins with a question that is asked since then.
    fn begin(&mut self, asker: Asker, command: Command, since: Timestamp, now: Timestamp) {
        let executed = match self.store.begin(&command, now) {
            Ok(Begun::Answered(executed)) => Ok(executed),
            Err(error) => Err(error),
            Ok(Begun::Undecided(_)) if self.waiters.listen(now) => {
                // The answer may have come before anybody knew that this worker listens.
                return self.begin(asker, command, since, now);
            }
            Ok(Begun::Undecided(until)) => {
                if let Some(redis) = self.store.redis() {
                    redis.parked.park(asker, command, since, until.min(now.after(LOST_WORD)));
                }
                return self.hurry(self.store.alarm(), now);
            }
            Ok(Begun::AskShared) => {
                if let Some(redis) = self.store.redis() {
                    let events = redis.send(asker, command, now);
                    self.perform(events);
                }
                return;
            }
        };
        self.executed(asker, &command, executed);
    }

    /// Questions on this key begin again, or fail as the one that they waited for.
    pub(super) fn unpark(&mut self, waiting: Vec<Waiting>, failed: bool, now: Timestamp) {
        for Waiting { asker, command, since, .. } in waiting {
            let late = self.store.redis().is_none_or(|redis| since.after(redis.timeout) <= now);
            if failed || late {
                let error = StoreError::Unavailable("the same question got no answer");
                self.executed(asker, &command, Err(error));
            } else {
                self.begin(asker, command, since, now);
            }
        }
    }

    /// A command was carried out in this Envoy's memory.
    pub(super) fn executed(
        &mut self,
        asker: Asker,
        command: &Command,
        executed: Result<Executed, StoreError>,
    ) {
        let reply = executed.map(|executed| {
            self.changed(command.key(), executed.wake);
            executed.reply
        });
        self.metrics.operation(command, &reply);
        self.settled.push_back((asker, reply));
    }

    fn changed(&self, key: Key, wake: bool) {
        if wake {
            self.waiters.broadcast(key);
        }
    }

    pub(super) fn settled_for(&mut self, id: u32) -> Option<(Question, Result<Reply, StoreError>)> {
        let place = self.settled.iter().position(|(asker, _)| asker.stream == id)?;
        self.settled.remove(place).map(|(asker, reply)| (asker.question, reply))
    }

    /// Carries out what the way to Redis wants.
    pub(super) fn perform(&mut self, events: Vec<Event>) {
        let now = now();
        for event in events {
            let Some(redis) = self.store.redis() else { return };
            match event {
                Event::Open(line) => {
                    redis.lines.want(line);
                    self.waiters.call_back();
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
                    self.waiters.call_back();
                }
                Event::Write(line, bytes) => redis.lines.write(line, bytes),
                Event::Close(line) => {
                    redis.lines.close(line);
                    self.metrics.pipe(-1);
                }
                Event::Replied(ticket, command, reply) => {
                    let Some((asker, took)) = redis.asker(ticket) else { continue };
                    if reply.is_ok() {
                        // What fails is counted elsewhere: at once, or after the time-out, it says
                        // nothing of Redis.
                        self.metrics.store_took(took);
                    }
                    let concluded = redis.tiers.conclude(&command, reply, now);
                    let key = command.key();
                    let parked = redis.parked.of(key);
                    self.changed(key, concluded.wake);
                    self.metrics.operation(&command, &concluded.reply);
                    let failed = concluded.reply.is_err();
                    self.settled.push_back((asker, concluded.reply));
                    self.unpark(parked, failed, now);
                }
                Event::Ended(key) => {
                    redis.tiers.ended(key, now);
                    self.ended.push_back(key);
                    let parked = redis.parked.of(key);
                    self.unpark(parked, false, now);
                }
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
        for caller in self.calls.as_root() {
            self.call_is_over(caller, Fetched::NotSent);
        }
        let Some(redis) = self.store.redis() else { return };
        for did in redis.lines.as_root() {
            match did {
                Did::Opened(line) => {
                    self.metrics.pipe(1);
                    let Some(redis) = self.store.redis() else { return };
                    let events = redis.client.opened(line, now());
                    self.perform(events);
                }
                Did::Failed(line) => self.line_closed(line),
            }
        }
    }

    fn call_is_over(&mut self, caller: Caller, fetched: Fetched) {
        match caller {
            Caller::Stream(asker) => self.fetched.push_back((asker, fetched)),
            Caller::Store(ticket) => {
                let Some(redis) = self.store.redis() else { return };
                let (status, body) = match fetched {
                    Fetched::NotSent => (NO_CONNECTION, Vec::new()),
                    Fetched::Broken => (NO_ANSWER, Vec::new()),
                    Fetched::Answer { headers, body } => (status(&headers), body),
                };
                let events = redis.client.called(ticket, status, &body, now());
                self.perform(events);
            }
        }
    }

    fn line_closed(&mut self, line: Line) {
        let Some(redis) = self.store.redis() else { return };
        let events = redis.client.closed(line, now());
        self.perform(events);
    }

    /// Feeds the streams what has come for them.
    pub(super) fn deliver(&mut self) {
        while let Some((Asker { stream, question }, reply)) = self.settled.pop_front() {
            self.come_back(stream, Input::StoreReplied { question, reply });
        }
        while let Some((Asker { stream, question }, fetched)) = self.fetched.pop_front() {
            self.come_back(stream, Input::OriginReplied { question, fetched });
        }
        while let Some(key) = self.ended.pop_front() {
            for id in self.waiters.of(key) {
                self.come_back(id, Input::Woken);
            }
        }
    }
}

/// The status of a response; zero if it has none.
fn status(headers: &Headers) -> u16 {
    let status = headers.iter().find(|(name, _)| name == b":status");
    status.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(NO_ANSWER)
}
