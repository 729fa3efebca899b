//! From the first claim to the right to run: claimed, answered, waiting, or requeued.

use super::claim::Claim;
use super::detached::{self, Unsent};
use super::disowned::Disowned;
use super::duplicate::{self, RETRY_AFTER_SECONDS, Resolution};
use super::finish::{self, Rest};
use super::origin::AwaitOrigin;
use super::tail::Tail;
use super::{
    Context, Flow, Input, Order, RequestId, ResponsePart, State, StoreReply, Transition, Whom,
    WorkerFact, report,
};
use crate::config::{OnStoreError, Ongoing, Rule};
use crate::key::{Fingerprint, Key};
use crate::store::{Command, Reply, StoreError};
use crate::telemetry::{Counter, Incident, Outcome, header};
use crate::time::{Timestamp, WallTime};
use std::rc::Rc;
use std::time::Duration;

/// Shortest pause before a waiter looks again by itself. It matters only when the store's clock is
/// ahead of ours and a lease that is over here still lives there: no busy loop then.
const RECHECK_PAUSE: Duration = Duration::from_millis(100);

/// A request with a key, and how long it has been patient.
#[derive(Debug)]
pub(super) struct Claiming {
    rule: Rc<Rule>,
    key: Key,
    fingerprint: Fingerprint,
    location: Vec<u8>,
    unsent: Option<Unsent>,
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
    claiming: Claiming,
    question: RequestId,
    asked_at: Timestamp,
    whom: Whom,
    watching: bool,
    /// A wake-up came while the question was in flight: the reply may be older than the wake-up.
    woken: bool,
}

/// The first is running; its end wakes this one.
#[derive(Debug)]
pub(super) struct AwaitFirst {
    claiming: Claiming,
    /// The first's lease is over then. If it crashed, no wake-up comes.
    ask_at: Timestamp,
    until: Timestamp,
    first_seen: WallTime,
}

/// The first is running; look again after the rule's delay.
#[derive(Debug)]
pub(super) struct Requeued {
    claiming: Claiming,
    ask_at: Timestamp,
}

impl Claiming {
    pub(super) fn new(
        rule: Rc<Rule>,
        key: Key,
        fingerprint: Fingerprint,
        location: Vec<u8>,
        unsent: Option<Unsent>,
    ) -> Self {
        Self { rule, key, fingerprint, location, unsent, patience: Patience::Fresh }
    }
}

/// Asks the store, for the first time.
pub(super) fn ask(context: &mut Context, claiming: Claiming, now: Timestamp) -> Transition {
    ask_again(context, claiming, now, false)
}

fn ask_again(
    context: &mut Context,
    claiming: Claiming,
    now: Timestamp,
    watching: bool,
) -> Transition {
    ask_whom(context, Whom::Store, claiming, now, watching)
}

fn ask_whom(
    context: &mut Context,
    whom: Whom,
    claiming: Claiming,
    now: Timestamp,
    watching: bool,
) -> Transition {
    let command = Command::Claim {
        key: claiming.key,
        token: context.token,
        fingerprint: claiming.fingerprint,
        first_seen: context.came_at,
        lease: claiming.rule.lease,
        unknown_for: claiming.rule.unknown_ttl,
        watch: watching,
    };
    let (question, order) = context.ask(whom, command);
    let state = AwaitClaim { claiming, question, asked_at: now, whom, watching, woken: false };
    Transition::new(State::AwaitClaim(state), Flow::Hold).order(order)
}

impl AwaitClaim {
    pub(super) fn rule(&self) -> &Rule {
        &self.claiming.rule
    }

