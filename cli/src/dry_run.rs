//! What would happen to a request, by the module's own state machine.
//!
//! Nothing here decides. The state machine gets the request and, once for each state that a record can be in,
//! the reply of a store; its orders become text.

use super::output::Fields;
use super::request::Request;
use envoy_idempotency::config::{Config, Ongoing, Rule};
use envoy_idempotency::exchange::{
    Exchange, Flow, Input, Order, RequestId, RequestPart, StoreReply,
};
use envoy_idempotency::key::{Attributes, Fingerprint, Key};
use envoy_idempotency::record::{Answer, Kept, Record, State, Token};
use envoy_idempotency::reply::LocalReply;
use envoy_idempotency::store::{Command, Reply, StoreError};
use envoy_idempotency::telemetry::{Outcome, header};
use envoy_idempotency::time::{Timestamp, WallTime};
use serde_json::{Value, json};
use std::rc::Rc;

/// Any time will do: no store is asked.
const NOW: Timestamp = Timestamp::from_millis(1_000_000_000_000);
const CAME_AT: WallTime = WallTime::from_millis(1_000_000_000_000);

/// Runs the machine until it has answered, let the request go, or waits.
pub(super) fn dry_run(
    attributes: &dyn Attributes,
    config: &Rc<Config>,
    request: &Request,
    meets: &Meets,
) -> DryRun {
    let exchange = Exchange::new(config.clone(), "explain".into(), Token([1; 16]), CAME_AT);
    let ends = request.body.is_empty();
    let headers = Input::Request(RequestPart::Headers {
        headers: &request.headers,
        attributes,
        end_of_stream: ends,
    });
    let mut step = exchange.handle(headers, NOW);
    let mut run = DryRun { held: step.flow == Flow::Hold, ..DryRun::default() };
    let mut questions = run.take(&mut step.orders);
    if !ends && (run.held || step.next.wants_bytes()) {
        let length = request.body.len();
        let body =
            Input::Request(RequestPart::Body { chunk: &request.body, length, end_of_stream: true });
        step = step.next.handle(body, NOW);
        run.held = step.flow == Flow::Hold;
        questions = questions.or(run.take(&mut step.orders));
    }
    // A waiting request asks twice: it watches the key, and asks again.
    for _ in 0..2 {
        let Some((question, command)) = questions else { break };
        if let Command::Claim { key, fingerprint, .. } = &command {
            run.claim = Some((*key, *fingerprint));
        }
        let reply = meets.reply(&command);
        step = step.next.handle(Input::Store(StoreReply { question, reply }), NOW);
        run.held = step.flow == Flow::Hold;
        questions = run.take(&mut step.orders);
    }
    run.waits = step.next.alarm().is_some() && run.answer.is_none();
    run
}

/// What the request finds in the store.
#[derive(PartialEq)]
pub(super) enum Meets {
    Nothing,
    Ongoing,
    Finished,
    Unknown,
    Another,
    NoStore,
}

impl Meets {
    pub(super) const ALL: [Self; 6] =
        [Self::Nothing, Self::Ongoing, Self::Finished, Self::Unknown, Self::Another, Self::NoStore];

    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Nothing => "new",
            Self::Ongoing => "ongoing",
            Self::Finished => "finished",
            Self::Unknown => "unknown",
            Self::Another => "differs",
            Self::NoStore => "store_away",
        }
    }

    fn reply(&self, command: &Command) -> Result<Reply, StoreError> {
        let Command::Claim { fingerprint, lease, .. } = command else {
            return Ok(Reply::Done);
        };
        let until = NOW.after(*lease);
        let ongoing = State::Ongoing { lease_until: until, unknown_for: *lease };
        let exists = |fingerprint, state| {
            let token = Token([2; 16]);
            Ok(Reply::Exists(Record { token, fingerprint, attempt: 1, first_seen: CAME_AT, state }))
        };
        match self {
            Self::Nothing => Ok(Reply::Claimed { attempt: 1 }),
            Self::Ongoing => exists(*fingerprint, ongoing),
            Self::Finished => {
                let kept = Kept::Answer(Answer::default());
                exists(*fingerprint, State::Finished { until, status: 200, kept })
            }
            Self::Unknown => exists(*fingerprint, State::Unknown { until }),
            Self::Another => exists(Fingerprint(fingerprint.0.map(|byte| !byte)), ongoing),
            Self::NoStore => Err(StoreError::Unavailable("it is away")),
        }
    }
}

/// The orders of the machine.
#[derive(Default)]
pub(super) struct DryRun {
    /// The key and the fingerprint, if it has reached the store.
    pub(super) claim: Option<(Key, Fingerprint)>,
    outcome: Option<Outcome>,
    shadow: bool,
    answer: Option<LocalReply>,
    attempt: Option<String>,
    sends: bool,
    asks_here: bool,
    waits: bool,
    held: bool,
    log: Vec<String>,
}

