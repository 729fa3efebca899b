//! Detached execution, which outlives the client: the worker sends the request itself, and records the answer
//! even if the client has left.

use super::claim::{Claim, Heartbeat};
use super::finish::{self, Rest};
use super::retention::{Capture, Plan, plan};
use super::source::{Source, source};
use super::{
    Context, Flow, Headers, Input, Order, Passing, RequestId, ResponsePart, State, StoreReply,
    Transition, WorkerFact, value,
};
use crate::config::{Detached, Rule};
use crate::key::Attributes;
use crate::record::Kept;
use crate::reply::{Code, LocalReply, Problem};
use crate::store::Command;
use crate::telemetry::{Incident, Outcome, header};
use crate::time::Timestamp;
use std::rc::Rc;
use std::time::Duration;

/// A request of the worker's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// The Envoy cluster it goes to.
    pub cluster: String,
    /// All headers, pseudo-headers first; names and values are UTF-8.
    pub headers: Vec<(Vec<u8>, Vec<u8>)>,
    /// The whole body.
    pub body: Vec<u8>,
    /// When to give up waiting for the answer.
    pub timeout: Duration,
}

/// What became of a request of the worker's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// Envoy did not send it: no byte of it reached an origin.
    NotSent,
    /// It broke off in the middle of its answer.
    Broken,
    /// The whole answer, the origin's or Envoy's own.
    Answer {
        /// All headers, `:status` first.
        headers: Vec<(Vec<u8>, Vec<u8>)>,
        /// The whole body.
        body: Vec<u8>,
    },
}

/// The request that the worker will send once the claim is granted.
#[derive(Debug)]
pub(super) struct Unsent {
    outgoing: Outgoing,
}

/// The attribute that names the route's cluster (Envoy docs, "Attributes").
const CLUSTER: [&str; 2] = ["xds", "cluster_name"];

impl Unsent {
    /// What a request comes to that is to be executed detached. `None` if that cannot be done, so that
    /// it is proxied as any other: no route leads anywhere, or a header's value is not UTF-8, which the
    /// way to the worker's own requests does not carry.
    pub(super) fn new(
        detached: &Detached,
        headers: &Headers,
        attributes: &dyn Attributes,
    ) -> Option<Self> {
        let route = || String::from_utf8(attributes.attribute(&CLUSTER)?).ok();
        let cluster = detached.via.clone().or_else(route).filter(|name| !name.is_empty())?;
        let utf8 = |text: &[u8]| std::str::from_utf8(text).is_ok();
        if !headers.iter().all(|(name, value)| utf8(name) && utf8(value)) {
            return None;
        }
        let kept = |(name, _): &&(Vec<u8>, Vec<u8>)| name != header::ATTEMPT.as_bytes();
        let headers = headers.iter().filter(kept).cloned().collect();
        let timeout = detached.timeout;
        Some(Self { outgoing: Outgoing { cluster, headers, body: Vec::new(), timeout } })
    }

    /// The request's body is whole.
    pub(super) fn with_body(mut self, body: Vec<u8>) -> Self {
        self.outgoing.body = body;
        self
    }

    fn finish(self, attempt: u32, nonce: Option<&str>) -> Outgoing {
        let mut outgoing = self.outgoing;
        let mut set = |name: &str, value: String| {
            outgoing.headers.push((name.as_bytes().to_vec(), value.into_bytes()));
        };
        set(header::ATTEMPT, attempt.to_string());
        if let Some(nonce) = nonce {
            set(header::VIA, nonce.to_owned());
        }
        outgoing
    }
}

/// The worker's own request is with the origin.
#[derive(Debug)]
pub(super) struct Dispatched {
    rule: Rc<Rule>,
    /// `None` once another request has taken over.
    claim: Option<Claim>,
    question: RequestId,
    /// The client still waits.
    awaited: bool,
}

