//! The command that ends a claim: sent, retried, and given up.

use super::claim::Claim;
use super::tail::Tail;
use super::{
    Context, Flow, Input, Order, Passing, RequestId, ResponsePart, State, StoreReply, Transition,
    Whom, WorkerFact, has_type,
};
use crate::config::Rule;
use crate::key::Key;
use crate::reply::LocalReply;
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::{Counter, Incident};
use crate::time::Timestamp;
use std::rc::Rc;
use std::time::Duration;

/// Pause before the second try to write what ends a claim: a store that was restarted is back soon. Each pause is
/// twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The longest pause between two tries. A store that was away for long gets its record so much later at most; while
/// it is away, each claim costs it one command in this time.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The command that ends the claim is with the store.
///
/// The client's last byte waits for the first reply, so that a client that has its answer finds the
/// record. It does not wait for a second try: its answer is worth more than our record.
#[derive(Debug)]
pub(super) struct Finishing {
    rule: Rc<Rule>,
    whom: Whom,
    command: Command,
    /// The try in flight, or the time of the next.
    attempt: Attempt,
    /// The pause after the try in flight, if it fails.
    pause: Duration,
    /// Until then no other request can have claimed the key, and the store accepts the command.
    give_up_at: Timestamp,
    /// The store has given the claim, as far as is known; else it may have.
    given: bool,
    failed: bool,
    /// The client has got an answer of the filter's: its request is held for good.
    answered: bool,
    tail: Tail,
    /// Given to the client at the store's first reply.
    answer: Option<Box<LocalReply>>,
    /// The answer was given, and the origin's had no content type.
    untyped: bool,
    stream_over: bool,
}

#[derive(Debug)]
enum Attempt {
    InFlight(RequestId),
    At(Timestamp),
}

/// How much of the stream is still to come when a claim ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// More of the response.
    MoreToCome(Tail),
    /// Nothing: what ends the response is in the filter's hands.
    LastByte,
    /// All of it: the request was the worker's own, and its client is answered when the claim has ended.
    Answered(Option<Box<LocalReply>>),
    /// The stream is gone.
    Gone,
}

impl Rest {
    /// What is still to come when the response has `ended`, or has not.
    pub(super) fn after(ended: bool, tail: Tail) -> Self {
        if ended { Self::LastByte } else { Self::MoreToCome(tail) }
    }
}

/// The client gets this answer, and there is nothing to settle.
pub(super) fn answer(rule: &Rc<Rule>, reply: LocalReply) -> Transition {
    let untyped = is_untyped(&reply);
    let rule = Some(rule.clone());
    let state = State::Passing(Passing { rule, outcome: None, untyped, answered: true });
    Transition::new(state, Flow::Hold).order(Order::Answer(reply))
}

/// An answer of ours whose body Envoy would give a content type that the origin's had not.
fn is_untyped(reply: &LocalReply) -> bool {
    !has_type(&reply.headers) && !reply.body.is_empty()
}

/// Ends `claim` by the command that `end` makes of it.
pub(super) fn finish(
    context: &mut Context,
    rule: Rc<Rule>,
    claim: Claim,
    end: impl FnOnce(Claim) -> Command,
    rest: Rest,
) -> Transition {
    let (whom, until) = (claim.whom(), claim.lease_until());
    finish_command(context, rule, whom, end(claim), until, true, rest)
}

/// Past its lease a claim's outcome is unknown, and another request may claim the key only after that.
fn taken_until(rule: &Rule, lease_until: Timestamp) -> Timestamp {
    lease_until.after(rule.unknown_ttl)
}

/// Gives back what the store may have given although it failed: nothing has run. The client has its
/// answer already, or goes its own way.
pub(super) fn take_back(
    context: &mut Context,
    rule: Rc<Rule>,
    key: Key,
    lease_until: Timestamp,
) -> Transition {
    let command = Command::Release { key, token: context.token };
    let (question, order) = context.ask(Whom::Store, command.clone());
    let give_up_at = taken_until(&rule, lease_until);
    let finishing = Finishing {
        rule,
        whom: Whom::Store,
        command,
        attempt: Attempt::InFlight(question),
        pause: first_pause(context),
        give_up_at,
        given: false,
        failed: true,
        answered: true,
        tail: Tail::UNKNOWN,
        answer: None,
        untyped: false,
        stream_over: false,
    };
    Transition::new(State::Finishing(finishing), Flow::Hold).order(order)
}

/// The pauses of two exchanges differ by up to a quarter, so that those that an outage has left do not ask in step.
fn first_pause(context: &Context) -> Duration {
    let [byte, ..] = context.token.0;
    FIRST_PAUSE - FIRST_PAUSE * u32::from(byte) / 1024
}

/// Sends `command`, which ends a claim that was given, or may have been, and whose lease lasts so long.
pub(super) fn finish_command(
    context: &mut Context,
    rule: Rc<Rule>,
    whom: Whom,
    command: Command,
    lease_until: Timestamp,
    given: bool,
    rest: Rest,
) -> Transition {
    let (question, order) = context.ask(whom, command.clone());
    let give_up_at = taken_until(&rule, lease_until);
    let stream_over = rest == Rest::Gone;
    let answered = matches!(rest, Rest::Answered(_));
    let (flow, tail, answer) = match rest {
        Rest::LastByte => (Flow::Hold, Tail::UNKNOWN, None),
        Rest::MoreToCome(tail) => (Flow::Continue, tail, None),
        Rest::Answered(answer) => (Flow::Hold, Tail::UNKNOWN, answer),
        Rest::Gone => (Flow::Continue, Tail::UNKNOWN, None),
    };
    let finishing = Finishing {
        rule,
        whom,
        command,
        attempt: Attempt::InFlight(question),
        pause: first_pause(context),
        give_up_at,
        given,
        failed: false,
        answered,
        tail,
        answer,
        untyped: false,
        stream_over,
    };
    Transition::new(State::Finishing(finishing), flow).order(order)
}

