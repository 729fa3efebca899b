//! Between the question to the store and the right to run: claimed, answered, waiting, queued.

use super::claim::Claim;
use super::decide::{self, Meeting, RETRY_AFTER_SECONDS};
use super::detached::{self, Draft as Outbound};
use super::origin::AwaitOrigin;
use super::settle::{self, Rest};
use super::tail::Tail;
use super::{
    Context, Flow, Input, Order, Question, ResponsePart, State, StoreReply, Then, Whom, WorkerFact,
    report,
};
use crate::config::{OnStoreError, Ongoing, Rule};
use crate::key::{Fingerprint, Key};
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::{Counter, Incident, Outcome, header};
use crate::time::Timestamp;
use std::rc::Rc;
use std::time::Duration;

/// Shortest pause before a waiter looks again by itself. It matters only when the store's clock is
/// ahead of ours and a lease that is over here still lives there: no busy loop then.
const RECHECK_PAUSE: Duration = Duration::from_millis(100);

/// A request with a key, and how long it has been patient.
#[derive(Debug)]
pub(super) struct Pending {
    rule: Rc<Rule>,
    key: Key,
    fingerprint: Fingerprint,
    location: Vec<u8>,
    outbound: Option<Outbound>,
    patience: Patience,
}

#[derive(Clone, Copy, Debug)]
enum Patience {
    /// It has not met a running first yet.
    Fresh,
    /// `wait`: until then.
    Until(Timestamp),
    /// `requeue`: this many more times.
    Attempts(u32),
}

/// The store was asked to claim the key.
#[derive(Debug)]
pub(super) struct AwaitClaim {
    pending: Pending,
    question: Question,
    asked_at: Timestamp,
    whom: Whom,
    watching: bool,
    /// A wake-up came while the question was under way: its reply may be older than the wake-up.
    woken: bool,
}

/// The first is running; whoever ends it wakes us.
#[derive(Debug)]
pub(super) struct Waiting {
    pending: Pending,
    /// The first's lease is over then, and nobody would wake us.
    ask_at: Timestamp,
    until: Timestamp,
    first_seen: Timestamp,
}

/// The first is running; look again after the rule's delay.
#[derive(Debug)]
pub(super) struct Queued {
    pending: Pending,
    ask_at: Timestamp,
}

/// The stream went its own way while the question was under way; a claim that it may have won is
/// given back.
#[derive(Debug)]
pub(super) struct Disowned {
    rule: Rc<Rule>,
    whom: Whom,
    key: Key,
    question: Question,
    lease_until: Timestamp,
    rest: Rest,
}

impl Pending {
    pub(super) fn new(
        rule: Rc<Rule>,
        key: Key,
        fingerprint: Fingerprint,
        location: Vec<u8>,
        outbound: Option<Outbound>,
    ) -> Self {
        Self { rule, key, fingerprint, location, outbound, patience: Patience::Fresh }
    }
}

/// Asks the store, for the first time.
pub(super) fn ask(context: &mut Context, pending: Pending, now: Timestamp) -> Then {
    ask_again(context, pending, now, false)
}

fn ask_again(context: &mut Context, pending: Pending, now: Timestamp, watching: bool) -> Then {
    ask_whom(context, Whom::Store, pending, now, watching)
}

fn ask_whom(
    context: &mut Context,
    whom: Whom,
    pending: Pending,
    now: Timestamp,
    watching: bool,
) -> Then {
    let command = Command::Claim {
        key: pending.key,
        token: context.token,
        fingerprint: pending.fingerprint,
        lease: pending.rule.lease,
        unknown_for: pending.rule.unknown_ttl,
        watch: watching,
    };
    let (question, order) = context.ask(whom, command);
    let state = AwaitClaim { pending, question, asked_at: now, whom, watching, woken: false };
    Then::new(State::AwaitClaim(state), Flow::Hold).order(order)
}

impl AwaitClaim {
    pub(super) fn rule(&self) -> &Rule {
        &self.pending.rule
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Then {
        match input {
            Input::Store(StoreReply { question, reply }) if question == self.question => {
                self.replied(context, reply, now)
            }
            Input::Worker(WorkerFact::Woken) => {
                self.woken = true;
                Then::new(State::AwaitClaim(self), Flow::Hold)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                self.disown(Rest::MoreToCome(Tail::UNKNOWN))
            }
            Input::StreamEnded => self.disown(Rest::Gone),
            Input::Store(_)
            | Input::Request(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Tick)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Then::new(State::AwaitClaim(self), Flow::Hold)
            }
        }
    }