/// Sends the request.
pub(super) fn dispatch(
    context: &mut Context,
    rule: Rc<Rule>,
    claim: Claim,
    unsent: Unsent,
    attempt: u32,
) -> Transition {
    let through = rule.detached.as_ref().is_some_and(|detached| detached.via.is_some());
    let nonce = through.then(|| context.nonce.clone());
    let outgoing = unsent.finish(attempt, nonce.as_deref());
    let question = context.number();
    let state = Dispatched { rule, claim: Some(claim), question, awaited: true };
    Transition::new(State::Dispatched(state), Flow::Hold)
        .order(Order::Send(question, Box::new(outgoing)))
}

impl Dispatched {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn alarm(&self) -> Option<Timestamp> {
        self.claim.as_ref().map(Claim::heartbeat_at)
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Worker(WorkerFact::OriginReplied { question, fetched })
                if question == self.question =>
            {
                self.fetched(context, fetched)
            }
            Input::Worker(WorkerFact::Tick) => {
                let beat = self.claim.as_mut().and_then(|claim| claim.beat(context, now));
                Transition::new(State::Dispatched(self), Flow::Hold).orders(beat)
            }
            Input::Store(StoreReply { question, reply }) => {
                let Some(claim) = &mut self.claim else {
                    return Transition::new(State::Dispatched(self), Flow::Hold);
                };
                match claim.heartbeat_replied(&self.rule, question, reply) {
                    Heartbeat::Alive => Transition::new(State::Dispatched(self), Flow::Hold),
                    Heartbeat::Lost(order) => {
                        self.claim = None;
                        Transition::new(State::Dispatched(self), Flow::Hold).order(order)
                    }
                }
            }
            // The client is gone, or Envoy has answered it: the execution goes on.
            Input::StreamEnded | Input::Response(ResponsePart::Headers { .. }) => {
                self.awaited = false;
                Transition::new(State::Dispatched(self), Flow::Continue)
            }
            Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::Dispatched(self), Flow::Continue)
            }
            Input::Request(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Woken) => {
                Transition::new(State::Dispatched(self), Flow::Hold)
            }
        }
    }

    fn fetched(self, context: &mut Context, fetched: Fetched) -> Transition {
        let Self { rule, claim, awaited, .. } = self;
        let (source, headers, body) = match fetched {
            Fetched::NotSent => (Source::NothingSent, Vec::new(), Vec::new()),
            Fetched::Broken => (Source::MaybeSent, Vec::new(), Vec::new()),
            Fetched::Answer { mut headers, body } => {
                let through = rule.detached.as_ref().is_some_and(|own| own.via.is_some());
                let source = source_of_call(&headers, &body, through);
                headers.retain(|(name, _)| name != header::SOURCE.as_bytes());
                (source, headers, body)
            }
        };
        let answer = awaited.then(|| Box::new(for_client(context, source, &headers, body.clone())));
        let Some(claim) = claim else {
            return match answer {
                Some(answer) => finish::answer(&rule, *answer),
                None => Transition::new(State::Over, Flow::Continue),
            };
        };
        let unknown_ttl = rule.unknown_ttl;
        let (status, end): (_, Box<dyn FnOnce(Claim) -> Command>) =
            match plan(&rule, &headers, source) {
                Plan::Release => (None, Box::new(Claim::release)),
                Plan::Unknown => (None, Box::new(move |claim| claim.mark_unknown(unknown_ttl))),
                Plan::Tombstone { status, ttl } => (
                    Some(status),
                    Box::new(move |claim| claim.complete(status, Kept::Nothing, ttl)),
                ),
                Plan::Record { status, ttl, capture } => {
                    let kept = match capture {
                        Capture::StatusOnly => Kept::StatusOnly,
                        Capture::Answer(_) if body.len() > rule.limits.response_body => {
                            Kept::Nothing
                        }
                        Capture::Answer(mut answer) => {
                            answer.body = body;
                            Kept::Answer(answer)
                        }
                    };
                    (Some(status), Box::new(move |claim| claim.complete(status, kept, ttl)))
                }
            };
        let key = claim.key();
        let said = (!awaited).then(|| {
            let what = status.map_or("not recorded".to_owned(), |status| status.to_string());
            let said = format!("{} {key}: finished after its client had left: {what}", rule.name);
            Order::Log(Incident::Detached, said)
        });
        let rest = if awaited { Rest::Answered(answer) } else { Rest::Gone };
        finish::finish(context, rule, claim, end, rest).orders(said)
    }
}

