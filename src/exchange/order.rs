//! What the machine has the host do.

use super::Outgoing;
use crate::config::Rule;
use crate::key::Key;
use crate::reply::LocalReply;
use crate::store::Command;
use crate::telemetry::{Counter, Incident, Report};
use std::rc::Rc;

/// What the host is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Ask the store; answer with `StoreReplied` under the same number.
    Ask(RequestId, Command),
    /// Ask this Envoy's memory alone, whatever the store is; answer in the same way.
    AskHere(RequestId, Command),
    /// Send a request of the worker's own, which no stream's end ends; answer with `OriginReplied` under the
    /// same number.
    Send(RequestId, Box<Outgoing>),
    /// Answer the client in the origin's place.
    Answer(LocalReply),
    /// Set a request header, whatever it was. The request's headers are still held.
    SetRequestHeader(&'static str, String),
    /// Remove a request header, every one of that name.
    RemoveRequestHeader(&'static str),
    /// Set a response header, whatever it was.
    SetResponseHeader(&'static str, String),
    /// Remove a response header, every one of that name.
    RemoveResponseHeader(&'static str),
    /// From now on, `Woken` when the claim on this key ends. In force before the next order.
    Watch(Key),
    /// No longer.
    Unwatch(Key),
    /// Count, and leave the word as filter state for the access log.
    Report(Rc<Rule>, Report),
    /// Count.
    Count(Counter),
    /// Write to the log.
    Log(Incident, String),
}

/// The number of a question to the store, unique within its exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// What becomes of the direction an input belongs to; after an input that belongs to none, of the
/// direction that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Let it through.
    Continue,
    /// Keep it.
    Hold,
    /// Throw it away: a piece of the request's body that is not needed. What was held of the body before
    /// goes with it.
    Discard,
}