    fn replied(
        self,
        context: &mut Context,
        reply: Result<Reply, StoreError>,
        now: Timestamp,
    ) -> Then {
        let waited = match self.pending.patience {
            Patience::Fresh => false,
            Patience::Until(_) | Patience::Attempts(_) => true,
        };
        match reply {
            // The reply took so long that the claim may be somebody else's by now.
            Ok(Reply::Claimed { .. }) if self.asked_at.after(self.pending.rule.lease) <= now => {
                let said = format!(
                    "{} {}: the claim came after its lease was over",
                    self.pending.rule.name, self.pending.key
                );
                self.store_failed(context, true, now).order(Order::Log(Incident::StoreFailed, said))
            }
            Ok(Reply::Claimed { attempt }) => {
                let orders = self.unwatch();
                self.run(context, attempt).after(orders)
            }
            Ok(Reply::Exists(record)) => {
                match decide::meet(record, self.pending.fingerprint, waited) {
                    Meeting::Answer(outcome, answer) => {
                        context.answer(&self.pending.rule, outcome, answer).after(self.unwatch())
                    }
                    Meeting::Ongoing { lease_until, first_seen } => {
                        self.meet_ongoing(context, lease_until, first_seen, now)
                    }
                }
            }
            Ok(reply @ (Reply::Done | Reply::NotOwner)) => {
                let said = format!(
                    "{} {}: a claim got {reply:?}",
                    self.pending.rule.name, self.pending.key
                );
                self.store_failed(context, true, now).order(Order::Log(Incident::Unreachable, said))
            }
            Err(error) => {
                let said = format!("{} {}: {error}", self.pending.rule.name, self.pending.key);
                let may_be_claimed = matches!(error, StoreError::Unanswered(_));
                self.store_failed(context, may_be_claimed, now)
                    .order(Order::Log(Incident::StoreFailed, said))
            }
        }
    }

    /// Row 8: it is ours to run.
    fn run(self, context: &mut Context, attempt: u32) -> Then {
        let Pending { rule, key, outbound, .. } = self.pending;
        let claim = Claim::new(self.whom, key, context.token, rule.lease, self.asked_at);
        let executed = report(&rule, Outcome::Executed);
        let mut then = match outbound {
            Some(outbound) => detached::dispatch(context, rule.clone(), claim, outbound, attempt)
                .after(vec![executed]),
            None => {
                let state = State::AwaitOrigin(AwaitOrigin::new(rule.clone(), claim));
                Then::new(state, Flow::Continue)
                    .order(executed)
                    .order(Order::SetRequestHeader(header::ATTEMPT, attempt.to_string()))
            }
        };
        if attempt > 1 {
            let said = format!("{} {key}: attempt {attempt} takes over", rule.name);
            then = then
                .order(Order::Count(Counter::Takeovers))
                .order(Order::Log(Incident::Takeover, said));
        }
        then
    }

    /// Row 14: the first is running.
    fn meet_ongoing(
        mut self,
        context: &mut Context,
        lease_until: Timestamp,
        first_seen: Timestamp,
        now: Timestamp,
    ) -> Then {
        let rule = self.pending.rule.clone();
        if rule.shadow {
            return context.pass(&rule, would_have(&rule.ongoing));
        }
        match (&rule.ongoing, self.pending.patience) {
            (Ongoing::Reject, _) => self.reject(context, first_seen),
            (Ongoing::Redirect { after, .. }, _) => {
                // Whole seconds, and never zero, which would invite a busy loop.
                let seconds = after.as_secs().max(1);
                let problem = decide::in_progress(first_seen, seconds);
                let reply = problem.into_redirect(std::mem::take(&mut self.pending.location));
                context.answer(&rule, Outcome::Rejected, reply)
            }
            (Ongoing::Wait { max }, Patience::Fresh | Patience::Attempts(_)) => {
                // Watch first, then look again: what ends in between is either seen or heard of.
                self.pending.patience = Patience::Until(now.after(*max));
                let watch = Order::Watch(self.pending.key);
                ask_again(context, self.pending, now, true).after(vec![watch])
            }
            (Ongoing::Wait { .. }, Patience::Until(until)) => {
                if until <= now {
                    self.reject(context, first_seen)
                } else if self.woken {
                    ask_again(context, self.pending, now, true)
                } else {
                    let ask_at = lease_until.max(now.after(RECHECK_PAUSE));
                    let state = Waiting { pending: self.pending, ask_at, until, first_seen };
                    Then::new(State::Waiting(state), Flow::Hold)
                }
            }
            (Ongoing::Requeue { delay, attempts }, patience) => {
                let left = match patience {
                    Patience::Attempts(left) => left,
                    Patience::Fresh | Patience::Until(_) => *attempts,
                };
                let Some(left) = left.checked_sub(1) else {
                    return self.reject(context, first_seen);
                };
                self.pending.patience = Patience::Attempts(left);
                let state = Queued { pending: self.pending, ask_at: now.after(*delay) };
                Then::new(State::Queued(state), Flow::Hold)
            }
        }
    }

    fn reject(self, context: &Context, first_seen: Timestamp) -> Then {
        reject(context, &self.pending, first_seen).after(self.unwatch())
    }