impl Finishing {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn alarm(&self) -> Option<Timestamp> {
        match self.attempt {
            Attempt::InFlight(_) => None,
            Attempt::At(time) => Some(time),
        }
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Store(StoreReply { question, reply }) => match self.attempt {
                Attempt::InFlight(asked) if asked == question => self.replied(reply, now),
                // A heartbeat's reply that was overtaken by the end of the claim.
                Attempt::InFlight(_) | Attempt::At(_) => {
                    let flow = if self.answered { Flow::Hold } else { self.flow() };
                    Transition::new(State::Finishing(self), flow)
                }
            },
            Input::Worker(WorkerFact::Tick) => self.retry(context, now),
            Input::Response(ResponsePart::Body { length, end_of_stream, .. }) => {
                let is_last = self.tail.take(length, end_of_stream);
                let flow = if is_last { self.flow() } else { Flow::Continue };
                Transition::new(State::Finishing(self), flow)
            }
            Input::Response(ResponsePart::Trailers) => {
                let flow = self.flow();
                Transition::new(State::Finishing(self), flow)
            }
            Input::StreamEnded => {
                self.stream_over = true;
                self.answer = None;
                Transition::new(State::Finishing(self), Flow::Continue)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                // The filter's own answer, or another's that was faster.
                self.answer = None;
                let taken_off = std::mem::take(&mut self.untyped)
                    .then_some(Order::RemoveResponseHeader("content-type"));
                Transition::new(State::Finishing(self), Flow::Continue).orders(taken_off)
            }
            Input::Request(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Woken) => {
                let flow = self.let_go();
                Transition::new(State::Finishing(self), flow)
            }
        }
    }

    /// What becomes of what is held once there is no more reason to hold it.
    fn let_go(&self) -> Flow {
        if self.answered { Flow::Hold } else { Flow::Continue }
    }

    /// The last byte is held until the store has answered once.
    fn flow(&self) -> Flow {
        if self.failed || self.stream_over { Flow::Continue } else { Flow::Hold }
    }

    /// A reply of the store: at the first, the client gets the answer that waits for it.
    fn replied(mut self, reply: Result<Reply, StoreError>, now: Timestamp) -> Transition {
        let answer = self.answer.take();
        if let Some(answer) = &answer {
            self.untyped = is_untyped(answer);
        }
        self.ended(reply, now).orders(answer.map(|answer| Order::Answer(*answer)))
    }

    fn ended(mut self, reply: Result<Reply, StoreError>, now: Timestamp) -> Transition {
        let key = self.command.key();
        let rule = &self.rule.name;
        match reply {
            Ok(Reply::Done) => self.done(),
            // It never was a claim, or has ended long ago.
            Ok(Reply::NotOwner) if !self.given => self.done(),
            Ok(Reply::NotOwner) => {
                let said = format!("{rule} {key}: the claim was lost before its end was recorded");
                self.done().order(Order::Log(Incident::ClaimLost, said))
            }
            Ok(reply @ (Reply::Claimed { .. } | Reply::Exists(_))) => {
                let said = format!("{rule} {key}: the end of a claim got {reply:?}");
                self.done().order(Order::Log(Incident::Unreachable, said))
            }
            Err(error) => {
                let first = !self.failed;
                self.failed = true;
                self.attempt = Attempt::At(now.after(self.pause).min(self.give_up_at));
                self.pause = LONGEST_PAUSE.min(2 * self.pause);
                let said = format!("{rule} {key}: the end of a claim was not recorded: {error}");
                let records = matches!(self.command, Command::Complete { .. });
                let flow = self.let_go();
                let transition = Transition::new(State::Finishing(self), flow);
                match (first, records) {
                    (true, true) => transition
                        .order(Order::Count(Counter::RecordWriteFailures))
                        .order(Order::Log(Incident::RecordNotWritten, said)),
                    (true, false) => transition.order(Order::Log(Incident::RecordNotWritten, said)),
                    // Logged once a claim: an outage of the store is logged elsewhere.
                    (false, _) => transition,
                }
            }
        }
    }

    fn retry(mut self, context: &mut Context, now: Timestamp) -> Transition {
        match self.attempt {
            Attempt::At(time) if time <= now && now < self.give_up_at => {
                let (question, order) = context.ask(self.whom, self.command.clone());
                self.attempt = Attempt::InFlight(question);
                let flow = self.let_go();
                Transition::new(State::Finishing(self), flow).order(order)
            }
            Attempt::At(_) if now >= self.give_up_at => {
                let said = format!(
                    "{} {}: gave up recording the end of a claim: another may run by now",
                    self.rule.name,
                    self.command.key()
                );
                self.done().order(Order::Log(Incident::RecordGivenUp, said))
            }
            Attempt::At(_) => {
                let flow = self.let_go();
                Transition::new(State::Finishing(self), flow)
            }
            Attempt::InFlight(_) => {
                let flow = if self.answered { Flow::Hold } else { self.flow() };
                Transition::new(State::Finishing(self), flow)
            }
        }
    }

    fn done(self) -> Transition {
        let flow = self.let_go();
        let state = if self.stream_over {
            State::Over
        } else {
            let Self { rule, untyped, answered, .. } = self;
            State::Passing(Passing { rule: Some(rule), outcome: None, untyped, answered })
        };
        Transition::new(state, flow)
    }
}