    pub(super) fn handle(
        mut self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Store(StoreReply { question, reply }) if question == self.question => {
                self.replied(context, reply, now)
            }
            Input::Worker(WorkerFact::Woken) => {
                self.woken = true;
                Transition::new(State::AwaitClaim(self), Flow::Hold)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                self.disown(Rest::MoreToCome(Tail::UNKNOWN))
            }
            Input::StreamEnded => self.disown(Rest::Gone),
            Input::Store(_)
            | Input::Request(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Tick)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::AwaitClaim(self), Flow::Hold)
            }
        }
    }

    fn replied(
        self,
        context: &mut Context,
        reply: Result<Reply, StoreError>,
        now: Timestamp,
    ) -> Transition {
        let waited = match self.claiming.patience {
            Patience::Fresh => false,
            Patience::Until(_) | Patience::Attempts(_) => true,
        };
        match reply {
            // The reply took so long that the claim may be another request's by now.
            Ok(Reply::Claimed { .. }) if self.asked_at.after(self.claiming.rule.lease) <= now => {
                let said = format!(
                    "{} {}: the claim arrived after its lease was over",
                    self.claiming.rule.name, self.claiming.key
                );
                self.store_failed(context, true, now).order(Order::Log(Incident::StoreFailed, said))
            }
            Ok(Reply::Claimed { attempt }) => {
                let orders = self.unwatch();
                self.run(context, attempt).after(orders)
            }
            Ok(Reply::Exists(record)) => {
                match duplicate::resolve(record, self.claiming.fingerprint, waited) {
                    Resolution::Answer(outcome, answer) => {
                        context.answer(&self.claiming.rule, outcome, answer).after(self.unwatch())
                    }
                    Resolution::Ongoing { lease_until, first_seen } => {
                        self.resolve_ongoing(context, lease_until, first_seen, now)
                    }
                }
            }
            Ok(reply @ (Reply::Done | Reply::NotOwner)) => {
                let said = format!(
                    "{} {}: a claim got {reply:?}",
                    self.claiming.rule.name, self.claiming.key
                );
                self.store_failed(context, true, now).order(Order::Log(Incident::Unreachable, said))
            }
            Err(error) => {
                let said = format!("{} {}: {error}", self.claiming.rule.name, self.claiming.key);
                let may_be_claimed = matches!(error, StoreError::Unanswered(_));
                self.store_failed(context, may_be_claimed, now)
                    .order(Order::Log(Incident::StoreFailed, said))
            }
        }
    }

    /// Row 8: it is ours to run.
    fn run(self, context: &mut Context, attempt: u32) -> Transition {
        let Claiming { rule, key, unsent, .. } = self.claiming;
        let claim = Claim::new(self.whom, key, context.token, rule.lease, self.asked_at);
        let executed = report(&rule, Outcome::Executed);
        let mut transition = match unsent {
            Some(unsent) => detached::dispatch(context, rule.clone(), claim, unsent, attempt)
                .after(vec![executed]),
            None => {
                let state = State::AwaitOrigin(AwaitOrigin::new(rule.clone(), claim));
                Transition::new(state, Flow::Continue)
                    .order(executed)
                    .order(Order::SetRequestHeader(header::ATTEMPT, attempt.to_string()))
            }
        };
        if attempt > 1 {
            let said = format!("{} {key}: attempt {attempt} takes over", rule.name);
            transition = transition
                .order(Order::Count(Counter::Takeovers))
                .order(Order::Log(Incident::Takeover, said));
        }
        transition
    }

    /// Row 14: the first is running.
    fn resolve_ongoing(
        mut self,
        context: &mut Context,
        lease_until: Timestamp,
        first_seen: WallTime,
        now: Timestamp,
    ) -> Transition {
        let rule = self.claiming.rule.clone();
        if rule.shadow {
            return context.pass(&rule, would_have(&rule.ongoing));
        }
        match (&rule.ongoing, self.claiming.patience) {
            (Ongoing::Reject, _) => self.reject(context, first_seen),
            (Ongoing::Redirect { after, .. }, _) => {
                // Whole seconds, and never zero, which would invite a busy loop.
                let seconds = after.as_secs().max(1);
                let problem = duplicate::in_progress(first_seen, seconds);
                let reply = problem.into_redirect(std::mem::take(&mut self.claiming.location));
                context.answer(&rule, Outcome::Rejected, reply)
            }
            (Ongoing::Wait { max }, Patience::Fresh | Patience::Attempts(_)) => {
                // Watch first, then ask again: an end in between shows in the reply or causes a wake-up.
                self.claiming.patience = Patience::Until(now.after(*max));
                let watch = Order::Watch(self.claiming.key);
                ask_again(context, self.claiming, now, true).after(vec![watch])
            }
            (Ongoing::Wait { .. }, Patience::Until(until)) => {
                if until <= now {
                    self.reject(context, first_seen)
                } else if self.woken {
                    ask_again(context, self.claiming, now, true)
                } else {
                    let ask_at = lease_until.max(now.after(RECHECK_PAUSE));
                    let state = AwaitFirst { claiming: self.claiming, ask_at, until, first_seen };
                    Transition::new(State::AwaitFirst(state), Flow::Hold)
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
                self.claiming.patience = Patience::Attempts(left);
                let state = Requeued { claiming: self.claiming, ask_at: now.after(*delay) };
                Transition::new(State::Requeued(state), Flow::Hold)
            }
        }
    }

    fn reject(self, context: &Context, first_seen: WallTime) -> Transition {
        reject(context, &self.claiming, first_seen).after(self.unwatch())
    }

    /// Row 15.
    fn store_failed(
        self,
        context: &mut Context,
        may_be_claimed: bool,
        now: Timestamp,
    ) -> Transition {
        let rule = self.claiming.rule.clone();
        match rule.on_store_error {
            // A claim that was made all the same lapses by itself, and the key is unknown then: the truth,
            // for this request passes unprotected.
            OnStoreError::Pass => context.pass(&rule, Outcome::StoreError).after(self.unwatch()),
            OnStoreError::Local if self.whom == Whom::Store => {
                ask_whom(context, Whom::Here, self.claiming, now, self.watching)
                    .order(Order::Count(Counter::LocalFallbacks))
            }
            OnStoreError::Refuse | OnStoreError::Local => {
                let reply = duplicate::store_unavailable(&rule).into_reply();
                let answer =
                    context.answer(&rule, Outcome::StoreError, reply).after(self.unwatch());
                if may_be_claimed && self.whom == Whom::Store {
                    // Nothing has run: without this, the outcome would be unknown for no reason.
                    let lease_until = self.asked_at.after(rule.lease);
                    finish::take_back(context, rule, self.claiming.key, lease_until)
                        .after(answer.orders)
                } else {
                    answer
                }
            }
        }
    }

    fn disown(self, rest: Rest) -> Transition {
        let orders = self.unwatch();
        let Claiming { rule, key, .. } = self.claiming;
        let lease_until = self.asked_at.after(rule.lease);
        let (whom, question) = (self.whom, self.question);
        let state = Disowned { rule, whom, key, question, lease_until, rest };
        Transition::new(State::Disowned(state), Flow::Continue).after(orders)
    }

    fn unwatch(&self) -> Vec<Order> {
        if self.watching { vec![Order::Unwatch(self.claiming.key)] } else { Vec::new() }
    }
}