impl DryRun {
    /// Records the orders, and returns the command to the store among them.
    fn take(&mut self, orders: &mut Vec<Order>) -> Option<(RequestId, Command)> {
        let mut asked = None;
        for order in orders.drain(..) {
            match order {
                Order::Ask(question, command) => asked = Some((question, command)),
                Order::AskHere(..) => self.asks_here = true,
                Order::Send(_, outgoing) => {
                    self.sends = true;
                    let mut headers = outgoing.headers.into_iter();
                    let attempt = headers.find(|(name, _)| name == header::ATTEMPT.as_bytes());
                    self.attempt =
                        attempt.map(|(_, value)| String::from_utf8_lossy(&value).into_owned());
                }
                Order::Answer(reply) => self.answer = Some(reply),
                Order::SetRequestHeader(header::ATTEMPT, attempt) => self.attempt = Some(attempt),
                Order::Report(_, report) => {
                    self.outcome = Some(report.outcome);
                    self.shadow = report.shadow;
                }
                Order::Log(_, text) => self.log.push(text),
                Order::SetRequestHeader(..)
                | Order::RemoveRequestHeader(_)
                | Order::SetResponseHeader(..)
                | Order::RemoveResponseHeader(_)
                | Order::Watch(_)
                | Order::Unwatch(_)
                | Order::Count(_) => {}
            }
        }
        asked
    }

    /// For a request that the rule protects.
    pub(super) fn into_json(self, rule: &Rule) -> Value {
        let then = self.words(rule);
        let mut output = Fields::default();
        output.put("then", then);
        if let Some(outcome) = self.outcome {
            output.put("outcome", outcome.word());
        }
        if let Some(answer) = &self.answer {
            output.put("status", answer.status);
        }
        if self.shadow {
            output.put("shadow", true);
        }
        output.into()
    }

    /// For a request that no rule protects.
    pub(super) fn without_rule(&self) -> Value {
        match &self.answer {
            Some(answer) => json!({ "then": answered(answer), "status": answer.status }),
            None => json!({ "then": "goes on untouched: no rule matches" }),
        }
    }

    fn words(&self, rule: &Rule) -> String {
        let words = if let Some(answer) = &self.answer {
            if self.outcome == Some(Outcome::Replayed) {
                return "is answered with the first answer, and Idempotent-Replayed: true"
                    .to_owned();
            }
            answered(answer)
        } else if self.sends {
            let attempt = self.attempt.as_deref().unwrap_or("1");
            format!("runs, detached from its client, with Idempotency-Attempt: {attempt}")
        } else if let Some(attempt) = &self.attempt {
            format!("runs, with Idempotency-Attempt: {attempt}")
        } else if self.asks_here {
            "is decided by this Envoy's memory alone".to_owned()
        } else if self.waits && self.held {
            match &rule.ongoing {
                Ongoing::Wait { max } => format!(
                    "waits for the first to finish, at most {} s, and is answered 409 in-progress then",
                    max.as_secs_f64()
                ),
                Ongoing::Requeue { delay, attempts } => format!(
                    "polls {attempts} times, every {} s, and is answered 409 in-progress then",
                    delay.as_secs_f64()
                ),
                Ongoing::Reject | Ongoing::Redirect { .. } => "is held".to_owned(),
            }
        } else if self.shadow {
            "goes on untouched: the rule is in shadow mode".to_owned()
        } else {
            match self.outcome {
                Some(Outcome::StoreError) => "goes on, unprotected".to_owned(),
                Some(_) | None => "goes on untouched".to_owned(),
            }
        };
        match self.log.first() {
            // Why it does not reach the store.
            Some(log) if self.claim.is_none() => format!("{words} ({log})"),
            Some(_) | None => words,
        }
    }
}

/// `409 in-progress, retry-after: 1`.
fn answered(answer: &LocalReply) -> String {
    let code = serde_json::from_slice::<Value>(&answer.body).ok();
    let text = |field: &str| {
        let found = code.as_ref().and_then(|code| code.get(field)).and_then(Value::as_str);
        found.unwrap_or_default().to_owned()
    };
    let mut words = format!("is answered {} {}", answer.status, text("code"));
    for name in ["retry-after", "location"] {
        let found = answer.headers.iter().find(|(known, _)| known == name.as_bytes());
        if let Some((_, value)) = found {
            words = format!("{words}, {name}: {}", String::from_utf8_lossy(value));
        }
    }
    let detail = text("detail");
    if detail.is_empty() { words } else { format!("{words}: {detail}") }
}
