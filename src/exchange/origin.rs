//! The claim is granted: the origin answers, and the answer is recorded while it streams to the client.

use super::claim::{Claim, Heartbeat};
use super::finish::{Rest, finish};
use super::retention::{Capture, Plan, plan};
use super::source::{Source, source};
use super::tail::Tail;
use super::{
    Context, Flow, Headers, Input, Order, Passing, ResponsePart, State, StoreReply, Transition,
    WorkerFact, value,
};
use crate::config::Rule;
use crate::key::Attributes;
use crate::record::Kept;
use crate::store::Command;
use crate::telemetry::{Outcome, header};
use crate::time::Timestamp;
use std::rc::Rc;
use std::time::Duration;

/// The request is with the origin.
#[derive(Debug)]
pub(super) struct AwaitOrigin {
    rule: Rc<Rule>,
    claim: Claim,
}

/// The response streams to the client, and a copy of it is kept.
#[derive(Debug)]
pub(super) struct Recording {
    rule: Rc<Rule>,
    claim: Claim,
    status: u16,
    ttl: Duration,
    capture: Capture,
    tail: Tail,
}

impl AwaitOrigin {
    pub(super) fn new(rule: Rc<Rule>, claim: Claim) -> Self {
        Self { rule, claim }
    }

    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.claim.heartbeat_at()
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Response(ResponsePart::Headers { headers, attributes, end_of_stream }) => {
                self.answered(context, headers, attributes, end_of_stream)
            }
            Input::StreamEnded => mark_unknown(context, self.rule, self.claim, Rest::Gone),
            Input::Worker(WorkerFact::Tick) => {
                let beat = self.claim.beat(context, now);
                Transition::new(State::AwaitOrigin(self), Flow::Continue).orders(beat)
            }
            Input::Store(StoreReply { question, reply }) => {
                match self.claim.heartbeat_replied(&self.rule, question, reply) {
                    Heartbeat::Alive => Transition::new(State::AwaitOrigin(self), Flow::Continue),
                    Heartbeat::Lost(order) => lost(self.rule, Some(Outcome::Executed), order),
                }
            }
            Input::Request(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Woken)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::AwaitOrigin(self), Flow::Continue)
            }
        }
    }

    fn answered(
        self,
        context: &mut Context,
        headers: &Headers,
        attributes: &dyn Attributes,
        end_of_stream: bool,
    ) -> Transition {
        let Self { rule, claim } = self;
        let mut orders = Vec::from_iter(context.status_header(Outcome::Executed));
        let source = source(attributes);
        if source == Source::Application && value(headers, header::CONTROL).is_some() {
            orders.push(Order::RemoveResponseHeader(header::CONTROL));
        }
        let tail = Tail::announced(headers);
        // A client that counts bytes has an empty answer with its headers.
        let is_whole = end_of_stream || tail.is_whole();
        let rest = Rest::after(is_whole, tail);
        let transition = match plan(&rule, headers, source) {
            Plan::Record { status, ttl, capture } => {
                let recording = Recording { rule, claim, status, ttl, capture, tail };
                if is_whole {
                    recording.finish(context)
                } else {
                    Transition::new(State::Recording(recording), Flow::Continue)
                }
            }
            Plan::Tombstone { status, ttl } => tombstone(context, rule, claim, (status, ttl), rest),
            Plan::Release => finish(context, rule, claim, Claim::release, rest),
            Plan::Unknown => mark_unknown(context, rule, claim, rest),
        };
        transition.after(orders)
    }
}

/// It ran, and its answer is not kept.
fn tombstone(
    context: &mut Context,
    rule: Rc<Rule>,
    claim: Claim,
    (status, ttl): (u16, Duration),
    rest: Rest,
) -> Transition {
    finish(context, rule, claim, |claim| claim.complete(status, Kept::Nothing, ttl), rest)
}

/// It may have run: its outcome is unknown.
fn mark_unknown(context: &mut Context, rule: Rc<Rule>, claim: Claim, rest: Rest) -> Transition {
    let unknown_ttl = rule.unknown_ttl;
    finish(context, rule, claim, |claim| claim.mark_unknown(unknown_ttl), rest)
}

impl Recording {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.claim.heartbeat_at()
    }

    pub(super) fn wants_bytes(&self) -> bool {
        match self.capture {
            Capture::Answer(_) => true,
            Capture::StatusOnly => false,
        }
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Response(ResponsePart::Body { chunk, length, end_of_stream }) => {
                let is_last = self.tail.take(length, end_of_stream);
                self.more(context, chunk, is_last)
            }
            Input::Response(ResponsePart::Trailers) => self.finish(context),
            // Origin or client broke off in the middle: it ran, and its answer is incomplete.
            Input::StreamEnded => mark_unknown(context, self.rule, self.claim, Rest::Gone),
            Input::Worker(WorkerFact::Tick) => {
                let beat = self.claim.beat(context, now);
                Transition::new(State::Recording(self), Flow::Continue).orders(beat)
            }
            Input::Store(StoreReply { question, reply }) => {
                match self.claim.heartbeat_replied(&self.rule, question, reply) {
                    Heartbeat::Alive => Transition::new(State::Recording(self), Flow::Continue),
                    Heartbeat::Lost(order) => lost(self.rule, None, order),
                }
            }
            Input::Request(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Woken)
            | Input::Response(ResponsePart::Headers { .. }) => {
                Transition::new(State::Recording(self), Flow::Continue)
            }
        }
    }

    fn more(mut self, context: &mut Context, chunk: &[u8], is_last: bool) -> Transition {
        if let Capture::Answer(answer) = &mut self.capture {
            if answer.body.len().saturating_add(chunk.len()) > self.rule.limits.response_body {
                let Self { rule, claim, status, ttl, tail, .. } = self;
                let rest = Rest::after(is_last, tail);
                return tombstone(context, rule, claim, (status, ttl), rest);
            }
            answer.body.extend_from_slice(chunk);
        }
        if is_last {
            self.finish(context)
        } else {
            Transition::new(State::Recording(self), Flow::Continue)
        }
    }

    fn finish(self, context: &mut Context) -> Transition {
        let Self { rule, claim, status, ttl, capture, tail: _ } = self;
        let kept = match capture {
            Capture::Answer(answer) => Kept::Answer(answer),
            Capture::StatusOnly => Kept::StatusOnly,
        };
        let end = |claim: Claim| -> Command { claim.complete(status, kept, ttl) };
        finish(context, rule, claim, end, Rest::LastByte)
    }
}

/// Another request took over: there is no claim to end, and the client gets its answer unrecorded.
fn lost(rule: Rc<Rule>, outcome: Option<Outcome>, order: Order) -> Transition {
    let passing = Passing { rule: Some(rule), outcome, ..Passing::default() };
    Transition::new(State::Passing(passing), Flow::Continue).order(order)
}