/// What a duplicate that meets a running first would have come to.
fn would_have(ongoing: &Ongoing) -> Outcome {
    match ongoing {
        Ongoing::Wait { .. } | Ongoing::Requeue { .. } => Outcome::Waited,
        Ongoing::Reject | Ongoing::Redirect { .. } => Outcome::Rejected,
    }
}

fn reject(context: &Context, claiming: &Claiming, first_seen: WallTime) -> Transition {
    let reply = duplicate::in_progress(first_seen, RETRY_AFTER_SECONDS).into_reply();
    context.answer(&claiming.rule, Outcome::Rejected, reply)
}

impl AwaitFirst {
    pub(super) fn rule(&self) -> &Rule {
        &self.claiming.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.ask_at.min(self.until)
    }

    pub(super) fn handle(
        self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        let unwatch = Order::Unwatch(self.claiming.key);
        match input {
            Input::Worker(WorkerFact::Woken) => ask_again(context, self.claiming, now, true),
            Input::Worker(WorkerFact::Tick) if self.until <= now => {
                reject(context, &self.claiming, self.first_seen).after(vec![unwatch])
            }
            Input::Worker(WorkerFact::Tick) if self.ask_at <= now => {
                ask_again(context, self.claiming, now, true)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                context.pass(&self.claiming.rule, Outcome::Rejected).after(vec![unwatch])
            }
            Input::StreamEnded => Transition::new(State::Over, Flow::Continue).order(unwatch),
            Input::Request(_)
            | Input::Store(_)
            | Input::Worker(WorkerFact::OriginReplied { .. } | WorkerFact::Tick)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::AwaitFirst(self), Flow::Hold)
            }
        }
    }
}

impl Requeued {
    pub(super) fn rule(&self) -> &Rule {
        &self.claiming.rule
    }

    pub(super) fn alarm(&self) -> Timestamp {
        self.ask_at
    }

    pub(super) fn handle(
        self,
        context: &mut Context,
        input: Input<'_>,
        now: Timestamp,
    ) -> Transition {
        match input {
            Input::Worker(WorkerFact::Tick) if self.ask_at <= now => {
                ask_again(context, self.claiming, now, false)
            }
            Input::Response(ResponsePart::Headers { .. }) => {
                context.pass(&self.claiming.rule, Outcome::Rejected)
            }
            Input::StreamEnded => Transition::new(State::Over, Flow::Continue),
            Input::Request(_)
            | Input::Store(_)
            | Input::Worker(_)
            | Input::Response(ResponsePart::Body { .. } | ResponsePart::Trailers) => {
                Transition::new(State::Requeued(self), Flow::Hold)
            }
        }
    }
}
