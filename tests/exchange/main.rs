//! The machine of one request, fed by hand: what it orders, and what becomes of what is held.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test: clippy sees only what stands in a #[test] function as one"
)]

mod finishing;
mod owed;

use envoy_idempotency::config::Config;
use envoy_idempotency::exchange::{
    Exchange, Flow, Input, Order, RequestId, RequestPart, StoreReply, WorkerFact,
};
use envoy_idempotency::key::Attributes;
use envoy_idempotency::record::Token;
use envoy_idempotency::reply::LocalReply;
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::time::{Timestamp, WallTime};
use serde_json::{Value, json};
use std::rc::Rc;
use std::time::Duration;

/// Envoy's attributes of a request whose answer is the application's.
struct Upstream;

impl Attributes for Upstream {
    fn attribute(&self, path: &[&str]) -> Option<Vec<u8>> {
        (path == ["response", "code_details"]).then(|| b"via_upstream".to_vec())
    }
}

/// An exchange, and what it has ordered since it was last asked.
struct Driven {
    exchange: Option<Exchange>,
    now: Timestamp,
    flow: Flow,
    orders: Vec<Order>,
}

impl Driven {
    /// A rule for every POST, by a client's key alone, and what a test adds.
    fn new(more: Value) -> Self {
        let mut rule = json!({ "name": "r", "key": [ { "key_header": "idempotency-key" } ],
            "caller": "anyone", "fingerprint": "none", "missing_key": "reject" });
        rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let config = json!({ "rules": [rule] }).to_string();
        let config = Config::load(config.as_bytes(), &|_| None).unwrap();
        let exchange =
            Exchange::new(Rc::new(config), "nonce".into(), Token([7; 16]), WallTime::default());
        let now = Timestamp::from_millis(1_000_000);
        Self { exchange: Some(exchange), now, flow: Flow::Hold, orders: Vec::new() }
    }

    fn feed(&mut self, input: Input<'_>) -> Flow {
        let step = self.exchange.take().unwrap().handle(input, self.now);
        self.exchange = Some(step.next);
        self.orders.extend(step.orders);
        self.flow = step.flow;
        step.flow
    }

    fn request(&mut self, more: &[(&str, &str)], end_of_stream: bool) -> Flow {
        let headers = [(":method", "POST"), (":authority", "a.example"), (":path", "/")];
        let headers = pairs(headers.iter().chain(more));
        self.feed(Input::Request(RequestPart::Headers {
            headers: &headers,
            attributes: &Upstream,
            end_of_stream,
        }))
    }

    fn body(&mut self, length: usize, end_of_stream: bool) -> Flow {
        self.feed(Input::Request(RequestPart::Body { chunk: &[], length, end_of_stream }))
    }

    /// The question to the store that was asked last.
    fn question(&self) -> (RequestId, &Command) {
        let asked = self.orders.iter().rev().find_map(asked);
        asked.unwrap()
    }

    fn store(&mut self, reply: Result<Reply, StoreError>) -> Flow {
        let (question, _) = self.question();
        self.feed(Input::Store(StoreReply { question, reply }))
    }

    /// The next alarm has come: how long that took.
    fn tick(&mut self) -> Duration {
        let at = self.exchange.as_ref().unwrap().alarm().unwrap();
        let took = self.now.until(at);
        self.now = at;
        self.feed(Input::Worker(WorkerFact::Tick));
        took
    }

    fn answers(&self) -> Vec<&LocalReply> {
        self.orders.iter().filter_map(answered).collect()
    }

    fn is_over(&self) -> bool {
        self.exchange.as_ref().unwrap().is_over()
    }
}

fn asked(order: &Order) -> Option<(RequestId, &Command)> {
    if let Order::Ask(question, command) = order { Some((*question, command)) } else { None }
}

fn answered(order: &Order) -> Option<&LocalReply> {
    if let Order::Answer(reply) = order { Some(reply) } else { None }
}

fn pairs<'a>(headers: impl Iterator<Item = &'a (&'a str, &'a str)>) -> Vec<(Vec<u8>, Vec<u8>)> {
    headers.map(|(name, value)| (name.as_bytes().to_vec(), value.as_bytes().to_vec())).collect()
}
