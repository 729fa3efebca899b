//! The right to run was given: the origin answers, and the answer is recorded on its way.

use super::claim::Claim;
use super::settle::{Rest, Tail, settle};
use super::source::{Source, source};
use super::{Context, Flow, Headers, Input, Order, Passing, Question, State, Then, number, value};
use crate::config::Rule;
use crate::key::Attributes;
use crate::record::outcome::Disposition;
use crate::record::{Answer, Kept};
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::{Incident, Outcome, header};
use crate::time::Timestamp;
use std::rc::Rc;
use std::time::Duration;

/// The longest `Idempotency-Control: ttl=`; the same bound as a rule's `ttl`. A longer one is cut.
const LONGEST_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

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
    copy: Copy,
    tail: Tail,
}

#[derive(Debug)]
pub(super) enum Copy {
    Answer(Answer),
    StatusOnly,
}

/// What becomes of an answer, as far as its headers tell.
pub(super) enum Plan {
    Record { status: u16, ttl: Duration, copy: Copy },
    Tombstone { status: u16, ttl: Duration },
    Release,
    Unknown,
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
    ) -> Then {
        match input {
            Input::ResponseHeaders { headers, attributes, end_of_stream } => {
                self.answered(context, headers, attributes, end_of_stream)
            }
            Input::StreamEnded => in_doubt(context, self.rule, self.claim, Rest::Gone),
            Input::Tick => {
                let beat = self.claim.beat(context, now);
                Then::new(State::AwaitOrigin(self), Flow::Continue).orders(beat)
            }
            Input::StoreReplied { question, reply } => {
                match heartbeat(&mut self.claim, &self.rule, question, reply) {
                    Heartbeat::Alive => Then::new(State::AwaitOrigin(self), Flow::Continue),
                    Heartbeat::Lost(order) => lost(self.rule, Some(Outcome::Executed), order),
                }
            }
            Input::RequestHeaders { .. }
            | Input::RequestBody { .. }
            | Input::RequestTrailers
            | Input::BodyBlocked
            | Input::OriginReplied { .. }
            | Input::Woken
            | Input::ResponseBody { .. }
            | Input::ResponseTrailers => Then::new(State::AwaitOrigin(self), Flow::Continue),
        }
    }

    fn answered(
        self,
        context: &mut Context,
        headers: &Headers,
        attributes: &dyn Attributes,
        end_of_stream: bool,
    ) -> Then {
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
        let then = match plan(&rule, headers, source) {
            Plan::Record { status, ttl, copy } => {
                let recording = Recording { rule, claim, status, ttl, copy, tail };
                if is_whole {
                    recording.finish(context)
                } else {
                    Then::new(State::Recording(recording), Flow::Continue)
                }
            }
            Plan::Tombstone { status, ttl } => tombstone(context, rule, claim, (status, ttl), rest),
            Plan::Release => settle(context, rule, claim, Claim::release, rest),
            Plan::Unknown => in_doubt(context, rule, claim, rest),
        };
        then.after(orders)
    }
}

/// Section by section: whose answer, what the origin wishes, what the rule says, what can be kept.
pub(super) fn plan(rule: &Rule, headers: &Headers, source: Source) -> Plan {
    match source {
        Source::NothingSent => return Plan::Release,
        Source::MaybeSent => return Plan::Unknown,
        Source::Application => {}
    }
    let Some(status) = value(headers, ":status").and_then(number::<u16>) else {
        return Plan::Unknown;
    };
    let control = Control::parse(headers);
    if control.no_store {
        return Plan::Release;
    }
    let retry_after = value(headers, "retry-after").is_some();
    let (disposition, ttl) = rule.outcomes.decide(status, retry_after);
    let ttl = control.ttl.or(ttl).unwrap_or(rule.ttl);
    match disposition {
        Disposition::Release => Plan::Release,
        Disposition::Unknown => Plan::Unknown,
        Disposition::StatusOnly => Plan::Record { status, ttl, copy: Copy::StatusOnly },
        Disposition::Store if cannot_be_kept(rule, headers) => Plan::Tombstone { status, ttl },
        Disposition::Store => {
            let answer = Answer { headers: rule.replay_headers.kept(headers), body: Vec::new() };
            Plan::Record { status, ttl, copy: Copy::Answer(answer) }
        }
    }
}

/// A stream without end, or one that says beforehand that it is over the limit.
fn cannot_be_kept(rule: &Rule, headers: &Headers) -> bool {
    const EVENT_STREAM: &[u8] = b"text/event-stream";
    let events = value(headers, "content-type")
        .and_then(|kind| kind.get(..EVENT_STREAM.len()))
        .is_some_and(|kind| kind.eq_ignore_ascii_case(EVENT_STREAM));
    let length = value(headers, "content-length").and_then(number::<u64>);
    events || length.is_some_and(|length| length > rule.limits.response_body as u64)
}

