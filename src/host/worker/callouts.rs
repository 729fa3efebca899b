//! A worker's callouts to its stores and origins: callbacks become facts, orders become host calls.

use super::Worker;
use crate::exchange::{Fetched, Headers, Input, StoreReply, WorkerFact};
use crate::host::abi;
use crate::host::calls::{self, Purpose, Wanted};
use crate::host::connections::Did;
use crate::host::logging;
use crate::host::queues::Message;
use crate::host::request::StreamRequest;
use crate::host::store::now;
use crate::store::front::{Fact, Order};
use crate::store::redis::{Call, CommandId};
use crate::store::shared_data::INSERT;
use crate::telemetry::Incident;
use crate::time::Timestamp;

/// The status of a call that Envoy refuses, as if it had found no connection.
const NO_CONNECTION: u16 = 503;

/// The status of a call without an answer.
const NO_ANSWER: u16 = 0;

/// The sources of facts for streams. A callback takes one of each in turn, so that no source waits until
/// another is empty.
#[derive(Clone, Copy, Debug)]
enum Source {
    Stores,
    Fetched,
    Waiters,
    Timers,
}

impl Source {
    const ALL: [Self; 4] = [Self::Stores, Self::Fetched, Self::Waiters, Self::Timers];
}

impl Worker {
    /// A message of the gRPC stream to Redis.
    pub(in crate::host) fn grpc_message(&mut self, token: u32, size: usize) {
        self.budget.renew();
        if let Some(connection) = self.connections.connection(token) {
            self.stores.handle(Fact::Received(connection, &abi::grpc_message(size)), now());
            self.work_off();
        }
    }

    /// The gRPC stream to Redis has ended.
    pub(in crate::host) fn grpc_closed(&mut self, token: u32) {
        if let Some(connection) = self.connections.forget(token) {
            self.metrics.pipe(-1);
            self.stores.handle(Fact::Closed(connection), now());
            self.work_off();
        }
    }

    /// An HTTP call has its response.
    pub(in crate::host) fn call_answered(&mut self, token: u32, headers: usize, size: usize) {
        if let Some(purpose) = self.calls.over(token) {
            self.call_is_over(purpose, calls::fetched(headers, size));
            self.work_off();
        }
    }

    /// Handles facts, as far as the callback's budget goes.
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

    /// Whether the source had a fact.
    fn deal_with_one(&mut self, source: Source, now: Timestamp) -> bool {
        match source {
            Source::Stores => {
                let worked = self.stores.work(now);
                self.carry_out_orders(now);
                return worked;
            }
            Source::Fetched => {
                let Some((StreamRequest { stream, question }, fetched)) = self.fetched.pop_front()
                else {
                    return false;
                };
                self.come_back(
                    stream,
                    Input::Worker(WorkerFact::OriginReplied { question, fetched }),
                );
            }
            Source::Waiters => {
                let Some(id) = self.waiters.take_woken() else { return false };
                self.come_back(id, Input::Worker(WorkerFact::Woken));
            }
            Source::Timers => {
                let Some(id) = self.timers.take_due(now) else { return false };
                self.come_back(id, Input::Worker(WorkerFact::Tick));
            }
        }
        true
    }

    /// Carries out the stores' orders, in order. A reply may make its request ask again: the orders that
    /// follow from that come behind all earlier ones.
    pub(super) fn carry_out_orders(&mut self, now: Timestamp) {
        while let Some(order) = self.stores.next_order() {
            match order {
                Order::Reply(StreamRequest { stream, question }, reply) => {
                    self.come_back(stream, Input::Store(StoreReply { question, reply }));
                }
                Order::Open(connection) => {
                    self.connections.want(connection);
                    self.queues.call_back();
                }
                Order::Write(connection, bytes) => self.connections.write(connection, bytes),
                Order::Close(connection) => {
                    if self.connections.close(connection) {
                        self.metrics.pipe(-1);
                    }
                }
                Order::Call(id, call) => self.want_call(id, call),
                Order::Wake(key) => self.queues.broadcast(Message::Ended(key), now),
                Order::WakeAskers(key) => self.queues.broadcast(Message::Answered(key), now),
                Order::WakeHere(key) => self.waiters.wake(key),
                Order::Listen => {
                    if self.queues.listen(now) {
                        self.stores.handle(Fact::Listening, now);
                    }
                }
                Order::Count(command, reply) => self.metrics.operation(command, reply),
                Order::Took(length) => self.metrics.store_took(length),
                Order::Warn(text) => logging::log_incident(Incident::Redis, &text),
                Order::WarnOnce(text) => {
                    let name = format!("{}/said/{text}", self.stores.prefix());
                    // An insertion: only one of all workers succeeds.
                    if abi::set_shared_data(&name, b"1", INSERT).is_ok() {
                        logging::log_incident(Incident::Redis, &text);
                    }
                }
            }
        }
        self.hurry(self.stores.alarm(), now);
    }

    /// Takes a message of another worker.
    pub(super) fn hear(&mut self, message: Message) {
        let fact = match message {
            Message::Ended(key) => Fact::Ended(key),
            Message::Answered(key) => Fact::Answered(key),
        };
        self.stores.handle(fact, now());
    }

    /// Work that is allowed only in the root's own callback.
    pub(super) fn as_root(&mut self) {
        for purpose in self.calls.as_root(&mut self.budget) {
            self.call_is_over(purpose, Fetched::NotSent);
        }
        for did in self.connections.as_root() {
            let fact = match did {
                Did::Opened(connection) => {
                    self.metrics.pipe(1);
                    Fact::Opened(connection)
                }
                Did::Failed(connection) => Fact::Closed(connection),
            };
            self.stores.handle(fact, now());
        }
    }

    fn want_call(&mut self, id: CommandId, call: Call) {
        let Call { method, path, body, timeout } = call;
        let cluster = self.connections.cluster().to_owned();
        let headers = [
            (":method", method.to_owned()),
            (":path", path),
            (":authority", cluster.clone()),
            ("content-length", body.len().to_string()),
        ];
        let bytes = |(name, value): (&str, String)| (name.into(), value.into_bytes());
        let headers = headers.map(bytes).into();
        let purpose = Purpose::Store(id);
        self.calls.want(Wanted { purpose, cluster, headers, body, timeout });
        self.queues.call_back();
    }

    fn call_is_over(&mut self, purpose: Purpose, fetched: Fetched) {
        match purpose {
            Purpose::Stream(request) => self.fetched.push_back((request, fetched)),
            Purpose::Store(id) => {
                let (status, body) = match fetched {
                    Fetched::NotSent => (NO_CONNECTION, Vec::new()),
                    Fetched::Broken => (NO_ANSWER, Vec::new()),
                    Fetched::Answer { headers, body } => (status(&headers), body),
                };
                self.stores.handle(Fact::Called(id, status, &body), now());
            }
        }
    }
}

/// The status of a response; zero if it has none.
fn status(headers: &Headers) -> u16 {
    let status = headers.iter().find(|(name, _)| name == b":status");
    status.and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok()).unwrap_or(NO_ANSWER)
}