/// The answer as the client would have had it through the proxy, as far as this filter can tell.
fn for_client(context: &Context, source: Source, headers: &Headers, body: Vec<u8>) -> LocalReply {
    let status = value(headers, ":status").and_then(super::number::<u16>);
    let Some(status) = status else {
        let problem = match source {
            Source::NothingSent => Problem {
                retry_after: Some(super::duplicate::RETRY_AFTER_SECONDS),
                ..Problem::new(
                    Code::OriginUnreachable,
                    "The request could not be sent to the origin.",
                )
            },
            Source::Application | Source::MaybeSent => Problem::new(
                Code::OriginFailed,
                "The origin's answer broke off. It is unknown whether the request was executed.",
            ),
        };
        return context.with_status(Outcome::Executed, problem.into_reply());
    };
    // Envoy makes a length of its own, and hop-by-hop headers ended at this hop (RFC 9110 section 7.6.1).
    const OWN: [&[u8]; 6] = [
        b"content-length",
        b"transfer-encoding",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        header::CONTROL.as_bytes(),
    ];
    let passes = |name: &[u8]| !name.starts_with(b":") && !OWN.contains(&name);
    let headers = headers.iter().filter(|(name, _)| passes(name)).cloned().collect();
    let reply = LocalReply { status, headers, body, details: "idempotency_executed" };
    context.with_status(Outcome::Executed, reply)
}

/// What a stream that came back says of its answer's source.
const fn word(source: Source) -> &'static str {
    match source {
        Source::Application => "application",
        Source::NothingSent => "nothing-sent",
        Source::MaybeSent => "maybe-sent",
    }
}

/// Whose answer a request of the worker's own has got. There are no attributes to ask, as
/// [`source`] does, so the stream that came back through `via` has said it; elsewhere, every answer from
/// upstream has been given a header that Envoy's own answers have not
/// (Envoy docs, "HTTP header manipulation", `x-envoy-upstream-service-time`).
///
/// A wrong `NothingSent` costs a double execution: it is taken only from Envoy's own words.
fn source_of_call(headers: &Headers, body: &[u8], through: bool) -> Source {
    if through && let Some(said) = value(headers, header::SOURCE) {
        let known = [Source::Application, Source::NothingSent];
        let known = known.into_iter().find(|source| word(*source).as_bytes() == said);
        return known.unwrap_or(Source::MaybeSent);
    }
    if value(headers, "x-envoy-upstream-service-time").is_some() {
        return Source::Application;
    }
    /// What Envoy's own 503 says when it got no connection.
    const NOTHING_SENT: [&[u8]; 4] = [
        b"reset reason: connection failure",
        b"reset reason: remote connection failure",
        b"reset reason: local connection failure",
        b"no healthy upstream",
    ];
    let says = |words: &[u8]| body.windows(words.len()).any(|window| window == words);
    if NOTHING_SENT.iter().any(|words| says(words)) {
        Source::NothingSent
    } else {
        Source::MaybeSent
    }
}

/// A request that came back through `via`, with the nonce of this process: it is ours already. Its answer
/// tells whose it is, for only this stream can see that.
#[derive(Debug)]
pub(super) struct Returned;

impl Returned {
    pub(super) fn handle(self, input: Input<'_>) -> Transition {
        match input {
            Input::Response(ResponsePart::Headers { attributes, .. }) => {
                let word = word(source(attributes)).to_owned();
                Transition::new(State::Passing(Passing::default()), Flow::Continue)
                    .order(Order::SetResponseHeader(header::SOURCE, word))
            }
            Input::StreamEnded => Transition::new(State::Over, Flow::Continue),
            Input::Request(_)
            | Input::Store(_)
            | Input::Worker(_)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::Returned(self), Flow::Continue)
            }
        }
    }
}