    /// Row 15.
    fn store_failed(self, context: &mut Context, may_be_claimed: bool, now: Timestamp) -> Then {
        let rule = self.pending.rule.clone();
        match rule.on_store_error {
            // A claim that was made all the same lapses by itself, and the key is unknown then: the truth,
            // for this request passes unprotected.
            OnStoreError::Pass => context.pass(&rule, Outcome::StoreError).after(self.unwatch()),
            OnStoreError::Local if self.whom == Whom::Store => {
                ask_whom(context, Whom::Here, self.pending, now, self.watching)
                    .order(Order::Count(Counter::LocalFallbacks))
            }
            OnStoreError::Refuse | OnStoreError::Local => {
                let reply = decide::store_unavailable(&rule).into_reply();
                let answer =
                    context.answer(&rule, Outcome::StoreError, reply).after(self.unwatch());
                if may_be_claimed && self.whom == Whom::Store {
                    // Nothing has run: without this, the key would be in doubt for nothing.
                    let lease_until = self.asked_at.after(rule.lease);
                    settle::take_back(context, rule, self.pending.key, lease_until)
                        .after(answer.orders)
                } else {
                    answer
                }
            }
        }
    }

    fn disown(self, rest: Rest) -> Then {
        let orders = self.unwatch();
        let Pending { rule, key, .. } = self.pending;
        let lease_until = self.asked_at.after(rule.lease);
        let (whom, question) = (self.whom, self.question);
        let state = Disowned { rule, whom, key, question, lease_until, rest };
        Then::new(State::Disowned(state), Flow::Continue).after(orders)
    }

    fn unwatch(&self) -> Vec<Order> {
        if self.watching { vec![Order::Unwatch(self.pending.key)] } else { Vec::new() }
    }
}

/// What a duplicate that meets a running first would have come to.
fn would_have(ongoing: &Ongoing) -> Outcome {
    match ongoing {
        Ongoing::Wait { .. } | Ongoing::Requeue { .. } => Outcome::Waited,
        Ongoing::Reject | Ongoing::Redirect { .. } => Outcome::Rejected,
    }
}

fn reject(context: &Context, pending: &Pending, first_seen: Timestamp) -> Then {
    let reply = decide::in_progress(first_seen, RETRY_AFTER_SECONDS).into_reply();
    context.answer(&pending.rule, Outcome::Rejected, reply)
}

impl Waiting {
    pub(super) fn rule(&self) -> &Rule {
        &self.pending.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.ask_at.min(self.until)
    }

    pub(super) fn handle(self, context: &mut Context, input: Input<'_>, now: Timestamp) -> Then {
        let unwatch = Order::Unwatch(self.pending.key);
        match input {
            Input::Worker(WorkerFact::Woken) => ask_again(context, self.pending, now, true),
            Input::Worker(WorkerFact::Tick) if self.until <= now => {
                reject(context, &self.pending, self.first_seen).after(vec![unwatch])
            }
            Input::Worker(WorkerFact::Tick) if self.ask_at <= now => {
                ask_again(context, self.pending, now, true)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                context.pass(&self.pending.rule, Outcome::Rejected).after(vec![unwatch])
            }
            Input::StreamEnded => Then::new(State::Over, Flow::Continue).order(unwatch),
            Input::Request(_)
            | Input::Store(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Tick)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Then::new(State::Waiting(self), Flow::Hold)
            }
        }
    }
}

impl Queued {
    pub(super) fn rule(&self) -> &Rule {
        &self.pending.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.ask_at
    }

    pub(super) fn handle(self, context: &mut Context, input: Input<'_>, now: Timestamp) -> Then {
        match input {
            Input::Worker(WorkerFact::Tick) if self.ask_at <= now => {
                ask_again(context, self.pending, now, false)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                context.pass(&self.pending.rule, Outcome::Rejected)
            }
            Input::StreamEnded => Then::new(State::Over, Flow::Continue),
            Input::Request(_)
            | Input::Store(_)
            | Input::Worker(_)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Then::new(State::Queued(self), Flow::Hold)
            }
        }
    }
}

impl Disowned {
    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        _now: Timestamp,
    ) -> Then {
        match input {
            Input::Store(StoreReply { question, reply }) if question == self.question => {
                match reply {
                    // Somebody else's record: there is nothing to give back.
                    Ok(Reply::Exists(_)) => match self.rest {
                        Rest::Gone => Then::new(State::Over, Flow::Continue),
                        Rest::MoreToCome(_) | Rest::LastByte | Rest::Answered(_) => {
                            context.pass(&self.rule, Outcome::Rejected)
                        }
                    },
                    // Ours, or perhaps ours. Nothing has run, and a release by who does not own changes
                    // nothing.
                    Ok(Reply::Claimed { .. } | Reply::Done | Reply::NotOwner) | Err(_) => {
                        let given = matches!(reply, Ok(Reply::Claimed { .. }));
                        let command = Command::Release { key: self.key, token: context.token };
                        let Self { rule, whom, lease_until, rest, .. } = self;
                        settle::settle_command(
                            context,
                            rule,
                            whom,
                            command,
                            lease_until,
                            given,
                            rest,
                        )
                    }
                }
            }
            Input::StreamEnded => {
                self.rest = Rest::Gone;
                Then::new(State::Disowned(self), Flow::Continue)
            }
            Input::Store(_) | Input::Request(_) | Input::Worker(_) | Input::Response(_) => {
                Then::new(State::Disowned(self), Flow::Continue)
            }
        }
    }
}