/// What the origin wishes: `Idempotency-Control: no-store` or `ttl=SECONDS`, comma-separated as in
/// `Cache-Control` (RFC 9111 section 5.2). Directives that are not known are ignored, as there.
#[derive(Debug, Default, PartialEq, Eq)]
struct Control {
    no_store: bool,
    ttl: Option<Duration>,
}

impl Control {
    fn parse(headers: &Headers) -> Self {
        let mut control = Self::default();
        let lines = headers.iter().filter(|(name, _)| name == header::CONTROL.as_bytes());
        for directive in lines.flat_map(|(_, value)| value.split(|byte| *byte == b',')) {
            let directive = directive.trim_ascii();
            if directive.eq_ignore_ascii_case(b"no-store") {
                control.no_store = true;
            } else if let Some(seconds) = directive.strip_prefix(b"ttl=").and_then(number::<u64>) {
                // Zero is "keep nothing": a record that is over when it is written.
                control.no_store |= seconds == 0;
                control.ttl = Some(Duration::from_secs(seconds).min(LONGEST_TTL));
            }
        }
        control
    }
}

/// It ran, and its answer is not kept.
fn tombstone(
    context: &mut Context,
    rule: Rc<Rule>,
    claim: Claim,
    (status, ttl): (u16, Duration),
    rest: Rest,
) -> Then {
    settle(context, rule, claim, |claim| claim.complete(status, Kept::Nothing, ttl), rest)
}

/// It may have run, and nobody can tell.
fn in_doubt(context: &mut Context, rule: Rc<Rule>, claim: Claim, rest: Rest) -> Then {
    let unknown_ttl = rule.unknown_ttl;
    settle(context, rule, claim, |claim| claim.mark_unknown(unknown_ttl), rest)
}

impl Recording {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.claim.heartbeat_at()
    }

    pub(super) fn wants_bytes(&self) -> bool {
        match self.copy {
            Copy::Answer(_) => true,
            Copy::StatusOnly => false,
        }
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Then {
        match input {
            Input::ResponseBody { chunk, length, end_of_stream } => {
                let is_last = self.tail.take(length, end_of_stream);
                self.more(context, chunk, is_last)
            }
            Input::ResponseTrailers => self.finish(context),
            // Died in the middle, at the origin or at the client: it ran, and nobody has the answer.
            Input::StreamEnded => in_doubt(context, self.rule, self.claim, Rest::Gone),
            Input::Tick => {
                let beat = self.claim.beat(context, now);
                Then::new(State::Recording(self), Flow::Continue).orders(beat)
            }
            Input::StoreReplied { question, reply } => {
                match heartbeat(&mut self.claim, &self.rule, question, reply) {
                    Heartbeat::Alive => Then::new(State::Recording(self), Flow::Continue),
                    Heartbeat::Lost(order) => lost(self.rule, None, order),
                }
            }
            Input::RequestHeaders { .. }
            | Input::RequestBody { .. }
            | Input::RequestTrailers
            | Input::BodyBlocked
            | Input::OriginReplied { .. }
            | Input::Woken
            | Input::ResponseHeaders { .. } => Then::new(State::Recording(self), Flow::Continue),
        }
    }

    fn more(mut self, context: &mut Context, chunk: &[u8], is_last: bool) -> Then {
        if let Copy::Answer(answer) = &mut self.copy {
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
            Then::new(State::Recording(self), Flow::Continue)
        }
    }

    fn finish(self, context: &mut Context) -> Then {
        let Self { rule, claim, status, ttl, copy, tail: _ } = self;
        let kept = match copy {
            Copy::Answer(answer) => Kept::Answer(answer),
            Copy::StatusOnly => Kept::StatusOnly,
        };
        let end = |claim: Claim| -> Command { claim.complete(status, kept, ttl) };
        settle(context, rule, claim, end, Rest::LastByte)
    }
}

/// What a reply means for a claim that is alive.
pub(super) enum Heartbeat {
    Alive,
    Lost(Order),
}

pub(super) fn heartbeat(
    claim: &mut Claim,
    rule: &Rule,
    question: Question,
    reply: Result<Reply, StoreError>,
) -> Heartbeat {
    if !claim.is_heartbeat(question) {
        return Heartbeat::Alive;
    }
    let key = claim.key();
    match reply {
        Ok(Reply::Done) => {
            claim.heard();
            Heartbeat::Alive
        }
        Ok(Reply::NotOwner) => {
            let said = format!("{} {key}: the claim was lost while the origin ran", rule.name);
            Heartbeat::Lost(Order::Log(Incident::ClaimLost, said))
        }
        Ok(Reply::Claimed { .. } | Reply::Exists(_)) | Err(_) => {
            claim.unheard();
            Heartbeat::Alive
        }
    }
}

/// Somebody took over: there is nothing left to end, and the client gets its answer unrecorded.
fn lost(rule: Rc<Rule>, outcome: Option<Outcome>, order: Order) -> Then {
    let passing = Passing { rule: Some(rule), outcome, ..Passing::default() };
    Then::new(State::Passing(passing), Flow::Continue).order(order)
}
